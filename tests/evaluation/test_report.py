"""The assessment and its report: the same numbers everywhere, honest about what cannot be said."""

from __future__ import annotations

import csv
import dataclasses
import html.parser
import json
import re
from pathlib import Path

import numpy as np
import pytest

from chestxray.cli.evaluate import assessment_text
from chestxray.errors import OutputExists, UsageError
from chestxray.evaluation.assessment import (
    HALF,
    CohortStep,
    GateCurve,
    Provenance,
    RefusedFilm,
    assess,
    counting_refusals,
)
from chestxray.evaluation.report import (
    GUIDELINES,
    decimal,
    difference_text,
    percent,
    signed_interval_text,
    write_report,
)
from chestxray.metrics.calibration import choose_operating_points
from chestxray.metrics.comparison import ORIGINAL, Rival
from chestxray.metrics.decision import conformal_rule
from chestxray.metrics.intervals import Interval
from chestxray.metrics.metrics import auroc
from chestxray.metrics.scores import ScoreTable
from chestxray.schema import NOTICE, OperatingPoint
from scored import scored

FIGURES = ("roc", "precision_recall", "reliability", "histogram", "decision", "risk_coverage")
PROVENANCE = Provenance(
    title="A small network on synthetic films",
    bundle="synthetic-net",
    model_sha256="ab" * 32,
    source="synthetic",
    split="test",
    cohort=(
        CohortStep("collected", 310),
        CohortStep("unreadable", 10, "cut off", removed=True),
        CohortStep("scored", 300),
    ),
    leakage="No patient is in two splits.",
    command="chestxray evaluate bundle synthetic films --out report",
    versions={"chestxray": "0.1.0"},
    seed=7,
)


def points():
    val = scored(seed=1)
    return choose_operating_points(val.labels, val.probabilities)


@pytest.fixture(scope="module")
def assessment():
    return assess(scored(), points(), "balanced", resamples=200)


@pytest.fixture(scope="module")
def report(assessment, tmp_path_factory):
    folder = tmp_path_factory.mktemp("reports") / "report"
    write_report(assessment, folder, PROVENANCE)
    return folder


class Page(html.parser.HTMLParser):
    """Text, tags and identifiers of a page."""

    def __init__(self, text):
        super().__init__()
        self.text, self.tags, self.attributes = "", [], []
        self._open = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += [(tag, name, value) for name, value in attrs]

    def handle_data(self, data):
        self.text += data


def page_of(folder):
    return Page((folder / "index.html").read_text(encoding="utf-8"))


def a_table(labels, probabilities, **columns):
    n = len(labels)
    return ScoreTable(tuple(f"{i}.png" for i in range(n)), np.array(labels), np.array(probabilities), **columns)


# --------------------------------------------------------------------------- the assessment


def test_every_figure_has_a_count_and_an_interval_or_a_reason(assessment):
    measures = [*assessment.overall, *(m for point in assessment.points for m in point.measures)]
    assert len(measures) == 4 + 3 * 8
    for measure in measures:
        assert measure.films > 0
        assert measure.interval is not None or measure.note, measure.name
        if measure.interval is not None:
            assert measure.interval.low <= measure.value <= measure.interval.high, measure.name


def test_each_operating_point_is_measured_anew(assessment):
    assert [p.point.name for p in assessment.points] == ["screening", "balanced", "confirming"]
    for measured in assessment.points:
        assert measured.confusion.films == assessment.films
        assert measured.measure("sensitivity").value == measured.confusion.sensitivity
        assert measured.measure("sensitivity").value != measured.point.sensitivity


def test_a_cause_that_only_pneumonia_has_is_compared_with_all_normal_films(assessment):
    table = scored()
    bacteria, virus = assessment.subgroups
    assert (bacteria.value, virus.value) == ("bacteria", "virus")
    assert bacteria.positives + virus.positives == assessment.positives
    assert bacteria.negatives == virus.negatives == assessment.negatives
    part = (np.array(table.columns["cause"]) == "virus") | (table.labels == 0)
    assert virus.measure("auroc").value == auroc(table.labels[part], table.probabilities[part])


def test_a_column_of_both_classes_divides_them():
    table = a_table([0, 1, 0, 1, 1], [0.1, 0.9, 0.6, 0.7, 0.2], columns={"site": ("a", "a", "b", "b", "b")})
    first, second = assess(table, resamples=50).subgroups
    assert (first.positives, first.negatives, first.compared_with) == (1, 1, "")
    assert (second.positives, second.negatives) == (2, 1)


