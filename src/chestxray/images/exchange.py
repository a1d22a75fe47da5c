"""Films with what must not matter taken from another film: exposure, edges, corners, framing.

Where all films of one unit show one disease, a network can tell the classes apart without looking at a lung, and
validation films from the same folder cannot show it. A film that takes its grey levels or its edges from a film of
the *other* class keeps its lungs and its label; a network that is led astray by it relied on what was exchanged. The
same exchange with a film of its *own* class says how much of that is the damage done by exchanging.

The exchanges work on the network's input, uint8 planes of any size. Films of ``EXCHANGES`` that are not ``trained``
are exchanged for validation alone: no augmentation does the same.

Sources: Geirhos et al., "Shortcut learning in deep neural networks", Nature Machine Intelligence 2 (2020); Yang and
Soatto, "FDA: Fourier domain adaptation for semantic segmentation", CVPR (2020), for the low frequencies; DeGrave et
al., "AI for radiographic COVID-19 detection selects shortcuts over signal", Nature Machine Intelligence 3 (2021).
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from typing import Final, NamedTuple

import numpy as np
import numpy.typing as npt
from PIL import Image

Planes = npt.NDArray[np.uint8]
Rows = npt.NDArray[np.intp]
FloatArray = npt.NDArray[np.float64]

LEVELS: Final = 256  # grey levels of a uint8 pixel

RING: Final = 12 / 160  # of the height: width of the outer ring
CORNER: Final = 1 / 6  # of the height: side of each corner
LOWEST: Final = 4.5  # cycles over the film: frequencies up to that are low
BODY_FROM: Final = 0.25  # of the 90th percentile: rows and columns brighter than that show the body
_BRIGHT, _LINE, _MOST = 90, 75, 0.2  # percentiles of a film and of a line; share of a side that a margin has at most


class Exchange(NamedTuple):
    """One thing that must not matter, and how a film takes it from another.

    Attributes:
        name: in tables.
        what: one phrase.
        apply: a film and its donor, both of shape (height, width), to a film of that shape.
        trained: whether recipes may exchange it in training as well, which flatters the figures under it.
    """

    name: str
    what: str
    apply: Callable[[Planes, Planes], Planes]
    trained: bool


def grey_levels(film: Planes, donor: Planes) -> Planes:
    """Match the film's histogram to the donor's, so that each level keeps its rank."""
    ranks, levels = _ranks(donor), np.flatnonzero(np.bincount(donor.ravel(), minlength=LEVELS))
    matched: Planes = np.interp(_ranks(film), ranks[levels], levels).round().astype(np.uint8)[film]
    return matched


def _ranks(film: Planes) -> FloatArray:
    """Share of the pixels below each grey level, those at the level counting half: shape (LEVELS,)."""
    counts = np.bincount(film.ravel(), minlength=LEVELS)
    ranks: FloatArray = (np.cumsum(counts) - counts / 2) / film.size
    return ranks


def ring(film: Planes, donor: Planes) -> Planes:
    """Put the donor's outer ring round the film."""
    width = max(1, round(film.shape[0] * RING))
    out = donor.copy()
    out[width:-width, width:-width] = film[width:-width, width:-width]
    return out


def grey_levels_and_ring(film: Planes, donor: Planes) -> Planes:
    """Match the histogram, then put the ring round it."""
    return ring(grey_levels(film, donor), donor)


def low_frequencies(film: Planes, donor: Planes) -> Planes:
    """Take the donor's amplitudes at the lowest frequencies; the film's phases stay."""
    own, other = np.fft.rfft2(film.astype(np.float64)), np.fft.rfft2(donor.astype(np.float64))
    height, width = film.shape
    down, across = np.fft.fftfreq(height, 1 / height)[:, None], np.arange(own.shape[1])[None]
    amplitude = np.where(down**2 + across**2 <= LOWEST**2, np.abs(other), np.abs(own))
    mixed = np.fft.irfft2(amplitude * np.exp(1j * np.angle(own)), (height, width))
    levels: Planes = mixed.round().clip(0, LEVELS - 1).astype(np.uint8)
    return levels


def corners(film: Planes, donor: Planes) -> Planes:
    """Take the donor's four corners, with whatever text and markers stand there."""
    side = max(1, round(film.shape[0] * CORNER))
    out = film.copy()
    for rows in (slice(None, side), slice(-side, None)):
        for columns in (slice(None, side), slice(-side, None)):
            out[rows, columns] = donor[rows, columns]
    return out


