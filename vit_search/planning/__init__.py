"""Checks before any GPU is used: what a search will cost, and what is wrong with its file."""
