"""Sources of films: folders, archives and object stores that speak S3, listed in one way and read film by film.

In all of them a film is recognised by the ending of its name or, without a telling ending, by its first bytes. Other
files are counted.

Address and credentials of S3 are read by boto3, from its environment variables and files. ``AWS_ENDPOINT_URL_S3``
names a store other than Amazon's; worker processes inherit it.
"""

from __future__ import annotations

import errno
import os
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path, PurePosixPath
from typing import Any, Final

from chestxray.data.archives import INSIDE, is_archive, members_of, read_member, split_path
from chestxray.errors import FilmUnopened, MissingExtra, SourceInvalid
from chestxray.files import open_regular
from chestxray.progress import counted
from chestxray.schema import Film

FILM_ENDINGS: Final = frozenset(
    {
        ".jpeg", ".jpg", ".jpe", ".jfif", ".png", ".tif", ".tiff", ".dcm", ".dicom", ".ima", ".webp", ".bmp", ".dib",
        ".gif", ".jp2", ".j2k", ".jpf", ".jpx", ".j2c", ".pgm", ".ppm", ".pnm", ".pbm", ".heic", ".heif",
    }
)  # fmt: skip
# Files with these endings are never opened to see whether they are films.
_NO_FILM_ENDINGS: Final = frozenset(
    {
        ".txt", ".md", ".rst", ".csv", ".tsv", ".tab", ".json", ".jsonl", ".xml", ".html", ".htm", ".pdf", ".doc",
        ".docx", ".xls", ".xlsx", ".ods", ".ppt", ".pptx", ".py", ".ipynb", ".zip", ".tar", ".gz", ".tgz", ".xz",
        ".zst", ".bz2", ".7z", ".rar", ".log", ".yaml", ".yml", ".toml", ".ini", ".cfg", ".db", ".sqlite", ".parquet",
        ".npy", ".npz", ".pt", ".pth", ".h5", ".onnx", ".mp4", ".avi", ".mov", ".svg", ".js", ".css", ".sh", ".lnk",
    }
)  # fmt: skip
DISC_INDEX: Final = "DICOMDIR"  # lists the films of a DICOM disc, and begins as they do
_HIDDEN: Final = frozenset({"__macosx", "@eadir", "$recycle.bin", "system volume information", "thumbs.db"})
# Files that hold many pictures in a form that is not read, by their endings; and what to do about them.
_PICTURES: Final = "Write its pictures to files, and their labels to a table"
_CONTAINERS: Final[tuple[tuple[tuple[str, ...], str, str], ...]] = (
    ((".tfrecord", ".tfrecords", ".tfrec"), "records of TensorFlow", _PICTURES),
    ((".npz", ".npy"), "arrays of NumPy, as MedMNIST has them", _PICTURES),
    ((".h5", ".hdf5"), "HDF5", _PICTURES),
    ((".mat",), "MATLAB", _PICTURES),
    ((".pkl", ".pickle", ".pt", ".pth"), "a pickle, which may run any program when it is opened", _PICTURES),
    ((".arrow", ".feather", ".lmdb", ".rec", ".beton"), "a database of pictures", _PICTURES),
    ((".nii", ".nii.gz", ".mha", ".mhd", ".nrrd"), "a volume", "Export it as DICOM or PNG"),
    ((".7z", ".rar", ".gz", ".bz2", ".xz", ".zst", ".z"), "a packed file", "Unpack it"),
)
_LABEL_TABLES: Final = frozenset({".csv", ".tsv", ".tab", ".xlsx", ".xls", ".ods", ".parquet", ".json", ".jsonl"})
HEAD: Final = 512  # bytes that tell what a file is
_KINDS_NAMED: Final = 6  # kinds of file that a message lists before it counts the rest


