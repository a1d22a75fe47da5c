"""JPEGs with a hole in their coded data: libjpeg goes on and only warns; here every warning counts."""

from __future__ import annotations

import io
import random
from collections.abc import Callable
from functools import cache

import numpy as np
import pytest
from PIL import Image

from chestxray.errors import FilmError
from chestxray.images.decode import decode
from chestxray.synthetic.anatomy import random_anatomy
from chestxray.synthetic.films import draw_film
from dicoms import coded
from drawing import encoded

HOLE = 512  # bytes: a sector of a disk
PLACES = 60  # of each kind of film and damage
JPEG_BASELINE = "1.2.840.10008.1.2.4.50"

Damage = Callable[[bytes, int, random.Random], bytes]

DAMAGES: dict[str, Damage] = {
    "cut": lambda data, at, _: data[:at] + data[at + HOLE :],
    "zeros": lambda data, at, _: data[:at] + bytes(HOLE) + data[at + HOLE :],
    "ones": lambda data, at, _: data[:at] + b"\xff" * HOLE + data[at + HOLE :],
    "noise": lambda data, at, rng: data[:at] + rng.randbytes(HOLE) + data[at + HOLE :],
    "repeated": lambda data, at, _: data[:at] + data[at - HOLE : at] + data[at:],
}

KINDS: dict[str, dict[str, object]] = {
    "grey": {"quality": 90},
    "fine": {"quality": 99},
    "optimised": {"quality": 90, "optimize": True},
    "restarted": {"quality": 90, "restart_marker_rows": 1},
}
PROGRESSIVE = {"quality": 90, "progressive": True}


@cache
def drawn() -> Image.Image:
    """A synthetic film of 600 x 500 pixels."""
    rng = np.random.default_rng(3)
    return Image.fromarray(draw_film(random_anatomy(rng), "", rng, height=500, width=600).pixels)


@cache
def film(kind: str) -> bytes:
    return encoded(drawn(), "JPEG", **KINDS.get(kind, PROGRESSIVE))


def scan_of(data: bytes) -> tuple[int, int]:
    """Where the coded data begin and end, less a hole on either side."""
    return data.find(b"\xff\xda") + 14 + HOLE, len(data) - 2 - HOLE


def accepted(data: bytes) -> bool:
    try:
        decode(data, "holed.jpeg", (128, 128))
    except FilmError:
        return False
    return True


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", DAMAGES)
def test_a_film_with_a_hole_is_refused_wherever_the_hole_is(name: str, kind: str) -> None:
    data = film(kind)
    assert accepted(data)
    rng = random.Random(7)  # noqa: S311
    holes = (rng.randrange(*scan_of(data)) for _ in range(PLACES))
    scored = [at for at in holes if accepted(DAMAGES[name](data, at, rng))]
    assert not scored


@pytest.mark.parametrize("name", ["cut", "noise", "repeated"])
def test_a_progressive_film_with_a_hole_is_refused_or_hardly_changed(name: str) -> None:
    """Its last scan adds one bit to values that are there: libjpeg may read on behind a hole without a warning."""
    data, rng = film("progressive"), random.Random(7)  # noqa: S311
    whole = np.asarray(Image.open(io.BytesIO(data))).astype(int)
    holed = [DAMAGES[name](data, rng.randrange(*scan_of(data)), rng) for _ in range(PLACES)]
    scored = [decode(each, "holed.jpeg").pixels for each in holed if accepted(each)]
    assert len(scored) < PLACES / 4
    assert all(np.abs(pixels - whole).mean() < 0.5 for pixels in scored)


@pytest.mark.parametrize("value", [0, 0x55])
def test_a_progressive_film_overwritten_by_one_value_is_refused(value: int) -> None:
    data, rng = film("progressive"), random.Random(8)  # noqa: S311
    holes = (rng.randrange(*scan_of(data)) for _ in range(PLACES))
    assert not [at for at in holes if accepted(data[:at] + bytes([value]) * HOLE + data[at + HOLE :])]


def test_colour_with_a_hole_is_refused() -> None:
    data = encoded(drawn().convert("RGB"), "JPEG", quality=90)
    rng = random.Random(1)  # noqa: S311
    assert accepted(data)
    assert not [at for at in range(*scan_of(data), 999) if accepted(DAMAGES["cut"](data, at, rng))]
    inks = encoded(drawn().convert("CMYK"), "JPEG", quality=90)
    assert accepted(inks)
    assert not accepted(DAMAGES["cut"](inks, len(inks) // 2, rng))


def test_a_jpeg_within_a_dicom_file_is_held_to_the_same() -> None:
    data, pixels = film("grey"), np.asarray(drawn())
    assert accepted(coded([data], JPEG_BASELINE, pixels))
    half = len(data) // 2
    holed = coded([data[:half] + data[half + HOLE :]], JPEG_BASELINE, pixels)
    with pytest.raises(FilmError, match=r"JPEG baseline DICOM file is damaged .Corrupt JPEG data"):
        decode(holed, "holed.dcm")


def test_what_stands_behind_the_picture_or_in_its_header_is_no_damage() -> None:
    data = film("grey")
    with_small_one = io.BytesIO()
    drawn().save(with_small_one, "JPEG", quality=90, comment=bytes(4000) + data[: 8 * HOLE])
    assert accepted(data + bytes(4000))
    assert accepted(with_small_one.getvalue())
    behind, scans = io.BytesIO(), film("progressive")
    drawn().save(behind, "JPEG", quality=90, progressive=True, comment=scans[: 8 * HOLE] + bytes(4000) + scans[-HOLE:])
    assert accepted(behind.getvalue() + bytes(4000))


def test_empty_borders_are_no_damage() -> None:
    """Codes made for a picture write emptiness as zeros, for many bytes."""
    page = Image.new("L", (4000, 3000))
    page.paste(drawn().resize((1200, 1000)), (1400, 1000))
    for options in (*KINDS.values(), PROGRESSIVE):
        assert accepted(encoded(page, "JPEG", **options)), options
    assert accepted(encoded(page.convert("RGB"), "JPEG", quality=90))
