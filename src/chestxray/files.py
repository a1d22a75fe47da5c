"""Files that are written completely or not at all, never over other files, and identified by their hash."""

from __future__ import annotations

import dataclasses
import errno
import hashlib
import json
import os
import shutil
import stat
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, Final

from chestxray.errors import OutputExists, OutputUnwritable

_NO_ROOM: Final = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
_FULL: Final = _NO_ROOM | {errno.EROFS}
_CANNOT_BE_RENAMED: Final = frozenset({errno.EBUSY, errno.EXDEV, errno.EPERM})  # mount points, and folders on them
_OF_THE_DISK: Final = frozenset({"lost+found"})  # in the root of a file system; belongs to no user
MEBIBYTE: Final = 2**20  # bytes
LONGEST_NAME: Final = 255  # bytes of one part of a path, on the usual file systems


def write_atomically(path: Path, data: bytes) -> None:
    """Write a file completely or not at all: under another name, synced, then renamed. Raises: OutputUnwritable."""
    with file_written_whole(path) as file:
        file.write(data)


@contextmanager
def file_written_whole(path: Path) -> Iterator[BinaryIO]:
    """Yield a file beside ``path`` for writing piece by piece; it is renamed to ``path`` only if the block succeeds.

    A link is followed. A file that is not regular (``/dev/stdout``, a pipe) is written directly.

    Raises: OutputUnwritable, which names ``path`` and never the file beside it.
    """
    path = place_of(path)
    with _write_errors_translated(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.exists() and not path.is_file() and not path.is_dir():
            with _opened_at_once(path) as file:
                yield file
            return
        beside = _beside(path)
        try:
            with beside.open("wb") as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            _move_into_place(beside, path)
        finally:
            beside.unlink(missing_ok=True)


def _opened_at_once(path: Path) -> BinaryIO:
    """Open a pipe or a device for writing; never wait for a reader. Raises: OutputUnwritable; OSError."""
    try:
        file = os.open(path, os.O_WRONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        if error.errno != errno.ENXIO:
            raise
        raise OutputUnwritable(f"{path}: cannot be written (nobody reads it). Start its reader first") from error
    os.set_blocking(file, True)
    return os.fdopen(file, "wb")


@contextmanager
def _write_errors_translated(path: Path) -> Iterator[None]:
    """Turn the system's errors of writing into one sentence about ``path``. Raises: OutputUnwritable."""
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
        remedy = "Make room, or give another --out" if error.errno in _NO_ROOM else "Give another --out"
        raise OutputUnwritable(f"{path}: cannot be written ({error.strerror}). {remedy}") from error


def _move_into_place(beside: Path, path: Path) -> None:
    """Rename a file to its place; write it anew if the place is a mounted file, which no rename can replace."""
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
    """Check that ``path`` is free, empty, or an earlier output of the same kind.

    Args:
        path: path of an output file.
        is_ours: function of a file's first bytes, at most 64 KiB: True if the file is such an output.
        what: name of the kind, for the error.

    Raises: OutputExists; OutputUnwritable, if a file has the name of its folder.
    """
    path = place_of(path)
    nearest = next(parent for parent in path.absolute().parents if parent.exists())
    if not nearest.is_dir():
        raise OutputUnwritable(f"{path}: cannot be written ({nearest} is a file). Give another --out")
    if not path.exists() and not os.access(nearest, os.W_OK | os.X_OK):
        raise OutputUnwritable(f"{path}: cannot be written (no file may be made in {nearest}). Give another --out")
    if not path.exists() or not (path.is_file() or path.is_dir()):
        return
    if path.is_file():
        with path.open("rb") as file:
            head = file.read(2**16)
        if not head or is_ours(head):
            return
    raise OutputExists(f"{path}: exists and is not {what} that this program wrote. Give another --out")


def check_document_beside(path: Path, *keys: str) -> Path:
    """Return the path of the JSON document that goes beside a table: it is free, or a document with one of these keys.

    Raises: OutputUnwritable, if that is the path of the table, or the table is a pipe or a device; OutputExists.
    """
    document = path.with_suffix(".json")

    def is_ours(_: bytes) -> bool:
        try:
            there = json.loads(document.read_bytes())
        except (OSError, ValueError):
            return False
        return isinstance(there, dict) and not there.keys().isdisjoint(keys)

    if path.suffix.lower() == ".json" or (path.exists() and not (path.is_file() or path.is_dir())):
        raise OutputUnwritable(
            f"{path}: cannot be written ({document.name} goes beside it). Give an --out that ends in .csv"
        )
    refuse_to_replace(document, is_ours, "a document")
    return document


def place_of(path: Path) -> Path:
    """Return the path of an output, behind a link if there is one, so that a rename never replaces the link.

    Raises: OutputUnwritable, if a name is too long, links lead in a circle, or a link among its folders leads nowhere.
    """
    if any(len(os.fsencode(part)) > LONGEST_NAME for part in path.parts):
        raise OutputUnwritable(f"{path}: cannot be written (a name of over {LONGEST_NAME} bytes). Give another --out")
    for parent in path.absolute().parents:
        if parent.is_symlink() and not parent.exists():
            raise OutputUnwritable(f"{path}: cannot be written (the link {parent} leads nowhere). Give another --out")
    if not path.is_symlink() and path.name not in {"", ".."}:
        return path
    try:
        place = path.resolve()
    except (OSError, RuntimeError):  # RuntimeError until Python 3.12
        place = path
    if place.is_symlink():
        raise OutputUnwritable(f"{path}: cannot be written (its links lead in a circle). Give another --out")
    return place


def may_be_replaced(path: Path, marker: str) -> bool:
    """Check whether ``path`` is free, an empty folder, or a folder with the file ``marker``.

    Raises: OutputUnwritable, as ``place_of``.
    """
    path = place_of(path)
    return not path.exists() or (path.is_dir() and ((path / marker).is_file() or not _contents(path)))


def _contents(folder: Path) -> list[Path]:
    """Return the content of a folder, except files of the file system or of a killed run."""
    return [
        path
        for path in folder.iterdir()
        if path.name not in _OF_THE_DISK and not (path.name.startswith(f".{folder.name}.") and path.suffix == ".part")
    ]


@contextmanager
def folder_written_whole(path: Path, marker: str) -> Iterator[Path]:
    """Yield a folder beside ``path`` to fill; it is renamed to ``path`` only if the block succeeds.

    A folder at ``path`` is replaced if it holds the file ``marker`` (so it is an earlier output of the same kind) or is
    empty. A link is followed. A mount point cannot be renamed: its contents are exchanged instead, ``marker`` last.

    Raises: OutputExists, before anything is written, if ``path`` holds something else; OutputUnwritable.
    """
    if not may_be_replaced(path, marker):
        raise OutputExists(f"{path}: exists and is not a folder that this command wrote. Give another --out")
    path = place_of(path)
    mounted = path.is_dir() and os.path.ismount(path)
    beside = path / _beside(path).name if mounted else _beside(path)
    with _write_errors_translated(path):
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
    """Rename a folder to the place of another; return whether the system allowed it."""
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
    """Move the content of a folder into one that cannot be renamed: the marker is removed first and added last."""
    (path / marker).unlink(missing_ok=True)
    for old in _contents(path):
        if old.is_dir() and not old.is_symlink():
            shutil.rmtree(old)
        else:
            old.unlink()
    for new in sorted(beside.iterdir(), key=lambda new: new.name == marker):
        shutil.move(new, path / new.name)


def sha256_of_file(path: Path) -> str:
    """Return the SHA-256 of a file's bytes as 64 hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _beside(path: Path) -> Path:
    return path.with_name(f".{path.name}.{os.getpid()}.part")


def open_regular(path: Path) -> BinaryIO:
    """Open a regular file for reading; never wait for a pipe, nor read a device. Raises: OSError."""
    if path.is_dir():  # opening its descriptor would name a number
        raise IsADirectoryError(errno.EISDIR, "is a folder", str(path))
    file = os.fdopen(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb")
    if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
        file.close()
        raise OSError(errno.EINVAL, "is no regular file", str(path))
    return file


def read_text(path: Path) -> bytes:
    """Return the bytes of a regular file that holds text. Raises: OSError, as ``open_regular``; ValueError."""
    with open_regular(path) as file:
        head = file.read(2**16)
        if b"\0" in head:  # a sparse file of any size is nothing but zeros
            raise ValueError("it holds no text")
        return head + file.read()


def size_of(path: Path) -> int:
    """Return the size of a file in bytes; 0 if it is gone meanwhile, as files of a running node may be."""
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0


@contextmanager
def written_beside(path: Path, data: bytes) -> Iterator[Path]:
    """Write a file under a temporary name, durably; it is deleted at the end unless it was moved to its place."""
    beside = path.with_name(f"{path.stem}.{threading.get_ident()}.part")
    try:
        with beside.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        yield beside
    finally:
        beside.unlink(missing_ok=True)


def put_durably(beside: Path, path: Path) -> None:
    """Rename a written file, and sync its folder."""
    beside.replace(path)
    sync(path.parent)


def sync(path: Path) -> None:
    """Wait until a file, or the entries of a folder, would survive a power cut."""
    file = os.open(path, os.O_RDONLY)
    try:
        os.fsync(file)
    finally:
        os.close(file)


def json_values(value: Any) -> Any:
    """Return dataclasses, paths and tuples as JSON values."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: json_values(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {str(key): json_values(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [json_values(item) for item in value]
    return str(value) if isinstance(value, Path) else value
