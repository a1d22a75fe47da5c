"""From a source of films to rows: path, label, split, patient. No film is decoded here.

A source is a folder, an archive, a table, a prefix in S3 or one film.
"""

from __future__ import annotations

import dataclasses
import os
import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Final
from urllib.parse import unquote

from chestxray.arguments import arguments_checked
from chestxray.data import sources
from chestxray.data.archives import ARCHIVE_ENDINGS, is_archive, split_path
from chestxray.data.labels import (
    PATIENT_FOLDER,
    Folders,
    LabelWords,
    NoLabel,
    parse_name,
    patient_in,
    pattern_of,
    without_nobody,
    written_in_several_ways,
)
from chestxray.data.sources import FILM_ENDINGS, Listing, files_below
from chestxray.data.table_files import TABLE_ENDINGS, is_table
from chestxray.data.tables import ListedFilm, columns_of, read_listing
from chestxray.errors import SourceInvalid
from chestxray.progress import Log, counted, warn
from chestxray.schema import VERSION_COLUMN, Film, Label, read_manifest

METADATA: Final = frozenset({"metadata.csv", "metadata.jsonl"})  # tables beside films, as in data sets of the hub
_NAMED: Final = 5  # kinds of file, or films, that a message lists before it counts the rest


@dataclass(frozen=True, slots=True)
class CollectSettings:
    """How to read labels and patients of a source, beyond its folders, names and tables.

    Attributes:
        labels: ``word=label`` each, where the label may be "none"; for names of folders and words of tables.
        columns: ``role=column`` each, for tables with other column names.
        root: the folder in which the paths of a table begin; None takes the table's folder.
        patient_pattern: a regular expression that finds the patient in a film's path inside its source; "" for none.
    """

    labels: Sequence[str] = ()
    columns: Sequence[str] = ()
    root: Path | None = None
    patient_pattern: str = ""


@dataclass(frozen=True, slots=True)
class Collection:
    """The films of a source, and notes on how they were found.

    Attributes:
        films: the rows.
        folders: (name, number of films, how they were interpreted) of each folder that decides a class.
        notes: sentences.
    """

    films: tuple[Film, ...]
    folders: tuple[tuple[str, int, str], ...] = ()
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class _Rules:
    words: LabelWords
    columns: Mapping[str, str]
    root: Path | None
    pattern: re.Pattern[str] | None
    labels_needed: bool


@arguments_checked
def collect(
    source: Path | str,
    *,
    labels_needed: bool = True,
    settings: CollectSettings = CollectSettings(),
    log: Log = warn,
) -> tuple[Film, ...]:
    """List the films of a source: those of a folder sorted by path, others in the source's order.

    A folder, an archive or a prefix in S3 may have the published layout (``train|val|test/NORMAL|PNEUMONIA``), have one
    folder for each class, or be flat with the published file names. A label is read from the nearest folder that names
    one, else from the file's name; a split from the nearest folder that names one. A file is a film if its ending says
    so, or, without a telling ending, if its first bytes are those of a film.

    A table (csv, tsv, txt, json, jsonl; workbooks and parquet by extras) needs a column for the path and may have
    others for label, patient, split and cause, by their usual names (``table_files.ROLES``); what these leave empty is
    read from the path. The tables of RSNA, CheXpert, MIMIC-CXR, NIH ChestX-ray14, VinDr-CXR, PadChest and CoronaHack
    are known. Further columns are kept in ``Film.extra``, except those that ``clean`` fills in.

    Args:
        source: a folder, an archive, a table, one film, ``s3://bucket/prefix`` or ``kaggle:owner/dataset``; the last
            two as text.
        labels_needed: whether it is an error if no film has a label, or if a folder beside labelled ones has an unknown
            meaning.
        settings: facts that the source does not state.
        log: called with lines about what was left out, interpreted, or not found.

    Raises: SourceInvalid, if there is no such source, no film in it, or no label; UsageError.
    """
    found = survey(source, labels_needed=labels_needed, settings=settings)
    for line in lines_of(found) if labels_needed else found.notes:
        log(line)
    return found.films


