"""Stress validation: what is left of a model's figures when its films come from another place.

One row a shift of ``shifts.SHIFTS``, and one for the films as they are. The mean over the shifts and the worst of
them say more about the next hospital than clean films of this one do.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from chestxray.data.pack import labels_of
from chestxray.data.parallel import map_in_order
from chestxray.data.sources import name_of, read_film
from chestxray.images.preprocess import Plane, preprocess
from chestxray.images.shifts import SHIFTS, shifted
from chestxray.inference.batch import GROUP
from chestxray.inference.predictor import Predictor
from chestxray.metrics.calibration import Calibration, calibrated
from chestxray.metrics.intervals import LEVEL, Measure, area, proportion
from chestxray.metrics.metrics import Confusion, auroc
from chestxray.progress import ProgressCallback, no_progress
from chestxray.schema import Film, OperatingPoint, Preprocessing

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


def predict_under_shifts(
    predictor: Predictor, films: Sequence[Film], on_progress: ProgressCallback = no_progress, workers: int | None = None
) -> Stress:
    """The figures at the bundle's default operating point, as the films are and under every shift.

    The gate is not asked: the question is what the network makes of such films.

    Args:
        predictor: a bundle.
        films: accepted and labelled; both classes must occur.
        on_progress: called with (films done, films in all), a film counted once a shift.
        workers: processes that read films.

    Raises: FilmError, OSError: a film can no longer be read.
    """
    info = predictor.info
    read = partial(_plane, preprocessing=info.preprocessing)
    planes = np.stack(list(map_in_order(read, films, no_progress, workers)))
    keys = [film.sha256 for film in films]
    logits = {CLEAN: _logits(predictor, planes)}
    for index, shift in enumerate(SHIFTS, start=1):
        logits[shift.name] = _logits(predictor, shifted(planes, keys, shift))
        on_progress(index * len(films), len(SHIFTS) * len(films))
    calibration = Calibration(info.temperature, info.bias)
    return under_shifts(labels_of(films), logits, calibration, info.operating_point())


def _plane(film: Film, preprocessing: Preprocessing) -> Plane:
    return preprocess(read_film(film), name_of(film), *preprocessing.size, preprocessing.resize, preprocessing.levels)


def _logits(predictor: Predictor, planes: npt.NDArray[np.uint8]) -> npt.NDArray[np.float64]:
    batches = np.array_split(planes, -(-len(planes) // GROUP))
    return np.concatenate([predictor.logits(batch)[0] for batch in batches]).astype(np.float64)
