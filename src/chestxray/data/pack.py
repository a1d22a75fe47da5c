"""A pack: films decoded once, as a uint8 array that training maps into memory, with exact statistics.

images.npy     uint8 (N, height, width)
manifest.csv   the N rows, in the order of the array
pack.json      PackInfo
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from chestxray.arrays import IndexArray, UInt8Array
from chestxray.data.parallel import mapper_of
from chestxray.data.sources import read_film
from chestxray.data.split import refuse_leakage
from chestxray.errors import DataError, FilmError, ManifestInvalid, OutOfRange, PackInvalid, reason_of
from chestxray.files import folder_written_whole, place_of
from chestxray.images import LEVELS, WHITE
from chestxray.images.decode import decoder_hash
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

IMAGES: Final = "images.npy"
MANIFEST: Final = "manifest.csv"
PACK_JSON: Final = "pack.json"
PROGRESS: Final = "progress.json"  # of an unfinished pack: its conditions, and how many of its films are decoded
KEPT_EVERY: Final = 256  # films; the most that a killed run loses

DEFAULT_SIZE: Final = (112, 160)  # height and width of the original network's input, in pixels
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
            info = PackInfo.from_json((folder / PACK_JSON).read_text(encoding="utf-8"), str(folder / PACK_JSON))
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


def _height_and_width(given: tuple[int, int]) -> tuple[int, int]:
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
        workers: number of processes; by default one for each core.
        engine: where films are decoded: "local", in processes of this machine, or "ray" (extra ray). Both write the
            same bytes.
        leakage_allowed: reason to pack splits that leak; kept in the description.

    Raises:
        Leakage: the splits share a patient or a film.
        OutOfRange: no network takes films of that size.
        PackInvalid: no film has a split, none is for training, or a file changed since it was cleaned.
    """
    out = Path(out)
    height, width = _height_and_width(size)
    mapper = partial(mapper_of(engine), workers=workers)
    # refuses a wrong size at once; the statistics follow
    wanted = Preprocessing(height, width, member(Resize, resize), mean=0.5, std=0.5, levels=member(Levels, levels))
    rows = tuple(film for film in rows_of(films) if film.is_accepted and film.split)
    if not any(film.split == Split.TRAIN for film in rows):
        raise PackInvalid('no accepted film is in the train split. Run "chestxray clean" and "chestxray split" first')
    refuse_leakage(rows, allowed=leakage_allowed)
    with folder_written_whole(out, marker=PACK_JSON) as beside:
        images = _array_on_disk(beside / IMAGES, (len(rows), height, width))
        write_manifest(rows, beside / MANIFEST)
        for done, plane in enumerate(_planes(rows, wanted, _known_planes(out, wanted), mapper, on_progress), start=1):
            images[done - 1] = plane
            if done % KEPT_EVERY == 0:
                images.flush()
                _note_progress(beside, wanted, done)
        mean, std = population_statistics(images, np.flatnonzero([film.split == Split.TRAIN for film in rows]))
        images.flush()
        info = PackInfo(
            len(rows),
            dataclasses.replace(wanted, mean=mean, std=std),
            fingerprint(rows),
            leakage_allowed=leakage_allowed,
            decoder=decoder_hash(),
        )
        (beside / PROGRESS).unlink(missing_ok=True)
        (beside / PACK_JSON).write_text(info.to_json(), encoding="utf-8")
    for folder in _left_behind(out):
        shutil.rmtree(folder, ignore_errors=True)
    return info


def _array_on_disk(path: Path, shape: tuple[int, ...]) -> np.memmap[Any, np.dtype[np.uint8]]:
    """Make a memory-mapped array and take all its room now: on a full disk, a write to it would end the process."""
    array = np.lib.format.open_memmap(path, mode="w+", dtype=np.uint8, shape=shape)
    if hasattr(os, "posix_fallocate"):  # macOS has none
        with path.open("rb+") as file:
            os.posix_fallocate(file.fileno(), 0, path.stat().st_size)
    return array


