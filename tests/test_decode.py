"""Reading a film: a golden table of formats, depths, orientations and faults."""

from __future__ import annotations

import io
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from chestxray.errors import FilmError, FilmTooLarge, TruncatedFilm, UnreadableFilm, UnsupportedFormat
from chestxray.images.decode import MAX_BYTES, MAX_PIXELS, decode
from chestxray.images.preprocess import onto_film, preprocess, resample
from chestxray.images.quality import objection_to, perceptual_hash
from chestxray.schema import Preprocessing, Resize, Verdict
from drawing import encoded, gradient, textured

GREY = gradient()
WIDE = np.linspace(0, 65535, GREY.size, dtype=np.uint16).reshape(GREY.shape)
RGB = np.stack([GREY] * 3, axis=-1)
ALPHA = np.dstack([RGB, np.where(np.arange(GREY.shape[1]) < 64, 255, 0) * np.ones_like(GREY)]).astype(np.uint8)
HALF_BLACK = np.where(np.arange(GREY.shape[1]) < 64, GREY, 0).astype(np.uint8)
BITS = GREY > 128

# name: bytes, expected pixels, channels, bits a sample
LOSSLESS = {
    "PNG grey 8": (encoded(GREY), GREY, 1, 8),
    "PNG grey 16": (encoded(WIDE), WIDE, 1, 16),
    "PNG grey 1": (encoded(Image.fromarray(BITS)), BITS.astype(np.uint8) * 255, 1, 1),
    "PNG RGB of equal channels": (encoded(RGB), GREY, 3, 8),
    "PNG palette of greys": (encoded(Image.fromarray(GREY).convert("P")), GREY, 3, 8),
    "PNG RGBA over black": (encoded(ALPHA), HALF_BLACK, 4, 8),
    "PNG grey and alpha": (encoded(Image.fromarray(ALPHA).convert("LA")), HALF_BLACK, 2, 8),
    "PNG interlaced by rows of filters": (encoded(GREY, compress_level=9, optimize=True), GREY, 1, 8),
}


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


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_film_stands_upright_whatever_its_exif_orientation(orientation: int) -> None:
    # What a camera stores so that a viewer that obeys the tag shows GREY (EXIF 2.32, table "Orientation").
    stored = {
        1: GREY,
        2: GREY[:, ::-1],
        3: GREY[::-1, ::-1],
        4: GREY[::-1],
        5: GREY.T,
        6: np.rot90(GREY),
        7: GREY[::-1, ::-1].T,
        8: np.rot90(GREY, -1),
    }[orientation]
    exif = Image.Exif()
    exif[0x0112] = orientation
    film = decode(encoded(np.ascontiguousarray(stored), "PNG", exif=exif), "film.png")
    assert np.array_equal(film.pixels, GREY)
    assert (film.width, film.height) == (128, 96)


def test_a_large_jpeg_decoded_small_gives_nearly_the_same_input() -> None:
    large = np.asarray(Image.fromarray(textured(1)).resize((1400, 1100), Image.Resampling.BICUBIC))
    data = encoded(large, "JPEG", quality=90)
    film = decode(data, "film.jpeg", at_least=(112, 160))
    assert film.pixels.shape == (275, 350)
    assert (film.width, film.height) == (1400, 1100)
    quick = preprocess(data, "film.jpeg", 112, 160, Resize.SQUEEZE)
    full = resample(decode(data, "film.jpeg").pixels, 112, 160, Resize.SQUEEZE)
    assert np.abs(quick.astype(int) - full).max() <= 3


def png_claiming(width: int, height: int) -> bytes:
    """A PNG of a few bytes whose header claims a size."""
    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    chunks = [(b"IHDR", header), (b"IDAT", zlib.compress(b"\0" * 64)), (b"IEND", b"")]
    body = b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data)) for kind, data in chunks
    )
    return b"\x89PNG\r\n\x1a\n" + body


JPEG = encoded(GREY, "JPEG", quality=90)
PNG = encoded(GREY)
FAULTS = {
    "nothing": (b"", UnsupportedFormat, "the file is empty"),
    "text": (b"https://example.org/film.jpeg", UnsupportedFormat, "not a JPEG or PNG file"),
    "GIF": (encoded(GREY, "GIF"), UnsupportedFormat, "47 49 46"),
    "half a JPEG": (JPEG[: len(JPEG) // 2], TruncatedFilm, "ends before its picture"),
    "half a PNG": (PNG[: len(PNG) // 2], UnreadableFilm, "PNG"),
    "JPEG start only": (JPEG[:3], UnreadableFilm, "JPEG"),
    "PNG start only": (PNG[:8], UnreadableFilm, "PNG"),
    "PNG with a wrong checksum": (PNG[:30] + b"\x00\x00" + PNG[32:], UnreadableFilm, "damaged"),
    "PNG that claims 169 megapixels": (png_claiming(13_000, 13_000), FilmTooLarge, "13000 x 13000"),
    "PNG that claims 4 gigapixels": (png_claiming(65_535, 65_535), FilmTooLarge, f"{MAX_PIXELS:,}"),
    "more bytes than any film": (JPEG + bytes(MAX_BYTES), FilmTooLarge, f"{MAX_BYTES:,}"),
}


@pytest.mark.parametrize("name", FAULTS)
def test_a_faulty_file_is_refused_by_name_fact_and_type(name: str) -> None:
    data, kind, fact = FAULTS[name]
    with pytest.raises(kind, match=fact) as caught:
        decode(data, "ward7/0031.jpg")
    assert str(caught.value).startswith("ward7/0031.jpg: ")


@settings(max_examples=200, deadline=None)
@given(st.sampled_from([JPEG, PNG, encoded(RGB, "JPEG"), encoded(WIDE)]), st.data())
def test_damage_gives_pixels_or_a_typed_error(original: bytes, data: st.DataObject) -> None:
    damaged = bytearray(original[: data.draw(st.integers(0, len(original)))])
    for place in data.draw(st.lists(st.integers(0, max(0, len(damaged) - 1)), max_size=4)):
        if damaged:
            damaged[place] ^= data.draw(st.integers(1, 255))
    try:
        outcome: object = decode(bytes(damaged), "damaged", at_least=(112, 160)).pixels.ndim
    except FilmError as error:
        outcome = str(error)[:9]
    assert outcome in {2, "damaged: "}


def test_a_truly_coloured_picture_is_objected_to_and_a_coloured_marker_is_not() -> None:
    colourful = np.dstack([textured(1), textured(2), textured(3)])
    objection = objection_to(decode(encoded(colourful), "photo"))
    assert objection is not None
    assert objection.verdict is Verdict.COLOURED
    marked = RGB.copy()
    marked[:10, :10] = (255, 0, 0)
    assert objection_to(decode(encoded(marked), "marked")) is None


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
        assert (bits(perceptual_hash(film)) ^ bits(perceptual_hash(same))).bit_count() <= 6
    assert (bits(perceptual_hash(film)) ^ bits(perceptual_hash(textured(6)))).bit_count() > 16


def test_decoding_opens_no_path(tmp_path: Path) -> None:
    path = tmp_path / "film.png"
    path.write_bytes(PNG)
    with pytest.raises(UnsupportedFormat):
        decode(str(path).encode(), "a path in place of a film")


def test_the_table_of_formats_agrees_with_pillow() -> None:
    for data in (JPEG, PNG, encoded(WIDE)):
        with Image.open(io.BytesIO(data)) as image:
            assert np.array_equal(decode(data, "film").pixels, np.asarray(image))
