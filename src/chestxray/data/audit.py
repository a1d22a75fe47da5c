"""Audit: films that a network could tell apart without looking at the lungs, and what to do about them.

``audit`` answers three questions about labelled films: how well irrelevant features predict their class and their
split; which films were acquired alike; and which of these groups hold one class only.
"""

from __future__ import annotations

import dataclasses
import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from chestxray.arguments import arguments_checked
from chestxray.arrays import BoolArray, Float32Array, Float64Array, Int64Array
from chestxray.data.shortcuts import (
    MOST_WORDS,
    PICTURE_GROUPS,
    Acquisition,
    Features,
    clusters,
    described,
    digest,
    folds_of,
    measure,
    out_of_fold,
    overlap_weights,
    require_trees,
)
from chestxray.errors import SourceInvalid
from chestxray.files import json_values
from chestxray.metrics.intervals import Measure, clustered_area, effective_number
from chestxray.metrics.metrics import midranks
from chestxray.progress import ProgressCallback, no_progress
from chestxray.schema import Film, Label, Split, rows_of

TITLES: Final = {
    "frame": "Frame and border",
    "marks": "Burnt-in text and markers",
    "grey": "Grey levels of the border",
    "sharpness": "Sharpness and compression of the border",
    "size": "Size and aspect",
    "file": "File metadata",
    "together": "All that the border and the size show",
}
ALARM: Final = 0.6  # a group of features is reported if the whole interval of its AUROC is above this
NEARLY: Final = 0.95  # AUROC from which the report says that the classes are told apart almost perfectly
MIN_PATIENTS: Final = 10  # patients of each class; with fewer no figure is given
HANDFUL: Final = 5  # patients of a class; with fewer in a group of films acquired alike, the group is a risk
SURE: Final = 0.001  # probability, over all groups together, of a false risk if class and group are unrelated
SMALLEST: Final = 20  # films that share a value of a column and count as acquired alike
MOST_KINDS: Final = 12  # values of a column; with more, its values do not become groups
EXAMPLES_A_GROUP: Final = 12  # films of a group on the contact sheet

REMEDIES: Final = {
    "marks": "Collect {rarer} films of the same unit, or cover the marks of all films alike (crop or paint the border) "
    "before training; train with marks exchanged between the classes.",
    "exposure": "Collect {rarer} films taken in this way, leave these out of training, or train with borders and grey "
    "levels exchanged between the classes.",
    "": "Collect {rarer} films with this value, or leave these out of training.",
}


@dataclass(frozen=True, slots=True)
class Separability:
    """How well one group of features tells two sets of films apart, out of fold.

    Attributes:
        name: of a group of ``data.shortcuts``, "together", or "column NAME" for a column of the manifest.
        title: its name for people.
        measure: the AUROC with its interval by patient; without a value, and with a note, if there is none.
    """

    name: str
    title: str
    measure: Measure

    @property
    def is_alarm(self) -> bool:
        """True if the whole interval is above ``ALARM``."""
        return self.measure.interval is not None and self.measure.interval.low > ALARM

    def __str__(self) -> str:
        """Format the figure: ``Frame and border: AUROC 0.98 (0.98 to 0.99; 5,190 films)``."""
        return f"{self.title}: {self.measure.note if self.measure.value is None else _figure(self.measure)}"


@dataclass(frozen=True, slots=True)
class AcquisitionGroup:
    """A group of films that were acquired alike.

    Attributes:
        number: from 1, the purest and largest first.
        kind: what the films share: "marks", "exposure" (frame, grey levels and sharpness), or the name of a column.
        title: what distinguishes the group, in words.
        normal, pneumonia: films of each class.
        normal_patients, pneumonia_patients: patients of each class.
        risk: the risk of the group and what to do, in sentences; empty if there is none.
        examples: paths of some of its films.
    """

    number: int
    kind: str
    title: str
    normal: int
    pneumonia: int
    normal_patients: int
    pneumonia_patients: int
    risk: str
    examples: tuple[str, ...]

    @property
    def films(self) -> int:
        """Number of films of both classes."""
        return self.normal + self.pneumonia


