"""An assessment as a folder for a reviewer: one page, the same figures for machines, the drawings.

index.html     everything on one page; opens from disk without a network, can be printed
report.json    the assessment and its provenance
measures.csv   one figure a row
roc.svg, roc.png and so on for each figure
"""

from __future__ import annotations

import base64
import dataclasses
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path, PurePath
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from chestxray.data.report import page_templates
from chestxray.errors import MissingExtra
from chestxray.evaluation.assessment import TERMS, Assessment, Provenance
from chestxray.evaluation.figures import Drawing, drawings
from chestxray.files import folder_written_whole
from chestxray.metrics.intervals import Interval, Measure, share
from chestxray.text import table_bytes

if TYPE_CHECKING:
    from jinja2 import Environment


class GuidelineItem(NamedTuple):
    """One item of a guideline.

    Attributes:
        asks: its question, in short.
        place: identifier of the part of the page that answers it.
        whole: whether the page answers it completely; otherwise the authors have to add to it.
    """

    number: str
    asks: str
    place: str
    whole: bool


@dataclass(frozen=True, slots=True)
class Guideline:
    """A guideline, with the items that a report answers, and those that are left to its authors."""

    name: str
    source: str
    items: tuple[GuidelineItem, ...]
    left: str


TRIPOD_AI: Final = Guideline(
    name="TRIPOD+AI",
    source="Collins et al., BMJ 385 (2024) e078378",
    items=(
        GuidelineItem("1", "a title that names the study as an evaluation of a model", "top", whole=False),
        GuidelineItem("3b", "intended use and population", "tested", whole=False),
        GuidelineItem("5a", "where the data came from", "tested", whole=False),
        GuidelineItem("6b", "who was eligible, and who was excluded", "cohort", whole=False),
        GuidelineItem("7", "how data were prepared and checked", "cohort", whole=False),
        GuidelineItem("10", "how many took part", "tested", whole=False),
        GuidelineItem("11", "missing data: films without a label or a score", "cohort", whole=True),
        GuidelineItem("12a", "how data were divided between development and evaluation", "leakage", whole=False),
        GuidelineItem("12e", "the measures and plots of performance", "sure", whole=True),
        GuidelineItem("12g", "how probabilities become predictions", "points", whole=True),
        GuidelineItem("14", "fairness: performance in subgroups", "subgroups", whole=False),
        GuidelineItem("15", "the output, and the thresholds with their reasons", "points", whole=True),
        GuidelineItem("18f", "code: the software and its versions", "made", whole=False),
        GuidelineItem("20a", "the flow of participants", "cohort", whole=True),
        GuidelineItem("21", "participants and outcomes in each analysis", "tested", whole=True),
        GuidelineItem("22", "the model itself, by its hash", "tested", whole=False),
        GuidelineItem("23a", "performance with intervals, in subgroups too", "sure", whole=True),
        GuidelineItem("23b", "how performance varies between clusters", "subgroups", whole=False),
        GuidelineItem("26", "limits of the study", "limits", whole=False),
        GuidelineItem("27a", "what becomes of input of poor quality", "cohort", whole=False),
    ),
    left="2, 3a, 3c, 4, 5b, 6a, 6c, 8a-c, 9a-c, 12b-d, 12f, 13, 16, 17, 18a-e, 19, 20b-c, 24, 25, 27b-c",
)

CLAIM: Final = Guideline(
    name="CLAIM",
    source="Mongan, Moy, Kahn, Radiology: Artificial Intelligence 2 (2020) e200029",
    items=(
        GuidelineItem("1", "a title that names the use of artificial intelligence", "top", whole=False),
        GuidelineItem("7", "where the data came from", "tested", whole=False),
        GuidelineItem("8", "what was included and excluded", "cohort", whole=False),
        GuidelineItem("13", "how missing data were handled", "cohort", whole=True),
        GuidelineItem("20", "how films were assigned to the splits", "leakage", whole=False),
        GuidelineItem("21", "at which level the splits are disjoint", "leakage", whole=True),
        GuidelineItem("23", "software, libraries, versions", "made", whole=True),
        GuidelineItem("28", "the measures of performance", "made", whole=True),
        GuidelineItem("29", "how uncertainty was measured", "made", whole=True),
        GuidelineItem("31", "how answers are explained: heat maps of the worst errors", "heat-maps", whole=False),
        GuidelineItem("32", "evaluation on internal or on external data", "tested", whole=False),
        GuidelineItem("33", "the flow of films, with the reasons of exclusion", "cohort", whole=True),
        GuidelineItem("35", "performance on the split evaluated", "sure", whole=True),
        GuidelineItem("36", "diagnostic accuracy and its precision", "answer", whole=True),
        GuidelineItem("37", "analysis of the wrong answers", "errors", whole=True),
        GuidelineItem("38", "limits of the study", "limits", whole=False),
    ),
    left="2-6, 9-12, 14-19, 22, 24-27, 30, 34, 39-42",
)

