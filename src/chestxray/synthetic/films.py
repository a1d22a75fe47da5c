"""One synthetic film: a chest, its disease, and its exposure.

Nothing but the shadows in the lungs depends on the class. Exposure, contrast, size, marker, collimation and
grain do not depend on the class, so a network that tells the classes apart uses the lungs.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, NamedTuple

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from chestxray.arrays import BoolArray, UInt8Array
from chestxray.schema import Label
from chestxray.synthetic.anatomy import (
    LUNG_EDGE,
    SIDES,
    Anatomy,
    Chest,
    Field,
    View,
    chest_of,
    ellipse,
    noise,
    random_view,
    smooth,
    vessel_shadows,
)

DRAWING_SIDE: Final = 272  # pixels of the longer side while drawing; the film is enlarged afterwards
MILDEST: Final = 0.5  # severity of the subtlest pneumonia
MASK_SHARE: Final = 0.35  # an opacity reaches as far as its density exceeds this fraction of its peak
CONSOLIDATION: Final = 0.95  # fraction of the air that severe disease displaces at its densest place
INTERSTITIAL: Final = 0.75  # the same, for a thickened network between open air sacs

BACTERIAL_KINDS: Final = (0.45, 0.4, 0.15)  # probabilities of a lobe, of several patches, of one round patch
VIRAL_PATCH: Final = 0.3  # of the viral films show a patch beside the net
DEEP: Final = 0.9  # a patch is centred where more than this fraction of the pixel is lung

ELECTRODES: Final = 0.15  # of the films
COLLIMATED: Final = 0.5  # of the edges
RIGHT_MARKED: Final = 0.8  # of the films show an R, the others an L

BACTERIA: Final = "bacteria"
VIRUS: Final = "virus"
HEALTHY: Final = ""


class PixelBox(NamedTuple):
    """A rectangle of pixels; right and lower are the first column and row outside."""

    left: int
    upper: int
    right: int
    lower: int


@dataclass(frozen=True, slots=True)
class SyntheticFilm:
    """A synthetic film and its known facts.

    Attributes:
        pixels: shape (height, width), uint8, black is 0.
        label: normal, or pneumonia if there is a cause.
        cause: "bacteria", "virus" or "".
        patient_id: as in the file name.
        severity: 0 for a normal film, else ``MILDEST`` (subtle) to 1 (obvious).
        opacity: shape of the pixels: mask of the opacities; always within ``lungs``.
        lungs: shape of the pixels: mask of the lung fields, without heart and diaphragm.
        boxes: one box around each opacity.
    """

    pixels: UInt8Array
    label: Label
    cause: str
    patient_id: str
    severity: float
    opacity: BoolArray
    lungs: BoolArray
    boxes: tuple[PixelBox, ...]


class Opacity(NamedTuple):
    """One abnormal shadow in a lung.

    Attributes:
        density: 0 to 1, smooth; it defines the extent of the opacity.
        texture: factor on the density, about 1.
        displaced: fraction of the air that is displaced where density and texture are 1 and the disease is severe.
    """

    density: Field
    texture: Field
    displaced: float


def draw_film(
    anatomy: Anatomy, cause: str, rng: np.random.Generator, *, height: int, width: int, patient_id: str = ""
) -> SyntheticFilm:
    """Draw one film of a patient, with its own pose and exposure.

    Args:
        cause: "bacteria" or "virus" for pneumonia, "" for a normal film.
        height, width: of the film, in pixels.
    """
    shrunk = DRAWING_SIDE / max(height, width)
    view = random_view(rng, round(height * shrunk), round(width * shrunk))
    # Two random streams, so that the disease does not change the exposure.
    illness, exposure = rng.spawn(2)
    chest = chest_of(anatomy, view)
    attenuation = chest.attenuation + _haze(exposure, chest)
    severity = illness.uniform(MILDEST, 1.0) if cause else 0.0
    field = chest.lungs > LUNG_EDGE
    masks, aerated = [], np.ones_like(attenuation)
    for opacity in _opacities(cause, illness, anatomy, view, chest):
        aerated *= 1 - np.clip(np.float32(severity * opacity.displaced) * opacity.density * opacity.texture, 0, 1)
        masks.append(_enlarged((opacity.density > MASK_SHARE * opacity.density[field].max()) & field, height, width))
    attenuation += chest.air * (1 - aerated)
    return SyntheticFilm(
        pixels=_exposed(attenuation, chest.body > LUNG_EDGE, exposure, height, width),
        label=Label.PNEUMONIA if cause else Label.NORMAL,
        cause=cause,
        patient_id=patient_id,
        severity=severity,
        opacity=np.logical_or.reduce(masks) if masks else np.zeros((height, width), dtype=np.bool_),
        lungs=_enlarged(field, height, width),
        boxes=tuple(_box_of(mask) for mask in masks),
    )


# --------------------------------------------------------------------------- disease


def _opacities(cause: str, rng: np.random.Generator, anatomy: Anatomy, view: View, chest: Chest) -> list[Opacity]:
    """Return the opacities of one film; a virus thickens both lungs, bacteria fill a part of one or two."""
    if not cause:
        return []
    if cause == VIRUS:
        patches = _patchy(rng, view, chest, 1) if rng.random() < VIRAL_PATCH else []
        return [_interstitial(rng, anatomy, view, side) for side in SIDES] + patches
    kind = rng.choice(3, p=BACTERIAL_KINDS)
    if kind == 0:
        return [_lobar(rng, view, chest, int(rng.choice(SIDES)))]
    return _patchy(rng, view, chest, int(rng.integers(3, 7))) if kind == 1 else _patchy(rng, view, chest, 1)


def _lobar(rng: np.random.Generator, view: View, chest: Chest, side: int) -> Opacity:
    """Return a lobe without air: sharp at the fissure, fading on the other side, with dark bronchi."""
    height, width = view.x.shape
    upper, lower = ((-1.1, -0.12), (-0.4, 0.3), (-0.1, 0.95))[rng.integers(3)]
    slanted = view.y - rng.uniform(-0.35, 0.1) * np.abs(view.x) - np.float32(rng.normal(0, 0.04))
    slanted += 0.03 * noise(rng, height, width, 9)
    soft, sharp = rng.permutation((0.22, 0.07)).tolist()
    density = smooth((slanted - upper) / soft) * smooth((lower - slanted) / sharp) * smooth(view.x * side / 0.1)
    mottled = 0.85 + 0.28 * noise(rng, height, width, 36)
    return Opacity(density, mottled * (1 - 0.7 * chest.vessels), CONSOLIDATION)


def _patchy(rng: np.random.Generator, view: View, chest: Chest, count: int) -> list[Opacity]:
    """Return patches with ragged edges, more often low in the lungs; a single one is large and round."""
    height, width = view.x.shape
    rows, columns = np.nonzero(chest.lungs > DEEP)
    odds = 1.2 + view.y[rows, columns].clip(-1, 1)
    radii = rng.uniform(0.2, 0.34, count) if count > 1 else rng.uniform(0.32, 0.44, 1)
    ragged = noise(rng, height, width, 16)
    mottled = 0.85 + 0.28 * noise(rng, height, width, 36)
    blots = []
    for place, radius in zip(rng.choice(len(rows), count, p=odds / odds.sum()), radii, strict=True):
        centre = float(view.x[rows[place], columns[place]]), float(view.y[rows[place], columns[place]])
        distance = ellipse(view, centre, (radius, radius * rng.uniform(0.7, 1.2)), rng.uniform(0, np.pi))
        side = smooth(view.x * np.float32(np.sign(centre[0]) / 0.05))  # an opacity stays in its own lung
        blots.append(Opacity(smooth((1.25 - distance + 0.16 * ragged) / 0.8) * side, mottled, CONSOLIDATION))
    return blots


def _interstitial(rng: np.random.Generator, anatomy: Anatomy, view: View, side: int) -> Opacity:
    """Return a net of fine lines, densest round the hilum, with thickened vessels."""
    height, width = view.x.shape
    far = ellipse(view, (side * 0.3, 0.05), (rng.uniform(0.6, 0.9), rng.uniform(0.6, 0.9)))
    density = (0.25 + 0.75 * smooth(1.25 - far)) * smooth(view.x * side / 0.05)
    net = np.exp(-np.square(1.6 * noise(rng, height, width, 46))) + np.exp(
        -np.square(1.6 * noise(rng, height, width, 30))
    )
    return Opacity(density, 0.25 + 0.5 * net + 0.8 * vessel_shadows(anatomy, view, thicker=1.8), INTERSTITIAL)


def _haze(rng: np.random.Generator, chest: Chest) -> Field:
    """Return the harmless unevenness of every body: fat, muscle, clothes."""
    height, width = chest.body.shape
    coarse, fine = noise(rng, height, width, 5), noise(rng, height, width, 40)
    return (0.022 * coarse + 0.008 * fine) * chest.body


# --------------------------------------------------------------------------- exposure


def _exposed(attenuation: Field, body: BoolArray, rng: np.random.Generator, height: int, width: int) -> UInt8Array:
    """Convert attenuation to grey levels with an automatic exposure: the body's mean meets a target."""
    white = np.quantile(attenuation[::3, ::3], rng.uniform(0.97, 0.998)) * rng.uniform(1.0, 1.12)
    levels = np.clip((attenuation + 0.01) / np.float32(white), 0, 1)
    levels = levels ** np.float32(_gamma_for(levels[::3, ::3][body[::3, ::3]], rng.normal(0.58, 0.05)))
    contrast = rng.uniform(-0.1, 0.5)  # towards an S-shaped film curve
    levels += np.float32(contrast) * (smooth(levels) - levels)
    fog = rng.uniform(0.0, 0.07)
    image = Image.fromarray(np.float32(255 * (1 - fog)) * levels + np.float32(255 * fog))
    film = image.resize((width, height), Image.Resampling.BICUBIC)
    lit = _with_markers(film, rng)
    grain = rng.standard_normal((height, width), dtype=np.float32) * np.float32(rng.uniform(1.5, 4.5))
    return np.rint(lit + grain).clip(0, 255).astype(np.uint8)


