"""The same film in other grey levels: the same label at every operating point, or a refusal that names the levels."""

from __future__ import annotations

import io
import itertools
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image, ImageDraw, ImageFilter, ImageFont

import chestxray
from chestxray.images.quality import (
    objection_to_artefacts,
    objection_to_detail,
    objection_to_levels,
    objection_to_lines,
)
from chestxray.inference.predictor import Predictor, label_at
from chestxray.schema import Prediction
from drawing import encoded

Grey = npt.NDArray[np.uint8]

EXAMPLES = Path(chestxray.__file__).parent / "serving" / "page" / "examples"
ROUNDED = 0.1  # of the probability: what rounding to fewer levels may move, as it moves any film near a threshold
REAL_FILMS_OF_EACH = 6


@pytest.fixture(scope="module")
def model() -> Predictor:
    return chestxray.load(threads=1)


@pytest.fixture(scope="module")
def drawn() -> tuple[Grey, ...]:
    return tuple(grey_of(path) for path in sorted(EXAMPLES.glob("*.jpg")))


def grey_of(path: Path) -> Grey:
    with Image.open(path) as picture:
        picture.thumbnail((256, 256))
        return np.asarray(picture.convert("L"))


@st.composite
def other_levels(draw: st.DrawFn, film: Grey) -> npt.NDArray[np.generic]:
    """A film through a monotone map: window, gain, offset, depth, a defective pixel, or the other way round."""
    low, high = draw(st.integers(0, 60)), draw(st.integers(195, 255))
    shown = ((film - float(low)) / (high - low)).clip(0.0, 1.0)
    gain = draw(st.floats(0.25, 1.0))
    offset = draw(st.floats(0.0, 1.0)) * (1.0 - gain)
    bits = draw(st.integers(8, 16))
    levels = np.rint((gain * shown + offset) * (2**bits - 1))
    if draw(st.booleans()) and bits < 16:
        levels[draw(st.integers(0, 9)), draw(st.integers(0, 9))] = 2**16 - 1 if bits > 8 else 255
    if bits > 8:
        levels += draw(st.sampled_from([0, 2**15])) if bits < 16 else 0  # signed values stored as unsigned ones
    pixels = levels.clip(0, 255).astype(np.uint8) if bits == 8 else levels.clip(0, 65535).astype(np.uint16)
    return np.iinfo(pixels.dtype).max - pixels if draw(st.integers(0, 5)) == 0 else pixels


def assert_stable(model: Predictor, before: Prediction, after: Prediction) -> None:
    if not after.gate.accepted:
        assert "its grey levels" in after.gate.reason or "negative of a chest film" in after.gate.reason
        return
    assert before.probability is not None
    assert after.probability is not None
    for point in model.info.operating_points:
        if abs(before.probability - point.threshold) > ROUNDED:
            assert label_at(point, after.probability) == label_at(point, before.probability), point.name


@given(data=st.data())
@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
def test_any_map_of_grey_levels_leaves_the_label_or_is_refused_by_name(
    model: Predictor, drawn: Sequence[Grey], data: st.DataObject
) -> None:
    film = data.draw(st.sampled_from(drawn))
    other = data.draw(other_levels(film))
    assert_stable(model, model(encoded(film)), model(encoded(other)))


@pytest.mark.real_films
@given(data=st.data())
@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
def test_and_so_it_is_with_real_films(model: Predictor, real_films: Path, data: st.DataObject) -> None:
    paths = [
        path
        for name in ("NORMAL", "PNEUMONIA")
        for path in sorted((real_films / "chest_xray" / "train" / name).iterdir())[:REAL_FILMS_OF_EACH]
    ]
    film = grey_of(data.draw(st.sampled_from(paths)))
    other = data.draw(other_levels(film))
    before = model(encoded(film))
    assert before.gate.accepted
    assert_stable(model, before, model(encoded(other)))


@pytest.mark.parametrize("bits", [10, 12, 14, 16])
def test_values_of_fewer_bits_in_16_are_stretched_and_answered_as_the_film(
    model: Predictor, drawn: Sequence[Grey], bits: int
) -> None:
    for film in drawn:
        deep = np.rint(film / 255 * (2**bits - 1)).astype(np.uint16)
        answer = model(encoded(deep))
        assert answer.gate.accepted, answer.gate.reason
        assert answer.probability == pytest.approx(model(encoded(film)).probability, abs=0.05)


