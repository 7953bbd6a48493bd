"""A search: which trial comes next, when one stops, and all of them on Ray."""
