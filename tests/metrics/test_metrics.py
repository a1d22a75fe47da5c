"""Figures and their intervals, against scikit-learn, SciPy, brute force and their own laws."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from scipy import stats
from sklearn import metrics as oracle

from chestxray.errors import DataError, DegenerateLabels, SourceInvalid
from chestxray.metrics import intervals
from chestxray.metrics.intervals import (
    Interval,
    Measure,
    bootstrap,
    delong_components,
    delong_interval,
    wilson_interval,
)
from chestxray.metrics.metrics import (
    Confusion,
    auroc,
    average_precision,
    net_benefit,
    precision_recall_curve,
    roc_curve,
)
from chestxray.metrics.scores import ScoreTable, read_score_file, read_scores, write_scores
from scored import evaluated, scored

counts = st.integers(0, 500)


# --------------------------------------------------------------------------- counts


def test_the_published_counts_give_the_published_precision_and_recall():
    published = Confusion(tp=388, fp=169, fn=2, tn=65)
    assert published.precision == 0.696588868940754
    assert published.recall == published.sensitivity == 0.9948717948717949


@given(evaluated(), st.integers(0, 12))
def test_rates_agree_with_scikit_learn(data, step):
    labels, scores = data
    called = scores >= step / 12
    found = Confusion.at(step / 12, labels, scores)
    assert (found.tn, found.fp, found.fn, found.tp) == tuple(oracle.confusion_matrix(labels, called).ravel())
    assert found.recall == pytest.approx(oracle.recall_score(labels, called))
    assert found.specificity == pytest.approx(oracle.recall_score(labels, called, pos_label=0))
    assert found.accuracy == pytest.approx(oracle.accuracy_score(labels, called))
    assert found.balanced_accuracy == pytest.approx(oracle.balanced_accuracy_score(labels, called))
    assert found.f1 == pytest.approx(oracle.f1_score(labels, called))
    if called.any():
        assert found.precision == pytest.approx(oracle.precision_score(labels, called))
    if not called.all():
        assert found.npv == pytest.approx(oracle.precision_score(labels, called, pos_label=0))
    if called.any() and not called.all():
        assert found.mcc == pytest.approx(oracle.matthews_corrcoef(labels, called))


@given(counts, counts, counts, counts)
def test_a_rate_lies_in_its_bounds_or_is_absent(tp, fp, fn, tn):
    found = Confusion(tp, fp, fn, tn)
    for name in ("precision", "recall", "specificity", "npv", "accuracy", "balanced_accuracy", "f1"):
        value = getattr(found, name)
        assert value is None or 0.0 <= value <= 1.0
    assert found.mcc is None or -1.0 - 1e-12 <= found.mcc <= 1.0 + 1e-12


@given(counts, counts, counts, counts)
def test_swapping_the_classes_swaps_the_rates(tp, fp, fn, tn):
    found, swapped = Confusion(tp, fp, fn, tn), Confusion(tp=tn, fp=fn, fn=fp, tn=tp)
    assert (found.recall, found.precision) == (swapped.specificity, swapped.npv)
    assert found.mcc == swapped.mcc


def test_a_negative_count_is_refused():
    with pytest.raises(ValueError, match="negative"):
        Confusion(tp=1, fp=-1, fn=0, tn=0)


# --------------------------------------------------------------------------- curves and areas


@given(evaluated())
def test_areas_agree_with_scikit_learn(data):
    labels, scores = data
    assert auroc(labels, scores) == pytest.approx(oracle.roc_auc_score(labels, scores))
    assert average_precision(labels, scores) == pytest.approx(oracle.average_precision_score(labels, scores))


@given(evaluated())
def test_curves_agree_with_scikit_learn(data):
    labels, scores = data
    fpr, tpr, thresholds = oracle.roc_curve(labels, scores, drop_intermediate=False)
    found = roc_curve(labels, scores)
    np.testing.assert_allclose(found.false_positive_rate, fpr)
    np.testing.assert_allclose(found.true_positive_rate, tpr)
    np.testing.assert_array_equal(found.thresholds, thresholds)
    precision, recall, at = oracle.precision_recall_curve(labels, scores)
    curve = precision_recall_curve(labels, scores)
    np.testing.assert_allclose(curve.precision[::-1], precision[:-1])
    np.testing.assert_allclose(curve.recall[::-1], recall[:-1])
    np.testing.assert_array_equal(curve.thresholds[::-1], at)


@given(evaluated(), st.randoms(use_true_random=False))
def test_the_order_of_the_films_does_not_matter(data, random):
    labels, scores = data
    order = list(range(len(labels)))
    random.shuffle(order)
    assert auroc(labels[order], scores[order]) == auroc(labels, scores)
    assert average_precision(labels[order], scores[order]) == average_precision(labels, scores)
    assert delong_interval(labels[order], scores[order]).low == pytest.approx(delong_interval(labels, scores).low)


@given(evaluated())
def test_the_area_depends_on_the_order_of_the_scores_alone(data):
    labels, scores = data
    assert auroc(labels, np.exp(3 * scores) - 7) == auroc(labels, scores)


@given(evaluated())
def test_flipping_labels_or_scores_mirrors_the_area(data):
    labels, scores = data
    assert auroc(1 - labels, scores) == pytest.approx(1 - auroc(labels, scores))
    assert auroc(labels, -scores) == pytest.approx(1 - auroc(labels, scores))
    here, there = delong_interval(labels, scores), delong_interval(1 - labels, scores)
    assert (here.low, here.high) == pytest.approx((1 - there.high, 1 - there.low), abs=1e-9)


@given(evaluated(), st.integers(1, 99))
def test_net_benefit_is_what_its_definition_says(data, hundredths):
    labels, scores = data
    threshold = hundredths / 100
    found = Confusion.at(threshold, labels, scores)
    expected = (found.tp - found.fp * threshold / (1 - threshold)) / len(labels)
    assert net_benefit(labels, scores, [threshold])[0] == pytest.approx(expected)


@pytest.mark.parametrize("figure", [auroc, average_precision, roc_curve, precision_recall_curve, delong_interval])
@pytest.mark.parametrize(("label", "name"), [(0, "normal"), (1, "pneumonia")])
def test_one_class_alone_is_an_error_that_names_it(figure, label, name):
    with pytest.raises(DegenerateLabels, match=f"all 3 films are labelled {name}"):
        figure([label] * 3, [0.1, 0.2, 0.3])


@pytest.mark.parametrize(
    ("labels", "scores", "fact"),
    [
        ([0, 1], [0.5, math.nan], "entry 1: the score is nan"),
        ([0, 1], [math.inf, 0.5], "entry 0: the score is inf"),
        ([0, 2], [0.5, 0.5], "entry 1: the label is 2"),
        ([0, 1], [0.5], "both must be"),
        ([], [], "no scores"),
    ],
)
def test_nonsense_is_refused_with_its_place(labels, scores, fact):
    with pytest.raises(DataError, match=fact):
        auroc(labels, scores)


# --------------------------------------------------------------------------- intervals by formula


@given(st.integers(1, 400).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))), st.sampled_from([0.8, 0.95]))
def test_wilson_agrees_with_scipy(proportion, level):
    numerator, films = proportion
    found = wilson_interval(numerator, films, level)
    expected = stats.binomtest(numerator, films).proportion_ci(level, method="wilson")
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high), abs=1e-12)
    assert 0.0 <= found.low <= numerator / films <= found.high <= 1.0


@pytest.mark.parametrize(("numerator", "films"), [(0, 0), (3, 2), (-1, 2)])
def test_wilson_refuses_what_is_no_proportion(numerator, films):
    with pytest.raises(ValueError, match="no proportion"):
        wilson_interval(numerator, films)


def by_definition(labels, scores):
    """DeLong's structural components, each pair of films compared: O(n^2)."""
    positives, negatives = scores[labels == 1], scores[labels == 0]
    pairs = np.array([[1.0 if p > q else 0.5 if p == q else 0.0 for q in negatives] for p in positives])
    return pairs.mean(axis=1), pairs.mean(axis=0)


