"""Reading a film: a golden table of formats, depths, orientations and faults."""

from __future__ import annotations

import dataclasses
import io
import re
import struct
import subprocess
import sys
import warnings
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from chestxray.errors import FilmTooLarge, TruncatedFilm, UnreadableFilm, UnsupportedFormat
from chestxray.images import MAX_BYTES, MAX_PIXELS
from chestxray.images.decode import decode
from chestxray.images.preprocess import levelled, onto_film, preprocess, resample
from chestxray.images.quality import brightness_of_middle, counts_of, objection_to, perceptual_hash
from chestxray.images.raster import page_of
from chestxray.schema import Levels, Preprocessing, Resize, Verdict
from drawing import encoded, gradient, png_claiming, textured

GREY = gradient()
WIDE = np.linspace(0, 65535, GREY.size, dtype=np.uint16).reshape(GREY.shape)
RGB = np.stack([GREY] * 3, axis=-1)
ALPHA = np.dstack([RGB, np.where(np.arange(GREY.shape[1]) < 64, 255, 0) * np.ones_like(GREY)]).astype(np.uint8)
HALF_BLACK = np.where(np.arange(GREY.shape[1]) < 64, GREY, 0).astype(np.uint8)
BITS = GREY > 128


def png_of_wide_colour(pixels: np.ndarray) -> bytes:
    """A PNG of 16 bits a channel, which Pillow does not write: rows of equal channels, unfiltered."""
    rows = np.repeat(pixels.astype(">u2"), 3, axis=1).tobytes()
    step = len(rows) // len(pixels)
    packed = zlib.compress(b"".join(b"\0" + rows[at : at + step] for at in range(0, len(rows), step)))
    data = bytearray(png_claiming(pixels.shape[1], pixels.shape[0], packed))
    data[24:26] = b"\x10\x02"
    data[29:33] = struct.pack(">I", zlib.crc32(data[12:29]))
    return bytes(data)


def tiff_by_hand(pixels: np.ndarray, order: str = "<", photometric: int = 1, bits: int = 0, form: int = 1) -> bytes:
    """An uncompressed TIFF of one strip. Source: TIFF 6.0, sections 2 to 4."""
    height, width = pixels.shape
    bits = bits or 8 * pixels.itemsize
    raw = pixels.astype(pixels.dtype.newbyteorder(order)).tobytes()
    if bits == 12:  # two samples in three bytes
        first, second = pixels.ravel()[::2].astype(np.uint32), pixels.ravel()[1::2].astype(np.uint32)
        raw = np.stack([first >> 4, (first & 15) << 4 | second >> 8, second & 255], axis=1).astype(np.uint8).tobytes()
    tags = {256: width, 257: height, 258: bits, 259: 1, 262: photometric, 273: 0, 277: 1, 278: height, 279: len(raw)}
    if form != 1:
        tags[339] = form
    tags[273] = 8 + 2 + 12 * len(tags) + 4
    directory = b"".join(struct.pack(f"{order}HHLL", tag, 4, 1, value) for tag, value in tags.items())
    head = (b"II*\0" if order == "<" else b"MM\0*") + struct.pack(f"{order}L", 8)
    return head + struct.pack(f"{order}H", len(tags)) + directory + bytes(4) + raw


