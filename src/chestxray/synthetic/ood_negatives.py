"""Training pictures of the gate besides the training films: films slightly shifted, films spoilt, and drawings.

Every function returns a picture of its argument's shape, or of (SIDE, SIDE), uint8, and takes the random generator as
an argument. No photograph is used here: photographs in packages are reserved for the tests.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from itertools import pairwise
from typing import Final

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw

from chestxray.arrays import Float64Array, Random, UInt8Array
from chestxray.images import WHITE
from chestxray.images.shifts import low_frequencies, ring
from chestxray.synthetic.anatomy import random_anatomy
from chestxray.synthetic.films import BACTERIA, HEALTHY, VIRUS, draw_film

TILE: Final = 64  # pixels: enough for the gate's thumbnail of 24, and fast to rotate
SYNTHETIC_HEIGHT: Final = 200  # pixels
# probability of taking another film's exposure, and of taking its low frequencies; half of it for the edges
EXCHANGE_PROBABILITY: Final = 0.5
INNER: Final = 0.9  # of the radius: the inner part, which holds the organs in a slice of a body
ROUND: Final = 0.6  # of the objects in a heap
ALIKE: Final = 0.3  # of the drawings are symmetrical
BLURRED: Final = 0.4  # ... and this fraction is blurred
LINES, POLYGON, ELLIPSE, BOX = range(4)  # the elements of a sketch


def _with_probability(rng: Random, share: float) -> bool:
    return bool(rng.random() < share)


def shrunk(plane: UInt8Array, side: int = TILE) -> UInt8Array:
    """Return a picture of any shape, squeezed to ``side`` x ``side``."""
    return np.asarray(Image.fromarray(np.ascontiguousarray(plane)).resize((side, side), Image.Resampling.BILINEAR))


@cache
def synthetic_films(count: int, seed: int) -> tuple[UInt8Array, ...]:
    """Return synthetic films, healthy and ill in turn."""
    pictures = []
    for number in range(count):
        rng = np.random.default_rng((seed, number))
        cause = (HEALTHY, BACTERIA, VIRUS)[number % 3]
        width = round(SYNTHETIC_HEIGHT * rng.uniform(1.0, 1.5))
        film = draw_film(random_anatomy(rng), cause, rng, height=SYNTHETIC_HEIGHT, width=width)
        pictures.append(shrunk(film.pixels))
    return tuple(pictures)


# --------------------------------------------------------------------------- still chest films


def perturbed(film: UInt8Array, rng: Random) -> UInt8Array:
    """Return the film as another scanner, another child or another radiographer might have made it."""
    moved = _moved(
        film,
        rng.uniform(-14, 14),
        rng.uniform(0.86, 1.3) * np.exp(rng.uniform(-0.1, 0.1, 2)),
        rng.uniform(-0.06, 0.06, 2),
    )
    levels = (np.arange(WHITE + 1) / WHITE) ** np.exp(rng.uniform(-0.55, 0.55))
    levels = levels * rng.uniform(0.7, 1.2) + rng.uniform(-0.12, 0.12)
    exposed: UInt8Array = (levels.clip(0.0, 1.0) * WHITE).astype(np.uint8)[moved]
    if _with_probability(rng, 0.3):
        exposed = shrunk(shrunk(exposed, int(rng.integers(14, 40))))
    return exposed[:, ::-1] if _with_probability(rng, 0.5) else exposed  # a heart on the right is a chest too


def with_acquisition_of(film: UInt8Array, donor: UInt8Array, rng: Random) -> UInt8Array:
    """Return a film with low frequencies, grey levels or edges of another unit's film, each by chance.

    Without this the fit tells collections apart by their exposure and their borders, and not patients by their bodies:
    of adult films with properties of children's films it then refused 38%, and with it 97%.
    """
    if _with_probability(rng, EXCHANGE_PROBABILITY):
        film = low_frequencies(film, donor, rng.uniform(1.0, 4.0))
    if _with_probability(rng, EXCHANGE_PROBABILITY):
        film = _with_grey_levels(film, donor)
    if _with_probability(rng, EXCHANGE_PROBABILITY / 2):
        film = ring(film, donor, rng.uniform(0.02, 0.12))
    return film


def _with_grey_levels(film: UInt8Array, donor: UInt8Array) -> UInt8Array:
    """Return the film with the donor's histogram."""
    order = np.empty(film.size, np.uint8)
    order[np.argsort(film, axis=None, kind="stable")] = np.sort(donor, axis=None)
    means = np.bincount(film.ravel(), order, WHITE + 1) / np.maximum(np.bincount(film.ravel(), minlength=WHITE + 1), 1)
    matched: UInt8Array = means.round().astype(np.uint8)[film]
    return matched


