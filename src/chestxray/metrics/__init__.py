"""Figures computed from labels, scores and patients, with NumPy only."""
