"""Stress validation: shifts that are always the same, that training does not draw, and what they do to figures."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from sklearn.metrics import roc_auc_score

from chestxray.cli.evaluate import reliance_text, stress_text
from chestxray.data.pack import Pack
from chestxray.evaluation.robustness import CLEAN, measured_again, pool_shifts, predict_under_stress, under_shifts
from chestxray.images.shifts import EXCHANGED_FROM, EXCHANGES, SHIFTS, Shift, condition, shifted
from chestxray.inference.predictor import Predictor
from chestxray.metrics.calibration import Calibration
from chestxray.schema import OperatingPoint, Split
from chestxray.training.config import Recipe, shipped_recipes
from chestxray.training.run_folder import STRESS, RunInfo, ValidationTable, read_stress_table

NAMES = [shift.name for shift in SHIFTS]


@pytest.mark.parametrize("shift", SHIFTS, ids=NAMES)
def test_a_shift_changes_a_film_but_neither_its_size_nor_every_other_time(
    shift: Shift, planes: npt.NDArray[np.uint8]
) -> None:
    before = planes.copy()
    first = shifted(planes, "abcd", shift)
    assert np.array_equal(planes, before)
    assert first.shape == planes.shape
    assert first.dtype == np.uint8
    assert all(not np.array_equal(one, film) for one, film in zip(first, planes, strict=True))
    backwards = shifted(planes[::-1], "dcba", shift)[::-1]
    assert np.array_equal(first, backwards)


def test_the_shifts_differ_from_each_other(planes: npt.NDArray[np.uint8]) -> None:
    seen = {shifted(planes[:1], "a", shift).tobytes() for shift in SHIFTS}
    assert len(seen) == len(SHIFTS)


@pytest.mark.parametrize("name", shipped_recipes())
def test_no_shipped_recipe_varies_films_as_far_as_the_stress_validation(name: str) -> None:
    varied = Recipe.shipped(name).augmentation
    assert varied.rotation < 15.0
    assert varied.scale < 0.3
    assert varied.aspect < 0.25
    assert 1.0 + varied.gamma < min(1.9, 1.0 / 0.55)


@pytest.fixture(scope="module")
def scored() -> tuple[npt.NDArray[np.int8], dict[str, npt.NDArray[np.float64]]]:
    generator = np.random.default_rng(3)
    labels = generator.integers(0, 2, 200).astype(np.int8)
    apart = {CLEAN: 4.0, "rotated": 2.0, "noisy": 0.5}
    return labels, {name: labels * gain + generator.normal(size=200) for name, gain in apart.items()}


def test_the_figures_are_those_of_scikit_learn(scored: tuple[npt.NDArray[np.int8], dict[str, object]]) -> None:
    labels, logits = scored
    point = OperatingPoint("balanced", 0.8, 0.9, 0.9, 10, 10)
    found = under_shifts(labels, logits, Calibration(1.0, 0.0), point)
    assert [row.shift for row in found.rows] == list(logits)
    expected = {name: roc_auc_score(labels, values) for name, values in logits.items()}
    assert {row.shift: row.auroc.value for row in found.rows} == pytest.approx(expected)
    assert found.mean_auroc == pytest.approx((expected["rotated"] + expected["noisy"]) / 2)
    assert found.worst.shift == "noisy"
    called = np.asarray(logits["noisy"]) >= np.log(0.8 / 0.2)
    assert found.rows[2].sensitivity.value == pytest.approx(np.mean(called[labels == 1]))
    assert found.rows[2].specificity.value == pytest.approx(np.mean(~called[labels == 0]))
    assert all(row.auroc.interval is not None for row in found.rows)


def test_a_pool_holds_every_film_once_a_shift(scored: tuple[npt.NDArray[np.int8], dict[str, object]]) -> None:
    labels, logits = scored
    all_labels, all_logits = pool_shifts(labels, logits)
    assert len(all_labels) == len(all_logits) == 3 * len(labels)
    assert np.array_equal(all_labels[200:400], labels)
    assert np.array_equal(all_logits[200:400], logits["rotated"])


def test_points_chosen_on_a_pool_count_films_once() -> None:
    chosen = (OperatingPoint("balanced", 0.5, 0.1, 0.1, 300, 300),)
    (again,) = measured_again(chosen, [0, 0, 1, 1, 1], [0.1, 0.6, 0.4, 0.7, 0.8])
    assert (again.threshold, again.positives, again.negatives) == (0.5, 3, 2)
    assert (again.sensitivity, again.specificity) == (pytest.approx(2 / 3), 0.5)


def test_a_run_keeps_what_its_best_weights_make_of_every_shift(training: Path) -> None:
    info = RunInfo.read(training)
    stress = read_stress_table(training / STRESS, info.files[STRESS])
    assert list(stress) == [*NAMES, *(condition(*pair) for pair in EXCHANGED_FROM)]
    table = ValidationTable.read(training / "validation.csv", info.files["validation.csv"])
    assert all(values.shape == table.labels.shape and np.isfinite(values).all() for values in stress.values())


def test_a_bundle_evaluated_under_shifts_answers_as_its_run_did(training: Path, bundle: Path, pack: Path) -> None:
    opened = Pack.open(pack)
    films = [opened.films[row] for row in opened.rows(Split.VAL)]
    found, relied = predict_under_stress(Predictor.load(bundle), films, workers=1)
    info = RunInfo.read(training)
    expected = read_stress_table(training / STRESS, info.files[STRESS])
    labels = [film.label == "pneumonia" for film in films]
    assert [row.exchange for row in relied.rows] == [one.name for one in EXCHANGES]
    for row in found.rows[1:]:
        assert row.auroc.value == pytest.approx(roc_auc_score(labels, expected[row.shift]), abs=0.02)
    said = stress_text(found)
    assert f"{found.worst.auroc.value:.4f} at worst ({found.worst.shift})" in said
    assert [line.split()[0] for line in said.splitlines()[2:]] == [row.shift for row in found.rows]
    told = reliance_text(relied)
    assert f"the largest gap is {relied.worst.gap:+.4f} ({relied.worst.exchange.replace('_', ' ')})" in told
    assert all(row.exchange.replace("_", " ") in told for row in relied.rows)
