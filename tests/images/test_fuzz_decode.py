"""Damage: whatever becomes of a film's bytes, the outcome is pixels or a typed error that names the film."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from PIL import Image
from test_dicom import JPEG_BASELINE, lossless_jpeg

from chestxray.errors import FilmError
from chestxray.images.decode import decode
from dicoms import SHIPPED, coded, compressed, native, table
from drawing import encoded, gradient, textured

GREY = gradient()
WIDE = np.linspace(0, 4095, GREY.size, dtype=np.uint16).reshape(GREY.shape)
RGB = np.dstack([textured(n) for n in range(3)])

FILMS = {
    "JPEG": encoded(GREY, "JPEG"),
    "JPEG progressive": encoded(RGB, "JPEG", progressive=True),
    "JPEG CMYK": encoded(Image.fromarray(GREY).convert("CMYK"), "JPEG"),
    "PNG": encoded(GREY),
    "PNG 16": encoded(WIDE),
    "PNG palette": encoded(Image.fromarray(RGB).convert("P"), transparency=3),
    "TIFF": encoded(GREY, "TIFF"),
    "TIFF LZW": encoded(RGB, "TIFF", compression="tiff_lzw"),
    "TIFF deflate 16": encoded(WIDE, "TIFF", compression="tiff_adobe_deflate"),
    "TIFF of JPEG": encoded(RGB, "TIFF", compression="jpeg"),
    "WebP": encoded(RGB, "WEBP"),
    "BMP": encoded(GREY, "BMP"),
    "GIF": encoded(GREY, "GIF"),
    "JPEG 2000": encoded(WIDE, "JPEG2000"),
    "PGM": encoded(GREY, "PPM"),
    "DICOM implicit": native(WIDE, "implicit", BitsStored=12, WindowCenter=2000, WindowWidth=900),
    "DICOM explicit": native(WIDE, BitsStored=12, VOILUTSequence=table(range(4096), bits=12)),
    "DICOM big endian": native(WIDE, "big endian", PixelPaddingValue=0),
    "DICOM deflated": native(WIDE, "deflated", RescaleSlope="2", RescaleIntercept="-1024"),
    "DICOM RLE": compressed(WIDE, "1.2.840.10008.1.2.5"),
    "DICOM JPEG": coded([encoded(GREY, "JPEG")], JPEG_BASELINE, GREY),
    "DICOM JPEG-LS": compressed(WIDE, "1.2.840.10008.1.2.4.80", BitsStored=12),
    "DICOM JPEG 2000": compressed(WIDE, "1.2.840.10008.1.2.4.90", BitsStored=12),
    "DICOM lossless JPEG": coded([lossless_jpeg(WIDE, 12)], "1.2.840.10008.1.2.4.70", WIDE, BitsStored=12),
    "DICOM sequences": (SHIPPED / "examples_overlay.dcm").read_bytes()[:60_000],
}


def outcome(data: bytes) -> str:
    """ "pixels", or the name of a typed error; anything else is raised."""
    try:
        film = decode(data, "damaged", at_least=(112, 160))
    except FilmError as error:
        assert str(error).startswith("damaged: ")  # noqa: PT017 - other errors shall pass through
        return type(error).__name__
    assert film.pixels.ndim == 2
    assert film.pixels.dtype in (np.uint8, np.uint16)
    assert 0.0 <= film.coloured <= 1.0
    return "pixels"


def cuts(data: bytes) -> Iterator[int]:
    """Every kilobyte, and every eighth byte of the first one, where headers lie."""
    yield from range(0, min(1024, len(data)), 8)
    yield from range(1024, len(data), 1024)
    yield len(data) - 1


@pytest.mark.parametrize("name", FILMS)
def test_a_film_cut_short_anywhere_is_refused_or_whole(name: str) -> None:
    data = FILMS[name]
    outcomes = {outcome(data[:cut]) for cut in cuts(data)}
    allowed = {"TruncatedFilm", "UnreadableFilm", "UnsupportedFormat"}
    assert outcomes - {"pixels"} <= allowed
    assert outcome(data[: len(data) // 2]) != "pixels"


@pytest.mark.parametrize("name", FILMS)
@settings(max_examples=60)
@given(st.data())
def test_flipped_bits_give_pixels_or_a_typed_error(name: str, data: st.DataObject) -> None:
    damaged = bytearray(FILMS[name])
    for _ in range(data.draw(st.integers(1, 4))):
        # Headers lie in the first kilobyte: half of all damage goes there.
        end = len(damaged) - 1 if data.draw(st.booleans()) else min(1024, len(damaged) - 1)
        damaged[data.draw(st.integers(0, end))] ^= 1 << data.draw(st.integers(0, 7))
    assert outcome(bytes(damaged)) in {
        "pixels", "UnsupportedFormat", "FilmTooLarge", "UnreadableFilm", "TruncatedFilm",
    }  # fmt: skip


@settings(max_examples=300)
@given(
    st.sampled_from([b"", b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"II*\0", b"MM\0*", b"II+\0", bytes(128) + b"DICM"]),
    st.binary(max_size=600),
)
@example(b"\x08\0\x05\0", b"CS\x0a\0ISO_IR 100")
def test_noise_behind_any_beginning_is_refused(start: bytes, noise: bytes) -> None:
    assert outcome(start + noise) in {"UnsupportedFormat", "FilmTooLarge", "UnreadableFilm", "TruncatedFilm"}


@settings(max_examples=100)
@given(st.sampled_from(sorted(FILMS)), st.sampled_from(sorted(FILMS)), st.floats(0, 1), st.floats(0, 1))
def test_two_films_spliced_give_pixels_or_a_typed_error(one: str, other: str, end: float, start: float) -> None:
    first, second = FILMS[one], FILMS[other]
    spliced = first[: int(end * len(first))] + second[int(start * len(second)) :]
    assert outcome(spliced) in {"pixels", "UnsupportedFormat", "FilmTooLarge", "UnreadableFilm", "TruncatedFilm"}


@pytest.mark.slow
@pytest.mark.parametrize("name", FILMS)
def test_a_thousand_random_damages_of_each_format(name: str) -> None:
    """In a process of its own: a decoder in C that dies would take the tests with it."""
    done = subprocess.run(
        [sys.executable, Path(__file__).parent / "fuzz" / "mutate.py", name, "--count", "1000"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.soak
@pytest.mark.timeout(7200)
def test_an_hour_of_random_damage_to_every_format_in_turn() -> None:
    done = subprocess.run(
        [sys.executable, Path(__file__).parent / "fuzz" / "mutate.py", "--minutes", "60"],
        capture_output=True,
        text=True,
        check=False,
    )
    print(done.stdout)
    assert done.returncode == 0, done.stdout + done.stderr[-4000:]


@pytest.mark.slow
def test_a_minute_of_coverage_guided_damage_lets_no_other_error_escape(tmp_path: Path) -> None:
    pytest.importorskip("atheris")
    script = Path(__file__).parent / "fuzz" / "coverage.py"
    done = subprocess.run(
        [sys.executable, "-W", "ignore", script, "-max_total_time=60"],
        cwd=tmp_path,
        capture_output=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-4000:].decode(errors="replace")
    assert list(tmp_path.glob("crash-*")) == []