@pytest.mark.parametrize("bits", [8, 10, 12, 14])
@pytest.mark.parametrize("offset", [1024, 2**15, 49000])
def test_values_above_an_offset_are_stretched_and_answered_as_the_film(
    model: Predictor, drawn: Sequence[Grey], bits: int, offset: int
) -> None:
    for film in drawn:
        raised = (np.rint(film / 255 * (2**bits - 1)) + offset).astype(np.uint16)
        answer = model(encoded(raised))
        assert answer.gate.accepted, answer.gate.reason
        assert answer.probability == pytest.approx(model(encoded(film)).probability, abs=0.05)


def blurred(film: Grey, share: float) -> Grey:
    return np.asarray(Image.fromarray(film).filter(ImageFilter.GaussianBlur(share * max(film.shape))))


def by_way_of(film: Grey, side: int) -> Grey:
    small = Image.fromarray(film).resize((side, side), Image.Resampling.BILINEAR)
    return np.asarray(small.resize((400, 360), Image.Resampling.BICUBIC))


@pytest.mark.parametrize("blur", [0.02, 0.03, 0.04])
def test_a_film_without_detail_is_refused_whatever_its_levels(
    model: Predictor, drawn: Sequence[Grey], blur: float
) -> None:
    for film in drawn:
        soft = blurred(film, blur)
        for pixels in (soft, (soft * 0.5 + 40).astype(np.uint8), np.uint16(soft) * 16, by_way_of(film, 20)):
            assert "it is blurred, or enlarged from few pixels" in model(encoded(pixels)).gate.reason


def test_a_film_that_is_a_little_soft_or_small_has_detail(model: Predictor, drawn: Sequence[Grey]) -> None:
    for film in drawn:
        for pixels in (film, blurred(film, 0.005), by_way_of(film, 64)):
            assert "blurred" not in model(encoded(pixels)).gate.reason


@pytest.mark.real_films
def test_blurred_real_films_are_refused_and_sharp_ones_are_not(real_films: Path) -> None:
    for name in ("NORMAL", "PNEUMONIA"):
        for path in sorted((real_films / "chest_xray" / "train" / name).iterdir())[::80]:
            film = grey_of(path)
            assert objection_to_detail(film) == "", path
            assert "it is blurred, or enlarged" in objection_to_detail(blurred(film, 0.02)), path


@pytest.mark.parametrize("centre", [300, 500, 700])
def test_a_sigmoid_window_that_does_not_fit_is_refused(model: Predictor, drawn: Sequence[Grey], centre: int) -> None:
    for film in drawn:
        values = film * 16.0
        shown = np.rint(65535 / (1 + np.exp(-4 * (values - centre) / 1000))).astype(np.uint16)
        assert "its grey levels are" in model(encoded(shown)).gate.reason


def test_many_defective_pixels_are_refused_and_a_few_leave_the_label(model: Predictor, drawn: Sequence[Grey]) -> None:
    rng = np.random.default_rng(3)
    for film in drawn:
        for share in (0.0002, 0.001, 0.005, 0.02, 0.04):
            levels = np.uint16(film) * 16
            levels.ravel()[rng.choice(film.size, round(share * film.size), replace=False)] = 65535
            answer = model(encoded(levels))
            assert_stable(model, model(encoded(film)), answer)
            if share >= 0.02:
                assert "its grey levels are crowded" in answer.gate.reason


@pytest.mark.parametrize("edge", [0, 1, 2, 3])
def test_a_film_of_which_a_part_never_arrived_is_refused(model: Predictor, drawn: Sequence[Grey], edge: int) -> None:
    for film in drawn:
        turned = np.rot90(film, edge).copy()
        kept = len(turned) * 9 // 10
        turned[kept:] = turned[kept - 1]
        assert "it is incomplete" in model(encoded(np.rot90(turned, -edge))).gate.reason


@pytest.mark.parametrize("columns", [False, True])
def test_a_film_whose_lines_are_displaced_is_refused(model: Predictor, drawn: Sequence[Grey], columns: bool) -> None:
    for film in drawn:
        lines = (film.T if columns else film).copy()
        lines[1::2] = np.roll(lines[1::2], 24, axis=1)
        reason = model(encoded(lines.T if columns else lines)).gate.reason
        assert f"every other {'column' if columns else 'row'} of it is displaced" in reason