@given(evaluated())
def test_the_fast_delong_is_delong_by_definition(data):
    labels, scores = data
    for found, expected in zip(delong_components(labels, scores), by_definition(labels, scores), strict=True):
        np.testing.assert_allclose(found, expected, atol=1e-12)


@given(evaluated(least=6))
def test_the_delong_interval_is_that_of_the_variance_by_definition(data):
    labels, scores = data
    of_positives, of_negatives = by_definition(labels, scores)
    assume(min(len(of_positives), len(of_negatives)) > 1)
    area = of_positives.mean()
    variance = of_positives.var(ddof=1) / len(of_positives) + of_negatives.var(ddof=1) / len(of_negatives)
    assume(0 < area < 1 and variance > 1e-12)
    half = stats.norm.ppf(0.975) * np.sqrt(variance) / (area * (1 - area))
    middle = np.log(area / (1 - area))
    expected = 1 / (1 + np.exp(-np.array([middle - half, middle + half])))
    found = delong_interval(labels, scores)
    assert (found.low, found.high) == pytest.approx(tuple(expected), abs=1e-9)
    assert found.method.startswith("DeLong")


@given(evaluated())
def test_the_interval_of_the_area_holds_it_within_0_and_1(data):
    labels, scores = data
    found = delong_interval(labels, scores)
    assert 0.0 <= found.low <= auroc(labels, scores) <= found.high <= 1.0
    assert found.low < found.high


