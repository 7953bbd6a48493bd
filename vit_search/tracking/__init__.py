"""MLflow's record of a search: runs, metrics, models, and how gaps in it are repaired."""