@dataclass(frozen=True, slots=True)
class SplitDifference:
    """How well two splits are told apart within a class; ideally they are not.

    Attributes:
        one, other: the splits.
        separability: the first is "together"; the groups of features follow if that one is an alarm.
    """

    one: str
    other: str
    separability: tuple[Separability, ...]


@dataclass(frozen=True, slots=True, eq=False)
class Audit:
    """The result of an audit.

    Attributes:
        normal, pneumonia: films of each class that were audited.
        patients: number of different patients; a film without a patient counts as one.
        unlabelled, skipped: number of films without a label; names of films that cannot be read, and why.
        separability: how well each group of features separates the classes.
        splits: how well the same features separate the splits.
        groups: groups of films acquired alike, the purest and largest first.
        columns_left_out: columns of the manifest that name films, not kinds of films.
        effective: number of equally weighted films of each class in the overlap of the classes.
        paths, labels, probabilities: of each film; the probability of pneumonia by border and size, out of fold, as if
            both classes were equally common; shape (n,).
        patient_of: the patient of each film, counted from 0; shape (n,).
        group_of: by kind, the number of each film's group, 0 for none; shape (n,).
    """

    normal: int
    pneumonia: int
    patients: int
    unlabelled: int
    skipped: tuple[tuple[str, str], ...]
    separability: tuple[Separability, ...]
    splits: tuple[SplitDifference, ...]
    groups: tuple[AcquisitionGroup, ...]
    columns_left_out: tuple[str, ...]
    effective: dict[str, float]
    paths: tuple[str, ...]
    labels: BoolArray
    probabilities: Float64Array
    patient_of: Int64Array
    group_of: Mapping[str, Int64Array]

    @property
    def alarms(self) -> tuple[Separability, ...]:
        """Groups of features that separate the classes, the strongest first."""
        found = [group for group in self.separability if group.is_alarm]
        return tuple(sorted(found, key=lambda group: group.measure.value or 0.0, reverse=True))

    @property
    def risks(self) -> tuple[AcquisitionGroup, ...]:
        """Groups of films with hardly any film of one class."""
        return tuple(group for group in self.groups if group.risk)

    @property
    def words(self) -> tuple[str, ...]:
        """Findings in sentences, the most important first."""
        return tuple(_words(self))

    def exceeds(self, limit: float) -> tuple[Separability, ...]:
        """Return the groups of features whose AUROC is above a limit, and whose interval is above one half."""
        return tuple(
            group
            for group in self.separability
            if (group.measure.value or 0.0) > limit
            and group.measure.interval is not None
            and group.measure.interval.low > 1 / 2
        )

    def to_json(self) -> dict[str, Any]:
        """Return the findings as plain values; the rows of the films are in ``films.csv``."""
        rows = {"paths", "labels", "probabilities", "patient_of", "group_of"}
        fields = (field.name for field in dataclasses.fields(self) if field.name not in rows)
        plain = {name: json_values(getattr(self, name)) for name in fields}
        return {"words": list(self.words), **plain}


