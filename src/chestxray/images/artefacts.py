"""Objections to what was added to a film: letters, lines, stripes, blocks of a coarse JPEG, blur along one direction.

A network takes most of these for a disease. Each limit lies beyond all 5,216 published training films and 120 of full
size; the most that occurs there is named beside it.
"""

from __future__ import annotations

from functools import cache
from typing import Final

import numpy as np

from chestxray.arrays import Float64Array
from chestxray.images import MARGIN, Pixels

FEW: Final = 32  # lines that are looked at, where a few tell enough
PLACES: Final = 64  # along each line, at which lines are compared
SAMPLES: Final = 180  # places along a line at most, between which jumps are counted, on half as many lines

# A jump is a step between neighbours of more than a third of the film's range, in two adjoining lines at once: noise
# and defective pixels make none. Most that occurs: 1.2%; letters all over a film make 2 to 6%, a grid 4 to 18%.
JUMP: Final = 0.35
MAX_JUMPS: Final = 0.015

BLOCK: Final = 8  # pixels a side of a JPEG's block
MAX_BLOCKS: Final = 4.0  # levels differ so many times as much between blocks as within; most that occurs: 2.1

FEWEST_LINES: Final = 128  # that differ from the one before, as in the smallest film that is classified
ENLARGED: Final = 0.7  # of all lines; fewer differ in a film whose pixels were repeated, and 86% in every published one

STRIPES: Final = 10  # cycles over a side, from which stripes are looked for
MAX_STRIPES: Final = 1000.0  # times the energy of one frequency is that of the median; most that occurs: 323


def objection_to_artefacts(pixels: Pixels) -> str:
    """Return the objection to what was added to a film, or to how it was coded; empty if there is none.

    Args:
        pixels: shape (h, w), uint8 or uint16; each side at least ``FEWEST_LINES``.
    """
    return _enlarged(pixels) or _written_over(pixels) or _in_blocks(pixels) or _striped(pixels)


def _enlarged(pixels: Pixels) -> str:
    found = [_differing(lines) for lines in (pixels, pixels.T)]
    few = any(n < min(FEWEST_LINES, ENLARGED * len(lines)) for n, lines in zip(found, (pixels, pixels.T), strict=True))
    if not few:
        return ""
    return (
        f"it was enlarged from few pixels: {found[0]} rows and {found[1]} columns of it differ from the one before "
        f"(at least {FEWEST_LINES}). Export it as it was taken"
    )


def _differing(lines: Pixels) -> int:
    """Return the number of lines that differ from the one before, the first among them."""
    some = lines[:, :: max(1, lines.shape[1] // PLACES)]
    return 1 + int(np.count_nonzero((some[1:] != some[:-1]).any(axis=1)))


def _written_over(pixels: Pixels) -> str:
    height, width = pixels.shape
    rows, columns = height // MARGIN, width // MARGIN
    middle = pixels[rows : height - rows, columns : width - columns]
    some = middle[:: max(1, height // FEW), :: max(1, width // FEW)].ravel()
    ends = [len(some) // 100, len(some) * 99 // 100]
    low, high = np.partition(some, ends)[ends].astype(np.float64)
    span = max(1.0, high - low)
    share = float(np.mean([share_of_jumps(lines, JUMP * span) for lines in (middle, middle.T)]))
    if share <= MAX_JUMPS:
        return ""
    return (
        f"letters, lines, a grid or noise lie over it, or lines of it are lost: at {share:.1%} of its places the level "
        f"jumps by more than a third of its range (limit {MAX_JUMPS:.1%}). Export it without annotations"
    )


def share_of_jumps(lines: Pixels, jump: float) -> float:
    """Return the share of places along some lines at which two adjoining lines jump by more, in the same direction.

    Where one of them alone jumps too seldom to matter, the share is that of the one, which is greater.
    """
    down, across = max(1, 2 * len(lines) // SAMPLES), max(1, round(lines.shape[1] / SAMPLES))
    wide = np.int16 if lines.dtype == np.uint8 else np.int32
    upper = np.diff(lines[:-1:down, ::across].astype(wide), axis=1)
    if (share := np.count_nonzero(np.abs(upper) > jump) / upper.size) <= MAX_JUMPS:
        return share
    lower = np.diff(lines[1::down, ::across].astype(wide), axis=1)
    alike = np.where(np.sign(upper) == np.sign(lower), np.minimum(np.abs(upper), np.abs(lower)), 0)
    return np.count_nonzero(alike > jump) / alike.size


def _in_blocks(pixels: Pixels) -> str:
    times = float(np.sqrt(np.prod([_contrast_of_blocks(lines) for lines in (pixels, pixels.T)])))
    if times <= MAX_BLOCKS:
        return ""
    return (
        f"its grey levels are those of a JPEG of very low quality: between its blocks they differ {times:.1f} times as "
        f"much as within (limit {MAX_BLOCKS:g}). Export it with a quality of 75 or more"
    )


def _contrast_of_blocks(lines: Pixels) -> float:
    """Return how many times as much neighbours differ at every eighth step along some lines as at the other steps."""
    some = lines[:: max(1, len(lines) // FEW)].astype(np.int32)
    steps = np.abs(np.diff(some, axis=1)).sum(axis=0)
    means = steps[: len(steps) // BLOCK * BLOCK].reshape(-1, BLOCK).mean(axis=0)
    others = (means.sum() - means.max()) / (BLOCK - 1)
    return float(means.max() / others) if others > 0.0 else 1.0


def _striped(pixels: Pixels) -> str:
    for lines, across in ((pixels, "columns"), (pixels.T, "rows")):
        if (times := strength_of_stripes(lines)) > MAX_STRIPES:
            return (
                f"stripes lie over it, as of a grid or a photographed screen: one frequency along its {across} is "
                f"{times:.0f} times as strong as the others (limit {MAX_STRIPES:.0f}). Export it anew"
            )
    return ""


def strength_of_stripes(lines: Pixels) -> float:
    """Return how many times as strong one frequency along some lines is as the median one, after whitening.

    Films have the less energy the higher the frequency is, about by its square.
    """
    some = lines[:: max(1, len(lines) // FEW), :: max(1, lines.shape[1] // FEWEST_LINES)]
    profile = some.mean(axis=0, dtype=np.float64)
    window, whitening = _windows(len(profile))
    energy = np.square(np.abs(np.fft.rfft((profile - profile.mean()) * window))[STRIPES:]) * whitening
    median = float(np.partition(energy, len(energy) // 2)[len(energy) // 2])
    return float(energy.max() / median) if median > 0.0 else 1.0


@cache
def _windows(length: int) -> tuple[Float64Array, Float64Array]:
    """Return a window over a profile, and the squares of the frequencies from ``STRIPES``."""
    return np.hanning(length), np.square(np.arange(STRIPES, length // 2 + 1, dtype=np.float64))
