"""JPEG, PNG and TIFF. Pillow decodes; its readers are called by class, never by guessing."""

from __future__ import annotations

import io
import struct
import zlib
from typing import Final

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageChops, ImageOps
from PIL.JpegImagePlugin import JpegImageFile
from PIL.PngImagePlugin import PngImageFile
from PIL.TiffImagePlugin import TiffImageFile

from chestxray.errors import TruncatedFilm, UnreadableFilm, UnsupportedFormat
from chestxray.images.radiograph import Box, Pixels, Radiograph, check_pixels, grey_of_colour

# Little and big endian, each as classic TIFF and as BigTIFF.
TIFF_MAGIC: Final = frozenset({b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"})

MAX_SCANS: Final = 100  # of a progressive JPEG; encoders write about 10, a bomb makes the decoder run thousands

# What Pillow's readers raise on damaged files.
DAMAGE: Final = (
    OSError, SyntaxError, ValueError, TypeError, LookupError, AttributeError, ArithmeticError, RuntimeError, EOFError,
    MemoryError, struct.error, zlib.error,
)  # fmt: skip

_WORD: Final = 16  # bits
_ORIENTATION: Final = 0x0112
_ON_ITS_SIDE: Final = frozenset({5, 6, 7, 8})
_STARTS_RIGHT: Final = frozenset({2, 3, 6, 7})  # the stored picture's first pixel is shown on the right side
_STARTS_BELOW: Final = frozenset({3, 4, 7, 8})
_TIFF_BITS: Final = 258
_TIFF_PHOTOMETRIC: Final = 262
_TIFF_WHITE_IS_ZERO: Final = 0
_TIFF_MODES: Final = frozenset({"1", "L", "LA", "P", "RGB", "RGBA", "RGBX", "CMYK", "YCbCr", "I;16", "I;16B"})


def read_jpeg(data: bytes, source: str, at_least: tuple[int, int] | None) -> Radiograph:
    """A JPEG: baseline or progressive, grey, colour or CMYK, whatever its EXIF orientation."""
    try:
        image = JpegImageFile(io.BytesIO(data))
        channels = len(image.getbands())
        check_pixels(source, *image.size, samples=channels)
        # Within coded data 0xFF is always followed by 0, so these two bytes begin a scan.
        if (scans := data.count(b"\xff\xda")) > MAX_SCANS:
            raise UnreadableFilm(f"{source}: the JPEG has {scans} scans; the limit is {MAX_SCANS}. Export it again")
        stored, reduced = image.size, None
        orientation = image.getexif().get(_ORIENTATION, 1)
        if at_least is not None:
            height, width = reversed(at_least) if orientation in _ON_ITS_SIDE else at_least
            reduced = image.draft(None, (2 * width, 2 * height))  # None keeps the stored mode
        image.load()
        if image.mode == "CMYK" and "adobe" not in image.info:
            # Pillow takes every CMYK JPEG for one of Adobe's, which are stored inverted.
            upright = ImageOps.exif_transpose(ImageChops.invert(image))
        else:
            upright = ImageOps.exif_transpose(image)
        grey, coloured = _to_grey(upright)
    except DAMAGE as error:
        raise _translated(error, "JPEG", source) from error
    frame = None
    if image.size != stored and reduced is not None:
        _, (_, _, inner_width, inner_height) = reduced
        frame = _upright_frame(inner_width, inner_height, image.size, orientation)
    width, height = reversed(stored) if orientation in _ON_ITS_SIDE else stored
    return Radiograph(grey, width, height, channels, 8, coloured, frame)


def read_png(data: bytes, source: str, _at_least: tuple[int, int] | None) -> Radiograph:
    """A PNG of 1 to 16 bits: grey, colour or palette, with or without alpha, which is laid over black.

    Pillow keeps the upper 8 bits of colour with 16 bits a channel; grey keeps all 16.
    """
    try:
        image = PngImageFile(io.BytesIO(data))
        channels = 3 if image.mode == "P" else len(image.getbands())
        check_pixels(source, *image.size, samples=channels)
        if image.is_animated:
            raise UnsupportedFormat(f"{source}: an animated PNG of {image.n_frames} frames; a radiograph has one")
        image.load()
        grey, coloured = _to_grey(ImageOps.exif_transpose(image))
    except DAMAGE as error:
        raise _translated(error, "PNG", source) from error
    height, width = grey.shape
    depth = data[24]  # a PNG begins with IHDR, whose depth is byte 24
    return Radiograph(grey, width, height, channels, depth, coloured)


def read_tiff(data: bytes, source: str, _at_least: tuple[int, int] | None) -> Radiograph:
    """A TIFF of one page: grey of 1 to 16 bits, or colour of 8.

    Raises: UnsupportedFormat, for several pages, and for 32-bit and floating samples, whose white is nowhere
        defined.
    """
    try:
        image = TiffImageFile(io.BytesIO(data))
        channels = 3 if image.mode == "P" else len(image.getbands())
        check_pixels(source, *image.size, samples=channels)
        depth = image.tag_v2.get(_TIFF_BITS, (1,))[0]
        if image.mode not in _TIFF_MODES:
            raise UnsupportedFormat(
                f"{source}: the TIFF holds samples of {depth} bits in a form that has no defined white "
                f"({image.mode}). Export it as unsigned 8 or 16 bits"
            )
        if _has_another_page(image):
            raise UnsupportedFormat(f"{source}: the TIFF has several pages; a radiograph has one. Export its page")
        inverted = image.mode.startswith("I") and image.tag_v2.get(_TIFF_PHOTOMETRIC) == _TIFF_WHITE_IS_ZERO
        image.load()  # turns the picture upright as well
        grey, coloured = _to_grey(image, bits=depth)
    except DAMAGE as error:
        raise _translated(error, "TIFF", source) from error
    if inverted:  # Pillow sees to it for up to 8 bits
        grey = 65535 - grey
    height, width = grey.shape
    return Radiograph(grey, width, height, channels, depth, coloured)


def _has_another_page(image: TiffImageFile) -> bool:
    try:
        image.seek(1)
    except EOFError:
        return False
    return True


def _upright_frame(width: float, height: float, picture: tuple[int, int], orientation: int) -> Box:
    """Where a film of that size in reduced pixels lies within its reduced picture, once that is upright.

    The JPEG decoder rounds sizes up: its last row and column may lie partly outside the film, on the sides
    that were lower and right before the picture was turned.
    """
    if orientation in _ON_ITS_SIDE:
        width, height = height, width
        picture = picture[::-1]
    left = picture[0] - width if orientation in _STARTS_RIGHT else 0.0
    upper = picture[1] - height if orientation in _STARTS_BELOW else 0.0
    return left, upper, left + width, upper + height


def _to_grey(image: Image.Image, bits: int = _WORD) -> tuple[Pixels, float]:
    """Grey levels, and the share of coloured pixels.

    Args:
        bits: how many of a 16-bit sample's bits are used; fewer are scaled up to span all levels.
    """
    if image.mode.startswith("I"):
        wide: npt.NDArray[np.uint16] = np.asarray(image).astype(np.uint16)
        unused = _WORD - bits
        if unused:
            wide = ((wide << unused) | (wide >> (bits - unused))).astype(np.uint16)
        return wide, 0.0
    if image.mode in {"1", "L"}:
        return np.asarray(image.convert("L")), 0.0
    if image.has_transparency_data or image.mode in {"LA", "RGBA", "PA"}:
        image = Image.alpha_composite(Image.new("RGBA", image.size, "black"), image.convert("RGBA"))
    return grey_of_colour(np.asarray(image.convert("RGB")))


def _translated(error: Exception, name: str, source: str) -> UnreadableFilm | UnsupportedFormat:
    text = str(error).lower()
    if "unknown pixel mode" in text or "unknown data organization" in text:
        return UnsupportedFormat(f"{source}: a {name} of a rare kind ({error}). Export it as unsigned 8 or 16 bits")
    if "truncated" in text or "unexpected end" in text or "broken data stream" in text:
        return TruncatedFilm(f"{source}: the {name} file ends before its picture does. Copy it again")
    return UnreadableFilm(f"{source}: the {name} file is damaged ({error}). Copy it again")