def survey(
    source: Path | str, *, labels_needed: bool = True, settings: CollectSettings = CollectSettings()
) -> Collection:
    """List films as ``collect`` does, with notes on other files. Raises: the errors of ``collect``."""
    rules = _Rules(
        LabelWords.of(settings.labels),
        columns_of(settings.columns),
        settings.root,
        pattern_of(settings.patient_pattern) if settings.patient_pattern else None,
        labels_needed,
    )
    list_films = next(list_films for scheme, list_films in SCHEMES if str(source).startswith(scheme))
    found = list_films(source, rules)
    if not found.films and is_table(Path(source)):
        raise SourceInvalid(f"{source}: holds no film: it has a header and no row")
    if not found.films:
        endings = ", ".join(sorted(FILM_ENDINGS))
        raise SourceInvalid(f"{source}: holds no film (no file that ends in {endings}){_notes_text(found.notes)}")
    if labels_needed and not any(film.label for film in found.films):
        raise SourceInvalid(_without_labels(source, found))
    films, note = without_nobody(found.films)
    further = [note] if note else []
    return dataclasses.replace(found, films=films, notes=(*found.notes, *further, *written_in_several_ways(films)))


def lines_of(found: Collection) -> list[str]:
    """Return the lines that describe a collection: the meaning of each folder if there is a doubt, then the notes."""
    lines = []
    if found.folders:
        width = max(len(name) for name, _, _ in found.folders)
        lines = [f"{name:<{width}}  {count:>9,} films  {taken}" for name, count, taken in found.folders]
    return lines + list(found.notes)


def films_of(
    source: Path | str,
    *,
    labels_needed: bool = True,
    settings: CollectSettings = CollectSettings(),
    log: Log = warn,
) -> tuple[Film, ...]:
    """Return the rows of a manifest, or the result of ``collect``. Raises: ManifestInvalid, SourceInvalid."""
    path = Path(source)
    if path.suffix.lower() == ".csv" and path.is_file() and _is_manifest(path):
        return read_manifest(path)
    return collect(source, labels_needed=labels_needed, settings=settings, log=log)


def _is_manifest(table: Path) -> bool:
    """Check whether this package wrote the table; ``collect`` reads tables of others."""
    with table.open("rb") as file:
        return VERSION_COLUMN.encode() in file.readline()


# --------------------------------------------------------------------------- folders, archives, stores


def _of_path(source: Path | str, rules: _Rules) -> Collection:
    if source == "":
        raise SourceInvalid("the source is empty. Give a name, or . for the current folder")
    path = Path(source)
    if not path.exists():
        if re.match(r"[a-z][a-z0-9+.-]+:", str(source)):
            known = ", ".join(scheme for scheme, _ in SCHEMES if scheme)
            raise SourceInvalid(f"{source}: is no source that this program reads; addresses begin with {known}")
        raise SourceInvalid(f"{source}: does not exist")
    if not (path.is_file() or path.is_dir()):
        raise SourceInvalid(f"{source}: is a pipe or a device. Give a folder, an archive, a table or a film")
    return next(list_films for recognises, list_films in FILE_KINDS if recognises(path))(path, rules)


def _of_folder(source: Path, rules: _Rules) -> Collection:
    root = source.resolve()
    listed = sources.list_folder(root)
    found = _of_listing(source, listed, rules)
    for table in listed.others:
        if table.name.lower() in METADATA:
            found = _with_metadata(found, root / table, rules)
    return found


def _of_listing(source: Path | str, listed: Listing, rules: _Rules) -> Collection:
    folders = Folders([parts for _, parts in listed.films], rules.words)
    films = tuple(_film(path, parts, folders, rules.pattern) for path, parts in listed.films)
    metadata = Path(source).is_dir() and any(name.name.lower() in METADATA for name in listed.others)
    labelled = metadata or any(film.label for film in films)
    notes = (*listed.notes(), *(() if labelled else listed.remedies()))
    found = Collection(films, folders.table(), notes)
    strange = folders.strange()
    if strange and rules.labels_needed and not metadata:
        names = ", ".join(f"{name} ({count:,} films)" for name, count in strange.most_common(_NAMED))
        first = strange.most_common(1)[0][0]
        taken = "; ".join(f"{name}: {meaning}" for name, _, meaning in found.folders if name not in strange)
        raise SourceInvalid(
            f"{source}: what the films in {names} show is not known (known are {taken}). Say it: "
            f'--label "{first}=pneumonia", "{first}=normal", or "{first}=none" to leave these films without a label'
        )
    return found


