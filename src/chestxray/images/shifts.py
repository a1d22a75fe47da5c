"""Films as another hospital might have made them: a fixed set of shifts that training does not use.

Films of one hospital agree in things that the next one does differently: framing, resolution, sharpening, the grey
scale. Networks that separate clean validation films perfectly can lose ten points when one of them changes. Each shift
here varies one such thing, in other ways or more strongly than the training augmentation, and always by the same amount
for the same film, so that the figures of two networks can be compared.

The shifts work on the network's input, uint8 planes of any size.
Sources: Hendrycks and Dietterich, "Benchmarking neural network robustness to common corruptions", ICLR (2019),
for the idea of fixed severities; Geirhos et al., "Shortcut learning in deep neural networks", Nature Machine
Intelligence 2 (2020).
"""

from __future__ import annotations

import io
import math
from collections.abc import Callable, Sequence
from typing import Final, NamedTuple

import numpy as np
from PIL import Image, ImageDraw, ImageFilter, ImageOps

from chestxray.arrays import UInt8Array

Picture = Image.Image
Random = np.random.Generator

WHITE: Final = 255


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


def _affine(film: Picture, rows: tuple[float, float, float, float], shift: tuple[float, float] = (0.0, 0.0)) -> Picture:
    """Resample about the centre; pixels from outside are black.

    Args:
        film: the picture.
        rows: the 2 x 2 matrix from places in the result to places in ``film``, row by row.
        shift: added to those places, as fractions of the width and the height.
    """
    a, b, d, e = rows
    across, down = (film.width - 1) / 2, (film.height - 1) / 2
    c = across - a * across - b * down + shift[0] * film.width
    f = down - d * across - e * down + shift[1] * film.height
    return film.transform(film.size, Image.Transform.AFFINE, (a, b, c, d, e, f), Image.Resampling.BICUBIC)


def _rotated(film: Picture, random: Random) -> Picture:
    angle = _sign(random) * math.radians(15)
    square = film.width / film.height
    cosine, sine = math.cos(angle), math.sin(angle)
    return _affine(film, (cosine, -sine * square, sine / square, cosine))


def _closer(film: Picture, _random: Random) -> Picture:
    return _affine(film, (1 / 1.3, 0.0, 0.0, 1 / 1.3))


def _farther(film: Picture, _random: Random) -> Picture:
    return _affine(film, (1.3, 0.0, 0.0, 1.3))


def _stretched(film: Picture, random: Random) -> Picture:
    across = 1.25 if random.random() < 0.5 else 1 / 1.25  # noqa: PLR2004
    return _affine(film, (math.sqrt(across), 0.0, 0.0, 1 / math.sqrt(across)))


def _cropped(film: Picture, random: Random) -> Picture:
    """Cut a sixth of each axis off, at one corner or another."""
    width, height = round(film.width * 5 / 6), round(film.height * 5 / 6)
    left = 0 if random.random() < 0.5 else film.width - width  # noqa: PLR2004
    top = 0 if random.random() < 0.5 else film.height - height  # noqa: PLR2004
    return film.resize(film.size, Image.Resampling.BICUBIC, box=(left, top, left + width, top + height))


def _coarse(film: Picture, _random: Random) -> Picture:
    small = film.resize((round(film.width * 0.28), round(film.height * 0.28)), Image.Resampling.BOX)
    return small.resize(film.size, Image.Resampling.BICUBIC)


def _blurred(film: Picture, _random: Random) -> Picture:
    return film.filter(ImageFilter.GaussianBlur(film.height / 100))


def _sharpened(film: Picture, _random: Random) -> Picture:
    return film.filter(ImageFilter.UnsharpMask(radius=film.height / 64, percent=130, threshold=0))


def _bent(film: Picture, exponent: float) -> Picture:
    return film.point([round(WHITE * (level / WHITE) ** exponent) for level in range(WHITE + 1)])


def _brighter(film: Picture, _random: Random) -> Picture:
    return _bent(film, 0.55)


def _darker(film: Picture, _random: Random) -> Picture:
    return _bent(film, 1.9)


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
    Shift("closer", "enlarged by 30%", _closer),
    Shift("farther", "reduced by 30%", _farther),
    Shift("stretched", "one axis by 25% against the other", _stretched),
    Shift("cropped", "a sixth of each axis lost at a corner", _cropped),
    Shift("coarse", "28% of the pixels a side", _coarse),
    Shift("blurred", "Gaussian, 1% of the height", _blurred),
    Shift("sharpened", "unsharp mask, 130%", _sharpened),
    Shift("brighter", "gamma 0.55", _brighter),
    Shift("darker", "gamma 1.9", _darker),
    Shift("exposed", "gain 1.35 or 0.65 with clipping", _exposed),
    Shift("equalised", "70% of a histogram equalisation", _equalised),
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
