"""Files that claim or hide more than they are: each refused within a fixed memory, in a process of its own.

Times are not asserted. The limit of each process only stops one that hangs.
"""

from __future__ import annotations

import struct
import subprocess
import sys
import zlib
from collections.abc import Callable
from pathlib import Path

import imagecodecs
import numpy as np
import pytest
from PIL import Image

from chestxray.errors import FilmTooLarge
from chestxray.images import MAX_PIXELS, MAX_SCANS, check_pixels
from chestxray.images.decode import decode
from chestxray.images.dicom import MAX_ELEMENTS
from dicoms import coded, compressed, explicit, geometry, hand_made, native
from drawing import encoded, gradient, png_claiming

MEMORY = 512 * 2**20  # bytes, resident at the peak, with the interpreter and its libraries
HANGS = 60  # seconds

RLE = b"1.2.840.10008.1.2.5\0"
JPEG_BASELINE, JPEG_LS = "1.2.840.10008.1.2.4.50", "1.2.840.10008.1.2.4.80"
DEFLATED = b"1.2.840.10008.1.2.1.99\0\0"
UNDEFINED = 0xFFFFFFFF
ITEM = b"\xfe\xff\x00\xe0"
SEQUENCE_END = b"\xfe\xff\xdd\xe0\0\0\0\0"


def rle_claiming(rows: int, columns: int, bytes_in_all: int = 0) -> bytes:
    frame = struct.pack("<16L", 1, 64, *[0] * 14) + b"\x81\x00" * 4
    item = ITEM + b"\0\0\0\0" + ITEM + struct.pack("<L", len(frame)) + frame + SEQUENCE_END
    body = hand_made(*geometry(rows, columns), syntax=RLE) + explicit(0x7FE00010, b"OB", item, UNDEFINED)
    if padding := max(0, bytes_in_all - len(body) - 8):
        comment = (0x00204000, b"LT", b" " * padding)
        return hand_made(comment, *geometry(rows, columns), syntax=RLE) + explicit(0x7FE00010, b"OB", item, UNDEFINED)
    return body


def deflated_of(megabytes: int) -> bytes:
    """A deflated file whose pixels inflate to so many megabytes of zeros."""
    packer = zlib.compressobj(9, zlib.DEFLATED, -15)
    head = b"".join(explicit(*element) for element in geometry(4096, 4096))
    start = packer.compress(head + explicit(0x7FE00010, b"OB", b"", megabytes * 2**20))
    start += packer.flush(zlib.Z_FULL_FLUSH)
    block = packer.compress(bytes(2**20)) + packer.flush(zlib.Z_FULL_FLUSH)  # stands for itself, so it repeats
    return hand_made(syntax=DEFLATED) + start + block * megabytes + packer.flush()


def png_of_zeros(width: int, height: int) -> bytes:
    """A true PNG of one grey: megapixels in kilobytes."""
    packer = zlib.compressobj(9)
    row = bytes(width + 1)
    body = b"".join(packer.compress(row) for _ in range(height)) + packer.flush()
    return png_claiming(width, height, body)


def tiff_claiming(width: int, height: int) -> bytes:
    """A TIFF of one small strip whose header claims a size."""
    data = encoded(gradient(8, 8), "TIFF")
    for tag, value in ((256, width), (257, height)):
        was, now = struct.pack("<HHLL", tag, 4, 1, 8), struct.pack("<HHLL", tag, 4, 1, value)
        assert was in data
        data = data.replace(was, now)
    return data


def many_elements() -> bytes:
    """One element a byte group, up to the limit of the file: objects by the million for who builds them."""
    count = 2_000_000
    body = np.zeros(count, dtype=[("group", "<u2"), ("element", "<u2"), ("vr", "S2"), ("length", "<u2")])
    body["group"] = 9 + 2 * (np.arange(count) >> 16)
    body["element"] = np.arange(count) & 0xFFFF
    body["vr"] = b"LO"
    return hand_made() + body.tobytes()


def many_items(defined: bool) -> bytes:
    """A sequence of two million empty items."""
    items = (ITEM + b"\0\0\0\0") * 2_000_000
    length = len(items) if defined else UNDEFINED
    sequence = explicit(0x00283010, b"SQ", items + (b"" if defined else SEQUENCE_END), length)
    return hand_made() + sequence + b"".join(explicit(*element) for element in geometry(64, 64))


def nested_sequences() -> bytes:
    """Sequences in sequences: a stack frame a level for who descends."""
    level = explicit(0x00283010, b"SQ", b"", UNDEFINED) + ITEM + b"\xff\xff\xff\xff"
    return hand_made() + level * 200_000