def _moved(
    film: UInt8Array, degrees: float, zoom: npt.ArrayLike = (1.0, 1.0), move: npt.ArrayLike = (0.0, 0.0)
) -> UInt8Array:
    """Rotate a film about its middle, enlarge it by axis, and move it by a fraction of its side; fill with black."""
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


def _tilted(film: UInt8Array, rng: Random) -> UInt8Array:
    return _moved(film, rng.choice((-1, 1)) * rng.uniform(40, 65))


def _cut(film: UInt8Array, rng: Random) -> UInt8Array:
    """Return a part of a chest, too small to count as one."""
    side = int(TILE * rng.uniform(0.2, 0.45))
    top, left = rng.integers(0, TILE - side + 1, 2)
    return shrunk(film[top : top + side, left : left + side])


def _strip(film: UInt8Array, rng: Random) -> UInt8Array:
    """Return the whole width or height, but little of the other."""
    side = int(TILE * rng.uniform(0.15, 0.4))
    start = rng.integers(0, TILE - side + 1)
    return shrunk(film[start : start + side] if _with_probability(rng, 0.5) else film[:, start : start + side])


def _on_a_page(film: UInt8Array, rng: Random) -> UInt8Array:
    """Return a small film on a large page, or four of them."""
    small = shrunk(film, TILE // 2)
    if _with_probability(rng, 0.3):
        return np.tile(small, (2, 2))
    page = np.full((TILE, TILE), rng.choice((0, WHITE)), dtype=np.uint8)
    top, left = rng.integers(0, TILE // 2 + 1, 2)
    page[top : top + TILE // 2, left : left + TILE // 2] = small
    return page


def _two_films(film: UInt8Array, rng: Random) -> UInt8Array:
    """Return two films beside or above each other: the second is another exposure of the same, or its mirror image."""
    other = film[:, ::-1] if _with_probability(rng, 0.5) else _moved(film, rng.uniform(-8, 8))
    gap = int(rng.integers(0, 4))
    pair = np.full((TILE, 2 * TILE + gap), rng.choice((0, WHITE)), dtype=np.uint8)
    pair[:, :TILE], pair[:, TILE + gap :] = film, other
    return shrunk(pair if _with_probability(rng, 0.7) else np.concatenate([film, other], axis=0))


def _screenshot(film: UInt8Array, rng: Random) -> UInt8Array:
    """Return a film within a program's window: bars, buttons and lines of words around it."""
    side = int(TILE * rng.uniform(0.5, 0.8))
    page = np.full((TILE, TILE), int(rng.choice((0, 30, 60, 200, 240, WHITE))), dtype=np.uint8)
    picture = Image.fromarray(page)
    pen = ImageDraw.Draw(picture)
    ink = int(rng.integers(100, 256)) if page[0, 0] < WHITE // 2 else int(rng.integers(0, 120))
    for _ in range(int(rng.integers(4, 14))):
        x, y = rng.uniform(0, TILE, 2)
        pen.rectangle((x, y, x + rng.uniform(3, 20), y + rng.uniform(1, 4)), fill=ink)
    top, left = (int(rng.integers(0, TILE - side + 1)) for _ in range(2))
    page = np.array(picture)
    page[top : top + side, left : left + side] = shrunk(film, side)
    return page


def _phone_picture(film: UInt8Array, rng: Random) -> UInt8Array:
    """Return a film on a light box or a screen, photographed from the side: edges, glare and slant."""
    inset = rng.uniform(0.04, 0.3, 8) * TILE * (1, 1, 1, -1, -1, -1, -1, 1)
    corners = inset + np.array([0, 0, 0, TILE, TILE, TILE, TILE, 0])
    around = np.full((TILE, TILE), int(rng.integers(0, 256)), dtype=np.uint8)
    wide = np.array(Image.fromarray(around).resize((2 * TILE, 2 * TILE)))
    wide[TILE // 2 : TILE // 2 + TILE, TILE // 2 : TILE // 2 + TILE] = film
    source = TILE / 2 - (corners - np.array([0, 0, 0, TILE, TILE, TILE, TILE, 0]))
    quad = source + np.array([0, 0, 0, TILE, TILE, TILE, TILE, 0])
    seen = Image.fromarray(wide).transform((TILE, TILE), Image.Transform.QUAD, tuple(quad), Image.Resampling.BILINEAR)
    down, across = np.mgrid[-1 : 1 : TILE * 1j, -1 : 1 : TILE * 1j]
    spot = np.exp(-(((across - rng.uniform(-1, 1)) ** 2 + (down - rng.uniform(-1, 1)) ** 2) / rng.uniform(0.05, 0.6)))
    lit: UInt8Array = (
        (np.asarray(seen) * rng.uniform(0.6, 1.0) + spot * rng.uniform(0, 160)).clip(0, WHITE).astype(np.uint8)
    )
    return lit


def _lateral(film: UInt8Array, rng: Random) -> UInt8Array:
    """Return a lateral chest, made of the halves of a frontal one: both lungs over each other, the spine behind.

    The heart is in front and below, the shoulders above; vertebrae are steps along the spine.
    """
    middle = int(TILE * rng.uniform(0.42, 0.58))
    halves = [film[:, :middle][:, ::-1], film[:, middle:]]
    near, far = (shrunk(half[:, : int(half.shape[1] * rng.uniform(0.75, 1.0))]).astype(float) for half in halves)
    share = rng.uniform(0.0, 1.0)
    body = share * near + (1 - share) * far
    down, across = np.mgrid[0 : 1 : TILE * 1j, 0 : 1 : TILE * 1j]
    at, steps = rng.uniform(0.08, 0.3), rng.uniform(9, 15)
    slant = at + rng.uniform(-0.12, 0.12) * (down - 0.5) + rng.uniform(-0.2, 0.2) * (down - 0.5) ** 2
    spine = np.exp(-(((across - slant) / rng.uniform(0.05, 0.1)) ** 2))
    body += spine * (rng.uniform(10, 60) + rng.uniform(0, 30) * np.sin(2 * np.pi * steps * down))
    heart = ((across - rng.uniform(0.55, 0.75)) / rng.uniform(0.16, 0.28)) ** 2 + (
        (down - rng.uniform(0.55, 0.72)) / rng.uniform(0.14, 0.24)
    ) ** 2
    body += rng.uniform(20, 80) / (1 + np.exp(8 * (heart - 1)))
    dome = rng.uniform(0.72, 0.92) + rng.uniform(0.1, 0.5) * (across - rng.uniform(0.4, 0.7)) ** 2
    body += rng.uniform(30, 110) / (1 + np.exp(-40 * (down - dome)))
    arms = rng.uniform(0.05, 0.22) + rng.uniform(-0.15, 0.15) * (across - 0.5)
    body += rng.uniform(20, 100) / (1 + np.exp(30 * (down - arms)))
    front = rng.uniform(0.86, 1.0) - rng.uniform(0.0, 0.15) * (down - 0.5)
    body *= 1 - rng.uniform(0.5, 1.0) / (1 + np.exp(-60 * (across - front)))
    lateral: UInt8Array = body.clip(0, WHITE).astype(np.uint8)
    return lateral[:, ::-1] if _with_probability(rng, 0.5) else lateral


def _oblique(film: UInt8Array, rng: Random) -> UInt8Array:
    """Return a chest turned so far that its spine is near one side: one lung wide, the other narrow."""
    place = int(TILE * rng.uniform(0.16, 0.27))
    half = TILE // 2
    narrow = Image.fromarray(np.ascontiguousarray(film[:, :half])).resize((place, TILE), Image.Resampling.BILINEAR)
    wide = Image.fromarray(np.ascontiguousarray(film[:, half:])).resize((TILE - place, TILE), Image.Resampling.BILINEAR)
    turned = np.concatenate([np.asarray(narrow), np.asarray(wide)], axis=1)
    return turned[:, ::-1] if _with_probability(rng, 0.5) else turned


Spoiling = Callable[[UInt8Array, Random], UInt8Array]

# Ways of spoiling a chest film, by the name of their kind; the ways of each kind are used in turn.
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
    "two films on one picture": (_two_films,),
    "screenshots": (_screenshot,),
    "phone pictures": (_phone_picture,),
    "lateral views": (_lateral,),
    "oblique views": (_oblique,),
}


# --------------------------------------------------------------------------- drawings


def _heap(rng: Random) -> UInt8Array:
    """Draw objects that hide each other, as in a photograph: the dead leaves model.

    Source: Lee, Mumford and Huang, "Occlusion models for natural images", IJCV 41 (2001).
    """
    picture = Image.new("L", (TILE, TILE), int(rng.integers(0, 256)))
    pen = ImageDraw.Draw(picture)
    count = int(rng.integers(20, 160))
    for x, y in rng.uniform(-6, TILE + 6, (count, 2)).tolist():
        across = 1.4 / (rng.random() + 0.03)
        down, grey = across * rng.uniform(0.3, 2.0), int(rng.integers(0, 256))
        outline = pen.ellipse if _with_probability(rng, ROUND) else pen.rectangle
        outline((x - across, y - down, x + across, y + down), fill=grey)
    return np.asarray(picture)


def _cloud(rng: Random) -> UInt8Array:
    """Draw noise, from white to very smooth, as in textures."""
    frequency = np.hypot(*np.meshgrid(np.fft.fftfreq(TILE), np.fft.fftfreq(TILE)))
    frequency[0, 0] = 1.0
    spectrum = np.fft.fft2(rng.normal(size=(TILE, TILE))) / frequency ** rng.uniform(0.0, 2.2)
    field = np.fft.ifft2(spectrum).real
    levels = 128 + (field - field.mean()) / field.std() * rng.uniform(25, 70)
    picture: UInt8Array = levels.clip(0, WHITE).astype(np.uint8)
    return picture


def _page(rng: Random) -> UInt8Array:
    """Draw lines of words."""
    paper, ink = (WHITE, int(rng.integers(0, 90))) if _with_probability(rng, 0.7) else (int(rng.integers(0, 60)), WHITE)
    picture = Image.new("L", (TILE, TILE), paper)
    pen = ImageDraw.Draw(picture)
    step, y = rng.uniform(3, 8), rng.uniform(2, 8)
    while y < TILE - 3:
        x, end = rng.uniform(1, 7), TILE * rng.uniform(0.6, 1.0)
        while x < end:
            length = rng.uniform(1, 7)
            pen.rectangle((x, y, x + length, y + step * 0.45), fill=ink)
            x += length + rng.uniform(0.5, 2)
        y += step
    return np.asarray(picture)


def _sketch(rng: Random) -> UInt8Array:
    """Draw a few lines, polygons, ellipses and boxes."""
    picture = Image.new("L", (TILE, TILE), int(rng.choice((0, WHITE, int(rng.integers(0, 256))))))
    pen = ImageDraw.Draw(picture)
    for kind in rng.integers(0, BOX + 1, int(rng.integers(1, 12))):
        points = rng.uniform(0, TILE, (4, 2))
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


def _section(rng: Random) -> UInt8Array:
    """Draw a bright oval with objects inside on black, as in tomography, magnetic resonance or a skull film."""
    down, across = np.mgrid[-1 : 1 : TILE * 1j, -1 : 1 : TILE * 1j]
    turn, (right, below) = rng.uniform(0, np.pi), rng.uniform(-0.15, 0.15, 2)
    along = (across - right) * np.cos(turn) + (down - below) * np.sin(turn)
    aside = (down - below) * np.cos(turn) - (across - right) * np.sin(turn)
    radius = np.hypot(along / rng.uniform(0.45, 0.95), aside / rng.uniform(0.45, 0.95))
    levels = np.where(radius < 1, rng.uniform(0.3, 0.8), 0.0)
    if _with_probability(rng, 0.5):
        levels[(radius < 1) & (radius > rng.uniform(0.8, 0.95))] = rng.uniform(0.5, 1.0)
    for _ in range(int(rng.integers(0, 9))):
        (right, below), (a, b) = rng.uniform(-0.5, 0.5, 2), rng.uniform(0.05, 0.35, 2)
        inside = ((across - right) / a) ** 2 + ((down - below) / b) ** 2 < 1
        levels[inside & (radius < 1)] = rng.uniform(0, 1)
    levels += rng.normal(size=levels.shape) * rng.uniform(0, 0.08)
    picture = (levels.clip(0, 1) * WHITE).astype(np.uint8)
    return shrunk(shrunk(picture, TILE // 3)) if _with_probability(rng, 0.4) else picture


def _axial(rng: Random) -> UInt8Array:
    """Draw a slice through a chest: an oval body, two dark lungs, ribs, a vertebra, a heart between."""
    down, across = np.mgrid[-1 : 1 : TILE * 1j, -1 : 1 : TILE * 1j]
    wide, high, below = rng.uniform(0.65, 0.98), rng.uniform(0.42, 0.8), rng.uniform(-0.15, 0.15)
    down = down - below
    radius = np.hypot(across / wide, down / high)
    tissue = rng.uniform(0.35, 0.7)
    levels = np.where(radius < 1, tissue, rng.choice((0.0, 0.0, 0.1)))
    levels[(radius < 1) & (radius > rng.uniform(0.82, 0.95))] = tissue * rng.uniform(0.4, 0.9)
    dark, asymmetry = rng.uniform(0.0, 0.25), rng.uniform(0.8, 1.2)
    for side, size in ((-1, 1.0), (1, asymmetry)):
        a, b = wide * rng.uniform(0.28, 0.4) * size, high * rng.uniform(0.5, 0.75)
        lung = ((across - side * wide * rng.uniform(0.4, 0.5)) / a) ** 2 + ((down - rng.uniform(-0.1, 0.1)) / b) ** 2
        levels[lung < 1] = dark
        vessels = rng.random(levels.shape) < rng.uniform(0, 0.15)
        levels[(lung < INNER) & vessels] += rng.uniform(0.1, 0.6)
    heart = ((across - rng.uniform(-0.05, 0.25)) / rng.uniform(0.2, 0.35)) ** 2 + (
        (down + rng.uniform(-0.05, 0.2)) / rng.uniform(0.2, 0.35)
    ) ** 2
    levels[(heart < 1) & (radius < INNER)] = tissue * rng.uniform(0.9, 1.3)
    vertebra = (across / rng.uniform(0.09, 0.16)) ** 2 + ((down - high * 0.62) / rng.uniform(0.1, 0.18)) ** 2
    levels[vertebra < 1] = rng.uniform(0.7, 1.0)
    for turn in np.linspace(0, 2 * np.pi, int(rng.integers(8, 17)), endpoint=False) + rng.uniform(0, 0.5):
        x, y = 0.86 * wide * np.cos(turn), 0.86 * high * np.sin(turn)
        levels[np.hypot(across - x, (down - y) * 1.5) < rng.uniform(0.03, 0.08)] = rng.uniform(0.7, 1.0)
    if _with_probability(rng, 0.4):  # the table
        levels[np.abs(down - high - 0.06) < rng.uniform(0.01, 0.03)] = rng.uniform(0.3, 0.7)
    levels = levels + rng.normal(size=levels.shape) * rng.uniform(0, 0.06)
    picture: UInt8Array = (levels.clip(0, 1) * WHITE).astype(np.uint8)
    return picture


def _capsule(pen: ImageDraw.ImageDraw, ends: Float64Array, width: float, grey: int) -> None:
    pen.line([tuple(end) for end in ends], fill=grey, width=max(1, round(width)))
    for x, y in ends:
        pen.ellipse((x - width / 2, y - width / 2, x + width / 2, y + width / 2), fill=grey)


_FINE: Final = 4  # times SIDE: the size at which bones are drawn
_JOINTS: Final = np.array([[0.115], [0.52], [0.83], [1.035], [1.15]])  # of a ray: where its bones meet


def _bone(pen: ImageDraw.ImageDraw, ends: Float64Array, width: float, rng: Random) -> None:
    """Draw one long bone: bright shell, darker marrow, thick ends."""
    shell = int(rng.integers(170, 256))
    _capsule(pen, ends, width, shell)
    _capsule(pen, ends, width * 0.45, int(shell * rng.uniform(0.6, 0.9)))
    for x, y in ends:
        wide = width * rng.uniform(0.6, 0.9)
        pen.ellipse((x - wide, y - wide, x + wide, y + wide), fill=int(shell * rng.uniform(0.75, 1.0)))


def _hand(rng: Random) -> UInt8Array:
    """Draw a hand from above: five rays of bones in soft tissue, a palm and a wrist, turned at random."""
    side = TILE * _FINE
    picture = Image.new("L", (side, side), int(rng.integers(0, 50)))
    pen = ImageDraw.Draw(picture)
    tissue = int(rng.integers(60, 140))
    palm, scale = np.array([side / 2, side * rng.uniform(0.58, 0.68)]), side * rng.uniform(0.85, 1.1)
    spread = rng.uniform(0.7, 1.2)
    down = np.array([0, scale])
    _capsule(pen, palm + down * [[0], [0.6]], scale * 0.24, tissue)
    _capsule(pen, palm + down * [[-0.08], [0.1]], scale * 0.36, tissue)
    rays = []
    for turn, length in zip((-0.95, -0.32, -0.08, 0.16, 0.42), (0.36, 0.5, 0.54, 0.5, 0.4), strict=True):
        angle = turn * spread + rng.normal() * 0.04
        direction = np.array([np.sin(angle), -np.cos(angle)])
        joints = palm + down * 0.1 + direction * scale * length * _JOINTS
        _capsule(pen, joints[[0, -1]], scale * 0.085, tissue)
        rays.append(joints)
    for joints in rays:
        for start, end in pairwise(joints):
            gap = (end - start) * 0.09
            _bone(pen, np.stack([start + gap, end - gap]), scale * rng.uniform(0.025, 0.04), rng)
    for _ in range(int(rng.integers(4, 9))):
        x, y = palm + rng.normal(size=2) * (scale * 0.08, scale * 0.03) + down * 0.1
        size = scale * rng.uniform(0.015, 0.035)
        pen.ellipse((x - size, y - size, x + size, y + size), fill=int(rng.integers(150, 240)))
    for offset in (-0.06, 0.05):
        start = palm + np.array([offset, 0.2]) * scale
        _bone(pen, start + down * [[0], [0.5]], scale * rng.uniform(0.05, 0.08), rng)
    return _laid(picture, rng)


def _limb(rng: Random) -> UInt8Array:
    """Draw a long bone or two, a joint, soft tissue beside them: arm, leg, knee, foot."""
    side = TILE * _FINE
    picture = Image.new("L", (side, side), int(rng.integers(0, 60)))
    pen = ImageDraw.Draw(picture)
    bend = rng.uniform(-0.5, 0.5)
    joint = np.array([0.5, rng.uniform(0.35, 0.65)]) * side
    above = joint - (0, side)
    below = joint + side * np.array([np.sin(bend), np.cos(bend)])
    thick = rng.uniform(0.25, 0.7)
    for end in (above, below):
        _capsule(pen, np.stack([joint, end]), side * thick, int(rng.integers(70, 150)))
    width, two = side * rng.uniform(0.07, 0.18), _with_probability(rng, 0.6)
    for end, double in ((above, False), (below, two)):
        along = end - joint
        aside = np.array([along[1], -along[0]]) * 0.09 * double
        for sign in (-1, 1) if double else (0,):
            start = joint + along * rng.uniform(0.05, 0.09) + sign * aside
            _bone(pen, np.stack([start, end + sign * aside]), width * (0.6 if double else 1.0), rng)
    return _laid(picture, rng)


def _head(rng: Random) -> UInt8Array:
    """Draw a skull or a pelvis: bright rings within soft tissue, with openings."""
    side = TILE * _FINE
    picture = Image.new("L", (side, side), int(rng.integers(0, 60)))
    pen = ImageDraw.Draw(picture)

    def ring(x: float, y: float, across: float, down: float, *, grey: int, line: float) -> None:
        box = tuple(side * edge for edge in (x - across, y - down, x + across, y + down))
        pen.ellipse(box, outline=min(WHITE, grey + 80), width=max(1, round(side * line)), fill=grey)

    grey = int(rng.integers(90, 160))
    if _with_probability(rng, 0.5):
        ring(0.5, 0.45, rng.uniform(0.3, 0.45), rng.uniform(0.36, 0.45), grey=grey, line=rng.uniform(0.01, 0.04))
        ring(rng.uniform(0.45, 0.55), 0.78, 0.22, 0.16, grey=grey, line=0.02)
        for x in (0.38, 0.62):
            ring(x, 0.55, 0.09, 0.07, grey=grey - 50, line=0.015)
    else:
        pen.rectangle((0, 0, side, side), fill=grey - 30)
        for x in (0.27, 0.73):
            ring(x, rng.uniform(0.3, 0.4), 0.2, rng.uniform(0.22, 0.3), grey=grey, line=0.02)
            ring(x * 0.6 + 0.2, 0.72, 0.09, 0.08, grey=grey - 60, line=0.03)
            ring(0.13 if x < 0.5 else 0.87, 0.62, 0.09, 0.09, grey=grey + 40, line=0.02)  # noqa: PLR2004 - the middle
        _bone(pen, np.array([[0.5, -0.1], [0.5, 0.5]]) * side, side * rng.uniform(0.08, 0.14), rng)
        for x, y in rng.uniform(0.2, 0.8, (int(rng.integers(2, 9)), 2)):
            ring(x, y * 0.5, *rng.uniform(0.02, 0.08, 2), grey=max(0, grey - 60), line=0.005)
    return _laid(picture, rng)


def _laid(picture: Image.Image, rng: Random) -> UInt8Array:
    """Return bones as a detector shows them: turned, enlarged, soft, with grain."""
    small = shrunk(np.asarray(picture.resize((TILE * 2, TILE * 2), Image.Resampling.BOX)))
    laid = _moved(
        small,
        rng.normal() * 35 + 180 * _with_probability(rng, 0.15),
        rng.uniform(0.8, 1.5) * np.ones(2),
        rng.uniform(-0.15, 0.15, 2),
    )
    grain = laid + _cloud(rng).astype(float) * rng.uniform(0, 0.3) + rng.normal(size=laid.shape) * rng.uniform(0, 6)
    levels: UInt8Array = grain.clip(0, WHITE).astype(np.uint8)
    return levels[:, ::-1] if _with_probability(rng, 0.5) else levels


def _ramp(rng: Random) -> UInt8Array:
    """Draw grey levels that rise across, outwards, or in waves."""
    down, across = np.mgrid[-1 : 1 : TILE * 1j, -1 : 1 : TILE * 1j]
    turn = rng.uniform(0, 2 * np.pi)
    straight = across * np.cos(turn) + down * np.sin(turn)
    outwards = np.hypot(across - rng.uniform(-0.5, 0.5), down - rng.uniform(-0.5, 0.5)) * rng.choice((-1, 1))
    levels = (straight, outwards, np.sin(straight * rng.uniform(2, 30)))[rng.integers(0, 3)]
    levels = (levels - levels.min()) / np.ptp(levels) * rng.uniform(0.3, 1.0)
    picture: UInt8Array = (levels * WHITE).astype(np.uint8)
    return picture


# By the name of their kind; used in turn, and those named twice are the most varied.
DRAWN: Final[dict[str, tuple[Callable[[Random], UInt8Array], ...]]] = {
    "photographs, pages and drawings": (_heap, _cloud, _page, _sketch, _heap, _ramp),
    "slices of the body": (_section, _axial),
    "other parts of the body": (_hand, _limb, _head, _hand),
}


def drawing(kind: str, number: int, rng: Random) -> UInt8Array:
    """Draw a picture of a kind, by each of its functions in turn; some are symmetrical like faces, or blurred."""
    ways = DRAWN[kind]
    picture = ways[number % len(ways)](rng)
    if _with_probability(rng, ALIKE):
        half = picture[:, : TILE // 2]
        picture = np.concatenate([half, half[:, ::-1]], axis=1)
    return shrunk(shrunk(picture, int(rng.integers(6, 20)))) if _with_probability(rng, BLURRED) else picture