@arguments_checked
def audit(films: Sequence[Film], on_progress: ProgressCallback = no_progress, workers: int | None = None) -> Audit:
    """Measure how well irrelevant features tell labelled films apart: frame, marks, grey levels, files.

    Every film is opened once. Time grows with their number; memory stays at a kilobyte a film.

    Args:
        films: rows of a manifest; of a cleaned manifest, only accepted ones count. Rows without a label are left out.
        on_progress: called with (films done, films in all).
        workers: number of processes; by default one for each core.

    Raises: SourceInvalid, if no labelled film can be read; MissingExtra.
    """
    require_trees()  # before every film is opened, not after
    usable = [film for film in rows_of(films) if film.is_accepted or not film.verdict]
    labelled = [film for film in usable if film.label]
    if not labelled:
        raise SourceInvalid(
            "no film that could be audited has a label. Give a manifest with the column label, or folders by class"
        )
    found = measure(labelled, on_progress, workers)
    if not found.films:
        name, reason = found.skipped[0]
        raise SourceInvalid(f"none of the {len(labelled):,} labelled films can be read; the first: {name}: {reason}")
    labels = np.array([film.label == Label.PNEUMONIA for film in found.films])
    patients = found.patients
    columns, left_out = _columns(found)
    rows, probabilities = [], np.full(len(labels), 0.5)
    for name, title, features in _features(found, columns):
        row, scores = _separability(name, title, features, labels, patients)
        rows.append(row)
        if name == "together":
            probabilities = 1 / (1 + np.exp(-scores.clip(-30, 30)))
    groups, group_of = _groups(found, labels, patients, columns)
    return Audit(
        normal=int((~labels).sum()),
        pneumonia=int(labels.sum()),
        patients=len(np.unique(patients)),
        unlabelled=len(usable) - len(labelled),
        skipped=found.skipped,
        separability=tuple(rows),
        splits=tuple(_splits(found, labels, patients)),
        groups=groups,
        columns_left_out=left_out,
        effective=_effective(labels, overlap_weights(labels, probabilities)),
        paths=tuple(film.path for film in found.films),
        labels=labels,
        probabilities=probabilities,
        patient_of=patients,
        group_of=group_of,
    )


# --------------------------------------------------------------------------- told apart


