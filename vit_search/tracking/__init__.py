"""MLflow's record of a search: runs, metrics, models, and what is repaired there."""
