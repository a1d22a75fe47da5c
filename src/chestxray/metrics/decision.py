"""What decisions by the model bring: films left to a reader, conformal sets, predictive values at other prevalences.

Split conformal prediction with one bound for each class is a sorted array and one index, so it is implemented here: the
libraries for it would add scikit-learn, SciPy or pandas to a package whose evaluation needs only numpy.

For predictive values at another prevalence than that of the evaluated films, sensitivity and specificity are assumed to
stay the same; the values then follow from Bayes' rule. Where the disease is rarer, mild forms are more common and
sensitivity falls too: these are estimates, not measurements.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final, NamedTuple

import numpy as np
import numpy.typing as npt

from chestxray.arguments import is_number
from chestxray.arrays import Float64Array
from chestxray.errors import UsageError
from chestxray.metrics.calibration import log_odds
from chestxray.metrics.intervals import (
    NOT_RESAMPLED,
    Interval,
    Measure,
    Resampled,
    Statistic,
    normal_quantile,
    quotient,
    rates,
    share,
)
from chestxray.metrics.metrics import Confusion, both_classes, checked

_MARGIN_DIGITS: Final = 9  # decimals: films at the same distance from the threshold on either side are equally certain
COVERAGES: Final = (1.0, 0.95, 0.9, 0.8, 0.7, 0.5)


# --------------------------------------------------------------------------- risk and coverage


class CoveragePoint(NamedTuple):
    """The most certain films, at least the proportion asked for; films of one margin stay together.

    Attributes:
        coverage: proportion of all films that is kept.
        error_rate: proportion of the kept films that is classified wrongly.
    """

    coverage: float
    error_rate: Measure
    missed: int
    false_alarms: int


@dataclass(frozen=True, slots=True)
class RiskCoverage:
    """Films from the most to the least certain, by the distance of their log-odds from the threshold's.

    Attributes:
        coverage, risk: shape (k,), one entry for each distinct margin: proportion of films kept, and of these the
            proportion classified wrongly.
        area: mean risk over coverage, each film with equal weight; lower is better.
        kept: the films kept at each of ``COVERAGES``.
    """

    coverage: Float64Array
    risk: Float64Array
    area: float
    kept: tuple[CoveragePoint, ...]


def risk_coverage(
    labels: npt.ArrayLike, probabilities: npt.ArrayLike, threshold: float, level: float = 0.95
) -> RiskCoverage:
    """Compute the error rate of the kept films for every proportion kept. Raises: DataError.

    Source: El-Yaniv and Wiener, Journal of Machine Learning Research 11 (2010); Geifman and El-Yaniv, NeurIPS (2017).
    """
    positive, values = checked(labels, probabilities)
    called = values >= threshold
    margin = np.abs(log_odds(values) - log_odds(threshold)).round(_MARGIN_DIGITS)
    order = np.argsort(-margin, kind="stable")
    wrong = (called != positive)[order]
    ends = np.flatnonzero(np.append(np.diff(margin[order]) != 0.0, True))  # the last film of each margin
    errors, films = np.cumsum(wrong)[ends], ends + 1
    missed, n = np.cumsum(wrong & positive[order])[ends], len(values)
    kept = []
    for wanted in COVERAGES:
        row = int(np.searchsorted(films, math.ceil(wanted * n - 1e-9)))
        rate = share("error_rate", int(errors[row]), int(films[row]), level, "")
        kept.append(CoveragePoint(float(films[row] / n), rate, int(missed[row]), int(errors[row] - missed[row])))
    risk = errors / films
    area = float(np.sum(np.diff(films, prepend=0) * risk) / n)
    return RiskCoverage(films / n, risk, area, tuple(kept))


# --------------------------------------------------------------------------- conformal sets


@dataclass(frozen=True, slots=True)
class ConformalRule:
    """The labels that remain possible for a film: pneumonia from ``lowest`` on, normal up to ``highest``.

    Attributes:
        error: proportion of the films of each class whose true label may be missing from their set.
        lowest, highest: probabilities; 0 and 1 if the class has too few films to exclude a label.
        positives, negatives: number of films on which each bound was fitted.
        fitted_on: the name of those films.
    """

    error: float
    lowest: float
    highest: float
    positives: int
    negatives: int
    fitted_on: str


def conformal_rule(
    labels: npt.ArrayLike, probabilities: npt.ArrayLike, error: float, fitted_on: str = "val"
) -> ConformalRule:
    """Fit the bounds on films that were not trained on.

    For films from the same distribution, the true label of each class is in the set in at least ``1 - error`` of the
    cases, for any model and any prevalence.

    Raises:
        UsageError: the error rate is not between 0 and 1.
        DataError, DegenerateLabels: the labels cannot be used.
    Source: Vovk, Gammerman and Shafer, Algorithmic Learning in a Random World (2005), 4.5, label-conditional.
    """
    if not is_number(error) or not 0.0 < error < 1.0:
        raise UsageError(f"an error rate of {error}: must lie between 0 and 1, as in 0.1")
    positive, values = both_classes(labels, probabilities)
    ill, well = np.sort(values[positive]), np.sort(values[~positive])[::-1]
    rank, rank_well = (math.floor((len(part) + 1) * error + 1e-9) for part in (ill, well))
    return ConformalRule(
        error=error,
        lowest=float(ill[rank - 1]) if rank else 0.0,
        highest=float(well[rank_well - 1]) if rank_well else 1.0,
        positives=len(ill),
        negatives=len(well),
        fitted_on=fitted_on,
    )


@dataclass(frozen=True, slots=True)
class ConformalSets:
    """The result of a rule's sets on the evaluated films.

    Attributes:
        covered: proportion of films whose label is in their set: with pneumonia, normal, all.
        single, both, neither: films by the size of their set; "neither" means unlike both classes.
        single_wrong: of the films with one label in their set, those with the wrong one.
    """

    rule: ConformalRule
    covered: tuple[Measure, ...]
    single: int
    both: int
    neither: int
    single_wrong: int


def conformal_sets(
    labels: npt.ArrayLike, probabilities: npt.ArrayLike, rule: ConformalRule, level: float = 0.95
) -> ConformalSets:
    """Apply a rule to films. Raises: DataError."""
    positive, values = checked(labels, probabilities)
    ill, well = values >= rule.lowest, values <= rule.highest
    covered = np.where(positive, ill, well)
    counts = [
        ("coverage_pneumonia", positive, "No film shows pneumonia."),
        ("coverage_normal", ~positive, "No film is normal."),
        ("coverage", positive | True, ""),
    ]
    single = ill != well
    return ConformalSets(
        rule=rule,
        covered=tuple(
            share(name, int(np.sum(covered & part)), int(np.sum(part)), level, missing)
            for name, part, missing in counts
        ),
        single=int(np.sum(single)),
        both=int(np.sum(ill & well)),
        neither=int(np.sum(~ill & ~well)),
        single_wrong=int(np.sum(single & ~covered)),
    )


# --------------------------------------------------------------------------- predictive values

PREVALENCES: Final = (0.01, 0.05, 0.1, 0.2, 0.5)


@dataclass(frozen=True, slots=True)
class PredictiveValues:
    """Predictive values at a prevalence of pneumonia."""

    prevalence: float
    ppv: Measure
    npv: Measure


def predictive_values(
    confusion: Confusion, prevalence: float, level: float, resampled: Mapping[str, Resampled] = MappingProxyType({})
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
    # The two values are one formula: with the classes swapped, NPV is PPV.
    swapped = Confusion(tp=confusion.tn, fp=confusion.fn, fn=confusion.fp, tn=confusion.tp)
    ppv, npv = (
        _predictive_value(name, counts, share, level, resampled.get(_figure_name(name, prevalence), NOT_RESAMPLED))
        for name, counts, share in (("precision", confusion, prevalence), ("npv", swapped, 1 - prevalence))
    )
    return PredictiveValues(prevalence, ppv, npv)


def _predictive_value(name: str, c: Confusion, prevalence: float, level: float, resampled: Resampled) -> Measure:
    if not c.positives or not c.negatives:
        return Measure(name, None, None, c.films, note="Needs films of both classes.")
    if not c.tp + c.fp:
        return Measure(name, None, None, c.films, note="No film was classified so.")
    true = prevalence * c.tp / c.positives
    value = true / (true + (1 - prevalence) * c.fp / c.negatives)
    interval = _logit_interval(value, c, prevalence, level)
    return Measure(name, value, interval, c.films, None, resampled.interval, resampled.note)


def _logit_interval(value: float, c: Confusion, prevalence: float, level: float) -> Interval:
    z = normal_quantile(level)
    added = 0.0 if min(c.tp, c.fp, c.fn, c.tn) else z**2
    n1, n0 = c.positives + added, c.negatives + added
    sensitivity, specificity = (c.tp + added / 2) / n1, (c.tn + added / 2) / n0
    middle = math.log(prevalence * sensitivity / ((1 - prevalence) * (1 - specificity)))
    error = math.sqrt((1 - sensitivity) / (sensitivity * n1) + specificity / ((1 - specificity) * n0))
    low, high = (1 / (1 + math.exp(-(middle + side * z * error))) for side in (-1, 1))
    method = "logit, adjusted" if added else "logit"
    return Interval(min(low, value), max(high, value), level, method)


def predictive_statistic(threshold: float, labels: npt.ArrayLike, scores: npt.ArrayLike) -> Statistic:
    """Return the statistic of both values at every one of ``PREVALENCES``, for resampling."""
    of_rates = rates(threshold, labels, scores)

    def values(weights: Float64Array) -> Mapping[str, Float64Array]:
        found = of_rates(weights)
        sensitivity, specificity = found["sensitivity"], found["specificity"]
        made = {}
        for prevalence in PREVALENCES:
            tp, fn = sensitivity * prevalence, (1 - sensitivity) * prevalence
            tn, fp = specificity * (1 - prevalence), (1 - specificity) * (1 - prevalence)
            made[_figure_name("precision", prevalence)] = quotient(tp, tp + fp)
            made[_figure_name("npv", prevalence)] = quotient(tn, tn + fn)
        return made

    return values


def _figure_name(figure: str, prevalence: float) -> str:
    return f"{figure} at {prevalence}"


def predictive_values_at_prevalences(
    confusion: Confusion, level: float, resampled: Mapping[str, Resampled]
) -> tuple[PredictiveValues, ...]:
    """Return both values at every one of ``PREVALENCES``."""
    return tuple(predictive_values(confusion, share, level, resampled) for share in PREVALENCES)
