"""A model on audited films: unchanged, where both classes were acquired alike, and group by group."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from chestxray.arrays import BoolArray, Float64Array, Int64Array
from chestxray.data.audit import FEWEST, AcquisitionGroup, Audit
from chestxray.data.shortcuts import overlap_weights
from chestxray.errors import SourceInvalid
from chestxray.metrics.intervals import Measure, clustered_area, effective_number
from chestxray.schema import Label


@dataclass(frozen=True, slots=True)
class Overlap:
    """A model's scores on all films, and on films where both classes were acquired alike.

    Attributes:
        plain, weighted: AUROC with the interval by patient.
        effective: number of equally weighted films behind the weighted figure, by class.
        groups: AUROC of each group of films acquired alike, by its number, with all films of the class of which it has
            too few; the lowest first. Only groups of at least ``FEWEST`` patients.
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
        if len(np.unique(patients[of_class])) < FEWEST:
            raise SourceInvalid(
                f"the scores hold films of {len(np.unique(patients[of_class]))} audited patients that are "
                f"{label.value}; {FEWEST} are needed. Give scores of the audited films, by the same paths"
            )
    values = np.array([scores[found.paths[row]] for row in rows])
    weights = overlap_weights(labels, found.probabilities[rows])
    of_every_film = np.full(len(found.paths), np.nan)
    of_every_film[rows] = values
    of_groups = []
    for group in found.groups:
        measure = group_measure(found, group, rows, of_every_film)
        if measure is not None:
            of_groups.append((group.number, measure))
    return Overlap(
        plain=_area(labels, values, patients),
        weighted=_area(labels, values, patients, weights),
        effective={
            Label.NORMAL.value: round(effective_number(weights[~labels]), 1),
            Label.PNEUMONIA.value: round(effective_number(weights[labels]), 1),
        },
        groups=tuple(sorted(of_groups, key=lambda item: item[1].value or 0.0)),
        missing=len(found.paths) - len(rows),
    )


def group_measure(found: Audit, group: AcquisitionGroup, rows: Int64Array, scores: Float64Array) -> Measure | None:
    """Measure a model on a group of films acquired alike; if it has too few of a class, use all films of the class.

    Args:
        rows: the audited films to use, among them some of the group.
        scores: scores of all audited films, shape (n,); used at ``rows``.

    Returns: AUROC with its interval by patient; None with fewer than ``FEWEST`` patients of a class.
    """
    labels, patients = found.labels[rows], found.patient_of[rows]
    inside = found.group_of[group.kind][rows] == group.number
    for of_class in (labels, ~labels):
        if len(np.unique(patients[inside & ~of_class])) < FEWEST <= len(np.unique(patients[inside & of_class])):
            inside = (inside & of_class) | ~of_class
    if any(len(np.unique(patients[inside & of])) < FEWEST for of in (labels, ~labels)):
        return None
    return _area(labels[inside], scores[rows][inside], patients[inside])


def _area(
    labels: BoolArray, values: Float64Array, patients: Int64Array, weights: Float64Array | None = None
) -> Measure:
    value, interval = clustered_area(labels, values, patients, weights)
    return Measure("auroc", value, interval, len(labels), by_patient=interval)
