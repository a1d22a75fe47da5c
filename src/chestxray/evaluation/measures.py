"""Figures with their intervals, one function a kind: areas, proportions, and those that only resampling can judge."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, NamedTuple

import numpy as np
import numpy.typing as npt

from chestxray.errors import DegenerateLabels
from chestxray.evaluation.intervals import Measure, Resampled, delong_interval, wilson_interval
from chestxray.evaluation.metrics import Confusion, auroc, average_precision

_ONE_CLASS: Final = "Only one class occurs, so there is nothing to tell apart."


class _Proportion(NamedTuple):
    numerator: Callable[[Confusion], int]
    films: Callable[[Confusion], int]
    missing: str  # why there is no figure where no film is below the line


PROPORTIONS: Final = {
    "sensitivity": _Proportion(lambda c: c.tp, lambda c: c.positives, "No film shows pneumonia."),
    "specificity": _Proportion(lambda c: c.tn, lambda c: c.negatives, "No film is normal."),
    "precision": _Proportion(lambda c: c.tp, lambda c: c.tp + c.fp, "No film was called pneumonia."),
    "npv": _Proportion(lambda c: c.tn, lambda c: c.tn + c.fn, "No film was called normal."),
    "accuracy": _Proportion(lambda c: c.tp + c.tn, lambda c: c.films, ""),
}
COMPOSITES: Final = {
    "balanced_accuracy": "Only one class occurs among the films.",
    "f1": "No film shows pneumonia and none was called so.",
    "mcc": "Only one class occurs among the films, or only one among the calls.",
}


def area(labels: npt.ArrayLike, scores: npt.ArrayLike, level: float, resampled: Resampled | None = None) -> Measure:
    """The area under the ROC curve with DeLong's interval; without a value where one class occurs alone."""
    films = len(np.asarray(labels))
    try:
        value = auroc(labels, scores)
    except DegenerateLabels:
        return Measure("auroc", None, None, films, note=_ONE_CLASS)
    formula = delong_interval(labels, scores, level)
    by_patient, note = (resampled.interval, resampled.note) if resampled else (None, "")
    return Measure("auroc", value, formula, films, by_patient=by_patient, note=note)


def precision_area(labels: npt.ArrayLike, scores: npt.ArrayLike, resampled: Resampled) -> Measure:
    """The average precision; without a value where one class occurs alone."""
    films = len(np.asarray(labels))
    try:
        value = average_precision(labels, scores)
    except DegenerateLabels:
        return Measure("auprc", None, None, films, note=_ONE_CLASS)
    return composite("auprc", value, films, resampled)


def proportion(name: str, confusion: Confusion, level: float, resampled: Resampled | None = None) -> Measure:
    """One of ``PROPORTIONS`` with Wilson's interval."""
    row = PROPORTIONS[name]
    return share(name, row.numerator(confusion), row.films(confusion), level, row.missing, resampled)


def share(
    name: str, numerator: int, films: int, level: float, missing: str, resampled: Resampled | None = None
) -> Measure:
    """``numerator`` of ``films`` with Wilson's interval; without a value, and ``missing`` as reason, of no films."""
    if not films:
        return Measure(name, None, None, 0, note=missing)
    by_patient, note = (resampled.interval, resampled.note) if resampled else (None, "")
    return Measure(
        name, numerator / films, wilson_interval(numerator, films, level), films, numerator, by_patient, note
    )


def composite(name: str, value: float | None, films: int, resampled: Resampled, missing: str = "") -> Measure:
    """A figure that has no formula for its interval."""
    if value is None:
        return Measure(name, None, None, films, note=missing)
    return Measure(name, value, resampled.interval, films, None, resampled.interval, resampled.note)