@pytest.mark.parametrize(
    ("labels", "scores"),
    [([0, 0, 1, 1], [1, 2, 3, 4]), ([0, 0, 1, 1], [4, 3, 2, 1]), ([0, 0, 1, 1], [5, 5, 5, 5]), ([0, 1, 1], [2, 1, 3])],
    ids=["apart", "apart the wrong way", "all ties", "one film of a class"],
)
def test_where_delong_has_no_variance_newcombe_answers(labels, scores):
    found = delong_interval(labels, scores)
    assert found.method == "Newcombe"
    assert found.high - found.low > 0.2


def test_the_end_of_a_newcombe_interval_lies_z_standard_errors_from_the_area():
    labels = [0] * 30 + [1] * 20
    low = delong_interval(labels, range(50)).low
    spread = (1 - low) / (2 - low) + low / (1 + low)
    variance = low * (1 - low) * (1 + (25 - 1) * spread) / (20 * 30)
    assert 1.0 - low == pytest.approx(stats.norm.ppf(0.975) * math.sqrt(variance))


def test_delong_intervals_cover_as_often_as_they_say():
    rng = np.random.default_rng(3)
    truth = stats.norm.cdf(1.5 / math.sqrt(2))
    labels = np.repeat([0, 1], 60)
    hits = 0
    for _ in range(1_000):
        found = delong_interval(labels, rng.normal(size=120) + 1.5 * labels)
        hits += found.low <= truth <= found.high
    assert hits / 1_000 == pytest.approx(0.95, abs=0.025)


# --------------------------------------------------------------------------- resampling


def statistics_of(table, threshold=0.5):
    labels, scores = table.labels, table.probabilities
    return [
        intervals.areas(labels, scores),
        intervals.rates(threshold, labels, scores),
        intervals.squared_error(labels, scores),
    ]


def test_a_resample_gives_the_figures_of_the_films_it_drew():
    table = scored(films=80)
    rng = np.random.default_rng(5)
    times = rng.integers(0, 3, (6, len(table)))
    found = {}
    for statistic in statistics_of(table):
        found |= statistic(times.astype(float))
    for row, drawn in enumerate(times):
        labels, scores = np.repeat(table.labels, drawn), np.repeat(table.probabilities, drawn)
        confusion = Confusion.at(0.5, labels, scores)
        assert found["auroc"][row] == pytest.approx(oracle.roc_auc_score(labels, scores))
        assert found["auprc"][row] == pytest.approx(oracle.average_precision_score(labels, scores))
        assert found["brier"][row] == pytest.approx(oracle.brier_score_loss(labels, scores))
        for name in ("sensitivity", "specificity", "precision", "npv", "accuracy", "balanced_accuracy", "f1", "mcc"):
            assert found[name][row] == pytest.approx(getattr(confusion, name)), name