def framing(film: Planes, donor: Planes) -> Planes:
    """Move and stretch the film so that its body has the margins and the proportions of the donor's."""
    (top, bottom, left, right), (above, below, before, behind) = body_of(film), body_of(donor)
    down, across = (bottom - top) / (below - above), (right - left) / (behind - before)
    moved = Image.fromarray(film).transform(
        (film.shape[1], film.shape[0]),
        Image.Transform.AFFINE,
        (across, 0.0, left - before * across, 0.0, down, top - above * down),
        Image.Resampling.BICUBIC,
    )
    return np.asarray(moved)


def body_of(film: Planes) -> tuple[int, int, int, int]:
    """Where the body lies: first row, row behind the last, first column, column behind the last.

    Rows and columns most of whose pixels are dark at an edge are margin; a film without a bright middle has none.
    """
    least = BODY_FROM * float(np.percentile(film, _BRIGHT))
    found: list[int] = []
    for axis in (1, 0):
        side = film.shape[1 - axis]
        bright = np.flatnonzero(np.percentile(film, _LINE, axis=axis) > least)
        first, last = (int(bright[0]), int(bright[-1]) + 1) if len(bright) > side / 2 else (0, side)
        most = int(side * _MOST)
        found += [min(first, most), max(last, side - most)]
    return found[0], found[1], found[2], found[3]


EXCHANGES: Final = (
    Exchange("grey_levels", "the histogram matched to the donor's", grey_levels, trained=True),
    Exchange("ring", "the outer ring, 7.5% of the height wide", ring, trained=False),
    Exchange("grey_levels_and_ring", "the histogram matched, then the outer ring", grey_levels_and_ring, trained=False),
    Exchange("low_frequencies", "amplitudes up to 4.5 cycles over the film", low_frequencies, trained=True),
    Exchange("corners", "the four corners with their text, a sixth of the height each", corners, trained=True),
    Exchange("framing", "margins and proportions of the body", framing, trained=False),
)

OTHER: Final = "other"
OWN: Final = "own"
EXCHANGED_FROM: Final = tuple((exchange, of) for exchange in EXCHANGES for of in (OTHER, OWN))


def donors_of(
    films: Sequence[tuple[str, str]],
    labels: npt.ArrayLike,
    pool: Sequence[tuple[str, str]],
    pool_labels: npt.ArrayLike,
    exchange: Exchange,
    of: str,
) -> Rows:
    """Choose each film's donor, by its hash alone: the same films and pool always give the same donors.

    Args:
        films: n pairs of a SHA-256 and a patient ("" where unknown).
        labels: shape (n,), 0 or 1.
        pool: m such pairs to choose from; nobody is a donor of a film of their own.
        pool_labels: shape (m,).
        exchange: a row of ``EXCHANGES``; each has donors of its own.
        of: ``OTHER`` or ``OWN``: the class that a donor has.

    Returns: places in the pool, shape (n,); a film for which there is no donor has -1.
    """
    known, classes = np.asarray(labels), np.asarray(pool_labels)
    by_class = {
        label: sorted(np.flatnonzero(classes == label).tolist(), key=lambda place: pool[place][0]) for label in (0, 1)
    }
    chosen = np.full(len(films), -1, dtype=np.intp)
    for index, (sha256, patient) in enumerate(films):
        candidates = by_class[int(known[index]) if of == OWN else 1 - int(known[index])]
        drawn = int.from_bytes(hashlib.sha256(f"{exchange.name}/{sha256}".encode()).digest()[:8], "big")
        for step in range(len(candidates)):
            place = candidates[(drawn + step) % len(candidates)]
            if pool[place][0] != sha256 and (not patient or pool[place][1] != patient):
                chosen[index] = place
                break
    return chosen


def condition(exchange: Exchange, of: str) -> str:
    """What films are called that took that from donors of that class: "ring/other"."""
    return f"{exchange.name}/{of}"


def exchanged(planes: Planes, donors: Planes, exchange: Exchange, which: npt.NDArray[np.bool_] | None = None) -> Planes:
    """Films that took one thing from their donors.

    Args:
        planes, donors: shape (n, height, width).
        exchange: a row of ``EXCHANGES``.
        which: shape (n,); the others have no donor and stay as they are. None for all.

    Returns: the same shape.
    """
    out = np.array(planes)
    for index, (film, donor) in enumerate(zip(planes, donors, strict=True)):
        if which is None or which[index]:
            out[index] = exchange.apply(film, donor)
    return out
