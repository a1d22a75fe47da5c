"""Shifts and exchanges: films as another hospital might have made them, by a fixed set of changes.

Films of one hospital agree in things that the next one does differently: framing, resolution, sharpening, the grey
scale. Networks that separate clean validation films perfectly can lose ten points when one of them changes. Each shift
here varies one such thing, in other ways or more strongly than the training augmentation or at the far end of it, and
always by the same amount for the same film, so that the figures of two networks can be compared.

If all films of one unit show one disease, a network can tell the classes apart without the lungs, and validation films
from the same source cannot reveal this. A film that takes its grey levels or its edges from a film of the *other* class
keeps its lungs and its label; a network that then errs relied on the exchanged property. The same exchange with a film
of its *own* class shows how much of the loss is damage done by the exchange itself.

Both work on the network's input, uint8 planes of any size. Training uses none of the shifts, though augmentation may
reach as far in framing, and of the exchanges only those that are ``trained``: no augmentation does what the others do.

Sources: Hendrycks and Dietterich, "Benchmarking neural network robustness to common corruptions", ICLR (2019), for the
fixed severities; Geirhos et al., "Shortcut learning in deep neural networks", Nature Machine Intelligence 2 (2020);
Yang and Soatto, "FDA: Fourier domain adaptation for semantic segmentation", CVPR (2020), for the low frequencies;
DeGrave et al., "AI for radiographic COVID-19 detection selects shortcuts over signal", Nature Machine Intelligence 3
(2021).
"""

from __future__ import annotations

import hashlib
import io
import math
from collections.abc import Callable, Sequence
from typing import Final, NamedTuple

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFilter, ImageOps

from chestxray.arrays import BoolArray, Float64Array, IndexArray, Random, UInt8Array
from chestxray.images import LEVELS, WHITE

Picture = Image.Image


class Shift(NamedTuple):
    """One way in which films of another hospital may differ.

    Attributes:
        name: its name in tables.
        what: a description in one phrase.
        apply: function of a greyscale picture and a random generator that returns a picture of the same size.
    """

    name: str
    what: str
    apply: Callable[[Picture, Random], Picture]


def _sign(random: Random) -> float:
    return 1.0 if random.random() < 0.5 else -1.0  # noqa: PLR2004 - a fair coin


def _affine(film: Picture, rows: tuple[float, float, float, float]) -> Picture:
    """Resample about the centre; pixels from outside are black.

    Args:
        film: the picture.
        rows: the 2 x 2 matrix from places in the result to places in ``film``, row by row.
    """
    a, b, d, e = rows
    across, down = (film.width - 1) / 2, (film.height - 1) / 2
    c, f = across - a * across - b * down, down - d * across - e * down
    return film.transform(film.size, Image.Transform.AFFINE, (a, b, c, d, e, f), Image.Resampling.BICUBIC)


def _rotated(film: Picture, random: Random) -> Picture:
    angle = _sign(random) * math.radians(15)
    square = film.width / film.height
    cosine, sine = math.cos(angle), math.sin(angle)
    return _affine(film, (cosine, -sine * square, sine / square, cosine))


def _stretched(film: Picture, random: Random) -> Picture:
    across = 1.25 if random.random() < 0.5 else 1 / 1.25  # noqa: PLR2004
    return _affine(film, (math.sqrt(across), 0.0, 0.0, 1 / math.sqrt(across)))


def _cropped(film: Picture, random: Random) -> Picture:
    """Cut a sixth of each axis off, at one corner or another."""
    width, height = round(film.width * 5 / 6), round(film.height * 5 / 6)
    left = 0 if random.random() < 0.5 else film.width - width  # noqa: PLR2004
    top = 0 if random.random() < 0.5 else film.height - height  # noqa: PLR2004
    return film.resize(film.size, Image.Resampling.BICUBIC, box=(left, top, left + width, top + height))


def _trimmed(film: Picture, _random: Random) -> Picture:
    """Cut a fifth off along every edge, as people do who send the lungs alone."""
    box = (film.width / 5, film.height / 5, film.width * 4 / 5, film.height * 4 / 5)
    return film.resize(film.size, Image.Resampling.BICUBIC, box=box)


