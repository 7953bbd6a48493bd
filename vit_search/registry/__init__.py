"""Registered models: versions and aliases, the history of promotions, and how a model is named, loaded and tested."""