def test_the_worst_errors_come_first(assessment):
    table, threshold = scored(), assessment.answer.point.threshold
    missed = sorted(p for p, label in zip(table.probabilities, table.labels, strict=True) if label and p < threshold)
    assert [m.probability for m in assessment.missed] == missed[:12]
    alarms = [m.probability for m in assessment.false_alarms]
    assert alarms == sorted(alarms, reverse=True)
    assert all(m.label == "normal" and m.probability >= threshold for m in assessment.false_alarms)


def test_scores_without_operating_points_are_evaluated_at_one_half():
    found = assess(scored(), resamples=50)
    assert found.answer.point is HALF
    assert found.answer.point.chosen_on == ""


def test_an_unknown_or_doubled_operating_point_is_refused():
    with pytest.raises(UsageError, match="there are screening, balanced, confirming"):
        assess(scored(), points(), "bold")
    with pytest.raises(UsageError, match="share a name"):
        assess(scored(), (HALF, HALF))


def test_the_plain_form_is_json_without_nan(assessment):
    document = json.loads(json.dumps(assessment.to_json(), allow_nan=False))
    assert document["films"] == 300
    assert document["roc"]["thresholds"][0] is None
    assert document["points"][1]["confusion"]["tp"] == assessment.answer.confusion.tp


@pytest.mark.parametrize("label", [0, 1])
def test_one_class_alone_is_stated_never_nan(label, tmp_path):
    found = assess(a_table([label] * 3, [0.2, 0.6, 0.9]), resamples=50)
    assert found.measure("auroc").value is None
    assert found.measure("auroc").note
    assert found.answer.measure(("sensitivity", "specificity")[label]).value is None
    assert any("nothing can be said" in sentence for sentence in found.limits)
    json.dumps(found.to_json(), allow_nan=False)
    write_report(found, tmp_path / "report", PROVENANCE)
    page = page_of(tmp_path / "report")
    assert "Curves over thresholds need both classes" in page.text
    assert "nan" not in page.text.lower().split()
    assert not (tmp_path / "report" / "roc.svg").exists()


@pytest.mark.parametrize(
    "table",
    [
        a_table([0, 1, 1], [0.2, 0.4, 0.9]),
        a_table([0, 1] * 20, [0.5] * 40),
        a_table([0] * 20 + [1] * 20, [0.0] * 20 + [1.0] * 20),
        a_table([1] * 20 + [0] * 20, [0.0] * 20 + [1.0] * 20),
        a_table([0, 1] * 5, np.linspace(0, 1, 10), patients=("one",) * 10),
        a_table([1], [0.7]),
    ],
    ids=["three films", "all ties", "apart", "apart the wrong way", "one patient", "one film"],
)
def test_awkward_films_still_get_a_report(table, tmp_path):
    write_report(assess(table, resamples=50), tmp_path / "report", PROVENANCE)
    assert "Methods" in page_of(tmp_path / "report").text


# --------------------------------------------------------------------------- the report


def test_the_folder_holds_the_page_the_numbers_and_the_figures(report):
    expected = {"index.html", "report.json", "measures.csv"}
    expected |= {f"{name}.{ending}" for name in FIGURES for ending in ("svg", "png")}
    assert {path.name for path in report.iterdir()} == expected


def test_page_json_and_csv_give_the_same_numbers(report, assessment):
    document = json.loads((report / "report.json").read_text(encoding="utf-8"))
    assert document["assessment"] == json.loads(json.dumps(assessment.to_json()))
    assert document["provenance"]["model_sha256"] == PROVENANCE.model_sha256
    rows = list(csv.DictReader((report / "measures.csv").read_text(encoding="utf-8").splitlines()))
    values = {(row["operating_point"], row["name"]): row for row in rows}
    assert float(values["", "auroc"]["value"]) == assessment.measure("auroc").value
    sensitivity = assessment.answer.measure("sensitivity")
    row = values["balanced", "sensitivity"]
    assert (float(row["low"]), float(row["high"])) == (sensitivity.interval.low, sensitivity.interval.high)
    text = page_of(report).text
    assert decimal(assessment.measure("auroc").value) in text
    assert percent(sensitivity.value) in text
    assert f"{sensitivity.numerator} of {sensitivity.films} films" in text


def test_the_page_needs_no_network_and_runs_no_script(report):
    page = page_of(report)
    assert "script" not in page.tags
    assert "link" not in page.tags
    for tag, name, value in page.attributes:
        if name in {"src", "href", "xlink:href"}:
            assert value.startswith(("#", "data:")), (tag, name, value)
    assert any("default-src 'none'" in (value or "") for _, _, value in page.attributes)