def test_a_resample_of_one_class_defines_no_area():
    weights = np.array([[1.0, 1.0, 0.0], [0.0, 0.0, 2.0]])
    found = intervals.areas([0, 0, 1], [0.1, 0.2, 0.3])(weights)
    assert np.isnan(found["auroc"]).all()
    assert np.isnan(found["auprc"]).all()


def test_resampling_is_repeatable_and_hangs_on_its_seed():
    table = scored()
    first, again, other = (
        bootstrap(statistics_of(table), table.groups, resamples=200, seed=seed) for seed in (1, 1, 2)
    )
    assert first == again
    assert first["auroc"] != other["auroc"]


def test_films_of_one_patient_are_drawn_together():
    table = scored(films=60, patients=6)
    drawn = []

    def keep(weights):
        drawn.append(weights)
        return {"films": weights.sum(axis=1)}

    bootstrap([keep], table.groups, resamples=150)
    weights = np.concatenate(drawn)
    assert weights.shape == (150, 60)
    for patient in range(6):
        films = weights[:, table.groups == patient]
        assert (films == films[:, :1]).all()


def test_intervals_by_patient_are_wider_where_patients_bring_many_films_alike():
    rng = np.random.default_rng(0)
    patient = np.repeat(np.arange(40), 10)
    labels = (patient % 2).astype(np.int8)
    scores = 1 / (1 + np.exp(-(labels + 2 * rng.normal(size=40)[patient] + 0.2 * rng.normal(size=400))))
    by_patient = bootstrap([intervals.areas(labels, scores)], patient)["auroc"].interval
    by_formula = delong_interval(labels, scores)
    assert by_patient.high - by_patient.low > 2 * (by_formula.high - by_formula.low)


def test_the_interval_by_patient_without_resampling_is_that_of_resampling():
    rng = np.random.default_rng(1)
    patient = np.repeat(np.arange(300), 4)
    labels = (rng.random(1200) < 0.4).astype(np.int8)  # films of both classes of one patient too
    scores = labels + 1.2 * rng.normal(size=300)[patient] + rng.normal(size=1200)
    scores = scores.round(1)
    area, found = intervals.clustered_area(labels, scores, patient)
    drawn = bootstrap([intervals.areas(labels, scores)], patient)["auroc"].interval
    assert area == pytest.approx(oracle.roc_auc_score(labels, scores))
    assert (found.low, found.high) == pytest.approx((drawn.low, drawn.high), abs=0.004)


@given(evaluated(6))
def test_where_each_film_is_a_patient_it_is_delongs_but_for_its_divisor(data):
    labels, scores = data
    area, found = intervals.clustered_area(labels, scores, np.arange(len(labels)))
    formula = delong_interval(labels, scores)
    assert area == pytest.approx(auroc(labels, scores))
    assert found.low <= area <= found.high
    if formula.method == found.method == "Newcombe":
        assert (found.low, found.high) == pytest.approx((formula.low, formula.high))


@given(evaluated(), st.data())
def test_a_weight_counts_as_so_many_films(data, drawn):
    labels, scores = data
    times = np.array(drawn.draw(st.lists(st.integers(1, 4), min_size=len(labels), max_size=len(labels))))
    patients = np.arange(len(labels))
    weighted = intervals.clustered_area(labels, scores, patients, times)
    repeated = intervals.clustered_area(*(np.repeat(part, times) for part in (labels, scores, patients)))
    assert weighted[0] == pytest.approx(oracle.roc_auc_score(labels, scores, sample_weight=times))
    assert weighted[0] == pytest.approx(repeated[0])
    if repeated[1].method != "Newcombe":
        assert (weighted[1].low, weighted[1].high) == pytest.approx((repeated[1].low, repeated[1].high))


def test_the_effective_number_of_films_falls_where_few_carry_the_weight():
    assert intervals.effective_number(np.full(20, 0.3)) == pytest.approx(20)
    assert intervals.effective_number(np.array([1.0] + [1e-9] * 99)) == pytest.approx(1)


