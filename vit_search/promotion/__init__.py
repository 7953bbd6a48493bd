"""From the best trials of a search to the champion: retraining, evidence, gates, registration."""