def jpeg_of_many_scans() -> bytes:
    """A progressive JPEG whose last scan is repeated, each of which the decoder walks all the picture for."""
    data = encoded(gradient(), "JPEG", progressive=True)
    last = data.rindex(b"\xff\xda")
    return data[:last] + data[last:-2] * (MAX_SCANS + 1) + b"\xff\xd9"


def scanned(side: int, scans: int) -> bytes:
    """A progressive JPEG of one grey whose last scan comes again and again."""
    data = encoded(Image.new("L", (side, side)), "JPEG", progressive=True)
    last = data.rindex(b"\xff\xda")
    return data[:last] + data[last:-2] * scans + b"\xff\xd9"


def tiff_of_one_jpeg(side: int, jpeg: bytes) -> bytes:
    """A TIFF all of whose strips, of 16 rows each, are the same JPEG."""
    strips = side // 16
    tables = np.full((2, strips), [[8], [len(jpeg)]], "<u4").tobytes()
    at = 8 + len(jpeg) + len(jpeg) % 2
    entries = (
        (256, side), (257, side), (258, 8), (259, 7), (262, 1), (273, at if strips > 1 else 8, strips), (277, 1),
        (278, 16), (279, at + 4 * strips if strips > 1 else len(jpeg), strips),
    )  # fmt: skip
    directory = struct.pack("<H", len(entries)) + b"".join(
        struct.pack("<HHLL", tag, 4, more[0] if more else 1, value) for tag, value, *more in entries
    )
    return b"II*\0" + struct.pack("<L", at + len(tables)) + jpeg.ljust(at - 8, b"\0") + tables + directory + bytes(4)


def with_layers(jpeg2000: bytes) -> bytes:
    """A JPEG 2000 that claims 65,535 quality layers in each tile."""
    data = bytearray(jpeg2000)
    struct.pack_into(">H", data, data.index(b"\xff\x52") + 6, 65_535)
    return bytes(data)


def many_exifs() -> bytes:
    """A JPEG of as many segments of EXIF as a megabyte holds."""
    data = encoded(gradient(), "JPEG")
    return data[:2] + b"\xff\xe1\0\x09Exif\0\0x" * 100_000 + data[2:]


FLAT = np.zeros((5120, 5120), np.uint16)


def jpeg2000_claiming(rows: int, columns: int, tile: int = 0) -> bytes:
    """A JPEG 2000 film whose codestream claims another size, or tiles by the million."""
    data = bytearray(compressed(gradient(), "1.2.840.10008.1.2.4.90"))
    at = data.index(b"\xff\x4f\xff\x51") + 8
    struct.pack_into(">LL", data, at, columns, rows)
    if tile:
        struct.pack_into(">LL", data, at + 16, tile, tile)
    return bytes(data)