def _film(path: str, parts: tuple[str, ...], folders: Folders, pattern: re.Pattern[str] | None) -> Film:
    """Return the row of a film from its place in the source: folders and name."""
    named = parse_name(os.path.splitext(parts[-1])[0])  # noqa: PTH122 - a million names, and no Path for each
    place = folders.of(parts)
    label = place.label
    if label is None and place.may_be_named and named is not None:
        label = named.label
    patient = patient_in("/".join(parts), pattern or PATIENT_FOLDER)
    return Film(
        path=path,
        label=label.value if label else "",
        split=place.split.value if place.split else "",
        patient_id=patient or (named.patient_id if named and not pattern else ""),
        cause=((named.cause if named else "") or place.cause) if label == Label.PNEUMONIA else "",
    )


def _with_metadata(found: Collection, table: Path, rules: _Rules) -> Collection:
    """Complete films by the table beside them: the table takes precedence over the folders."""
    try:
        described, notes = _rows_of_table(table, rules)
    except SourceInvalid as error:
        if rules.labels_needed and not any(film.label for film in found.films):
            raise
        return dataclasses.replace(found, notes=(*found.notes, f"Warning: {table.name} is not used: {error}"))
    by_path = {film.path: film for film in described}
    films = tuple(_described(film, by_path[film.path]) if film.path in by_path else film for film in found.films)
    changed = sum(bool(was.label) and was.label != film.label for was, film in zip(found.films, films, strict=True))
    if changed:
        films_have = counted(changed, "film has", "films have")
        notes.append(f"Warning: {films_have} another label in {table.name} than by folder or name; the table decides")
    return dataclasses.replace(found, films=films, notes=(*found.notes, *notes))


def _described(film: Film, by: Film) -> Film:
    return dataclasses.replace(
        film,
        label=by.label or film.label,
        split=by.split or film.split,
        patient_id=by.patient_id or film.patient_id,
        cause=by.cause or film.cause,
        extra=by.extra,
    )


def _notes_text(notes: Sequence[str]) -> str:
    return f". {'; '.join(notes)}" if notes else ""


def _without_labels(source: Path | str, found: Collection) -> str:
    none = "its film has no label" if len(found.films) == 1 else f"none of its {len(found.films):,} films has a label"
    remedy = "Put them into folders named NORMAL and PNEUMONIA, or keep the published file names"
    if is_table(Path(source)):
        remedy = "Fill its column of labels, or name another one: --columns label=NAME"
    message = f"{source}: {none}. {remedy}"
    names = Counter(PurePosixPath(film.path).parent.name for film in found.films)
    if len(names) > 1:
        listed = ", ".join(f"{name} ({count:,})" for name, count in names.most_common(_NAMED))
        first = names.most_common(1)[0][0]
        message += (
            f'; or say what each folder holds: --label "{first}=normal" or "{first}=pneumonia". There are {listed}'
        )
    return message + _notes_text(found.notes)


# --------------------------------------------------------------------------- tables and single films


def _of_table(source: Path, rules: _Rules) -> Collection:
    films, notes = _rows_of_table(source, rules)
    return Collection(films, notes=tuple(notes))


