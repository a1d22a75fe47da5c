"""A cache of decoded films, so that earlier runs save work.

The same bytes, read by the same code to the same size, give the same pixels. So a plane of an earlier pack is copied if
its film has the same SHA-256, and a pack that was interrupted resumes.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import IO, Any, Final, Self

import numpy as np

from chestxray import __version__, images
from chestxray.arrays import UInt8Array
from chestxray.errors import ManifestInvalid
from chestxray.files import place_of, write_atomically
from chestxray.schema import Film, Levels, Resize, read_manifest

IMAGES: Final = "images.npy"
MANIFEST: Final = "manifest.csv"
PROGRESS: Final = "progress.json"
# Libraries that produce a film's pixels: another version may produce other pixels.
DECODERS: Final = (
    "numpy", "pillow", "simplejpeg", "pydicom", "imagecodecs", "pyjpegls", "pylibjpeg", "pylibjpeg-libjpeg",
    "pylibjpeg-openjpeg", "pylibjpeg-rle", "python-gdcm",
)  # fmt: skip
KEPT_EVERY: Final = 256  # films; the most that a killed run loses


@cache
def decoder() -> str:
    """Return the SHA-256 of the code that turns bytes into pixels: this package's code, and the libraries' versions."""
    digest = hashlib.sha256(__version__.encode())
    for path in sorted(Path(images.__file__ or "").parent.glob("*.py")):
        digest.update(path.read_bytes())
    for library in DECODERS:
        with contextlib.suppress(metadata.PackageNotFoundError):
            digest.update(f"{library} {metadata.version(library)}".encode())
    return digest.hexdigest()


@dataclass(frozen=True, slots=True)
class PlaneStore:
    """Decoded films by the SHA-256 of their files.

    Attributes:
        places: the array and the row of each film.
    """

    places: dict[str, tuple[UInt8Array, int]] = field(default_factory=dict)

    def of(self, film: Film) -> UInt8Array | None:
        """Return the film's plane, or None if it is unknown."""
        place = self.places.get(film.sha256) if film.sha256 else None
        return None if place is None else place[0][place[1]]


def known_planes(out: Path, size: tuple[int, int], resize: Resize, levels: Levels, earlier: str | None) -> PlaneStore:
    """Return the planes that can be copied from the pack at ``out``, and from interrupted packs for ``out``.

    Args:
        out: the folder of the new pack.
        size: (height, width) of its films.
        resize: how films of another shape are resized.
        levels: how their grey levels are mapped.
        earlier: name of the description of a finished pack, which names its decoder.
    """
    wanted = _conditions(size, resize, levels)
    planes = PlaneStore()
    for folder in (out, *_left_behind(out)):
        found = _described(folder / earlier) if folder == out and earlier else _described(folder / PROGRESS)
        if all(found.get(name) == value for name, value in wanted.items()):
            _add_planes(planes, folder, found.get("done"))
    return planes


def note_progress(folder: Path, size: tuple[int, int], resize: Resize, levels: Levels, done: int) -> None:
    """Record how many planes of an unfinished pack are on disk."""
    document = {**_conditions(size, resize, levels), "done": done}
    beside = folder / f"{PROGRESS}.part"
    beside.write_text(json.dumps(document), encoding="utf-8")
    beside.replace(folder / PROGRESS)


def _conditions(size: tuple[int, int], resize: Resize, levels: Levels) -> dict[str, Any]:
    """Return everything that decides the planes of a film."""
    return {"height": size[0], "width": size[1], "resize": str(resize), "levels": str(levels), "decoder": decoder()}


def clear_left_behind(out: Path) -> None:
    """Remove what killed runs left beside ``out``."""
    for folder in _left_behind(out):
        shutil.rmtree(folder, ignore_errors=True)


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


def _described(path: Path) -> dict[str, Any]:
    """Return a description as one flat document; empty if there is none."""
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    if not isinstance(document, dict):
        return {}
    inner = document.get("preprocessing")
    return {**document, **inner} if isinstance(inner, dict) else document


def _add_planes(planes: PlaneStore, folder: Path, done: int | None) -> None:
    try:
        films = read_manifest(folder / MANIFEST)
        array = np.load(folder / IMAGES, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, ManifestInvalid):
        return
    if array.shape[:1] == (len(films),) and array.dtype == np.uint8:
        for row, film in enumerate(films[:done]):
            planes.places.setdefault(film.sha256, (array, row))


SEEN_VERSION: Final = 1
FOUND: Final = (
    "sha256", "width", "height", "channels", "bit_depth", "perceptual_hash", "mean_level", "verdict", "reason",
    "patient_id",
)  # fmt: skip
WRITTEN_EVERY: Final = 64  # films; the most that an interruption loses


class FindingsCache:
    """Findings by path, each with the stamp of its file at that time."""

    def __init__(self, file: IO[str], found: dict[str, tuple[str, list[Any]]]) -> None:
        self._file = file
        self._found = found
        self._unwritten = 0

    @classmethod
    def open(cls, path: Path) -> Self:
        """Read the findings of earlier runs if the same code made them, and continue the file."""
        header = json.dumps({"version": SEEN_VERSION, "decoder": decoder(), "columns": FOUND})
        found: dict[str, tuple[str, list[Any]]] = {}
        lines = path.read_text(encoding="utf-8", errors="replace").split("\n") if path.exists() else []
        if lines[:1] == [header]:
            for line in lines[1:-1]:  # the last line is empty, or was cut off by an interruption
                try:
                    name, stamp, values = json.loads(line)
                    found[name] = (stamp, values)
                except ValueError:
                    continue
        kept = "".join(json.dumps([name, *finding]) + "\n" for name, finding in found.items())
        write_atomically(path, f"{header}\n{kept}".encode())
        return cls(path.open("a", encoding="utf-8"), found)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def of(self, film: Film, stamp: str) -> Film | None:
        """Return the film with its earlier findings, if its file still has that stamp."""
        finding = self._found.get(film.path)
        if not stamp or finding is None or finding[0] != stamp:
            return None
        changes = dict(zip(FOUND, finding[1], strict=True))
        return dataclasses.replace(film, **{**changes, "patient_id": film.patient_id or changes["patient_id"]})

    def add(self, film: Film, stamp: str) -> None:
        """Store the findings of a film. An empty stamp means that a change of its file cannot be detected."""
        if not stamp:
            return
        self._file.write(json.dumps([film.path, stamp, [getattr(film, name) for name in FOUND]]) + "\n")
        self._unwritten += 1
        if self._unwritten >= WRITTEN_EVERY:
            self._file.flush()
            self._unwritten = 0
