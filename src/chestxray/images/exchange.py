"""Exchanges: films take an irrelevant property (exposure, edges, corners, framing) from another film.

If all films of one unit show one disease, a network can tell the classes apart without the lungs, and validation films
from the same source cannot reveal this. A film that takes its grey levels or its edges from a film of the *other* class
keeps its lungs and its label; a network that then errs relied on the exchanged property. The same exchange with a film
of its *own* class shows how much of the loss is damage done by the exchange itself.

The exchanges work on the network's input, uint8 planes of any size. Films of ``EXCHANGES`` that are not ``trained``
are used in validation only: no augmentation does the same.

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

from chestxray.arrays import BoolArray, Float64Array, IndexArray, UInt8Array

LEVELS: Final = 256  # grey levels of a uint8 pixel

RING: Final = 12 / 160  # of the height: width of the outer ring
CORNER: Final = 1 / 6  # of the height: side of each corner
LOWEST: Final = 4.5  # cycles over the film: frequencies up to this are low
BODY_FROM: Final = 0.25  # of the 90th percentile: rows and columns brighter than this show the body
_BRIGHT, _LINE, _MOST = 90, 75, 0.2  # percentiles of a film and of a line; largest margin as a fraction of a side


class Exchange(NamedTuple):
    """One irrelevant property, and how a film takes it from another.

    Attributes:
        name: its name in tables.
        what: a description in one phrase.
        apply: function of a film and its donor, both of shape (height, width), that returns a film of that shape.
        trained: whether recipes may exchange it in training as well, which flatters the figures under it.
    """

    name: str
    what: str
    apply: Callable[[UInt8Array, UInt8Array], UInt8Array]
    trained: bool


def grey_levels(film: UInt8Array, donor: UInt8Array) -> UInt8Array:
    """Match the film's histogram to the donor's, so that each level keeps its rank."""
    ranks, levels = _ranks(donor), np.flatnonzero(np.bincount(donor.ravel(), minlength=LEVELS))
    matched: UInt8Array = np.interp(_ranks(film), ranks[levels], levels).round().astype(np.uint8)[film]
    return matched


def _ranks(film: UInt8Array) -> Float64Array:
    """Return the fraction of pixels below each grey level, those at the level counting half: shape (LEVELS,)."""
    counts = np.bincount(film.ravel(), minlength=LEVELS)
    ranks: Float64Array = (np.cumsum(counts) - counts / 2) / film.size
    return ranks


def ring(film: UInt8Array, donor: UInt8Array) -> UInt8Array:
    """Replace the film's outer ring by the donor's."""
    width = max(1, round(film.shape[0] * RING))
    out = donor.copy()
    out[width:-width, width:-width] = film[width:-width, width:-width]
    return out


def grey_levels_and_ring(film: UInt8Array, donor: UInt8Array) -> UInt8Array:
    """Match the histogram, then replace the ring."""
    return ring(grey_levels(film, donor), donor)


def low_frequencies(film: UInt8Array, donor: UInt8Array) -> UInt8Array:
    """Replace the amplitudes of the lowest frequencies by the donor's; the film's phases stay."""
    own, other = np.fft.rfft2(film.astype(np.float64)), np.fft.rfft2(donor.astype(np.float64))
    height, width = film.shape
    down, across = np.fft.fftfreq(height, 1 / height)[:, None], np.arange(own.shape[1])[None]
    amplitude = np.where(down**2 + across**2 <= LOWEST**2, np.abs(other), np.abs(own))
    mixed = np.fft.irfft2(amplitude * np.exp(1j * np.angle(own)), (height, width))
    levels: UInt8Array = mixed.round().clip(0, LEVELS - 1).astype(np.uint8)
    return levels


def corners(film: UInt8Array, donor: UInt8Array) -> UInt8Array:
    """Replace the four corners by the donor's, with any text and markers in them."""
    side = max(1, round(film.shape[0] * CORNER))
    out = film.copy()
    for rows in (slice(None, side), slice(-side, None)):
        for columns in (slice(None, side), slice(-side, None)):
            out[rows, columns] = donor[rows, columns]
    return out


def framing(film: UInt8Array, donor: UInt8Array) -> UInt8Array:
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


def body_of(film: UInt8Array) -> tuple[int, int, int, int]:
    """Return the box of the body: first row, row after the last, first column, column after the last.

    IndexArray and columns at an edge are margin if most of their pixels are dark; a film without a bright middle has no
    margin.
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
) -> IndexArray:
    """Choose each film's donor by its hash alone: the same films and pool always give the same donors.

    Args:
        films: n pairs of a SHA-256 and a patient ("" where unknown).
        labels: shape (n,), 0 or 1.
        pool: m such pairs to choose from; a patient's films are never donors of the same patient.
        pool_labels: shape (m,).
        exchange: a row of ``EXCHANGES``; each row has its own donors.
        of: ``OTHER`` or ``OWN``: the class of the donors.

    Returns: indices in the pool, shape (n,); -1 for a film without a donor.
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
    """Return the name of the condition of such films: "ring/other"."""
    return f"{exchange.name}/{of}"


def exchanged(planes: UInt8Array, donors: UInt8Array, exchange: Exchange, which: BoolArray | None = None) -> UInt8Array:
    """Return films that took one property from their donors.

    Args:
        planes, donors: shape (n, height, width).
        exchange: a row of ``EXCHANGES``.
        which: shape (n,); True for films that have a donor; the others stay unchanged. None for all.

    Returns: the same shape.
    """
    out = np.array(planes)
    for index, (film, donor) in enumerate(zip(planes, donors, strict=True)):
        if which is None or which[index]:
            out[index] = exchange.apply(film, donor)
    return out
