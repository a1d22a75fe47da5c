"""A child's chest as sums of thickness: the tissue that the rays pass through at each pixel.

Lengths are in units of the rib cage's greatest half width. x runs from the midline to the patient's left,
which is the right of the film; y runs downwards from the middle of the lungs. Attenuation is 0 in air and
about 1 through the heart. The shapes are chosen by eye, not measured: they look like a chest, nothing more.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final, NamedTuple

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFilter

Field = npt.NDArray[np.floating[Any]]  # float32 at run time; numpy's stubs widen it at every literal
Point = tuple[float, float]

SIDES: Final = (-1, 1)  # the patient's right and left, as signs of x

LUNG_BASE: Final = 0.75  # y of the greatest width
CAGE_HEIGHT: Final = 1.85  # from there up to the top of the rib cage
LUNG_EDGE: Final = 0.5  # a pixel belongs to the lung if more than this fraction of it is lung
VERTEBRA: Final = 0.155  # height of a vertebra with its disc
BRANCHINGS: Final = 4  # number of forks of a vessel on its way to the pleura


@dataclass(frozen=True, slots=True)
class Anatomy:
    """Properties that all films of one patient share. Lengths in half widths of the rib cage.

    Attributes:
        heart: its size, 1 is the mean.
        heart_tilt: radians by which its long axis points down to the patient's left.
        mediastinum: half width of the shadow above the heart.
        thymus: how much wider the thymus makes the shadow, 0 for none.
        domes: y of the top of the diaphragm, right and left; the right one is higher.
        rib_spacing, rib_drop: from rib to rib, and how far a rib falls from the spine to the side.
        rib_phase: where the first rib starts, 0 to 1 of the spacing.
        wall: thickness of the soft tissue outside the ribs.
        fat: attenuation of the whole trunk, 1 is the mean.
        curve: sideways sway of the spine.
        vessels: rows of (x, y, x, y, width), each a segment of the tree of lung vessels.
    """

    heart: float
    heart_tilt: float
    mediastinum: float
    thymus: float
    domes: tuple[float, float]
    rib_spacing: float
    rib_drop: float
    rib_phase: float
    wall: float
    fat: float
    curve: float
    vessels: tuple[tuple[float, float, float, float, float], ...]


@dataclass(frozen=True, slots=True)
class View:
    """The position of the patient on the film.

    Attributes:
        x, y: shape (h, w), the chest coordinates of each pixel.
        unit: pixels to one half width of the rib cage.
        origin: pixel (column, row) of x = y = 0.
        angle: radians by which the patient is turned in the plane of the film.
        elbows: y of the right and the left elbow; the arms are raised or hang.
        breath: how deep the child breathed in, 1 is the mean: the lungs are darker and reach lower.
    """

    x: Field
    y: Field
    unit: float
    origin: Point
    angle: float
    elbows: tuple[float, float]
    breath: float

    def pixel(self, x: float, y: float) -> Point:
        """Return column and row of a place in the chest."""
        cos, sin = np.cos(self.angle), np.sin(self.angle)
        column = self.origin[0] + self.unit * (cos * x - sin * y)
        return float(column), float(self.origin[1] + self.unit * (sin * x + cos * y))


class Chest(NamedTuple):
    """A healthy chest. Each field has the view's shape.

    Attributes:
        attenuation: total attenuation.
        air: attenuation that is missing because the lungs are full of air.
        lungs: share of lung, 0 to 1, with soft edges.
        body: share of body, 0 to 1.
        vessels: the tree of lung vessels, 0 to 1, drawn beyond the lungs too.
    """

    attenuation: Field
    air: Field
    lungs: Field
    body: Field
    vessels: Field


def random_anatomy(rng: np.random.Generator) -> Anatomy:
    """Draw the anatomy of one patient at random."""
    right_dome = rng.normal(0.50, 0.05)
    return Anatomy(
        heart=rng.normal(1.0, 0.06),
        heart_tilt=rng.uniform(0.45, 0.8),
        mediastinum=rng.normal(0.19, 0.015),
        thymus=float(rng.choice((0.0, 0.0, 0.06, 0.12))),
        domes=(right_dome, right_dome + rng.uniform(0.04, 0.12)),
        rib_spacing=rng.normal(0.205, 0.01),
        rib_drop=rng.uniform(0.22, 0.42),
        rib_phase=rng.uniform(0.0, 1.0),
        wall=rng.uniform(0.08, 0.2),
        fat=rng.uniform(0.9, 1.12),
        curve=rng.normal(0.0, 0.025),
        vessels=tuple(_vessel_tree(rng)),
    )


def random_view(rng: np.random.Generator, height: int, width: int) -> View:
    """Draw one pose at random, on a film of that many pixels."""
    unit = min(height / rng.uniform(2.1, 2.5), width / rng.uniform(2.15, 2.5))
    origin = (width * rng.normal(0.5, 0.02), height * rng.normal(0.53, 0.02))
    angle = rng.normal(0.0, 0.035)
    rows, columns = np.mgrid[0:height, 0:width].astype(np.float32)
    across, down = (columns - origin[0]) / unit, (rows - origin[1]) / unit
    cos, sin = np.float32(np.cos(angle)), np.float32(np.sin(angle))
    elbows = (rng.uniform(-1.6, -0.35), rng.uniform(-1.6, -0.35))
    return View(
        cos * across + sin * down, cos * down - sin * across, unit, origin, angle, elbows, rng.uniform(0.9, 1.06)
    )


def chest_of(anatomy: Anatomy, view: View) -> Chest:
    """Return every shadow of a healthy chest."""
    trunk = _trunk(anatomy, view)
    cage = np.sqrt(1 - np.clip((LUNG_BASE - view.y) / CAGE_HEIGHT, 0, 0.985) ** 2)
    outward = np.abs(view.x) / cage  # 0 at the midline, 1 at the ribs' outer edge
    centre = _mediastinum(anatomy, view)
    below = _below_diaphragm(anatomy, view)
    apex = 2.2 * (np.abs(view.x) - np.float32(0.30)) ** 2 - np.float32(1.0)
    inside = smooth((0.955 - outward) / 0.06) * smooth((view.y - apex) / 0.14)
    lungs = inside * (1 - centre) * (1 - below)
    vessels = vessel_shadows(anatomy, view)
    depth = np.sqrt(np.clip(1 - outward * outward, 0, 1))
    air = trunk * lungs * (np.float32(view.breath) * (0.42 + 0.2 * depth))
    attenuation = (
        trunk
        - air
        + 0.07 * centre * smooth((view.y + 1.0) / 0.5)
        + 0.10 * below * smooth((1.08 - outward) / 0.3)
        + 0.16 * vessels * lungs
        + _ribs(anatomy, view, outward)
        + _spine(anatomy, view)
        + _shoulder_bones(view)
        - _airways(view)
    )
    return Chest(np.maximum(attenuation, 0), air, lungs, smooth(trunk / 0.1), vessels)


def smooth(t: Field) -> Field:
    """Return a smooth step: 0 for t <= 0, 1 for t >= 1, a cubic between."""
    t = np.clip(t, 0, 1)
    return t * t * (3 - 2 * t)


def noise_field(rng: np.random.Generator, height: int, width: int, cells: float) -> Field:
    """Return smooth noise of mean 0 and deviation near 1, with about ``cells`` lumps along the longer side."""
    scale = cells / max(height, width)
    small = rng.standard_normal((max(3, round(height * scale)), max(3, round(width * scale))), dtype=np.float32)
    return 1.4 * np.asarray(Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC))


def ellipse(view: View, centre: Point, axes: Point, tilt: float = 0.0) -> Field:
    """Return the distance from the centre, 1 on the ellipse; ``tilt`` in radians, clockwise on the film."""
    cos, sin = np.float32(np.cos(tilt)), np.float32(np.sin(tilt))
    dx, dy = view.x - np.float32(centre[0]), view.y - np.float32(centre[1])
    return _length((cos * dx + sin * dy) / np.float32(axes[0]), (cos * dy - sin * dx) / np.float32(axes[1]))


# --------------------------------------------------------------------------- soft tissue


def _trunk(anatomy: Anatomy, view: View) -> Field:
    """Return trunk, neck, arms and chin, all rounded: the thickness of an ellipse follows a square root."""
    half = 0.98 + anatomy.wall + 0.03 * view.y - (0.34 + anatomy.wall / 2) * smooth((-0.3 - view.y) / 0.75)
    squares = (
        0.78 * smooth((view.y + 1.6) / 0.9) * _round(view.x / half)
    )  # thickness squared, so that unions have no seams
    squares += 0.30 * _round(_distance(view, (0.0, -1.7), (0.0, -0.75)) / 0.36)
    squares += 0.9 * _round(ellipse(view, (0.0, -1.80), (0.55, 0.48)))
    for side, elbow in zip(SIDES, view.elbows, strict=True):
        shoulder = (side * 0.88, -0.62)
        squares += 0.22 * _round(_distance(view, (0.0, -0.8), shoulder) / 0.33)
        squares += 0.20 * _round(_distance(view, shoulder, (side * 1.75, elbow)) / (0.3 + 0.25 * anatomy.wall))
    return np.float32(anatomy.fat * 0.82) * np.sqrt(squares)


def _mediastinum(anatomy: Anatomy, view: View) -> Field:
    """Return heart, great vessels and thymus: the white middle, further to the patient's left."""
    size, half = anatomy.heart, anatomy.mediastinum
    width = half * (1 + anatomy.thymus * 4 * smooth((view.y + 1.0) / 0.4) * smooth((0.1 - view.y) / 0.3))
    column = smooth((width - np.abs(view.x - 0.01)) / 0.07)
    rounds = (
        ellipse(view, (0.20, 0.24), (0.56 * size, 0.38 * size), anatomy.heart_tilt),
        ellipse(view, (-0.06, 0.22), (0.27 * size, 0.42 * size)),  # right atrium
        ellipse(view, (0.13, -0.10), (0.22, 0.30)),  # pulmonary trunk
        ellipse(view, (0.12, -0.40), (0.13, 0.16)),  # aortic knob
    )
    for distance in rounds:
        column = np.maximum(column, smooth((1.06 - distance) / 0.16))
    return column


