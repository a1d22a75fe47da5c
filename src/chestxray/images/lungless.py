"""What a film shows besides the lungs: its frame, burnt-in marks, grey levels, sharpness, size and file.

Every picture feature comes from the border alone, the outer ``BORDER`` of each side; the middle, where the lungs
lie, is never looked at. So whatever tells the classes apart here is no disease.
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Callable
from itertools import pairwise
from typing import Any, Final, NamedTuple

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageFilter
from PIL.JpegImagePlugin import JpegImageFile

from chestxray.errors import FilmError
from chestxray.images.decode import decode, format_of
from chestxray.images.dicom import elements, open_data_set
from chestxray.images.preprocess import Plane, resample
from chestxray.images.radiograph import Radiograph
from chestxray.schema import Resize

Numbers = npt.NDArray[np.float32]

SIDE: Final = 240  # pixels of the square that every film is brought to
CELL: Final = 12  # pixels of a cell of the border
CELLS: Final = SIDE // CELL  # 20 cells a side
BORDER: Final = 0.15  # of each side. On drawn films with nothing but the lungs to tell, this border tells nothing
BORDER_CELLS: Final = round(CELLS * BORDER)  # 3
BORDER_PIXELS: Final = BORDER_CELLS * CELL  # 36

_LEVELS: Final = (0.0, 0.01, 0.05, 0.1, 0.25, 0.5, 0.75, 0.9, 0.95, 0.99, 1.0)  # quantiles of the grey levels
_SHARPNESS: Final = (0.5, 0.9, 0.99)  # quantiles of the gradients
_BANDS: Final = (2, 4, 8, 16, 24, 32, 48, 64, 80, 100, 121)  # edges, cycles a side of the film
_STROKE: Final = 4  # pixels, radius of what a stroke stands out from
_FAINTEST: Final = 8.0  # grey levels between the bright and the dark of a border; a smaller spread is grain
_DARK: Final = 0.05  # of white: a row or column below it is a black margin

_DICOM_TEXTS: Final = {
    0x00080070: "manufacturer",
    0x00081090: "model",
    0x00181004: "plate",
    0x00181020: "software",
    0x00181400: "processing",
}  # no element that could name a patient, a place or a person

_BORDER_OF_CELLS: Final = np.ones((CELLS, CELLS), dtype=np.bool_)
_BORDER_OF_CELLS[BORDER_CELLS:-BORDER_CELLS, BORDER_CELLS:-BORDER_CELLS] = False
_BORDER_OF_PIXELS: Final = np.kron(_BORDER_OF_CELLS, np.ones((CELL, CELL), dtype=np.bool_))


class Lungless(NamedTuple):
    """The features of one film.

    Attributes:
        numbers: one array a group of ``GROUPS``, the same length for every film; NaN where the file says nothing.
        texts: what the file's header says in words, by name ("format", "model"); empty values are left out.
    """

    numbers: dict[str, Numbers]
    texts: dict[str, str]


def lungless(data: bytes, source: str) -> Lungless:
    """Measure the features of one film. Raises: what ``decode`` raises."""
    film = decode(data, source, at_least=(SIDE, SIDE))
    plane = resample(film.pixels, SIDE, SIDE, Resize.SQUEEZE, film.frame)
    numbers = {name: np.asarray(measure(plane), dtype=np.float32) for name, measure in PICTURE_GROUPS.items()}
    numbers["size"] = np.array([film.width, film.height, film.width / film.height], dtype=np.float32)
    file_numbers, texts = _file(data, source, film)
    numbers["file"] = file_numbers
    return Lungless(numbers, texts)


# --------------------------------------------------------------------------- the picture's border


def frame(plane: Plane) -> Numbers:
    """Where the border is bright and where dark, and the width of the black margin at each edge; shape (208,).

    A cell's mean grey is told on the film's own scale, so that a film taken darker has the same frame.
    """
    cells = plane.reshape(CELLS, CELL, CELLS, CELL).mean(axis=(1, 3), dtype=np.float32)[_BORDER_OF_CELLS]
    low, high = np.quantile(cells, (0.1, 0.9))
    return np.concatenate([(cells - low) / max(float(high - low), _FAINTEST), _margins(plane)]).astype(np.float32)


def _margins(plane: Plane) -> Numbers:
    """Black rows or columns at the left, right, upper and lower edge, at most the border's own width."""
    margins = []
    for levels in (plane.mean(axis=0), plane.mean(axis=1)):
        for towards_middle in (levels[:BORDER_PIXELS], levels[::-1][:BORDER_PIXELS]):
            lit = np.flatnonzero(towards_middle > 255 * _DARK)
            margins.append(float(lit[0]) if len(lit) else float(BORDER_PIXELS))
    return np.array(margins, dtype=np.float32)


