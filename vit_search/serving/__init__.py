"""Registered models in production: HTTP, batches, the alias that is followed."""