def _rows_of_table(source: Path, rules: _Rules) -> tuple[tuple[Film, ...], list[str]]:
    entries, notes = read_listing(source, rules.words, rules.columns)
    base = (rules.root or source.parent).resolve()
    resolver = Resolver(base)
    films: list[Film] = []
    missing = []
    for entry in entries:
        paths = _paths_of(entry, base, resolver)
        if not paths:
            missing.append(entry.places[0])
        films += [_film_of_entry(entry, path, rules) for path in paths or _missing_row(entry, base)]
    if missing and len(missing) == len(entries):
        where = "" if rules.root else ". Say which folder the paths begin in: --root FOLDER"
        none = (
            "its film does not exist: it"
            if len(missing) == 1
            else f"none of its {len(missing):,} films exists; the first"
        )
        raise SourceInvalid(f"{source}: {none} is {base / missing[0]}{_ambiguous(resolver)}{where}")
    if missing:
        notes.append(
            f"Warning: {len(missing):,} of {len(entries):,} films of {source.name} "
            f"{'does' if len(missing) == 1 else 'do'} not exist, {missing[0]} for one{_ambiguous(resolver)}"
        )
    if resolver.searched:
        found = counted(resolver.searched, "film was found by its name", "films were found by their name")
        notes.append(f"{found} alone below {base}")
    if resolver.with_another_ending:
        found = counted(resolver.with_another_ending, "film has", "films have")
        notes.append(f"{found} another ending than in {source.name}")
    return tuple(films), notes


def _ambiguous(resolver: Resolver) -> str:
    if not resolver.ambiguous:
        return ""
    names = counted(len(resolver.ambiguous), "name is there more than once:", "names are there more than once, such as")
    return f" ({names} {resolver.ambiguous[0]})"


def _paths_of(entry: ListedFilm, base: Path, resolver: Resolver) -> list[str]:
    for place in entry.places:
        if place.startswith(sources.S3_SCHEME):
            return [place]
        if (inside := split_path(str(base / place))) is not None:
            return [str(base / place)] if inside[0].is_file() else []
        if found := resolver.find(place):
            return [str(path) for path in found]
    return []


def _missing_row(entry: ListedFilm, base: Path) -> list[str]:
    """Return the row of a missing film, which stays in the count; a missing folder of films has no row."""
    place = entry.places[0]
    return [] if place.endswith("/") else [str(base / place)]


def _film_of_entry(entry: ListedFilm, path: str, rules: _Rules) -> Film:
    parts = PurePosixPath(entry.places[0]).parts
    if entry.places[0].endswith("/"):
        parts = (*parts, PurePosixPath(path).name)
    from_path = _film(path, parts, Folders([parts], rules.words), rules.pattern)
    may_be_named = entry.no_label in {"", NoLabel.BLANK}
    label = entry.label or (from_path.label if may_be_named else "")
    return Film(
        path=path,
        label=label,
        split=entry.split or from_path.split,
        patient_id=entry.patient_id or from_path.patient_id,
        cause=(entry.cause or from_path.cause) if label != Label.NORMAL else "",
        extra=entry.extra,
    )


def _of_file(source: Path, rules: _Rules) -> Collection:
    path = source.resolve()
    if not sources.is_film(path):
        kind = sources.container_of(path.name) or _kind_of(path)
        if path.name == sources.DISC_INDEX:
            kind = f"the index of a DICOM disc. Give its folder, {path.parent}"
        raise SourceInvalid(
            f"{source}: is no folder, archive, table or film that this program reads{f' ({kind})' if kind else ''}. It "
            f"may be a folder, one of {', '.join(sorted({*ARCHIVE_ENDINGS, *TABLE_ENDINGS}))}, or a film"
        )
    parts = (path.name,)
    return Collection((_film(str(path), parts, Folders([parts], rules.words), rules.pattern),))


_ANY_ENDING: Final = "/*"  # no file's name has a slash


def _folded(name: str) -> str:
    """Return a name in one form of capitals and of Unicode: macOS writes an umlaut as two characters."""
    return unicodedata.normalize("NFC", name.casefold())


def _kind_of(path: Path) -> str:
    from chestxray.images.decode import kind_of  # imports numpy, which names of films do not need

    try:
        with path.open("rb") as file:
            return kind_of(file.read(sources.HEAD))
    except OSError as error:
        return str(error.strerror)


