"""JPEG, PNG, TIFF, WebP, BMP, GIF, JPEG 2000, PGM and HEIC.

Pillow decodes; each reader is called by its class, never by guessing. The pixels of a JPEG come from libjpeg-turbo
through simplejpeg, which reports damage that Pillow ignores. The levels are the same.
"""

from __future__ import annotations

import io
import re
import struct
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise
from typing import Any, Final, NamedTuple

import numpy as np
import numpy.typing as npt
import simplejpeg
from PIL import Image, ImageFile, ImageOps
from PIL.BmpImagePlugin import BmpImageFile
from PIL.GifImagePlugin import GifImageFile
from PIL.Jpeg2KImagePlugin import Jpeg2KImageFile
from PIL.JpegImagePlugin import JpegImageFile
from PIL.PngImagePlugin import PngImageFile
from PIL.PpmImagePlugin import PpmImageFile
from PIL.TiffImagePlugin import TiffImageFile
from PIL.WebPImagePlugin import WebPImageFile

from chestxray.arrays import UInt8Array
from chestxray.errors import FilmError, FilmTooLarge, TruncatedFilm, UnreadableFilm, UnsupportedFormat
from chestxray.images import FrameBox, Pixels, Radiograph, check_packed, check_pixels, check_scans, grey_of_colour

