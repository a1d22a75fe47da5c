"""A source of films becomes rows: path, label, split, patient. Nothing is opened here."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Final

from chestxray.data.names import parse_name
from chestxray.errors import SourceInvalid
from chestxray.schema import Film, Label, Split

FILM_ENDINGS: Final = frozenset({".jpeg", ".jpg", ".png"})

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


def collect(source: Path, *, labels_needed: bool = True) -> tuple[Film, ...]:
    """List the films below a folder, sorted by path.

    The folder may have the published layout (``train|val|test/NORMAL|PNEUMONIA``), one folder a class, or be
    flat with the published file names. A label is read from the nearest folder that names one, else from the
    file's name; a split from the nearest folder that names one.

    Args:
        source: a folder, or one film.
        labels_needed: whether it is an error that no film has a label.

    Raises: SourceInvalid, where there is no such folder, no film in it, or no label.
    """
    if not source.exists():
        raise SourceInvalid(f"{source}: does not exist")
    root = source if source.is_dir() else source.parent
    films = tuple(_film(path, root) for path in _film_paths(source))
    if not films:
        endings = ", ".join(sorted(FILM_ENDINGS))
        raise SourceInvalid(f"{source}: holds no film (no file that ends in {endings})")
    if labels_needed and not any(film.label for film in films):
        raise SourceInvalid(
            f"{source}: none of its {len(films):,} films has a label. Put them into folders named NORMAL and "
            "PNEUMONIA, or keep the published file names"
        )
    return films


def _film_paths(source: Path) -> Iterator[Path]:
    if source.is_file():
        yield source.resolve()
        return
    for path in sorted(source.resolve().rglob("*")):
        hidden = any(part.startswith((".", "__MACOSX")) for part in path.relative_to(source.resolve()).parts)
        if not hidden and path.suffix.lower() in FILM_ENDINGS and path.is_file():
            yield path


def _film(path: Path, root: Path) -> Film:
    folders = [part.lower() for part in reversed(path.relative_to(root.resolve()).parts[:-1])]
    named = parse_name(path.stem)
    label = next((LABEL_FOLDERS[name] for name in folders if name in LABEL_FOLDERS), None)
    cause = next((name for name in folders if name in CAUSE_FOLDERS), "")
    split = next((SPLIT_FOLDERS[name] for name in folders if name in SPLIT_FOLDERS), None)
    if label is None and named is not None:
        label = named.label
    return Film(
        path=str(path),
        label=label.value if label else "",
        split=split.value if split else "",
        patient_id=named.patient_id if named else "",
        cause=named.cause if named and named.cause else cause,
    )
