"""From a row to the bytes of its film: the one place that knows where films can lie."""

from __future__ import annotations

from pathlib import Path

from chestxray.schema import Film


def read_film(film: Film) -> bytes:
    """The bytes of a film's file. Raises: OSError, where it cannot be opened."""
    return Path(film.path).read_bytes()


def name_of(film: Film) -> str:
    """What to call a film in a message: the last part of its path."""
    return film.path.rsplit("/", 1)[-1]
