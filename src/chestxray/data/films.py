"""From a row to the bytes of its film: the one place that knows where films can lie."""

from __future__ import annotations

from pathlib import Path

from chestxray.data.archives import read_member, split_path
from chestxray.data.objects import SCHEME, read_object
from chestxray.schema import Film


def read_film(film: Film) -> bytes:
    """The bytes of a film: a file, a member of an archive or an object in S3. Raises: OSError, where it cannot be read.

    ``MissingExtra`` too, for an object where boto3 is not installed.
    """
    if film.path.startswith(SCHEME):
        return read_object(film.path)
    if inside := split_path(film.path):
        return read_member(*inside)
    return Path(film.path).read_bytes()


def stamp_of(film: Film) -> str:
    """What changes when the film's file does: its size and time of change; empty where that cannot be told.

    An object in S3 has none: asking for it takes as long as reading a small film.
    """
    inside = split_path(film.path)
    try:
        status = (inside[0] if inside else Path(film.path)).stat()
    except OSError:
        return ""
    return f"{status.st_size} {status.st_mtime_ns}"


def name_of(film: Film) -> str:
    """What to call a film in a message: the last part of its path."""
    return film.path.rsplit("/", 1)[-1]
