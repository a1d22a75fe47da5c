"""Comparison of two models on the same films, of one model with published counts, and of one model's subgroups.

On the same films every figure is paired: both models are resampled with the same patients, so difficulties that both
share cancel. Published counts name no films, so a comparison with them cannot be paired.

Subgroups are the films of each value of the further columns of a score table.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import PurePath
from statistics import NormalDist
from typing import Final, NamedTuple

import numpy as np
import numpy.typing as npt

from chestxray.arrays import Float64Array
from chestxray.errors import SourceInvalid
from chestxray.metrics.intervals import (
    COMPOSITES,
    LEVEL,
    PROPORTIONS,
    RESAMPLES,
    Interval,
    Measure,
    Resampled,
    Statistic,
    area,
    areas,
    bootstrap,
    delong_components,
    normal_quantile,
    proportion,
    rates,
    squared_error,
    wilson_interval,
)
from chestxray.metrics.metrics import Confusion, Targets, auroc, average_precision, checked
from chestxray.metrics.scores import ScoreTable


@dataclass(frozen=True, slots=True)
class Published:
    """Counts from a paper, and a description of their films."""

    name: str
    confusion: Confusion
    films: str


ORIGINAL: Final = Published(
    "the original work", Confusion(tp=388, fp=169, fn=2, tn=65), "the 624 official test films (390 + 234)"
)


@dataclass(frozen=True, slots=True)
class Difference:
    """One figure of both models, and the difference between them.

    Attributes:
        ours, theirs: the figure of the evaluated model, and of the other; None if undefined.
        value: ours minus theirs.
        interval: of the difference, by formula if there is one, else by resampling patients.
        by_patient: the interval by resampling patients; None if the comparison is not paired.
        p: two-sided, that a difference this large arises by chance; None if there is no test for the figure.
        test: name of the test.
        note: why a value is missing.
    """

    name: str
    ours: float | None
    theirs: float | None
    value: float | None
    interval: Interval | None
    by_patient: Interval | None = None
    p: float | None = None
    test: str = ""
    note: str = ""


@dataclass(frozen=True, slots=True)
class McNemar:
    """Films that one model classifies correctly and the other wrongly; films on which both agree carry no information.

    Attributes:
        among: description of the films.
        films: their number.
        only_ours, only_theirs: films that only the one, or only the other, classifies correctly.
        exact: two-sided p by the binomial distribution; never too small, often too large.
        mid: the same with half the probability of the observed result; closer to its nominal level.
    """

    among: str
    films: int
    only_ours: int
    only_theirs: int
    exact: float
    mid: float


@dataclass(frozen=True, slots=True)
class Comparison:
    """The comparison of one model with another.

    Attributes:
        other: name of the other model.
        paired: whether both evaluated the same films.
        films, patients: numbers on which both are compared.
        threshold, other_threshold: from which each classifies as pneumonia; None for published counts.
        other_point: the operating point of the other, by name.
        differences: in the order of the report.
        mcnemar: on all films, on those with pneumonia, on normal ones; empty if the comparison is not paired.
        notes: remarks for the reader, in sentences.
    """

    other: str
    paired: bool
    films: int
    patients: int
    threshold: float
    other_threshold: float | None
    other_point: str
    differences: tuple[Difference, ...]
    mcnemar: tuple[McNemar, ...]
    notes: tuple[str, ...]


# --------------------------------------------------------------------------- two models on the same films


class Rival(NamedTuple):
    """The other model: its name, its scores, and its threshold."""

    name: str
    table: ScoreTable
    threshold: float
    point: str


def compare(
    table: ScoreTable,
    threshold: float,
    rival: Rival,
    *,
    level: float = LEVEL,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> Comparison:
    """Compare two models on the films that both have scored.

    Args:
        table: the scores of the model that is evaluated.
        threshold: from which it classifies as pneumonia.
        rival: the other model.

    Raises: SourceInvalid: no film in common, or a film with two labels.
    """
    ours, theirs, notes = matched(table, rival.table)
    labels, a, b = ours.labels, ours.probabilities, theirs.probabilities
    pairs = [
        _minus(areas(labels, a), areas(labels, b)),
        _minus(squared_error(labels, a), squared_error(labels, b)),
        _minus(rates(threshold, labels, a), rates(rival.threshold, labels, b)),
    ]
    found = bootstrap(pairs, ours.groups, resamples=resamples, level=level, seed=seed)
    return Comparison(
        other=rival.name,
        paired=True,
        films=len(ours),
        patients=int(ours.groups.max()) + 1,
        threshold=threshold,
        other_threshold=rival.threshold,
        other_point=rival.point,
        differences=_differences(labels, (a, threshold), (b, rival.threshold), found, level),
        mcnemar=_mcnemars(labels, a >= threshold, b >= rival.threshold),
        notes=notes,
    )


def matched(ours: ScoreTable, theirs: ScoreTable) -> tuple[ScoreTable, ScoreTable, tuple[str, ...]]:
    """Return the films of both tables, in the order of the first, and sentences about films left out.

    Films are matched by path; where no path is in both, by file name, if names are unique in each.

    Raises: SourceInvalid: no film in common, or a film with two labels.
    """
    notes = []
    keys, other_keys = ours.paths, theirs.paths
    if not set(keys) & set(other_keys):
        names, other_names = (tuple(PurePath(path).name for path in table.paths) for table in (ours, theirs))
        if len(set(names)) == len(names) and len(set(other_names)) == len(other_names):
            keys, other_keys = names, other_names
            notes.append("The two tables share no path, so films were matched by their file names.")
    rows = {key: row for row, key in enumerate(other_keys)}
    common = [(row, rows[key]) for row, key in enumerate(keys) if key in rows]
    if not common:
        raise SourceInvalid(
            "the two models have no film in common: no path, and no file name that is unique, is in both"
        )
    first, second = (table.rows(part) for table, part in zip((ours, theirs), zip(*common, strict=True), strict=True))
    differing = np.flatnonzero(first.labels != second.labels).tolist()
    if differing:
        raise SourceInvalid(
            f"{len(differing):,} films have another label in the other table, {first.paths[differing[0]]} for one. "
            "Two models can only be compared on the same labels"
        )
    for table, whose in ((ours, "this model"), (theirs, "the other model")):
        if missing := len(table) - len(common):
            notes.append(f"{missing:,} films that {whose} scored have no score of the other, and are left out here.")
    return first, second, tuple(notes)


def _minus(ours: Statistic, theirs: Statistic) -> Statistic:
    """Return the statistic "difference of two models on the same resamples"."""

    def statistic(weights: Float64Array) -> Mapping[str, Float64Array]:
        a, b = ours(weights), theirs(weights)
        return {name: a[name] - b[name] for name in a}

    return statistic


def _differences(
    labels: npt.ArrayLike,
    ours: tuple[Float64Array, float],
    theirs: tuple[Float64Array, float],
    found: Mapping[str, Resampled],
    level: float,
) -> tuple[Difference, ...]:
    positive, _ = checked(labels, ours[0])
    made = []
    if positive.any() and not positive.all():
        made.append(_area_difference(labels, ours[0], theirs[0], found["auroc"], level))
        both = (average_precision(labels, ours[0]), average_precision(labels, theirs[0]))
        made.append(_resampled("auprc", *both, found["auprc"]))
    squared = [float(np.mean((scores - positive) ** 2)) for scores in (ours[0], theirs[0])]
    made.append(_resampled("brier", squared[0], squared[1], found["brier"]))
    here, there = (Confusion.at(threshold, labels, scores) for scores, threshold in (ours, theirs))
    made += [
        _resampled(name, getattr(here, name), getattr(there, name), found[name]) for name in (*PROPORTIONS, *COMPOSITES)
    ]
    return tuple(made)


def _resampled(name: str, ours: float | None, theirs: float | None, found: Resampled) -> Difference:
    if ours is None or theirs is None:
        return Difference(name, ours, theirs, None, None, note="Undefined for one of the two on these films.")
    return Difference(name, ours, theirs, ours - theirs, found.interval, found.interval, note=found.note)


class AreaTest(NamedTuple):
    """DeLong's test of two areas on the same films.

    Attributes:
        error: standard error of the difference.
        z, p: None if the difference has no variance: both models order the films alike, or a class has one film.
    """

    difference: float
    error: float
    z: float | None
    p: float | None


def delong_test(labels: npt.ArrayLike, ours: npt.ArrayLike, theirs: npt.ArrayLike) -> AreaTest:
    """Test whether two areas under the ROC curve, on the same films, differ by more than chance.

    Args:
        labels: shape (n,), 0 or 1; both must occur.
        ours, theirs: shape (n,), the scores of the two models.

    Raises: DegenerateLabels: only one class occurs.
    Source: DeLong et al., Biometrics 44 (1988), 837-845.
    """
    apart = [a - b for a, b in zip(delong_components(labels, ours), delong_components(labels, theirs), strict=True)]
    difference = float(np.mean(apart[0]))
    if min(len(part) for part in apart) < 2:  # noqa: PLR2004 - one film has no variance
        return AreaTest(difference, 0.0, None, None)
    error = math.sqrt(sum(float(np.var(part, ddof=1)) / len(part) for part in apart))
    if error <= 1e-12:  # noqa: PLR2004 - below rounding
        return AreaTest(difference, 0.0, None, None)
    z = difference / error
    return AreaTest(difference, error, z, 2 * NormalDist().cdf(-abs(z)))


def _area_difference(
    labels: npt.ArrayLike, ours: Float64Array, theirs: Float64Array, found: Resampled, level: float
) -> Difference:
    test = delong_test(labels, ours, theirs)
    both = (auroc(labels, ours), auroc(labels, theirs))
    if test.p is None:
        note = "The difference has no variance by DeLong's formula, so there is no test of it."
        return Difference("auroc", *both, both[0] - both[1], found.interval, found.interval, note=note)
    half = normal_quantile(level) * test.error
    value = both[0] - both[1]
    formula = Interval(max(-1.0, value - half), min(1.0, value + half), level, "DeLong, paired")
    return Difference("auroc", *both, value, formula, found.interval, test.p, "DeLong, paired", found.note)


# --------------------------------------------------------------------------- McNemar


def mcnemar(only_ours: int, only_theirs: int) -> tuple[float, float]:
    """Return the two-sided p that two models are right equally often, from films on which just one is right.

    Returns: the exact p, and the mid-p. Both are 1 if the models never differ.
    Source: McNemar, Psychometrika 12 (1947); mid-p: Fagerland, Lydersen and Laake, BMC Medical Research
        Methodology 13:91 (2013).
    """
    n, fewer = only_ours + only_theirs, min(only_ours, only_theirs)
    if not n:
        return 1.0, 1.0
    halves = 2**n  # integers: no rounding for any number of films
    at_most = sum(math.comb(n, k) for k in range(fewer + 1))
    exact = min(1.0, 2 * at_most / halves)
    mid = 1.0 if only_ours == only_theirs else (2 * at_most - math.comb(n, fewer)) / halves
    return exact, min(1.0, mid)


def _mcnemars(labels: npt.ArrayLike, ours: Targets, theirs: Targets) -> tuple[McNemar, ...]:
    positive = np.asarray(labels) == 1
    right, right_there = ours == positive, theirs == positive
    made = []
    for among, part in (("all films", positive | True), ("with pneumonia", positive), ("normal", ~positive)):
        if not part.any():
            continue
        only_ours, only_theirs = (
            int(np.sum(part & one & ~other)) for one, other in ((right, right_there), (right_there, right))
        )
        exact, mid = mcnemar(only_ours, only_theirs)
        made.append(McNemar(among, int(np.sum(part)), only_ours, only_theirs, exact, mid))
    return tuple(made)


# --------------------------------------------------------------------------- beside published counts


def beside_published(
    confusion: Confusion, threshold: float, patients: int, published: Published = ORIGINAL, level: float = LEVEL
) -> Comparison:
    """Compare one model's counts with published ones, as two independent samples.

    Each difference of proportions has Newcombe's interval and Fisher's exact p.

    Source: Newcombe, Statistics in Medicine 17 (1998), 873-890, method 10; Fisher, Journal of the Royal
        Statistical Society 85 (1922).
    """
    there = published.confusion
    unpaired = (
        f"Only counts of {published.name} are published, on {published.films}, not the result of each film: this "
        "comparison is unpaired. It treats the two as measured on different films; on the same films, the true "
        "uncertainty is probably smaller."
    )
    notes = [unpaired, "Every film counts as independent, since nothing is known of the patients behind the counts."]
    if (confusion.positives, confusion.negatives) != (there.positives, there.negatives):
        notes.append(
            f"These are other films: {confusion.positives:,} + {confusion.negatives:,} here, {there.positives:,} + "
            f"{there.negatives:,} there. Part of any difference is that of the films, not of the models."
        )
    return Comparison(
        other=published.name,
        paired=False,
        films=confusion.films,
        patients=patients,
        threshold=threshold,
        other_threshold=None,
        other_point="",
        differences=tuple(_published_difference(name, confusion, there, level) for name in PROPORTIONS),
        mcnemar=(),
        notes=tuple(notes),
    )


def _published_difference(name: str, here: Confusion, there: Confusion, level: float) -> Difference:
    row = PROPORTIONS[name]
    (a, n), (b, m) = ((row.numerator(confusion), row.films(confusion)) for confusion in (here, there))
    if not n or not m:
        values = (getattr(here, name), getattr(there, name))
        return Difference(name, *values, None, None, note="Undefined for one of the two.")
    p = fisher_exact(a, n - a, b, m - b)
    return Difference(
        name, a / n, b / m, a / n - b / m, difference_interval(a, n, b, m, level), None, p, "Fisher, unpaired"
    )


def difference_interval(a: int, n: int, b: int, m: int, level: float = LEVEL) -> Interval:
    """Return Newcombe's hybrid score interval of ``a / n - b / m``, two independent proportions."""
    first, second = wilson_interval(a, n, level), wilson_interval(b, m, level)
    p, q = a / n, b / m
    low = p - q - math.hypot(p - first.low, second.high - q)
    high = p - q + math.hypot(first.high - p, q - second.low)
    return Interval(max(-1.0, low), min(1.0, high), level, "Newcombe, unpaired")


