"""What can be said against a film from its pixels alone; the same rules when cleaning and when serving."""

from __future__ import annotations

from typing import Final, NamedTuple

import numpy as np
from PIL import Image

from chestxray.images.decode import Pixels, Radiograph
from chestxray.schema import Verdict

MAX_COLOURED: Final = 0.05  # share of pixels; a coloured annotation on a greyscale film stays below it
MIN_SIDE: Final = 64  # pixels; below that ribs and vessels cannot be told apart
MIN_DEVIATION: Final = 0.02  # of the grey level, 0 to 1; an empty exposure stays below it

HASH_SIDE: Final = 8  # the perceptual hash compares 8 x 8 neighbours: 64 bits


class Objection(NamedTuple):
    """Why a film must not be judged."""

    verdict: Verdict
    reason: str


def objection_to(film: Radiograph) -> Objection | None:
    """The first thing that speaks against a decoded film, or None."""
    if film.coloured > MAX_COLOURED:
        return Objection(
            Verdict.COLOURED,
            f"{film.coloured:.0%} of its pixels are coloured, so it is not a plain radiograph "
            f"(limit {MAX_COLOURED:.0%})",
        )
    if min(film.width, film.height) < MIN_SIDE:
        return Objection(Verdict.TOO_SMALL, f"{film.width} x {film.height} pixels; each side needs at least {MIN_SIDE}")
    deviation = float(film.pixels.std()) / np.iinfo(film.pixels.dtype).max
    if deviation < MIN_DEVIATION:
        return Objection(
            Verdict.BLANK, f"almost uniform: its grey levels deviate by {deviation:.1%} (at least {MIN_DEVIATION:.0%})"
        )
    return None


def perceptual_hash(pixels: Pixels) -> str:
    """64-bit difference hash, as 16 hexadecimal digits: is each place brighter than its right neighbour?

    Survives rescaling, recompression and changes of brightness. Source: N. Krawetz, "Kind of like that" (2013).

    Args:
        pixels: shape (h, w), uint8 or uint16.
    """
    image = Image.fromarray(pixels.astype(np.float32))
    small = np.asarray(image.resize((HASH_SIDE + 1, HASH_SIDE), Image.Resampling.BOX))
    return np.packbits(small[:, :-1] > small[:, 1:]).tobytes().hex()
