"""Damage: whatever becomes of a film's bytes, the outcome is pixels or a typed error that names the film."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pydicom
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from PIL import Image
from pydicom.uid import ExplicitVRLittleEndian
from test_dicom import JPEG_BASELINE, htj2k, lossless_jpeg

from chestxray.errors import FilmError
from chestxray.images.decode import decode
from dicoms import SHIPPED, coded, compressed, native, table, written
from drawing import encoded, gradient, textured

HEIC = (Path(__file__).parent / "synthetic.heic").read_bytes()


def with_sequences(pixels: npt.NDArray[np.generic], bits: int) -> bytes:
    """A file with the hundred elements of a scanner's, sequences of undefined length among them, and these pixels."""
    dataset = pydicom.dcmread(SHIPPED / "examples_overlay.dcm")
    del dataset[0x60003000], dataset[0x00291110]  # which are longer than all the rest
    for element in dataset:
        element.is_undefined_length = element.VR == "SQ"
    dataset.Rows, dataset.Columns = pixels.shape
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit = 8 * pixels.itemsize, bits, bits - 1
    dataset.PixelData = pixels.tobytes()
    return written(dataset, ExplicitVRLittleEndian)


def films_of(height: int, width: int, *, deep: bool = True) -> dict[str, bytes]:
    """A film of that size in each format; DICOM of 12 bits, or of 8 if not deep, which is cheaper to display."""
    grey = gradient(height, width)
    wide = np.linspace(0, 4095, grey.size, dtype=np.uint16).reshape(grey.shape)
    rgb = np.dstack([textured(n, height, width) for n in range(3)])
    one, bits = (wide, 12) if deep else (grey, 8)
    return {
        "JPEG": encoded(grey, "JPEG"),
        "JPEG progressive": encoded(rgb, "JPEG", progressive=True),
        "JPEG CMYK": encoded(Image.fromarray(grey).convert("CMYK"), "JPEG"),
        "PNG": encoded(grey),
        "PNG 16": encoded(wide),
        "PNG palette": encoded(Image.fromarray(rgb).convert("P"), transparency=3),
        "TIFF": encoded(grey, "TIFF"),
        "TIFF LZW": encoded(rgb, "TIFF", compression="tiff_lzw"),
        "TIFF deflate 16": encoded(wide, "TIFF", compression="tiff_adobe_deflate"),
        "TIFF of JPEG": encoded(rgb, "TIFF", compression="jpeg"),
        "TIFF PackBits": encoded(grey, "TIFF", compression="packbits"),
        "TIFF fax": encoded(Image.fromarray(grey).convert("1"), "TIFF", compression="group4"),
        "WebP": encoded(rgb, "WEBP"),
        "WebP lossless": encoded(rgb, "WEBP", lossless=True),
        "BMP": encoded(grey, "BMP"),
        "GIF": encoded(grey, "GIF"),
        "JPEG 2000": encoded(wide, "JPEG2000"),
        "PGM": encoded(grey, "PPM"),
        "HEIC": HEIC,
        "DICOM implicit": native(one, "implicit", BitsStored=bits, WindowCenter=2000, WindowWidth=900),
        "DICOM explicit": native(one, BitsStored=bits, VOILUTSequence=table(range(2**bits), bits=bits)),
        "DICOM big endian": native(one, "big endian", PixelPaddingValue=0),
        "DICOM deflated": native(one, "deflated", BitsStored=bits, RescaleSlope="2", RescaleIntercept="-1024"),
        "DICOM RLE": compressed(one, "1.2.840.10008.1.2.5"),
        "DICOM JPEG": coded([encoded(grey, "JPEG")], JPEG_BASELINE, grey),
        "DICOM JPEG-LS": compressed(one, "1.2.840.10008.1.2.4.80", BitsStored=bits),
        "DICOM JPEG 2000": compressed(one, "1.2.840.10008.1.2.4.90", BitsStored=bits),
        "DICOM HTJ2K": htj2k(one, BitsStored=bits),
        "DICOM lossless JPEG": coded([lossless_jpeg(one, bits)], "1.2.840.10008.1.2.4.70", one, BitsStored=bits),
        "DICOM sequences": with_sequences(one, bits),
    }


FILMS = films_of(96, 128)


def outcome(data: bytes, at_least: tuple[int, int] = (112, 160)) -> str:
    """ "pixels", or the name of a typed error; anything else is raised."""
    try:
        film = decode(data, "damaged", at_least)
    except FilmError as error:
        assert str(error).startswith("damaged: ")  # noqa: PT017 - other errors shall pass through
        assert not isinstance(error.__cause__, MemoryError)  # noqa: PT017
        assert "MemoryError" not in str(error)  # noqa: PT017 - DICOM's errors have no cause
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


MUTATE = Path(__file__).parent / "fuzz" / "mutate.py"


@pytest.mark.slow
def test_a_thousand_random_damages_of_each_format(tmp_path: Path) -> None:
    """In processes of their own: a decoder in C that dies would take the tests with it."""
    done = subprocess.run(
        [sys.executable, MUTATE, "--count", "1000", "--keep", tmp_path], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"{1000 * len(FILMS):,} in all" in done.stdout


@pytest.mark.soak
@pytest.mark.timeout(4 * 3600)
def test_a_million_random_damages_of_each_format(tmp_path: Path) -> None:
    count = int(os.environ.get("CHESTXRAY_SOAK_DAMAGES", "1000000"))
    done = subprocess.run(
        [sys.executable, MUTATE, "--count", str(count), "--keep", tmp_path], capture_output=True, text=True, check=False
    )
    print(done.stdout)
    assert done.returncode == 0, done.stdout[-8000:] + done.stderr[-4000:]


# what a decoder does with every damaged film, and what is said of it
FAULTS = {
    "raises": ("raise KeyError(7)", "raised", "KeyError: 7"),
    "dies": ("import ctypes; ctypes.string_at(0)", "SIGSEGV", "Segmentation fault"),
    "does not end": ("\n  while True: pass", "SIGPROF", ""),
    "takes memory": ("bytearray(2 * mutate.MEMORY)", "raised", "MemoryError"),
}


@pytest.mark.slow
@pytest.mark.parametrize("fault", FAULTS)
def test_the_hunt_notices_a_decoder_that(fault: str, tmp_path: Path) -> None:
    does, why, words = FAULTS[fault]
    script = f"""
import sys
sys.path.insert(0, {str(MUTATE.parent)!r})
import mutate
films = set(mutate.films_of(32, 40, deep=False).values())
mutate.SECONDS = 0.1
def looked_at(data):
 if not any(data in sizes for sizes in (films, deep, medium, large)):
  {does}
 return "pixels"
deep, medium, large = (set(mutate.films_of(*size).values()) for size in ((32, 40), (96, 128), (288, 384)))
mutate.looked_at = looked_at
sys.argv[1:] = ["PNG", "--count", "9", "--keep", {str(tmp_path)!r}]
sys.exit(mutate.main())
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 1, done.stderr
    (kept,) = tmp_path.iterdir()
    assert f"PNG: {why}; the bytes are in {kept}" in done.stdout
    assert words in done.stdout
    assert outcome(kept.read_bytes())


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
