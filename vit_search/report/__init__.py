"""Reports of searches: the figures, the texts, one page of HTML."""