@dataclass(slots=True)
class Listing:
    """The content of a source.

    Attributes:
        films: a pair for each film: path, and its parts inside the source.
        others: other files inside the source.
        hidden, masks: numbers of skipped files.
        unread: names of folders, links and members that could not be followed, each with the reason.
    """

    films: list[tuple[str, tuple[str, ...]]] = field(default_factory=list)
    others: list[PurePosixPath] = field(default_factory=list)
    hidden: int = 0
    masks: int = 0
    unread: list[tuple[str, str]] = field(default_factory=list)

    def notes(self) -> Iterator[str]:
        """Describe what was left out, in sentences."""
        counts = Counter(name.suffix.lower() or "without an ending" for name in self.others)
        kinds = sorted(counts.items(), key=lambda pair: (-pair[1], pair[0]))
        if kinds:
            named = ", ".join(f"{count:,} {kind}" for kind, count in kinds[:_KINDS_NAMED])
            rest = sum(count for _, count in kinds[_KINDS_NAMED:])
            left = counted(len(self.others), "file is no film", "files are no films")
            yield f"{left}: {named}" + (f", {rest:,} of other kinds" if rest else "")
            yield from sorted({container_of(name.name) for name in self.others} - {""})
            if self.films and (inner := [name for name in self.others if is_archive(Path(name))]):
                yield f"archives inside are not opened: collect {inner[0]} by itself, or unpack it"
        if self.hidden:
            yield counted(self.hidden, "hidden file is passed over", "hidden files are passed over")
        if self.masks:
            where = "in folders of masks beside folders of images"
            yield counted(self.masks, f"file {where} is left out", f"files {where} are left out")
        for reason, count in sorted(Counter(reason for _, reason in self.unread).items()):
            first = next(name for name, why in self.unread if why == reason)
            yield f"Warning: {count:,} left out, {reason}: {first}" + (" for one" if count > 1 else "")

    def remedies(self) -> Iterator[str]:
        """Say where else films or labels may be, for a source of which none was found."""
        if not self.films and (archive := next((name for name in self.others if is_archive(Path(name))), None)):
            yield f"archives inside are not opened: give {archive} itself, or unpack it"
        stems = {PurePosixPath(*parts).with_suffix("") for _, parts in self.films if self.others}
        if beside := [name for name in self.others if name.with_suffix("") in stems]:
            have = counted(len(beside), "file has", "files have")
            yield (
                f"{have} the name of a film, such as {beside[0]}; labels in such files are not read: write a table "
                "with the columns path and label"
            )
        elif table := next((name for name in self.others if name.suffix.lower() in _LABEL_TABLES), None):
            yield f"if {table} holds the labels, give it as the source (of an archive, unpack it first)"


def container_of(name: str) -> str:
    """Return what a file of that name is and what to do, if it holds pictures in a form that is not read; else ""."""
    for endings, kind, remedy in _CONTAINERS:
        if name.lower().endswith(endings) and not is_archive(Path(name)):
            ending = next(ending for ending in endings if name.lower().endswith(ending))
            return f"{ending}: {kind}. {remedy}"
    return ""


def _sorted_out(found: Iterable[tuple[str, tuple[str, ...], Callable[[], bytes]]]) -> Listing:
    """Separate films from other files.

    Args:
        found: path, parts inside the source, and a function that reads the first ``HEAD`` bytes.
    """
    listed = Listing()
    for path, parts, head in found:
        ending = os.path.splitext(parts[-1])[1].lower()  # noqa: PTH122 - a million names, and no Path for each
        if is_hidden(parts):
            listed.hidden += 1
        elif parts[-1] == DISC_INDEX:
            listed.others.append(PurePosixPath(*parts))
        elif ending in FILM_ENDINGS or (ending not in _NO_FILM_ENDINGS and _begins_as_a_film(head)):
            listed.films.append((path, parts))
        else:
            listed.others.append(PurePosixPath(*parts))
    return _without_masks(listed)


def _without_masks(listed: Listing) -> Listing:
    """Leave out folders named masks beside folders named images: their files show shapes, not films."""
    with_images = {
        parts[:depth] for _, parts in listed.films for depth, name in enumerate(parts[:-1]) if name.lower() == "images"
    }

    def is_mask(parts: tuple[str, ...]) -> bool:
        return any(
            name.lower() in {"masks", "mask"} and parts[:at] in with_images for at, name in enumerate(parts[:-1])
        )

    kept = [(path, parts) for path, parts in listed.films if not is_mask(parts)]
    listed.masks = len(listed.films) - len(kept)
    listed.films = kept
    return listed


def is_hidden(parts: tuple[str, ...]) -> bool:
    """Check whether a file, or a folder around it, is hidden, or is one that a system adds to folders and archives."""
    return any(part.startswith(".") or part.lower() in _HIDDEN for part in parts)


def _begins_as_a_film(head: Callable[[], bytes]) -> bool:
    from chestxray.images.decode import FORMATS  # imports numpy, which names of films do not need

    try:
        data = head()
    except OSError:
        return False
    return any(form.recognises(data) for form in FORMATS)


def is_film(path: Path) -> bool:
    """Check whether a file is a film by its ending, or begins as one."""
    ending = path.suffix.lower()
    return path.name != DISC_INDEX and (ending in FILM_ENDINGS or _begins_as_a_film(lambda: _head_of(path)))


def _head_of(path: Path) -> bytes:
    with open_regular(path) as file:
        return file.read(HEAD)


