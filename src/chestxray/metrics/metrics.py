"""Figures of a table of labels and scores, without uncertainty: counts, rates, areas, curves.

A label is 1 for pneumonia and 0 for normal; a higher score is more suspicious; a film is classified as pneumonia if its
score reaches the threshold (``score >= threshold``). The uncertainty of each figure is in ``intervals``.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from chestxray.arrays import BoolArray, Float64Array
from chestxray.errors import DataError, DegenerateLabels

Targets = BoolArray


@dataclass(frozen=True, slots=True)
class Confusion:
    """The four counts of films at one threshold. A rate with a denominator of 0 is None, never NaN.

    Attributes:
        tp, fn: films with pneumonia that were detected, and that were missed.
        fp, tn: normal films that raised a false alarm, and that were classified as normal.
    """

    tp: int
    fp: int
    fn: int
    tn: int

    def __post_init__(self) -> None:
        if min(self.tp, self.fp, self.fn, self.tn) < 0:
            raise ValueError(f"{self}: a count is negative")

    @classmethod
    def at(cls, threshold: float, labels: npt.ArrayLike, scores: npt.ArrayLike) -> Confusion:
        """Count films at a threshold; both arguments have shape (n,). A single class is no error here."""
        positive, values = checked(labels, scores)
        called = values >= threshold
        tp, fp = int(np.sum(called & positive)), int(np.sum(called & ~positive))
        positives = int(np.sum(positive))
        return cls(tp=tp, fp=fp, fn=positives - tp, tn=len(positive) - positives - fp)

    @property
    def films(self) -> int:
        """Number of all films."""
        return self.tp + self.fp + self.fn + self.tn

    @property
    def positives(self) -> int:
        """Number of films that show pneumonia."""
        return self.tp + self.fn

    @property
    def negatives(self) -> int:
        """Number of normal films."""
        return self.fp + self.tn

    @property
    def precision(self) -> float | None:
        """Proportion with pneumonia among films classified as pneumonia: the positive predictive value."""
        return _ratio(self.tp, self.tp + self.fp)

    @property
    def recall(self) -> float | None:
        """Proportion classified as pneumonia among films with pneumonia: the sensitivity."""
        return _ratio(self.tp, self.positives)

    @property
    def sensitivity(self) -> float | None:
        """Another name for ``recall``."""
        return self.recall

    @property
    def specificity(self) -> float | None:
        """Proportion classified as normal among normal films."""
        return _ratio(self.tn, self.negatives)

    @property
    def npv(self) -> float | None:
        """Proportion of normal films among films classified as normal: the negative predictive value."""
        return _ratio(self.tn, self.tn + self.fn)

    @property
    def accuracy(self) -> float | None:
        """Proportion of all films that was classified correctly."""
        return _ratio(self.tp + self.tn, self.films)

    @property
    def balanced_accuracy(self) -> float | None:
        """Mean of sensitivity and specificity."""
        if self.recall is None or self.specificity is None:
            return None
        return (self.recall + self.specificity) / 2

    @property
    def f1(self) -> float | None:
        """Harmonic mean of precision and recall."""
        return _ratio(2 * self.tp, 2 * self.tp + self.fp + self.fn)

    @property
    def mcc(self) -> float | None:
        """Matthews' correlation of prediction and label, -1 to 1; None if either takes one value only."""
        margins = (self.tp + self.fp) * self.positives * self.negatives * (self.tn + self.fn)
        return (self.tp * self.tn - self.fp * self.fn) / math.sqrt(margins) if margins else None


class RocCurve(NamedTuple):
    """The ROC curve: one entry for each threshold, from infinity (no film is positive) downwards."""

    false_positive_rate: Float64Array
    true_positive_rate: Float64Array
    thresholds: Float64Array


class PrecisionRecallCurve(NamedTuple):
    """The precision-recall curve: one entry for each distinct score, from the highest downwards."""

    precision: Float64Array
    recall: Float64Array
    thresholds: Float64Array


def auroc(labels: npt.ArrayLike, scores: npt.ArrayLike) -> float:
    """Return the area under the ROC curve: how often a film with pneumonia scores above a normal one, ties half.

    Args:
        labels: shape (n,), 0 or 1; both must occur.
        scores: shape (n,), higher means more suspicious; logits and probabilities give the same.

    Raises: DegenerateLabels: only one class occurs.
    """
    positive, values = both_classes(labels, scores)
    m = int(np.sum(positive))
    n = len(positive) - m
    return float((np.sum(midranks(values)[positive]) - m * (m + 1) / 2) / (m * n))


