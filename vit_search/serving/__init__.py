"""Serves a registered model over HTTP, classifies in batches, and follows its alias to new versions."""
