"""What a search file means: its text, the space that it spans, the configuration of a trial, and what a model costs."""
