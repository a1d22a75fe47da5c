"""Pictures that the gate learns from besides the training films: films somewhat shifted, films spoilt, and drawings.

Every function gives a picture of the shape that it is given, or of (SIDE, SIDE), uint8, and draws from the generator
that it is handed. Nothing here is a picture that somebody took: what packages ship is kept for the tests.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Final

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw

from chestxray.synthetic.anatomy import random_anatomy
from chestxray.synthetic.films import BACTERIA, HEALTHY, VIRUS, draw_film

Pixels = npt.NDArray[np.uint8]
Random = np.random.Generator

SIDE: Final = 64  # pixels: enough for the gate's thumbnail of 24, and quick to turn
WHITE: Final = 255
SYNTHETIC_HEIGHT: Final = 200  # pixels
ROUND: Final = 0.6  # of the things in a heap
ALIKE: Final = 0.3  # of the drawings have two sides alike
BLURRED: Final = 0.4  # ... and so many are blurred
LINES, POLYGON, ELLIPSE, BOX = range(4)  # what a sketch is made of


def _by_chance(rng: Random, share: float) -> bool:
    return bool(rng.random() < share)


def shrunk(plane: Pixels, side: int = SIDE) -> Pixels:
    """A picture of any shape, squeezed to ``side`` x ``side``."""
    return np.asarray(Image.fromarray(np.ascontiguousarray(plane)).resize((side, side), Image.Resampling.BILINEAR))


@cache
def synthetic_films(count: int, seed: int) -> tuple[Pixels, ...]:
    """Drawn chests, healthy and ill by turns."""
    pictures = []
    for number in range(count):
        rng = np.random.default_rng((seed, number))
        cause = (HEALTHY, BACTERIA, VIRUS)[number % 3]
        width = round(SYNTHETIC_HEIGHT * rng.uniform(1.0, 1.5))
        film = draw_film(random_anatomy(rng), cause, rng, height=SYNTHETIC_HEIGHT, width=width)
        pictures.append(shrunk(film.pixels))
    return tuple(pictures)


# --------------------------------------------------------------------------- still chest films


def perturbed(film: Pixels, rng: Random) -> Pixels:
    """As another scanner, another child or another radiographer might have made it."""
    moved = _moved(
        film,
        rng.uniform(-14, 14),
        rng.uniform(0.86, 1.3) * np.exp(rng.uniform(-0.1, 0.1, 2)),
        rng.uniform(-0.06, 0.06, 2),
    )
    levels = (np.arange(WHITE + 1) / WHITE) ** np.exp(rng.uniform(-0.55, 0.55))
    levels = levels * rng.uniform(0.7, 1.2) + rng.uniform(-0.12, 0.12)
    exposed: Pixels = (levels.clip(0.0, 1.0) * WHITE).astype(np.uint8)[moved]
    if _by_chance(rng, 0.3):
        exposed = shrunk(shrunk(exposed, int(rng.integers(14, 40))))
    return exposed[:, ::-1] if _by_chance(rng, 0.5) else exposed  # a heart on the right is a chest too


def _moved(film: Pixels, degrees: float, zoom: npt.ArrayLike = (1.0, 1.0), move: npt.ArrayLike = (0.0, 0.0)) -> Pixels:
    """Turned about its middle, enlarged along each axis, and moved by a share of its side; black comes in."""
    height, width = film.shape
    cosine, sine = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
    matrix = np.array([[cosine, sine], [-sine, cosine]]) / np.asarray(zoom)[:, None]
    middle = np.array([width / 2, height / 2])
    origin = middle + np.asarray(move) * (width, height) - matrix @ middle
    terms = (*matrix[0], origin[0], *matrix[1], origin[1])
    return np.asarray(
        Image.fromarray(film).transform((width, height), Image.Transform.AFFINE, terms, Image.Resampling.BILINEAR)
    )


# --------------------------------------------------------------------------- films spoilt


def _tilted(film: Pixels, rng: Random) -> Pixels:
    return _moved(film, rng.choice((-1, 1)) * rng.uniform(40, 65))


def _cut(film: Pixels, rng: Random) -> Pixels:
    """A part of a chest, too small to be one."""
    side = int(SIDE * rng.uniform(0.2, 0.45))
    top, left = rng.integers(0, SIDE - side + 1, 2)
    return shrunk(film[top : top + side, left : left + side])


def _strip(film: Pixels, rng: Random) -> Pixels:
    """The whole breadth or height, but little of the other."""
    side = int(SIDE * rng.uniform(0.15, 0.4))
    start = rng.integers(0, SIDE - side + 1)
    return shrunk(film[start : start + side] if _by_chance(rng, 0.5) else film[:, start : start + side])


def _on_a_page(film: Pixels, rng: Random) -> Pixels:
    """A small film on a large page, or four of them."""
    small = shrunk(film, SIDE // 2)
    if _by_chance(rng, 0.3):
        return np.tile(small, (2, 2))
    page = np.full((SIDE, SIDE), rng.choice((0, WHITE)), dtype=np.uint8)
    top, left = rng.integers(0, SIDE // 2 + 1, 2)
    page[top : top + SIDE // 2, left : left + SIDE // 2] = small
    return page


Spoiling = Callable[[Pixels, Random], Pixels]

# What may have happened to a chest film, by the name of its kind; each kind's ways by turns.
SPOILT: Final[dict[str, tuple[Spoiling, ...]]] = {
    "turned films": (
        lambda film, _: np.rot90(film, 1),
        lambda film, _: np.rot90(film, 2),
        lambda film, _: np.rot90(film, 3),
        lambda film, _: film[::-1],
        _tilted,
    ),
    "negatives": (
        lambda film, _: WHITE - film,
        lambda film, rng: np.rot90(WHITE - film, int(rng.integers(1, 4))),
    ),
    "cut or small films": (_cut, _strip, _on_a_page),
}


# --------------------------------------------------------------------------- drawings


def _heap(rng: Random) -> Pixels:
    """Things that hide each other, as in a photograph: the dead leaves model.

    Source: Lee, Mumford and Huang, "Occlusion models for natural images", IJCV 41 (2001).
    """
    picture = Image.new("L", (SIDE, SIDE), int(rng.integers(0, 256)))
    pen = ImageDraw.Draw(picture)
    count = int(rng.integers(20, 160))
    for x, y in rng.uniform(-6, SIDE + 6, (count, 2)).tolist():
        across = 1.4 / (rng.random() + 0.03)
        down, grey = across * rng.uniform(0.3, 2.0), int(rng.integers(0, 256))
        outline = pen.ellipse if _by_chance(rng, ROUND) else pen.rectangle
        outline((x - across, y - down, x + across, y + down), fill=grey)
    return np.asarray(picture)


def _cloud(rng: Random) -> Pixels:
    """Noise, from white to very smooth, as in textures."""
    frequency = np.hypot(*np.meshgrid(np.fft.fftfreq(SIDE), np.fft.fftfreq(SIDE)))
    frequency[0, 0] = 1.0
    spectrum = np.fft.fft2(rng.normal(size=(SIDE, SIDE))) / frequency ** rng.uniform(0.0, 2.2)
    field = np.fft.ifft2(spectrum).real
    levels = 128 + (field - field.mean()) / field.std() * rng.uniform(25, 70)
    picture: Pixels = levels.clip(0, WHITE).astype(np.uint8)
    return picture


def _page(rng: Random) -> Pixels:
    """Lines of words."""
    paper, ink = (WHITE, int(rng.integers(0, 90))) if _by_chance(rng, 0.7) else (int(rng.integers(0, 60)), WHITE)
    picture = Image.new("L", (SIDE, SIDE), paper)
    pen = ImageDraw.Draw(picture)
    step, y = rng.uniform(3, 8), rng.uniform(2, 8)
    while y < SIDE - 3:
        x, end = rng.uniform(1, 7), SIDE * rng.uniform(0.6, 1.0)
        while x < end:
            length = rng.uniform(1, 7)
            pen.rectangle((x, y, x + length, y + step * 0.45), fill=ink)
            x += length + rng.uniform(0.5, 2)
        y += step
    return np.asarray(picture)


def _sketch(rng: Random) -> Pixels:
    """A few lines, polygons, ellipses and boxes."""
    picture = Image.new("L", (SIDE, SIDE), int(rng.choice((0, WHITE, int(rng.integers(0, 256))))))
    pen = ImageDraw.Draw(picture)
    for kind in rng.integers(0, BOX + 1, int(rng.integers(1, 12))):
        points = rng.uniform(0, SIDE, (4, 2))
        corners = (*points[:2].min(axis=0), *points[:2].max(axis=0))
        grey, width = int(rng.integers(0, 256)), int(rng.integers(1, 6))
        if kind == LINES:
            pen.line([tuple(point) for point in points], fill=grey, width=width)
        elif kind == POLYGON:
            pen.polygon([tuple(point) for point in points], fill=grey)
        elif kind == ELLIPSE:
            pen.ellipse(corners, outline=grey, width=width)
        else:
            pen.rectangle(corners, fill=grey)
    return np.asarray(picture)


def _section(rng: Random) -> Pixels:
    """A bright oval with things inside on black, as in computed tomography, magnetic resonance or of a head."""
    down, across = np.mgrid[-1 : 1 : SIDE * 1j, -1 : 1 : SIDE * 1j]
    turn, (right, below) = rng.uniform(0, np.pi), rng.uniform(-0.15, 0.15, 2)
    along = (across - right) * np.cos(turn) + (down - below) * np.sin(turn)
    aside = (down - below) * np.cos(turn) - (across - right) * np.sin(turn)
    radius = np.hypot(along / rng.uniform(0.45, 0.95), aside / rng.uniform(0.45, 0.95))
    levels = np.where(radius < 1, rng.uniform(0.3, 0.8), 0.0)
    if _by_chance(rng, 0.5):
        levels[(radius < 1) & (radius > rng.uniform(0.8, 0.95))] = rng.uniform(0.5, 1.0)
    for _ in range(int(rng.integers(0, 9))):
        (right, below), (a, b) = rng.uniform(-0.5, 0.5, 2), rng.uniform(0.05, 0.35, 2)
        inside = ((across - right) / a) ** 2 + ((down - below) / b) ** 2 < 1
        levels[inside & (radius < 1)] = rng.uniform(0, 1)
    levels += rng.normal(size=levels.shape) * rng.uniform(0, 0.08)
    picture = (levels.clip(0, 1) * WHITE).astype(np.uint8)
    return shrunk(shrunk(picture, SIDE // 3)) if _by_chance(rng, 0.4) else picture


def _ramp(rng: Random) -> Pixels:
    """Grey levels that rise across, outwards, or in waves."""
    down, across = np.mgrid[-1 : 1 : SIDE * 1j, -1 : 1 : SIDE * 1j]
    turn = rng.uniform(0, 2 * np.pi)
    straight = across * np.cos(turn) + down * np.sin(turn)
    outwards = np.hypot(across - rng.uniform(-0.5, 0.5), down - rng.uniform(-0.5, 0.5)) * rng.choice((-1, 1))
    levels = (straight, outwards, np.sin(straight * rng.uniform(2, 30)))[rng.integers(0, 3)]
    levels = (levels - levels.min()) / np.ptp(levels) * rng.uniform(0.3, 1.0)
    picture: Pixels = (levels * WHITE).astype(np.uint8)
    return picture


# By turns; those named twice are the most varied.
DRAWN: Final[tuple[Callable[[Random], Pixels], ...]] = (
    _heap,
    _section,
    _cloud,
    _page,
    _sketch,
    _heap,
    _section,
    _ramp,
)
DRAWINGS: Final = "drawn pictures"


def drawing(number: int, rng: Random) -> Pixels:
    """Of the kind whose turn it is; some with two sides alike, as faces and things have, and some out of focus."""
    picture = DRAWN[number % len(DRAWN)](rng)
    if _by_chance(rng, ALIKE):
        half = picture[:, : SIDE // 2]
        picture = np.concatenate([half, half[:, ::-1]], axis=1)
    return shrunk(shrunk(picture, int(rng.integers(6, 20)))) if _by_chance(rng, BLURRED) else picture
