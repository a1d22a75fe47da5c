"""Finding a DICOM data set's elements without building it, so that a hostile file cannot take the memory.

A library builds an object for each element and each item, some 500 bytes for 8 in the file; 64 MB of empty
items would take gigabytes. Here elements are stepped over where they lie, and only those that a radiograph
needs are handed on.

Source: DICOM PS3.5 sections 7.1 (elements), 7.5 (sequences), A.4 (encapsulated pixels); PS3.10 section 7 (files).
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Final, NamedTuple

from chestxray.errors import FilmTooLarge, TruncatedFilm, UnreadableFilm
from chestxray.images.radiograph import MAX_PIXELS

MAX_ELEMENTS: Final = 50_000  # stepped over, in all; radiographs have some hundreds
MAX_INFLATED: Final = 2 * MAX_PIXELS + 2**24  # bytes: the largest film at 16 bits, and a generous header

PIXEL_DATA: Final = 0x7FE00010
TRANSFER_SYNTAX: Final = 0x00020010

IMPLICIT_LITTLE: Final = "1.2.840.10008.1.2"
EXPLICIT_LITTLE: Final = "1.2.840.10008.1.2.1"
DEFLATED: Final = "1.2.840.10008.1.2.1.99"
EXPLICIT_BIG: Final = "1.2.840.10008.1.2.2"

_UNDEFINED: Final = 0xFFFFFFFF
_ITEM: Final = 0xFFFEE000
_ITEM_END: Final = 0xFFFEE00D
_SEQUENCE_END: Final = 0xFFFEE0DD
_PREAMBLE: Final = 128
_HEADER: Final = 8  # bytes of an element before its value, at least
_SHORT: Final = 64  # bytes; the identifying elements of group 8 are no longer
_FIRST_ELEMENTS: Final = frozenset({0x0000, 0x0001, 0x0005, 0x0008, 0x0016, 0x0018})  # of group 8
_SHORT_VR: Final = frozenset(b"AE AS AT CS DA DS DT FL FD IS LO LT PN SH SL SS ST TM UI UL US".split())  # 16-bit length
_LONG_VR: Final = frozenset(b"OB OD OF OL OV OW SQ SV UC UN UR UT UV".split())  # 32-bit length


class Encoding(NamedTuple):
    """How elements are written."""

    implicit: bool
    little: bool


class Element(NamedTuple):
    """One element: ``data[start:end]`` is all of it, ``data[value:end]`` its value; ``vr`` empty where implicit."""

    tag: int
    vr: bytes
    start: int
    value: int
    end: int


@dataclass(frozen=True, slots=True)
class DataSet:
    """Where the data set of a file lies.

    Attributes:
        data: the file, or what it inflates to.
        start: of the first element.
    """

    data: bytes
    start: int
    encoding: Encoding
    transfer_syntax: str


def is_dicom(data: bytes) -> bool:
    """Whether this begins like a DICOM file, or like a bare data set of file meta or identifying elements."""
    if data[_PREAMBLE : _PREAMBLE + 4] == b"DICM":
        return True
    if len(data) < _HEADER:
        return False
    vr = data[4:6]
    if data[:2] == b"\x02\x00":
        return vr in {b"UL", b"OB", b"UI"}
    for group, order in ((b"\x08\x00", "<"), (b"\x00\x08", ">")):
        if data[:2] == group:
            (element,) = struct.unpack(f"{order}H", data[2:4])
            (length,) = struct.unpack("<L", data[4:8])
            return element in _FIRST_ELEMENTS and (vr in _SHORT_VR or (order == "<" and length <= _SHORT))
    return False


def open_data_set(data: bytes, source: str) -> DataSet:
    """Read the file meta information, and inflate a deflated data set up to a limit.

    Raises: FilmTooLarge, TruncatedFilm, UnreadableFilm.
    """
    start = _PREAMBLE + 4 if data[_PREAMBLE : _PREAMBLE + 4] == b"DICM" else 0
    syntax = ""
    if data[start : start + 2] == b"\x02\x00":
        for element in elements(data, start, Encoding(implicit=False, little=True), source, group=0x0002):
            if element.tag == TRANSFER_SYNTAX:
                syntax = data[element.value : element.end].decode("ascii", "replace").strip("\0 ")
            start = element.end
    if syntax == DEFLATED:
        data, start = _inflated(data, start, source), 0
    # Some files state one way and are written the other; the first element shows which.
    implicit = data[start + 4 : start + 6] not in _SHORT_VR | _LONG_VR
    if not syntax:
        big = not implicit and data[start : start + 1] == b"\0"
        syntax = IMPLICIT_LITTLE if implicit else EXPLICIT_BIG if big else EXPLICIT_LITTLE
    return DataSet(data, start, Encoding(implicit, syntax != EXPLICIT_BIG), syntax)


def elements(data: bytes, start: int, encoding: Encoding, source: str, group: int | None = None) -> Iterator[Element]:
    """The elements of the outermost level in order, to Pixel Data, or to the end of a group.

    Raises: TruncatedFilm, where the file ends within an element; UnreadableFilm, where it is not DICOM.
    """
    walk = _Walk(data, source)
    position = start
    while position < len(data):
        if group is not None and data[position : position + 2] != group.to_bytes(2, "little"):
            return
        tag, vr, value, length = walk.header(position, encoding)
        end = walk.end_of(tag, value, length, encoding)
        yield Element(tag, vr, position, value, end)
        if tag == PIXEL_DATA:
            return
        position = end


def fragments(data: bytes, element: Element, source: str) -> Iterator[bytes]:
    """The values of the items of encapsulated Pixel Data: first the offset table, then the pieces of the frame."""
    position = element.value
    little = Encoding(implicit=True, little=True)
    walk = _Walk(data, source)
    while position < element.end:
        tag, _, value, length = walk.header(position, little)
        if tag == _SEQUENCE_END:
            return
        if tag != _ITEM or length == _UNDEFINED:
            raise UnreadableFilm(f"{source}: the DICOM file's compressed pixels do not lie in items. Copy it again")
        yield data[value : walk.bounded(value, length)]
        position = value + length


class _Walk:
    """Steps over the elements of a data set, and counts them."""

    def __init__(self, data: bytes, source: str) -> None:
        self._data = data
        self._source = source
        self._steps = 0

    def header(self, position: int, encoding: Encoding) -> tuple[int, bytes, int, int]:
        """Tag, value representation (empty where implicit), where the value lies, its length."""
        self._steps += 1
        if self._steps > MAX_ELEMENTS:
            raise FilmTooLarge(f"{self._source}: the DICOM file has more than {MAX_ELEMENTS:,} elements")
        order = "<" if encoding.little else ">"
        group, number, length = self._unpack(f"{order}HHL", position)
        tag, value = group << 16 | number, position + 8
        if encoding.implicit or group == _ITEM >> 16:
            return tag, b"", value, length
        vr = self._data[position + 4 : position + 6]
        if vr in _LONG_VR:
            (length,) = self._unpack(f"{order}L", value)
            return tag, vr, value + 4, length
        if vr in _SHORT_VR:
            (length,) = self._unpack(f"{order}H", position + 6)
            return tag, vr, value, length
        raise UnreadableFilm(f"{self._source}: the DICOM file is damaged at byte {position:,}. Copy it again")

    def end_of(self, tag: int, value: int, length: int, encoding: Encoding) -> int:
        """Where the element after this one begins."""
        if length != _UNDEFINED:
            return self.bounded(value, length)
        if tag == PIXEL_DATA:
            return len(self._data)
        return self._end_of_sequence(value, encoding)

    def bounded(self, value: int, length: int) -> int:
        """The end of a value. Raises: TruncatedFilm, where that lies beyond the end of the file."""
        if value + length > len(self._data):
            raise TruncatedFilm(f"{self._source}: the DICOM file ends before its picture does. Copy it again")
        return value + length

    def _end_of_sequence(self, position: int, encoding: Encoding) -> int:
        """Step over a sequence of undefined length, and over whatever of undefined length lies in it."""
        depth = [_SEQUENCE_END]  # what ends each level that is open
        while depth:
            tag, vr, position, length = self.header(position, encoding)
            if tag == depth[-1]:
                depth.pop()
            elif length != _UNDEFINED:
                position = self.bounded(position, length)
            else:
                depth.append(_ITEM_END if tag == _ITEM else _SEQUENCE_END)
                if vr == b"UN":  # its content is implicit little endian (PS3.5 section 6.2.2, note 4)
                    position = self._end_of_sequence(position, Encoding(implicit=True, little=True))
                    depth.pop()
        return position

    def _unpack(self, form: str, position: int) -> tuple[int, ...]:
        try:
            return struct.unpack_from(form, self._data, position)
        except struct.error:
            raise TruncatedFilm(f"{self._source}: the DICOM file ends within its header. Copy it again") from None


def _inflated(data: bytes, start: int, source: str) -> bytes:
    inflater = zlib.decompressobj(-zlib.MAX_WBITS)
    try:
        plain = inflater.decompress(memoryview(data)[start:], MAX_INFLATED + 1)
    except zlib.error:
        raise UnreadableFilm(f"{source}: the deflated DICOM file is damaged. Copy it again") from None
    if len(plain) > MAX_INFLATED:
        raise FilmTooLarge(f"{source}: inflates to more than {MAX_INFLATED:,} bytes. Export a smaller copy")
    if not inflater.eof:
        raise TruncatedFilm(f"{source}: the deflated DICOM file ends before its picture does. Copy it again")
    return plain


MAX_TILES: Final = 4096  # of a JPEG 2000 film; each takes kilobytes before a pixel is decoded

BYTE: Final = 8  # bits
TURBO: Final = "libjpeg-turbo"  # reads lossless JPEG, and 12 bits with loss
MARKER: Final = b"\xff"
# The segments that state a frame's size: SOF0 to SOF15 of JPEG, less three other segments; SOF55 of JPEG-LS.
JPEG_FRAMES: Final = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC} | {0xF7}


class Frame(NamedTuple):
    """What the header says of the one frame."""

    rows: int
    columns: int
    samples: int
    allocated: int
    stored: int
    signed: int
    photometric: str
    planes_apart: int

    @property
    def size(self) -> int:
        """Bytes, decoded."""
        return self.rows * self.columns * self.samples * self.allocated // 8


class Syntax(NamedTuple):
    """One row of the table of transfer syntaxes.

    Attributes:
        plugin: that pydicom decodes with; empty for uncompressed pixels, TURBO where pydicom is not asked.
        library: what has to be installed; the extra "dicom" brings it.
        check: looks into the coded frame, before any library does; raises ValueError with the fact.
    """

    name: str
    plugin: str = ""
    library: str = ""
    check: Callable[[bytes, Frame], None] | None = None


def _check_rle(coded: bytes, frame: Frame) -> None:
    """Two bytes become at most 128 (PS3.5 annex G.3.1)."""
    if frame.size > 64 * len(coded):
        raise ValueError(f"claims {frame.size:,} bytes of pixels, and its {len(coded):,} cannot hold so many")


def _check_jpeg(coded: bytes, frame: Frame) -> None:
    """The JPEG's own size must be the header's. Source: ITU-T T.81 annex B.2.2; JPEG-LS has the same segment."""
    position = 2  # behind the marker that starts the picture
    while coded[position : position + 1] == MARKER:
        kind = coded[position + 1]
        if kind == MARKER[0]:  # any number of them may stand before a marker
            position += 1
        elif kind in JPEG_FRAMES:
            precision, rows, columns, samples = struct.unpack_from(">BHHB", coded, position + 4)
            _check_same((rows, columns, samples), frame)
            if precision > frame.allocated:
                raise ValueError(f"has samples of {precision} bits and room for {frame.allocated}")
            return
        else:
            position += 2 + int.from_bytes(coded[position + 2 : position + 4])
    raise ValueError("holds no JPEG frame")


def _check_jpeg2000(coded: bytes, frame: Frame) -> None:
    """The same of a JPEG 2000 codestream. Source: ITU-T T.800 annex A.5.1, segment SIZ."""
    start = coded.find(b"\xff\x4f\xff\x51", 0, 4096)  # a few files wrap the codestream in boxes
    if start < 0 or len(coded) < start + 42:
        raise ValueError("holds no JPEG 2000 codestream")
    right, lower, left, upper, wide, high, tile_left, tile_upper, samples = struct.unpack_from(">8LH", coded, start + 8)
    _check_same((lower - upper, right - left, samples), frame)
    if not wide or not high:
        raise ValueError("has tiles of no size")
    if -(-(right - tile_left) // wide) * -(-(lower - tile_upper) // high) > MAX_TILES:
        raise ValueError(f"has more than {MAX_TILES:,} tiles")


def _check_same(found: tuple[int, int, int], frame: Frame) -> None:
    expected = (frame.rows, frame.columns, frame.samples)
    if found != expected:
        theirs, ours = (" x ".join(map(str, size)) for size in (found, expected))
        raise ValueError(f"holds a frame of {theirs} (rows, columns, samples) where its header says {ours}")


# Decoders were chosen for upkeep, licence (MIT and BSD) and conduct under damage, and one for each row, so that a
# film does not change with what else is installed. Of the usual ones for the JPEG rows, pylibjpeg-libjpeg is under
# the GPL, and GDCM ends the whole process at some damaged frames; libjpeg-turbo (in imagecodecs) does neither.
SYNTAXES: Final = {
    IMPLICIT_LITTLE: Syntax("implicit VR little endian"),
    EXPLICIT_LITTLE: Syntax("explicit VR little endian"),
    DEFLATED: Syntax("deflated"),
    EXPLICIT_BIG: Syntax("explicit VR big endian"),
    "1.2.840.10008.1.2.5": Syntax("RLE", "pydicom", check=_check_rle),
    "1.2.840.10008.1.2.4.50": Syntax("JPEG baseline", "pillow", "PIL", _check_jpeg),
    "1.2.840.10008.1.2.4.51": Syntax("JPEG extended", TURBO, "imagecodecs", _check_jpeg),
    "1.2.840.10008.1.2.4.57": Syntax("JPEG lossless", TURBO, "imagecodecs", _check_jpeg),
    "1.2.840.10008.1.2.4.70": Syntax("JPEG lossless SV1", TURBO, "imagecodecs", _check_jpeg),
    "1.2.840.10008.1.2.4.80": Syntax("JPEG-LS lossless", "pyjpegls", "pyjpegls", _check_jpeg),
    "1.2.840.10008.1.2.4.81": Syntax("JPEG-LS near lossless", "pyjpegls", "pyjpegls", _check_jpeg),
    "1.2.840.10008.1.2.4.90": Syntax("JPEG 2000 lossless", "pylibjpeg", "pylibjpeg-openjpeg", _check_jpeg2000),
    "1.2.840.10008.1.2.4.91": Syntax("JPEG 2000", "pylibjpeg", "pylibjpeg-openjpeg", _check_jpeg2000),
}
