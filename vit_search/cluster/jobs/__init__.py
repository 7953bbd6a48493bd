"""Searches as jobs on a Ray cluster. A laptop submits, lists, follows and stops them; the head runs them."""
