"""From the best trials of a search to the champion: train again, measure, judge with gates, register. Start reading at promote.py."""