def _coarse(film: Picture, _random: Random) -> Picture:
    small = film.resize((round(film.width * 0.28), round(film.height * 0.28)), Image.Resampling.BOX)
    return small.resize(film.size, Image.Resampling.BICUBIC)


def _blurred(film: Picture, _random: Random) -> Picture:
    return film.filter(ImageFilter.GaussianBlur(film.height / 100))


def _sharpened(film: Picture, _random: Random) -> Picture:
    return film.filter(ImageFilter.UnsharpMask(radius=film.height / 64, percent=130, threshold=0))


def _bent(film: Picture, exponent: float) -> Picture:
    """Bend the grey scale by a power; below 1 brightens."""
    return film.point([round(WHITE * (level / WHITE) ** exponent) for level in range(WHITE + 1)])


def _exposed(film: Picture, random: Random) -> Picture:
    """Over- or underexpose the film: move the scale until one end of it clips."""
    gain, offset = (1.35, -20.0) if random.random() < 0.5 else (0.65, 30.0)  # noqa: PLR2004
    return film.point([min(WHITE, max(0, round(gain * level + offset))) for level in range(WHITE + 1)])


def _equalised(film: Picture, _random: Random) -> Picture:
    """Flatten the histogram most of the way, as some viewers and archives show films."""
    return Image.blend(film, ImageOps.equalize(film), 0.7)


def _shaded(film: Picture, random: Random) -> Picture:
    """Make one side brighter than the other, as with a misaligned grid or tube."""
    ramp = np.linspace(-35.0, 35.0, film.width) * _sign(random)
    return Image.fromarray((np.asarray(film) + ramp).clip(0, WHITE).astype(np.uint8))


