"""One Vision Transformer and its training. Knows no Ray, Optuna or MLflow."""
