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

HASH_SIDE: Final = 16  # the perceptual hash compares 16 x 16 places with two neighbours each
HASH_BITS: Final = 2 * HASH_SIDE * HASH_SIDE


# What a file may say of a plain film of the chest from the front or the back (DICOM PS3.3 C.7.3.1.1.1, C.8.11.1,
# PS3.16 annex L). The silence of a file is no objection.
MODALITIES: Final = frozenset({"CR", "DX", "DR", "RG", "RF", "XR", "XA", "SC", "OT"})
BODY_PARTS: Final = frozenset({"CHEST", "THORAX", "LUNG", "HEART", "RIB", "STERNUM", "CHESTABDOMEN", "CHEST ABDOMEN"})
FRONTAL_VIEWS: Final = frozenset({"AP", "PA", "RLD", "LLD"})  # decubitus films are taken from the front

# The film's middle less its dark parts, of the grey level, -1 to 1. All 5,216 published training films lie above
# +0.05; turned into negatives, all but two of them lie below -0.1.
MIN_MIDDLE: Final = -0.1
MIN_JUDGED_SIDE: Final = 128  # pixels; smaller films are not judged so: the published ones are larger


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
    if reason := _not_frontal_chest(film):
        return Objection(Verdict.NOT_FRONTAL, reason)
    deviation = float(film.pixels.std()) / np.iinfo(film.pixels.dtype).max
    if deviation < MIN_DEVIATION:
        return Objection(
            Verdict.BLANK, f"almost uniform: its grey levels deviate by {deviation:.1%} (at least {MIN_DEVIATION:.0%})"
        )
    if min(film.width, film.height) >= MIN_JUDGED_SIDE and (middle := brightness_of_middle(film.pixels)) < MIN_MIDDLE:
        return Objection(
            Verdict.INVERTED,
            f"its middle is darker than its sides and lungs by {-middle:.0%}, as in a negative "
            f"(limit {-MIN_MIDDLE:.0%}). Invert it, if it is one",
        )
    return None


def _not_frontal_chest(film: Radiograph) -> str:
    """What the file itself says against a plain frontal film of a chest; empty where nothing."""
    for found, allowed, name in (
        (film.modality, MODALITIES, "modality"),
        (film.body_part, BODY_PARTS, "body part"),
        (film.view_position, FRONTAL_VIEWS, "view"),
    ):
        if found and found not in allowed:
            return f"its file names another {name} than a frontal chest radiograph has"
    return ""


def brightness_of_middle(pixels: Pixels) -> float:
    """How much brighter the spine and heart are than the film's sides and the lungs, -1 to 1.

    Bone and heart are white on a chest film, the lungs and the air beside the patient dark; on a negative it is
    the other way round. The places are fractions of the film, wide enough for any centring.

    Args:
        pixels: shape (h, w), uint8 or uint16.
    """
    height, width = pixels.shape

    def mean(top: float, bottom: float, left: float, right: float) -> float:
        rows = slice(int(top * height), max(int(bottom * height), int(top * height) + 1))
        columns = slice(int(left * width), max(int(right * width), int(left * width) + 1))
        return float(pixels[rows, columns].mean())

    middle = mean(0.35, 0.8, 0.45, 0.55)
    sides = (mean(0.0, 1.0, 0.0, 0.06) + mean(0.0, 1.0, 0.94, 1.0)) / 2
    lungs = (mean(0.3, 0.6, 0.2, 0.38) + mean(0.3, 0.6, 0.62, 0.8)) / 2
    return (middle - (sides + lungs) / 2) / float(np.iinfo(pixels.dtype).max)


def perceptual_hash(pixels: Pixels) -> str:
    """512-bit difference hash, as 128 hexadecimal digits: is each place brighter than its neighbours?

    Compared are the right neighbour on a grid of 17 x 16 places and the lower one on a grid of 16 x 17.
    Survives rescaling, recompression and changes of brightness. Source: N. Krawetz, "Kind of like that" (2013),
    who takes 8 x 8 right neighbours. Those 64 bits are too few here, since one chest looks like another:
    ``data.dedup`` has the counts.

    Args:
        pixels: shape (h, w), uint8 or uint16.
    """
    image = Image.fromarray(pixels.astype(np.float32))
    wide = np.asarray(image.resize((HASH_SIDE + 1, HASH_SIDE), Image.Resampling.BOX))
    high = np.asarray(image.resize((HASH_SIDE, HASH_SIDE + 1), Image.Resampling.BOX))
    bits = np.concatenate([(wide[:, :-1] > wide[:, 1:]).ravel(), (high[:-1] > high[1:]).ravel()])
    return np.packbits(bits).tobytes().hex()
