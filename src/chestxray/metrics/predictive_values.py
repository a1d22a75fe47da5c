"""Predictive values at other prevalences than that of the evaluated films.

Sensitivity and specificity are assumed to stay the same; the predictive values then follow from Bayes' rule. Where the
disease is rarer, mild forms are more common and sensitivity falls too: these are estimates, not measurements.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from statistics import NormalDist
from typing import Final

import numpy.typing as npt

from chestxray.arrays import Float64Array
from chestxray.metrics.intervals import Interval, Measure, Resampled, Statistic, rates
from chestxray.metrics.metrics import Confusion

PREVALENCES: Final = (0.01, 0.05, 0.1, 0.2, 0.5)


@dataclass(frozen=True, slots=True)
class PredictiveValues:
    """Predictive values at a prevalence of pneumonia."""

    prevalence: float
    ppv: Measure
    npv: Measure


def predictive_values(
    confusion: Confusion, prevalence: float, level: float, resampled: Mapping[str, Resampled] | None = None
) -> PredictiveValues:
    """Return both predictive values at a prevalence, each with the logit interval of Mercaldo et al.

    If a cell of the table is empty, that interval is undefined; then z squared films are added to each class, half of
    them classified correctly, as those authors do.

    Args:
        confusion: at the threshold, on films of any prevalence.
        prevalence: above 0 and below 1.
        resampled: as ``bootstrap`` of ``statistic`` returns them.

    Source: Mercaldo, Lau and Zhou, Statistics in Medicine 26 (2007), 2170-2183.
    """
    found = resampled or {}
    # The two values are one formula: with the classes swapped, NPV is PPV.
    swapped = Confusion(tp=confusion.tn, fp=confusion.fn, fn=confusion.fp, tn=confusion.tp)
    ppv = _value("precision", confusion, prevalence, level, found.get(_name("precision", prevalence)))
    npv = _value("npv", swapped, 1 - prevalence, level, found.get(_name("npv", prevalence)))
    return PredictiveValues(prevalence, ppv, npv)


def _value(name: str, c: Confusion, prevalence: float, level: float, resampled: Resampled | None) -> Measure:
    if not c.positives or not c.negatives:
        return Measure(name, None, None, c.films, note="Needs films of both classes.")
    if not c.tp + c.fp:
        return Measure(name, None, None, c.films, note="No film was classified so.")
    true = prevalence * c.tp / c.positives
    value = true / (true + (1 - prevalence) * c.fp / c.negatives)
    interval = _logit_interval(value, c, prevalence, level)
    by_patient, note = (resampled.interval, resampled.note) if resampled else (None, "")
    return Measure(name, value, interval, c.films, None, by_patient, note)


def _logit_interval(value: float, c: Confusion, prevalence: float, level: float) -> Interval:
    z = NormalDist().inv_cdf((1 + level) / 2)
    added = 0.0 if min(c.tp, c.fp, c.fn, c.tn) else z**2
    n1, n0 = c.positives + added, c.negatives + added
    sensitivity, specificity = (c.tp + added / 2) / n1, (c.tn + added / 2) / n0
    middle = math.log(prevalence * sensitivity / ((1 - prevalence) * (1 - specificity)))
    error = math.sqrt((1 - sensitivity) / (sensitivity * n1) + specificity / ((1 - specificity) * n0))
    low, high = (1 / (1 + math.exp(-(middle + side * z * error))) for side in (-1, 1))
    method = "logit, adjusted" if added else "logit"
    return Interval(min(low, value), max(high, value), level, method)


def statistic(threshold: float, labels: npt.ArrayLike, scores: npt.ArrayLike) -> Statistic:
    """Return the statistic of both values at every one of ``PREVALENCES``, for resampling."""
    of_rates = rates(threshold, labels, scores)

    def values(weights: Float64Array) -> Mapping[str, Float64Array]:
        found = of_rates(weights)
        sensitivity, specificity = found["sensitivity"], found["specificity"]
        made = {}
        for share in PREVALENCES:
            made[_name("precision", share)] = _bayes(sensitivity * share, (1 - specificity) * (1 - share))
            made[_name("npv", share)] = _bayes(specificity * (1 - share), (1 - sensitivity) * share)
        return made

    return values


def _bayes(true: Float64Array, false: Float64Array) -> Float64Array:
    """Return ``true / (true + false)``, NaN if both are 0."""
    total = true + false
    return true / _nan_for_zero(total)


def _nan_for_zero(values: Float64Array) -> Float64Array:
    out = values.copy()
    out[out == 0.0] = math.nan
    return out


def _name(figure: str, prevalence: float) -> str:
    return f"{figure} at {prevalence}"


def at_every_prevalence(
    confusion: Confusion, level: float, resampled: Mapping[str, Resampled]
) -> tuple[PredictiveValues, ...]:
    """Return both values at every one of ``PREVALENCES``."""
    return tuple(predictive_values(confusion, share, level, resampled) for share in PREVALENCES)
