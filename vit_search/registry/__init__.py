"""Registered models: their versions and aliases, how they are named, loaded and tried."""
