"""Archives of films: zip and tar, listed and read member by member without being unpacked.

A film in an archive has the path ``archive!/member``.
"""

from __future__ import annotations

import atexit
import errno
import io
import lzma
import os
import re
import stat
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path, PurePosixPath
from typing import IO, Any, Final, Protocol, Self

from chestxray.errors import MissingExtra, SourceInvalid

INSIDE: Final = "!/"  # separates an archive from a member
ZSTD_ENDINGS: Final = (".tar.zst", ".tar.zstd", ".tzst")
ARCHIVE_ENDINGS: Final = (
    ".zip", ".tar", ".tar.gz", ".tgz", ".tar.xz", ".txz", ".tar.bz2", ".tbz2", *ZSTD_ENDINGS,
)  # fmt: skip
MAX_MEMBERS: Final = 1_000_000
MAX_RATIO: Final = 200  # size of a member / its size in the archive; a film reaches 20, a decompression bomb 1,000
# The last three arise where a reader takes damaged bytes for text, a number or a table.
_DAMAGED: Final = (
    zipfile.BadZipFile, tarfile.TarError, zlib.error, lzma.LZMAError, EOFError, NotImplementedError, RuntimeError,
    ValueError, IndexError, struct.error,
)  # fmt: skip


class Archive(Protocol):
    """The common interface of the two kinds of archive."""

    def members(self) -> Iterator[tuple[str, str]]:
        """Yield the names of the files, in the archive's order, and why one cannot be read ("" if it can)."""

    def open(self, name: str) -> IO[bytes]:
        """Open a member. Raises: KeyError, OSError."""

    def close(self) -> None:
        """Close the file."""


class ZipArchive:
    """A zip file."""

    def __init__(self, path: Path) -> None:
        self._zip = zipfile.ZipFile(path)
        self._by_name = {_normalised(_with_slashes(info.filename)): info for info in self._zip.infolist()}

    def members(self) -> Iterator[tuple[str, str]]:
        """Yield the names of the files. Raises: SourceInvalid, if one is encrypted."""
        for info in self._zip.infolist():
            if info.flag_bits & 1:
                raise SourceInvalid(f"{self._zip.filename}: is encrypted. Unpack it with its password first")
            kind = stat.S_IFMT(info.external_attr >> 16)
            name = _with_slashes(info.filename)
            if not name.endswith("/"):
                yield name, "" if kind in {0, stat.S_IFREG} else _NO_FILE

    def open(self, name: str) -> IO[bytes]:
        """Open a member."""
        info = self._by_name[name]
        if info.file_size > MAX_RATIO * max(info.compress_size, 1):
            raise OSError(errno.EFBIG, f"swells to more than {MAX_RATIO} times its size in the archive")
        return self._zip.open(info)

    def close(self) -> None:
        """Close the file."""
        self._zip.close()


class _TarEntry(tarfile.TarInfo):
    """An entry of a tar file; a damaged header is an error, where tarfile takes any but the first for the end."""

    @classmethod
    def frombuf(cls, buf: bytes | bytearray, encoding: str, errors: str) -> Self:
        try:
            return super().frombuf(buf, encoding, errors)
        except tarfile.HeaderError as error:
            if any(buf):  # nothing but zeros is the end
                raise tarfile.ReadError(str(error)) from error
            raise


class TarArchive:
    """A tar file, compressed (gzip, bzip2, xz, zstd) or not.

    A compressed file is fast to read only in its own order.
    """

    def __init__(self, path: Path) -> None:
        self._unpacked = _ZstdFile(path) if path.name.lower().endswith(ZSTD_ENDINGS) else None
        self._tar = tarfile.open(path, fileobj=self._unpacked, tarinfo=_TarEntry)  # noqa: SIM115 - closed by close()
        self._by_name: dict[str, tarfile.TarInfo] = {}

    def members(self) -> Iterator[tuple[str, str]]:
        """Yield the names of the files, and of hard links to files before them, which tar writes for a second name."""
        regular = set()
        for info in self._tar:
            if info.isreg():
                regular.add(info.name)
            if not info.isdir():
                yield info.name, "" if info.isreg() or (info.islnk() and info.linkname in regular) else _NO_FILE
        while self._tar.fileobj is not None and self._tar.fileobj.read(
            2**20
        ):  # the checksum of a packed file comes last
            pass

    def open(self, name: str) -> IO[bytes]:
        """Open a member."""
        if not self._by_name:
            self._by_name = {_normalised(info.name): info for info in self._tar if info.isreg() or info.islnk()}
        file = self._tar.extractfile(self._by_name[name])
        if file is None:
            raise KeyError(name)
        return file

    def close(self) -> None:
        """Close the file."""
        self._tar.close()
        if self._unpacked is not None:
            self._unpacked.close()


