"""Measures a model before it may be promoted. Nothing is judged here; gates.py does that."""
