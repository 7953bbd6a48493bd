"""From image files to batches: data sets and their splits, the cache, decoding."""
