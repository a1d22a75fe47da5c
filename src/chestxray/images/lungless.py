"""Features of a film besides the lungs: its frame, burnt-in marks, grey levels, sharpness, size and file.

Every picture feature comes from the border alone, the outer ``BORDER`` of each side; the middle, where the lungs are,
is never used. So a feature that tells the classes apart here is no disease.
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Callable
from itertools import pairwise
from typing import Any, Final, NamedTuple

import numpy as np
from PIL import Image, ImageFilter
from PIL.JpegImagePlugin import JpegImageFile

from chestxray.arrays import Float32Array, UInt8Array
from chestxray.errors import FilmError
from chestxray.images import Radiograph
from chestxray.images.decode import decode, format_of
from chestxray.images.dicom import elements, open_data_set
from chestxray.images.preprocess import resample
from chestxray.schema import Resize

SQUARE_SIDE: Final = 240  # pixels: side of the square to which every film is scaled
BORDER_CELL: Final = 12  # pixels: side of a cell of the border
CELLS: Final = SQUARE_SIDE // BORDER_CELL  # 20 cells a side
# of each side. On synthetic films that differ in the lungs only, this border does not tell the classes apart
BORDER: Final = 0.15
BORDER_CELLS: Final = round(CELLS * BORDER)  # 3
BORDER_PIXELS: Final = BORDER_CELLS * BORDER_CELL  # 36

_LEVELS: Final = (0.0, 0.01, 0.05, 0.1, 0.25, 0.5, 0.75, 0.9, 0.95, 0.99, 1.0)  # quantiles of the grey levels
_SHARPNESS: Final = (0.5, 0.9, 0.99)  # quantiles of the gradients
_BANDS: Final = (2, 4, 8, 16, 24, 32, 48, 64, 80, 100, 121)  # edges, cycles a side of the film
_STROKE: Final = 4  # pixels: radius of the neighbourhood from which a stroke must stand out
_FAINTEST: Final = 8.0  # grey levels between bright and dark of a border; a smaller spread is noise
_DARK: Final = 0.05  # of white: a row or column darker than this is a black margin

_DICOM_TEXTS: Final = {
    0x00080070: "manufacturer",
    0x00081090: "model",
    0x00181004: "plate",
    0x00181020: "software",
    0x00181400: "processing",
}  # no element that could name a patient, a place or a person

_BORDER_OF_CELLS: Final = np.ones((CELLS, CELLS), dtype=np.bool_)
_BORDER_OF_CELLS[BORDER_CELLS:-BORDER_CELLS, BORDER_CELLS:-BORDER_CELLS] = False
_BORDER_OF_PIXELS: Final = np.kron(_BORDER_OF_CELLS, np.ones((BORDER_CELL, BORDER_CELL), dtype=np.bool_))


class Lungless(NamedTuple):
    """The features of one film.

    Attributes:
        numbers: one array a group of ``GROUPS``, the same length for every film; NaN if the file does not state the
            value.
        texts: text values of the file's header, by name ("format", "model"); empty values are left out.
    """

    numbers: dict[str, Float32Array]
    texts: dict[str, str]


def lungless(data: bytes, source: str) -> Lungless:
    """Measure the features of one film. Raises: the errors of ``decode``."""
    film = decode(data, source, at_least=(SQUARE_SIDE, SQUARE_SIDE))
    plane = resample(film.pixels, SQUARE_SIDE, SQUARE_SIDE, Resize.SQUEEZE, film.frame)
    numbers = {name: np.asarray(measure(plane), dtype=np.float32) for name, measure in PICTURE_GROUPS.items()}
    numbers["size"] = np.array([film.width, film.height, film.width / film.height], dtype=np.float32)
    file_numbers, texts = _header_features(data, source, film)
    numbers["file"] = file_numbers
    return Lungless(numbers, texts)


# --------------------------------------------------------------------------- the picture's border


def frame(plane: UInt8Array) -> Float32Array:
    """Return brightness of the border's cells, and width of the black margin at each edge; shape (208,).

    A cell's mean grey is relative to the film's own scale, so that a darker exposure has the same frame.
    """
    cells = plane.reshape(CELLS, BORDER_CELL, CELLS, BORDER_CELL).mean(axis=(1, 3), dtype=np.float32)[_BORDER_OF_CELLS]
    low, high = np.quantile(cells, (0.1, 0.9))
    return np.concatenate([(cells - low) / max(float(high - low), _FAINTEST), _margins(plane)]).astype(np.float32)


def _margins(plane: UInt8Array) -> Float32Array:
    """Return the black rows or columns at the left, right, upper and lower edge, at most the border's width."""
    margins = []
    for levels in (plane.mean(axis=0), plane.mean(axis=1)):
        for towards_middle in (levels[:BORDER_PIXELS], levels[::-1][:BORDER_PIXELS]):
            lit = np.flatnonzero(towards_middle > 255 * _DARK)
            margins.append(float(lit[0]) if len(lit) else float(BORDER_PIXELS))
    return np.array(margins, dtype=np.float32)


