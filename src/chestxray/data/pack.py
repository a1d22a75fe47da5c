"""A pack: films decoded once, as a uint8 array that training maps into memory, with exact statistics.

images.npy     uint8 (N, height, width)
manifest.csv   the N rows, in the order of the array
pack.json      PackInfo
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt

from chestxray.arrays import IndexArray, UInt8Array
from chestxray.data.cache import (
    IMAGES,
    KEPT_EVERY,
    MANIFEST,
    PROGRESS,
    PlaneStore,
    clear_left_behind,
    decoder,
    known_planes,
    note_progress,
)
from chestxray.data.parallel import Mapper, mapper_of
from chestxray.data.sources import read_film
from chestxray.data.split import refuse_leakage
from chestxray.errors import DataError, FilmError, OutOfRange, PackInvalid, reason_of
from chestxray.files import folder_written_whole
from chestxray.images.preprocess import preprocess
from chestxray.progress import ProgressCallback, no_progress
from chestxray.schema import (
    Film,
    Levels,
    PackInfo,
    Preprocessing,
    Resize,
    Split,
    fingerprint,
    member,
    read_manifest,
    rows_of,
    write_manifest,
)

DESCRIPTION: Final = "pack.json"

DEFAULT_SIZE: Final = (112, 160)  # height and width of the original network's input, in pixels
LEVELS: Final = 256  # grey levels of a uint8 pixel
COUNTED_AT_ONCE: Final = 1024  # films; limits the memory that counting levels takes


@dataclass(frozen=True, slots=True)
class Pack:
    """An opened pack.

    Attributes:
        folder: folder of the pack.
        info: its description.
        films: its rows, in the order of ``images``.
        images: shape (N, height, width), uint8, mapped from disk read-only.
    """

    folder: Path
    info: PackInfo
    films: tuple[Film, ...]
    images: UInt8Array

    @classmethod
    def open(cls, folder: Path | str) -> Pack:
        """Open a pack. Raises: PackInvalid, if a file is missing or the three files do not match."""
        folder = Path(folder)
        try:
            info = PackInfo.from_json((folder / DESCRIPTION).read_text(encoding="utf-8"), str(folder / DESCRIPTION))
            films = read_manifest(folder / MANIFEST)
            images = np.load(folder / IMAGES, mmap_mode="r", allow_pickle=False)
        except (OSError, ValueError, UnicodeDecodeError) as error:
            raise PackInvalid(
                f'{folder}: not a complete pack ({reason_of(error)}). Make one with "chestxray pack"'
            ) from error
        expected = (info.count, info.preprocessing.height, info.preprocessing.width)
        if images.shape != expected or images.dtype != np.uint8 or len(films) != info.count:
            raise PackInvalid(
                f"{folder}: holds {len(films)} rows and {images.dtype} images of shape {images.shape}; "
                f"its description says {expected}. Pack again"
            )
        if fingerprint(films) != info.fingerprint:
            raise PackInvalid(f"{folder}: its manifest was changed after packing. Pack again")
        return cls(folder, info, films, images)

    def rows(self, split: Split) -> IndexArray:
        """Return the indices of the films in that split, ascending."""
        return np.flatnonzero([film.split == split for film in self.films])


def size_of(given: tuple[int, int]) -> tuple[int, int]:
    """Return height and width of what a caller gives as a size. Raises: OutOfRange."""
    try:
        height, width = given
    except (TypeError, ValueError) as error:
        raise OutOfRange(f"size {given!r}: give height and width in pixels, as (112, 160)") from error
    return height, width


def write_pack(
    films: Iterable[Film],
    out: Path | str,
    *,
    size: tuple[int, int] = DEFAULT_SIZE,
    resize: Resize | str = Resize.SQUEEZE,
    levels: Levels | str = Levels.EQUALISED,
    on_progress: ProgressCallback = no_progress,
    workers: int | None = None,
    engine: str = "local",
    leakage_allowed: str = "",
) -> PackInfo:
    """Decode every accepted film of a split once, and compute the statistics of the training films.

    If ``out`` already holds a pack, finished or interrupted, of the same size and policy, films of the same SHA-256 are
    copied from it and not opened.

    Args:
        films: rows of a split manifest.
        out: folder to write, completely or not at all.
        size: (height, width) in pixels.
        resize: how films of another shape are resized.
        levels: how their grey levels are mapped.
        on_progress: called with (done, total).
        workers: number of processes; by default one a core.
        engine: where films are decoded: "local", in processes of this machine, or "ray" (extra ray). Both write the
            same bytes.
        leakage_allowed: reason to pack splits that leak; kept in the description.

    Raises:
        Leakage: the splits share a patient or a film.
        OutOfRange: no network takes films of that size.
        PackInvalid: no film has a split, none is for training, or a file changed since it was cleaned.
    """
    out = Path(out)
    height, width = size_of(size)
    resize, levels, mapper = member(Resize, resize), member(Levels, levels), mapper_of(engine)
    Preprocessing(height, width, resize, mean=0.5, std=0.5, levels=levels)  # refuses a wrong size at once
    rows = tuple(film for film in rows_of(films) if film.is_accepted and film.split)
    if not any(film.split == Split.TRAIN for film in rows):
        raise PackInvalid(
            'no accepted film stands on the train split. Run "chestxray clean" and "chestxray split" first'
        )
    refuse_leakage(rows, allowed=leakage_allowed)
    with folder_written_whole(out, marker=DESCRIPTION) as beside:
        images = np.lib.format.open_memmap(beside / IMAGES, mode="w+", dtype=np.uint8, shape=(len(rows), height, width))
        write_manifest(rows, beside / MANIFEST)
        known = known_planes(out, size, resize, levels, DESCRIPTION)
        for index, plane in enumerate(
            _planes(rows, known, size, resize, levels, partial(mapper, workers=workers), on_progress), start=1
        ):
            images[index - 1] = plane
            if index % KEPT_EVERY == 0:
                images.flush()
                note_progress(beside, size, resize, levels, index)
        mean, std = population_statistics(images, np.flatnonzero([film.split == Split.TRAIN for film in rows]))
        images.flush()
        info = PackInfo(
            len(rows),
            Preprocessing(height, width, resize, mean, std, levels),
            fingerprint(rows),
            leakage_allowed=leakage_allowed,
            decoder=decoder(),
        )
        (beside / PROGRESS).unlink(missing_ok=True)
        (beside / DESCRIPTION).write_text(info.to_json(), encoding="utf-8")
    clear_left_behind(out)
    return info


def _planes(
    rows: Sequence[Film],
    known: PlaneStore,
    size: tuple[int, int],
    resize: Resize,
    levels: Levels,
    mapper: Mapper,
    on_progress: ProgressCallback,
) -> Iterator[UInt8Array]:
    """Yield every film's plane in order: copied if known, otherwise decoded."""
    fresh = [film for film in rows if known.of(film) is None]
    copied = len(rows) - len(fresh)
    decode_one = partial(_plane, height=size[0], width=size[1], resize=resize, levels=levels)
    decoded = mapper(decode_one, fresh, lambda done, _: on_progress(copied + done, len(rows)))
    for film in rows:
        plane = known.of(film)
        yield next(decoded) if plane is None else plane
    next(decoded, None)  # completes the progress report


