"""Stress validation: what is left of a model's figures when its films come from another place.

One row a shift of ``shifts.SHIFTS``, and one for the films as they are. The mean over the shifts and the worst of
them say more about the next hospital than clean films of this one do.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from chestxray.evaluation.calibration import Calibration, calibrated
from chestxray.evaluation.intervals import LEVEL, Measure
from chestxray.evaluation.measures import area, proportion
from chestxray.evaluation.metrics import Confusion, auroc
from chestxray.evaluation.shifts import SHIFTS
from chestxray.schema import OperatingPoint

CLEAN: Final = "clean"
DESCRIPTIONS: Final = {CLEAN: "as they are", **{shift.name: shift.what for shift in SHIFTS}}

Logits = Mapping[str, npt.NDArray[np.floating[Any]]]
"""Log-odds of the same films, shape (n,), by the name of the shift; ``CLEAN`` for the films as they are."""


@dataclass(frozen=True, slots=True)
class UnderShift:
    """One row.

    Attributes:
        shift, what: its name and its description.
        auroc, sensitivity, specificity: on the same films each time.
    """

    shift: str
    what: str
    auroc: Measure
    sensitivity: Measure
    specificity: Measure


@dataclass(frozen=True, slots=True)
class Stress:
    """A model under every shift.

    Attributes:
        point: the operating point that sensitivity and specificity belong to.
        rows: the films as they are first, then one row a shift.
        mean_auroc: over the shifts, without the films as they are.
    """

    point: str
    rows: tuple[UnderShift, ...]
    mean_auroc: float

    @property
    def worst(self) -> UnderShift:
        """The shift with the lowest AUROC; of equals the first."""
        return min(self.rows[1:], key=lambda row: row.auroc.value or 0.0)

    def to_json(self) -> dict[str, Any]:
        """Plain values, for ``metrics.json``."""
        return {**dataclasses.asdict(self), "worst": self.worst.shift}


def under_shifts(
    labels: npt.ArrayLike, logits: Logits, calibration: Calibration, point: OperatingPoint, level: float = LEVEL
) -> Stress:
    """The figures of one model under every shift.

    Args:
        labels: shape (n,), 0 or 1; both must occur.
        logits: one entry a shift, and ``CLEAN``.
        calibration: of the model.
        point: whose threshold counts.

    Raises: DataError, DegenerateLabels.
    """
    rows = []
    for name, values in logits.items():
        probabilities = calibrated(values, *calibration)
        confusion = Confusion.at(point.threshold, labels, probabilities)
        rows.append(
            UnderShift(
                shift=name,
                what=DESCRIPTIONS[name],
                auroc=area(labels, values, level),
                sensitivity=proportion("sensitivity", confusion, level),
                specificity=proportion("specificity", confusion, level),
            )
        )
    areas = [auroc(labels, values) for name, values in logits.items() if name != CLEAN]
    return Stress(point.name, tuple(rows), float(np.mean(areas)))


def pooled(labels: npt.ArrayLike, logits: Logits) -> tuple[npt.NDArray[np.int8], npt.NDArray[np.float64]]:
    """Every film under every shift and as it is, as one set: labels and logits of shape (n * shifts,)."""
    values = np.concatenate([np.asarray(one, dtype=np.float64) for one in logits.values()])
    return np.tile(np.asarray(labels, dtype=np.int8), len(logits)), values


def measured_again(
    points: Sequence[OperatingPoint], labels: npt.ArrayLike, probabilities: npt.ArrayLike
) -> tuple[OperatingPoint, ...]:
    """Operating points that were chosen on pooled films, with what they reach on the films as they are.

    A pool counts each film once a shift; the counts that a reader sees are to be films.
    """
    again = []
    for point in points:
        reached = Confusion.at(point.threshold, labels, probabilities)
        again.append(
            dataclasses.replace(
                point,
                sensitivity=reached.sensitivity or 0.0,
                specificity=reached.specificity or 0.0,
                positives=reached.positives,
                negatives=reached.negatives,
            )
        )
    return tuple(again)