def marks(plane: UInt8Array) -> Float32Array:
    """Return how far the brightest stroke of each border cell stands out from its neighbourhood, shape (204,).

    Letters, arrows and wires are a few pixels wide; a rib or the edge of the patient is wider.
    """
    image = Image.fromarray(plane)
    round_it = np.asarray(image.filter(ImageFilter.BoxBlur(_STROKE)), dtype=np.int16)
    strokes = (plane.astype(np.int16) - round_it).clip(0)
    brightest = strokes.astype(np.float32).reshape(CELLS, BORDER_CELL, CELLS, BORDER_CELL).max(axis=(1, 3))
    found: Float32Array = brightest[_BORDER_OF_CELLS]
    return found


def grey_levels(plane: UInt8Array) -> Float32Array:
    """Return quantiles of the border's grey levels, fractions of black and white, and number of levels; shape (14,)."""
    counts = np.bincount(plane[_BORDER_OF_PIXELS], minlength=256)
    below = np.cumsum(counts) / counts.sum()
    quantiles = np.searchsorted(below, np.array(_LEVELS) - 1e-9).clip(0, 255)
    quantiles[0] = np.flatnonzero(counts)[0]
    extremes = (counts[0] / counts.sum(), counts[-1] / counts.sum(), np.count_nonzero(counts))
    return np.concatenate([quantiles, extremes]).astype(np.float32)


def sharpness(plane: UInt8Array) -> Float32Array:
    """Return gradients and spectra along the border, which compression and enlarging smooth; shape (28,)."""
    levels = plane.astype(np.float32)
    across, down = np.abs(np.diff(levels, axis=1)), np.abs(np.diff(levels, axis=0))
    found: list[Any] = []
    for steps, border in ((across, _BORDER_OF_PIXELS[:, 1:]), (down, _BORDER_OF_PIXELS[1:])):
        values = steps[border]
        found += [values.mean(), *np.quantile(values, _SHARPNESS)]
    for turned in (levels, levels.T):
        strips = np.concatenate([turned[:BORDER_PIXELS], turned[-BORDER_PIXELS:]])
        spectrum = np.abs(np.fft.rfft(strips * np.hanning(SQUARE_SIDE), axis=1)).mean(axis=0)
        found += [np.log1p(spectrum[low:high].mean()) for low, high in pairwise(_BANDS)]
    return np.array(found, dtype=np.float32)


# One row for each group of features from the picture's border.
PICTURE_GROUPS: Final[dict[str, Callable[[UInt8Array], Float32Array]]] = {
    "frame": frame,
    "marks": marks,
    "grey": grey_levels,
    "sharpness": sharpness,
}
GROUPS: Final = (*PICTURE_GROUPS, "size", "file")


# --------------------------------------------------------------------------- the file


def _header_features(data: bytes, source: str, film: Radiograph) -> tuple[Float32Array, dict[str, str]]:
    """Return the header's numbers (channels, bits, quantisation, density) and its texts."""
    form = format_of(data, source).name
    numbers = [float(film.channels), float(film.bit_depth), np.nan, np.nan, np.nan]
    texts = {"format": form, "photometric": film.photometric, "view": film.view_position, "modality": film.modality}
    if form == "JPEG":
        numbers[2:], more = _jpeg(data)
        texts |= more
    elif form == "DICOM":
        texts |= _dicom(data, source)
    return np.array(numbers, dtype=np.float32), {name: text for name, text in texts.items() if text}


def _jpeg(data: bytes) -> tuple[list[float], dict[str, str]]:
    """Return mean quantisation steps (first and last table), dots an inch, and texts that reveal the encoder."""
    image = JpegImageFile(io.BytesIO(data))  # reads only the header
    tables = [np.mean(table) for _, table in sorted(image.quantization.items())]
    steps = [float(tables[0]), float(tables[-1])] if tables else [np.nan, np.nan]
    density = float(image.info.get("jfif_density", (np.nan,))[0])
    fingerprint = hashlib.sha256(repr(sorted(image.quantization.items())).encode()).hexdigest()[:8]
    exif = image.getexif()
    made = " ".join(str(exif.get(tag, "")).strip("\0 ") for tag in (0x010F, 0x0110, 0x0131)).strip()
    info = image.info
    parts = {"progressive": info.get("progressive"), "EXIF": bool(exif), "colour profile": "icc_profile" in info}
    return [*steps, density], {
        "tables": fingerprint,
        "sampling": str([layer[1:3] for layer in image.layer]),
        "parts": ", ".join(name for name, there in parts.items() if there),
        "made by": made,
    }


def _dicom(data: bytes, source: str) -> dict[str, str]:
    """Return manufacturer, model, plate, software and processing; nothing that names a patient or a place."""
    try:
        data_set = open_data_set(data, source)
        found = {}
        for element in elements(data_set.data, data_set.start, data_set.encoding, source):
            if name := _DICOM_TEXTS.get(element.tag):
                text = data_set.data[element.value : element.end].decode("ascii", "replace")
                found[name] = " ".join(text.strip("\0 ").split())[:64]
        return found | {"syntax": data_set.transfer_syntax}
    except FilmError:  # the film was decoded already; keep what a header that ends early has given
        return {}