def _gamma_for(levels: Field, target: float) -> float:
    """Find the exponent that brings the mean of the levels to the target, by bisection."""
    low, high = 0.4, 2.5
    for _ in range(8):
        middle = (low + high) / 2
        low, high = (middle, high) if float(np.mean(levels ** np.float32(middle))) > target else (low, middle)
    return (low + high) / 2


def _with_markers(film: Image.Image, rng: np.random.Generator) -> Field:
    """Collimate the film and burn in a letter for the side; some films show electrodes on the skin."""
    width, height = film.size
    draw = ImageDraw.Draw(film)
    if rng.random() < ELECTRODES:
        _draw_electrodes(draw, rng, width, height)
    bounds = rng.uniform(0.0, 0.045, 4) * (rng.random(4) < COLLIMATED) * (width, height, width, height)
    left, upper, right, lower = (round(float(bound)) for bound in bounds)
    black = float(rng.uniform(0, 8))
    for box in (
        (0, 0, left, height),
        (0, 0, width, upper),
        (width - right, 0, width, height),
        (0, height - lower, width, height),
    ):
        if box[2] > box[0] and box[3] > box[1]:
            draw.rectangle((box[0], box[1], box[2] - 1, box[3] - 1), fill=black)
    on_right = rng.random() < RIGHT_MARKED  # the patient's right side is the left of the film
    across = rng.uniform(0.03, 0.15) if on_right else rng.uniform(0.83, 0.93)
    place = (across * width, rng.uniform(0.03, 0.3) * height)
    font = ImageFont.load_default(size=height * rng.uniform(0.045, 0.085))
    draw.text(place, "R" if on_right else "L", fill=float(rng.uniform(205, 255)), font=font)
    return np.asarray(film)


def _draw_electrodes(draw: ImageDraw.ImageDraw, rng: np.random.Generator, width: int, height: int) -> None:
    """Draw two or three discs, each with its lead to the film's edge."""
    radius = 0.014 * height
    for across, down in rng.uniform((0.25, 0.15), (0.75, 0.85), (rng.integers(2, 4), 2)) * (width, height):
        level = float(rng.uniform(190, 240))
        draw.line((across, down, across + rng.normal(0, 0.1) * width, height), fill=level * 0.85, width=2)
        draw.ellipse((across - radius, down - radius, across + radius, down + radius), fill=level)


def _enlarged(mask: BoolArray, height: int, width: int) -> BoolArray:
    """Return a mask of the drawing at the film's size."""
    image = Image.fromarray(mask.astype(np.uint8)).resize((width, height), Image.Resampling.NEAREST)
    return np.asarray(image).astype(np.bool_)


def _box_of(mask: BoolArray) -> PixelBox:
    rows, columns = np.nonzero(mask.any(axis=1))[0], np.nonzero(mask.any(axis=0))[0]
    return PixelBox(int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1)
