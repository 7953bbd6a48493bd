"""From the best trials of a search to a champion: evidence, gates, the alias."""
