"""Everything that may be said about one model on one set of films, as one value.

``assess`` computes, ``report`` shows. Nothing here is chosen on the films that are judged: thresholds come
with the table's model, and where there are none, one half is taken and named as such.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

import numpy as np
import numpy.typing as npt

from chestxray.errors import UsageError
from chestxray.evaluation import calibration, predictive
from chestxray.evaluation.abstention import ConformalRule, conformal_sets, risk_coverage
from chestxray.evaluation.assessment import (
    Assessment,
    DecisionCurve,
    Histogram,
    MeasuredPoint,
    Mistake,
)
from chestxray.evaluation.comparison import Comparison, Published, Rival, beside_published, compare
from chestxray.evaluation.intervals import (
    LEVEL,
    RESAMPLES,
    Measure,
    Resampled,
    areas,
    bootstrap,
    rates,
    squared_error,
)
from chestxray.evaluation.measures import COMPOSITES, PROPORTIONS, area, composite, precision_area, proportion
from chestxray.evaluation.metrics import Confusion, net_benefit, precision_recall_curve, roc_curve
from chestxray.evaluation.scores import ScoreTable
from chestxray.evaluation.subgroups import parts_of, statistics_of, subgroup
from chestxray.schema import Label, OperatingPoint

WORST: Final = 12  # errors shown in each direction
HISTOGRAM_BINS: Final = 20
FEW: Final = 30  # films of a class, below which every figure about it is a rough one

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
    """Judge a model by its scores.

    Proportions have Wilson's interval, the area under the ROC curve DeLong's, the rest that of resampled
    patients; all have the last one beside the first.

    Args:
        table: films, labels, calibrated probabilities, patients; one class alone is stated, not an error.
        points: fixed elsewhere, on other films; none stands for the threshold one half.
        default: the name of the point to answer with; the first one if not given.
        rival: another model's scores, or its published counts, to compare with.
        conformal: fitted on other films; the report says how its sets came out on these.

    Raises:
        UsageError: no point has the name ``default``, or two points share a name.
        SourceInvalid: the rival has no film in common with the table, or another label for one.
    """
    points = tuple(points) or (HALF,)
    default = _default_name(points, default)
    labels, scores, groups = table.labels, table.probabilities, table.groups
    answer = next(p for p in points if p.name == default)
    parts = parts_of(table)
    statistics = [areas(labels, scores), squared_error(labels, scores)]
    statistics += [rates(p.threshold, labels, scores, prefix=f"{p.name}.") for p in points]
    statistics += [predictive.statistic(answer.threshold, labels, scores)]
    statistics += [s for part in parts for s in statistics_of(part, table, answer.threshold)]
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
        predictive=predictive.at_every_prevalence(confusion, level, resampled),
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
    edges = np.linspace(0.0, 1.0, HISTOGRAM_BINS + 1)
    normal, pneumonia = (
        np.histogram(table.probabilities[table.labels == index], bins=edges)[0].tolist() for index in (0, 1)
    )
    return Histogram(tuple(edges.tolist()), tuple(normal), tuple(pneumonia))


def _mistakes(table: ScoreTable, threshold: float) -> tuple[tuple[Mistake, ...], tuple[Mistake, ...]]:
    """The surest misses and the surest false alarms, at most ``WORST`` of each."""
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


def _limits(table: ScoreTable, groups: npt.NDArray[np.int64]) -> tuple[str, ...]:
    """What speaks against believing the figures, as sentences."""
    sentences = []
    counts = {"pneumonia": int(table.labels.sum()), "normal": int(len(table) - table.labels.sum())}
    for name, count in counts.items():
        if not count:
            sentences.append(f"No film is labelled {name}: nothing can be said about telling the classes apart.")
        elif count < FEW:
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
        sentences.append("All films have the same probability: the model does not tell any two of them apart.")
    return tuple(sentences)