def _below_diaphragm(anatomy: Anatomy, view: View) -> Field:
    """Return where the abdomen is in the beam: below a dome on each side."""
    edges = []
    for side, top in zip(SIDES, anatomy.domes, strict=True):
        away = view.x * side - np.float32(0.42)  # distance beyond the dome's top, towards the side
        lateral = np.maximum(away, 0)
        edges.append(np.float32(top + 0.5 * (view.breath - 1)) + 0.3 * away * away + 0.6 * lateral * lateral)
    left = smooth(view.x / 0.3 + 0.5)
    return smooth((view.y - edges[0] * (1 - left) - edges[1] * left) / 0.035)


def _airways(view: View) -> Field:
    """Return trachea and main bronchi: air in the midline."""
    lumen = np.maximum(
        _round(_distance(view, (-0.015, -1.6), (-0.02, -0.36)) / 0.055),
        0.6 * _round(_distance(view, (-0.02, -0.36), (-0.2, -0.16)) / 0.045),
    )
    lumen = np.maximum(lumen, 0.6 * _round(_distance(view, (-0.02, -0.36), (0.22, -0.16)) / 0.04))
    shadow: Field = np.float32(0.12) * np.sqrt(lumen)
    return shadow


# --------------------------------------------------------------------------- bones


def _ribs(anatomy: Anatomy, view: View, outward: Field) -> Field:
    """Return all ribs at once: one profile repeated along y, with the curve of the ribs removed.

    A rib leaves the spine level, bends down at the side (``rib_drop``) and comes forward again, lower.
    """
    u = np.minimum(outward, 1.0)
    u2 = u * u
    drop = anatomy.rib_drop
    side_density = 0.62 + 0.34 * u2 * u2 / (0.3 + np.sqrt(1 - u2))  # seen edge on at the side
    cage = smooth((1.0 - outward) / 0.02) * smooth((view.y + 0.98) / 0.3) * smooth((1.15 - view.y) / 0.3)
    # (course along y, slope of that course for the true thickness, weight)
    behind = (-0.10 * u + drop * u2 * u2, -0.10 + 4 * drop * u2 * u, smooth((u - 0.12) / 0.05))
    before = (drop - 0.10 + 0.55 * (1 - u), np.full_like(u, 0.55), 0.45 * smooth((u - 0.5) / 0.25))
    shadow: Field = np.zeros_like(u)
    for course, slope, weight in (behind, before):
        turns = (view.y - course) / anatomy.rib_spacing + anatomy.rib_phase
        off = (turns - np.rint(turns)) * anatomy.rib_spacing / np.sqrt(1 + slope * slope)
        across = np.abs(off) / 0.042
        shadow += weight * smooth((1 - across) / 0.45) * (0.75 + 0.4 * across)  # the cortex is denser
    shadow *= 0.19 * cage * side_density
    return shadow