GUIDELINES: Final = (TRIPOD_AI, CLAIM)


def absent_from(assessment: Assessment, provenance: Provenance, *, pictures: bool) -> frozenset[str]:
    """Return the places named by items that this report does not have."""
    there = {
        "cohort": provenance.cohort,
        "leakage": provenance.leakage,
        "subgroups": assessment.subgroups,
        "heat-maps": pictures,
    }
    return frozenset(place for place, holds in there.items() if not holds)


REPORT_JSON: Final = "report.json"
IN_PERCENT: Final = frozenset(
    {
        "sensitivity",
        "specificity",
        "precision",
        "npv",
        "accuracy",
        "balanced_accuracy",
        "error_rate",
        "coverage",
        "coverage_pneumonia",
        "coverage_normal",
    }
)  # in percent; the others with three decimals
DASH: Final = "\N{EM DASH}"  # for a value that is not defined
FINEST: Final = 6  # decimals of a difference, at most
HEADLINES: Final = ("sensitivity", "specificity", "precision")

_JPEG_START: Final = b"\xff\xd8"
_CSV_COLUMNS: Final = (
    "operating_point", "name", "value", "low", "high", "level", "method",
    "films", "numerator", "patient_low", "patient_high", "note",
)  # fmt: skip


def require_report_extra() -> None:
    """Check that a report can be written, before any work is done. Raises: MissingExtra."""
    if not all(find_spec(name) for name in ("jinja2", "matplotlib")):
        raise MissingExtra("Writing a report", "report")


def write_report(
    assessment: Assessment,
    folder: Path,
    provenance: Provenance,
    pictures: Mapping[str, bytes] | None = None,
    *,
    beside: Callable[[Path], None] | None = None,
) -> None:
    """Write the folder, completely or not at all; the same arguments give the same bytes.

    Args:
        assessment: what to show.
        folder: replaced if it is an earlier report; any other folder is not touched.
        provenance: origin of the figures.
        pictures: JPEG or PNG files by a film's path, shown beside the errors: the film, or its heat map.
        beside: function that writes further files into a given folder, before the report is moved to its place.

    Raises: OutputExists, MissingExtra; and errors of ``beside``, after which no report exists.
    """
    figures = drawings(assessment, provenance.gate)
    page = page_html(assessment, provenance, figures, pictures or {})
    with folder_written_whole(folder, REPORT_JSON) as made:
        (made / "index.html").write_text(page, encoding="utf-8", errors="backslashreplace")
        (made / "measures.csv").write_bytes(table_bytes(_measures_rows(assessment)))
        for figure in figures:
            (made / f"{figure.name}.svg").write_bytes(figure.svg)
            (made / f"{figure.name}.png").write_bytes(figure.png)
        if beside:
            beside(made)
        (made / REPORT_JSON).write_text(report_json(assessment, provenance), encoding="utf-8")


def report_json(assessment: Assessment, provenance: Provenance) -> str:
    """Return the assessment and its provenance as one JSON document."""
    document = {"provenance": dataclasses.asdict(provenance), "assessment": assessment.to_json()}
    return json.dumps(document, indent=1, allow_nan=False) + "\n"


def page_html(
    assessment: Assessment, provenance: Provenance, figures: tuple[Drawing, ...], pictures: Mapping[str, bytes]
) -> str:
    """Return the page as HTML. Raises: MissingExtra."""
    embedded = {path: _data_address(picture) for path, picture in pictures.items()}
    return (
        _environment()
        .get_template("report.html.j2")
        .render(
            a=assessment,
            p=provenance,
            figures=figures,
            pictures=embedded,
            terms=TERMS,
            headlines=HEADLINES,
            chosen_here=[
                m.point.name
                for m in assessment.points
                if m.point.chosen_on and m.point.chosen_on in {provenance.split, *provenance.evaluated_on}
            ],
            level=f"{assessment.level:.0%}",
            gate_shares=_gate_shares(provenance, assessment.level),
            guidelines=GUIDELINES,
            absent=absent_from(assessment, provenance, pictures=bool(pictures)),
        )
    )


def _gate_shares(provenance: Provenance, level: float) -> list[Measure]:
    """Return the proportion of each kind of picture that the gate refuses, at the limit in use."""
    if (gate := provenance.gate) is None:
        return []
    return [
        share(kind, gate.refused_here[kind], count, level, "No such picture.")
        for kind, count in gate.counts.items()
        if count
    ]


# --------------------------------------------------------------------------- numbers as text


def percent(value: float) -> str:
    """Format a fraction as percent with one decimal; never as 0% or 100% unless exact."""
    text = f"{100 * value:.1f}%"
    if value > 0.0 and text == "0.0%":
        return "<0.1%"
    return ">99.9%" if value < 1.0 and text == "100.0%" else text