def _columns(found: Acquisition) -> tuple[dict[str, Features], tuple[str, ...]]:
    """Return each further column of the manifest as features, and the names of columns that name films."""
    values: dict[str, list[str]] = {}
    for row, film in enumerate(found.films):
        for name, value in film.extra:
            values.setdefault(name, [""] * len(found.films))[row] = value
    columns, left_out = {}, []
    for name, texts in sorted(values.items()):
        numbers = _as_numbers(texts)
        if numbers is not None:
            columns[name] = Features(numbers[:, None])
        elif len(set(texts)) > min(MOST_WORDS, len(texts) // 3):
            left_out.append(name)
        else:
            columns[name] = Features(np.empty((len(texts), 0)), (tuple(texts),))
    return columns, tuple(left_out)


def _as_numbers(texts: Sequence[str]) -> Float64Array | None:
    """Return the column as numbers, NaN for empty cells; None if a cell is no number."""
    try:
        return np.array([float(text) if text else np.nan for text in texts])
    except ValueError:
        return None


def _features(found: Acquisition, columns: Mapping[str, Features]) -> Iterator[tuple[str, str, Features]]:
    """Yield every group of features by name and title, in the order of the report."""
    for name in (*PICTURE_GROUPS, "size"):
        yield name, TITLES[name], Features(found.numbers[name])
    yield "together", TITLES["together"], Features(_learnable_features(found))
    yield "file", TITLES["file"], Features(found.numbers["file"], tuple(found.texts.values()))
    for name, features in columns.items():
        yield f"column {name}", f"The column {name}", features


def _learnable_features(found: Acquisition) -> Float32Array:
    """Return everything that a network could learn from the pixels and the size of a film, shape (n, features)."""
    return np.concatenate([found.numbers[name].astype(np.float32) for name in (*PICTURE_GROUPS, "size")], axis=1)


def _separability(
    name: str,
    title: str,
    features: Features,
    targets: BoolArray,
    patients: Int64Array,
    classes: BoolArray | None = None,
) -> tuple[Separability, Float64Array]:
    """Measure how well features tell two sets of films apart; return the figure and the scores behind it.

    Args:
        classes: if given, films are compared within their class only.
    """
    fewest = min(len(np.unique(patients[targets])), len(np.unique(patients[~targets])))
    note = "no figure: it is the same in all films" if features.is_constant else ""
    if fewest < MIN_PATIENTS:
        note = f"no figure: of one kind there are films of {fewest} patients, and {MIN_PATIENTS} are needed"
    if note:
        return Separability(name, title, Measure("auroc", None, None, len(targets), note=note)), np.zeros(len(targets))
    fold = folds_of(targets, patients)
    scores = compared = out_of_fold(features, targets, fold)
    if classes is not None:
        compared = np.empty(len(scores))
        for of_class in (classes, ~classes):
            compared[of_class] = midranks(scores[of_class]) / (np.count_nonzero(of_class) + 1)
    return Separability(name, title, _area(targets, compared, patients)), scores


def _splits(found: Acquisition, labels: BoolArray, patients: Int64Array) -> Iterator[SplitDifference]:
    """Compare the training split with each other split, within each class."""
    split_of = np.array([film.split for film in found.films])
    for other in (Split.VAL, Split.TEST):
        rows = np.flatnonzero((split_of == Split.TRAIN) | (split_of == other))
        there = split_of[rows] == other
        if not there.any() or there.all():
            continue
        of_films = (there, patients[rows], labels[rows])
        group = _separability("together", TITLES["together"], Features(_learnable_features(found)[rows]), *of_films)[0]
        more = []
        if group.is_alarm:
            for name in (*PICTURE_GROUPS, "size"):
                part = Features(found.numbers[name][rows])
                more.append(_separability(name, TITLES[name], part, *of_films)[0])
        yield SplitDifference(Split.TRAIN.value, other.value, (group, *more))


# --------------------------------------------------------------------------- films acquired alike

_Candidate = tuple[str, str, BoolArray]  # kind, title and films of a group: shape (n,)


def _groups(
    found: Acquisition, labels: BoolArray, patients: Int64Array, columns: Mapping[str, Features]
) -> tuple[tuple[AcquisitionGroup, ...], dict[str, Int64Array]]:
    """Return films acquired alike, the most informative groups first, and the group of each film by kind."""
    sick = np.bincount(patients, labels) > 0

    def informative(candidate: _Candidate) -> tuple[float, str, str]:
        kind, title, rows = candidate
        members = np.unique(patients[rows])
        return -_likelihood_ratio(int(sick[members].sum()), len(members), float(sick.mean())), kind, title

    candidates = sorted(_candidate_groups(found, columns), key=informative)
    sure = SURE / max(1, len(candidates))
    group_of: dict[str, Int64Array] = {}
    groups = []
    for number, (kind, title, rows) in enumerate(candidates, start=1):
        group_of.setdefault(kind, np.zeros(len(labels), dtype=np.int64))[rows] = number
        groups.append(_group(number, (kind, title, rows), found.films, labels, patients, sure))
    return tuple(groups), group_of


def _candidate_groups(found: Acquisition, columns: Mapping[str, Features]) -> Iterator[_Candidate]:
    """Yield each group of films that share an acquisition or a value of a text."""
    if len(found.films) >= 2 * SMALLEST:
        for kind, cluster in clusters(found).items():
            for which in np.unique(cluster) if cluster.any() else ():  # one group of all the films is no group
                rows = cluster == which
                yield kind, described(kind, found, rows), rows
    texts = {**found.texts, **{name: of.texts[0] for name, of in columns.items() if of.texts}}
    for name, values in texts.items():
        kinds = Counter(filter(None, values))
        if len(set(values)) > 1 and len(kinds) <= MOST_KINDS:
            for value, count in kinds.items():
                if count >= SMALLEST:
                    yield name, f"{name} {value}", np.array(values) == value


def _likelihood_ratio(pneumonia: int, patients: int, share: float) -> float:
    """Return the likelihood-ratio statistic of a group's classes against those of all films, by patient."""
    found = 0.0
    for count, expected in ((pneumonia, share * patients), (patients - pneumonia, (1 - share) * patients)):
        if count and expected:
            found += 2 * count * math.log(count / expected)
    return found


def _group(
    number: int, candidate: _Candidate, films: Sequence[Film], labels: BoolArray, patients: Int64Array, sure: float
) -> AcquisitionGroup:
    """Count the classes of a group, and describe its risk if its share of them is less likely than ``sure``."""
    kind, title, rows = candidate
    share = float((np.bincount(patients, labels) > 0).mean())
    of_class = {Label.NORMAL: rows & ~labels, Label.PNEUMONIA: rows & labels}
    counts = {label: int(of.sum()) for label, of in of_class.items()}
    people = {label: len(np.unique(patients[of])) for label, of in of_class.items()}
    rarer = min(Label, key=lambda label: people[label])
    of_rarer = share if rarer is Label.PNEUMONIA else 1 - share
    risk = ""
    if people[rarer] < HANDFUL and _binomial_tail(people[rarer], len(np.unique(patients[rows])), of_rarer) < sure:
        remedy = REMEDIES.get(kind, REMEDIES[""]).format(rarer=rarer.value)
        risk = (
            f"{int(rows.sum()):,} films acquired alike ({title}), of which {counts[rarer]:,} are {rarer.value}: a "
            f"network can take this for the class. {remedy}"
        )
    examples = sorted((films[row].path for row in np.flatnonzero(rows).tolist()), key=digest)[:EXAMPLES_A_GROUP]
    return AcquisitionGroup(
        number,
        kind,
        title,
        normal=counts[Label.NORMAL],
        pneumonia=counts[Label.PNEUMONIA],
        normal_patients=people[Label.NORMAL],
        pneumonia_patients=people[Label.PNEUMONIA],
        risk=risk,
        examples=tuple(examples),
    )


def _binomial_tail(count: int, of: int, share: float) -> float:
    """Return the probability of at most ``count`` patients of a class, if class and group are unrelated."""
    if not 0.0 < share < 1.0:
        return 1.0
    return sum(
        math.comb(of, k) * math.exp(k * math.log(share) + (of - k) * math.log1p(-share)) for k in range(count + 1)
    )


# --------------------------------------------------------------------------- a model on audited films


@dataclass(frozen=True, slots=True)
class Overlap:
    """A model's scores on all films, and on films where both classes were acquired alike.

    Attributes:
        plain, weighted: AUROC with the interval by patient.
        effective: number of equally weighted films behind the weighted figure, by class.
        groups: AUROC of each group of films acquired alike, by its number, with all films of the class of which it has
            too few; the lowest first. Only groups of at least ``MIN_PATIENTS`` patients.
        missing: audited films that have no score.
    """

    plain: Measure
    weighted: Measure
    effective: dict[str, float]
    groups: tuple[tuple[int, Measure], ...]
    missing: int


@dataclass(frozen=True, slots=True)
class LeftOut:
    """A group of films acquired alike, scored by a network that was trained without the group.

    Attributes:
        group: number of the audit's group.
        title: what distinguishes the group.
        measure: AUROC of the group's films; if it has too few of a class, with the other held-out films of that class.
    """

    group: int
    title: str
    measure: Measure


def overlap(found: Audit, scores: Mapping[str, float]) -> Overlap:
    """Measure a model on audited films: all films, weighted by overlap, and group by group.

    Args:
        found: the audit of the same films.
        scores: scores by networks that were not trained on the film, by path; higher means more suspicious.

    Raises: SourceInvalid, if too few films of one class have a score.
    """
    rows = np.array([row for row, path in enumerate(found.paths) if path in scores], dtype=np.int64)
    labels, patients = found.labels[rows], found.patient_of[rows]
    for label, of_class in ((Label.NORMAL, ~labels), (Label.PNEUMONIA, labels)):
        if len(np.unique(patients[of_class])) < MIN_PATIENTS:
            raise SourceInvalid(
                f"the scores hold films of {len(np.unique(patients[of_class]))} audited patients that are "
                f"{label.value}; {MIN_PATIENTS} are needed. Give scores of the audited films, by the same paths"
            )
    values = np.array([scores[found.paths[row]] for row in rows])
    weights = overlap_weights(labels, found.probabilities[rows])
    of_every_film = np.full(len(found.paths), np.nan)
    of_every_film[rows] = values
    of_groups = [
        (group.number, measure)
        for group in found.groups
        if (measure := group_measure(found, group, rows, of_every_film)) is not None
    ]
    return Overlap(
        plain=_area(labels, values, patients),
        weighted=_area(labels, values, patients, weights),
        effective=_effective(labels, weights),
        groups=tuple(sorted(of_groups, key=lambda item: item[1].value or 0.0)),
        missing=len(found.paths) - len(rows),
    )


def group_measure(found: Audit, group: AcquisitionGroup, rows: Int64Array, scores: Float64Array) -> Measure | None:
    """Measure a model on a group of films acquired alike; if it has too few of a class, use all films of the class.

    Args:
        rows: the audited films to use, among them some of the group.
        scores: scores of all audited films, shape (n,); used at ``rows``.

    Returns: AUROC with its interval by patient; None with fewer than ``MIN_PATIENTS`` patients of a class.
    """
    labels, patients = found.labels[rows], found.patient_of[rows]
    inside = found.group_of[group.kind][rows] == group.number
    for of_class in (labels, ~labels):
        if len(np.unique(patients[inside & ~of_class])) < MIN_PATIENTS <= len(np.unique(patients[inside & of_class])):
            inside = (inside & of_class) | ~of_class
    if any(len(np.unique(patients[inside & of])) < MIN_PATIENTS for of in (labels, ~labels)):
        return None
    return _area(labels[inside], scores[rows][inside], patients[inside])


def _effective(labels: BoolArray, weights: Float64Array) -> dict[str, float]:
    """Return the number of equally weighted films behind a weighted figure, by class."""
    return {
        label.value: round(effective_number(weights[of_class]), 1)
        for label, of_class in ((Label.NORMAL, ~labels), (Label.PNEUMONIA, labels))
        if of_class.any()
    }


def _area(
    labels: BoolArray, values: Float64Array, patients: Int64Array, weights: Float64Array | None = None
) -> Measure:
    """Return the AUROC with its interval by patient."""
    value, interval = clustered_area(labels, values, patients, weights)
    return Measure("auroc", value, interval, len(labels), by_patient=interval)


# --------------------------------------------------------------------------- in words

GROUPS_NAMED: Final = 5  # groups that the sentences name; the others are counted


def _words(found: Audit) -> Iterator[str]:
    measured = [group for group in found.separability if group.measure.value is not None]
    alone = [group for group in found.alarms if group.name != "together"] or list(found.alarms)
    if not measured:
        yield f"Shortcuts cannot be measured: {found.separability[0].measure.note}."
    elif alone:
        best = alone[0].measure
        how = "almost perfectly" if (best.value or 0.0) >= NEARLY else "without the lungs"
        yield (
            f"{alone[0].title} alone separate{'s' if alone[0].name.startswith('column') else ''} pneumonia from normal "
            f"{how}, with {_figure(best)}: a network trained on these films can be right for the wrong reason."
        )
        yield from (f"{group.title}: {_figure(group.measure)}." for group in found.alarms if group is not alone[0])
    else:
        nearest = max(measured, key=lambda group: group.measure.value or 0.0)
        yield (
            "No shortcut was found. Of the properties outside the lungs, "
            f"{nearest.title[0].lower()}{nearest.title[1:]} separates pneumonia from normal best, "
            f"with {_figure(nearest.measure)}."
        )
    for difference in found.splits:
        group = difference.separability[0]
        if group.is_alarm:
            yield (
                f"The splits {difference.one} and {difference.other} were acquired differently: within a class they "
                f"are separated with {_figure(group.measure)}."
            )
    yield from (f"Group {group.number}: {group.risk}" for group in found.risks[:GROUPS_NAMED])
    if len(found.risks) > GROUPS_NAMED:
        yield f"{len(found.risks) - GROUPS_NAMED:,} more groups have fewer than {HANDFUL} patients of one class."


def _figure(measure: Measure) -> str:
    """Format a figure: ``AUROC 0.985 (0.981 to 0.988; 5,190 films)``."""
    return str(measure).replace("auroc", "AUROC", 1)
