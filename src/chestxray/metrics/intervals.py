"""Uncertainty of a figure: intervals by formula, and by resampling patients.

The formulas (Wilson, DeLong) take each film as independent of the others. Films of one patient are not, so every figure
is also resampled by patient; if the two intervals differ, trust the one by patient.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import Final, NamedTuple

import numpy as np
import numpy.typing as npt

from chestxray.arrays import Float64Array, Int64Array
from chestxray.errors import DegenerateLabels
from chestxray.metrics.metrics import Confusion, auroc, average_precision, both_classes, checked, midranks

LEVEL: Final = 0.95
RESAMPLES: Final = 2_000
MIN_DEFINED: Final = 0.9  # proportion of the resamples in which a figure must be defined for an interval to be given

_RESAMPLES_AT_ONCE: Final = 100  # limits memory: 100 x 5,000 films are 4 MB an array


@dataclass(frozen=True, slots=True)
class Interval:
    """A confidence interval, at a level, by a named method."""

    low: float
    high: float
    level: float
    method: str

    def __post_init__(self) -> None:
        if not self.low <= self.high:
            raise ValueError(f"interval {self.low} to {self.high}: the ends are the wrong way round")


@dataclass(frozen=True, slots=True)
class Measure:
    """One figure with its interval and its counts.

    Attributes:
        name: as in ``assessment.TERMS``.
        value: None if it cannot be computed; ``note`` then says why.
        interval: by formula if there is one, else by resampling patients.
        films: number of films behind the figure.
        numerator: number of films counted by a proportion.
        by_patient: the interval by resampling patients.
        note: a remark for the reader, in a sentence.
    """

    name: str
    value: float | None
    interval: Interval | None
    films: int
    numerator: int | None = None
    by_patient: Interval | None = None
    note: str = ""

    def __post_init__(self) -> None:
        if self.value is None and not self.note:
            raise ValueError(f"{self.name}: a figure that is missing needs a reason")
        if self.value is not None and not math.isfinite(self.value):
            raise ValueError(f"{self.name}: {self.value} is no figure")

    def __str__(self) -> str:
        """Format the figure: ``sensitivity 0.933 (0.787 to 0.982; 28 of 30 films)``; without a value, its note."""
        if self.value is None:
            return f"{self.name}: {self.note}"
        interval = f"{self.interval.low:.3f} to {self.interval.high:.3f}; " if self.interval else ""
        count = f"{self.films:,}" if self.numerator is None else f"{self.numerator:,} of {self.films:,}"
        return f"{self.name} {self.value:.3f} ({interval}{count} films)"


# --------------------------------------------------------------------------- by formula


def wilson_interval(numerator: int, films: int, level: float = LEVEL) -> Interval:
    """Return Wilson's score interval of a proportion; within 0 to 1, and with some width even at 0 and at 1.

    Raises: ValueError: there are no films, or the numerator exceeds them.
    Source: Wilson, Journal of the American Statistical Association 22 (1927).
    """
    if not 0 <= numerator <= films or not films:
        raise ValueError(f"{numerator} of {films} films is no proportion")
    z = normal_quantile(level)
    share = numerator / films
    middle = (share + z**2 / (2 * films)) / (1 + z**2 / films)
    half = z / (1 + z**2 / films) * math.sqrt(share * (1 - share) / films + z**2 / (4 * films**2))
    low = 0.0 if numerator == 0 else max(0.0, middle - half)  # exact at the ends, where rounding would show
    high = 1.0 if numerator == films else min(1.0, middle + half)
    return Interval(low, high, level, "Wilson")


def delong_interval(labels: npt.ArrayLike, scores: npt.ArrayLike, level: float = LEVEL) -> Interval:
    """Return the confidence interval of the area under the ROC curve, without resampling, within 0 to 1.

    DeLong's variance is applied to the logit of the area and transformed back, which keeps the ends inside 0 to 1. If
    that variance is zero or unknown (the classes are fully separated, all scores tie, a class has one film), Newcombe's
    interval is returned instead, and the method says so.

    Args:
        labels: shape (n,), 0 or 1; both must occur.
        scores: shape (n,), higher means more suspicious; ties count half.

    Raises: DegenerateLabels: only one class occurs.
    Source: DeLong et al., Biometrics 44 (1988); Sun and Xu, IEEE Signal Processing Letters 21 (2014), the fast
        form; Pepe, The Statistical Evaluation of Medical Tests (2003), 5.2.3, the logit.
    """
    of_positives, of_negatives = delong_components(labels, scores)
    m, n = len(of_positives), len(of_negatives)
    area = float(np.mean(of_positives))
    variance = float(np.var(of_positives, ddof=1) / m + np.var(of_negatives, ddof=1) / n) if min(m, n) > 1 else 0.0
    if not 0.0 < area < 1.0 or variance <= 0.0:
        return _newcombe_interval(area, m, n, level)
    half = normal_quantile(level) * math.sqrt(variance) / (area * (1 - area))
    middle = math.log(area / (1 - area))
    return Interval(_sigmoid(middle - half), _sigmoid(middle + half), level, "DeLong, logit scale")


def delong_components(labels: npt.ArrayLike, scores: npt.ArrayLike) -> tuple[Float64Array, Float64Array]:
    """Return, for each film, the proportion of the other class's films that it is correctly ordered with, ties half.

    Returns: shapes (positives,) and (negatives,), each with the area under the ROC curve as its mean.
    Raises: DegenerateLabels.
    """
    positive, values = both_classes(labels, scores)
    m, n = int(np.sum(positive)), int(np.sum(~positive))
    ranks = midranks(values)
    of_positives = (ranks[positive] - midranks(values[positive])) / n
    of_negatives = 1 - (ranks[~positive] - midranks(values[~positive])) / m
    return of_positives, of_negatives


def clustered_area(
    labels: npt.ArrayLike,
    scores: npt.ArrayLike,
    patients: Int64Array,
    weights: npt.ArrayLike | None = None,
    level: float = LEVEL,
) -> tuple[float, Interval]:
    """Estimate the area under the ROC curve of weighted films and its interval by patients, without resampling.

    Takes n log n steps, so it also serves 10^5 films, where resampling would not. The interval is computed on the logit
    of the area and transformed back. If every pair of films is ordered right, or every pair wrong, Newcombe's interval
    is returned instead.

    Args:
        labels: shape (n,), 0 or 1; both must occur.
        scores: shape (n,), higher means more suspicious; ties count half.
        patients: shape (n,), the patient of each film, counted from 0; one patient may have films of both classes.
        weights: shape (n,), above 0; None: all equal.

    Raises: DegenerateLabels: only one class occurs.
    Source: Obuchowski, Biometrics 53 (1997), 567-578, written as sums of influences, which takes weights.
    """
    positive, values = both_classes(labels, scores)
    weight = np.ones(len(values)) if weights is None else np.asarray(weights, dtype=np.float64)
    below = np.empty(len(values))
    for of_class in (positive, ~positive):
        below[of_class] = _share_below(values[of_class], values[~of_class], weight[~of_class])
    right = np.where(positive, below, 1 - below)
    found = float(np.average(right[positive], weights=weight[positive]))
    influence = weight * (right - found) / np.where(positive, weight[positive].sum(), weight[~positive].sum())
    of_patients = np.bincount(patients, influence)
    count = len(np.unique(patients))
    deviation = math.sqrt(float(np.sum(of_patients**2)) * count / max(1, count - 1))
    if not 0.0 < found < 1.0 or deviation <= 0.0:
        m, n = (max(1, round(effective_number(weight[of_class]))) for of_class in (positive, ~positive))
        return found, _newcombe_interval(found, m, n, level)
    half = normal_quantile(level) * deviation / (found * (1 - found))
    middle = math.log(found / (1 - found))
    return found, Interval(_sigmoid(middle - half), _sigmoid(middle + half), level, "DeLong by patient, logit scale")


def effective_number(weights: Float64Array) -> float:
    """Return the number of equally weighted films whose mean would be as certain.

    Source: Kish, Survey Sampling (1965), 11.7.
    """
    return float(weights.sum() ** 2 / np.sum(weights**2))


def _share_below(values: Float64Array, others: Float64Array, weights: Float64Array) -> Float64Array:
    """Return, for each value, the weighted proportion of the others that are below it, ties half."""
    order = np.argsort(others)
    total = np.concatenate([[0.0], np.cumsum(weights[order])])
    left, right = (np.searchsorted(others[order], values, side) for side in ("left", "right"))
    share: Float64Array = (total[left] + total[right]) / (2 * total[-1])
    return share


def _newcombe_interval(area: float, m: int, n: int, level: float) -> Interval:
    """Return Newcombe's method 5: the areas from which the given area is at most z standard errors away.

    Source: Newcombe, Statistics in Medicine 25 (2006), 559-573.
    """
    z = normal_quantile(level)

    def apart(other: float) -> float:
        spread = (1 - other) / (2 - other) + other / (1 + other)
        variance = other * (1 - other) * (1 + ((m + n) / 2 - 1) * spread) / (m * n)
        return abs(other - area) - z * math.sqrt(variance)

    low = 0.0 if area == 0.0 else _root(apart, 0.0, area)
    high = 1.0 if area == 1.0 else _root(apart, 1.0, area)
    return Interval(low, high, level, "Newcombe")


def _root(function: Callable[[float], float], outside: float, inside: float) -> float:
    """Find by halving where ``function`` falls below 0 on the way from outside (above 0) to inside."""
    for _ in range(100):
        middle = (outside + inside) / 2
        outside, inside = (middle, inside) if function(middle) > 0.0 else (outside, middle)
    return inside


def normal_quantile(level: float) -> float:
    """Return the normal quantile of a two-sided level: 1.96 for 0.95."""
    return NormalDist().inv_cdf((1 + level) / 2)


def _sigmoid(value: float) -> float:
    return 1 / (1 + math.exp(-value)) if value >= 0 else math.exp(value) / (1 + math.exp(value))


# --------------------------------------------------------------------------- by resampling patients

Statistic = Callable[[Float64Array], Mapping[str, Float64Array]]
"""Figures of many resamples at once.

