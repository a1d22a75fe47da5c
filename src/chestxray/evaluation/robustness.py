"""Stress validation: what is left of a model's figures when its films come from another place.

One row a shift of ``shifts.SHIFTS``, and one for the films as they are. The mean over the shifts and the worst of
them say more about the next hospital than clean films of this one do.

Shifts move both classes alike, so they cannot show a model that tells them apart by what must not matter. Exchanges
(``exchange.EXCHANGES``) can: how much further the figures fall with donors of the other class than with donors of a
film's own is the reliance on what was exchanged.
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
from chestxray.images.exchange import EXCHANGED_FROM, EXCHANGES, OTHER, OWN, condition, donors_of, exchanged
from chestxray.images.preprocess import Plane, preprocess
from chestxray.images.shifts import SHIFTS, shifted
from chestxray.inference.batch import GROUP
from chestxray.inference.predictor import Predictor
from chestxray.metrics.calibration import Calibration, calibrated
from chestxray.metrics.intervals import (
    LEVEL,
    Interval,
    Measure,
    Statistic,
    area,
    areas,
    bootstrap,
    proportion,
    rates,
)
from chestxray.metrics.metrics import Confusion, auroc
from chestxray.progress import ProgressCallback, no_progress
from chestxray.schema import Film, OperatingPoint, Preprocessing

CLEAN: Final = "clean"
DESCRIPTIONS: Final = {CLEAN: "as they are", **{shift.name: shift.what for shift in SHIFTS}}

Logits = Mapping[str, npt.NDArray[np.floating[Any]]]
"""Log-odds of the same films, shape (n,), by the name of the shift or by that of the exchange and its donors' class;
``CLEAN`` for the films as they are."""


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
    for name, values in _without_exchanges(logits).items():
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
    found = [auroc(labels, values) for name, values in _without_exchanges(logits).items() if name != CLEAN]
    return Stress(point.name, tuple(rows), float(np.mean(found)))


def _without_exchanges(logits: Logits) -> Logits:
    exchanges = {condition(*pair) for pair in EXCHANGED_FROM}
    return {name: values for name, values in logits.items() if name not in exchanges}


@dataclass(frozen=True, slots=True)
class UnderExchange:
    """One thing that must not matter, exchanged.

    Attributes:
        exchange, what: its name and its description.
        trained: whether recipes may exchange it in training too, which flatters these figures.
        other, own: AUROC with donors of the other class, and of a film's own.
        gap: ``own - other``: how much the model relied on it. ``gap_interval`` is by resampling patients.
        sensitivity, specificity: with donors of the other class, at the operating point.
    """

    exchange: str
    what: str
    trained: bool
    other: Measure
    own: Measure
    gap: float
    gap_interval: Interval | None
    sensitivity: Measure
    specificity: Measure


@dataclass(frozen=True, slots=True)
class Reliance:
    """What a model relied on that must not matter.

    Attributes:
        point: the operating point that sensitivities and specificities belong to.
        rows: one an exchange.
        sensitivity, specificity: at that point, over the films as they are, shifted and exchanged together, each way of
            seeing a film counting alike; their intervals are by resampling patients.
    """

    point: str
    rows: tuple[UnderExchange, ...]
    sensitivity: Measure
    specificity: Measure

    @property
    def worst(self) -> UnderExchange:
        """The exchange with the largest gap; of equals the first."""
        return max(self.rows, key=lambda row: row.gap)

    def to_json(self) -> dict[str, Any]:
        """Plain values, for ``metrics.json``."""
        return {**dataclasses.asdict(self), "worst": self.worst.exchange}


def reliance(
    labels: npt.ArrayLike,
    patients: Sequence[str],
    logits: Logits,
    calibration: Calibration,
    point: OperatingPoint,
    level: float = LEVEL,
) -> Reliance:
    """How much a model relies on what must not matter.

    Args:
        labels: shape (n,), 0 or 1; both must occur.
        patients: n names, "" where unknown, in which case a film stands for itself.
        logits: one entry for each of ``EXCHANGED_FROM``; further ones count for the figures over all.
        calibration: of the model.
        point: whose threshold counts.

    Raises: DataError, DegenerateLabels.
    """
    groups = _groups(patients)
    rows = []
    for one in EXCHANGES:
        other, own = (logits[condition(one, of)] for of in (OTHER, OWN))
        resampled = bootstrap([areas(labels, other, "other_"), areas(labels, own, "own_")], groups, level=level)
        gap = bootstrap([_difference(areas(labels, own), areas(labels, other))], groups, level=level)["gap"]
        confusion = Confusion.at(point.threshold, labels, calibrated(other, *calibration))
        rows.append(
            UnderExchange(
                exchange=one.name,
                what=one.what,
                trained=one.trained,
                other=area(labels, other, level, resampled["other_auroc"]),
                own=area(labels, own, level, resampled["own_auroc"]),
                gap=auroc(labels, own) - auroc(labels, other),
                gap_interval=gap.interval,
                sensitivity=proportion("sensitivity", confusion, level),
                specificity=proportion("specificity", confusion, level),
            )
        )
    every_label, every_logit = pooled(labels, logits)
    every_probability = calibrated(every_logit, *calibration)
    over_all = Confusion.at(point.threshold, every_label, every_probability)
    statistic = rates(point.threshold, every_label, every_probability)
    by_patient = bootstrap([statistic], np.tile(groups, len(logits)), level=level)
    figures = {
        name: Measure(
            name,
            proportion(name, over_all, level).value,
            by_patient[name].interval,
            films=len(groups),
            by_patient=by_patient[name].interval,
            note=f"over {len(logits)} ways of seeing each film",
        )
        for name in ("sensitivity", "specificity")
    }
    return Reliance(point.name, tuple(rows), **figures)


def _difference(own: Statistic, other: Statistic) -> Statistic:
    return lambda weights: {"gap": own(weights)["auroc"] - other(weights)["auroc"]}


def _groups(patients: Sequence[str]) -> npt.NDArray[np.int64]:
    """The patient of each film, counted from 0; a film of an unknown one is alone."""
    names = [patient or f"film {index}" for index, patient in enumerate(patients)]
    groups: npt.NDArray[np.int64] = np.unique(np.array(names), return_inverse=True)[1]
    return groups


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


def predict_under_stress(
    predictor: Predictor, films: Sequence[Film], on_progress: ProgressCallback = no_progress, workers: int | None = None
) -> tuple[Stress, Reliance]:
    """The figures at the bundle's default operating point: as the films are, under every shift and exchange.

    The gate is not asked: the question is what the network makes of such films. Donors are other films among these.

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
    conditions = len(SHIFTS) + len(EXCHANGED_FROM)
    for index, shift in enumerate(SHIFTS, start=1):
        logits[shift.name] = _logits(predictor, shifted(planes, keys, shift))
        on_progress(index * len(films), conditions * len(films))
    names, labels = [(film.sha256, film.patient_id) for film in films], labels_of(films)
    for index, (one, of) in enumerate(EXCHANGED_FROM, start=len(SHIFTS) + 1):
        donors = donors_of(names, labels, names, labels, one, of)
        logits[condition(one, of)] = _logits(predictor, exchanged(planes, planes[donors], one, donors >= 0))
        on_progress(index * len(films), conditions * len(films))
    calibration, point = Calibration(info.temperature, info.bias), info.operating_point()
    stress = under_shifts(labels, logits, calibration, point)
    return stress, reliance(labels, [film.patient_id for film in films], logits, calibration, point)


def _plane(film: Film, preprocessing: Preprocessing) -> Plane:
    return preprocess(read_film(film), name_of(film), *preprocessing.size, preprocessing.resize, preprocessing.levels)


def _logits(predictor: Predictor, planes: npt.NDArray[np.uint8]) -> npt.NDArray[np.float64]:
    batches = np.array_split(planes, -(-len(planes) // GROUP))
    return np.concatenate([predictor.logits(batch)[0] for batch in batches]).astype(np.float64)
