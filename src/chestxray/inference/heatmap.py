"""The network's evidence drawn over its film.

    activation (rows, columns) -> evidence -> strength 0 to 1 -> colours with an alpha channel -> over the film

The scale ends at the film's own maximum, so that the strongest place of a film is drawn at full strength; but the end
is never below two thirds of what three of four films with pneumonia reach, so that a film without evidence stays empty.
"""

from __future__ import annotations

import io
from functools import lru_cache
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt
from PIL import Image, PngImagePlugin

from chestxray.arrays import Float32Array, Float64Array, UInt8Array
from chestxray.images import Radiograph
from chestxray.images.decode import decode
from chestxray.images.preprocess import onto_film, resample
from chestxray.schema import BundleInfo, Preprocessing, Resize

FILM: Final = "Source"  # the PNG text chunk that names the film
LONG_SIDE: Final = 512  # pixels of the overlay; the map under it has about ten cells a side
FILM_SIDE: Final = 1024  # pixels: largest size of a film drawn with its map; a smaller film keeps its own size
FAINTEST: Final = 0.07  # of the scale: weaker evidence stays transparent
FLOOR: Final = 0.65  # of the typical peak: the lowest end of the scale
CONTOURS: Final = (0.25, 0.5, 0.75)  # of the scale: the levels of the contour lines

_STEPS: Final = 4096  # of the table of colours: finer than the 8 bits of a colour

# The value for a bundle that does not state the peak of a typical film: the log-odds, in units of its temperature, that
# a whole film would have if each cell argued as its strongest one. Three of four films reach 15 to 16 with our models.
DEFAULT_PEAK: Final = 15.0

# matplotlib's inferno from purple on: perceptually even and ever lighter, so that it can be read without colour.
_STRENGTHS: Final = np.linspace(FAINTEST, 1.0, 9)
_COLOURS: Final = np.array(
    [
        [114, 26, 110],
        [149, 38, 103],
        [182, 52, 88],
        [211, 71, 67],
        [234, 99, 42],
        [248, 133, 15],
        [252, 172, 17],
        [246, 213, 67],
        [245, 249, 146],
    ]
)
ALPHA: Final = np.array(
    [[FAINTEST, 0], [0.12, 90], [0.6, 130], [1.0, 170]]
)  # strength to alpha: the film stays readable


def strength_of(activation: npt.NDArray[np.floating], info: BundleInfo) -> Float32Array:
    """Return how strongly each cell argues for pneumonia, on the scale of the drawing.

    The evidence of a cell is its contribution to the calibrated log-odds: its activation and an equal part of the
    calibration's bias.

    Args:
        activation: shape (rows, columns), contribution of each place to the log-odds before calibration.
        info: the bundle's description, with its calibration and typical peak.

    Returns: the same shape; 1 is the end of the scale, which the strongest cell reaches unless the film has less
    evidence than a typical one; a cell that argues against pneumonia is negative.
    """
    shared = info.bias / activation.size
    typical = DEFAULT_PEAK * info.temperature if info.typical_peak is None else info.typical_peak + info.bias
    evidence = activation.astype(np.float32) + np.float32(shared)
    scale = max(float(evidence.max()), FLOOR * typical / activation.size, float(np.finfo(np.float32).tiny))
    return evidence / np.float32(scale)


def overlay_png(
    strength: Float32Array, film_size: tuple[int, int], preprocessing: Preprocessing, *, contours: bool = False
) -> bytes:
    """Draw the strength of the evidence for pneumonia, in the film's own proportions.

    Args:
        strength, preprocessing, contours: as of ``overlay``.
        film_size: (height, width) of the film in pixels.

    Returns: a PNG with an alpha channel, its long side LONG_SIDE pixels.
    """
    height, width = film_size
    scale = LONG_SIDE / max(height, width)
    size = (max(1, round(height * scale)), max(1, round(width * scale)))
    out = io.BytesIO()
    overlay(strength, size, preprocessing, contours=contours).save(out, "PNG")
    return out.getvalue()


def overlay(
    strength: Float32Array, size: tuple[int, int], preprocessing: Preprocessing, *, contours: bool = False
) -> Image.Image:
    """Draw the strength of the evidence for pneumonia.

    Args:
        strength: shape (rows, columns), as ``strength_of`` returns it.
        size: (height, width) of the drawing in pixels, in the film's own proportions.
        preprocessing: how the film became the network's input, so that the map can be mapped back to the film.
        contours: lines at CONTOURS of the scale instead of areas.

    Returns: the drawing, in RGBA.
    """
    # Clip first: a cell far below zero must not weaken its neighbours when the grid is smoothed.
    spread = onto_film(np.maximum(strength, -FAINTEST), size, preprocessing).clip(0.0, 1.0)
    pixels = _table().take(np.rint(spread * _STEPS).astype(np.uint16)).view(np.uint8).reshape(*size, 4)
    if contours:
        pixels[..., 3] = _lines(spread)
    return Image.fromarray(pixels)


