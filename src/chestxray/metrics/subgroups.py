"""The same model on parts of the films: the values of each further column of the table."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

import numpy as np

from chestxray.metrics.intervals import Measure, Resampled, Statistic, area, areas, proportion, rates
from chestxray.metrics.metrics import Confusion, FloatArray, Targets
from chestxray.metrics.scores import ScoreTable

MAX_SUBGROUPS: Final = 12  # a column with more values than that names films rather than groups


@dataclass(frozen=True, slots=True)
class Subgroup:
    """The same model on a part of the films.

    Attributes:
        column, value: which part.
        compared_with: where only films with pneumonia have such a value, the normal films all join them.
        patients: how many different ones.
        measures: auroc, sensitivity, specificity, where the part defines them.
    """

    column: str
    value: str
    compared_with: str
    positives: int
    negatives: int
    patients: int
    measures: tuple[Measure, ...]

    def measure(self, name: str) -> Measure:
        """The figure of that name. Raises: KeyError."""
        return {measure.name: measure for measure in self.measures}[name]


@dataclass(frozen=True, slots=True, eq=False)
class Part:
    """Some of the films, before anything was measured on them.

    Attributes:
        joined: whether the normal films all belong to it because no normal film has a value.
        films: shape (n,), which of the table's films these are.
    """

    column: str
    value: str
    joined: bool
    films: Targets

    @property
    def prefix(self) -> str:
        """Of its figures among those that are resampled together."""
        return f"{self.column}\0{self.value}\0"


def parts_of(table: ScoreTable) -> tuple[Part, ...]:
    """The parts that each column divides the films into; a column of many values names films and has none."""
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
    """What to resample of a part, whole patients of the whole table being drawn."""
    labels, scores = table.labels[part.films], table.probabilities[part.films]
    return tuple(
        _of_films(part.films, statistic)
        for statistic in (areas(labels, scores, part.prefix), rates(threshold, labels, scores, part.prefix))
    )


def _of_films(films: Targets, statistic: Statistic) -> Statistic:
    def of_part(weights: FloatArray) -> Mapping[str, FloatArray]:
        return statistic(weights[:, films])

    return of_part


def subgroup(
    part: Part, table: ScoreTable, threshold: float, level: float, resampled: Mapping[str, Resampled]
) -> Subgroup:
    """Measure one part."""
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
