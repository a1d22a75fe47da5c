"""Files written whole or not at all, never over what is not ours, and named by their hash."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, Final

from chestxray.errors import OutputExists, OutputUnwritable

_FULL: Final = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS})
_CANNOT_BE_RENAMED: Final = frozenset({errno.EBUSY, errno.EXDEV, errno.EPERM})  # mount points, and folders on them
_OF_THE_DISK: Final = frozenset({"lost+found"})  # stands in the root of a file system, and is nobody's


def write_atomically(path: Path, data: bytes) -> None:
    """Write a file whole or not at all: to a name beside it, synced, then renamed. Raises: OutputUnwritable."""
    with file_written_whole(path) as file:
        file.write(data)


@contextmanager
def file_written_whole(path: Path) -> Iterator[BinaryIO]:
    """Give a file beside ``path`` to write, piece by piece; it takes the name ``path`` only if the block succeeds.

    A link is followed. What is no regular file (``/dev/stdout``, a pipe) is written to as it stands.

    Raises: OutputUnwritable, naming ``path`` and never the file beside it.
    """
    path = place_of(path)
    with _refusals_told(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.exists() and not path.is_file() and not path.is_dir():
            with path.open("wb") as file:
                yield file
            return
        beside = _beside(path)
        try:
            with beside.open("wb") as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            _take_place(beside, path)
        finally:
            beside.unlink(missing_ok=True)


@contextmanager
def _refusals_told(path: Path) -> Iterator[None]:
    """Turn the system's refusal to write into one sentence about ``path``. Raises: OutputUnwritable."""
    beside = _beside(path)
    try:
        yield
    except OSError as error:
        about = None if error.filename is None else Path(str(error.filename))
        if about is None:
            ours = error.errno in _FULL
        else:
            ours = about in {path, beside, *path.parents} or beside in about.parents
        if not ours:
            raise
        raise OutputUnwritable(
            f"{path}: cannot be written ({error.strerror}). Make room, or give another --out"
        ) from error


def _take_place(beside: Path, path: Path) -> None:
    """Give a file its name; a file that is mounted by itself cannot be renamed over, and is written anew."""
    try:
        beside.replace(path)
    except OSError as error:
        if error.errno not in _CANNOT_BE_RENAMED or not path.is_file():
            raise
        with beside.open("rb") as source, path.open("wb") as target:
            shutil.copyfileobj(source, target)
            target.flush()
            os.fsync(target.fileno())


def refuse_to_replace(path: Path, is_ours: Callable[[bytes], bool], what: str) -> None:
    """Check that nothing stands at ``path`` but an earlier output of the same kind, or an empty file.

    Args:
        path: of an output that is a file.
        is_ours: whether a file that begins so is one; called with at most 64 KiB.
        what: the kind, for the error.

    Raises: OutputExists; OutputUnwritable, where a file stands in the way of its folder.
    """
    nearest = next(parent for parent in path.absolute().parents if parent.exists())
    if not nearest.is_dir():
        raise OutputUnwritable(f"{path}: cannot be written ({nearest} is a file). Give another --out")
    if not path.exists() or not (path.is_file() or path.is_dir()):
        return
    if path.is_file():
        with path.open("rb") as file:
            head = file.read(2**16)
        if not head or is_ours(head):
            return
    raise OutputExists(f"{path}: exists and is not {what} that this program wrote. Give another --out")


def check_document(path: Path, *keys: str) -> None:
    """Check that a JSON document may be written there: nothing stands there, or one with one of these keys.

    Raises: OutputExists.
    """

    def is_ours(_: bytes) -> bool:
        try:
            document = json.loads(path.read_bytes())
        except (OSError, ValueError):
            return False
        return isinstance(document, dict) and not document.keys().isdisjoint(keys)

    refuse_to_replace(path, is_ours, "a document")


def place_of(path: Path) -> Path:
    """Where an output lies: the end of a link, so that what is renamed is never the link itself."""
    return path.resolve() if path.is_symlink() else path


def may_be_replaced(path: Path, marker: str) -> bool:
    """Whether nothing stands at ``path``, or an empty folder, or one that holds the file ``marker``."""
    return not path.exists() or (path.is_dir() and ((path / marker).is_file() or not _held(path)))


def _held(folder: Path) -> list[Path]:
    """What a folder holds, but for what a file system or a killed run of ours left there."""
    return [
        path
        for path in folder.iterdir()
        if path.name not in _OF_THE_DISK and not (path.name.startswith(f".{folder.name}.") and path.suffix == ".part")
    ]


@contextmanager
def folder_written_whole(path: Path, marker: str) -> Iterator[Path]:
    """Give a folder beside ``path`` to fill; it takes the name ``path`` only if the block succeeds.

    A folder that already stands at ``path`` is replaced where it holds the file ``marker`` (so it is an
    earlier output of the same kind) or is empty. A link is followed. A mount point cannot be renamed: its contents
    are exchanged instead, ``marker`` last.

    Raises: OutputExists, before anything is written, where something else stands there; OutputUnwritable.
    """
    if not may_be_replaced(path, marker):
        raise OutputExists(f"{path}: exists and is not a folder that this command wrote. Give another --out")
    path = place_of(path)
    mounted = path.is_dir() and os.path.ismount(path)
    beside = path / _beside(path).name if mounted else _beside(path)
    with _refusals_told(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        shutil.rmtree(beside, ignore_errors=True)
        beside.mkdir()
        try:
            yield beside
            if mounted or not _renamed(beside, path):
                _exchange(beside, path, marker)
        finally:
            shutil.rmtree(beside, ignore_errors=True)


def _renamed(beside: Path, path: Path) -> bool:
    """Put a folder in the place of another; whether the system let it."""
    try:
        if path.exists():
            shutil.rmtree(path)
        beside.replace(path)
    except OSError as error:
        if error.errno not in _CANNOT_BE_RENAMED or not path.is_dir():
            raise
        return False
    return True


def _exchange(beside: Path, path: Path, marker: str) -> None:
    """Put what a folder holds into another that cannot be renamed: the marker goes first and comes last."""
    (path / marker).unlink(missing_ok=True)
    for old in _held(path):
        if old.is_dir() and not old.is_symlink():
            shutil.rmtree(old)
        else:
            old.unlink()
    for new in sorted(beside.iterdir(), key=lambda new: new.name == marker):
        shutil.move(new, path / new.name)


def sha256_of_file(path: Path) -> str:
    """SHA-256 of a file's bytes as 64 hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _beside(path: Path) -> Path:
    return path.with_name(f".{path.name}.{os.getpid()}.part")


_FORMULA: Final = re.compile(r"'*[=+\-@\t\r]")
_NUMBER: Final = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?")


def as_cell(text: str) -> str:
    """A text as it is written into a CSV file: a program for tables must not take it for a formula.

    What begins like one gets an apostrophe before it, numbers excepted; ``of_cell`` takes it away again.
    Law: ``of_cell(as_cell(text)) == text``. Source: OWASP, CSV Injection.
    """
    return f"'{text}" if _FORMULA.match(text) and not _NUMBER.fullmatch(text) else text


def of_cell(text: str) -> str:
    """The text that ``as_cell`` wrote."""
    return text[1:] if text.startswith("'") and _FORMULA.match(text) else text