def fisher_exact(a: int, b: int, c: int, d: int) -> float:
    """Return Fisher's two-sided p of the table [[a, b], [c, d]]: the sum over all no more likely tables."""
    first, called, total = a + b, a + c, a + b + c + d

    def log_chance(k: int) -> float:
        return _log_choose(first, k) + _log_choose(total - first, called - k) - _log_choose(total, called)

    bound = log_chance(a) + 1e-7  # equally likely tables differ by rounding only
    possible = range(max(0, called - (total - first)), min(first, called) + 1)
    return min(1.0, sum(math.exp(chance) for k in possible if (chance := log_chance(k)) <= bound))


def _log_choose(n: int, k: int) -> float:
    return math.lgamma(n + 1) - math.lgamma(k + 1) - math.lgamma(n - k + 1)


# --------------------------------------------------------------------------- subgroups

MAX_SUBGROUPS: Final = 12  # a column with more values than this names films rather than groups


@dataclass(frozen=True, slots=True)
class Subgroup:
    """The figures of one model on a subgroup.

    Attributes:
        column, value: the column and the value that define the subgroup.
        compared_with: if only films with pneumonia have such a value, all the normal films are added.
        patients: number of different patients.
        measures: auroc, sensitivity, specificity, as far as they are defined.
    """

    column: str
    value: str
    compared_with: str
    positives: int
    negatives: int
    patients: int
    measures: tuple[Measure, ...]

    def measure(self, name: str) -> Measure:
        """Return the figure of that name. Raises: KeyError."""
        return {measure.name: measure for measure in self.measures}[name]


