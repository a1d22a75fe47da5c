"""From bytes to pixels to the network's input; here what all readers share: the radiograph and its limits.

Pillow decodes; NumPy does the rest.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final

import numpy as np
import numpy.typing as npt
from PIL import Image

from chestxray.arrays import UInt8Array
from chestxray.errors import FilmTooLarge, UnreadableFilm

Pixels = UInt8Array | npt.NDArray[np.uint16]
FrameBox = tuple[float, float, float, float]

LEVELS: Final = 256  # grey levels of 8 bits
WHITE: Final = LEVELS - 1  # black is 0

MAX_BYTES: Final = 64 * 2**20  # bytes of one film's file
MAX_PIXELS: Final = 64_000_000  # rows x columns x frames x samples; the largest flat panels give about 18 million

# The largest distance between the channels of one pixel, of 255, at which the pixel counts as grey. JPEG stores
# colour coarsely, so greyscale films saved as RGB drift by a few levels.
COLOUR_SPREAD: Final = 24

MAX_PIXELS_A_BYTE: Final = 200  # pixels a byte of a large file; a film reaches 20, a flat picture 100,000
LARGE: Final = 25_000_000  # pixels, more than any panel gives; below that a small file may be that large
MAX_SCANS: Final = 100  # scans of a progressive JPEG; encoders write about 10, a bomb makes the decoder run thousands
MAX_SCANNED: Final = 10 * MAX_PIXELS  # scans x pixels: each scan goes over every pixel again

MARGIN: Final = 10  # a tenth of each side, where collimators, markers and the air beside the patient are
LOOKED_AT: Final = 512  # rows and columns at most: enough to measure fractions of pixels


@dataclass(frozen=True, slots=True)
class Radiograph:
    r"""A decoded film, upright and greyscale.

    Attributes:
        pixels: shape (height, width) after any reduction; uint8, or uint16 spanning 0 to 65535; black is 0.
        width, height: size of the stored film, upright, before any reduction.
        channels: samples a pixel in the file; a palette counts as its colours.
        bit_depth: bits a sample in the file.
        coloured: share of pixels whose channels differ visibly, 0 to 1.
        frame: left, upper, right and lower edge of the film within ``pixels``; None if the film fills them. A
            JPEG of 1,766 columns read at a quarter has 442 of which the last one is half outside the film.
        modality, photometric, view_position, body_part: as a DICOM file states them ("DX", "MONOCHROME1",
            "PA", "CHEST"), in capitals; empty if the file does not state it.
        view_meaning: meaning of the view's code ("postero-anterior"); empty if the file does not state it.
        orientation: direction of the rows and of the columns, as in "L\F"; empty if the file does not state it.
        series_description: kept out of ``repr``, because people may write anything into it.
        notes: values of the file that were ignored or assumed, each in a short clause.
        patient_id: as a DICOM file states it; kept out of ``repr`` so that it reaches no log by accident.
        patient_age_years: at the time of the film, the middle of the possible range ("000Y" is half a year); None if
            the file states no age, or a placeholder date.
    """

    pixels: Pixels
    width: int
    height: int
    channels: int
    bit_depth: int
    coloured: float
    frame: FrameBox | None = None
    modality: str = ""
    photometric: str = ""
    view_position: str = ""
    body_part: str = ""
    patient_id: str = field(default="", repr=False)
    patient_age_years: float | None = None
    view_meaning: str = ""
    orientation: str = ""
    series_description: str = field(default="", repr=False)
    notes: tuple[str, ...] = ()


def check_pixels(source: str, width: int, height: int, samples: int = 1, frames: int = 1) -> None:
    """Refuse too many pixels before memory is allocated for them. Raises: FilmTooLarge."""
    if width * height * samples * frames > MAX_PIXELS:
        by = f" x {samples} samples" if samples > 1 else ""
        by += f" x {frames} frames" if frames > 1 else ""
        raise FilmTooLarge(
            f"{source}: {width} x {height} pixels{by}; the limit is {MAX_PIXELS:,} in all. Export a smaller copy"
        )


def check_packed(source: str, width: int, height: int, size: int) -> None:
    """Refuse a large picture in a small file: decoding it costs what a hundred films cost, and it shows nothing.

    Args:
        source: the film's name in errors.
        width, height: of the picture, in pixels.
        size: of the file, in bytes.

    Raises: FilmTooLarge.
    """
    if (pixels := width * height) > max(LARGE, MAX_PIXELS_A_BYTE * size):
        raise FilmTooLarge(
            f"{source}: {pixels:,} pixels in {size:,} bytes, so it holds no film but something nearly uniform "
            f"(limit {MAX_PIXELS_A_BYTE} pixels a byte). Export it again"
        )


def check_scans(source: str, scans: int, width: int, height: int) -> None:
    """Refuse a JPEG whose scans are too many, or too many for its size. Raises: UnreadableFilm, FilmTooLarge."""
    if scans > MAX_SCANS:
        raise UnreadableFilm(f"{source}: the JPEG has {scans} scans; the limit is {MAX_SCANS}. Export it again")
    if scans * width * height > MAX_SCANNED:
        raise FilmTooLarge(
            f"{source}: {scans} scans of {width} x {height} pixels; the limit is {MAX_SCANNED:,} pixels in all scans "
            "together. Export it as a baseline JPEG"
        )


def sampling_step(pixels: Pixels) -> int:
    """Return the step at which a film's rows and columns are looked at: about ``LOOKED_AT`` of its longer side.

    Args:
        pixels: shape (h, w).
    """
    height, width = pixels.shape
    return max(1, int(height) // LOOKED_AT, int(width) // LOOKED_AT)


def grey_of_colour(colour: UInt8Array) -> tuple[UInt8Array, float]:
    """Return luminance (ITU-R BT.601), and the fraction of pixels that are visibly coloured.

    Args:
        colour: shape (height, width, 3), red, green, blue.
    """
    red, green, blue = colour[..., 0], colour[..., 1], colour[..., 2]
    first = np.ascontiguousarray(red)
    if np.array_equal(first, green) and np.array_equal(first, blue):
        return first, 0.0
    spread = np.maximum(np.maximum(red, green), blue) - np.minimum(np.minimum(red, green), blue)
    return np.asarray(Image.fromarray(colour).convert("L")), float(np.mean(spread > COLOUR_SPREAD))