def decimal(value: float) -> str:
    """Format a value with three decimals; never as 0 or 1 unless exact."""
    text = f"{value:z.3f}"
    if value > 0.0 and text == "0.000":
        return "<0.001"
    return ">0.999" if value < 1.0 and text == "1.000" else text


def number_text(value: float | None, name: str) -> str:
    """Return the value of a figure of that name, in percent or with three decimals; a dash for None."""
    if value is None:
        return DASH
    return percent(value) if name in IN_PERCENT else decimal(value)


def figure_text(measure: Measure) -> str:
    """Return the value of a measure as ``number_text`` does."""
    return number_text(measure.value, measure.name)


def interval_text(interval: Interval | None, name: str) -> str:
    """Return the two ends of an interval, or a dash."""
    return f"{number_text(interval.low, name)} to {number_text(interval.high, name)}" if interval else DASH


def difference_text(value: float | None, name: str) -> str:
    """Return a difference with its sign, in percentage points or with three decimals, or a dash."""
    if value is None:
        return DASH
    return f"{_signed(100 * value, 1)} points" if name in IN_PERCENT else _signed(value, 3)


def signed_interval_text(interval: Interval | None, name: str) -> str:
    """Return the two ends of the interval of a difference, or a dash."""
    if interval is None:
        return DASH
    scale, digits = (100, 1) if name in IN_PERCENT else (1, 3)
    return f"{_signed(scale * interval.low, digits)} to {_signed(scale * interval.high, digits)}"


def _signed(value: float, digits: int) -> str:
    """Format a value with its sign, and with enough digits that a value other than zero is not shown as zero."""
    while value and digits < FINEST and float(f"{value:.{digits}f}") == 0.0:
        digits += 1
    return f"{value:+z.{digits}f}"


def p_value_text(p: float | None) -> str:
    """Format a p-value with two significant digits, never below 0.0001; a dash if there is no test."""
    if p is None:
        return DASH
    return "<0.0001" if p < 0.0001 else f"{p:.2g}"  # noqa: PLR2004 - the usual limit in print


# --------------------------------------------------------------------------- parts


def _environment() -> Environment:
    environment = page_templates()
    environment.filters.update(
        percent=percent,
        decimal=decimal,
        figure=figure_text,
        interval=interval_text,
        difference=difference_text,
        number=number_text,
        signed_interval=signed_interval_text,
        p_value=p_value_text,
        count=lambda number: f"{number:,}",
        css_text=_css_text,
        file_name=lambda path: PurePath(path).name,
    )
    return environment


def _data_address(picture: bytes) -> str:
    kind = "jpeg" if picture.startswith(_JPEG_START) else "png"
    return f"data:image/{kind};base64,{base64.b64encode(picture).decode()}"


def _css_text(text: str) -> str:
    """Return text for the inside of a CSS string: other than letters, digits and spaces, as code and space."""
    return "".join(c if c.isascii() and (c.isalnum() or c == " ") else f"\\{ord(c):x} " for c in text)


def _measures_rows(assessment: Assessment) -> Iterator[Sequence[object]]:
    yield _CSV_COLUMNS
    yield from (_row("", measure) for measure in assessment.overall)
    for point in assessment.points:
        yield from (_row(point.point.name, measure) for measure in point.measures)
    for values in assessment.predictive:
        where = f"{assessment.default} at prevalence {values.prevalence}"
        yield from (_row(where, measure) for measure in (values.ppv, values.npv))
    for part in assessment.subgroups:
        yield from (_row(f"{part.column}={part.value}", measure) for measure in part.measures)
    if assessment.stress:
        for row in assessment.stress.rows:
            where = f"{assessment.stress.point} under {row.shift}"
            yield from (_row(where, measure) for measure in (row.auroc, row.sensitivity, row.specificity))
    if assessment.reliance:
        for exchanged in assessment.reliance.rows:
            where = f"{exchanged.exchange} of the other class"
            yield from (
                _row(where, measure) for measure in (exchanged.other, exchanged.sensitivity, exchanged.specificity)
            )
            yield _row(f"{exchanged.exchange} of its own class", exchanged.own)
    for kept in assessment.risk_coverage.kept:
        yield _row(f"{assessment.default} at coverage {kept.coverage:.4f}", kept.error_rate)
    if assessment.conformal:
        where = f"conformal, error {assessment.conformal.rule.error}"
        yield from (_row(where, measure) for measure in assessment.conformal.covered)


def _row(point: str, measure: Measure) -> list[Any]:
    formula, patients = measure.interval, measure.by_patient
    ends = [formula.low, formula.high, formula.level, formula.method] if formula else [None] * 4
    by_patient = [patients.low, patients.high] if patients else [None] * 2
    return [point, measure.name, measure.value, *ends, measure.films, measure.numerator, *by_patient, measure.note]
