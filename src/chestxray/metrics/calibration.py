"""From a score to a probability, and from a probability to a decision: both are chosen on validation films."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final, NamedTuple

import numpy as np
import numpy.typing as npt

from chestxray.arrays import Float64Array, Int64Array
from chestxray.metrics.metrics import Targets, both_classes, checked
from chestxray.schema import OperatingPoint

MIN_TEMPERATURE: Final = 0.05
MAX_TEMPERATURE: Final = 20.0
MAX_LOG_ODDS: Final = 30.0  # log-odds of a prevalence: far beyond one film in a thousand million
_HALVED_UNTIL: Final = 1e-10

BINS: Final = 15  # bins of equal width, the usual number since Guo et al. (2017)

SCREENING_SENSITIVITY: Final = 0.99
CONFIRMING_PRECISION: Final = 0.97
BALANCED: Final = "balanced"
GOALS: Final = {
    "screening": f"sensitivity at least {SCREENING_SENSITIVITY}",
    "balanced": "sensitivity and specificity equally high",
    "confirming": f"precision at least {CONFIRMING_PRECISION}",
}


# --------------------------------------------------------------------------- from logits to probabilities


class Calibration(NamedTuple):
    """From the log-odds of a network to a probability: ``1 / (1 + exp(-(logit + bias) / temperature))``.

    Attributes:
        temperature: above 1 if the network is too confident.
        bias: log-odds to add, because the network leans to one class whatever the film.
    """

    temperature: float
    bias: float


def calibrated(logits: npt.ArrayLike, temperature: float = 1.0, bias: float = 0.0) -> Float64Array:
    """Return the probability of pneumonia by a ``Calibration``, without overflow; any shape."""
    scaled = (np.asarray(logits, dtype=np.float64) + bias) / temperature
    probabilities: Float64Array = np.exp(-np.logaddexp(0.0, -scaled))
    return probabilities


def log_odds(probabilities: npt.ArrayLike) -> Float64Array:
    """Return the log-odds of probabilities of any shape; those of 0 and 1 are finite."""
    edge = np.finfo(np.float64).eps
    inside = np.clip(probabilities, edge, 1 - edge)
    odds: Float64Array = np.log(inside / (1 - inside))
    return odds


def fit_calibration(labels: npt.ArrayLike, logits: npt.ArrayLike) -> Calibration:
    """Fit the calibration with the greatest likelihood, its temperature from MIN_TEMPERATURE to MAX_TEMPERATURE.

    A network that ranks films well may still lean to one class, by more than a temperature alone can correct, so the
    bias is fitted with it. The labels are softened as Platt does, to (p + 1) / (p + 2) and 1 / (n + 2) for p films with
    pneumonia and n normal ones: otherwise logits that separate the classes without an error would give unlimited
    confidence.

    Args:
        labels: shape (n,), 0 or 1; both must occur.
        logits: shape (n,), of pneumonia.

    Raises: DataError, DegenerateLabels.
    Source: Platt, Advances in Large Margin Classifiers (1999); Guo et al., ICML (2017).
    """
    positive, values = both_classes(labels, logits)
    p, n = int(np.sum(positive)), int(np.sum(~positive))
    targets = np.where(positive, (p + 1) / (p + 2), 1 / (n + 2))

    def slope(inverse: float) -> float:
        """Return the slope of the mean negative log-likelihood along 1 / temperature, each with its best bias."""
        return float(
            np.mean((calibrated(values * inverse + _likeliest_shift(targets, values * inverse)) - targets) * values)
        )

    tells = np.ptp(values) > 0.0
    inverse = _where_it_rises(slope, 1 / MAX_TEMPERATURE, 1 / MIN_TEMPERATURE) if tells else 1.0
    return Calibration(1 / inverse, _likeliest_shift(targets, values * inverse) / inverse)


def _likeliest_shift(targets: Float64Array, logits: Float64Array) -> float:
    """Return the number to add to all logits so that their mean probability equals that of the targets."""
    reach = float(np.abs(logits).max()) + MAX_LOG_ODDS
    wanted = float(np.mean(targets))
    return _where_it_rises(lambda shift: float(np.mean(calibrated(logits + shift))) - wanted, -reach, reach)


def _where_it_rises(slope: Callable[[float], float], low: float, high: float) -> float:
    """Find by halving where a non-decreasing function crosses zero; return the nearer end if it does not."""
    if slope(low) >= 0.0:
        return low
    if slope(high) <= 0.0:
        return high
    while high - low > _HALVED_UNTIL * max(abs(low), abs(high)):
        middle = (low + high) / 2
        low, high = (middle, high) if slope(middle) < 0.0 else (low, middle)
    return (low + high) / 2


# --------------------------------------------------------------------------- how well calibrated


class Bin(NamedTuple):
    """Films whose probability is in [low, high); the last bin includes 1.

    Attributes:
        predicted: their mean probability; None if the bin is empty.
        observed: the proportion of them that shows pneumonia; None if the bin is empty.
    """

    low: float
    high: float
    films: int
    positives: int
    predicted: float | None
    observed: float | None


class BrierParts(NamedTuple):
    """``reliability - resolution + uncertainty + within_bins`` is the Brier score.

    Attributes:
        reliability: squared distance of predicted and observed, weighted by films: lower is better.
        resolution: squared distance of the bins' observed proportions from the overall one: higher is better.
        uncertainty: variance of the labels themselves; no model changes it.
        within_bins: the remainder from putting unequal probabilities into one bin; near 0.
    """

    reliability: float
    resolution: float
    uncertainty: float
    within_bins: float


def reliability(labels: npt.ArrayLike, probabilities: npt.ArrayLike, bins: int = BINS) -> tuple[Bin, ...]:
    """Compare predicted with observed in bins of equal width over 0 to 1. Raises: DataError."""
    positive, values = checked(labels, probabilities)
    which = np.minimum((values * bins).astype(np.int64), bins - 1)
    counts, hits, sums = (np.bincount(which, weights, bins) for weights in (np.ones_like(values), positive, values))
    return tuple(
        Bin(
            low=index / bins,
            high=(index + 1) / bins,
            films=int(counts[index]),
            positives=int(hits[index]),
            predicted=float(sums[index] / counts[index]) if counts[index] else None,
            observed=float(hits[index] / counts[index]) if counts[index] else None,
        )
        for index in range(bins)
    )


def expected_calibration_error(labels: npt.ArrayLike, probabilities: npt.ArrayLike, bins: int = BINS) -> float:
    """Return the mean distance of predicted and observed over bins of equal width, weighted by films, 0 to 1.

    The probability is that of pneumonia, not that of the more likely class. Raises: DataError.
    Source: Naeini et al., AAAI (2015), in its binary form.
    """
    table = _filled(reliability(labels, probabilities, bins))
    count, predicted, observed = table.T
    return float(np.sum(count * np.abs(predicted - observed)) / np.sum(count))


def expected_error_if_calibrated(
    probabilities: npt.ArrayLike, bins: int = BINS, *, draws: int = 1_000, seed: int = 0
) -> tuple[float, float]:
    """Return the expected calibration error that chance alone produces: its mean and its 95th percentile.

    The error of a finite test set is above zero even for perfect probabilities. So labels are drawn from the
    probabilities themselves, and the error measured on them.
    """
    values = np.asarray(probabilities, dtype=np.float64)
    which = np.minimum((values * bins).astype(np.int64), bins - 1)
    in_bin = (which[:, None] == np.arange(bins)).astype(np.float64)
    excess = (np.random.default_rng(seed).random((draws, len(values))) < values) - values
    errors = np.sum(np.abs(excess @ in_bin), axis=1) / len(values)
    return float(np.mean(errors)), float(np.quantile(errors, 0.95))


def brier_score(labels: npt.ArrayLike, probabilities: npt.ArrayLike) -> float:
    """Return the mean squared distance of probability and label, 0 to 1; 0.25 for a constant half.

    Raises: DataError.
    """
    positive, values = checked(labels, probabilities)
    return float(np.mean((values - positive) ** 2))


def brier_parts(labels: npt.ArrayLike, probabilities: npt.ArrayLike, bins: int = BINS) -> BrierParts:
    """Return Murphy's decomposition of the Brier score over bins of equal width. Raises: DataError.

    Source: Murphy, Journal of Applied Meteorology 12 (1973); Stephenson et al., Weather and Forecasting 23 (2008).
    """
    count, predicted, observed = _filled(reliability(labels, probabilities, bins)).T
    share = float(np.sum(count * observed) / np.sum(count))
    apart = float(np.sum(count * (predicted - observed) ** 2) / np.sum(count))
    resolved = float(np.sum(count * (observed - share) ** 2) / np.sum(count))
    uncertain = share * (1 - share)
    return BrierParts(apart, resolved, uncertain, brier_score(labels, probabilities) - (apart - resolved + uncertain))


def _filled(bins: tuple[Bin, ...]) -> Float64Array:
    """Return count, predicted and observed of the bins that hold films: shape (k, 3)."""
    return np.array([(b.films, b.predicted, b.observed) for b in bins if b.films], dtype=np.float64)


# --------------------------------------------------------------------------- operating points


def choose_operating_points(
    labels: npt.ArrayLike, probabilities: npt.ArrayLike, chosen_on: str = "val"
) -> tuple[OperatingPoint, ...]:
    """Choose up to three named thresholds, in rising order, with their figures on the films they were chosen on.

    - ``balanced``: the smaller one of sensitivity and specificity is as large as it can be, so neither is bought
      with the other; of equals the largest sum, then the lowest threshold, since a missed pneumonia costs more than a
      false alarm. (The largest sum alone, Youden's index, may give up much of one for little of the other.)
    - ``screening``: the highest threshold with a sensitivity of at least 0.99, but not above ``balanced``.
    - ``confirming``: the lowest threshold with a precision of at least 0.97, but not below ``balanced``.

    A point that coincides with ``balanced``, or whose goal no threshold reaches, is left out; ``left_out`` says so. The
    two limits matter for a model that exceeds a goal: without them its ``screening`` would be stricter than its
    ``confirming``. A threshold lies midway, in logits, between two neighbouring scores, so that it does not depend on a
    single film; a threshold below every score is 0.

    Args:
        labels: shape (n,), 0 or 1; both must occur.
        probabilities: shape (n,), calibrated, 0 to 1.
        chosen_on: the name of these films' split.

    Raises: DataError, DegenerateLabels.
    """
    positive, values = both_classes(labels, probabilities)
    table = _candidates(positive, values)
    balanced = int(np.lexsort((-table.sum, -table.smaller))[0])
    reach = np.flatnonzero(table.sensitivity >= SCREENING_SENSITIVITY)
    screening = min(int(reach[-1]), balanced)
    precise = np.flatnonzero(table.precision[balanced:] >= CONFIRMING_PRECISION)
    confirming = balanced + int(precise[0]) if len(precise) else balanced
    return tuple(
        OperatingPoint(
            name=name,
            threshold=float(table.threshold[row]),
            sensitivity=float(table.sensitivity[row]),
            specificity=float(table.specificity[row]),
            positives=int(np.sum(positive)),
            negatives=int(np.sum(~positive)),
            chosen_on=chosen_on,
        )
        for name, row in zip(GOALS, (screening, balanced, confirming), strict=True)
        if name == BALANCED or row != balanced
    )


def left_out(points: Sequence[OperatingPoint]) -> tuple[str, ...]:
    """Explain in a sentence why a goal has no point of its own, for each such goal.

    Args:
        points: as ``choose_operating_points`` returns them.
    """
    names = {point.name for point in points}
    balanced = next((point for point in points if point.name == BALANCED), None)
    sentences = []
    for name, goal in GOALS.items():
        if name in names or balanced is None:
            continue
        hits, alarms = balanced.sensitivity * balanced.positives, (1 - balanced.specificity) * balanced.negatives
        if name == "confirming" and hits < CONFIRMING_PRECISION * (hits + alarms):
            sentences.append(f'There is no point "{name}": no threshold reaches a {goal}.')
        else:
            sentences.append(f'There is no point "{name}": "{BALANCED}" has a {goal} already.')
    return tuple(sentences)


class _Candidates(NamedTuple):
    """Candidate thresholds, from low to high; each classifies at least one film as pneumonia."""

    threshold: Float64Array
    sensitivity: Float64Array
    specificity: Float64Array
    precision: Float64Array
    # in common units, as integers, so that equal values compare equal
    smaller: Int64Array  # of sensitivity and specificity
    sum: Int64Array  # of both


def _candidates(positive: Targets, values: Float64Array) -> _Candidates:
    distinct, which = np.unique(values, return_inverse=True)
    tp, fp = (np.cumsum(np.bincount(which[of], minlength=len(distinct))[::-1])[::-1] for of in (positive, ~positive))
    positives, negatives = tp[0], fp[0]
    tn = negatives - fp
    return _Candidates(
        threshold=np.concatenate([[0.0], _midway(distinct[:-1], distinct[1:])]),
        sensitivity=tp / positives,
        specificity=tn / negatives,
        precision=tp / (tp + fp),
        smaller=np.minimum(tp * negatives, tn * positives),
        sum=tp * negatives + tn * positives,
    )


def _midway(below: Float64Array, above: Float64Array) -> Float64Array:
    """Return the middle in logits; always above the lower and at most the upper score, despite rounding."""
    middle = calibrated((log_odds(below) + log_odds(above)) / 2)
    return np.where((middle > below) & (middle <= above), middle, above)
