"""The first half of the corridor: bytes to the network's input, or to a reason why not.

Imports no onnxruntime, so that worker processes that only decode start quickly.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Final

from chestxray.images.decode import decode
from chestxray.images.preprocess import Plane, resample
from chestxray.images.quality import objection_to
from chestxray.inference.gate import Gatekeeper
from chestxray.schema import Gate, Preprocessing

ANYTHING: Final = Gatekeeper()  # refuses nothing, as a bundle from before there were gates


@dataclass(frozen=True, slots=True)
class Prepared:
    """One film, read.

    Attributes:
        sha256: of its bytes.
        gate: accepted, or refused and why.
        size: (height, width) of the film, upright, in pixels.
        plane: the network's input, shape (height, width), uint8; None where the gate is closed.
    """

    sha256: str
    gate: Gate
    size: tuple[int, int]
    plane: Plane | None


def prepare(data: bytes, source: str, preprocessing: Preprocessing, gatekeeper: Gatekeeper = ANYTHING) -> Prepared:
    """Read the bytes of one film.

    Args:
        data: the whole file.
        source: what to call it in errors.
        preprocessing: of the bundle.
        gatekeeper: of the bundle; refuses beyond what no bundle may judge.

    Raises: FilmError, where they cannot be read as a film.
    """
    height, width = preprocessing.height, preprocessing.width
    film = decode(data, source, at_least=(height, width))
    digest = hashlib.sha256(data).hexdigest()
    size = (film.height, film.width)
    if objection := objection_to(film):
        return Prepared(digest, Gate(accepted=False, reason=objection.reason), size, None)
    plane = resample(film.pixels, height, width, preprocessing.resize, film.frame)
    gate = gatekeeper.judge(film, plane)
    return Prepared(digest, gate, size, plane if gate.accepted else None)