Takes weights, shape (resamples, n): how often each film was drawn. Gives arrays of shape (resamples,) by name,
NaN where a resample does not define the figure.
"""


@dataclass(frozen=True, slots=True)
class Resampled:
    """The result of resampling for one figure: an interval, or why there is none."""

    interval: Interval | None
    note: str = ""


NOT_RESAMPLED: Final = Resampled(None)


def bootstrap(
    statistics: Sequence[Statistic],
    groups: Int64Array,
    *,
    resamples: int = RESAMPLES,
    level: float = LEVEL,
    seed: int = 0,
) -> dict[str, Resampled]:
    """Return percentile intervals of many figures from the same resamples, drawn by patient with replacement.

    Args:
        statistics: each returns figures by name; all names differ.
        groups: shape (n,), the patient of each film, counted from 0.
        seed: the same seed gives the same intervals.

    Source: Efron and Tibshirani, An Introduction to the Bootstrap (1993), chapter 13; patients as the unit:
        Davison and Hinkley, Bootstrap Methods (1997), 3.8.
    """
    found: dict[str, list[Float64Array]] = {}
    for weights in _resampled(groups, resamples, np.random.default_rng(seed)):
        for statistic in statistics:
            for name, values in statistic(weights).items():
                found.setdefault(name, []).append(values)
    patients = int(groups.max()) + 1
    return {name: _percentiles(np.concatenate(parts), level, patients) for name, parts in found.items()}


def _resampled(groups: Int64Array, resamples: int, rng: np.random.Generator) -> Iterator[Float64Array]:
    """Yield how often each film was drawn, shape (up to 100, n) at a time."""
    patients = int(groups.max()) + 1
    for start in range(0, resamples, _RESAMPLES_AT_ONCE):
        count = min(_RESAMPLES_AT_ONCE, resamples - start)
        drawn = rng.integers(0, patients, (count, patients)) + np.arange(count)[:, None] * patients
        times = np.bincount(drawn.ravel(), minlength=count * patients).reshape(count, patients)
        yield times[:, groups].astype(np.float64)


def _percentiles(values: Float64Array, level: float, patients: int) -> Resampled:
    defined = values[np.isfinite(values)]
    lost = len(values) - len(defined)
    if patients == 1:
        return Resampled(None, "All films are of one patient, so patients cannot be resampled.")
    if len(defined) < MIN_DEFINED * len(values):
        return Resampled(
            None, f"Undefined in {lost:,} of {len(values):,} resamples of patients, so no interval by them."
        )
    low, high = np.quantile(defined, [(1 - level) / 2, (1 + level) / 2]).tolist()
    note = f"{lost:,} of {len(values):,} resamples did not define it and were left out." if lost else ""
    if low == high:
        note = f"{note} Every resample gave the same value, so the interval by patients understates the doubt.".strip()
    return Resampled(Interval(low, high, level, f"{len(values):,} resamples of patients"), note)


def areas(labels: npt.ArrayLike, scores: npt.ArrayLike, prefix: str = "") -> Statistic:
    """Return the statistic "area under the ROC curve and average precision" (``auroc``, ``auprc``).

    Raises: DataError.
    """
    positive, values = checked(labels, scores)
    order = np.argsort(-values, kind="stable")
    starts = np.flatnonzero(np.diff(values[order], prepend=np.inf))  # the first film of each distinct score

    def statistic(weights: Float64Array) -> dict[str, Float64Array]:
        sorted_weights = weights[:, order]
        of_positives = sorted_weights * positive[order]
        hits = np.add.reduceat(of_positives, starts, axis=1)
        alarms = np.add.reduceat(sorted_weights - of_positives, starts, axis=1)
        tp, fp = np.cumsum(hits, axis=1), np.cumsum(alarms, axis=1)
        below = fp[:, -1:] - fp + alarms / 2
        precision = np.divide(tp, tp + fp, out=np.zeros_like(tp), where=tp + fp > 0)
        defined = (tp[:, -1] > 0) & (fp[:, -1] > 0)
        return {
            f"{prefix}auroc": quotient(np.sum(hits * below, axis=1), tp[:, -1] * fp[:, -1]),
            f"{prefix}auprc": np.where(defined, quotient(np.sum(hits * precision, axis=1), tp[:, -1]), np.nan),
        }

    return statistic


def rates(threshold: float, labels: npt.ArrayLike, scores: npt.ArrayLike, prefix: str = "") -> Statistic:
    """Return the statistic of all rates at a threshold, by the names of ``Confusion``. Raises: DataError."""
    positive, values = checked(labels, scores)
    called = values >= threshold
    cells = np.stack([called & positive, called & ~positive, ~called & positive, ~called & ~positive], axis=1)
    cells_of_films = cells.astype(np.float64)

    def statistic(weights: Float64Array) -> dict[str, Float64Array]:
        tp, fp, fn, tn = (weights @ cells_of_films).T
        sensitivity, specificity = quotient(tp, tp + fn), quotient(tn, tn + fp)
        figures = {
            "sensitivity": sensitivity,
            "specificity": specificity,
            "precision": quotient(tp, tp + fp),
            "npv": quotient(tn, tn + fn),
            "accuracy": quotient(tp + tn, tp + fp + fn + tn),
            "balanced_accuracy": (sensitivity + specificity) / 2,
            "f1": quotient(2 * tp, 2 * tp + fp + fn),
            "mcc": quotient(tp * tn - fp * fn, np.sqrt((tp + fp) * (tp + fn) * (tn + fp) * (tn + fn))),
        }
        return {f"{prefix}{name}": values for name, values in figures.items()}

    return statistic


def squared_error(labels: npt.ArrayLike, probabilities: npt.ArrayLike, prefix: str = "") -> Statistic:
    """Return the statistic "Brier score" (``brier``). Raises: DataError."""
    positive, values = checked(labels, probabilities)
    errors = (values - positive) ** 2
    return lambda weights: {f"{prefix}brier": quotient(weights @ errors, np.sum(weights, axis=1))}


def quotient(part: Float64Array, whole: Float64Array) -> Float64Array:
    """Return ``part / whole``, NaN where the denominator is 0."""
    return np.divide(part, whole, out=np.full_like(part, np.nan), where=whole > 0)


_ONE_CLASS: Final = "Only one class occurs, so there is nothing to separate."


class _Proportion(NamedTuple):
    numerator: Callable[[Confusion], int]
    films: Callable[[Confusion], int]
    missing: str  # the reason for a missing figure if the denominator is 0


PROPORTIONS: Final = {
    "sensitivity": _Proportion(lambda c: c.tp, lambda c: c.positives, "No film shows pneumonia."),
    "specificity": _Proportion(lambda c: c.tn, lambda c: c.negatives, "No film is normal."),
    "precision": _Proportion(lambda c: c.tp, lambda c: c.tp + c.fp, "No film was classified as pneumonia."),
    "npv": _Proportion(lambda c: c.tn, lambda c: c.tn + c.fn, "No film was classified as normal."),
    "accuracy": _Proportion(lambda c: c.tp + c.tn, lambda c: c.films, ""),
}
COMPOSITES: Final = {
    "balanced_accuracy": "Only one class occurs among the films.",
    "f1": "No film shows pneumonia and none was classified so.",
    "mcc": "Only one class occurs among the films, or only one among the predictions.",
}


def area(labels: npt.ArrayLike, scores: npt.ArrayLike, level: float, resampled: Resampled = NOT_RESAMPLED) -> Measure:
    """Return the area under the ROC curve with DeLong's interval; without a value if only one class occurs."""
    films = len(np.asarray(labels))
    try:
        value = auroc(labels, scores)
    except DegenerateLabels:
        return Measure("auroc", None, None, films, note=_ONE_CLASS)
    formula = delong_interval(labels, scores, level)
    return Measure("auroc", value, formula, films, None, resampled.interval, resampled.note)