class Resolver:
    """Finds the films of a table below a folder, in whatever way their paths were written."""

    def __init__(self, root: Path) -> None:
        """Prepare the search below a folder, given by its absolute path."""
        self._root = root
        self._by_name: dict[str, list[Path]] | None = None
        self._in_folders: dict[Path, dict[str, list[Path]]] = {}
        self.searched = 0
        self.with_another_ending = 0
        self.ambiguous: list[str] = []

    def find(self, place: str) -> list[Path]:
        """Return the film at a place, or the films of a folder; empty if there is none.

        A path is tried unchanged, then without its first folders, one by one (for a table written elsewhere), each time
        with the endings of films. If none of its folders exists here, a file name that occurs exactly once is taken.
        Names may be written in other capitals, in the other form of Unicode, as in an address (``n%2000.png``), or
        with the ending that they had before they were converted.
        """
        return self._find(place) or (self._find(unquote(place)) if "%" in place else [])

    def _find(self, place: str) -> list[Path]:
        folder = place.endswith("/")
        parts = PurePosixPath(place).parts
        absolute = parts[:1] == ("/",) or bool(re.match(r"[A-Za-z]:", place))
        if absolute and (found := self._at(Path(place), folder=folder)):
            return found
        parts = parts[1:] if absolute else parts
        known_folder = False
        for start in range(len(parts)):
            path = self._root.joinpath(*parts[start:])
            if found := self._at(path, folder=folder):
                return found
            known_folder = known_folder or (start < len(parts) - 1 and path.parent.is_dir())
        return [] if folder or known_folder or not parts else self._named(parts[-1])

    def _at(self, path: Path, *, folder: bool) -> list[Path]:
        if folder:
            return sorted(files_below(path)) if path.is_dir() else []
        if path.is_file():
            return [path]
        if path.suffix.lower() not in FILM_ENDINGS:
            for ending in sorted(FILM_ENDINGS):
                for there in (path.with_name(path.name + ending), path.with_name(path.name + ending.upper())):
                    if there.is_file():
                        return [there]
        return self._in_other_case(path)

    def _in_other_case(self, path: Path) -> list[Path]:
        """Return the one file of that name in other capitals, or with another ending.

        Tables are written where capitals make no difference, and films converted after their table was written.
        """
        if path.parent not in self._in_folders:
            by_name: dict[str, list[Path]] = {}
            for there in path.parent.iterdir() if path.parent.is_dir() else ():
                by_name.setdefault(_folded(there.name), []).append(there)
                if there.suffix.lower() in FILM_ENDINGS:
                    by_name.setdefault(f"{_folded(there.stem)}{_ANY_ENDING}", []).append(there)
            self._in_folders[path.parent] = by_name
        by_name = self._in_folders[path.parent]
        found = by_name.get(_folded(path.name), [])
        if len(found) == 1 and found[0].is_file():
            return found
        if found or path.suffix.lower() not in FILM_ENDINGS:
            return []
        found = by_name.get(f"{_folded(path.stem)}{_ANY_ENDING}", [])
        self.with_another_ending += len(found) == 1
        return found if len(found) == 1 else []

    def _named(self, name: str) -> list[Path]:
        if self._by_name is None:
            self._by_name = {}
            for path in files_below(self._root):
                stem = path.stem if path.suffix.lower() in FILM_ENDINGS else path.name
                for key in {path.name, stem, _folded(path.name), _folded(stem)}:
                    self._by_name.setdefault(key, []).append(path)
        found = self._by_name.get(name) or self._by_name.get(_folded(name), [])
        if len(found) > 1:
            self.ambiguous.append(name)
            return []
        self.searched += len(found)
        return found


Lister = Callable[[Path | str, _Rules], Collection]

# The schemes of a source's address; the empty one, of every path, comes last.
SCHEMES: Final[tuple[tuple[str, Lister], ...]] = (
    (sources.S3_SCHEME, lambda address, rules: _of_listing(address, sources.list_store(str(address)), rules)),
    (sources.KAGGLE_SCHEME, lambda address, rules: _of_folder(sources.downloaded(str(address)), rules)),
    ("", _of_path),
)

# The kinds of source on disk, in the order in which they are tried.
FILE_KINDS: Final[tuple[tuple[Callable[[Path], bool], Callable[[Path, _Rules], Collection]], ...]] = (
    (Path.is_dir, _of_folder),
    (is_archive, lambda path, rules: _of_listing(path, sources.list_archive(path), rules)),
    (is_table, _of_table),
    (lambda _: True, _of_file),
)
