"""Searches on a Ray cluster as jobs: submitted, listed, followed and stopped from a laptop, driven and kept on the head."""
