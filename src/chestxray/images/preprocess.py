"""From radiograph to the network's input: the one implementation that training and serving share.

The result is uint8. A pack stores it, the service computes it again, and both pass it to a network whose first step is
the normalisation by the training films' mean and deviation; so the two cannot disagree.
"""

from __future__ import annotations

from typing import Final

import numpy as np
from PIL import Image

from chestxray.arrays import Float32Array, UInt8Array
from chestxray.images import MARGIN, WHITE, FrameBox, Pixels, sampling_step
from chestxray.images.decode import decode
from chestxray.schema import Levels, Preprocessing, Resize

DARKEST: Final = 0.01  # fraction of the film's middle that becomes black, and the same fraction white
# Times the range from the darkest to the brightest hundredth: what is brighter is a defective pixel. In the published
# films that range is 85 levels or more and ends at 131 or above, so none of their 256 levels would be one.
DEFECT: Final = 2.5
RANKED: Final = 0.7  # weight of the rank in an equalised film's level; the rest is the level itself


def preprocess(
    data: bytes, source: str, height: int, width: int, resize: Resize, levels: Levels = Levels.STORED
) -> UInt8Array:
    """Turn the bytes of one film into the network's input: shape (height, width), uint8.

    Raises: the errors of ``decode``.
    """
    film = decode(data, source, at_least=(height, width))
    return resample(film.pixels, height, width, resize, film.frame, levels)


def resample(
    pixels: Pixels,
    height: int,
    width: int,
    resize: Resize,
    frame: FrameBox | None = None,
    levels: Levels = Levels.STORED,
) -> UInt8Array:
    """Scale to (height, width) by an antialiased triangle filter; nothing is rounded before the last step.

    Args:
        pixels: shape (h, w), uint8 or uint16 spanning its whole range.
        height, width: size of the result, in pixels.
        resize: what to do if the aspect ratios differ.
        frame: position of the film within ``pixels``, as in the radiograph; None if it fills them.
        levels: how the grey levels are mapped.
    """
    image = Image.fromarray(_without_defects(pixels).astype(np.float32))
    frame = frame or (0, 0, image.width, image.height)
    if resize is Resize.LETTERBOX:
        scaled, shown = _letterboxed(image, height, width, frame)
    else:
        box = _central_box(frame, height / width) if resize is Resize.CROP else frame
        scaled, shown = image.resize((width, height), Image.Resampling.BILINEAR, box), (0, 0, width, height)
    exact: Float32Array = np.asarray(scaled) * np.float32(WHITE / np.iinfo(pixels.dtype).max)
    if levels is Levels.STORED:
        return np.rint(exact).clip(0, WHITE).astype(np.uint8)
    left, upper, right, lower = shown
    film = levelled(exact[upper:lower, left:right], levels)
    if film.shape == exact.shape:
        return film
    plane = np.zeros(exact.shape, np.uint8)
    plane[upper:lower, left:right] = film
    return plane


def _without_defects(pixels: Pixels) -> Pixels:
    """Replace defective pixels of a deep film, which are far brighter than its levels, by the darker of two neighbours.

    Averaged with others while the film is scaled, one that is sixteen times as bright would outshine them all. What is
    as bright over several pixels, such as a marker of metal, only loses its edge.

    Args:
        pixels: shape (h, w); uint8 is returned as it is, since nothing in it can be far above the levels.

    Returns: the same array, or a changed copy.
    """
    if pixels.dtype == np.uint8:
        return pixels
    width, step = pixels.shape[1], sampling_step(pixels)
    low, high = np.quantile(pixels[::step, ::step], (DARKEST, 1 - DARKEST))
    rows, columns = np.nonzero(pixels > low + DEFECT * max(1.0, high - low))
    if not len(rows):
        return pixels
    healed = pixels.copy()
    before, after = np.where(columns > 0, columns - 1, 1), np.where(columns < width - 1, columns + 1, width - 2)
    healed[rows, columns] = np.minimum(pixels[rows, before], pixels[rows, after])
    return healed


def levelled(exact: Float32Array | UInt8Array, levels: Levels) -> UInt8Array:
    """Map a film's grey levels to one common scale, so that gain, offset and depth of its file do not matter.

    The darkest and the brightest hundredth of the film's middle become black and white, and the levels between are
    stretched. An equalised film's levels are then drawn towards their ranks within its middle, so that exposure and
    tone curve hardly matter either. A second pass changes little.

    Args:
        exact: shape (height, width), any scale.
        levels: ``Levels.STORED`` only rounds.

    Returns: the same shape, uint8.
    """
    if levels is Levels.STORED:
        return np.rint(exact).clip(0, WHITE).astype(np.uint8)
    height, width = exact.shape
    middle = (slice(height // MARGIN, height - height // MARGIN), slice(width // MARGIN, width - width // MARGIN))
    inside = exact[middle].ravel()
    last = inside.size - 1
    places = [round(last * DARKEST), round(last * (1 - DARKEST))]
    low, high = np.sort(inside)[places].astype(np.float64)  # for so few numbers faster than np.partition
    gain = WHITE / (high - low) if high > low else 0.0
    level = exact - low  # in 64 bits, and changed in place: new memory for each step would take longer than the steps
    level *= gain
    np.rint(level, out=level)
    np.clip(level, 0, WHITE, out=level)
    stretched: UInt8Array = level.astype(np.uint8)
    if levels is Levels.STRETCHED:
        return stretched
    counts = np.bincount(stretched[middle].ravel(), minlength=WHITE + 1)
    ranks = (np.cumsum(counts) - counts / 2) / inside.size * WHITE
    table = np.rint((1 - RANKED) * np.arange(WHITE + 1) + RANKED * ranks).astype(np.uint8)
    equalised: UInt8Array = np.take(table, stretched)
    return equalised


def onto_film(values: Float32Array, film_size: tuple[int, int], preprocessing: Preprocessing) -> Float32Array:
    """Map values over the network's input back onto the film: the inverse of ``resample``.

    Args:
        values: shape (rows, columns), over the whole of the network's input.
        film_size: (height, width) of the result.
        preprocessing: the preprocessing of the film.

    Returns: shape ``film_size``; zero where the network saw no part of the film.
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


def _letterboxed(
    image: Image.Image, height: int, width: int, frame: FrameBox
) -> tuple[Image.Image, tuple[int, int, int, int]]:
    """Return the film between black bars, and its position."""
    left, upper, right, lower = frame
    factor = min(height / (lower - upper), width / (right - left))
    inner = (max(1, round((right - left) * factor)), max(1, round((lower - upper) * factor)))
    canvas = Image.new(image.mode, (width, height))
    scaled = image.resize(inner, Image.Resampling.BILINEAR, frame)
    left, upper = (width - inner[0]) // 2, (height - inner[1]) // 2
    canvas.paste(scaled, (left, upper))
    return canvas, (left, upper, left + inner[0], upper + inner[1])


def _central_box(frame: FrameBox, aspect: float) -> FrameBox:
    """Return the largest central box of that height / width within a frame: left, upper, right, lower."""
    left, upper, right, lower = frame
    width, height = right - left, lower - upper
    inner_width, inner_height = min(width, height / aspect), min(height, width * aspect)
    left, upper = left + (width - inner_width) / 2, upper + (height - inner_height) / 2
    return left, upper, left + inner_width, upper + inner_height