@lru_cache(1)
def _table() -> npt.NDArray[np.uint32]:
    """Return the colour and alpha of each strength, four bytes in one number: shape (_STEPS + 1,)."""
    strengths = np.linspace(0.0, 1.0, _STEPS + 1)
    channels = [np.interp(strengths, _STRENGTHS, _COLOURS[:, channel]) for channel in range(3)]
    colours = np.stack([*channels, np.interp(strengths, *ALPHA.T)], axis=-1).round().astype(np.uint8)
    return colours.view(np.uint32)[:, 0]


def _lines(spread: Float32Array) -> Float64Array:
    """Return opaque lines, two pixels wide, where the strength crosses a contour level."""
    level = np.digitize(spread, CONTOURS)
    padded = np.pad(level, 1, mode="edge")
    neighbours = np.stack([padded[:-2, 1:-1], padded[2:, 1:-1], padded[1:-1, :-2], padded[1:-1, 2:]])
    return np.where((neighbours != level).any(axis=0), 255.0, 0.0)


def over_film(data: bytes, source: str, layer: bytes) -> bytes:
    """Blend a drawing of ``overlay_png`` with its film.

    Args:
        data: the film's bytes.
        source: the film's name in errors.
        layer: a PNG with an alpha channel.

    Returns: a PNG in the film's proportions, its longest side at most FILM_SIDE pixels.
    Raises: FilmError.
    """
    out = io.BytesIO()
    film = decode(data, source, at_least=(FILM_SIDE, FILM_SIDE))
    with Image.open(io.BytesIO(layer), formats=["PNG"]) as colours:
        superimpose(_drawn(film, FILM_SIDE), colours).save(out, "PNG")
    return out.getvalue()


def superimpose(plane: UInt8Array, layer: Image.Image) -> Image.Image:
    """Blend a drawing of ``overlay`` with its film, shape (height, width); return the picture, in RGB."""
    height, width = plane.shape
    if layer.size != (width, height):
        layer = layer.resize((width, height), Image.Resampling.BICUBIC)
    return Image.alpha_composite(Image.fromarray(plane).convert("RGBA"), layer).convert("RGB")


def film_png(data: bytes, source: str, long_side: int = FILM_SIDE) -> bytes:
    """Draw a film as decoded and windowed: a PNG of 8 grey bits, at most ``long_side`` pixels long.

    Raises: FilmError.
    """
    out = io.BytesIO()
    film = decode(data, source, at_least=(long_side, long_side))
    Image.fromarray(_drawn(film, long_side)).save(out, "PNG", compress_level=3)
    return out.getvalue()


def _drawn(film: Radiograph, long_side: int) -> UInt8Array:
    scale = min(1.0, long_side / max(film.width, film.height))
    width, height = max(1, round(film.width * scale)), max(1, round(film.height * scale))
    if film.pixels.dtype == np.uint8:  # rounded to levels in between, which nobody sees and which is four times faster
        image = Image.fromarray(np.ascontiguousarray(film.pixels))
        return np.asarray(image.resize((width, height), Image.Resampling.BILINEAR, film.frame))
    return resample(film.pixels, height, width, Resize.SQUEEZE, film.frame)


def averaged(film: Radiograph, long_side: int) -> UInt8Array:
    """Return a small copy of a film in 8 bits, of whole squares of its pixels: several times faster than resampling.

    Args:
        film: the film, as decoded.
        long_side: longest side of the result in pixels. The longest side is at least two thirds of it, or that of the
            film: where no squares give that, the film is resampled.

    Returns: shape (height, width).
    """
    height, width = film.pixels.shape
    step = -(-max(height, width) // long_side)
    if (
        step == 1
        or film.frame is not None
        or min(height, width) < step
        or 3 * max(height, width) < 2 * step * long_side
    ):
        return _drawn(film, long_side)
    pixels = film.pixels if film.pixels.dtype == np.uint8 else (film.pixels >> 8).astype(np.uint8)
    box = (0, 0, width - width % step, height - height % step)
    return np.asarray(Image.fromarray(np.ascontiguousarray(pixels)).reduce(step, box))


def with_film_name(picture: bytes, film: str) -> bytes:
    """Write the film's name into a PNG. Law: ``film_name_of`` reads it back.

    Source: PNG specification, section 11.3.3, the keyword "Source".
    """
    note = PngImagePlugin.PngInfo()
    note.add_itxt(FILM, film)
    out = io.BytesIO()
    with Image.open(io.BytesIO(picture), formats=["PNG"]) as image:
        image.save(out, "PNG", pnginfo=note)
    return out.getvalue()


def film_name_of(path: Path) -> str | None:
    """Return the name of the film that a PNG of ``with_film_name`` shows; None if the file does not state it."""
    try:
        with Image.open(path, formats=["PNG"]) as image:
            found = image.info.get(FILM)
    except (OSError, ValueError):
        return None
    return None if found is None else str(found)
