"""What earlier runs decoded and need not be decoded again.

Bytes that are the same, read by the same code to the same size, give the same pixels. So a plane of an earlier
pack is copied where its film has the same SHA-256, and a pack that was killed on its way is gone on with.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from chestxray import __version__, images
from chestxray.errors import ManifestInvalid
from chestxray.images.preprocess import Plane
from chestxray.schema import Film, Resize, read_manifest

IMAGES: Final = "images.npy"
MANIFEST: Final = "manifest.csv"
PROGRESS: Final = "progress.json"
KEPT_EVERY: Final = 256  # films; what a killed run may cost


@cache
def decoder() -> str:
    """SHA-256 of the code that turns bytes into pixels: this package's own, and the libraries' versions."""
    digest = hashlib.sha256(__version__.encode())
    for path in sorted(Path(images.__file__ or "").parent.glob("*.py")):
        digest.update(path.read_bytes())
    for library in ("numpy", "pillow", "pydicom"):
        with contextlib.suppress(metadata.PackageNotFoundError):
            digest.update(f"{library} {metadata.version(library)}".encode())
    return digest.hexdigest()


@dataclass(frozen=True, slots=True)
class Planes:
    """Decoded films by the SHA-256 of their files.

    Attributes:
        places: the array and the row that each lies in.
    """

    places: dict[str, tuple[npt.NDArray[np.uint8], int]] = field(default_factory=dict)

    def of(self, film: Film) -> Plane | None:
        """The film's plane, where it is known."""
        place = self.places.get(film.sha256) if film.sha256 else None
        return None if place is None else place[0][place[1]]


def known_planes(out: Path, size: tuple[int, int], resize: Resize, earlier: str | None) -> Planes:
    """What can be copied from the pack at ``out``, and from packs on their way there that were killed.

    Args:
        out: where a pack is about to be written.
        size: (height, width) that it will have.
        resize: how films of another shape get there.
        earlier: name of the description of a finished pack, which names its decoder.
    """
    wanted = {"height": size[0], "width": size[1], "resize": str(resize), "decoder": decoder()}
    planes = Planes()
    for folder in (out, *_left_behind(out)):
        found = _described(folder / earlier) if folder == out and earlier else _described(folder / PROGRESS)
        if all(found.get(name) == value for name, value in wanted.items()):
            _add(planes, folder, found.get("done"))
    return planes


def note_progress(folder: Path, size: tuple[int, int], resize: Resize, done: int) -> None:
    """Say how many planes of a pack on its way are on disk."""
    document = {"height": size[0], "width": size[1], "resize": str(resize), "decoder": decoder(), "done": done}
    beside = folder / f"{PROGRESS}.part"
    beside.write_text(json.dumps(document), encoding="utf-8")
    beside.replace(folder / PROGRESS)


def clear_left_behind(out: Path) -> None:
    """Remove what killed runs left beside ``out``."""
    for folder in _left_behind(out):
        shutil.rmtree(folder, ignore_errors=True)


def _left_behind(out: Path) -> Iterator[Path]:
    """Folders that a run began for ``out`` whose process is no more; named as ``files`` names them."""
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
    """A description as one flat document; empty where there is none."""
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    if not isinstance(document, dict):
        return {}
    inner = document.get("preprocessing")
    return {**document, **inner} if isinstance(inner, dict) else document


def _add(planes: Planes, folder: Path, done: int | None) -> None:
    try:
        films = read_manifest(folder / MANIFEST)
        array = np.load(folder / IMAGES, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, ManifestInvalid):
        return
    if array.shape[:1] == (len(films),) and array.dtype == np.uint8:
        for row, film in enumerate(films[:done]):
            planes.places.setdefault(film.sha256, (array, row))