def test_every_link_of_the_page_leads_somewhere_on_it(report, tmp_path):
    bare = tmp_path / "bare"
    write_report(assess(a_table([0, 1], [0.2, 0.9]), resamples=50), bare, Provenance("t", "m", "", "s", "all films"))
    for folder in (report, bare):
        page = page_of(folder)
        ids = {value for _, name, value in page.attributes if name == "id"}
        links = [value for tag, name, value in page.attributes if (tag, name) == ("a", "href")]
        assert len(links) > 20
        assert {link.removeprefix("#") for link in links} <= ids


def test_the_checklists_name_each_item_once_and_leave_the_others_to_the_authors(report):
    text = page_of(report).text
    for guideline in GUIDELINES:
        numbers = [item.number for item in guideline.items]
        assert len(numbers) == len(set(numbers))
        left = set(guideline.left.replace(",", "").split())
        assert not left & set(numbers)
        assert f"Left to the authors: {guideline.left}" in text
        assert guideline.source in text


def test_a_comparison_stands_on_the_page_with_both_p_of_mcnemar(tmp_path):
    table = scored()
    other = dataclasses.replace(table, probabilities=table.probabilities**2)
    found = assess(table, points(), "balanced", rival=Rival("the other one", other, 0.5, "half"), resamples=60)
    write_report(found, tmp_path / "report", PROVENANCE)
    text = page_of(tmp_path / "report").text
    assert "Compared with the other one" in text
    assert "Exact p" in text
    assert "Mid-p" in text
    write_report(assess(table, rival=ORIGINAL, resamples=60), tmp_path / "report", PROVENANCE)
    text = page_of(tmp_path / "report").text
    assert "Unpaired, on 300 films" in text
    assert "These are other films" in text


def test_predictive_values_abstention_and_conformal_sets_stand_on_page_and_table(tmp_path):
    table, fitted = scored(), scored(seed=3)
    rule = conformal_rule(fitted.labels, fitted.probabilities, 0.1)
    write_report(assess(table, points(), "balanced", conformal=rule, resamples=60), tmp_path / "report", PROVENANCE)
    text = page_of(tmp_path / "report").text
    assert "Conformal sets at an error rate of 10.0%" in text
    rows = list(csv.DictReader((tmp_path / "report" / "measures.csv").read_text(encoding="utf-8").splitlines()))
    where = {row["operating_point"] for row in rows}
    expected = {"balanced at prevalence 0.05", "cause=virus", "balanced at coverage 0.9000", "conformal, error 0.1"}
    assert expected <= where


def test_no_identifier_is_used_twice_on_the_page(report):
    ids = [value for _, name, value in page_of(report).attributes if name == "id"]
    assert len(ids) == len(set(ids))


def test_the_page_shows_provenance_cohort_and_notice(report):
    text = page_of(report).text
    for piece in (NOTICE, PROVENANCE.title, PROVENANCE.model_sha256, PROVENANCE.leakage, PROVENANCE.command, "cut off"):
        assert piece in text


def test_what_the_gate_refuses_stands_there_as_it_was_counted(assessment, tmp_path):
    curve = {"films": (0.1235, 0.0012)}  # of four decimals, from which no count of many films follows
    gate = GateCurve("refuses adults", (0.5, 0.9), 0.5, curve, {"films": 100_003}, {"films": 12_347})
    write_report(assessment, tmp_path / "report", dataclasses.replace(PROVENANCE, gate=gate))
    assert "12,347 of 100,003" in page_of(tmp_path / "report").text


def test_every_sheet_of_paper_carries_the_notice(report):
    style = re.search(r'@bottom-center \{ content: "([^"]*)"', (report / "index.html").read_text(encoding="utf-8"))
    said = re.sub(r"\\([0-9a-f]+) ", lambda code: chr(int(code[1], 16)), style[1])
    assert said == NOTICE


def test_the_same_arguments_give_the_same_bytes(report, assessment, tmp_path):
    write_report(assessment, tmp_path / "again", PROVENANCE)
    for path in report.iterdir():
        assert (tmp_path / "again" / path.name).read_bytes() == path.read_bytes(), path.name


def test_markup_in_names_is_shown_and_not_obeyed(tmp_path):
    nasty = '<img src=x onerror=alert(1)>"&$x^2$'
    table = ScoreTable(
        (f"{nasty}.png", "b.png", "c.png"),
        np.array([1, 0, 1]),
        np.array([0.1, 0.8, 0.9]),
        (nasty, "", ""),
        {nasty: (nasty, nasty, "")},
    )
    point = OperatingPoint(nasty, 0.5, 1.0, 1.0, 3, 3, chosen_on=nasty)
    texts = {f.name: nasty for f in dataclasses.fields(Provenance) if f.type == "str"}
    provenance = Provenance(**texts, cohort=(CohortStep(nasty, 3, nasty),), versions={nasty: nasty})
    write_report(assess(table, (point,), resamples=50), tmp_path / "report", provenance)
    page = page_of(tmp_path / "report")
    assert not [value for tag, name, value in page.attributes if name == "onerror" or (tag, value) == ("img", "x")]
    assert page.text.count(nasty) > 10


