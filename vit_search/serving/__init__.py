"""Serves a registered model over HTTP, in batches, and follows its alias to new versions."""
