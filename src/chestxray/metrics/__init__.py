"""Numbers from labels, scores and patients: NumPy and nothing else."""