def list_folder(root: Path) -> Listing:
    """List the files below a folder, sorted by path; links to folders are followed, each folder once."""
    unread: list[tuple[str, str]] = []
    listed = _sorted_out(
        (path, parts, lambda path=path: _head_of(Path(path)))  # type: ignore[misc]
        for parts in sorted(_all_below(root, unread))
        for path in (os.path.join(root, *parts),)  # noqa: PTH118 - as above
    )
    listed.unread = sorted(unread)
    return listed


def files_below(root: Path) -> Iterator[Path]:
    """Yield every film below a folder, without hidden ones, in no order."""
    for parts in _all_below(root):
        if not is_hidden(parts) and (path := Path(root, *parts)).suffix.lower() not in _NO_FILM_ENDINGS:
            yield path


def _all_below(root: Path, unread: list[tuple[str, str]] | None = None) -> Iterator[tuple[str, ...]]:
    """Yield the parts of each file's path below a folder, in no order.

    What cannot be followed is added to ``unread``, with the reason.
    """
    seen: set[tuple[int, int]] = set()
    left = unread if unread is not None else []

    def leave(error: OSError) -> None:
        left.append((str(error.filename), error.strerror or "cannot be read"))

    for folder, folders, names in os.walk(root, followlinks=True, onerror=leave):
        status = os.stat(folder)  # noqa: PTH116 - a path as os.walk gives it
        if (status.st_dev, status.st_ino) in seen:
            folders.clear()
            continue
        seen.add((status.st_dev, status.st_ino))
        folders.sort()
        inside = Path(folder).relative_to(root).parts
        for name in names:
            path = os.path.join(folder, name)  # noqa: PTH118
            if os.path.isfile(path):  # noqa: PTH113
                yield *inside, name
            elif not name.startswith("."):
                left.append((path, "links that lead nowhere" if os.path.islink(path) else "no regular files"))  # noqa: PTH114


def list_archive(path: Path) -> Listing:
    """List the films in an archive, in its order. Raises: SourceInvalid."""
    outer = str(path.resolve())
    names, left_out = members_of(path)
    listed = _sorted_out(
        (f"{outer}{INSIDE}{name}", PurePosixPath(name).parts, lambda name=name: read_member(path, name, HEAD))  # type: ignore[misc]
        for name in names
    )
    listed.unread = list(left_out)
    return listed


def list_store(address: str) -> Listing:
    """List the films below a prefix in S3, sorted by key. Raises: SourceInvalid."""
    bucket, prefix = split_address(address)

    def found() -> Iterator[tuple[str, tuple[str, ...], Callable[[], bytes]]]:
        for key in keys_below(address):
            parts = PurePosixPath(key.removeprefix(prefix).lstrip("/")).parts
            if parts:
                film = f"{S3_SCHEME}{bucket}/{key}"
                yield film, parts, lambda film=film: read_object(film, HEAD)  # type: ignore[misc]

    return _sorted_out(found())


S3_SCHEME: Final = "s3://"
ATTEMPTS: Final = 6  # of one call to AWS: the first and five more, at growing intervals
OBJECTS_AT_ONCE: Final = 1000  # objects in a request; the protocol allows no more
S3_ENDPOINT_VARIABLE: Final = "AWS_ENDPOINT_URL_S3"
OWNER_VARIABLE: Final = "CHESTXRAY_BUCKET_OWNER"  # "BUCKET=ACCOUNT": S3 refuses that bucket where it is another's


def split_address(address: str) -> tuple[str, str]:
    """Return bucket and key, or prefix. Raises: SourceInvalid."""
    bucket, _, key = address.removeprefix(S3_SCHEME).partition("/")
    if not bucket:
        raise SourceInvalid(f"{address}: names no bucket; write it as s3://bucket/prefix")
    return bucket, key


def keys_below(address: str) -> list[str]:
    """Return the keys of the objects below a prefix, sorted, without folder entries. Raises: SourceInvalid."""
    failures = _failures()
    try:
        return sorted(found["Key"] for found in objects_below(client(), address))
    except failures as error:
        raise SourceInvalid(f"{address}: cannot be listed ({error})") from error


def objects_below(store: Any, address: str) -> Iterator[dict[str, Any]]:
    """Yield objects below a prefix as S3 lists them (``Key``, ``Size``, ...), without folder entries.

    Raises: SourceInvalid, botocore's errors.
    """
    bucket, prefix = split_address(address)
    pages = store.get_paginator("list_objects_v2").paginate(
        Bucket=bucket, Prefix=below(prefix), PaginationConfig={"PageSize": OBJECTS_AT_ONCE}
    )
    for page in pages:
        yield from (found for found in page.get("Contents", ()) if found["Key"][-1] != "/")


def below(prefix: str) -> str:
    """Return the prefix with a slash at its end, so that ``a`` does not match ``ab``."""
    return f"{prefix.rstrip('/')}/" if prefix else ""


