"""A source of films becomes rows: path, label, split, patient. No film is decoded here.

A source is a folder, an archive, a table (CSV), a prefix in S3 or one film.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Mapping
from pathlib import Path, PurePosixPath
from typing import Final

from chestxray.data import sources
from chestxray.data.labels import parse_name
from chestxray.data.sources import INSIDE, is_archive, keys_below, members_of, split_address
from chestxray.errors import ManifestInvalid, SourceInvalid
from chestxray.schema import FILM_COLUMNS, VERSION_COLUMN, Film, Label, Split, read_manifest

FILM_ENDINGS: Final = frozenset({".jpeg", ".jpg", ".png", ".tif", ".tiff", ".dcm", ".dicom"})
DICOM_MAGIC: Final = (128, b"DICM")  # where it stands, and what (PS3.10 section 7.1)

# Names of folders, in lower case. A folder of any other name says nothing of the films below it.
LABEL_FOLDERS: Final = {
    "normal": Label.NORMAL,
    "healthy": Label.NORMAL,
    "no_finding": Label.NORMAL,
    "pneumonia": Label.PNEUMONIA,
    "bacteria": Label.PNEUMONIA,
    "virus": Label.PNEUMONIA,
}
SPLIT_FOLDERS: Final = {
    "train": Split.TRAIN,
    "training": Split.TRAIN,
    "val": Split.VAL,
    "valid": Split.VAL,
    "validation": Split.VAL,
    "test": Split.TEST,
    "testing": Split.TEST,
}
CAUSE_FOLDERS: Final = frozenset({"bacteria", "virus"})


# What a table may hold in place of the names of labels.
LABEL_WORDS: Final = {**LABEL_FOLDERS, "0": Label.NORMAL, "1": Label.PNEUMONIA}
TABLE_COLUMNS: Final = ("path", "label", "patient_id", "split", "cause")  # further ones are kept as they are


def collect(source: Path | str, *, labels_needed: bool = True) -> tuple[Film, ...]:
    """List the films of a source: those of a folder sorted by path, others in the source's order.

    A folder or an archive may have the published layout (``train|val|test/NORMAL|PNEUMONIA``), one folder a
    class, or be flat with the published file names. A label is read from the nearest folder that names one,
    else from the file's name; a split from the nearest folder that names one. A folder's files without an
    ending, or with a number for one, are films where they begin as DICOM files do.

    A table needs the column ``path`` (relative to the table) and may have ``label`` (a name of the folders, 0
    or 1), ``patient_id``, ``split`` and ``cause``; what these leave empty is read from the path. Further
    columns are kept in ``Film.extra``, but for those that ``clean`` fills in.

    Args:
        source: a folder, an archive (zip, tar, tar.gz), a table (csv), one film, ``s3://bucket/prefix`` or
            ``kaggle:owner/dataset``; the last two as text.
        labels_needed: whether it is an error that no film has a label.

    Raises: SourceInvalid, where there is no such source, no film in it, or no label.
    """
    films = next(list_films for scheme, list_films in SCHEMES if str(source).startswith(scheme))(source)
    if not films:
        endings = ", ".join(sorted(FILM_ENDINGS))
        raise SourceInvalid(f"{source}: holds no film (no file that ends in {endings})")
    if labels_needed and not any(film.label for film in films):
        raise SourceInvalid(
            f"{source}: none of its {len(films):,} films has a label. Put them into folders named NORMAL and "
            "PNEUMONIA, or keep the published file names"
        )
    return films


def films_of(source: Path | str, *, labels_needed: bool = True) -> tuple[Film, ...]:
    """The rows of a manifest, or what ``collect`` finds. Raises: ManifestInvalid, SourceInvalid."""
    path = Path(source)
    if path.suffix.lower() == ".csv" and path.is_file() and _is_manifest(path):
        return read_manifest(path)
    return collect(source, labels_needed=labels_needed)


def _is_manifest(table: Path) -> bool:
    """Whether this package wrote the table; ``collect`` reads those of others."""
    with table.open("rb") as file:
        return VERSION_COLUMN.encode() in file.readline()


def _of_path(source: Path | str) -> tuple[Film, ...]:
    source = Path(source)
    if not source.exists():
        raise SourceInvalid(f"{source}: does not exist")
    return next(list_films for recognises, list_films in KINDS if recognises(source))(source)


def _of_store(source: Path | str) -> tuple[Film, ...]:
    bucket, prefix = split_address(str(source))
    films = []
    for key in keys_below(str(source)):
        parts = PurePosixPath(key.removeprefix(prefix)).parts
        if not _is_hidden(parts) and _has_film_ending(key):
            films.append(_film(f"{sources.SCHEME}{bucket}/{key}", parts))
    return tuple(films)


def _of_folder(source: Path) -> tuple[Film, ...]:
    root = source.resolve()
    films = []
    for path in sorted(root.rglob("*")):
        inside = path.relative_to(root)
        if not _is_hidden(inside.parts) and path.is_file() and (_has_film_ending(path.name) or _is_dicom(path)):
            films.append(_film(str(path), inside.parts))
    return tuple(films)


def _of_archive(source: Path) -> tuple[Film, ...]:
    films = []
    for name in members_of(source):
        parts = PurePosixPath(name).parts
        if not _is_hidden(parts) and _has_film_ending(name):
            films.append(_film(f"{source.resolve()}{INSIDE}{name}", parts))
    return tuple(films)


def _of_file(source: Path) -> tuple[Film, ...]:
    path = source.resolve()
    return (_film(str(path), (path.name,)),)


def _of_table(source: Path) -> tuple[Film, ...]:
    try:
        rows = csv.DictReader(io.StringIO(source.read_bytes().decode("utf-8-sig"), newline=""), strict=True)
        if "path" not in (rows.fieldnames or ()):
            raise SourceInvalid(f'{source}: has no column "path". A table needs one row a film, with its path')
        films = []
        for row in rows:
            try:
                films.append(_film_of_row(row, source.resolve().parent))
            except (SourceInvalid, ManifestInvalid) as error:
                raise SourceInvalid(f"{source}, line {rows.line_num}: {error}") from error
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise SourceInvalid(f"{source}: cannot be read as a table ({error})") from error
    if films and not any(Path(film.path.partition(INSIDE)[0]).exists() for film in films):
        raise SourceInvalid(f"{source}: none of its {len(films):,} films exists; the first is {films[0].path}")
    return tuple(films)


def _film_of_row(row: Mapping[str, str | None], base: Path) -> Film:
    given = {name: (row.get(name) or "").strip() for name in TABLE_COLUMNS}
    if not given["path"]:
        raise SourceInvalid("the path is empty")
    from_path = _film(str(base / given["path"]), PurePosixPath(given["path"]).parts)
    label, split = _word(given, "label", LABEL_WORDS), _word(given, "split", SPLIT_FOLDERS)
    known = {*FILM_COLUMNS, VERSION_COLUMN, None, ""}
    return Film(
        path=from_path.path,
        label=label or from_path.label,
        split=split or from_path.split,
        patient_id=given["patient_id"] or from_path.patient_id,
        cause=given["cause"] or from_path.cause,
        extra=tuple((name, value) for name, value in row.items() if name not in known and isinstance(value, str)),
    )


def _word(given: Mapping[str, str], column: str, words: Mapping[str, Label] | Mapping[str, Split]) -> str:
    text = given[column].lower().replace(" ", "_")
    if text and text not in words:
        raise SourceInvalid(f"the {column} is {given[column]!r}; it may be {', '.join(words)}, or empty")
    return str(words[text].value) if text else ""


def _is_hidden(parts: tuple[str, ...]) -> bool:
    return any(part.startswith((".", "__MACOSX")) for part in parts)


def _has_film_ending(name: str) -> bool:
    return PurePosixPath(name).suffix.lower() in FILM_ENDINGS


def _is_dicom(path: Path) -> bool:
    """Whether a file without an ending of its own (DICOM names files by numbers and dots) begins as DICOM."""
    if path.suffix and not path.suffix[1:].isdigit():
        return False
    start, magic = DICOM_MAGIC
    try:
        with path.open("rb") as file:
            return file.read(start + len(magic))[start:] == magic
    except OSError:
        return False


def _film(path: str, parts: tuple[str, ...]) -> Film:
    """The row of a film from its place in the source: folders and name."""
    folders = [part.lower() for part in reversed(parts[:-1])]
    named = parse_name(PurePosixPath(parts[-1]).stem)
    label = next((LABEL_FOLDERS[name] for name in folders if name in LABEL_FOLDERS), None)
    cause = next((name for name in folders if name in CAUSE_FOLDERS), "")
    split = next((SPLIT_FOLDERS[name] for name in folders if name in SPLIT_FOLDERS), None)
    if label is None and named is not None:
        label = named.label
    return Film(
        path=path,
        label=label.value if label else "",
        split=split.value if split else "",
        patient_id=named.patient_id if named else "",
        cause=named.cause if named and named.cause else cause,
    )


# The schemes of a source's address; the empty one, of every path, comes last.
SCHEMES: Final[tuple[tuple[str, Callable[[Path | str], tuple[Film, ...]]], ...]] = (
    (sources.SCHEME, _of_store),
    (sources.KAGGLE_SCHEME, lambda address: _of_folder(sources.downloaded(str(address)))),
    ("", _of_path),
)

# The kinds of source on disk, in the order in which they are tried.
KINDS: Final[tuple[tuple[Callable[[Path], bool], Callable[[Path], tuple[Film, ...]]], ...]] = (
    (Path.is_dir, _of_folder),
    (is_archive, _of_archive),
    (lambda path: path.suffix.lower() == ".csv", _of_table),
    (lambda _: True, _of_file),
)