def precision_area(labels: npt.ArrayLike, scores: npt.ArrayLike, resampled: Resampled) -> Measure:
    """Return the average precision; without a value if only one class occurs."""
    films = len(np.asarray(labels))
    try:
        value = average_precision(labels, scores)
    except DegenerateLabels:
        return Measure("auprc", None, None, films, note=_ONE_CLASS)
    return composite("auprc", value, films, resampled)


def proportion(name: str, confusion: Confusion, level: float, resampled: Resampled = NOT_RESAMPLED) -> Measure:
    """Return one of ``PROPORTIONS`` with Wilson's interval."""
    row = PROPORTIONS[name]
    return share(name, row.numerator(confusion), row.films(confusion), level, row.missing, resampled)


def share(
    name: str, numerator: int, films: int, level: float, missing: str, resampled: Resampled = NOT_RESAMPLED
) -> Measure:
    """Return ``numerator`` of ``films`` with Wilson's interval; for no films, no value and ``missing`` as reason."""
    if not films:
        return Measure(name, None, None, 0, note=missing)
    interval = wilson_interval(numerator, films, level)
    return Measure(name, numerator / films, interval, films, numerator, resampled.interval, resampled.note)


def composite(name: str, value: float | None, films: int, resampled: Resampled, missing: str = "") -> Measure:
    """Return a figure that has no formula for its interval."""
    if value is None:
        return Measure(name, None, None, films, note=missing)
    return Measure(name, value, resampled.interval, films, None, resampled.interval, resampled.note)
