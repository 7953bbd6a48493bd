"""What a search will cost, before any GPU is used, and what is wrong with its file."""
