"""Two models on the same films, against SciPy, statsmodels, definitions and simulation."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from scipy import stats
from statsmodels.stats.contingency_tables import mcnemar as mcnemar_of_statsmodels
from statsmodels.stats.proportion import confint_proportions_2indep

from chestxray.errors import SourceInvalid
from chestxray.evaluation.assessment import assess
from chestxray.metrics.comparison import (
    ORIGINAL,
    Published,
    Rival,
    beside_published,
    compare,
    delong_test,
    difference_interval,
    fisher_exact,
    matched,
    mcnemar,
)
from chestxray.metrics.intervals import delong_interval
from chestxray.metrics.metrics import Confusion, auroc
from chestxray.metrics.scores import ScoreTable
from scored import scored


def other_model(table, seed=5, noise=1.0):
    """The same films, scored by a worse model."""
    odds = np.log(table.probabilities / (1 - table.probabilities))
    blurred = odds + np.random.default_rng(seed).normal(scale=noise, size=len(table))
    return dataclasses.replace(table, probabilities=1 / (1 + np.exp(-blurred)))


def rival_of(table, threshold=0.5, name="other"):
    return Rival(name, table, threshold, "half")


def named(comparison):
    return {difference.name: difference for difference in comparison.differences}


# --------------------------------------------------------------------------- DeLong


@st.composite
def evaluated_twice(draw):
    films = draw(st.integers(6, 30))
    labels = draw(st.lists(st.integers(0, 1), min_size=films, max_size=films))
    assume(1 < sum(labels) < films - 1)
    both = [draw(st.lists(st.integers(0, 9), min_size=films, max_size=films)) for _ in range(2)]
    return np.array(labels), np.array(both[0]) / 9, np.array(both[1]) / 9


def kernel(positives, negatives):
    return np.where(positives[:, None] > negatives, 1.0, np.where(positives[:, None] == negatives, 0.5, 0.0))


@given(evaluated_twice())
def test_the_paired_test_is_delongs_covariance_by_definition(data):
    labels, a, b = data
    pairs = [kernel(scores[labels == 1], scores[labels == 0]) for scores in (a, b)]
    covariance = np.cov([p.mean(axis=1) for p in pairs]) / labels.sum()
    covariance += np.cov([p.mean(axis=0) for p in pairs]) / (1 - labels).sum()
    variance = covariance[0, 0] + covariance[1, 1] - 2 * covariance[0, 1]
    found = delong_test(labels, a, b)
    assert found.difference == pytest.approx(auroc(labels, a) - auroc(labels, b), abs=1e-12)
    assert found.error**2 == pytest.approx(variance, abs=1e-12)
    if found.p is not None:
        assert found.p == pytest.approx(2 * stats.norm.sf(abs(found.difference) / np.sqrt(variance)), abs=1e-9)


@given(evaluated_twice())
def test_swapping_the_models_turns_the_sign_and_keeps_p(data):
    labels, a, b = data
    here, there = delong_test(labels, a, b), delong_test(labels, b, a)
    assert here.difference == pytest.approx(-there.difference, abs=1e-12)
    assert (here.p is None) == (there.p is None)
    assert here.p is None or here.p == pytest.approx(there.p)


def test_models_that_order_films_alike_cannot_be_tested():
    table = scored()
    found = delong_test(table.labels, table.probabilities, table.probabilities**3)
    assert (found.difference, found.z, found.p) == (0.0, None, None)


def test_pairing_makes_the_interval_narrower_than_two_samples_would():
    table = scored(films=600, patients=600)
    second = other_model(table, noise=0.4)
    found = named(compare(table, 0.5, rival_of(second), resamples=200))["auroc"]
    widths = [(i.high - i.low) for i in (delong_interval(t.labels, t.probabilities) for t in (table, second))]
    assert found.interval.high - found.interval.low < 0.7 * np.hypot(*widths)


def test_under_no_difference_small_p_are_as_rare_as_they_say():
    rng = np.random.default_rng(0)
    labels = np.repeat([0, 1], 60)
    shared = rng.normal(size=(1_000, 120)) + labels
    p = [delong_test(labels, *(row + rng.normal(size=(2, 120)))).p for row in shared]
    assert np.mean(np.array(p) < 0.05) == pytest.approx(0.05, abs=0.02)


# --------------------------------------------------------------------------- McNemar


@given(st.integers(0, 60), st.integers(0, 60))
def test_exact_mcnemar_is_that_of_statsmodels(b, c):
    exact, _ = mcnemar(b, c)
    assert exact == pytest.approx(mcnemar_of_statsmodels([[3, b], [c, 5]], exact=True).pvalue)


@given(st.integers(0, 60), st.integers(0, 60))
def test_mid_p_takes_half_of_what_was_found(b, c):
    exact, mid = mcnemar(b, c)
    assert mcnemar(c, b) == (exact, mid)
    assert 0.0 <= mid <= exact <= 1.0
    if b != c:
        chance = stats.binom(b + c, 0.5)
        assert mid == pytest.approx(2 * chance.cdf(min(b, c)) - chance.pmf(min(b, c)))


def test_mcnemar_of_the_published_example():
    """Airway hyper-responsiveness before and after transplantation: 1 and 7 discordant children.

    Fagerland, Lydersen and Laake (2013), table 2: exact conditional p 0.070, mid-p 0.039.
    """
    exact, mid = mcnemar(1, 7)
    assert (round(exact, 3), round(mid, 3)) == (0.070, 0.039)


def test_mcnemar_holds_for_thousands_of_films():
    exact, mid = mcnemar(2_000, 2_200)
    assert exact == pytest.approx(stats.binomtest(2_000, 4_200).pvalue)
    assert mid < exact


def test_mcnemar_counts_only_films_on_which_the_models_differ():
    table, second = scored(), other_model(scored())
    found = compare(table, 0.4, rival_of(second, 0.6), resamples=50)
    right = (table.probabilities >= 0.4) == (table.labels == 1)
    right_there = (second.probabilities >= 0.6) == (table.labels == 1)
    everything, ill, well = found.mcnemar
    assert everything.only_ours == np.sum(right & ~right_there) == ill.only_ours + well.only_ours
    assert everything.only_theirs == np.sum(~right & right_there) == ill.only_theirs + well.only_theirs
    assert (everything.films, ill.films) == (len(table), table.labels.sum())


# --------------------------------------------------------------------------- the same films


def test_every_figure_is_the_difference_of_two_assessments():
    table, second = scored(), other_model(scored())
    found = named(compare(table, 0.5, rival_of(second), resamples=100))
    first, other = assess(table, resamples=50), assess(second, resamples=50)
    for name, difference in found.items():
        here, there = (
            a.measure(name) if name in {"auroc", "auprc", "brier"} else a.answer.measure(name) for a in (first, other)
        )
        assert (difference.ours, difference.theirs) == pytest.approx((here.value, there.value))
        assert difference.value == pytest.approx(here.value - there.value)
        assert difference.by_patient.low <= difference.value <= difference.by_patient.high


def test_the_order_of_the_other_table_does_not_matter():
    table, second = scored(), other_model(scored())
    turned = second.rows(range(len(second) - 1, -1, -1))
    assert compare(table, 0.5, rival_of(second), resamples=60) == compare(table, 0.5, rival_of(turned), resamples=60)


def test_a_model_does_not_differ_from_itself():
    table = scored()
    found = compare(table, 0.5, rival_of(table), resamples=60)
    assert {d.value for d in found.differences} == {0.0}
    assert {(t.exact, t.mid) for t in found.mcnemar} == {(1.0, 1.0)}


def test_films_that_only_one_model_scored_are_left_out_and_told():
    table = scored()
    first, second, notes = matched(table.rows(range(250)), other_model(table).rows(range(50, 300)))
    assert first.paths == second.paths == table.paths[50:250]
    assert [note.split(" films")[0] for note in notes] == ["50", "50"]


def test_films_are_matched_by_name_where_no_path_is_shared():
    table = scored(films=20)
    moved = dataclasses.replace(table, paths=tuple(f"/elsewhere/{path}" for path in table.paths))
    first, second, notes = matched(table, moved)
    assert (first.paths, second.paths) == (table.paths, moved.paths)
    assert "matched by their file names" in notes[0]


def test_tables_without_a_common_film_or_with_other_labels_are_refused():
    table = scored(films=20)
    strange = dataclasses.replace(table, paths=tuple(f"{n}.dcm" for n in range(20)))
    with pytest.raises(SourceInvalid, match="no film in common"):
        matched(table, strange)
    with pytest.raises(SourceInvalid, match=r"20 films have another label in the other table, test/0000\.png for one"):
        matched(table, dataclasses.replace(table, labels=1 - table.labels))


@pytest.mark.parametrize("label", [0, 1])
def test_one_class_alone_compares_what_it_can(label):
    table = ScoreTable(("a", "b", "c"), np.full(3, label), np.array([0.2, 0.6, 0.9]))
    found = compare(table, 0.5, rival_of(dataclasses.replace(table, probabilities=[0.9, 0.1, 0.3])), resamples=50)
    assert "auroc" not in named(found)
    for difference in found.differences:
        assert difference.value is not None or difference.note, difference.name


@pytest.mark.slow
def test_paired_intervals_by_patient_cover_as_often_as_they_say():
    """300 studies of 80 patients with two films each, two models of equal area: 95% intervals hold zero."""
    rng = np.random.default_rng(1)
    hits = {"auroc": 0, "balanced_accuracy": 0, "brier": 0}
    for study in range(300):
        labels = np.repeat(rng.integers(0, 2, 80), 2)
        of_patient = np.repeat(rng.normal(size=80), 2)
        logits = [2.0 * (labels - 0.5) + of_patient + rng.normal(size=160) for _ in range(2)]
        names = tuple(map(str, range(160)))
        patients = tuple(f"p{n // 2}" for n in range(160))
        first, second = (ScoreTable(names, labels, 1 / (1 + np.exp(-x)), patients) for x in logits)
        found = named(compare(first, 0.5, rival_of(second), resamples=400, seed=study))
        for name in hits:
            hits[name] += found[name].by_patient.low <= 0.0 <= found[name].by_patient.high
    assert {name: count / 300 for name, count in hits.items()} == pytest.approx(dict.fromkeys(hits, 0.95), abs=0.04)


# --------------------------------------------------------------------------- published counts

proportions = st.integers(1, 300).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n)))


@given(proportions, proportions)
def test_the_unpaired_interval_is_that_of_statsmodels(first, second):
    (a, n), (b, m) = first, second
    found = difference_interval(a, n, b, m)
    expected = confint_proportions_2indep(a, n, b, m, method="newcomb", compare="diff")
    assert (found.low, found.high) == pytest.approx(expected, abs=1e-9)
    assert found.low <= a / n - b / m <= found.high


def test_the_unpaired_interval_of_the_published_example():
    """Newcombe (1998), table II, method 10: 56/70 against 48/80 gives 0.0524 to 0.3339."""
    found = difference_interval(56, 70, 48, 80)
    assert (round(found.low, 4), round(found.high, 4)) == (0.0524, 0.3339)


@given(*[st.integers(0, 80)] * 4)
def test_fishers_p_is_that_of_scipy(a, b, c, d):
    assert fisher_exact(a, b, c, d) == pytest.approx(stats.fisher_exact([[a, b], [c, d]]).pvalue, abs=1e-9)


def test_the_original_work_is_compared_unpaired_and_the_report_says_so():
    found = beside_published(Confusion(tp=380, fp=40, fn=10, tn=194), 0.5, 400)
    assert (found.paired, found.mcnemar) == (False, ())
    specificity = named(found)["specificity"]
    assert (specificity.ours, specificity.theirs) == (194 / 234, 65 / 234)
    assert specificity.by_patient is None
    assert any("unpaired" in note for note in found.notes)
    assert not any("other films" in note for note in found.notes)


def test_other_films_than_the_original_works_are_named_as_such():
    assert any("5 + 5 here, 390 + 234 there" in n for n in beside_published(Confusion(4, 1, 1, 4), 0.5, 9).notes)


def test_what_published_counts_do_not_define_has_a_reason():
    empty = Published("nobody", Confusion(0, 0, 3, 4), "seven films")
    precision = named(beside_published(Confusion(2, 1, 1, 3), 0.5, 7, empty))["precision"]
    assert (precision.value, precision.theirs) == (None, None)
    assert precision.note


def test_an_assessment_carries_the_comparison_asked_for():
    table = scored()
    assert assess(table, resamples=50).comparison is None
    assert assess(table, rival=ORIGINAL, resamples=50).comparison.other == "the original work"
    assert assess(table, rival=rival_of(other_model(table)), resamples=50).comparison.paired
