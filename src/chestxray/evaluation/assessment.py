"""The assessment: every figure about one model on one set of films, and its plain form."""

from __future__ import annotations

import dataclasses
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple

import numpy as np

from chestxray.arrays import Float64Array, Int64Array
from chestxray.errors import UsageError
from chestxray.evaluation.robustness import Reliance, Stress
from chestxray.metrics import calibration
from chestxray.metrics.calibration import Bin, BrierParts
from chestxray.metrics.comparison import (
    Comparison,
    Published,
    Rival,
    Subgroup,
    SubgroupFilms,
    beside_published,
    compare,
    statistics_of,
    subgroup,
    subgroups_of,
)
from chestxray.metrics.decision import (
    ConformalRule,
    ConformalSets,
    PredictiveValues,
    RiskCoverage,
    conformal_sets,
    predictive_statistic,
    predictive_values_at_prevalences,
    risk_coverage,
)
from chestxray.metrics.intervals import (
    COMPOSITES,
    LEVEL,
    PROPORTIONS,
    RESAMPLES,
    Measure,
    Resampled,
    Statistic,
    area,
    areas,
    bootstrap,
    composite,
    precision_area,
    proportion,
    rates,
    share,
    squared_error,
)
from chestxray.metrics.metrics import (
    Confusion,
    PrecisionRecallCurve,
    RocCurve,
    net_benefit,
    precision_recall_curve,
    roc_curve,
)
from chestxray.metrics.scores import ScoreTable
from chestxray.schema import INTENDED_USE, NOTICE, Label, OperatingPoint


@dataclass(frozen=True, slots=True)
class CohortStep:
    """One step from the films collected to the films scored.

    Attributes:
        count: films left after this step, or removed by it if ``removed`` is true.
    """

    step: str
    count: int
    reason: str = ""
    removed: bool = False


@dataclass(frozen=True, slots=True)
class GateCurve:
    """How much the model's gate refuses, by the limit of its score, on the pictures that set its limits.

    Attributes:
        words: what the gate refuses, in one line.
        limits: limits of the score, 0 to 1, rising.
        limit: the limit in use.
        refused: proportion of each kind of picture that is refused at each of ``limits``.
        counts: number of pictures of each kind.
        refused_here: number of pictures of each kind that are refused at the limit in use.
    """

    words: str
    limits: tuple[float, ...]
    limit: float
    refused: Mapping[str, tuple[float, ...]]
    counts: Mapping[str, int]
    refused_here: Mapping[str, int]


@dataclass(frozen=True, slots=True)
class Provenance:
    """The origin of the figures: everything that is needed to reproduce them.

    Attributes:
        title: title of the report.
        bundle, model_sha256: the evaluated model; the hash is empty for scores of another program.
        source, split: the films it was evaluated on.
        evaluated_on: further names, besides ``split``, of these films in operating points that were chosen on some of
            them.
        source_sha256: of the manifest or the table of scores; empty for a folder.
        cohort: from collected to scored, in order; may be empty.
        leakage: how patients and films were kept in one split, in a sentence or two.
        command: the command as typed.
        versions: of the program and of the libraries behind the figures, by name.
        created: date and time, given by the caller; empty leaves it out.
        gate: the model's gate; None if it has none, or if only scores are known.
    """

    title: str
    bundle: str
    model_sha256: str
    source: str
    split: str
    cohort: tuple[CohortStep, ...] = ()
    leakage: str = ""
    command: str = ""
    versions: Mapping[str, str] = field(default_factory=dict)
    seed: int = 0
    created: str = ""
    evaluated_on: tuple[str, ...] = ()
    source_sha256: str = ""
    intended_use: str = INTENDED_USE
    notice: str = NOTICE
    gate: GateCurve | None = None


ASSESSMENT_VERSION: Final = 1


class Term(NamedTuple):
    """The title of a figure, and its meaning in one line."""

    title: str
    meaning: str


