"""Registered models: versions and aliases, the history of promotions, and how a version is named, loaded and tested."""