def written_over(film: Grey, ink: int) -> Grey:
    picture = Image.fromarray(film)
    pen, font = ImageDraw.Draw(picture), ImageFont.load_default(picture.height // 14)
    for line in range(0, picture.height, picture.height // 12):
        pen.text((4, line), "DOE JOHN 1234567  R  AP SUPINE  59 kV", fill=ink, font=font)
    return np.asarray(picture)


def with_grid(film: Grey, ink: int) -> Grey:
    out = film.copy()
    out[:: len(film) // 16] = ink
    out[:, :: film.shape[1] // 16] = ink
    return out


def with_lost_rows(film: Grey, ink: int) -> Grey:
    out = film.copy()
    out[np.random.default_rng(3).choice(len(film), len(film) // 12, replace=False)] = ink
    return out


@pytest.mark.parametrize("ink", [0, 255])
@pytest.mark.parametrize("added", [written_over, with_grid, with_lost_rows])
def test_letters_grids_and_lost_lines_are_refused(
    model: Predictor, drawn: Sequence[Grey], added: Callable[[Grey, int], Grey], ink: int
) -> None:
    for film in drawn:
        reason = model(encoded(added(film, ink))).gate.reason
        assert "letters, lines, a grid or noise lie over it" in reason or "its grey levels are cut off" in reason


@pytest.mark.parametrize("times", [2, 8])
def test_a_thumbnail_of_repeated_pixels_is_refused(model: Predictor, drawn: Sequence[Grey], times: int) -> None:
    for film in drawn:
        height, width = (side // times for side in film.shape)
        repeated = film[: height * times : times, : width * times : times].repeat(times, 0).repeat(times, 1)
        reason = model(encoded(repeated)).gate.reason
        assert f"it was enlarged from few pixels: {height} rows and {width} columns" in reason


def test_a_jpeg_of_very_low_quality_is_refused_and_a_fair_one_is_not(model: Predictor, drawn: Sequence[Grey]) -> None:
    for film in drawn:
        softened = (40 + 0.7 * film).astype(np.uint8)
        for quality, refused in ((4, True), (30, False), (75, False)):
            coarse = io.BytesIO()
            Image.fromarray(softened).save(coarse, "JPEG", quality=quality)
            reason = model(coarse.getvalue()).gate.reason
            assert bool(reason) == refused, reason
            assert not refused or "its grey levels are" in reason or "it is incomplete" in reason


@pytest.mark.parametrize("rows", [False, True])
def test_stripes_of_a_grid_are_refused(model: Predictor, drawn: Sequence[Grey], rows: bool) -> None:
    for film in drawn:
        lines = film.T if rows else film
        striped = 40 + 0.7 * lines + 30 * np.sin(np.arange(lines.shape[1]) * 0.9)
        levels = striped.clip(0, 255).astype(np.uint8)
        reason = model(encoded(levels.T if rows else levels)).gate.reason
        assert "stripes lie over it" in reason
        assert f"one frequency along its {'rows' if rows else 'columns'}" in reason


def test_a_film_that_moved_is_refused(model: Predictor, drawn: Sequence[Grey]) -> None:
    for film in drawn:
        wide = film.shape[1] // 10
        moved = np.mean([np.roll(film, step, axis=1) for step in range(-wide // 2, wide - wide // 2)], axis=0)
        assert "blurred" in model(encoded(moved.astype(np.uint8))).gate.reason


@pytest.mark.real_films
def test_no_real_film_is_crowded_or_damaged(real_films: Path) -> None:
    for name in ("NORMAL", "PNEUMONIA"):
        for path in sorted((real_films / "chest_xray" / "train" / name).iterdir())[::20]:
            film = grey_of(path)
            assert objection_to_levels(film) == objection_to_lines(film) == objection_to_detail(film) == "", path
            assert objection_to_artefacts(film) == "", path


@pytest.mark.parametrize("offset", [0, 2**15])
def test_an_empty_exposure_of_any_depth_is_refused(model: Predictor, offset: int) -> None:
    noise = np.random.default_rng(3).normal(size=(256, 256))
    heel = np.linspace(-0.5, 0.5, 256)[:, None]  # the tube's: one end of an exposure is brighter
    for bits, unevenness in itertools.product((10, 12, 14), (0.0, 0.02, 0.05)):
        empty = (2 ** (bits - 1) + (noise / 250 + unevenness * heel) * 2**bits + offset).astype(np.uint16)
        assert model(encoded(empty)).gate.reason.startswith("its grey levels are almost uniform")