TERMS: Final = {
    "auroc": Term("AUROC", "how often a film with pneumonia scores above a normal one"),
    "auprc": Term("AUPRC", "average precision over all thresholds"),
    "sensitivity": Term("Sensitivity (recall)", "of the films with pneumonia, those classified as such"),
    "specificity": Term("Specificity", "of the normal films, those classified as normal"),
    "precision": Term("Precision (PPV)", "of the films classified as pneumonia, those that show it"),
    "npv": Term("Negative predictive value", "of the films classified as normal, those that are"),
    "accuracy": Term("Accuracy", "of all films, those classified correctly"),
    "balanced_accuracy": Term("Balanced accuracy", "mean of sensitivity and specificity"),
    "f1": Term("F1", "harmonic mean of precision and recall"),
    "mcc": Term("MCC", "correlation of prediction and label, -1 to 1"),
    "brier": Term("Brier score", "mean squared distance of probability and label; lower is better"),
    "ece": Term(
        "Expected calibration error",
        f"mean distance of predicted and observed share, {calibration.BINS} bins of equal width; lower is better",
    ),
    "error_rate": Term("Error rate", "of the films kept, those classified wrongly"),
    "coverage": Term("Coverage", "of all films, those whose label is in their set"),
    "coverage_pneumonia": Term("Coverage, pneumonia", "of the films with pneumonia, those whose set says so"),
    "coverage_normal": Term("Coverage, normal", "of the normal films, those whose set says so"),
}


@dataclass(frozen=True, slots=True)
class MeasuredPoint:
    """An operating point, measured again on these films.

    Attributes:
        goal: the goal for which it was chosen; empty for a point that this program did not choose.
        confusion: counts of these films at its threshold.
        measures: in the order of ``TERMS``.
    """

    point: OperatingPoint
    goal: str
    confusion: Confusion
    measures: tuple[Measure, ...]

    def measure(self, name: str) -> Measure:
        """Return the figure of that name. Raises: KeyError."""
        return _named(self.measures, name)


@dataclass(frozen=True, slots=True)
class Mistake:
    """A film that the model classified wrongly at the default operating point."""

    path: str
    patient: str
    label: str
    probability: float
    columns: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class RefusedFilm:
    """A labelled film without a prediction.

    Attributes:
        label: "normal" or "pneumonia".
        reason: the reason from cleaning or from the gate.
    """

    path: str
    label: str
    reason: str


@dataclass(frozen=True, slots=True)
class Histogram:
    """Films by probability: ``edges`` has one entry more than the counts."""

    edges: tuple[float, ...]
    normal: tuple[int, ...]
    pneumonia: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class DecisionCurve:
    """Net benefit at each threshold: of the model, and of treating every film as pneumonia. Treating none gives 0."""

    thresholds: Float64Array
    model: Float64Array
    everybody: Float64Array