def test_figures_chosen_on_the_split_that_they_evaluate_carry_a_warning(report, assessment, tmp_path):
    assert "flatter" not in page_of(report).text
    write_report(assessment, tmp_path / "report", dataclasses.replace(PROVENANCE, split="val"))
    text = page_of(tmp_path / "report").text
    assert "were chosen on these very films" in text
    assert "none was chosen on these films" not in text


@pytest.mark.slow
def test_pictures_stand_beside_the_errors(assessment, tmp_path):
    worst = assessment.missed[0].path
    write_report(assessment, tmp_path / "report", PROVENANCE, pictures={worst: b"\x89PNG"})
    images = [value for tag, name, value in page_of(tmp_path / "report").attributes if (tag, name) == ("img", "src")]
    assert images == ["data:image/png;base64,iVBORw=="]
    write_report(assessment, tmp_path / "report", PROVENANCE, pictures={worst: b"\xff\xd8\xff"})
    images = [value for tag, name, value in page_of(tmp_path / "report").attributes if (tag, name) == ("img", "src")]
    assert images == ["data:image/jpeg;base64,/9j/"]


@pytest.mark.slow
def test_an_earlier_report_is_replaced_and_anything_else_left_alone(report, assessment, tmp_path):
    folder = tmp_path / "report"
    for _ in range(2):
        write_report(assessment, folder, PROVENANCE)
    other = tmp_path / "films"
    other.mkdir()
    (other / "film.png").touch()
    with pytest.raises(OutputExists):
        write_report(assessment, other, PROVENANCE)
    assert [path.name for path in other.iterdir()] == ["film.png"]


@pytest.mark.parametrize(
    ("value", "in_percent", "in_decimals"),
    [
        (0.0, "0.0%", "0.000"),
        (1.0, "100.0%", "1.000"),
        (0.99999, ">99.9%", ">0.999"),
        (0.00001, "<0.1%", "<0.001"),
        (0.8507, "85.1%", "0.851"),
    ],
)
def test_a_number_is_never_rounded_to_certainty(value, in_percent, in_decimals):
    assert (percent(value), decimal(value)) == (in_percent, in_decimals)


def test_a_small_negative_number_is_not_shown_as_minus_nothing():
    assert decimal(-0.00001) == "0.000"


def test_what_fails_beside_the_report_leaves_no_report(assessment, tmp_path):
    def full(_folder):
        raise OSError("No space left on device")

    with pytest.raises(OSError, match="No space left"):
        write_report(assessment, tmp_path / "report", PROVENANCE, beside=full)
    assert list(tmp_path.iterdir()) == []


# --------------------------------------------------------------------------- refusals, signs


def test_refused_films_are_named_and_count_as_wrong(tmp_path: Path) -> None:
    table = scored()
    points = choose_operating_points(table.labels, table.probabilities, "val")
    before = assess(table, points, resamples=50)
    refused = [RefusedFilm("ward/a.dcm", "pneumonia", "blank"), RefusedFilm("ward/b.dcm", "normal", "coloured")]
    found = counting_refusals(before, refused)
    counts = before.answer.confusion
    sensitivity, specificity = found.with_refusals
    assert (sensitivity.numerator, sensitivity.films) == (counts.tp, counts.positives + 1)
    assert (specificity.numerator, specificity.films) == (counts.tn, counts.negatives + 1)
    write_report(found, tmp_path / "report", PROVENANCE)
    page = (tmp_path / "report/index.html").read_text(encoding="utf-8")
    for words in ("2 labelled films refused", "a.dcm (pneumonia): blank", "b.dcm (normal): coloured"):
        assert words in page
    said = assessment_text(found)
    assert "refused, and not counted above: 2 films (1 normal, 1 pneumonia)" in said
    assert "ward/a.dcm (pneumonia): blank" in said
    assert counting_refusals(before, []) is before


def test_an_interval_that_holds_zero_shows_it() -> None:
    assert signed_interval_text(Interval(-0.0003, 0.006, 0.95, "x"), "auroc") == "-0.0003 to +0.006"
    assert signed_interval_text(Interval(-0.0001, 0.02, 0.95, "x"), "sensitivity") == "-0.01 to +2.0"
    assert signed_interval_text(Interval(0.0, 0.006, 0.95, "x"), "auroc") == "+0.000 to +0.006"
    assert difference_text(-0.00004, "brier") == "-0.00004"
