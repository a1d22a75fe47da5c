"""The value that an assessment is: every figure about one model on one set of films, and its plain form."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

import numpy as np

from chestxray.evaluation import calibration
from chestxray.evaluation.abstention import ConformalSets, RiskCoverage
from chestxray.evaluation.calibration import Bin, BrierParts
from chestxray.evaluation.comparison import Comparison
from chestxray.evaluation.intervals import Measure
from chestxray.evaluation.metrics import Confusion, Floats, PrecisionRecallCurve, RocCurve
from chestxray.evaluation.predictive import PredictiveValues
from chestxray.evaluation.stress import Stress
from chestxray.evaluation.subgroups import Subgroup
from chestxray.schema import OperatingPoint

ASSESSMENT_VERSION: Final = 1


class Term(NamedTuple):
    """What a figure is called, and what it means in one line."""

    title: str
    meaning: str


TERMS: Final = {
    "auroc": Term("AUROC", "how often a film with pneumonia scores above a normal one"),
    "auprc": Term("AUPRC", "average precision over all thresholds"),
    "sensitivity": Term("Sensitivity (recall)", "of the films with pneumonia, those called so"),
    "specificity": Term("Specificity", "of the normal films, those cleared"),
    "precision": Term("Precision (PPV)", "of the films called pneumonia, those that show it"),
    "npv": Term("Negative predictive value", "of the films called normal, those that are"),
    "accuracy": Term("Accuracy", "of all films, those called right"),
    "balanced_accuracy": Term("Balanced accuracy", "mean of sensitivity and specificity"),
    "f1": Term("F1", "harmonic mean of precision and recall"),
    "mcc": Term("MCC", "correlation of call and truth, -1 to 1"),
    "brier": Term("Brier score", "mean squared distance of probability and label; lower is better"),
    "ece": Term(
        "Expected calibration error",
        f"mean distance of predicted and observed share, {calibration.BINS} bins of equal width; lower is better",
    ),
    "error_rate": Term("Error rate", "of the films kept, those called wrong"),
    "coverage": Term("Coverage", "of all films, those whose label is in their set"),
    "coverage_pneumonia": Term("Coverage, pneumonia", "of the films with pneumonia, those whose set says so"),
    "coverage_normal": Term("Coverage, normal", "of the normal films, those whose set says so"),
}


@dataclass(frozen=True, slots=True)
class MeasuredPoint:
    """An operating point, measured anew on these films.

    Attributes:
        goal: what it was chosen for; empty for a point that this program did not choose.
        confusion: of these films, at its threshold.
        measures: in the order of ``TERMS``.
    """

    point: OperatingPoint
    goal: str
    confusion: Confusion
    measures: tuple[Measure, ...]

    def measure(self, name: str) -> Measure:
        """The figure of that name. Raises: KeyError."""
        return _named(self.measures, name)


@dataclass(frozen=True, slots=True)
class Mistake:
    """A film that the model called wrong at the operating point of the answer."""

    path: str
    patient: str
    label: str
    probability: float
    columns: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Histogram:
    """Films by probability: ``edges`` has one entry more than the counts."""

    edges: tuple[float, ...]
    normal: tuple[int, ...]
    pneumonia: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class DecisionCurve:
    """Net benefit of the model, and of calling every film pneumonia, at each threshold; calling none gives 0."""

    thresholds: Floats
    model: Floats
    everybody: Floats


@dataclass(frozen=True, slots=True)
class Assessment:
    """All figures of one model on one set of films.

    Attributes:
        films, positives, negatives: how many.
        patients: how many different ones; a film without a patient counts as one.
        films_without_patient: how many films name none.
        overall: figures without a threshold, each with its interval.
        points: every operating point, measured on these films; ``answer`` is the one called ``default``.
        bins, brier_parts: calibration in detail.
        roc, precision_recall, decision: None where only one class occurs.
        predictive: at other shares of pneumonia, at the operating point of the answer.
        risk_coverage: what leaving the unsure films to a reader gains, at that point.
        conformal: None where no rule was given.
        comparison: None where there was nothing to compare with.
        missed, false_alarms: the worst errors, the surest first.
        limits: sentences that a reader must know before believing a figure.
        stress: the same films under shifts; None where nobody asked.
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

    @property
    def answer(self) -> MeasuredPoint:
        """The operating point that calls are made at."""
        return next(point for point in self.points if point.point.name == self.default)

    def measure(self, name: str) -> Measure:
        """A figure without a threshold. Raises: KeyError."""
        return _named(self.overall, name)

    def to_json(self) -> dict[str, Any]:
        """Plain dictionaries, lists, texts, numbers and None, for ``json.dumps`` as it is."""
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