@dataclass(frozen=True, slots=True)
class Assessment:
    """All figures of one model on one set of films.

    Attributes:
        films, positives, negatives: numbers of films.
        patients: number of different patients; a film without a patient counts as one.
        films_without_patient: number of films without a patient.
        overall: figures without a threshold, each with its interval.
        points: every operating point, measured on these films; ``answer`` is the one called ``default``.
        bins, brier_parts: calibration in detail.
        roc, precision_recall, decision: None where only one class occurs.
        predictive: at other prevalences, at the default operating point.
        risk_coverage: the gain of leaving uncertain films to a reader, at that point.
        conformal: None if no rule was given.
        comparison: None if no other model was given.
        missed, false_alarms: the worst errors, the most confident first.
        limits: sentences on the limits of the figures.
        stress, reliance: the same films under shifts, and with irrelevant properties exchanged; None if not asked for.
        refused: labelled films without a prediction; the figures above do not count them.
        with_refusals: sensitivity and specificity at the default operating point, each refused film counted as wrong;
            empty if none was refused.
    """

    films: int
    positives: int
    negatives: int
    patients: int
    films_without_patient: int
    overall: tuple[Measure, ...]
    points: tuple[MeasuredPoint, ...]
    default: str
    bins: tuple[Bin, ...]
    brier_parts: BrierParts
    roc: RocCurve | None
    precision_recall: PrecisionRecallCurve | None
    decision: DecisionCurve | None
    histogram: Histogram
    subgroups: tuple[Subgroup, ...]
    predictive: tuple[PredictiveValues, ...]
    risk_coverage: RiskCoverage
    conformal: ConformalSets | None
    comparison: Comparison | None
    missed: tuple[Mistake, ...]
    false_alarms: tuple[Mistake, ...]
    limits: tuple[str, ...]
    level: float
    resamples: int
    seed: int
    version: int = ASSESSMENT_VERSION
    stress: Stress | None = None
    reliance: Reliance | None = None
    refused: tuple[RefusedFilm, ...] = ()
    with_refusals: tuple[Measure, ...] = ()

    @property
    def answer(self) -> MeasuredPoint:
        """The default operating point, measured."""
        return next(point for point in self.points if point.point.name == self.default)

    def measure(self, name: str) -> Measure:
        """Return a figure without a threshold. Raises: KeyError."""
        return _named(self.overall, name)

    def to_json(self) -> dict[str, Any]:
        """Return plain dictionaries, lists, texts, numbers and None, ready for ``json.dumps``."""
        plain: dict[str, Any] = _plain(self)
        return plain


def _named(measures: Sequence[Measure], name: str) -> Measure:
    for measure in measures:
        if measure.name == name:
            return measure
    raise KeyError(name)


