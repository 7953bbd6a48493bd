"""Searches on a shared Ray cluster: its file, its jobs, its head."""