def _planes(
    rows: Sequence[Film],
    wanted: Preprocessing,
    known: Mapping[str, UInt8Array],
    mapper: Callable[..., Iterator[UInt8Array]],
    on_progress: ProgressCallback,
) -> Iterator[UInt8Array]:
    """Yield every film's plane in order: copied if its SHA-256 is known, otherwise decoded."""
    fresh = [film for film in rows if film.sha256 not in known]
    copied = len(rows) - len(fresh)
    decoded = mapper(partial(_plane, wanted=wanted), fresh, lambda done, _: on_progress(copied + done, len(rows)))
    for film in rows:
        yield known[film.sha256] if film.sha256 in known else next(decoded)
    next(decoded, None)  # completes the progress report


def _plane(film: Film, wanted: Preprocessing) -> UInt8Array:
    try:
        data = read_film(film)
        if film.sha256 and hashlib.sha256(data).hexdigest() != film.sha256:
            raise PackInvalid(f'{film.path}: changed since it was cleaned. Run "chestxray clean" again')
        return preprocess(data, film.path, wanted.height, wanted.width, wanted.resize, wanted.levels)
    except (OSError, FilmError) as error:
        raise PackInvalid(
            f'{film.path}: can no longer be read ({reason_of(error)}). Run "chestxray clean" again'
        ) from error


# --------------------------------------------------------------------------- planes of earlier packs


def _known_planes(out: Path, wanted: Preprocessing) -> dict[str, UInt8Array]:
    """Return the planes that can be copied, by the SHA-256 of their films.

    They are those of the pack at ``out``, and of interrupted packs for ``out``. The same bytes, read by the same code
    to the same size, give the same pixels.
    """
    conditions = _conditions(wanted).items()
    planes: dict[str, UInt8Array] = {}
    for folder in (out, *_left_behind(out)):
        found = _description(folder / (PACK_JSON if folder == out else PROGRESS))
        if all(found.get(name) == value for name, value in conditions):
            _add_planes(planes, folder, found.get("done"))
    return planes


def _conditions(wanted: Preprocessing) -> dict[str, Any]:
    """Return everything that decides the planes of a film."""
    return {
        "height": wanted.height,
        "width": wanted.width,
        "resize": wanted.resize.value,
        "levels": wanted.levels.value,
        "decoder": decoder_hash(),
    }


def _note_progress(folder: Path, wanted: Preprocessing, done: int) -> None:
    """Record how many planes of an unfinished pack are on disk."""
    beside = folder / f"{PROGRESS}.part"
    beside.write_text(json.dumps({**_conditions(wanted), "done": done}), encoding="utf-8")
    beside.replace(folder / PROGRESS)


def _description(path: Path) -> dict[str, Any]:
    """Return a description as one flat document; empty if there is none."""
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    if not isinstance(document, dict):
        return {}
    inner = document.get("preprocessing")
    return {**document, **inner} if isinstance(inner, dict) else document


def _add_planes(planes: dict[str, UInt8Array], folder: Path, done: int | None) -> None:
    try:
        films = read_manifest(folder / MANIFEST)
        array = np.load(folder / IMAGES, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, ManifestInvalid):
        return
    if array.shape[:1] == (len(films),) and array.dtype == np.uint8:
        for film, plane in zip(films[:done], array, strict=False):
            if film.sha256:
                planes.setdefault(film.sha256, plane)


def _left_behind(out: Path) -> Iterator[Path]:
    """Yield folders of runs for ``out`` whose process has ended; ``files`` defines their names."""
    out = place_of(out)
    for folder in sorted(out.parent.glob(f".{out.name}.*.part")):
        number = folder.name.removeprefix(f".{out.name}.").removesuffix(".part")
        if folder.is_dir() and number.isdigit() and not _is_running(int(number)):
            yield folder


def _is_running(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except (OSError, OverflowError):
        return True
    return True


# --------------------------------------------------------------------------- figures


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
    return mean / WHITE, float(variance**0.5) / WHITE


def labels_of(films: Sequence[Film]) -> npt.NDArray[np.int8]:
    """Return class indices, shape (n,): 0 normal, 1 pneumonia. Raises: DataError, if a film has no label."""
    for film in films:
        if not film.label:
            raise DataError(f"{film.path}: has no label")
    return np.array([film.label == "pneumonia" for film in films], dtype=np.int8)
