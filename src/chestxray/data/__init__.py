"""Files -> manifest -> pack."""
