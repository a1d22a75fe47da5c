"""Radiograph to the network's input: the one implementation that training and serving share.

The result is uint8. A pack stores it, the service computes it anew, and both hand it to a network whose
first step is the division by the training films' deviation; so the two cannot disagree.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from PIL import Image

from chestxray.images.decode import decode
from chestxray.images.radiograph import Box, Pixels
from chestxray.schema import Preprocessing, Resize

Plane = npt.NDArray[np.uint8]


def preprocess(data: bytes, source: str, height: int, width: int, resize: Resize) -> Plane:
    """The bytes of one film as the network sees it: shape (height, width), uint8.

    Raises: what ``decode`` raises.
    """
    film = decode(data, source, at_least=(height, width))
    return resample(film.pixels, height, width, resize, film.frame)


def resample(pixels: Pixels, height: int, width: int, resize: Resize, frame: Box | None = None) -> Plane:
    """Scale to (height, width) by an antialiased triangle filter; 16-bit levels are scaled, never clipped.

    Args:
        pixels: shape (h, w), uint8 or uint16 spanning its whole range.
        height, width: of the result, in pixels.
        resize: what to do where the aspect ratios differ.
        frame: where the film lies within ``pixels``, as the radiograph says; None where it fills them.
    """
    if pixels.dtype == np.uint16:
        image = Image.fromarray(pixels.astype(np.float32) * np.float32(255 / 65535))
    else:
        image = Image.fromarray(pixels)
    frame = frame or (0, 0, image.width, image.height)
    if resize is Resize.LETTERBOX:
        scaled = _letterboxed(image, height, width, frame)
    else:
        box = _central_box(frame, height / width) if resize is Resize.CROP else frame
        scaled = image.resize((width, height), Image.Resampling.BILINEAR, box)
    levels = np.asarray(scaled)
    return levels if levels.dtype == np.uint8 else np.rint(levels).clip(0, 255).astype(np.uint8)


def onto_film(
    values: npt.NDArray[np.float32], film_size: tuple[int, int], preprocessing: Preprocessing
) -> npt.NDArray[np.float32]:
    """A map over the network's input, laid back onto the film: what ``resample`` did, the other way round.

    Args:
        values: shape (rows, columns), over the whole of the network's input.
        film_size: (height, width) of the result.
        preprocessing: what the film went through.

    Returns: shape ``film_size``; zero where the network saw nothing.
    """
    height, width = film_size
    rows, columns = values.shape
    image = Image.fromarray(values.astype(np.float32))
    if preprocessing.resize is Resize.CROP:
        edges = _central_box((0, 0, width, height), preprocessing.height / preprocessing.width)
        x0, y0, x1, y1 = (round(edge) for edge in edges)
        canvas = Image.new("F", (width, height))
        canvas.paste(image.resize((x1 - x0, y1 - y0), Image.Resampling.BICUBIC), (x0, y0))
        return np.asarray(canvas)
    box = None
    if preprocessing.resize is Resize.LETTERBOX:
        seen = (0, 0, preprocessing.width, preprocessing.height)
        left, upper, right, lower = _central_box(seen, height / width)
        across, down = columns / preprocessing.width, rows / preprocessing.height
        box = (left * across, upper * down, right * across, lower * down)
    return np.asarray(image.resize((width, height), Image.Resampling.BICUBIC, box))


def _letterboxed(image: Image.Image, height: int, width: int, frame: Box) -> Image.Image:
    left, upper, right, lower = frame
    factor = min(height / (lower - upper), width / (right - left))
    inner = (max(1, round((right - left) * factor)), max(1, round((lower - upper) * factor)))
    canvas = Image.new(image.mode, (width, height))
    scaled = image.resize(inner, Image.Resampling.BILINEAR, frame)
    canvas.paste(scaled, ((width - inner[0]) // 2, (height - inner[1]) // 2))
    return canvas


def _central_box(frame: Box, aspect: float) -> Box:
    """The largest central box of that height to width within a frame: left, upper, right, lower."""
    left, upper, right, lower = frame
    width, height = right - left, lower - upper
    inner_width, inner_height = min(width, height / aspect), min(height, width * aspect)
    left, upper = left + (width - inner_width) / 2, upper + (height - inner_height) / 2
    return left, upper, left + inner_width, upper + inner_height
