"""The table of DICOM transfer syntaxes, and what is checked of a coded frame before a library sees it.

A decoder believes the size that the coded frame itself claims, whatever the DICOM header says, and takes the
memory for it. So both must agree, and the header is held to the limits.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import Final, NamedTuple

from chestxray.images.dicom_elements import DEFLATED, EXPLICIT_BIG, EXPLICIT_LITTLE, IMPLICIT_LITTLE

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