def test_intervals_by_patient_agree_with_wilson_where_each_film_is_a_patient():
    labels = np.ones(400, dtype=np.int8)
    scores = np.repeat([0.9, 0.1], [300, 100])
    found = bootstrap([intervals.rates(0.5, labels, scores)], np.arange(400))["sensitivity"].interval
    expected = wilson_interval(300, 400)
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high), abs=0.01)


def test_one_patient_alone_cannot_be_resampled_and_the_note_says_so():
    found = bootstrap([intervals.areas([0, 1], [0.1, 0.9])], np.zeros(2, dtype=np.int64))["auroc"]
    assert found.interval is None
    assert "one patient" in found.note


def test_a_figure_that_few_resamples_define_gets_no_interval():
    found = bootstrap([intervals.areas([0, 0, 1], [0.1, 0.2, 0.9])], np.arange(3))["auroc"]
    assert found.interval is None
    assert found.note.startswith("Undefined in ")


def test_an_interval_without_width_is_named_as_such():
    labels = np.repeat([0, 1], 40)
    found = bootstrap([intervals.areas(labels, labels / 2)], np.arange(80))["auroc"]
    assert (found.interval.low, found.interval.high) == (1.0, 1.0)
    assert "understates the doubt" in found.note


def test_a_figure_without_value_needs_a_reason_and_nan_is_none():
    with pytest.raises(ValueError, match="needs a reason"):
        Measure("auroc", None, None, 3)
    with pytest.raises(ValueError, match="no figure"):
        Measure("auroc", math.nan, None, 3)
    with pytest.raises(ValueError, match="wrong way round"):
        Interval(0.6, 0.4, 0.95, "Wilson")


# --------------------------------------------------------------------------- the table of scores

names = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)


@st.composite
def tables(draw):
    paths = draw(st.lists(names.filter(bool), min_size=1, max_size=8, unique=True))
    n = len(paths)
    return ScoreTable(
        paths=tuple(paths),
        labels=np.array(draw(st.lists(st.integers(0, 1), min_size=n, max_size=n)), dtype=np.int8),
        probabilities=np.array(draw(st.lists(st.floats(0, 1), min_size=n, max_size=n))),
        patients=tuple(draw(st.lists(names, min_size=n, max_size=n))),
        columns={
            name: tuple(draw(st.lists(names, min_size=n, max_size=n)))
            for name in draw(st.sets(st.sampled_from(["cause", "site"])))
        },
    )


@settings(max_examples=60)
@given(tables())
def test_reading_what_was_written_gives_an_equal_table(tmp_path_factory, table):
    path: Path = tmp_path_factory.mktemp("scores") / "scores.csv"
    write_scores(table, path)
    assert read_scores(path) == table


def test_labels_are_read_as_words_or_numbers(tmp_path):
    path = tmp_path / "scores.csv"
    path.write_text("\ufeffscore, label ,path\n0.5,PNEUMONIA,a\n.25,normal,b\n1e-1,1,c\n0,0,d\n", encoding="utf-8")
    table = read_scores(path)
    assert table.labels.tolist() == [1, 0, 1, 0]
    assert table.probabilities.tolist() == [0.5, 0.25, 0.1, 0.0]
    assert table.patients == ("", "", "", "")


@pytest.mark.parametrize(
    ("text", "fact"),
    [
        ("", "has no column 'path'"),
        ("path,label\na,1\n", "has no column 'score'"),
        ("path,label,score\n", "the table has no row"),
        ("path,label,score\na,1,0.5\nb,1\n", "row 2: has 2 fields; the header has 3"),
        ("path,label,score\na,1,0.5\nb,ill,0.5\n", "row 2: the label is 'ill'"),
        ("path,label,score\na,1,high\n", "row 1: the score is 'high'"),
        ("path,label,score\na,1,nan\n", r"row 1 \(a\): the score is nan"),
        ("path,label,score\na,1,2.5\n", r"row 1 \(a\): the score is 2.5; it must be a probability"),
        ("path,label,score\na,1,0.5\na,0,0.5\n", r"row 2 \(a\): is the film of row 1 again"),
        ("path,label,score\n,1,0.5\n", "row 1: the path is empty"),
        ("path,label,score,x,x\na,1,0.5,,\n", "each name once"),
        ('path,label,score\n"a,1,0.5\n', "cannot be read"),
    ],
)
def test_a_faulty_table_is_refused_by_file_and_row(tmp_path, text, fact):
    path = tmp_path / "scores.csv"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(SourceInvalid, match=fact) as caught:
        read_scores(path)
    assert str(path) in str(caught.value)


