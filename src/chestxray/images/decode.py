"""Bytes to a radiograph: one table of formats, limits checked before anything is decoded.

``decode`` is pure: bytes in, pixels out, typed errors only. It never opens a path or an address.
"""

from __future__ import annotations

import io
import struct
import zlib
from dataclasses import dataclass
from typing import Final, NamedTuple

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageFile, ImageOps
from PIL.JpegImagePlugin import JpegImageFile
from PIL.PngImagePlugin import PngImageFile

from chestxray.errors import FilmTooLarge, TruncatedFilm, UnreadableFilm, UnsupportedFormat

Pixels = npt.NDArray[np.uint8] | npt.NDArray[np.uint16]

MAX_BYTES: Final = 64 * 2**20  # of one film's file
MAX_PIXELS: Final = 64_000_000  # the largest flat-panel detectors give about 18 million

# How far apart the channels of one pixel may lie, of 255, before the pixel counts as coloured. JPEG stores
# colour coarsely, so greyscale films saved as RGB drift by a few levels.
COLOUR_SPREAD: Final = 24


class Format(NamedTuple):
    """One row of the table of formats."""

    name: str
    media_type: str
    magic: bytes
    reader: type[ImageFile.ImageFile]


# The readers are called directly: ``Image.open`` would try every format that Pillow knows.
FORMATS: Final = (
    Format("JPEG", "image/jpeg", b"\xff\xd8\xff", JpegImageFile),
    Format("PNG", "image/png", b"\x89PNG\r\n\x1a\n", PngImageFile),
)


@dataclass(frozen=True, slots=True)
class Radiograph:
    """A decoded film, upright and greyscale.

    Attributes:
        pixels: shape (height, width) after any reduction; uint8, or uint16 spanning 0 to 65535; black is 0.
        width, height: of the film as stored, upright, before any reduction.
        channels: samples a pixel in the file; a palette counts as the colours it stands for.
        bit_depth: bits a sample in the file.
        coloured: share of pixels whose channels differ visibly, 0 to 1.
    """

    pixels: Pixels
    width: int
    height: int
    channels: int
    bit_depth: int
    coloured: float


def decode(data: bytes, source: str, at_least: tuple[int, int] | None = None) -> Radiograph:
    """Decode the bytes of one film.

    Args:
        data: the whole file.
        source: what to call it in errors.
        at_least: (height, width) that the caller will shrink the film to. A large JPEG is then decoded at
            1/2, 1/4 or 1/8 of its size, the smallest that still has twice that many pixels on each axis.

    Raises: UnsupportedFormat, FilmTooLarge, TruncatedFilm, UnreadableFilm.
    """
    if len(data) > MAX_BYTES:
        raise FilmTooLarge(f"{source}: {len(data):,} bytes; the limit is {MAX_BYTES:,}. Export a smaller copy")
    form = format_of(data, source)
    try:
        image = form.reader(io.BytesIO(data))
        _check_size(image, source)
        full_size = image.size
        depth, channels = _stored_as(image, data)
        if at_least is not None and isinstance(image, JpegImageFile):
            _reduce(image, at_least)
        image.load()
        rotated = image.getexif().get(_EXIF_ORIENTATION, 1) in _EXIF_ON_ITS_SIDE
        grey, coloured = _to_grey(ImageOps.exif_transpose(image))
    except (OSError, SyntaxError, ValueError, TypeError, KeyError, IndexError, struct.error, zlib.error) as error:
        raise _translated(error, form, source) from error
    width, height = reversed(full_size) if rotated else full_size
    return Radiograph(grey, width, height, channels, depth, coloured)


def format_of(data: bytes, source: str) -> Format:
    """The row of the table whose first bytes these are. Raises: UnsupportedFormat."""
    for form in FORMATS:
        if data.startswith(form.magic):
            return form
    found = "the file is empty" if not data else f"it begins with {data[:8].hex(' ')}"
    names = " or ".join(form.name for form in FORMATS)
    raise UnsupportedFormat(f"{source}: not a {names} file ({found})")


_EXIF_ORIENTATION: Final = 0x0112
_EXIF_ON_ITS_SIDE: Final = frozenset({5, 6, 7, 8})


def _check_size(image: Image.Image, source: str) -> None:
    width, height = image.size
    if width * height > MAX_PIXELS:
        raise FilmTooLarge(
            f"{source}: {width} x {height} pixels; the limit is {MAX_PIXELS:,} in all. Export a smaller copy"
        )


def _stored_as(image: Image.Image, data: bytes) -> tuple[int, int]:
    """Bits a sample and samples a pixel, as stored."""
    depth = data[24] if isinstance(image, PngImageFile) else 8  # a PNG begins with IHDR, whose depth is byte 24
    channels = 3 if image.mode == "P" else len(image.getbands())
    return depth, channels


def _reduce(image: JpegImageFile, at_least: tuple[int, int]) -> None:
    height, width = at_least
    image.draft(None, (2 * width, 2 * height))  # None keeps the stored mode


def _to_grey(image: Image.Image) -> tuple[Pixels, float]:
    """Grey levels, and the share of coloured pixels."""
    if image.mode.startswith("I"):
        wide = np.asarray(image).astype(np.uint16)
        return wide, 0.0
    if image.mode in {"1", "L"}:
        return np.asarray(image.convert("L")), 0.0
    if image.has_transparency_data or image.mode in {"LA", "RGBA", "PA"}:
        image = Image.alpha_composite(Image.new("RGBA", image.size, "black"), image.convert("RGBA"))
    colour = np.asarray(image.convert("RGB"))
    red, green, blue = colour[..., 0], colour[..., 1], colour[..., 2]
    spread = np.maximum(np.maximum(red, green), blue) - np.minimum(np.minimum(red, green), blue)
    return np.asarray(Image.fromarray(colour).convert("L")), float(np.mean(spread > COLOUR_SPREAD))


def _translated(error: Exception, form: Format, source: str) -> UnreadableFilm:
    text = str(error).lower()
    if "truncated" in text or "unexpected end" in text or "broken data stream" in text:
        return TruncatedFilm(f"{source}: the {form.name} file ends before its picture does. Copy it again")
    return UnreadableFilm(f"{source}: the {form.name} file is damaged ({error}). Copy it again")