class _ZstdFile(io.RawIOBase):
    """The decompressed bytes of a zstd file; seeking back starts again from the beginning."""

    def __init__(self, path: Path) -> None:
        try:
            import zstandard
        except ImportError as error:
            raise MissingExtra("Reading an archive packed by zstd", "zstd") from error
        self._failure = zstandard.ZstdError
        self._open: Callable[[], Any] = lambda: zstandard.ZstdDecompressor(max_window_size=2**27).stream_reader(
            path.open("rb"), read_across_frames=True
        )
        self._stream = self._open()

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return int(self._stream.tell())

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        target = offset if whence == os.SEEK_SET else self.tell() + offset
        if target < self.tell():
            self._stream.close()  # type: ignore[no-untyped-call]
            self._stream = self._open()
        while (left := target - self.tell()) > 0 and self.read(min(left, 2**20)):
            pass
        return self.tell()

    def read(self, size: int = -1) -> bytes:
        try:
            return bytes(self._stream.read(size))
        except self._failure as error:
            raise OSError(errno.EIO, f"is damaged ({error})") from error

    def close(self) -> None:
        self._stream.close()  # type: ignore[no-untyped-call]
        io.RawIOBase.close(self)


def is_archive(path: Path) -> bool:
    """Check whether the name is that of an archive."""
    return path.name.lower().endswith(ARCHIVE_ENDINGS)


_NO_FILE: Final = "links or devices in an archive"
_UNSAFE: Final = "paths that lead out of the archive"
_NO_NAME: Final = "names that no file can have"
_AGAIN: Final = "names that the archive has twice, of which the last is read"


def members_of(path: Path) -> tuple[tuple[str, ...], tuple[tuple[str, str], ...]]:
    """Return the names of the files in an archive, in its order, and those that are left out, each with the reason.

    Raises: SourceInvalid, if it is encrypted, damaged or holds too many files.
    """
    try:
        archive = _open(path)
        try:
            names: dict[str, None] = {}
            left_out: list[tuple[str, str]] = []
            for name, reason in archive.members():
                if why := reason or _objection(name) or (_AGAIN if _normalised(name) in names else ""):
                    left_out.append((name, why))
                else:
                    names[_normalised(name)] = None
                if len(names) > MAX_MEMBERS:
                    raise SourceInvalid(f"{path}: holds more than {MAX_MEMBERS:,} files. Unpack it first")
            return tuple(names), tuple(left_out)
        finally:
            archive.close()
    except (OSError, *_DAMAGED) as error:  # MissingExtra is not caught
        fact = str(error).partition(":\n")[0]  # tarfile lists what each of its readers says
        raise SourceInvalid(f"{path}: cannot be read as an archive ({fact}). Copy it again") from error


def _objection(name: str) -> str:
    if "\0" in name or not PurePosixPath(name).parts:
        return _NO_NAME
    return _UNSAFE if name.startswith("/") or ".." in PurePosixPath(name).parts or INSIDE in name else ""


def split_path(path: str) -> tuple[Path, str] | None:
    """Split a film's path into archive and member, if it names both.

    Folders may be named ``wow!`` or ``old.zip!``: a film that lies in one is a file, unless the archive exists.
    """
    pairs = [(Path(path[: at.start()]), path[at.end() :]) for at in re.finditer(re.escape(INSIDE), path)]
    pairs = [(outer, inner) for outer, inner in pairs if is_archive(outer)]
    if not pairs:
        return None
    found = next((pair for pair in pairs if pair[0].is_file()), None)
    return found or (None if Path(path).exists() else pairs[0])


def read_member(archive: Path, name: str, first: int | None = None) -> bytes:
    """Return the bytes of one member, or the first of them. Raises: OSError for every failure."""
    from chestxray.images import MAX_BYTES  # imports numpy, which names of films do not need

    try:
        with _OPEN_ARCHIVE.get(archive).open(name) as file:
            data = file.read(MAX_BYTES + 1 if first is None else first)
    except KeyError:
        raise OSError(errno.ENOENT, f"is no longer in {archive.name}") from None
    except _DAMAGED as error:
        raise OSError(errno.EIO, f"is damaged in its archive ({error})") from error
    if len(data) > MAX_BYTES:
        raise OSError(errno.EFBIG, f"holds more than {MAX_BYTES:,} bytes")
    return data


def _normalised(name: str) -> str:
    """Return a member's name without ``./`` and doubled slashes, which a manifest's path cannot keep."""
    return str(PurePosixPath(name))


def _with_slashes(name: str) -> str:
    """Return a member's name with slashes; some Windows programs write backslashes."""
    return name.replace("\\", "/") if "/" not in name else name


def _open(path: Path) -> Archive:
    return ZipArchive(path) if path.suffix.lower() == ".zip" else TarArchive(path)


class _OpenArchive:
    """Keeps the archive that was read last open, so that its index is read once and not for every film."""

    def __init__(self) -> None:
        self._key: tuple[Path, int, int] | None = None
        self._archive: Archive | None = None

    def get(self, path: Path) -> Archive:
        """Return the archive, opened again if it has changed. Raises: OSError, or the errors of the kind."""
        status = path.stat()
        key = (path, status.st_size, status.st_mtime_ns)
        if self._archive is None or key != self._key:
            self.close()
            self._archive, self._key = _open(path), key
        return self._archive

    def close(self) -> None:
        """Close the archive."""
        if self._archive is not None:
            self._archive.close()
        self._archive = self._key = None


_OPEN_ARCHIVE: Final = _OpenArchive()
atexit.register(_OPEN_ARCHIVE.close)
