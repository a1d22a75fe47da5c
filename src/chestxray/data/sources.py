"""Films in an object store that speaks S3: listed and read one by one, never copied to disk.

Address and credentials are boto3's own affair: its environment variables and files. ``AWS_ENDPOINT_URL_S3`` names
a store other than Amazon's; worker processes inherit it.
"""

from __future__ import annotations

import atexit
import errno
import re
import stat
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path, PurePosixPath
from typing import IO, Any, Final, Protocol

from chestxray.errors import MissingExtra, SourceInvalid
from chestxray.schema import Film

SCHEME: Final = "s3://"
ATTEMPTS: Final = 6  # at one call, while the store is busy
PAGE: Final = 1000  # objects a request; the protocol allows no more
ENDPOINT_VARIABLE: Final = "AWS_ENDPOINT_URL_S3"


def split_address(address: str) -> tuple[str, str]:
    """Bucket and key, or prefix. Raises: SourceInvalid."""
    bucket, _, key = address.removeprefix(SCHEME).partition("/")
    if not bucket:
        raise SourceInvalid(f"{address}: names no bucket; write it as s3://bucket/prefix")
    return bucket, key


def keys_below(address: str) -> list[str]:
    """Keys of the objects below a prefix, sorted, without what would be folders. Raises: SourceInvalid."""
    failures = _failures()
    try:
        return sorted(found["Key"] for found in objects_below(client(), address))
    except failures as error:
        raise SourceInvalid(f"{address}: cannot be listed ({error})") from error


def objects_below(store: Any, address: str) -> Iterator[dict[str, Any]]:
    """Objects below a prefix as S3 lists them (``Key``, ``Size``, ...), without what would be folders.

    Raises: SourceInvalid, botocore's errors.
    """
    bucket, prefix = split_address(address)
    pages = store.get_paginator("list_objects_v2").paginate(
        Bucket=bucket, Prefix=below(prefix), PaginationConfig={"PageSize": PAGE}
    )
    for page in pages:
        yield from (found for found in page.get("Contents", ()) if found["Key"][-1] != "/")


def below(prefix: str) -> str:
    """The prefix of what lies below a prefix: ``a`` is no folder of ``ab``."""
    return f"{prefix.rstrip('/')}/" if prefix else ""


def read_object(address: str) -> bytes:
    """The bytes of one object. Raises: OSError, whatever is wrong."""
    from chestxray.images.decode import MAX_BYTES

    bucket, key = split_address(address)
    failures = _failures()
    try:
        with client().get_object(Bucket=bucket, Key=key)["Body"] as body:
            data: bytes = body.read(MAX_BYTES + 1)
    except failures as error:
        raise OSError(errno.EIO, f"cannot be fetched ({error})") from error
    if len(data) > MAX_BYTES:
        raise OSError(errno.EFBIG, f"holds more than {MAX_BYTES:,} bytes")
    return data


@cache
def client() -> Any:
    """One a process; it keeps its connections open."""
    try:
        import boto3
        from botocore.config import Config
    except ImportError as error:
        raise MissingExtra("Reading films from S3", "aws") from error
    # A store that asks to be asked more slowly is: a film must not become unreadable because many were wanted.
    return boto3.client("s3", config=Config(retries={"mode": "adaptive", "total_max_attempts": ATTEMPTS}))


def _failures() -> tuple[type[Exception], ...]:
    """What boto3 raises where the store refuses or cannot be reached."""
    try:
        from botocore.exceptions import BotoCoreError, ClientError
    except ImportError as error:
        raise MissingExtra("Reading films from S3", "aws") from error
    return BotoCoreError, ClientError


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


KAGGLE_SCHEME: Final = "kaggle:"
_HANDLE: Final = re.compile(r"[\w-]+/[\w-]+(/versions/[1-9]\d*)?", re.ASCII)


def fetch(handle: str) -> Path:
    """The folder of a data set, downloaded unless the client has it. Raises: SourceInvalid, MissingExtra."""
    try:
        import kagglehub
        from kagglehub import exceptions as its
    except ImportError as error:
        raise MissingExtra("Fetching a data set from Kaggle", "kaggle") from error
    failures = (
        OSError,
        ValueError,
        its.BackendError,
        its.CredentialError,
        its.DataCorruptionError,
        its.KaggleEnvironmentError,
        its.NotFoundError,
        its.UnauthenticatedError,
    )
    try:
        return Path(kagglehub.dataset_download(handle))
    except failures as error:
        raise SourceInvalid(
            f"{KAGGLE_SCHEME}{handle}: cannot be fetched ({error}). "
            "Download it by hand, or check network and credentials"
        ) from error


def downloaded(address: str, fetch_one: Callable[[str], Path] = fetch) -> Path:
    """The folder of the data set at ``kaggle:owner/dataset``, or ``kaggle:owner/dataset/versions/2``.

    Raises: SourceInvalid: the address is none, or the data set cannot be fetched.
    """
    handle = address.removeprefix(KAGGLE_SCHEME)
    if not _HANDLE.fullmatch(handle):
        raise SourceInvalid(f"{address}: not a data set of Kaggle's; write it as kaggle:owner/dataset")
    return fetch_one(handle)