def read_object(address: str, first: int | None = None) -> bytes:
    """Return the bytes of one object, or the first of them. Raises: OSError for every failure."""
    from chestxray.images import MAX_BYTES

    bucket, key = split_address(address)
    failures = _failures()
    part = {} if first is None else {"Range": f"bytes=0-{first - 1}"}
    try:
        with client().get_object(Bucket=bucket, Key=key, **part)["Body"] as body:
            data: bytes = body.read(MAX_BYTES + 1)
    except failures as error:
        raise OSError(errno.EIO, f"cannot be fetched ({error})") from error
    if len(data) > MAX_BYTES:
        raise OSError(errno.EFBIG, f"holds more than {MAX_BYTES:,} bytes")
    return data


@cache
def client() -> Any:
    """Return the S3 client of this process, which keeps its connections open."""
    try:
        import boto3
        from botocore.config import Config
    except ImportError as error:
        raise MissingExtra("Reading films from S3", "aws") from error
    # Slow down if the store asks for it: a film must not become unreadable because many were requested.
    store = boto3.client("s3", config=Config(retries={"mode": "adaptive", "total_max_attempts": ATTEMPTS}))
    store.meta.events.register("before-parameter-build.s3", _state_owner)
    return store


def _state_owner(params: dict[str, Any], **_others: Any) -> None:
    """State whose a bucket has to be, if that is known."""
    bucket, _, account = os.environ.get(OWNER_VARIABLE, "").partition("=")
    if account and params["Bucket"] == bucket:
        params["ExpectedBucketOwner"] = account


def _failures() -> tuple[type[Exception], ...]:
    """Return the errors that boto3 raises if the store refuses or cannot be reached."""
    try:
        from botocore.exceptions import BotoCoreError, ClientError
    except ImportError as error:
        raise MissingExtra("Reading films from S3", "aws") from error
    return BotoCoreError, ClientError


def read_film(film: Film) -> bytes:
    """Return the bytes of a film: a file, a member of an archive or an object in S3. Raises: OSError.

    Also raises ``MissingExtra``, for an object in S3 if boto3 is not installed.
    """
    if film.path.startswith(S3_SCHEME):
        return read_object(film.path)
    if inside := split_path(film.path):
        return read_member(*inside)
    return read_file(Path(film.path))


def open_film(film: Film | Path) -> bytes:
    """Return the bytes of a film, as ``read_film``. Raises: FilmUnopened, which names film, cause and remedy."""
    try:
        return read_film(film) if isinstance(film, Film) else read_file(film)
    except OSError as error:
        name, cause = (film.path if isinstance(film, Film) else film), error.strerror or error
        raise FilmUnopened(f"{name}: cannot be opened ({cause}). Give the path of a film's file") from error


def read_file(path: Path) -> bytes:
    """Return the bytes of a film's file. Raises: OSError, also if the file is not regular or exceeds the limit.

    The function never waits for a pipe, and a device or a sparse file takes no memory.
    """
    from chestxray.images import MAX_BYTES

    with open_regular(path) as file:
        data = file.read(MAX_BYTES + 1)
    if len(data) > MAX_BYTES:
        raise OSError(errno.EFBIG, f"holds more than {MAX_BYTES:,} bytes", str(path))
    return data


def stamp_of(film: Film) -> str:
    """Return size and modification time of the film's file, to detect a change; empty if they are unknown.

    An object in S3 has no stamp: a request for it takes as long as reading a small film.
    """
    inside = split_path(film.path)
    try:
        status = os.stat(inside[0] if inside else film.path)  # noqa: PTH116 - a Path interns each name for good
    except OSError:
        return ""
    return f"{status.st_size} {status.st_mtime_ns}"


def name_of(film: Film) -> str:
    """Return the film's name in messages: the last part of its path."""
    return film.path.rsplit("/", 1)[-1]


KAGGLE_SCHEME: Final = "kaggle:"
_HANDLE: Final = re.compile(r"[\w-]+/[\w-]+(/versions/[1-9]\d*)?", re.ASCII)


def fetch(handle: str) -> Path:
    """Return the folder of a data set, downloaded if necessary. Raises: SourceInvalid, MissingExtra."""
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
    """Return the folder of the data set at ``kaggle:owner/dataset``, or ``kaggle:owner/dataset/versions/2``.

    Raises: SourceInvalid: the address is invalid, or the data set cannot be fetched.
    """
    handle = address.removeprefix(KAGGLE_SCHEME)
    if not _HANDLE.fullmatch(handle):
        raise SourceInvalid(f"{address}: not a data set of Kaggle's; write it as kaggle:owner/dataset")
    return fetch_one(handle)
