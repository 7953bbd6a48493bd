"""Proposals: which trial comes next. `proposals.py` keeps the order, `samplers.py` has the samplers, `history.py` what they are shown."""