def _spine(anatomy: Anatomy, view: View) -> Field:
    """Return vertebrae and discs, with pedicles and spinous processes."""
    off = view.x - np.float32(anatomy.curve) * np.sin(2.2 * view.y)
    turns = view.y / VERTEBRA + anatomy.rib_phase
    along = np.abs(turns - np.rint(turns)) * 2  # 0 in the middle of a body, 1 in the disc
    body = smooth((0.115 + 0.012 * along - np.abs(off)) / 0.03)
    bone = (
        0.75 + 0.25 * smooth((0.85 - along) / 0.15) + 0.12 * smooth((along - 0.5) / 0.2) * smooth((0.85 - along) / 0.1)
    )
    pedicles = smooth(1.3 - _length(np.abs(off) - 0.072, along * 0.05) / 0.026)
    process = smooth(1.3 - _length(off, along * 0.06) / 0.022)
    transverse = smooth((0.21 - np.abs(off)) / 0.05) * smooth((0.35 - along) / 0.3)
    shadow: Field = 0.15 * body * bone + 0.05 * pedicles + 0.04 * process + 0.05 * transverse
    return shadow


def _shoulder_bones(view: View) -> Field:
    """Return clavicles, shoulder blades and upper arms."""
    shadow = np.zeros_like(view.x)
    for side, elbow in zip(SIDES, view.elbows, strict=True):
        x = view.x * side
        t = (x - 0.13) / 0.68
        course = -0.66 - 0.16 * t + 0.09 * t * (1 - t) * (1 - 2 * t) * 3
        bone = smooth((0.042 + 0.012 * np.abs(t - 0.5) - np.abs(view.y - course)) / 0.022)
        shadow += 0.17 * bone * smooth(t / 0.04) * smooth((1 - t) / 0.06)
        head = (side * 1.02, -0.68)
        shaft = _distance(view, head, (side * 1.75, elbow)) / 0.075
        shadow += 0.16 * smooth((1 - shaft) / 0.2) * (0.6 + 0.4 * np.minimum(shaft, 1))
        shadow += 0.12 * smooth((1 - ellipse(view, head, (0.125, 0.125))) / 0.2)
        blade = np.abs(_distance(view, (side * 0.72, -0.62), (side * 0.86, -0.1)) - 0.075)
        shadow += 0.05 * smooth(1 - blade / 0.022)
    return shadow