# name: bytes, error, a fact that its sentence states
TRAPS: dict[str, tuple[Callable[[], bytes], str, str]] = {
    "RLE of 654 bytes that claims 65,535 x 65,535": (
        lambda: rle_claiming(65535, 65535, 654), "FilmTooLarge", "65535 x 65535",
    ),
    "RLE that claims what its bytes cannot hold": (lambda: rle_claiming(4000, 4900), "UnreadableFilm", "cannot hold"),
    "deflated, two megabytes that inflate to 2 GB": (lambda: deflated_of(2048), "FilmTooLarge", "inflates to more"),
    "PNG of 169 megapixels": (lambda: png_of_zeros(13_000, 13_000), "FilmTooLarge", "13000 x 13000"),
    "PNG that claims 4 gigapixels": (lambda: png_claiming(65_535, 65_535), "FilmTooLarge", "65535 x 65535"),
    "TIFF that claims 4 gigapixels": (
        lambda: tiff_claiming(65_535, 65_535), "FilmTooLarge", "65535 x 65535",
    ),
    "uncompressed DICOM that claims more than it holds": (
        lambda: hand_made(*geometry(7000, 9000), (0x7FE00010, b"OB", bytes(4096))), "TruncatedFilm", "ends before",
    ),
    "DICOM of a million frames": (
        lambda: hand_made(*geometry(512, 512, frames=1_000_000), (0x7FE00010, b"OB", bytes(512 * 512))),
        "FilmTooLarge", "1000000 frames",
    ),
    "DICOM of two million elements": (many_elements, "FilmTooLarge", f"{MAX_ELEMENTS:,} elements"),
    "DICOM sequence of two million items": (lambda: many_items(defined=False), "FilmTooLarge", "elements"),
    "DICOM look-up table of 16 MB": (lambda: many_items(defined=True), "UnreadableFilm", "takes more than"),
    "DICOM sequences 200,000 deep": (nested_sequences, "FilmTooLarge", "elements"),
    "JPEG 2000 that claims more than its header": (
        lambda: jpeg2000_claiming(60_000, 60_000), "UnreadableFilm", "60000 x 60000 x 1",
    ),
    "JPEG 2000 of 12,288 tiles": (lambda: jpeg2000_claiming(96, 128, tile=1), "UnreadableFilm", "tiles"),
    "JPEG of a hundred scans more": (jpeg_of_many_scans, "UnreadableFilm", "scans"),
    "JPEG of many scans in DICOM": (
        lambda: coded([scanned(2816, 85)], JPEG_BASELINE, np.zeros((2816, 2816), np.uint8)),
        "FilmTooLarge", "scans of 2816",
    ),
    "JPEG of many scans in TIFF": (
        lambda: tiff_of_one_jpeg(16, scanned(16, 200)), "UnreadableFilm", "scans",
    ),
    "TIFF whose strips are all the same": (
        lambda: tiff_of_one_jpeg(2560, scanned(2560, 3)), "UnreadableFilm", "longer than the file",
    ),
    "JPEG of a hundred thousand EXIFs": (many_exifs, "UnreadableFilm", "segments of EXIF"),
    "JPEG 2000 of 65,535 layers a tile": (
        lambda: with_layers(encoded(gradient(), "JPEG2000", tile_size=(32, 32))),
        "UnreadableFilm", "12 tiles of 65,535 layers",
    ),
    "JPEG 2000 of 12,288 tiles, no DICOM": (
        lambda: encoded(gradient(), "JPEG2000", tile_size=(1, 1)), "UnreadableFilm", "tiles",
    ),
    "JPEG 2000, 26 megapixels in 200 bytes": (
        lambda: encoded(FLAT, "JPEG2000"), "FilmTooLarge", "nearly uniform",
    ),
    "TIFF, 26 megapixels in 40 kilobytes": (
        lambda: encoded(FLAT, "TIFF", compression="tiff_adobe_deflate"), "FilmTooLarge", "nearly uniform",
    ),
    "DICOM, 26 megapixels deflated to 50 kilobytes": (
        lambda: native(FLAT, "deflated"), "FilmTooLarge", "nearly uniform",
    ),
    "DICOM, 26 megapixels of JPEG-LS": (
        lambda: coded([imagecodecs.jpegls_encode(FLAT)], JPEG_LS, FLAT), "FilmTooLarge", "nearly uniform",
    ),
}  # fmt: skip

CLASSIFY = """
import sys
from pathlib import Path
from chestxray.errors import ChestXrayError
from chestxray.images.decode import decode
data = Path(sys.argv[1]).read_bytes()
try:
    decode(data, "trap")
    print("pixels")
except ChestXrayError as error:
    print(type(error).__name__, error)
status = Path("/proc/self/status").read_text()  # getrusage would count what the parent process held at the fork
print(1024 * int(status.partition("VmHWM:")[2].split()[0]))
"""


@pytest.mark.parametrize("name", TRAPS)
def test_a_trap_is_refused_within_512_megabytes(name: str, tmp_path: Path) -> None:
    make, error, fact = TRAPS[name]
    trap = tmp_path / "trap"
    trap.write_bytes(make())
    done = subprocess.run(
        [sys.executable, "-c", CLASSIFY, trap], capture_output=True, text=True, check=True, timeout=HANGS
    )
    outcome, peak = done.stdout.splitlines()
    assert outcome.startswith(f"{error} trap: ")
    assert fact in outcome
    assert int(peak) < MEMORY
    assert done.stderr == ""


def test_the_limit_counts_rows_columns_samples_and_frames() -> None:
    check_pixels("film", 8000, 8000)
    for sizes in ((8000, 8001), (8000, 8000, 3), (8000, 4000, 1, 3), (4000, 4000, 3, 2)):
        with pytest.raises(FilmTooLarge, match=f"{MAX_PIXELS:,}"):
            check_pixels("film", *sizes)
    with pytest.raises(FilmTooLarge, match="5000 x 5000 pixels x 3 samples"):
        decode(encoded(Image.new("RGB", (5000, 5000))), "film")
    assert decode(encoded(Image.new("L", (5000, 5000))), "film").width == 5000
    assert decode(native(np.zeros((2000, 3000), np.uint16)), "film").width == 3000


def test_a_film_of_many_header_elements_below_the_limit_is_read() -> None:
    elements = [(0x00110000 + n, b"LO", b"AB") for n in range(0x1000, 0x1000 + MAX_ELEMENTS // 2)]
    data = hand_made(*elements, *geometry(96, 128), (0x7FE00010, b"OB", gradient().tobytes()))
    assert np.array_equal(decode(data, "film").pixels, gradient())