# Little and big endian, each as classic TIFF and as BigTIFF.
TIFF_MAGIC: Final = frozenset({b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"})

REDUCTIONS: Final = (8, 4, 2, 1)  # reductions of a JPEG on each side, which cost less than the whole
MAX_EXIF: Final = 100  # segments of EXIF in a JPEG; Pillow copies all that it has for each further one

# Errors of Pillow's readers on damaged files.
DAMAGE: Final = (
    OSError, SyntaxError, ValueError, TypeError, LookupError, AttributeError, ArithmeticError, RuntimeError, EOFError,
    MemoryError, struct.error, zlib.error,
)  # fmt: skip

_ENDS_EARLY: Final = ("truncated", "unexpected end", "broken data stream", "premature end of jpeg file")
_WORD: Final = 16  # bits
_ORIENTATION: Final = 0x0112
_ON_ITS_SIDE: Final = frozenset({5, 6, 7, 8})
_STARTS_RIGHT: Final = frozenset({2, 3, 6, 7})  # the first stored pixel is displayed on the right side
_STARTS_BELOW: Final = frozenset({3, 4, 7, 8})
_UPRIGHT: Final = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_COLOUR_SPACES: Final = {"L": "GRAY", "RGB": "RGB", "CMYK": "CMYK"}
_INKS: Final = 4
# The usual codes of luminance (ITU-T T.81, table K.5): their lengths, and the first of their symbols.
_USUAL_CODES: Final = bytes.fromhex("0002010303020403050504040000017d0102030004110512")
# Within coded data 0xFF is always followed by 0, so these two bytes begin a scan.
START_OF_SCAN: Final = b"\xff\xda"
_PROGRESSIVE_FRAME: Final = b"\xff\xc2"
_HEAD_OF_SCAN: Final = 14  # bytes, at most, before the coded data of a scan of four components
_RUN: Final = 64  # bytes of one value; the search is sure to find half of it
_TIFF_BITS: Final = 258
_TIFF_COMPRESSION: Final = 259
_TIFF_JPEG: Final = frozenset({6, 7})
_TIFF_PARTS: Final = ((273, 324), (279, 325))  # where strips or tiles begin, and their sizes
_TIFF_PHOTOMETRIC: Final = 262
_TIFF_WHITE_IS_ZERO: Final = 0
_TIFF_MODES: Final = frozenset({"1", "L", "LA", "P", "RGB", "RGBA", "RGBX", "CMYK", "YCbCr", "I;16", "I;16B"})


def read_jpeg(data: bytes, source: str, at_least: tuple[int, int] | None) -> Radiograph:
    """Read a JPEG: baseline or progressive, grey, colour or CMYK, with any EXIF orientation.

    At damaged coded data libjpeg continues, fills in grey and only warns. Here every warning refuses the film, because
    nothing tells how much of the picture is invented.
    """
    if (segments := data.count(b"Exif\0\0")) > MAX_EXIF:
        raise UnreadableFilm(f"{source}: the JPEG has {segments} segments of EXIF; the limit is {MAX_EXIF}")
    with _damage_translated("JPEG", source):
        image = JpegImageFile(io.BytesIO(data))  # reads only the header
        channels = len(image.getbands())
        check_pixels(source, *image.size, samples=channels)
        check_scans(source, data.count(START_OF_SCAN), *image.size)
        orientation = image.getexif().get(_ORIENTATION, 1)
        factor = 1
        if at_least is not None:
            height, width = reversed(at_least) if orientation in _ON_ITS_SIDE else at_least
            room = min(image.width // (2 * width), image.height // (2 * height))
            factor = next(each for each in REDUCTIONS if each <= max(room, 1))
        pixels = intact_jpeg(data, _COLOUR_SPACES[image.mode], image.size, factor)
        grey, coloured = _grey_of_jpeg(pixels, orientation, inverted="adobe" in image.info)
    stored = image.size
    frame = None
    if factor > 1:
        frame = _upright_frame(stored[0] / factor, stored[1] / factor, (pixels.shape[1], pixels.shape[0]), orientation)
    width, height = reversed(stored) if orientation in _ON_ITS_SIDE else stored
    return Radiograph(grey, width, height, channels, 8, coloured, frame)


def intact_jpeg(data: bytes, colours: str, size: tuple[int, int], factor: int = 1) -> UInt8Array:
    """Return the pixels of an undamaged JPEG: shape (rows, columns, samples), rounded up if reduced.

    Args:
        data: the whole file.
        colours: "GRAY", "RGB" or "CMYK".
        size: width and height, as in its header.
        factor: 1, 2, 4 or 8: factor by which each side is reduced.

    Raises: ValueError, with libjpeg's first warning or error; also if a part was overwritten by one value, which
    libjpeg may take for pixels.
    """
    width, height = (-(-side // factor) for side in size)
    pixels: UInt8Array = simplejpeg.decode_jpeg(
        data, colours, min_height=height, min_width=width, min_factor=factor, strict=True
    )
    if _overwritten(data):
        raise ValueError("its coded data were overwritten by one value")
    return pixels


def _overwritten(data: bytes) -> bool:
    """Check whether a part was overwritten by one value, in a way that no encoder writes.

    Under the usual codes an empty block of the picture takes six bits, so that not even black repeats with every byte.
    Codes made for a picture may write it as zeros, but hardly in a progressive file's scans of higher frequencies:
    these state the length of a run of empty blocks.
    """
    scan = data.rfind(b"\xff\xda")
    head = data[data.rfind(b"\xff\xd9", 0, scan) + 2 : scan]  # after the thumbnail that EXIF may hold
    if _PROGRESSIVE_FRAME in head:
        frame = data.rfind(_PROGRESSIVE_FRAME, 0, scan)  # metadata, which may hold anything, stand before it
        scans = data[frame : data.find(b"\xff\xd9", frame)]
        return any(_repeats(scans, *part) for part in _scans_of_frequencies(scans))
    return _USUAL_CODES in head and _repeats(data, scan + _HEAD_OF_SCAN, data.find(b"\xff\xd9", scan))


def _repeats(data: bytes, start: int, end: int) -> bool:
    """Check whether coded data have a run of one value; hardly any film has one."""
    half = _RUN // 2
    every = np.frombuffer(data, np.uint8)[start:end:half]
    for at in np.flatnonzero(every[1:] == every[:-1]):
        first = start + int(at) * half
        if first + half < end and data.count(data[first : first + 1], first, first + half) == half:
            return True
    return False


def _scans_of_frequencies(data: bytes) -> Iterator[tuple[int, int]]:
    """Yield where the coded data of scans begin and end, but for scans of mean levels, whose emptiness may be zeros.

    Args:
        data: a progressive file from its frame header to its end.
    """
    scans = [match.start() for match in re.finditer(rb"\xff\xda", data)]
    for scan, following in pairwise([*scans, len(data)]):
        begin = scan + 8 + 2 * int.from_bytes(data[scan + 4 : scan + 5])  # T.81 figure B.4: two bytes a component
        codes = data.find(b"\xff\xc4", begin, following)  # of the next scan
        if data[begin - 3 : begin - 2] > b"\0":  # the lowest frequency
            yield begin, codes if codes >= 0 else following


def _grey_of_jpeg(pixels: UInt8Array, orientation: int, *, inverted: bool) -> tuple[Pixels, float]:
    """Return grey levels, upright, and the fraction of coloured pixels.

    Args:
        pixels: shape (rows, columns, 1, 3 or 4).
        orientation: the EXIF value.
        inverted: whether inks are stored inverted, as Adobe's programs do.
    """
    if pixels.shape[2] == 1:
        grey, coloured = pixels[..., 0], 0.0
    elif pixels.shape[2] == _INKS:
        image = Image.fromarray(255 - pixels if inverted else pixels, "CMYK")
        grey, coloured = grey_of_colour(np.asarray(image.convert("RGB")))
    else:
        grey, coloured = grey_of_colour(pixels)
    turn = _UPRIGHT.get(orientation)
    if turn is not None:
        grey = np.asarray(Image.fromarray(np.ascontiguousarray(grey)).transpose(turn))
    return grey, coloured


def read_png(data: bytes, source: str, _at_least: tuple[int, int] | None) -> Radiograph:
    """Read a PNG of 1 to 16 bits: grey, colour or palette; transparent parts are laid over black.

    Pillow keeps the upper 8 bits of colour with 16 bits a channel; grey keeps all 16.
    """
    with _damage_translated("PNG", source):
        image = PngImageFile(io.BytesIO(data))
        channels = _channels_of(image, source, data)
        if image.is_animated:
            raise UnsupportedFormat(f"{source}: an animated PNG of {image.n_frames} frames; a radiograph has one")
        image.load()
        grey, coloured = _to_grey(ImageOps.exif_transpose(image))
    return _whole(grey, channels, data[24], coloured)  # a PNG begins with IHDR, whose depth is byte 24


def read_tiff(data: bytes, source: str, _at_least: tuple[int, int] | None) -> Radiograph:
    """Read a TIFF of one page: grey of 1 to 16 bits, or colour of 8 bits.

    Raises: UnsupportedFormat, for several pages, and for 32-bit and floating-point samples, which have no defined
    white.
    """
    with _damage_translated("TIFF", source):
        image = TiffImageFile(io.BytesIO(data))
        channels = _channels_of(image, source, data)
        depth = image.tag_v2.get(_TIFF_BITS, (1,))[0]
        if image.mode not in _TIFF_MODES:
            raise UnsupportedFormat(
                f"{source}: the TIFF holds samples of {depth} bits in a form that has no defined white "
                f"({image.mode}). Export it as unsigned 8 or 16 bits"
            )
        if (pages := len(_directories(data))) > 1:
            raise UnsupportedFormat(
                f"{source}: the TIFF has {pages} pages; a radiograph has one. Say which: chestxray predict --page 1, "
                "or export it alone"
            )
        if image.tag_v2.get(_TIFF_COMPRESSION) in _TIFF_JPEG:
            check_scans(source, _scans_of_tiff(image, data), *image.size)
        inverted = image.mode.startswith("I") and image.tag_v2.get(_TIFF_PHOTOMETRIC) == _TIFF_WHITE_IS_ZERO
        image.load()  # also turns the picture upright
        grey, coloured = _to_grey(image, bits=depth)
    # Pillow inverts pictures of up to 8 bits itself.
    return _whole(65535 - grey if inverted else grey, channels, depth, coloured)


def _scans_of_tiff(image: TiffImageFile, data: bytes) -> int:
    """Return the most scans of a strip or tile, each of which is a JPEG. Raises: ValueError, if they overlap."""
    starts, sizes = (image.tag_v2.get(strip) or image.tag_v2[tile] for strip, tile in _TIFF_PARTS)
    if sum(sizes) > len(data):
        raise ValueError("its parts together are longer than the file")
    return max(data.count(START_OF_SCAN, start, start + size) for start, size in zip(starts, sizes, strict=True))


_OTHER_MODES: Final = frozenset({"1", "L", "LA", "P", "PA", "RGB", "RGBA", "RGBX", "I", "I;16", "YCbCr"})
MAX_TILES: Final = 4096  # tiles of a JPEG 2000 film; each takes kilobytes before a pixel is decoded
MAX_LAYERS: Final = 100_000  # layers of all tiles together; encoders write 1 to 20 a tile
# A segment COD, or bytes that look like one, up to its number of layers; few of a film's compressed bytes do.
_LAYERS: Final = re.compile(rb"\xff\x52\x00[\x0c-\x2d][\x00-\x07][\x00-\x04](..)", re.DOTALL)
_CODESTREAM: Final = b"\xff\x4f\xff\x51"  # SOC and SIZ, with which JPEG 2000 begins (ISO/IEC 15444-1 annex A)


def is_webp(data: bytes) -> bool:
    """Check whether bytes begin like a WebP file (RFC 9649)."""
    return data[:4] == b"RIFF" and data[8:12] == b"WEBP"


def is_jpeg2000(data: bytes) -> bool:
    """Check whether bytes begin like a JP2 file or a bare JPEG 2000 codestream."""
    return data.startswith((_CODESTREAM, b"\0\0\0\x0cjP  \r\n\x87\n"))


def is_portable_map(data: bytes) -> bool:
    """Check whether bytes begin like a PBM, PGM or PPM file, as text or as bytes."""
    return data[:1] == b"P" and data[1:2] in {b"1", b"2", b"3", b"4", b"5", b"6"} and data[2:3].isspace()


def read_webp(data: bytes, source: str, _at_least: tuple[int, int] | None) -> Radiograph:
    """Read a WebP of one frame. Its size is checked in the header: the decoder would allocate memory at once."""
    width, height = _webp_size(data)
    check_pixels(source, width, height, samples=4)
    return _read_other(WebPImageFile, "WebP", data, source)


def read_bmp(data: bytes, source: str, _at_least: tuple[int, int] | None) -> Radiograph:
    """Read a BMP of 1 to 32 bits a pixel."""
    return _read_other(BmpImageFile, "BMP", data, source)


def read_gif(data: bytes, source: str, _at_least: tuple[int, int] | None) -> Radiograph:
    """Read a GIF of one frame."""
    return _read_other(GifImageFile, "GIF", data, source)


def read_portable_map(data: bytes, source: str, _at_least: tuple[int, int] | None) -> Radiograph:
    """Read a PBM, PGM or PPM. More than 8 bits of grey are kept; the file's largest value is white."""
    return _read_other(PpmImageFile, "PGM", data, source)


def read_jpeg2000(data: bytes, source: str, _at_least: tuple[int, int] | None) -> Radiograph:
    """Read a JPEG 2000 of 1 to 16 bits, grey or colour; the sizes in box and codestream must both be in the limits."""
    at = data.find(_CODESTREAM)
    if at < 0 or len(data) < at + 24:
        raise TruncatedFilm(f"{source}: the JPEG 2000 file ends before its picture does. Copy it again")
    right, below, left, above = struct.unpack(">4L", data[at + 8 : at + 24])
    check_pixels(source, max(right - left, 0), max(below - above, 0))
    try:
        check_tiles(data, at)
    except (ValueError, struct.error) as error:
        raise UnreadableFilm(f"{source}: the JPEG 2000 file {error}. Export it again") from None
    return _read_other(Jpeg2KImageFile, "JPEG 2000", data, source)


def check_tiles(data: bytes, start: int) -> None:
    """Check the tiles and quality layers of a JPEG 2000 codestream: the decoder visits each layer of each tile.

    Raises: ValueError, with the fact; struct.error, if the codestream ends in its header.
    Source: ITU-T T.800 annexes A.5.1 (SIZ) and A.6.1 (COD).
    """
    right, lower, _, _, wide, high, left, upper = struct.unpack_from(">8L", data, start + 8)
    if not wide or not high:
        raise ValueError("has tiles of no size")
    tiles = -(-(right - left) // wide) * -(-(lower - upper) // high)
    if tiles > MAX_TILES:
        raise ValueError(f"has more than {MAX_TILES:,} tiles")
    layers = max((int.from_bytes(found[1]) for found in _LAYERS.finditer(data, start)), default=0)
    if tiles * layers > MAX_LAYERS:
        raise ValueError(f"has {tiles:,} tiles of {layers:,} layers; the limit is {MAX_LAYERS:,} in all")


def _webp_size(data: bytes) -> tuple[int, int]:
    """Return width and height from the header; 0 if there are none, which the decoder then refuses."""
    kind, body = data[12:16], data[20:30].ljust(10, b"\0")
    if kind == b"VP8X":
        return 1 + int.from_bytes(body[4:7], "little"), 1 + int.from_bytes(body[7:10], "little")
    if kind == b"VP8L":
        bits = int.from_bytes(body[1:5], "little")
        return 1 + (bits & 0x3FFF), 1 + (bits >> 14 & 0x3FFF)
    return int.from_bytes(body[6:8], "little") & 0x3FFF, int.from_bytes(body[8:10], "little") & 0x3FFF


def _read_other(reader: type[ImageFile.ImageFile], name: str, data: bytes, source: str) -> Radiograph:
    """Read a picture of one frame by a reader of Pillow's; ``name`` is that of its format, for errors."""
    with _damage_translated(name, source):
        image = reader(io.BytesIO(data))
        channels = _channels_of(image, source, data)
        if image.mode not in _OTHER_MODES:
            raise UnsupportedFormat(
                f"{source}: a {name} of a rare kind ({image.mode}). Export it as unsigned 8 or 16 bits"
            )
        if (frames := getattr(image, "n_frames", 1)) > 1:
            raise UnsupportedFormat(f"{source}: a {name} of {frames} frames; a radiograph has one")
        image.load()
        depth = 1 if image.mode == "1" else 16 if image.mode.startswith("I") else 8
        check_pixels(source, *image.size, samples=channels)  # a frame of a GIF may lie outside its canvas
        grey, coloured = _to_grey(ImageOps.exif_transpose(image))
    return _whole(grey, channels, depth, coloured)


def _channels_of(image: ImageFile.ImageFile, source: str, data: bytes) -> int:
    """Return the samples of a pixel; a palette counts as its colours. Raises: FilmTooLarge."""
    channels = 3 if image.mode in {"P", "PA"} else len(image.getbands())
    check_pixels(source, *image.size, samples=channels)
    check_packed(source, *image.size, len(data))
    return channels


def _whole(grey: Pixels, channels: int, depth: int, coloured: float) -> Radiograph:
    """Return the radiograph of a picture that was decoded at its full size."""
    height, width = grey.shape
    return Radiograph(grey, width, height, channels, depth, coloured)


def read_heic(data: bytes, source: str, _at_least: tuple[int, int] | None) -> Radiograph:
    """Read a HEIC of one picture, grey or colour, by the extra heic.

    Raises: UnsupportedFormat, also without the extra, so that one such file among others is only counted.
    """
    try:
        from pi_heif import open_heif
    except ImportError:
        raise UnsupportedFormat(
            f'{source}: it is HEIC, which needs an extra. Install it with: pip install "chestxray[heic]", or export '
            "the film as JPEG or PNG"
        ) from None
    with _damage_translated("HEIC", source):
        # Its own widening to 16 bits trusts the depth that the header states, and writes beyond the end of 8 bits.
        pictures = open_heif(io.BytesIO(data), hdr_to_16bit=False, remove_stride=False)
        picture = pictures[pictures.primary_index]
        channels = len(picture.mode.partition(";")[0])  # "L", "LA", "RGB", "RGBA", "I;10", "I;12"
        width, height = picture.size
        check_pixels(source, width, height, samples=channels)
        check_packed(source, width, height, len(data))
        if len(pictures) > 1:
            raise UnsupportedFormat(f"{source}: a HEIC of {len(pictures)} frames; a radiograph has one")
        grey, coloured = _grey_of_heic(picture, source)
    return _whole(grey, channels, 8 * grey.itemsize, coloured)


def _grey_of_heic(picture: Any, source: str) -> tuple[Pixels, float]:
    """Decode a picture of pi_heif; return grey levels, and the fraction of coloured pixels."""
    levels, stride, samples = picture.data, picture.stride, len(picture.mode.partition(";")[0])
    width, height = picture.size  # which decoding may have changed
    check_pixels(source, width, height, samples=samples)
    deep = picture.mode.startswith("I;")
    if stride < width * (2 if deep else samples) or len(levels) < stride * height:
        raise ValueError("its header states another depth than its picture has")
    if deep:
        wide = np.frombuffer(levels, "<u2").reshape(height, stride // 2)[:, :width]
        return _widened(wide.astype(np.uint16), picture.info["bit_depth"]), 0.0
    return _to_grey(Image.frombytes(picture.mode, (width, height), bytes(levels), "raw", picture.mode, stride))


def is_heic(data: bytes) -> bool:
    """Check whether bytes begin like a HEIC picture, by the brands of its first box (ISO/IEC 23008-12 annex B.4)."""
    if data[4:8] != b"ftyp":
        return False
    end = min(int.from_bytes(data[:4]), len(data))
    brands = {data[8:12], *(data[at : at + 4] for at in range(16, end, 4))}
    return data[8:12] in {b"heic", b"heix", b"mif1"} and not brands.isdisjoint({b"heic", b"heix"})


# --------------------------------------------------------------------------- pages of a TIFF

_MAX_DIRECTORIES: Final = 10_000  # pages that are counted; a file may chain them in a ring
_BIG: Final = 43  # the version of a TIFF with 64-bit positions; the classic one has 42


class _Pointer(NamedTuple):
    """A place in a TIFF that holds the position of a page's directory, and that position."""

    at: int
    directory: int


def _directories(data: bytes) -> list[_Pointer]:
    """Return the pointers to the directories of all pages, in order. Raises: struct.error, if the file is cut.

    Source: TIFF 6.0 section 2; the BigTIFF design.
    """
    word, count, entry, start = _tiff_form(data)
    found: list[_Pointer] = []
    at, seen = start, set[int]()
    while len(found) < _MAX_DIRECTORIES:
        (directory,) = struct.unpack_from(word, data, at)
        if not directory or directory in seen:
            break
        seen.add(directory)
        found.append(_Pointer(at, directory))
        (entries,) = struct.unpack_from(count, data, directory)
        at = directory + struct.calcsize(count) + entries * entry
    return found


def _tiff_form(data: bytes) -> tuple[str, str, int, int]:
    """Return how positions and counts are packed, the bytes of an entry, and the place of the first position."""
    order = "<" if data[:2] == b"II" else ">"
    (version,) = struct.unpack_from(f"{order}H", data, 2)
    return (f"{order}Q", f"{order}Q", 20, 8) if version == _BIG else (f"{order}L", f"{order}H", 12, 4)


def page_of(data: bytes, page: int, source: str) -> bytes:
    """Return a TIFF with one of its pages alone; its pixels are not touched. Other films are their own first page.

    Args:
        data: the whole file.
        page: number of the page, from 1.
        source: the film's name in errors.

    Raises: UnsupportedFormat, if there is no such page; UnreadableFilm, if the file is damaged.
    """
    pages: list[_Pointer] = []
    if data[:4] in TIFF_MAGIC:
        try:
            pages = _directories(data)
        except struct.error as error:
            raise UnreadableFilm(f"{source}: the TIFF file is damaged. Copy it again") from error
    if not 1 <= page <= max(len(pages), 1):
        has = f"has {len(pages)} pages" if len(pages) > 1 else "has one page"
        raise UnsupportedFormat(f"{source}: there is no page {page}: the file {has}")
    if len(pages) <= 1:
        return data
    word, count, entry, start = _tiff_form(data)
    alone, directory = bytearray(data), pages[page - 1].directory
    (entries,) = struct.unpack_from(count, data, directory)
    struct.pack_into(word, alone, start, directory)
    struct.pack_into(word, alone, directory + struct.calcsize(count) + entries * entry, 0)
    return bytes(alone)


def _upright_frame(width: float, height: float, picture: tuple[int, int], orientation: int) -> FrameBox:
    """Return the position of a film, of that size in reduced pixels, within its upright reduced picture.

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
    """Return grey levels, and the fraction of coloured pixels.

    Args:
        bits: number of bits used in a 16-bit sample; fewer than 16 are scaled up to span all levels.
    """
    if image.mode.startswith("I"):
        wide: npt.NDArray[np.uint16] = np.asarray(image).astype(np.uint16)
        return _widened(wide, bits), 0.0
    if image.mode in {"1", "L"}:
        return np.asarray(image.convert("L")), 0.0
    if image.has_transparency_data or image.mode in {"LA", "RGBA", "PA"}:
        image = Image.alpha_composite(Image.new("RGBA", image.size, "black"), image.convert("RGBA"))
    return grey_of_colour(np.asarray(image.convert("RGB")))


def _widened(wide: npt.NDArray[np.uint16], bits: int) -> npt.NDArray[np.uint16]:
    """Return levels of 9 to 16 bits scaled to span 0 to 65535."""
    unused = _WORD - bits
    return ((wide << unused) | (wide >> (bits - unused))).astype(np.uint16) if unused else wide


@contextmanager
def _damage_translated(name: str, source: str) -> Iterator[None]:
    """Turn errors of Pillow's readers into errors of this package; ``name`` is that of the format."""
    try:
        yield
    except Image.DecompressionBombError as error:
        raise FilmTooLarge(f"{source}: a {name} of more pixels than the limit. Export a smaller copy") from error
    except DAMAGE as error:
        raise _translated(error, name, source) from error


def _translated(error: Exception, name: str, source: str) -> FilmError:
    if isinstance(error, MemoryError):
        return FilmTooLarge(f"{source}: decoding the {name} takes more memory than there is. Export a smaller copy")
    text = str(error).lower()
    if "unknown pixel mode" in text or "unknown data organization" in text:
        return UnsupportedFormat(f"{source}: a {name} of a rare kind ({error}). Export it as unsigned 8 or 16 bits")
    if any(words in text for words in _ENDS_EARLY):
        return TruncatedFilm(f"{source}: the {name} file ends before its picture does. Copy it again")
    return UnreadableFilm(f"{source}: the {name} file is damaged ({error}). Copy it again")
