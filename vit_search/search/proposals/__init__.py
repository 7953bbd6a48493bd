"""Which configuration is tried next. `proposals.py` keeps the order, `samplers.py` has the samplers, `history.py` what they see."""