# name: bytes, expected pixels, channels, bits a sample
LOSSLESS = {
    "PNG grey 8": (encoded(GREY), GREY, 1, 8),
    "PNG grey 16": (encoded(WIDE), WIDE, 1, 16),
    "PNG grey 1": (encoded(Image.fromarray(BITS)), BITS.astype(np.uint8) * 255, 1, 1),
    "PNG RGB of equal channels": (encoded(RGB), GREY, 3, 8),
    "PNG palette of greys": (encoded(Image.fromarray(GREY).convert("P")), GREY, 3, 8),
    "PNG RGBA over black": (encoded(ALPHA), HALF_BLACK, 4, 8),
    "PNG grey and alpha": (encoded(Image.fromarray(ALPHA).convert("LA")), HALF_BLACK, 2, 8),
    "PNG of optimised filters": (encoded(GREY, compress_level=9, optimize=True), GREY, 1, 8),
    "PNG grey 2": (encoded(GREY // 64, bits=2), GREY // 64 * 85, 1, 2),
    "PNG RGB 16 of equal channels": (png_of_wide_colour(WIDE), (WIDE >> 8).astype(np.uint8), 3, 16),
    "PNG palette with a transparent colour": (
        encoded(Image.fromarray(np.where(GREY > 99, 255, 0).astype(np.uint8)).convert("P"), transparency=255),
        np.zeros_like(GREY), 3, 8,
    ),
    "PNG grey 1, all but black and white": (encoded(Image.fromarray(~BITS)), (~BITS).astype(np.uint8) * 255, 1, 1),
    **{
        f"TIFF {name}, {packing}": (encoded(pixels, "TIFF", compression=packing), expected, channels, depth)
        for name, pixels, expected, channels, depth in (
            ("grey 1", Image.fromarray(BITS), BITS.astype(np.uint8) * 255, 1, 1),
            ("grey 8", GREY, GREY, 1, 8),
            ("grey 16", WIDE, WIDE, 1, 16),
            ("RGB", RGB, GREY, 3, 8),
            ("palette", Image.fromarray(GREY).convert("P"), GREY, 3, 8),
            ("RGBA", ALPHA, HALF_BLACK, 4, 8),
        )
        for packing in ("raw", "tiff_lzw", "tiff_adobe_deflate", "packbits")
    },
    "TIFF grey 8, white is zero": (tiff_by_hand(255 - GREY, photometric=0), GREY, 1, 8),
    "TIFF grey 16, white is zero": (tiff_by_hand(65535 - WIDE, photometric=0), WIDE, 1, 16),
    "TIFF grey 16, big endian": (tiff_by_hand(WIDE, order=">"), WIDE, 1, 16),
    "TIFF grey 8, big endian": (tiff_by_hand(GREY, order=">"), GREY, 1, 8),
    "TIFF grey 12": (
        tiff_by_hand(WIDE >> 4, bits=12), ((WIDE >> 4 << 4) | (WIDE >> 12)).astype(np.uint16), 1, 12,
    ),
    "BigTIFF grey 16": (encoded(WIDE, "TIFF", big_tiff=True), WIDE, 1, 16),
}  # fmt: skip


@pytest.mark.parametrize("name", LOSSLESS)
def test_a_lossless_file_gives_its_exact_pixels(name: str) -> None:
    data, pixels, channels, depth = LOSSLESS[name]
    film = decode(data, name)
    assert np.array_equal(film.pixels, pixels)
    assert film.pixels.dtype == pixels.dtype
    assert (film.width, film.height, film.channels, film.bit_depth) == (128, 96, channels, depth)
    assert film.coloured == 0.0


@pytest.mark.parametrize("mode", ["L", "RGB", "CMYK"])
@pytest.mark.parametrize("progressive", [False, True])
def test_a_jpeg_gives_its_pixels_within_its_loss(mode: str, progressive: bool) -> None:
    image = Image.fromarray(GREY).convert(mode)
    film = decode(encoded(image, "JPEG", quality=95, progressive=progressive), "film.jpeg")
    assert np.abs(film.pixels.astype(int) - GREY).max() <= 4
    assert film.channels == len(mode)
    assert film.coloured == 0.0


def stored_as(upright: np.ndarray, orientation: int) -> np.ndarray:
    """What a camera stores so that a viewer that obeys the tag shows it upright (EXIF 2.32, "Orientation")."""
    turned = {
        1: upright,
        2: upright[:, ::-1],
        3: upright[::-1, ::-1],
        4: upright[::-1],
        5: upright.T,
        6: np.rot90(upright),
        7: upright[::-1, ::-1].T,
        8: np.rot90(upright, -1),
    }[orientation]
    return np.ascontiguousarray(turned)


@pytest.mark.parametrize("form", ["PNG", "TIFF", "JPEG"])
@pytest.mark.parametrize("pixels", [GREY, WIDE], ids=["8 bits", "16 bits"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_film_stands_upright_whatever_its_orientation(orientation: int, pixels: np.ndarray, form: str) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored = stored_as(pixels if form != "JPEG" else GREY, orientation)
    film = decode(encoded(stored, form, exif=exif), "film")
    if form == "JPEG":
        lossy = np.asarray(Image.open(io.BytesIO(encoded(stored, form))))
        assert np.array_equal(stored_as(film.pixels, orientation), lossy)
        assert np.abs(film.pixels.astype(int) - GREY).max() <= 4
    else:
        assert np.array_equal(film.pixels, pixels)
    assert (film.width, film.height) == (128, 96)


def test_a_cmyk_jpeg_is_inverted_where_adobe_says_so_and_only_there() -> None:
    data = encoded(Image.fromarray(GREY).convert("CMYK"), "JPEG", quality=95)
    film = decode(data, "Adobe's")
    assert np.abs(film.pixels.astype(int) - GREY).max() <= 4
    at = data.index(b"\xff\xee")  # Adobe's segment
    plain = data[:at] + data[at + 2 + int.from_bytes(data[at + 2 : at + 4]) :]
    stored = 255 - np.asarray(Image.open(io.BytesIO(data)))  # the inks as they stand in the file
    expected = Image.fromarray(stored, "CMYK").convert("RGB").convert("L")
    assert np.array_equal(decode(plain, "plain").pixels, np.asarray(expected))


def test_a_large_jpeg_decoded_small_gives_nearly_the_same_input() -> None:
    large = np.asarray(Image.fromarray(textured(1)).resize((1400, 1100), Image.Resampling.BICUBIC))
    data = encoded(large, "JPEG", quality=90)
    film = decode(data, "film.jpeg", at_least=(112, 160))
    assert film.pixels.shape == (275, 350)
    assert (film.width, film.height) == (1400, 1100)
    quick = preprocess(data, "film.jpeg", 112, 160, Resize.SQUEEZE)
    full = resample(decode(data, "film.jpeg").pixels, 112, 160, Resize.SQUEEZE)
    assert np.abs(quick.astype(int) - full).max() <= 3


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_reduced_jpeg_lies_where_the_full_one_does_to_a_part_of_a_pixel(orientation: int) -> None:
    """Sizes that no factor divides: the last column of the reduced picture lies partly outside the film."""
    film = np.asarray(Image.fromarray(textured(3)).resize((1402, 1101), Image.Resampling.BICUBIC))
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encoded(stored_as(film, orientation), "JPEG", quality=95, exif=exif)
    reduced = decode(data, "film", at_least=(112, 160))
    assert reduced.frame is not None
    left, upper, right, lower = reduced.frame
    assert (right - left, lower - upper) == (350.5, 275.25)
    assert reduced.pixels.shape == (276, 351)
    full = decode(data, "film").pixels
    for resize in Resize:
        quick = resample(reduced.pixels, 112, 160, resize, reduced.frame).astype(int)
        assert np.abs(quick - resample(full, 112, 160, resize)).max() <= 3


OTHERS = {
    "WebP": (encoded(GREY, "WEBP", lossless=True), GREY, 8),
    "BMP": (encoded(GREY, "BMP"), GREY, 8),
    "GIF": (encoded(GREY, "GIF"), GREY, 8),
    "JPEG 2000": (encoded(GREY, "JPEG2000"), GREY, 8),
    "JPEG 2000 of 16 bits": (encoded(WIDE, "JPEG2000"), WIDE, 16),
    "a codestream": (encoded(GREY, "JPEG2000", no_jp2=True), GREY, 8),
    "PGM": (encoded(GREY, "PPM"), GREY, 8),
    "PGM of 16 bits": (b"P5 128 96 65535\n" + WIDE.astype(">u2").tobytes(), WIDE, 16),
    "PGM as text": (f"P2 128 96 255\n{' '.join(map(str, GREY.ravel().tolist()))}\n".encode(), GREY, 8),
    "JFIF": (encoded(GREY, "JPEG", quality=100, subsampling=0), None, 8),
}


@pytest.mark.parametrize("name", OTHERS)
def test_what_pillow_reads_without_loss_is_read_without_loss(name: str) -> None:
    data, pixels, depth = OTHERS[name]
    film = decode(data, name)
    assert (film.height, film.width, film.bit_depth) == (96, 128, depth)
    assert pixels is None or np.array_equal(film.pixels, pixels)


def test_a_pgm_of_12_bits_has_its_largest_value_for_white() -> None:
    film = decode(b"P5 2 2 4095\n" + np.array([0, 1, 2048, 4095], ">u2").tobytes(), "film")
    assert film.pixels.ravel().tolist() == [0, 16, 32776, 65535]


# Beside burnt-in letters, which a film's own edges never match in contrast; elsewhere they differ by a few levels.
REDUCED_MEAN, REDUCED_MOST = 0.3, 18  # grey levels of 255: of the worst film, and of the worst pixel


@pytest.mark.real_films
def test_a_reduced_film_stays_within_the_stated_error_of_the_full_one(real_films: Path) -> None:
    paths = sorted((real_films / "originals").rglob("*.jpeg"))[::4]
    assert len(paths) >= 25
    for path in paths:
        data = path.read_bytes()
        full = resample(decode(data, path.name).pixels, 112, 160, Resize.SQUEEZE).astype(int)
        error = np.abs(preprocess(data, path.name, 112, 160, Resize.SQUEEZE) - full)
        assert error.mean() <= REDUCED_MEAN
        assert error.max() <= REDUCED_MOST


JPEG = encoded(GREY, "JPEG", quality=90)
PNG = encoded(GREY)
TIFF = encoded(GREY, "TIFF")
HEIC = (Path(__file__).parent / "synthetic.heic").read_bytes()  # no encoder of a free licence is at hand
LZW = encoded(textured(1), "TIFF", compression="tiff_lzw")
FAULTS = {
    "nothing": (b"", UnsupportedFormat, "the file is empty"),
    "text": (b"https://example.org/film.jpeg", UnsupportedFormat, "not a DICOM, JPEG, PNG, TIFF, "),
    "half a JPEG": (JPEG[: len(JPEG) // 2], TruncatedFilm, "ends before its picture"),
    "half a PNG": (PNG[: len(PNG) // 2], UnreadableFilm, "PNG"),
    "JPEG start only": (JPEG[:3], UnreadableFilm, "JPEG"),
    "PNG start only": (PNG[:8], UnreadableFilm, "PNG"),
    "PNG with a wrong checksum": (PNG[:30] + b"\x00\x00" + PNG[32:], UnreadableFilm, "damaged"),
    "PNG that claims 169 megapixels": (png_claiming(13_000, 13_000), FilmTooLarge, "13000 x 13000"),
    "PNG that claims 4 gigapixels": (png_claiming(65_535, 65_535), FilmTooLarge, f"{MAX_PIXELS:,}"),
    "TIFF that claims 4 gigapixels": (
        tiff_by_hand(GREY).replace(struct.pack("<HHLL", 257, 4, 1, 96), struct.pack("<HHLL", 257, 4, 1, 2**25)),
        FilmTooLarge, "33554432",
    ),
    "half a TIFF": (TIFF[: len(TIFF) // 2], UnreadableFilm, "TIFF"),
    "half a packed TIFF": (LZW[: len(LZW) // 2], UnreadableFilm, "TIFF"),
    "TIFF start only": (TIFF[:4], UnreadableFilm, "TIFF"),
    "TIFF of two pages": (
        encoded(Image.fromarray(GREY), "TIFF", save_all=True, append_images=[Image.fromarray(GREY)]),
        UnsupportedFormat, "the TIFF has 2 pages; a radiograph has one. Say which: chestxray predict --page 1",
    ),
    "TIFF of 32 bits": (tiff_by_hand(GREY.astype(np.uint32)), UnsupportedFormat, "32 bits"),
    "TIFF of signed 16 bits": (tiff_by_hand(WIDE, form=2), UnsupportedFormat, "16 bits"),
    "TIFF of 16 bits that Pillow lacks": (
        tiff_by_hand(WIDE, order=">", photometric=0), UnsupportedFormat, "unknown pixel mode",
    ),
    "TIFF of floats": (tiff_by_hand(GREY.astype(np.float32), form=3), UnsupportedFormat, "32 bits"),
    "animated PNG": (
        encoded(Image.fromarray(GREY), "PNG", save_all=True, append_images=[Image.fromarray(255 - GREY)]),
        UnsupportedFormat, "2 frames",
    ),
    "PDF": (b"%PDF-1.7", UnsupportedFormat, "it is a PDF"),
    "HEIC start only": (b"\0\0\0\x18ftypheic\0\0\0\0mif1heic", UnreadableFilm, "HEIC"),
    "half a HEIC": (HEIC[: len(HEIC) // 2], TruncatedFilm, "the HEIC file ends before its picture does"),
    "HEIC that claims 4 gigapixels": (
        HEIC.replace(b"ispe" + struct.pack(">LLL", 0, 192, 192), b"ispe" + struct.pack(">LLL", 0, 65_535, 65_535)),
        FilmTooLarge, "65535 x 65535",
    ),
    "a sequence of HEIC": (b"\0\0\0\x18ftyphevc" + bytes(9), UnsupportedFormat, "it is a sequence of HEIC"),
    "web page": (b"\n<!DOCTYPE html><p>Not found", UnsupportedFormat, "it is a web page"),
    "Git LFS pointer": (b"version https://git-lfs.github.com/spec/v1\n", UnsupportedFormat, "git lfs pull"),
    "zip": (b"PK\3\4" + bytes(9), UnsupportedFormat, "it is an archive. Unpack it"),
    "letter": ("Sehr geehrte Frau M\xfcller,\n".encode(), UnsupportedFormat, "it is text"),
    "zeros": (bytes(900), UnsupportedFormat, "it holds zeros"),
    "noise": (b"\x81\x00\x92\xfe" * 9, UnsupportedFormat, "it is of no format that is known"),
    "animated GIF": (
        encoded(Image.fromarray(GREY), "GIF", save_all=True, append_images=[Image.fromarray(255 - GREY)]),
        UnsupportedFormat, "2 frames",
    ),
    "animated WebP": (
        encoded(Image.fromarray(GREY), "WEBP", save_all=True, append_images=[Image.fromarray(255 - GREY)]),
        UnsupportedFormat, "2 frames",
    ),
    "WebP that claims 268 megapixels": (
        b"RIFF\x16\0\0\0WEBPVP8X\x0a\0\0\0" + bytes(4) + b"\xfe\x3f\0" * 2, FilmTooLarge, "16383 x 16383",
    ),
    "JPEG 2000 that claims 4 gigapixels": (
        b"\xff\x4f\xff\x51" + struct.pack(">HH4L", 41, 0, 65_535, 65_535, 0, 0) + bytes(30),
        FilmTooLarge, "65535 x 65535",
    ),
    "BMP that claims 4 gigapixels": (
        encoded(GREY, "BMP").replace(struct.pack("<ll", 128, 96), struct.pack("<ll", 65_535, 65_535)),
        FilmTooLarge, "65535 x 65535",
    ),
    "PGM that claims 4 gigapixels": (b"P5 65535 65535 255\n" + bytes(99), FilmTooLarge, "65535 x 65535"),
    "PGM of floats": (b"Pf\n2 2\n-1.0\n" + bytes(16), UnsupportedFormat, "no format that is known"),
    "half a WebP": (encoded(textured(1), "WEBP", lossless=True)[:2000], UnreadableFilm, "WebP"),
    "half a JPEG 2000": (encoded(textured(1), "JPEG2000")[:60], UnreadableFilm, "JPEG 2000"),
    "half a BMP": (encoded(GREY, "BMP")[:4000], UnreadableFilm, "BMP"),
    "half a PGM": (encoded(GREY, "PPM")[:4000], UnreadableFilm, "PGM"),
    "half a GIF": (encoded(textured(1), "GIF")[:1200], UnreadableFilm, "GIF"),
    "JPEG without a picture": (b"\xff\xd8\xff\xd9", UnreadableFilm, "JPEG"),
    "JPEG of more scans than any": (
        JPEG[:-2] + b"\xff\xda" * 101 + b"\xff\xd9", UnreadableFilm, "102 scans",
    ),
    "more bytes than any film": (JPEG + bytes(MAX_BYTES), FilmTooLarge, f"{MAX_BYTES:,}"),
}  # fmt: skip


def test_a_heic_is_the_film_that_it_was_made_of() -> None:
    with Image.open(Path(__file__).parent / "synthetic.jpg") as picture:
        original = np.asarray(picture.convert("L").resize((192, 192))).astype(int)
    film = decode(HEIC, "film.heic")
    assert (film.width, film.height, film.channels, film.bit_depth, film.coloured) == (192, 192, 1, 8, 0.0)
    assert np.abs(film.pixels - original).mean() < 2


def test_a_heic_whose_header_lies_about_its_depth_is_refused_and_its_decoder_writes_nowhere_else() -> None:
    """One byte, found by random damage: with it pi-heif 1.4.0 corrupted the memory of the process."""
    lying = bytearray(HEIC)
    lying[HEIC.index(b"hvcC") + 21] = 0xF9  # 9 bits (ISO/IEC 14496-15 section 8.3.3.1.2) where there are 8
    code = """
import sys
from chestxray.errors import UnreadableFilm
from chestxray.images.decode import decode
for _ in range(50):
    try:
        decode(bytes.fromhex(sys.argv[1]), "film.heic")
    except UnreadableFilm as error:
        print(error)
"""
    done = subprocess.run([sys.executable, "-c", code, lying.hex()], capture_output=True, text=True, check=True)
    sentence = (
        "film.heic: the HEIC file is damaged (its header states another depth than its picture has). Copy it again"
    )
    assert done.stdout.splitlines() == [sentence] * 50


def test_without_its_extra_a_heic_is_refused_with_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pi_heif", None)
    with pytest.raises(UnsupportedFormat, match=re.escape("it is HEIC, which needs an extra. Install it with: pip ")):
        decode(HEIC, "film.heic")


PAGES = (GREY, textured(3), 255 - GREY)


@pytest.mark.parametrize("form", [{}, {"compression": "tiff_lzw"}, {"big_tiff": True}], ids=["plain", "LZW", "BigTIFF"])
def test_a_page_of_a_tiff_is_what_it_is_alone(form: dict[str, Any]) -> None:
    first, *others = map(Image.fromarray, PAGES)
    book = encoded(first, "TIFF", save_all=True, append_images=others, **form)
    for number, pixels in enumerate(PAGES, start=1):
        assert np.array_equal(decode(page_of(book, number, "book.tif"), "book.tif").pixels, pixels)
    with pytest.raises(UnsupportedFormat, match=r"^book\.tif: there is no page 4: the file has 3 pages"):
        page_of(book, 4, "book.tif")


def test_other_films_are_their_own_first_page() -> None:
    for data in (JPEG, PNG, TIFF):
        assert page_of(data, 1, "film") is data
        with pytest.raises(UnsupportedFormat, match="there is no page 2: the file has one page"):
            page_of(data, 2, "film")
    with pytest.raises(UnreadableFilm, match="damaged"):
        page_of(TIFF[:4] + b"\xff" * 8, 1, "film")


@pytest.mark.parametrize("name", FAULTS)
def test_a_faulty_file_is_refused_by_name_fact_and_type(name: str) -> None:
    data, kind, fact = FAULTS[name]
    with pytest.raises(kind, match=fact) as caught:
        decode(data, "ward7/0031.jpg")
    assert str(caught.value).startswith("ward7/0031.jpg: ")


def test_a_truly_coloured_picture_is_objected_to_and_a_coloured_marker_is_not() -> None:
    colourful = np.dstack([textured(1), textured(2), textured(3)])
    objection = objection_to(decode(encoded(colourful), "photo"))
    assert objection is not None
    assert objection.verdict is Verdict.COLOURED
    marked = RGB.copy()
    marked[:10, :10] = (255, 0, 0)
    assert objection_to(decode(encoded(marked), "marked")) is None


@pytest.mark.parametrize("step", [1, 3])
@pytest.mark.parametrize("depth", [np.uint8, np.uint16])
def test_grey_levels_are_counted_alike_in_8_and_16_bits(step: int, depth: type[np.unsignedinteger]) -> None:
    pixels = textured(1, 90, 70).astype(depth)[::step, 1::step]
    levels, expected = np.unique(pixels, return_counts=True)
    counts = counts_of(pixels)
    assert counts[levels].tolist() == expected.tolist()
    assert counts.sum() == pixels.size


@pytest.mark.parametrize(
    ("pixels", "verdict"),
    [
        (np.full((96, 96), 90, np.uint8), Verdict.BLANK),
        (np.full((96, 96), 30_000, np.uint16), Verdict.BLANK),
        (textured(1, 63, 200), Verdict.TOO_SMALL),
        (textured(1, 64, 64), None),
    ],
)
def test_blank_and_tiny_films_are_objected_to(pixels: np.ndarray, verdict: Verdict | None) -> None:
    objection = objection_to(decode(encoded(pixels), "film"))
    assert (objection.verdict if objection else None) is verdict


@pytest.mark.parametrize(
    ("said", "objected"),
    [
        ({}, False),
        ({"modality": "DX", "body_part": "CHEST", "view_position": "AP"}, False),
        ({"modality": "CR", "body_part": "THORAX", "view_position": "PA"}, False),
        ({"modality": "CT"}, True),
        ({"modality": "DX", "body_part": "HAND"}, True),
        ({"modality": "DX", "body_part": "CHEST", "view_position": "LL"}, True),
        ({"view_position": "LATERAL"}, True),
        ({"body_part": "SCHÄDEL"}, True),
        ({"body_part": "THORACIC VERTEBRAE"}, True),
        ({"body_part": "腹部"}, True),
        ({"body_part": "胸部", "view_position": "正面"}, False),
        ({"body_part": "胸部", "view_position": "側面"}, True),
        ({"body_part": "КИСТЬ"}, True),
        ({"body_part": "POITRINE", "view_position": "DE FACE"}, False),
        ({"body_part": "TÓRAX", "view_position": "LATERO-LATERAL"}, True),
        ({"view_position": "CROSS TABLE"}, True),
        ({"view_position": "ANTERIOR-POSTERIOR"}, False),
        ({"series_description": "LEFT HAND"}, True),
        ({"body_part": "CHEST", "series_description": "CHEST AND NECK"}, False),
        ({"body_part": "CHEST", "series_description": "NECK LINE"}, False),
        ({"body_part": "TRUNK", "series_description": "PED CHEST"}, False),
    ],
)
def test_a_film_that_its_own_file_calls_something_else_is_objected_to(said: dict[str, str], objected: bool) -> None:
    film = dataclasses.replace(decode(encoded(textured(1)), "film"), **said)
    objection = objection_to(film)
    assert (objection is not None and objection.verdict is Verdict.NOT_FRONTAL) == objected


@pytest.mark.real_films
def test_published_films_are_not_taken_for_negatives_and_their_negatives_are(real_films: Path) -> None:
    paths = sorted((real_films / "chest_xray" / "train").rglob("*.jpeg"))[::12]
    assert len(paths) > 400
    upright = [decode(path.read_bytes(), path.name, at_least=(56, 56)) for path in paths]
    negatives = [dataclasses.replace(film, pixels=np.iinfo(film.pixels.dtype).max - film.pixels) for film in upright]
    assert min(brightness_of_middle(film.pixels) for film in upright) > 0.0
    assert all(objection_to(film) is None for film in upright)
    found = [objection_to(film) for film in negatives]
    assert np.mean([one is not None and one.verdict is Verdict.INVERTED for one in found]) > 0.99


def test_sixteen_bits_are_scaled_and_never_clipped() -> None:
    eight = textured(4)
    sixteen = eight.astype(np.uint16) * 257
    narrow = resample(eight, 48, 48, Resize.SQUEEZE).astype(int)
    assert np.abs(resample(sixteen, 48, 48, Resize.SQUEEZE) - narrow).max() <= 1


def test_a_film_of_the_right_size_passes_unchanged() -> None:
    assert np.array_equal(resample(GREY, 96, 128, Resize.SQUEEZE), GREY)


@pytest.mark.parametrize("resize", Resize)
def test_a_map_goes_back_to_where_its_film_showed_it(resize: Resize) -> None:
    film = np.zeros((300, 200), np.uint8)
    film[140:160, 60:80] = 255
    preprocessing = Preprocessing(112, 160, resize, 0.5, 0.2)
    seen = resample(film, 112, 160, resize).astype(np.float32)
    back = onto_film(seen, film.shape, preprocessing)
    row, column = np.unravel_index(back.argmax(), back.shape)
    assert back.shape == film.shape
    assert 138 <= row <= 162
    assert 58 <= column <= 82


def test_the_perceptual_hash_survives_rescaling_and_brightness_and_tells_films_apart() -> None:
    def bits(text: str) -> int:
        return int(text, 16)

    film = textured(5)
    small = np.asarray(Image.fromarray(film).resize((70, 80)))
    darker = (film * 0.8).astype(np.uint8)
    for same in (small, darker):
        assert (bits(perceptual_hash(film)) ^ bits(perceptual_hash(same))).bit_count() <= 40
    assert (bits(perceptual_hash(film)) ^ bits(perceptual_hash(textured(6)))).bit_count() > 100


def test_decoding_opens_no_path(tmp_path: Path) -> None:
    path = tmp_path / "film.png"
    path.write_bytes(PNG)
    with pytest.raises(UnsupportedFormat):
        decode(str(path).encode(), "a path in place of a film")


def test_the_table_of_formats_agrees_with_pillow() -> None:
    for data in (JPEG, PNG, TIFF, LZW, encoded(WIDE), encoded(WIDE, "TIFF")):
        with Image.open(io.BytesIO(data)) as image:
            assert np.array_equal(decode(data, "film").pixels, np.asarray(image))


def test_threads_that_decode_at_once_leave_the_warnings_as_they_were() -> None:
    before = list(warnings.filters)
    with ThreadPoolExecutor(8) as pool:
        films = list(pool.map(lambda data: decode(data, "film").pixels.shape, [JPEG, PNG, TIFF] * 40))
    assert set(films) == {GREY.shape}
    assert warnings.filters == before
    with pytest.warns(UserWarning, match="still heard"):
        warnings.warn("still heard", stacklevel=1)


def with_exposure(levels: npt.NDArray[np.uint8], gain: float, offset: float, bits: int) -> npt.NDArray[np.uint16]:
    """An 8-bit film as a 16-bit sensor of so many bits would store it, with that gain and offset of its range."""
    top = 2**bits - 1
    return np.rint(levels / 255 * gain * (1 - offset) * top + offset * top).astype(np.uint16)


@pytest.mark.parametrize("levels", [Levels.STRETCHED, Levels.EQUALISED])
@given(gain=st.floats(0.25, 1.0), offset=st.floats(0.0, 0.5), bits=st.integers(10, 16))
def test_gain_offset_and_depth_of_a_film_do_not_reach_the_network(
    levels: Levels, gain: float, offset: float, bits: int
) -> None:
    film = textured(7, 96, 128)
    as_it_is = resample(film, 48, 64, Resize.SQUEEZE, levels=levels).astype(int)
    stored = resample(with_exposure(film, gain, offset, bits), 48, 64, Resize.SQUEEZE, levels=levels)
    assert np.abs(stored - as_it_is).max() <= 2 + 255 // (gain * (1 - offset) * 2**bits / 2)
    assert np.array_equal(resample(film.astype(np.uint16) * 64, 48, 64, Resize.SQUEEZE, levels=levels), as_it_is)


def test_one_hot_pixel_does_not_darken_a_film() -> None:
    film = textured(7, 96, 128)
    hot = film.astype(np.uint16) * 64
    hot[40, 40] = 65535
    seen = resample(hot, 48, 64, Resize.SQUEEZE, levels=Levels.EQUALISED).astype(int)
    assert np.median(np.abs(seen - resample(film, 48, 64, Resize.SQUEEZE, levels=Levels.EQUALISED))) <= 1


def test_levels_kept_as_stored_are_only_rounded() -> None:
    film = textured(7, 96, 128)
    assert np.array_equal(levelled(film, Levels.STORED), film)
    assert levelled(np.full((9, 9), 7.0, np.float32), Levels.STRETCHED).max() == 0
