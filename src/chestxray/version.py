"""The version of this package, in the one place from which pyproject.toml reads it."""

__version__ = "0.1.0"
