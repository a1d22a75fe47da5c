"""The class-activation map as a picture to lay over the film."""

from __future__ import annotations

import io
from typing import Final

import numpy as np
import numpy.typing as npt
from PIL import Image

from chestxray.images.decode import decode
from chestxray.images.preprocess import onto_film, resample
from chestxray.schema import Preprocessing, Resize

LONG_SIDE: Final = 512  # pixels of the overlay; the map behind it has some ten cells a side
FULL_COLOUR: Final = 0.5  # log-odds of one cell that are drawn at full strength at the latest

# Transparent, amber, red, pale yellow: lightness rises all the way, so that it also reads without hue.
_STOPS: Final = np.array([0.0, 0.35, 0.7, 1.0])
_COLOURS: Final = np.array([[120, 28, 109, 0], [203, 65, 73, 150], [246, 140, 30, 200], [252, 235, 120, 225]])


def overlay_png(activation: npt.NDArray[np.float32], film_size: tuple[int, int], preprocessing: Preprocessing) -> bytes:
    """Draw where the evidence for pneumonia lies, in the film's own proportions.

    Args:
        activation: shape (rows, columns), log-odds that each place adds; negative places stay clear.
        film_size: (height, width) of the film.
        preprocessing: how the film became the network's input, so that the map can go the way back.

    Returns: a PNG with an alpha channel, its long side LONG_SIDE pixels.
    """
    height, width = film_size
    scale = LONG_SIDE / max(height, width)
    size = (max(1, round(height * scale)), max(1, round(width * scale)))
    strength = np.clip(activation, 0.0, None) / max(float(activation.max()), FULL_COLOUR)
    spread = onto_film(strength, size, preprocessing).clip(0.0, 1.0)
    channels = [np.interp(spread, _STOPS, _COLOURS[:, channel]) for channel in range(4)]
    out = io.BytesIO()
    Image.fromarray(np.stack(channels, axis=-1).round().astype(np.uint8)).save(out, "PNG")
    return out.getvalue()


def over_film(data: bytes, source: str, overlay: bytes) -> bytes:
    """Blend an overlay of ``overlay_png`` with its film.

    Args:
        data: the film's bytes.
        source: what to call it in errors.
        overlay: a PNG with an alpha channel.

    Returns: a PNG of the overlay's size.
    Raises: FilmError.
    """
    with Image.open(io.BytesIO(overlay), formats=["PNG"]) as colours:
        width, height = colours.size
        film = decode(data, source, at_least=(height, width))
        plane = resample(film.pixels, height, width, Resize.SQUEEZE, film.frame)
        blended = Image.alpha_composite(Image.fromarray(plane).convert("RGBA"), colours)
    out = io.BytesIO()
    blended.convert("RGB").save(out, "PNG")
    return out.getvalue()
