"""Risk and coverage, conformal sets, predictive values: against definitions, simulation and their own laws."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import optimize, stats

from chestxray.errors import DegenerateLabels, UsageError
from chestxray.evaluation.assessment import assess
from chestxray.metrics.decision import (
    COVERAGES,
    PREVALENCES,
    conformal_rule,
    conformal_sets,
    predictive_values,
    risk_coverage,
)
from chestxray.metrics.metrics import Confusion
from chestxray.metrics.scores import ScoreTable
from scored import evaluated, scored

# --------------------------------------------------------------------------- risk and coverage


@given(evaluated(), st.integers(1, 19))
def test_risk_is_the_error_rate_of_the_surest_films(data, step):
    labels, probabilities = data
    threshold = step / 20
    found = risk_coverage(labels, probabilities, threshold)
    inside = np.clip(probabilities, 2**-52, 1 - 2**-52)
    margin = np.abs(np.log(inside / (1 - inside)) - math.log(threshold / (1 - threshold)))
    wrong = (probabilities >= threshold) != labels
    for coverage, risk in zip(found.coverage, found.risk, strict=True):
        films = round(coverage * len(labels))
        surest = margin >= np.sort(margin)[::-1][films - 1] - 1e-9
        assert surest.sum() == films
        assert risk == pytest.approx(wrong[surest].mean())
    assert found.coverage[-1] == 1.0
    assert found.risk[-1] == pytest.approx(wrong.mean())


@given(evaluated())
def test_what_is_kept_is_at_least_what_was_asked_for(data):
    found = risk_coverage(*data, 0.5)
    for wanted, kept in zip(COVERAGES, found.kept, strict=True):
        assert kept.coverage >= wanted - 1e-12
        assert kept.error_rate.numerator == kept.missed + kept.false_alarms
        assert kept.error_rate.films == round(kept.coverage * len(data[0]))


def test_the_area_is_the_mean_risk_over_films_without_ties():
    table = scored(films=200)
    found = risk_coverage(table.labels, table.probabilities, 0.5)
    assert len(found.risk) == 200
    assert found.area == pytest.approx(found.risk.mean())


def test_a_model_that_knows_what_it_knows_errs_less_on_what_it_keeps():
    table = scored(films=2_000, patients=2_000)
    kept = risk_coverage(table.labels, table.probabilities, 0.5).kept
    assert kept[-1].error_rate.value < 0.5 * kept[0].error_rate.value


# --------------------------------------------------------------------------- conformal sets


@given(evaluated(least=4), evaluated(), st.integers(1, 49))
def test_sets_hold_the_labels_whose_conformal_p_value_exceeds_the_error(fitted, data, hundredths):
    """By definition: p of a label is the share of its films, the new one counted, that are no more typical of it."""
    error = hundredths / 100
    rule = conformal_rule(*fitted, error)
    labels, probabilities = data
    for probability in probabilities:
        for label, held in ((1, probability >= rule.lowest), (0, probability <= rule.highest)):
            of_class = fitted[1][fitted[0] == label]
            stranger = of_class <= probability if label else of_class >= probability
            p = (stranger.sum() + 1) / (len(of_class) + 1)
            assert held == (p > error + 1e-12), (label, probability)
    sets = conformal_sets(labels, probabilities, rule)
    assert sets.single + sets.both + sets.neither == len(labels)


def test_each_class_is_covered_as_often_as_asked_for_whatever_the_model():
    rng = np.random.default_rng(4)
    covered = {0: [], 1: []}
    for _ in range(400):
        labels = np.repeat([0, 1], [60, 30])
        scores = 1 / (1 + np.exp(-(labels * 1.0 + rng.normal(size=90))))  # nowhere near calibrated
        rule = conformal_rule(labels, scores, 0.2)
        new = np.repeat([0, 1], 50)
        sets = conformal_sets(new, 1 / (1 + np.exp(-(new * 1.0 + rng.normal(size=100)))), rule)
        covered[1].append(sets.covered[0].value)
        covered[0].append(sets.covered[1].value)
    assert 0.80 - 0.01 <= np.mean(covered[0]) <= 0.80 + 1 / 61 + 0.01
    assert 0.80 - 0.01 <= np.mean(covered[1]) <= 0.80 + 1 / 31 + 0.01


def test_few_films_exclude_nothing():
    rule = conformal_rule([0, 0, 1, 1], [0.1, 0.2, 0.8, 0.9], 0.1)
    assert (rule.lowest, rule.highest) == (0.0, 1.0)
    assert conformal_sets([0, 1], [0.5, 0.5], rule).both == 2


@pytest.mark.parametrize("error", [0.0, 1.0, -0.1, math.nan])
def test_an_error_rate_lies_between_0_and_1(error):
    with pytest.raises(UsageError, match="between 0 and 1"):
        conformal_rule([0, 1], [0.2, 0.8], error)


def test_no_rule_is_fitted_on_one_class():
    with pytest.raises(DegenerateLabels):
        conformal_rule([1, 1], [0.2, 0.8], 0.1)


# --------------------------------------------------------------------------- predictive values

cells = st.integers(1, 300)


@given(cells, cells, cells, cells)
def test_at_the_prevalence_of_the_films_predictive_values_are_those_of_the_films(tp, fp, fn, tn):
    confusion = Confusion(tp, fp, fn, tn)
    found = predictive_values(confusion, confusion.positives / confusion.films, 0.95)
    assert (found.ppv.value, found.npv.value) == pytest.approx((confusion.precision, confusion.npv))


@given(cells, cells, cells, cells, st.sampled_from(PREVALENCES))
def test_the_interval_is_the_delta_method_on_the_logit(tp, fp, fn, tn, prevalence):
    confusion = Confusion(tp, fp, fn, tn)

    def logit(rates, kind):
        sensitivity, specificity = rates
        true, false = sensitivity * prevalence, (1 - specificity) * (1 - prevalence)
        if kind == "npv":
            true, false = specificity * (1 - prevalence), (1 - sensitivity) * prevalence
        return math.log(true / false)

    rates = np.array([confusion.sensitivity, confusion.specificity])
    variance = rates * (1 - rates) / [confusion.positives, confusion.negatives]
    found = predictive_values(confusion, prevalence, 0.95)
    for kind, measure in (("ppv", found.ppv), ("npv", found.npv)):
        step = 1e-6 * np.minimum(rates, 1 - rates)
        slope = optimize.approx_fprime(rates, logit, step, kind)
        error = math.sqrt(np.sum(slope**2 * variance))
        expected = 1 / (1 + np.exp(-(logit(rates, kind) + np.array([-1, 1]) * stats.norm.ppf(0.975) * error)))
        assert (measure.interval.low, measure.interval.high) == pytest.approx(tuple(expected), abs=1e-4)


@given(st.integers(0, 40), st.integers(0, 40), st.integers(0, 40), st.integers(0, 40), st.sampled_from(PREVALENCES))
def test_a_predictive_value_has_an_interval_that_holds_it_or_a_reason(tp, fp, fn, tn, prevalence):
    found = predictive_values(Confusion(tp, fp, fn, tn), prevalence, 0.95)
    for measure in (found.ppv, found.npv):
        if measure.value is None:
            assert measure.note
        else:
            assert 0.0 <= measure.interval.low <= measure.value <= measure.interval.high <= 1.0
            assert measure.interval.low < measure.interval.high


def test_predictive_intervals_cover_as_often_as_they_say():
    rng = np.random.default_rng(2)
    truth = 0.9 * 0.1 / (0.9 * 0.1 + 0.2 * 0.9)
    hits = 0
    for tp, tn in zip(rng.binomial(120, 0.9, 2_000), rng.binomial(100, 0.8, 2_000), strict=True):
        found = predictive_values(Confusion(int(tp), int(100 - tn), int(120 - tp), int(tn)), 0.1, 0.95).ppv.interval
        hits += found.low <= truth <= found.high
    assert hits / 2_000 == pytest.approx(0.95, abs=0.015)


def test_rarer_pneumonia_makes_a_call_worth_less_and_an_all_clear_worth_more():
    values = [predictive_values(Confusion(90, 20, 10, 80), share, 0.95) for share in PREVALENCES]
    assert [v.ppv.value for v in values] == sorted(v.ppv.value for v in values)
    assert [v.npv.value for v in values] == sorted((v.npv.value for v in values), reverse=True)


# --------------------------------------------------------------------------- in an assessment


def test_an_assessment_gives_predictive_values_and_subgroups_by_patient():
    found = assess(scored(), resamples=200)
    for values in found.predictive:
        assert values.ppv.by_patient.low <= values.ppv.value <= values.ppv.by_patient.high
    for part in found.subgroups:
        assert part.patients < found.patients
        for measure in part.measures:
            assert measure.by_patient.low <= measure.value <= measure.by_patient.high


def test_a_subgroup_is_resampled_as_the_table_of_its_films_would_be():
    table = scored(films=400, patients=160)
    virus = next(part for part in assess(table, resamples=1_000).subgroups if part.value == "virus")
    films = (np.array(table.columns["cause"]) == "virus") | (table.labels == 0)
    alone = assess(table.where(films), resamples=1_000).measure("auroc").by_patient
    found = virus.measure("auroc").by_patient
    assert (found.low, found.high) == pytest.approx((alone.low, alone.high), abs=0.015)


def test_one_class_alone_gets_reasons_and_no_nan():
    found = assess(ScoreTable(("a", "b"), np.array([1, 1]), np.array([0.2, 0.9])), resamples=50)
    assert all(values.ppv.value is None and values.ppv.note for values in found.predictive)
    assert found.risk_coverage.risk[-1] == 0.5