def marks(plane: Plane) -> Numbers:
    """How bright the brightest stroke of each border cell stands out from what lies round it, shape (204,).

    Letters, arrows and wires are a few pixels wide; a rib or the edge of the patient is wider.
    """
    image = Image.fromarray(plane)
    round_it = np.asarray(image.filter(ImageFilter.BoxBlur(_STROKE)), dtype=np.int16)
    strokes = (plane.astype(np.int16) - round_it).clip(0)
    brightest = strokes.astype(np.float32).reshape(CELLS, CELL, CELLS, CELL).max(axis=(1, 3))
    found: Numbers = brightest[_BORDER_OF_CELLS]
    return found


def grey_levels(plane: Plane) -> Numbers:
    """Quantiles of the border's grey levels, shares of black and of white, how many levels occur; shape (14,)."""
    counts = np.bincount(plane[_BORDER_OF_PIXELS], minlength=256)
    below = np.cumsum(counts) / counts.sum()
    quantiles = np.searchsorted(below, np.array(_LEVELS) - 1e-9).clip(0, 255)
    quantiles[0] = np.flatnonzero(counts)[0]
    extremes = (counts[0] / counts.sum(), counts[-1] / counts.sum(), np.count_nonzero(counts))
    return np.concatenate([quantiles, extremes]).astype(np.float32)


def sharpness(plane: Plane) -> Numbers:
    """Gradients and spectra along the border, which compression and enlarging smooth; shape (28,)."""
    levels = plane.astype(np.float32)
    across, down = np.abs(np.diff(levels, axis=1)), np.abs(np.diff(levels, axis=0))
    found: list[Any] = []
    for steps, border in ((across, _BORDER_OF_PIXELS[:, 1:]), (down, _BORDER_OF_PIXELS[1:])):
        values = steps[border]
        found += [values.mean(), *np.quantile(values, _SHARPNESS)]
    for turned in (levels, levels.T):
        strips = np.concatenate([turned[:BORDER_PIXELS], turned[-BORDER_PIXELS:]])
        spectrum = np.abs(np.fft.rfft(strips * np.hanning(SIDE), axis=1)).mean(axis=0)
        found += [np.log1p(spectrum[low:high].mean()) for low, high in pairwise(_BANDS)]
    return np.array(found, dtype=np.float32)


# One row a group of features that the picture's border gives.
PICTURE_GROUPS: Final[dict[str, Callable[[Plane], Numbers]]] = {
    "frame": frame,
    "marks": marks,
    "grey": grey_levels,
    "sharpness": sharpness,
}
GROUPS: Final = (*PICTURE_GROUPS, "size", "file")


# --------------------------------------------------------------------------- the file


def _file(data: bytes, source: str, film: Radiograph) -> tuple[Numbers, dict[str, str]]:
    """What the file's header says: channels, bits, quantisation, density; and in words."""
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
    """Mean steps of the first and the last quantisation table, dots an inch; and what else tells its maker."""
    image = JpegImageFile(io.BytesIO(data))  # reads the header alone
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
    """Manufacturer, model, plate, software and processing; nothing that names a patient or a place."""
    try:
        data_set = open_data_set(data, source)
        found = {}
        for element in elements(data_set.data, data_set.start, data_set.encoding, source):
            if name := _DICOM_TEXTS.get(element.tag):
                text = data_set.data[element.value : element.end].decode("ascii", "replace")
                found[name] = " ".join(text.strip("\0 ").split())[:64]
        return found | {"syntax": data_set.transfer_syntax}
    except FilmError:  # decoded already: a header that ends early has told what it has
        return {}
