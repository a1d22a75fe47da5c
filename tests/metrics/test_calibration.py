"""Temperature, calibration error and operating points, against SciPy, scikit-learn and exhaustive search."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import optimize, special
from sklearn import metrics as oracle

from chestxray.errors import DataError, DegenerateLabels
from chestxray.metrics.calibration import (
    GOALS,
    MAX_TEMPERATURE,
    MIN_TEMPERATURE,
    brier_parts,
    brier_score,
    calibrated,
    choose_operating_points,
    expected_calibration_error,
    expected_error_if_calibrated,
    fit_calibration,
    left_out,
    reliability,
)
from chestxray.metrics.metrics import Confusion
from scored import evaluated, scored

# --------------------------------------------------------------------------- from logits to probabilities


@given(st.floats(-800, 800), st.floats(0.05, 20), st.floats(-20, 20))
def test_a_probability_is_the_sigmoid_of_the_shifted_and_tempered_logit(logit, temperature, bias):
    expected = special.expit((logit + bias) / temperature)
    assert calibrated(logit, temperature, bias) == pytest.approx(expected, rel=1e-9, abs=1e-300)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("sharpness", [0.3, 1.0, 4.0])
@pytest.mark.parametrize("leaning", [-3.0, 0.0, 1.5])
def test_the_calibration_is_the_one_that_scipy_finds(seed, sharpness, leaning):
    rng = np.random.default_rng(seed)
    targets = rng.normal(size=300) * 2
    labels = (rng.random(300) < special.expit(targets)).astype(int)
    logits = sharpness * targets + leaning
    targets = np.where(labels, (labels.sum() + 1) / (labels.sum() + 2), 1 / (300 - labels.sum() + 2))

    def loss(parameters):  # convex in these two
        scaled = logits * parameters[0] + parameters[1]
        return np.mean(np.logaddexp(0, scaled) - targets * scaled)

    inverse, shift = optimize.minimize(loss, [1.0, 0.0], method="BFGS", options={"gtol": 1e-9}).x
    fitted = fit_calibration(labels, logits)
    assert 1 / fitted.temperature == pytest.approx(inverse, rel=1e-4)
    assert fitted.bias / fitted.temperature == pytest.approx(shift, abs=1e-4)


def test_the_calibration_undoes_overconfidence_and_a_leaning():
    rng = np.random.default_rng(0)
    logits = rng.normal(size=20_000) * 2
    labels = rng.random(20_000) < special.expit(logits)
    fitted = fit_calibration(labels, 5 * logits - 2)
    assert fitted.temperature == pytest.approx(5, rel=0.05)
    assert fitted.bias == pytest.approx(2, abs=0.15)


def test_separated_classes_ask_for_no_boundless_confidence():
    labels = np.repeat([0, 1], 50)
    fitted = fit_calibration(labels, np.where(labels, 8.0, -8.0))
    assert calibrated(8.0, *fitted) == pytest.approx(51 / 52, abs=1e-6)


def test_the_temperature_stays_within_its_bounds():
    labels = np.repeat([0, 1], 20)
    assert fit_calibration(labels, np.where(labels, -3.0, 3.0)).temperature == MAX_TEMPERATURE
    assert fit_calibration(labels, np.where(labels, 1e-3, -1e-3)).temperature == MIN_TEMPERATURE


def test_logits_that_tell_nothing_give_the_prevalence():
    labels = np.repeat([0, 1], [30, 10])
    fitted = fit_calibration(labels, np.full(40, 7.0))
    assert calibrated(7.0, *fitted) == pytest.approx(0.25, abs=0.02)


@pytest.mark.parametrize("chosen", [fit_calibration, choose_operating_points])
def test_nothing_is_chosen_on_one_class(chosen):
    with pytest.raises(DegenerateLabels):
        chosen([1, 1, 1], [0.1, 0.5, 0.9])


# --------------------------------------------------------------------------- how well calibrated


@given(evaluated())
def test_the_brier_score_is_scikit_learns_and_the_sum_of_its_parts(data):
    labels, probabilities = data
    score = brier_score(labels, probabilities)
    assert score == pytest.approx(oracle.brier_score_loss(labels, probabilities))
    parts = brier_parts(labels, probabilities)
    total = parts.reliability - parts.resolution + parts.uncertainty + parts.within_bins
    assert total == pytest.approx(score)


def test_one_probability_a_bin_leaves_nothing_within_bins():
    table = scored()
    centres = (np.minimum((table.probabilities * 15).astype(int), 14) + 0.5) / 15
    assert brier_parts(table.labels, centres).within_bins == pytest.approx(0.0, abs=1e-12)


@given(evaluated(), st.integers(1, 20))
def test_bins_hold_every_film_once(data, bins):
    labels, probabilities = data
    table = reliability(labels, probabilities, bins)
    assert sum(b.films for b in table) == len(labels)
    assert sum(b.positives for b in table) == labels.sum()
    for b in table:
        assert (b.predicted is None) == (b.observed is None) == (b.films == 0)
        assert b.predicted is None or b.low - 1e-9 <= b.predicted <= b.high + 1e-9


def test_the_calibration_error_is_what_a_hand_computes():
    labels = [0, 1, 1, 1]
    probabilities = [0.1, 0.3, 0.8, 1.0]
    # Two bins: (0.1, 0.3) predict 0.2 and hold 1 of 2; (0.8, 1.0) predict 0.9 and hold 2 of 2.
    assert expected_calibration_error(labels, probabilities, bins=2) == pytest.approx((2 * 0.3 + 2 * 0.1) / 4)


@given(evaluated())
def test_calibration_errors_lie_in_0_to_1(data):
    assert 0.0 <= expected_calibration_error(*data) <= 1.0
    assert 0.0 <= brier_score(*data) <= 1.0


def test_the_error_by_chance_is_what_calibrated_labels_show():
    rng = np.random.default_rng(1)
    probabilities = rng.random(400)
    mean, most = expected_error_if_calibrated(probabilities)
    found = [expected_calibration_error(rng.random(400) < probabilities, probabilities) for _ in range(400)]
    assert np.mean(found) == pytest.approx(mean, rel=0.05)
    assert np.mean(np.array(found) <= most) == pytest.approx(0.95, abs=0.04)


def test_a_score_that_is_no_number_is_refused():
    with pytest.raises(DataError, match="entry 1"):
        brier_score([0, 1], [0.5, np.nan])


# --------------------------------------------------------------------------- operating points


@given(evaluated())
def test_operating_points_keep_their_promises(data):
    labels, probabilities = data
    points = {point.name: point for point in choose_operating_points(labels, probabilities, chosen_on="here")}
    assert list(points) == [name for name in GOALS if name in points]
    assert len(left_out(list(points.values()))) == len(GOALS) - len(points)
    balanced = points["balanced"]
    screening, confirming = points.get("screening", balanced), points.get("confirming")
    thresholds = [point.threshold for point in points.values()]
    assert thresholds == sorted(set(thresholds))
    for point in points.values():
        found = Confusion.at(point.threshold, labels, probabilities)
        assert (point.sensitivity, point.specificity) == pytest.approx((found.sensitivity, found.specificity))
        assert (point.positives, point.negatives, point.chosen_on) == (found.positives, found.negatives, "here")
    assert screening.sensitivity >= 0.99
    every = [Confusion.at(t, labels, probabilities) for t in np.unique(probabilities)]
    best = max((min(c.sensitivity, c.specificity), c.sensitivity + c.specificity) for c in every)
    assert min(balanced.sensitivity, balanced.specificity) == pytest.approx(best[0])
    assert balanced.sensitivity + balanced.specificity == pytest.approx(best[1])
    calls = [np.sum(probabilities >= t) for t in np.unique(probabilities)]
    allowed = np.sum(probabilities >= balanced.threshold)
    stricter = [c.precision for c, called in zip(every, calls, strict=True) if called <= allowed]
    kept = Confusion.at(balanced.threshold, labels, probabilities).precision
    if confirming is None:
        assert kept >= 0.97 or max(stricter) < 0.97
    else:
        assert kept < 0.97 <= Confusion.at(confirming.threshold, labels, probabilities).precision


def test_balanced_buys_neither_figure_with_the_other():
    labels = np.repeat([0, 1], 100)
    normal = np.r_[np.full(90, 0.1), np.full(10, 0.45)]  # a specificity of 0.90 from 0.1 to 0.45, and 1 above
    sick = np.r_[np.full(8, 0.05), np.full(7, 0.2), np.full(85, 0.9)]  # a sensitivity of 0.92 to 0.2, and 0.85 to 0.9
    points = {point.name: point for point in choose_operating_points(labels, np.r_[normal, sick])}
    assert (points["balanced"].sensitivity, points["balanced"].specificity) == (0.92, 0.90)  # the sum is 1.85 elsewhere


def test_a_threshold_lies_midway_in_logits_and_on_no_film():
    labels = np.repeat([0, 1], 2)
    points = choose_operating_points(labels, calibrated([-5.0, -1.0, 3.0, 4.0]))
    assert [(point.name, point.threshold) for point in points] == [("balanced", pytest.approx(calibrated(1.0)))]


def test_probabilities_at_the_very_ends_are_told_apart():
    for below, above in ((0.0, 1.0), (0.0, 5e-324), (np.nextafter(1.0, 0.0), 1.0)):
        (point,) = choose_operating_points([0, 1], [below, above])
        assert below < point.threshold <= above


def test_where_no_threshold_confirms_there_is_no_such_point_and_a_sentence_says_so():
    labels = np.array([0, 0, 1, 0, 1, 0])
    probabilities = np.array([0.1, 0.2, 0.5, 0.6, 0.7, 0.9])
    points = choose_operating_points(labels, probabilities)
    assert "confirming" not in {point.name for point in points}
    assert 'There is no point "confirming": no threshold reaches a precision at least 0.97.' in left_out(points)


def test_equal_scores_leave_only_calling_every_film():
    points = choose_operating_points([0, 1, 1], [0.4, 0.4, 0.4])
    assert {(p.threshold, p.sensitivity, p.specificity) for p in points} == {(0.0, 1.0, 0.0)}


def test_a_model_with_room_to_spare_screens_no_stricter_than_it_confirms():
    labels = np.repeat([0, 1], 300)
    probabilities = np.concatenate([np.linspace(0.01, 0.3, 300), np.linspace(0.7, 0.99, 300)])
    (balanced,) = choose_operating_points(labels, probabilities)
    assert [sentence.split('"')[1] for sentence in left_out([balanced])] == ["screening", "confirming"]
    assert (balanced.sensitivity, balanced.specificity) == (1.0, 1.0)
