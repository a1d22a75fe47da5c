"""What a model gains by leaving the unsure films to a reader: risk and coverage, and conformal sets.

Split conformal prediction with one bound a class is a sorted array and one index, so it is written out here:
the libraries that do it bring scikit-learn, SciPy or pandas into a package whose evaluation needs numpy alone.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final, NamedTuple

import numpy as np
import numpy.typing as npt

from chestxray.errors import UsageError
from chestxray.metrics.intervals import Measure, share
from chestxray.metrics.metrics import FloatArray, both_classes, checked

_MARGIN_DIGITS: Final = 9  # films as far on one side of the threshold as on the other are equally sure
COVERAGES: Final = (1.0, 0.95, 0.9, 0.8, 0.7, 0.5)


# --------------------------------------------------------------------------- risk and coverage


class Kept(NamedTuple):
    """The surest films, at least the share asked for; films of one margin stay together.

    Attributes:
        coverage: share of all films that is kept.
        error_rate: share of the kept films that is called wrong.
    """

    coverage: float
    error_rate: Measure
    missed: int
    false_alarms: int


@dataclass(frozen=True, slots=True)
class RiskCoverage:
    """Films from the surest to the least sure, by how far their log-odds lie from the threshold's.

    Attributes:
        coverage, risk: shape (k,), one entry a distinct margin: share of films kept, share of those called wrong.
        area: mean risk over coverage, each film counting alike; lower is better.
        kept: at each of ``COVERAGES``.
    """

    coverage: FloatArray
    risk: FloatArray
    area: float
    kept: tuple[Kept, ...]


def risk_coverage(
    labels: npt.ArrayLike, probabilities: npt.ArrayLike, threshold: float, level: float = 0.95
) -> RiskCoverage:
    """Error rate of the films that are kept, for every share kept. Raises: DataError.

    Source: El-Yaniv and Wiener, Journal of Machine Learning Research 11 (2010); Geifman and El-Yaniv, NeurIPS (2017).
    """
    positive, values = checked(labels, probabilities)
    called = values >= threshold
    margin = np.abs(_logit(values) - _logit(np.array(threshold))).round(_MARGIN_DIGITS)
    order = np.argsort(-margin, kind="stable")
    wrong = (called != positive)[order]
    ends = np.flatnonzero(np.append(np.diff(margin[order]) != 0.0, True))  # the last film of each margin
    errors, films = np.cumsum(wrong)[ends], ends + 1
    missed, n = np.cumsum(wrong & positive[order])[ends], len(values)
    kept = []
    for wanted in COVERAGES:
        row = int(np.searchsorted(films, math.ceil(wanted * n - 1e-9)))
        rate = share("error_rate", int(errors[row]), int(films[row]), level, "")
        kept.append(Kept(float(films[row] / n), rate, int(missed[row]), int(errors[row] - missed[row])))
    risk = errors / films
    area = float(np.sum(np.diff(films, prepend=0) * risk) / n)
    return RiskCoverage(films / n, risk, area, tuple(kept))


def _logit(probabilities: FloatArray) -> FloatArray:
    edge = np.finfo(np.float64).eps
    inside = np.clip(probabilities, edge, 1 - edge)
    odds: FloatArray = np.log(inside / (1 - inside))
    return odds


# --------------------------------------------------------------------------- conformal sets


@dataclass(frozen=True, slots=True)
class ConformalRule:
    """Which labels remain possible for a film: pneumonia from ``lowest`` on, normal up to ``highest``.

    Attributes:
        error: share of the films of each class whose own label may be missing from their set.
        lowest, highest: probabilities; 0 and 1 where the class has too few films to exclude anything.
        positives, negatives: how many films each bound was fitted on.
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

    For films drawn as these were, each class's own label is in the set in at least ``1 - error`` of the cases,
    whatever the model and whatever the share of pneumonia.

    Raises:
        UsageError: the error rate does not lie between 0 and 1.
        DataError, DegenerateLabels: no use of the labels.
    Source: Vovk, Gammerman and Shafer, Algorithmic Learning in a Random World (2005), 4.5, label-conditional.
    """
    if not 0.0 < error < 1.0:
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
    """How the sets of a rule came out on the films evaluated.

    Attributes:
        covered: share of films whose label is in their set: with pneumonia, normal, all.
        single, both, neither: films by the size of their set; "neither" is unlike either class.
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
    """Apply a rule. Raises: DataError."""
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
