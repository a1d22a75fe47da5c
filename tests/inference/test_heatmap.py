"""Evidence as colours: the scale, the colours, the film beneath."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Callable
from pathlib import Path

import matplotlib as mpl
import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image

import chestxray
from chestxray.images import Radiograph
from chestxray.inference.bundle import Bundle, folder_of, shipped_bundles
from chestxray.inference.heatmap import (
    CONTOURS,
    DEFAULT_PEAK,
    FAINTEST,
    FLOOR,
    averaged,
    film_name_of,
    over_film,
    overlay_png,
    strength_of,
    with_film_name,
)
from chestxray.inference.predictor import Predictor
from chestxray.schema import BundleInfo, Preprocessing, Resize

PREPROCESSING = Preprocessing(112, 160, Resize.SQUEEZE, 0.5, 0.2)
VISIBLE = 12  # grey levels of 255, mean over the three channels, by which a coloured pixel differs from its film
QUARTER = 0.25


def alpha_of(png: bytes) -> npt.NDArray[np.int_]:
    with Image.open(io.BytesIO(png)) as picture:
        assert picture.mode == "RGBA"
        return np.asarray(picture)[..., 3].astype(int)


@pytest.fixture
def info(bundle: Path) -> Callable[..., BundleInfo]:
    """A description with another calibration or typical peak."""
    described = Bundle.open(bundle).info

    def changed(**fields: object) -> BundleInfo:
        return BundleInfo.from_json(json.dumps({**json.loads(described.to_json()), **fields}))

    return changed


def test_the_strongest_place_is_drawn_at_full_strength_and_what_speaks_against_stays_clear() -> None:
    strength = np.full((7, 10), -1.0, np.float32)
    strength[2, 6] = 1.0
    alpha = alpha_of(overlay_png(strength, (400, 500), PREPROCESSING))
    row, column = np.unravel_index(alpha.argmax(), alpha.shape)
    assert (row * 7 // alpha.shape[0], column * 10 // alpha.shape[1]) == (2, 6)
    assert alpha.max() >= 160  # of 255: at full strength the film still shows through
    assert alpha[0, 0] == 0
    assert alpha[-1, -1] == 0
    assert alpha_of(overlay_png(-np.abs(strength), (400, 500), PREPROCESSING)).max() == 0


@pytest.mark.parametrize("unit", [0.02, 1.0, 50.0])
def test_the_scale_ends_at_the_films_own_maximum_whatever_the_models_units(
    info: Callable[..., BundleInfo], unit: float
) -> None:
    activation = np.linspace(-1.0, 1.0, 100, dtype=np.float32).reshape(10, 10) * np.float32(unit)
    strength = strength_of(activation, info(bias=0.0, typical_peak=40.0 * unit))
    assert strength.max() == pytest.approx(1.0)


def test_a_film_with_less_than_is_typical_is_drawn_fainter(info: Callable[..., BundleInfo]) -> None:
    activation = np.full((10, 10), 0.01, np.float32)
    assert strength_of(activation, info(bias=0.0, typical_peak=4.0)).max() == pytest.approx(0.25 / FLOOR)
    untold = info(bias=0.0, temperature=0.3, typical_peak=None)
    assert strength_of(activation, untold).max() == pytest.approx(1.0 / (FLOOR * DEFAULT_PEAK * 0.3))
    nothing = np.zeros((10, 10), np.float32)
    assert strength_of(nothing, info(bias=0.0, typical_peak=0.0)).max() == 0.0


def test_the_map_adds_up_to_the_log_odds_behind_the_probability(info: Callable[..., BundleInfo]) -> None:
    activation = np.random.default_rng(3).normal(size=(10, 10)).astype(np.float32)
    described = info(bias=1.5, typical_peak=1e6)
    evidence = strength_of(activation, described) * (FLOOR * (1e6 + 1.5)) / activation.size
    assert evidence.sum() == pytest.approx(activation.sum() + 1.5, abs=1e-3)


def test_the_colours_are_matplotlibs_inferno_and_alpha_only_rises() -> None:
    strengths = np.linspace(0.0, 1.0, 1001, dtype=np.float32)[None]
    png = overlay_png(strengths, (1, 512), PREPROCESSING)
    pixels = np.asarray(Image.open(io.BytesIO(png)))[0].astype(int)
    assert (np.diff(pixels[:, 3]) >= 0).all()
    assert pixels[: int(FAINTEST * 512) - 2, 3].max() == 0
    drawn = (np.arange(512) + 0.5) / 512
    positions = 0.32 + (0.98 - 0.32) * (drawn - FAINTEST) / (1.0 - FAINTEST)
    expected = 255 * mpl.colormaps["inferno"](positions)[:, :3]
    assert np.abs(pixels[:, :3] - expected)[drawn > FAINTEST].max() <= 10


def test_contours_are_lines_between_the_levels() -> None:
    strength = np.linspace(0.0, 1.0, 100, dtype=np.float32)[None].repeat(10, axis=0)
    alpha = alpha_of(overlay_png(strength, (512, 512), PREPROCESSING, contours=True))
    middle = np.flatnonzero(alpha[256])
    assert set(np.unique(alpha)) == {0, 255}
    assert [
        round(float(line.mean()) / 512, 2) for line in np.split(middle, np.flatnonzero(np.diff(middle) > 1) + 1)
    ] == [pytest.approx(level, abs=0.02) for level in CONTOURS]


def test_the_blend_has_the_films_own_proportions_and_detail(predictor: Predictor, film: bytes) -> None:
    overlay = base64.b64decode(predictor.predict(film, "film", heatmap=True).heatmap or "")
    with Image.open(io.BytesIO(film)) as original, Image.open(io.BytesIO(over_film(film, "film", overlay))) as blended:
        assert max(blended.size) == min(1024, max(original.size))
        assert blended.width / blended.height == pytest.approx(original.width / original.height, rel=0.01)


def test_a_picture_says_which_film_it_shows(predictor: Predictor, film: bytes, tmp_path: Path) -> None:
    overlay = base64.b64decode(predictor.predict(film, "film", heatmap=True).heatmap or "")
    path = tmp_path / "map.png"
    path.write_bytes(overlay)
    assert film_name_of(path) is None
    path.write_bytes(with_film_name(overlay, "ä film"))
    assert film_name_of(path) == "ä film"


@pytest.fixture(scope="module")
def predictor(bundle: Path) -> Predictor:
    return Predictor.load(bundle)


@pytest.mark.slow
@pytest.mark.real_films
@pytest.mark.parametrize("name", shipped_bundles())
def test_a_quarter_of_the_map_is_visible_where_pneumonia_is_suspected_and_hardly_any_elsewhere(
    name: str, real_films: Path
) -> None:
    model = chestxray.load(name)
    assert Bundle.open(folder_of(name)).info.typical_peak is not None
    shares: dict[str, list[float]] = {"normal": [], "pneumonia": []}
    for path in sorted((real_films / "originals").glob("*/*"))[::3]:
        data = path.read_bytes()
        answer = model.predict(data, path.name, heatmap=True)
        if answer.label is None:
            continue
        blended = np.asarray(Image.open(io.BytesIO(over_film(data, path.name, base64.b64decode(answer.heatmap or "")))))
        coloured = np.abs(blended.astype(int) - blended.astype(int).mean(axis=2, keepdims=True)).mean(axis=2) >= VISIBLE
        shares[answer.label].append(float(coloured.mean()))
    assert len(shares["normal"]) >= 10
    assert len(shares["pneumonia"]) >= 15
    assert min(shares["pneumonia"]) >= QUARTER
    assert float(np.median(shares["normal"])) <= QUARTER / 2


@pytest.mark.parametrize("kind", [np.uint8, np.uint16])
@pytest.mark.parametrize(
    ("size", "long_side", "expected"),
    [
        ((300, 200), 768, (300, 200)),
        ((1000, 900), 768, (768, 691)),  # squares of two pixels would leave too little
        ((1101, 1400), 768, (550, 700)),
        ((2500, 2048), 768, (625, 512)),
        ((3072, 2), 768, (768, 1)),
    ],
)
def test_a_small_copy_averages_whole_squares_where_that_leaves_enough(
    kind: type, size: tuple[int, int], long_side: int, expected: tuple[int, int]
) -> None:
    levels = np.random.default_rng(5).integers(0, 256, size, np.uint8)
    full = levels if kind is np.uint8 else levels.astype(np.uint16) * 257
    small = averaged(Radiograph(full, size[1], size[0], 1, 8, 0.0), long_side)
    assert small.shape == expected
    assert small.dtype == np.uint8
    step = size[0] // expected[0]
    if step > 1 and expected[1] > 1:
        squares = levels[: expected[0] * step, : expected[1] * step].reshape(expected[0], step, expected[1], step)
        assert np.abs(squares.mean(axis=(1, 3)) - small).max() <= 0.51
