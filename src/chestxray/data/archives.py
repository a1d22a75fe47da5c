"""Films inside zip and tar archives, read in place: nothing is ever extracted, so no name can lead anywhere.

A film's path is the archive's, "!/", and the member's name: ``/data/films.zip!/train/NORMAL/a.jpeg``.
"""

from __future__ import annotations

import atexit
import errno
import stat
import tarfile
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import IO, Final, Protocol

from chestxray.errors import SourceInvalid

INSIDE: Final = "!/"  # stands between an archive and a member
ARCHIVE_ENDINGS: Final = (".zip", ".tar", ".tar.gz", ".tgz")
MAX_MEMBERS: Final = 1_000_000
MAX_RATIO: Final = 200  # of a member's size to what it takes in the archive; a film reaches 20, a trap 1,000
_DAMAGED: Final = (zipfile.BadZipFile, tarfile.TarError, zlib.error, EOFError, NotImplementedError, RuntimeError)


class Archive(Protocol):
    """What the two kinds have in common."""

    def members(self) -> Iterator[str]:
        """Names of the regular files, in the archive's order."""

    def open(self, name: str) -> IO[bytes]:
        """A member's bytes. Raises: KeyError, OSError."""

    def close(self) -> None:
        """Let go of the file."""


class ZipArchive:
    """A zip file."""

    def __init__(self, path: Path) -> None:
        self._zip = zipfile.ZipFile(path)
        self._by_name = {_tidy(info.filename): info for info in self._zip.infolist()}

    def members(self) -> Iterator[str]:
        """Names of the regular files. Raises: SourceInvalid, where one is encrypted."""
        for info in self._zip.infolist():
            if info.flag_bits & 1:
                raise SourceInvalid(f"{self._zip.filename}: is encrypted. Unpack it with its password first")
            kind = stat.S_IFMT(info.external_attr >> 16)
            if not info.is_dir() and kind in {0, stat.S_IFREG}:
                yield info.filename

    def open(self, name: str) -> IO[bytes]:
        """A member's bytes."""
        info = self._by_name[name]
        if info.file_size > MAX_RATIO * max(info.compress_size, 1):
            raise OSError(errno.EFBIG, f"swells to more than {MAX_RATIO} times its size in the archive")
        return self._zip.open(info)

    def close(self) -> None:
        """Let go of the file."""
        self._zip.close()


class TarArchive:
    """A tar file, compressed by gzip or not. A compressed one is quick to read in its own order only."""

    def __init__(self, path: Path) -> None:
        self._tar = tarfile.open(path)  # noqa: SIM115 - closed by close()
        self._by_name: dict[str, tarfile.TarInfo] = {}

    def members(self) -> Iterator[str]:
        """Names of the regular files: no links, no devices."""
        for info in self._tar:
            if info.isreg():
                yield info.name

    def open(self, name: str) -> IO[bytes]:
        """A member's bytes."""
        if not self._by_name:
            self._by_name = {_tidy(info.name): info for info in self._tar if info.isreg()}
        file = self._tar.extractfile(self._by_name[name])
        if file is None:
            raise KeyError(name)
        return file

    def close(self) -> None:
        """Let go of the file."""
        self._tar.close()


def is_archive(path: Path) -> bool:
    """Whether the name is that of an archive."""
    return path.name.lower().endswith(ARCHIVE_ENDINGS)


def members_of(path: Path) -> tuple[str, ...]:
    """Names of the regular files in an archive, tidied, in its order; absolute and climbing ones are left out.

    Raises: SourceInvalid, where it is encrypted, damaged or holds too many.
    """
    try:
        archive = _open(path)
        try:
            names: dict[str, None] = {}
            for name in archive.members():
                parts = PurePosixPath(name).parts
                if not name.startswith("/") and ".." not in parts and INSIDE not in name:
                    names[_tidy(name)] = None
                if len(names) > MAX_MEMBERS:
                    raise SourceInvalid(f"{path}: holds more than {MAX_MEMBERS:,} files. Unpack it first")
            return tuple(names)
        finally:
            archive.close()
    except (OSError, *_DAMAGED) as error:
        raise SourceInvalid(f"{path}: cannot be read as an archive ({error}). Copy it again") from error


def split_path(path: str) -> tuple[Path, str] | None:
    """An archive and a member, where a film's path names them."""
    outer, found, inner = path.partition(INSIDE)
    return (Path(outer), inner) if found and is_archive(Path(outer)) else None


def read_member(archive: Path, name: str) -> bytes:
    """The bytes of one member. Raises: OSError, whatever is wrong."""
    from chestxray.images.decode import MAX_BYTES  # brings numpy, which names of films do not need

    try:
        with _SHELF.get(archive).open(name) as file:
            data = file.read(MAX_BYTES + 1)
    except KeyError:
        raise OSError(errno.ENOENT, f"is no longer in {archive.name}") from None
    except _DAMAGED as error:
        raise OSError(errno.EIO, f"is damaged in its archive ({error})") from error
    if len(data) > MAX_BYTES:
        raise OSError(errno.EFBIG, f"holds more than {MAX_BYTES:,} bytes")
    return data


def _tidy(name: str) -> str:
    """A member's name without ``./`` and doubled slashes: a path that goes through a manifest loses them."""
    return str(PurePosixPath(name))


def _open(path: Path) -> Archive:
    return ZipArchive(path) if path.suffix.lower() == ".zip" else TarArchive(path)


class _Shelf:
    """The archive that was read last, kept open: its index is read once, not once a film."""

    def __init__(self) -> None:
        self._key: tuple[Path, int, int] | None = None
        self._archive: Archive | None = None

    def get(self, path: Path) -> Archive:
        """The archive, opened anew where it changed. Raises: OSError, or what the kind raises."""
        status = path.stat()
        key = (path, status.st_size, status.st_mtime_ns)
        if self._archive is None or key != self._key:
            self.close()
            self._archive, self._key = _open(path), key
        return self._archive

    def close(self) -> None:
        """Let go of it."""
        if self._archive is not None:
            self._archive.close()
        self._archive = self._key = None


_SHELF: Final = _Shelf()
atexit.register(_SHELF.close)
