"""What a search file means: its keys, the space it describes, the configuration of a trial, and the cost of a model."""
