"""Figures of one model on subgroups of the films: the values of each further column of the table."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

import numpy as np

from chestxray.arrays import Float64Array
from chestxray.metrics.intervals import Measure, Resampled, Statistic, area, areas, proportion, rates
from chestxray.metrics.metrics import Confusion, Targets
from chestxray.metrics.scores import ScoreTable

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
class Part:
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


def parts_of(table: ScoreTable) -> tuple[Part, ...]:
    """Return the parts into which each column divides the films; a column of too many values has none."""
    found = []
    for column, values in table.columns.items():
        texts = np.array(values, dtype=np.str_)
        kinds = sorted({value for value in values if value})
        if not 1 <= len(kinds) <= MAX_SUBGROUPS:
            continue
        joined = not np.any((texts != "") & (table.labels == 0))
        found += [Part(column, kind, joined, (texts == kind) | (joined & (table.labels == 0))) for kind in kinds]
    return tuple(found)


def statistics_of(part: Part, table: ScoreTable, threshold: float) -> tuple[Statistic, ...]:
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
    part: Part, table: ScoreTable, threshold: float, level: float, resampled: Mapping[str, Resampled]
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
