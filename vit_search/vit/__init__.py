"""One Vision Transformer and its training. Imports no Ray, Optuna or MLflow."""