# --------------------------------------------------------------------------- vessels


def vessel_shadows(anatomy: Anatomy, view: View, thicker: float = 1.0) -> Field:
    """Return the tree of lung vessels, 0 to 1, in the shape of the view."""
    height, width = view.x.shape
    image = Image.new("L", (2 * width, 2 * height))
    draw = ImageDraw.Draw(image)
    for *ends, thickness in anatomy.vessels:
        (c0, r0), (c1, r1) = view.pixel(*ends[:2]), view.pixel(*ends[2:])
        pixels = 2 * thickness * thicker * view.unit
        draw.line(
            (2 * c0, 2 * r0, 2 * c1, 2 * r1), fill=min(255, 70 + round(2600 * thickness)), width=round(pixels + 0.6)
        )
    small = image.resize((width, height), Image.Resampling.BOX).filter(ImageFilter.GaussianBlur(0.7))
    return np.asarray(small, dtype=np.float32) / 255


def _vessel_tree(rng: np.random.Generator) -> list[tuple[float, float, float, float, float]]:
    """Return segments from each hilum outwards; each fork is thinner and turns a little."""
    segments: list[tuple[float, float, float, float, float]] = []
    for side in SIDES:
        for heading in np.linspace(-1.25, 1.35, 8):
            start = (side * rng.normal(0.27, 0.02), -0.06 + 0.10 * heading)
            buds = [(start, heading + rng.normal(0, 0.12), rng.uniform(0.024, 0.04))]
            for _ in range(BRANCHINGS):
                buds = [shoot for bud in buds for shoot in _forked(rng, side, bud, segments)]
    return segments


def _forked(
    rng: np.random.Generator,
    side: int,
    bud: tuple[Point, float, float],
    segments: list[tuple[float, float, float, float, float]],
) -> list[tuple[Point, float, float]]:
    """Grow one bud by a segment, which is added to ``segments``; return the two buds at its end."""
    (x, y), heading, thickness = bud
    length = rng.uniform(0.10, 0.21)
    end = (x + side * length * np.cos(heading), y + length * np.sin(heading))
    segments.append((x, y, float(end[0]), float(end[1]), thickness))
    return [(end, heading + turn + rng.normal(0, 0.12), thickness * 0.62) for turn in (-0.3, 0.3)]


def _round(distance: Field) -> Field:
    """Return the squared thickness of a ball or a cylinder, 1 in its middle, 0 from distance 1 on."""
    return np.clip(1 - distance * distance, 0, 1)


def _distance(view: View, start: Point, end: Point) -> Field:
    """Return the distance of each pixel from a line segment."""
    dx, dy = end[0] - start[0], end[1] - start[1]
    px, py = view.x - np.float32(start[0]), view.y - np.float32(start[1])
    along = np.clip((px * np.float32(dx) + py * np.float32(dy)) / np.float32(dx * dx + dy * dy), 0, 1)
    return _length(px - along * np.float32(dx), py - along * np.float32(dy))


def _length(dx: Field, dy: Field) -> Field:
    return np.sqrt(dx * dx + dy * dy)  # five times as fast as np.hypot, which guards against overflow
