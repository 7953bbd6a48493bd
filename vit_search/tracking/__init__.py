"""The record of a search in MLflow: runs, metrics and models, and the repair of gaps in it."""
