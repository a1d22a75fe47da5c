"""Files written whole or not at all, and named by their hash."""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from chestxray.errors import OutputExists


def write_atomically(path: Path, data: bytes) -> None:
    """Write a file whole or not at all: to a name beside it, synced, then renamed."""
    with file_written_whole(path) as file:
        file.write(data)


@contextmanager
def file_written_whole(path: Path) -> Iterator[BinaryIO]:
    """Give a file beside ``path`` to write, piece by piece; it takes the name ``path`` only if the block succeeds."""
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = _beside(path)
    try:
        with beside.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        beside.replace(path)
    finally:
        beside.unlink(missing_ok=True)


def may_be_replaced(path: Path, marker: str) -> bool:
    """Whether nothing stands at ``path``, or an empty folder, or one that holds the file ``marker``."""
    return not path.exists() or (path.is_dir() and ((path / marker).is_file() or not any(path.iterdir())))


@contextmanager
def folder_written_whole(path: Path, marker: str) -> Iterator[Path]:
    """Give a folder beside ``path`` to fill; it takes the name ``path`` only if the block succeeds.

    A folder that already stands at ``path`` is replaced where it holds the file ``marker`` (so it is an
    earlier output of the same kind) or is empty.

    Raises: OutputExists, before anything is written, where something else stands there.
    """
    if not may_be_replaced(path, marker):
        raise OutputExists(f"{path}: exists and is not a folder that this command wrote. Give another --out")
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = _beside(path)
    shutil.rmtree(beside, ignore_errors=True)
    beside.mkdir()
    try:
        yield beside
        if path.exists():
            shutil.rmtree(path)
        beside.replace(path)
    finally:
        shutil.rmtree(beside, ignore_errors=True)


def sha256_of_file(path: Path) -> str:
    """SHA-256 of a file's bytes as 64 hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _beside(path: Path) -> Path:
    return path.with_name(f".{path.name}.{os.getpid()}.part")