@dataclass(frozen=True, slots=True, eq=False)
class SubgroupFilms:
    """Some of the films, before any figure is measured.

    Attributes:
        joined: whether all the normal films were added because no normal film has a value.
        films: shape (n,), indices of the films in the table.
    """

    column: str
    value: str
    joined: bool
    films: Targets

    @property
    def prefix(self) -> str:
        """Prefix of this part's figures among those that are resampled together."""
        return f"{self.column}\0{self.value}\0"


def subgroups_of(table: ScoreTable) -> tuple[SubgroupFilms, ...]:
    """Return the parts into which each column divides the films; a column of too many values has none."""
    found = []
    for column, values in table.columns.items():
        texts = np.array(values, dtype=np.str_)
        kinds = sorted({value for value in values if value})
        if not 1 <= len(kinds) <= MAX_SUBGROUPS:
            continue
        joined = not np.any((texts != "") & (table.labels == 0))
        found += [
            SubgroupFilms(column, kind, joined, (texts == kind) | (joined & (table.labels == 0))) for kind in kinds
        ]
    return tuple(found)


def statistics_of(part: SubgroupFilms, table: ScoreTable, threshold: float) -> tuple[Statistic, ...]:
    """Return the statistics of a part to resample; resamples draw patients of the whole table."""
    labels, scores = table.labels[part.films], table.probabilities[part.films]
    return tuple(
        _of_films(part.films, statistic)
        for statistic in (areas(labels, scores, part.prefix), rates(threshold, labels, scores, part.prefix))
    )


def _of_films(films: Targets, statistic: Statistic) -> Statistic:
    def of_part(weights: Float64Array) -> Mapping[str, Float64Array]:
        return statistic(weights[:, films])

    return of_part


def subgroup(
    part: SubgroupFilms, table: ScoreTable, threshold: float, level: float, resampled: Mapping[str, Resampled]
) -> Subgroup:
    """Measure the figures of one part."""
    films = table.where(part.films)
    confusion = Confusion.at(threshold, films.labels, films.probabilities)
    return Subgroup(
        column=part.column,
        value=part.value,
        compared_with="all normal films" if part.joined and confusion.negatives else "",
        positives=confusion.positives,
        negatives=confusion.negatives,
        patients=int(films.groups.max()) + 1,
        measures=(
            area(films.labels, films.probabilities, level, resampled[f"{part.prefix}auroc"]),
            *(
                proportion(name, confusion, level, resampled[f"{part.prefix}{name}"])
                for name in ("sensitivity", "specificity")
            ),
        ),
    )