def _plain(value: Any) -> Any:
    if isinstance(value, np.ndarray):
        value = value.tolist()
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        value = {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
    elif isinstance(value, tuple) and hasattr(value, "_asdict"):
        value = value._asdict()
    if isinstance(value, Mapping):
        return {str(name): _plain(part) for name, part in value.items()}
    if isinstance(value, (tuple, list)):
        return [_plain(part) for part in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None  # the threshold above every score: JSON has no infinity
    return value


WORST: Final = 12  # errors listed in each direction
PROBABILITY_BINS: Final = 20
FEW_FILMS: Final = 30  # films of a class; with fewer, every figure about the class is rough

DECISION_THRESHOLDS: Final = np.round(np.arange(0.01, 1.0, 0.01), 2)

HALF: Final = OperatingPoint(
    name="half", threshold=0.5, sensitivity=0.0, specificity=0.0, positives=0, negatives=0, chosen_on=""
)
"""For scores that come without operating points: chosen on nothing, so it reached nothing anywhere."""


def assess(
    table: ScoreTable,
    points: Sequence[OperatingPoint] = (),
    default: str | None = None,
    *,
    rival: Rival | Published | None = None,
    conformal: ConformalRule | None = None,
    level: float = LEVEL,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> Assessment:
    """Evaluate a model by its scores.

    Proportions have Wilson's interval, the area under the ROC curve DeLong's, the others that of resampled patients;
    every figure also has the interval of resampled patients.

    Args:
        table: films, labels, calibrated probabilities, patients; a single class is reported, not an error.
        points: fixed before, on other films; None takes the threshold one half.
        default: the name of the default point; the first one if not given.
        rival: another model's scores, or its published counts, to compare with.
        conformal: fitted on other films; the report shows the sets on these films.

    Raises:
        UsageError: no point has the name ``default``, or two points share a name.
        SourceInvalid: the rival has no film in common with the table, or another label for one.
    """
    points = tuple(points) or (HALF,)
    default = _default_name(points, default)
    labels, scores, groups = table.labels, table.probabilities, table.groups
    answer = next(p for p in points if p.name == default)
    parts = subgroups_of(table)
    statistics = _to_resample(table, points, answer, parts)
    resampled = bootstrap(statistics, groups, resamples=resamples, level=level, seed=seed)
    measured = tuple(_measured(p, table, resampled, level) for p in points)
    confusion = Confusion.at(answer.threshold, labels, scores)
    missed, false_alarms = _mistakes(table, answer.threshold)
    two_classes = 0 < int(labels.sum()) < len(table)
    return Assessment(
        films=len(table),
        positives=int(labels.sum()),
        negatives=int(len(table) - labels.sum()),
        patients=int(groups.max()) + 1,
        films_without_patient=sum(not name for name in table.patients),
        overall=_overall(table, resampled, level, seed),
        points=measured,
        default=default,
        bins=calibration.reliability(labels, scores),
        brier_parts=calibration.brier_parts(labels, scores),
        roc=roc_curve(labels, scores) if two_classes else None,
        precision_recall=precision_recall_curve(labels, scores) if two_classes else None,
        decision=_decision(table) if two_classes else None,
        histogram=_histogram(table),
        subgroups=tuple(subgroup(part, table, answer.threshold, level, resampled) for part in parts),
        predictive=predictive_values_at_prevalences(confusion, level, resampled),
        risk_coverage=risk_coverage(labels, scores, answer.threshold, level),
        conformal=conformal_sets(labels, scores, conformal, level) if conformal else None,
        comparison=_comparison(table, answer.threshold, rival, level, resamples, seed),
        missed=missed,
        false_alarms=false_alarms,
        limits=_limits(table, groups),
        level=level,
        resamples=resamples,
        seed=seed,
    )


def _to_resample(
    table: ScoreTable, points: Sequence[OperatingPoint], answer: OperatingPoint, parts: Sequence[SubgroupFilms]
) -> list[Statistic]:
    """Return the statistics of all figures, so that one set of resampled patients gives every interval."""
    labels, scores = table.labels, table.probabilities
    return [
        areas(labels, scores),
        squared_error(labels, scores),
        *(rates(p.threshold, labels, scores, prefix=f"{p.name}.") for p in points),
        predictive_statistic(answer.threshold, labels, scores),
        *(s for part in parts for s in statistics_of(part, table, answer.threshold)),
    ]


def counting_refusals(assessment: Assessment, refused: Sequence[RefusedFilm]) -> Assessment:
    """Add films without a prediction: a refusal counts as an error."""
    if not refused:
        return assessment
    counts = Counter(film.label for film in refused)
    confusion = assessment.answer.confusion
    right = {"sensitivity": (confusion.tp, confusion.positives), "specificity": (confusion.tn, confusion.negatives)}
    further = {"sensitivity": counts[Label.PNEUMONIA.value], "specificity": counts[Label.NORMAL.value]}
    measures = tuple(
        share(name, hits, films + further[name], assessment.level, "no film of this label")
        for name, (hits, films) in right.items()
    )
    return dataclasses.replace(assessment, refused=tuple(refused), with_refusals=measures)


# --------------------------------------------------------------------------- parts


def _comparison(
    table: ScoreTable, threshold: float, rival: Rival | Published | None, level: float, resamples: int, seed: int
) -> Comparison | None:
    if isinstance(rival, Published):
        confusion = Confusion.at(threshold, table.labels, table.probabilities)
        return beside_published(confusion, threshold, int(table.groups.max()) + 1, rival, level)
    if rival is not None:
        return compare(table, threshold, rival, level=level, resamples=resamples, seed=seed)
    return None


def _default_name(points: Sequence[OperatingPoint], default: str | None) -> str:
    names = [point.name for point in points]
    if len(set(names)) != len(names):
        raise UsageError(f"two operating points share a name: {', '.join(names)}")
    if default is not None and default not in names:
        raise UsageError(f"there is no operating point {default!r}; there are {', '.join(names)}")
    return default if default is not None else names[0]


def _overall(table: ScoreTable, resampled: Mapping[str, Resampled], level: float, seed: int) -> tuple[Measure, ...]:
    labels, scores = table.labels, table.probabilities
    by_chance, at_most = calibration.expected_error_if_calibrated(scores, seed=seed)
    return (
        area(labels, scores, level, resampled["auroc"]),
        precision_area(labels, scores, resampled["auprc"]),
        composite("brier", calibration.brier_score(labels, scores), len(table), resampled["brier"]),
        Measure(
            name="ece",
            value=calibration.expected_calibration_error(labels, scores),
            interval=None,
            films=len(table),
            note=f"Resampling biases it upwards, so it has no interval; a perfectly calibrated model would show "
            f"{by_chance:.3f} on these films by chance, and up to {at_most:.3f} in 95 of 100 such sets.",
        ),
    )


def _measured(
    point: OperatingPoint, table: ScoreTable, resampled: Mapping[str, Resampled], level: float
) -> MeasuredPoint:
    confusion = Confusion.at(point.threshold, table.labels, table.probabilities)
    proportions = (proportion(name, confusion, level, resampled[f"{point.name}.{name}"]) for name in PROPORTIONS)
    composites = (
        composite(name, getattr(confusion, name), confusion.films, resampled[f"{point.name}.{name}"], missing)
        for name, missing in COMPOSITES.items()
    )
    goal = calibration.GOALS.get(point.name, "")
    return MeasuredPoint(point, goal, confusion, (*proportions, *composites))


def _decision(table: ScoreTable) -> DecisionCurve:
    everybody = np.ones(len(table))
    return DecisionCurve(
        thresholds=DECISION_THRESHOLDS,
        model=net_benefit(table.labels, table.probabilities, DECISION_THRESHOLDS),
        everybody=net_benefit(table.labels, everybody, DECISION_THRESHOLDS),
    )


def _histogram(table: ScoreTable) -> Histogram:
    edges = np.linspace(0.0, 1.0, PROBABILITY_BINS + 1)
    normal, pneumonia = (
        np.histogram(table.probabilities[table.labels == index], bins=edges)[0].tolist() for index in (0, 1)
    )
    return Histogram(tuple(edges.tolist()), tuple(normal), tuple(pneumonia))


def _mistakes(table: ScoreTable, threshold: float) -> tuple[tuple[Mistake, ...], tuple[Mistake, ...]]:
    """Return the most confident misses and false alarms, at most ``WORST`` of each."""
    called, positive = table.probabilities >= threshold, table.labels == 1
    by_rising = np.argsort(table.probabilities, kind="stable")
    missed = [row for row in by_rising.tolist() if positive[row] and not called[row]]
    alarms = [row for row in by_rising[::-1].tolist() if called[row] and not positive[row]]
    return _films(table, missed[:WORST]), _films(table, alarms[:WORST])


def _films(table: ScoreTable, rows: Sequence[int]) -> tuple[Mistake, ...]:
    names = tuple(Label)
    return tuple(
        Mistake(
            path=table.paths[row],
            patient=table.patients[row],
            label=names[table.labels[row]].value,
            probability=float(table.probabilities[row]),
            columns={name: values[row] for name, values in table.columns.items()},
        )
        for row in rows
    )


def _limits(table: ScoreTable, groups: Int64Array) -> tuple[str, ...]:
    """Return the limits of the figures, as sentences."""
    sentences = []
    counts = {"pneumonia": int(table.labels.sum()), "normal": int(len(table) - table.labels.sum())}
    for name, count in counts.items():
        if not count:
            sentences.append(f"No film is labelled {name}: nothing can be said about telling the classes apart.")
        elif count < FEW_FILMS:
            sentences.append(f"Only {count} films are labelled {name}: every figure about them is a rough one.")
    unnamed = sum(not name for name in table.patients)
    if unnamed:
        sentences.append(
            f"The patient of {unnamed:,} of {len(table):,} films is not known; each counts as a patient of its own, "
            "so intervals may be too narrow."
        )
    if int(np.bincount(groups).max()) > 1:
        sentences.append(
            "Some patients have several films. The intervals by formula take every film as independent; where the "
            "interval by patients is wider, believe that one."
        )
    if len(np.unique(table.probabilities)) == 1:
        sentences.append("All films have the same probability: the model separates no two of them.")
    return tuple(sentences)