def test_columns_of_another_length_or_with_a_taken_name_are_refused():
    table = scored(films=5)
    with pytest.raises(SourceInvalid, match="column 'site'"):
        dataclasses.replace(table, columns={"site": ("a",)})
    with pytest.raises(SourceInvalid, match="meaning of its own"):
        dataclasses.replace(table, columns={"score": ("a",) * 5})
    with pytest.raises(SourceInvalid, match="patients"):
        dataclasses.replace(table, patients=("a",))


def test_a_film_without_a_patient_is_a_patient_of_its_own():
    table = ScoreTable(("a", "b", "c", "d"), np.array([0, 1, 0, 1]), np.full(4, 0.5), ("x", "", "x", ""))
    assert table.groups.tolist() == [0, 1, 0, 2]


def test_a_table_cannot_be_changed():
    table = scored(films=5)
    with pytest.raises(ValueError, match="read-only"):
        table.labels[0] = 1


# --------------------------------------------------------------------------- a table with gaps

WITH_GAPS = """path,label,score,patient_id,cause,split,sha256,reason
a,pneumonia,0.9,p1,virus,test,aa,
b,normal,,p2,,test,bb,almost uniform
c,normal,0.2,p3,,test,cc,
d,,0.4,p4,,test,dd,
e,normal,0.3,p5,,train,ee,
f,pneumonia,,p6,virus,test,ff,almost uniform
"""


@pytest.fixture
def with_gaps(tmp_path):
    path = tmp_path / "scores.csv"
    path.write_text(WITH_GAPS)
    return path


def test_rows_without_a_label_or_a_score_are_counted_never_dropped(with_gaps):
    found = read_score_file(with_gaps)
    assert found.table.paths == ("a", "c")
    assert (found.split, found.rows) == ("test", 6)
    assert (found.without_label, found.on_other_splits, found.without_score) == (1, 1, 2)
    assert found.rows == len(found.table) + found.without_label + found.on_other_splits + found.without_score
    assert found.reasons == {"almost uniform": 2}


def test_columns_that_batch_adds_are_no_subgroups(with_gaps):
    assert set(read_score_file(with_gaps).table.columns) == {"cause"}


def test_a_side_can_be_chosen_where_the_table_names_sides(with_gaps, tmp_path):
    assert read_score_file(with_gaps, "train").table.paths == ("e",)
    with pytest.raises(SourceInvalid, match="no film with a label and a score on the split 'val'"):
        read_score_file(with_gaps, "val")
    plain = tmp_path / "plain.csv"
    plain.write_text("path,label,score\na,1,0.5\nb,0,\n")
    assert read_score_file(plain).split == ""
    assert read_score_file(plain, "val", split_is_optional=True).without_score == 1
    with pytest.raises(SourceInvalid, match='no column "split"'):
        read_score_file(plain, "val")


def test_a_fault_below_a_gap_is_named_by_its_own_row(tmp_path):
    path = tmp_path / "scores.csv"
    for last, fact in (
        ("c,1,1.5", r"row 3 \(c\): the score is 1.5"),
        ("a,1,0.5", r"row 3 \(a\): is the film of row 1"),
    ):
        path.write_text(f"path,label,score\na,1,\nb,0,0.5\n{last}\n")
        with pytest.raises(SourceInvalid, match=fact):
            read_score_file(path)


@given(tables())
def test_a_table_without_gaps_is_evaluated_whole(tmp_path_factory, table):
    path: Path = tmp_path_factory.mktemp("scores") / "scores.csv"
    write_scores(table, path)
    assert read_score_file(path).table == table