def population_statistics(images: UInt8Array, rows: IndexArray) -> tuple[float, float]:
    """Return the exact mean and standard deviation over all pixels of some films, black 0 and white 1.

    The levels are counted in whole numbers, so nothing is rounded before the last division.

    Args:
        images: shape (N, height, width), uint8.
        rows: indices of the films.
    """
    counts = np.zeros(LEVELS, dtype=np.int64)
    for part in np.array_split(rows, max(1, -(-len(rows) // COUNTED_AT_ONCE))):
        counts += np.bincount(images[part].ravel(), minlength=LEVELS)
    pixels = int(counts.sum())
    total = sum(level * int(count) for level, count in enumerate(counts))
    squares = sum(level * level * int(count) for level, count in enumerate(counts))
    mean = total / pixels
    variance = (squares * pixels - total * total) / (pixels * pixels)
    white = LEVELS - 1
    return mean / white, float(variance**0.5) / white


def _plane(film: Film, height: int, width: int, resize: Resize, levels: Levels) -> UInt8Array:
    try:
        data = read_film(film)
        if film.sha256 and hashlib.sha256(data).hexdigest() != film.sha256:
            raise PackInvalid(f'{film.path}: changed since it was cleaned. Run "chestxray clean" again')
        return preprocess(data, film.path, height, width, resize, levels)
    except (OSError, FilmError) as error:
        raise PackInvalid(
            f'{film.path}: can no longer be read ({reason_of(error)}). Run "chestxray clean" again'
        ) from error


def labels_of(films: Sequence[Film]) -> npt.NDArray[np.int8]:
    """Return class indices, shape (n,): 0 normal, 1 pneumonia. Raises: DataError, if a film has no label."""
    for film in films:
        if not film.label:
            raise DataError(f"{film.path}: has no label")
    return np.array([film.label == "pneumonia" for film in films], dtype=np.int8)