def _marked(film: Picture, random: Random) -> Picture:
    """Cover corners in black, and draw a bright marker with a letter in a fifth place."""
    marked = film.copy()
    draw = ImageDraw.Draw(marked)
    side = film.height // 6
    for left in (0, film.width - side):
        for top in (0, film.height - side):
            if random.random() < 0.6:  # noqa: PLR2004
                draw.rectangle((left, top, left + side, top + side), fill=0)
    left = int(random.integers(0, film.width - side))
    draw.rectangle((left, 2, left + side // 2, 2 + side // 2), outline=WHITE, width=2)
    draw.text((left + side // 8, 2), "R" if random.random() < 0.5 else "L", fill=WHITE)  # noqa: PLR2004
    return marked


def _noisy(film: Picture, random: Random) -> Picture:
    """Add grain that is correlated over two pixels, like resampled noise."""
    grain = random.normal(0.0, 14.0, (film.height // 2 + 1, film.width // 2 + 1)).repeat(2, axis=0).repeat(2, axis=1)
    noisy = np.asarray(film) + grain[: film.height, : film.width]
    return Image.fromarray(noisy.clip(0, WHITE).astype(np.uint8))


def _compressed(film: Picture, _random: Random) -> Picture:
    stored = io.BytesIO()
    film.save(stored, "JPEG", quality=18)
    with Image.open(stored) as read:
        return read.convert("L")


SHIFTS: Final = (
    Shift("rotated", "by 15 degrees", _rotated),
    Shift("closer", "enlarged by 30%", lambda film, _: _affine(film, (1 / 1.3, 0.0, 0.0, 1 / 1.3))),
    Shift("farther", "reduced by 30%", lambda film, _: _affine(film, (1.3, 0.0, 0.0, 1.3))),
    Shift("stretched", "one axis by 25% against the other", _stretched),
    Shift("cropped", "a sixth of each axis lost at a corner", _cropped),
    Shift("trimmed", "a fifth lost along every edge", _trimmed),
    Shift("coarse", "28% of the pixels a side", _coarse),
    Shift(
        "blurred",
        "Gaussian, 1% of the height",
        lambda film, _: film.filter(ImageFilter.GaussianBlur(film.height / 100)),
    ),
    Shift(
        "sharpened",
        "unsharp mask, 130%",
        lambda film, _: film.filter(ImageFilter.UnsharpMask(film.height / 64, 130, 0)),
    ),
    Shift("brighter", "gamma 0.55", lambda film, _: _bent(film, 0.55)),
    Shift("darker", "gamma 1.9", lambda film, _: _bent(film, 1.9)),
    Shift("exposed", "gain 1.35 or 0.65 with clipping", _exposed),
    Shift(
        "equalised", "70% of a histogram equalisation", lambda film, _: Image.blend(film, ImageOps.equalize(film), 0.7)
    ),
    Shift("shaded", "35 grey levels from one side to the other", _shaded),
    Shift("marked", "corners covered, a marker added", _marked),
    Shift("noisy", "correlated grain of 14 grey levels", _noisy),
    Shift("compressed", "JPEG quality 18", _compressed),
)


def shifted(planes: UInt8Array, keys: Sequence[str], shift: Shift) -> UInt8Array:
    """Return films under one shift.

    Args:
        planes: shape (n, height, width).
        keys: n names, such as SHA-256; a film of the same name always gets the same shift.
        shift: a row of ``SHIFTS``.

    Returns: the same shape.
    """
    out = np.empty_like(planes)
    for index, (plane, key) in enumerate(zip(planes, keys, strict=True)):
        random = np.random.default_rng([*shift.name.encode(), *key.encode()])
        out[index] = np.asarray(shift.apply(Image.fromarray(plane), random))
    return out


RING: Final = 12 / 160  # of the height: width of the outer ring
CORNER: Final = 1 / 6  # of the height: side of each corner
LOW_FREQUENCIES: Final = 4.5  # cycles over the film: frequencies up to this are low
BODY_FROM: Final = 0.25  # of the 90th percentile: rows and columns brighter than this show the body
_BRIGHT, _LINE, _MOST = 90, 75, 0.2  # percentiles of a film and of a line; largest margin as a fraction of a side


class Nuisance(NamedTuple):
    """A property that says nothing of the disease, and how a film takes it from another film, its donor.

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


def ring(film: UInt8Array, donor: UInt8Array, width_share: float = RING) -> UInt8Array:
    """Replace the film's outer ring by the donor's; its width is a share of the height."""
    width = max(1, round(film.shape[0] * width_share))
    out = donor.copy()
    out[width:-width, width:-width] = film[width:-width, width:-width]
    return out


def grey_levels_and_ring(film: UInt8Array, donor: UInt8Array) -> UInt8Array:
    """Match the histogram, then replace the ring."""
    return ring(grey_levels(film, donor), donor)


def low_frequencies(film: UInt8Array, donor: UInt8Array, highest: float = LOW_FREQUENCIES) -> UInt8Array:
    """Replace the amplitudes up to ``highest`` cycles over the film by the donor's; the film's phases stay."""
    own, other = np.fft.rfft2(film.astype(np.float64)), np.fft.rfft2(donor.astype(np.float64))
    height, width = film.shape
    down, across = np.fft.fftfreq(height, 1 / height)[:, None], np.arange(own.shape[1])[None]
    amplitude = np.where(down**2 + across**2 <= highest**2, np.abs(other), np.abs(own))
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

    Rows and columns at an edge are margin if most of their pixels are dark; a film without a bright middle has no
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
    Nuisance("grey_levels", "the histogram matched to the donor's", grey_levels, trained=True),
    Nuisance("ring", "the outer ring, 7.5% of the height wide", ring, trained=False),
    Nuisance("grey_levels_and_ring", "the histogram matched, then the outer ring", grey_levels_and_ring, trained=False),
    Nuisance("low_frequencies", "amplitudes up to 4.5 cycles over the film", low_frequencies, trained=True),
    Nuisance("corners", "the four corners with their text, a sixth of the height each", corners, trained=True),
    Nuisance("framing", "margins and proportions of the body", framing, trained=False),
)

OTHER: Final = "other"
OWN: Final = "own"
EXCHANGED_FROM: Final = tuple((exchange, of) for exchange in EXCHANGES for of in (OTHER, OWN))


def donors_of(
    films: Sequence[tuple[str, str]],
    labels: npt.ArrayLike,
    pool: Sequence[tuple[str, str]],
    pool_labels: npt.ArrayLike,
    exchange: Nuisance,
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


def condition(exchange: Nuisance, of: str) -> str:
    """Return the name of the condition of such films: "ring/other"."""
    return f"{exchange.name}/{of}"


def exchanged(planes: UInt8Array, donors: UInt8Array, exchange: Nuisance, which: BoolArray | None = None) -> UInt8Array:
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