def roc_curve(labels: npt.ArrayLike, scores: npt.ArrayLike) -> RocCurve:
    """Return every point of the ROC curve, one for each distinct score. Raises: DegenerateLabels."""
    positive, values = both_classes(labels, scores)
    thresholds, tp, fp = _cumulative(positive, values)
    return RocCurve(
        false_positive_rate=np.concatenate([[0.0], fp / fp[-1]]),
        true_positive_rate=np.concatenate([[0.0], tp / tp[-1]]),
        thresholds=np.concatenate([[np.inf], thresholds]),
    )


def precision_recall_curve(labels: npt.ArrayLike, scores: npt.ArrayLike) -> PrecisionRecallCurve:
    """Return precision and recall at every distinct score. Raises: DegenerateLabels."""
    positive, values = both_classes(labels, scores)
    thresholds, tp, fp = _cumulative(positive, values)
    return PrecisionRecallCurve(tp / (tp + fp), tp / tp[-1], thresholds)


def average_precision(labels: npt.ArrayLike, scores: npt.ArrayLike) -> float:
    """Return the area under the precision-recall curve as a sum of steps, not interpolated.

    Raises: DegenerateLabels.
    """
    precision, recall, _ = precision_recall_curve(labels, scores)
    return float(np.sum(np.diff(recall, prepend=0.0) * precision))


def net_benefit(labels: npt.ArrayLike, probabilities: npt.ArrayLike, thresholds: npt.ArrayLike) -> Float64Array:
    """Return the net benefit of acting on the model at each threshold, in true positives a film.

    A false alarm is weighted by the odds of the threshold: a threshold of 20% means that four false alarms are as bad
    as one missed pneumonia.

    Args:
        labels, probabilities: shape (n,).
        thresholds: shape (k,), each at least 0 and below 1.

    Returns: shape (k,).
    Raises: DataError.
    Source: Vickers and Elkin, Medical Decision Making 26 (2006).
    """
    positive, values = checked(labels, probabilities)
    at = np.asarray(thresholds, dtype=np.float64)
    called = len(values) - np.searchsorted(np.sort(values), at, side="left")
    tp = int(np.sum(positive)) - np.searchsorted(np.sort(values[positive]), at, side="left")
    benefit: Float64Array = (tp - (called - tp) * at / (1 - at)) / len(values)
    return benefit


def midranks(values: Float64Array) -> Float64Array:
    """Return ranks from 1; ties get the mean of their ranks: shape (n,) to shape (n,)."""
    _, which, counts = np.unique(values, return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    middle: Float64Array = (last - (counts - 1) / 2).astype(np.float64)
    return middle[which]


def checked(labels: npt.ArrayLike, scores: npt.ArrayLike) -> tuple[Targets, Float64Array]:
    """Return labels as booleans and scores as float64, both of shape (n,), after a check.

    Raises: DataError: of different length, empty, a label that is neither 0 nor 1, a score that is not finite.
    """
    targets, values = np.asarray(labels), np.asarray(scores, dtype=np.float64)
    if targets.ndim != 1 or targets.shape != values.shape:
        raise DataError(f"labels of shape {targets.shape} and scores of shape {values.shape}: both must be (n,)")
    if not len(targets):
        raise DataError("there are no scores to evaluate")
    if wrong := np.flatnonzero((targets != 0) & (targets != 1)).tolist():
        raise DataError(f"entry {wrong[0]}: the label is {targets[wrong[0]]}; it may be 0 or 1")
    if wrong := np.flatnonzero(~np.isfinite(values)).tolist():
        raise DataError(f"entry {wrong[0]}: the score is {values[wrong[0]]}; it must be a finite number")
    return targets.astype(np.bool_), values


def both_classes(labels: npt.ArrayLike, scores: npt.ArrayLike) -> tuple[Targets, Float64Array]:
    """Return the same as ``checked``; both classes must occur. Raises: DataError, DegenerateLabels."""
    positive, values = checked(labels, scores)
    if positive.all() or not positive.any():
        name = "pneumonia" if positive.all() else "normal"
        raise DegenerateLabels(
            f"all {len(positive):,} films are labelled {name}, so nothing can be said about telling two classes "
            "apart. Add films of the other class"
        )
    return positive, values


def _cumulative(positive: Targets, values: Float64Array) -> tuple[Float64Array, Float64Array, Float64Array]:
    """Return distinct scores from high to low, with the true and false positives at and above each."""
    order = np.argsort(-values, kind="stable")
    values, positive = values[order], positive[order]
    last = np.flatnonzero(np.append(np.diff(values) != 0.0, True))  # the last film of each distinct score
    tp = np.cumsum(positive)[last].astype(np.float64)
    return values[last], tp, last + 1.0 - tp


def _ratio(part: int, whole: int) -> float | None:
    return part / whole if whole else None
