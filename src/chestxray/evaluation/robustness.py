"""Stress validation: the figures of a model on films as another hospital might make them.

There is one row for each shift of ``shifts.SHIFTS``, and one for the unchanged films. The mean over the shifts and the
worst shift predict the figures at the next hospital better than the unchanged films do.

Shifts change both classes alike, so they cannot reveal a model that tells the classes apart by an irrelevant property.
Exchanges (``exchange.EXCHANGES``) can: the figures fall further with donors of the other class than with donors of a
film's own class, and the gap is the reliance on the exchanged property.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from chestxray.arrays import Float64Array, Int64Array, UInt8Array
from chestxray.data.pack import labels_of
from chestxray.data.parallel import map_in_order
from chestxray.data.sources import name_of, read_film
from chestxray.images.preprocess import preprocess
from chestxray.images.shifts import (
    EXCHANGED_FROM,
    EXCHANGES,
    OTHER,
    OWN,
    SHIFTS,
    condition,
    donors_of,
    exchanged,
    shifted,
)
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
    """The figures under one shift.

    Attributes:
        shift, what: its name and its description.
        auroc, sensitivity, specificity: figures on the same films under every shift.
    """

    shift: str
    what: str
    auroc: Measure
    sensitivity: Measure
    specificity: Measure


@dataclass(frozen=True, slots=True)
class Stress:
    """The figures of a model under every shift.

    Attributes:
        point: the operating point of sensitivity and specificity.
        rows: the unchanged films first, then one row for each shift.
        mean_auroc: mean over the shifts, without the unchanged films.
    """

    point: str
    rows: tuple[UnderShift, ...]
    mean_auroc: float

    @property
    def worst(self) -> UnderShift:
        """Shift with the lowest AUROC; the first one if several are equal."""
        return min(self.rows[1:], key=lambda row: row.auroc.value or 0.0)

    def to_json(self) -> dict[str, Any]:
        """Return plain values for ``metrics.json``."""
        return {**dataclasses.asdict(self), "worst": self.worst.shift}


def under_shifts(
    labels: npt.ArrayLike, logits: Logits, calibration: Calibration, point: OperatingPoint, level: float = LEVEL
) -> Stress:
    """Compute the figures of one model under every shift.

    Args:
        labels: shape (n,), 0 or 1; both must occur.
        logits: one entry for each shift, and ``CLEAN``.
        calibration: the model's calibration.
        point: the operating point whose threshold is used.

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
    """The figures with one irrelevant property exchanged.

    Attributes:
        exchange, what: its name and its description.
        trained: whether recipes may exchange it in training too, which flatters these figures.
        other, own: AUROC with donors of the other class, and of the film's own class.
        gap: ``own - other``: the model's reliance on the property. ``gap_interval`` is by resampling patients.
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
    """The reliance of a model on irrelevant properties.

    Attributes:
        point: the operating point of sensitivities and specificities.
        rows: one for each exchange.
        sensitivity, specificity: at that point, over unchanged, shifted and exchanged films together, each condition
            with equal weight; their intervals are by resampling patients.
    """

    point: str
    rows: tuple[UnderExchange, ...]
    sensitivity: Measure
    specificity: Measure

    @property
    def worst(self) -> UnderExchange:
        """Exchange with the largest gap; the first one if several are equal."""
        return max(self.rows, key=lambda row: row.gap)

    def to_json(self) -> dict[str, Any]:
        """Return plain values for ``metrics.json``."""
        return {**dataclasses.asdict(self), "worst": self.worst.exchange}


def reliance(
    labels: npt.ArrayLike,
    patients: Sequence[str],
    logits: Logits,
    calibration: Calibration,
    point: OperatingPoint,
    level: float = LEVEL,
) -> Reliance:
    """Measure how much a model relies on irrelevant properties.

    Args:
        labels: shape (n,), 0 or 1; both must occur.
        patients: n names, "" if unknown; such a film counts as a patient of its own.
        logits: one entry for each of ``EXCHANGED_FROM``; further entries count in the overall figures.
        calibration: the model's calibration.
        point: the operating point whose threshold is used.

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
    every_label, every_logit = pool_shifts(labels, logits)
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


def _groups(patients: Sequence[str]) -> Int64Array:
    """Return the patient of each film, counted from 0; a film of an unknown patient counts as one of its own."""
    names = [patient or f"film {index}" for index, patient in enumerate(patients)]
    groups: Int64Array = np.unique(np.array(names), return_inverse=True)[1]
    return groups


def pool_shifts(labels: npt.ArrayLike, logits: Logits) -> tuple[npt.NDArray[np.int8], Float64Array]:
    """Return every film, unchanged and under every shift, as one set: labels and logits of shape (n * shifts,)."""
    values = np.concatenate([np.asarray(one, dtype=np.float64) for one in logits.values()])
    return np.tile(np.asarray(labels, dtype=np.int8), len(logits)), values


def measured_again(
    points: Sequence[OperatingPoint], labels: npt.ArrayLike, probabilities: npt.ArrayLike
) -> tuple[OperatingPoint, ...]:
    """Return operating points that were chosen on pooled films, with their figures on the unchanged films.

    A pool counts each film once for each shift; the counts that are shown have to be numbers of films.
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
    """Compute the figures at the default operating point: unchanged, under every shift and under every exchange.

    The gate is not applied: the network itself is tested on such films. Donors are other films of the same set.

    Args:
        predictor: a bundle.
        films: accepted and labelled; both classes must occur.
        on_progress: called with (films done, films in all), a film counts once for each shift.
        workers: number of processes that read films.

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


def _plane(film: Film, preprocessing: Preprocessing) -> UInt8Array:
    return preprocess(read_film(film), name_of(film), *preprocessing.size, preprocessing.resize, preprocessing.levels)


def _logits(predictor: Predictor, planes: UInt8Array) -> Float64Array:
    batches = np.array_split(planes, -(-len(planes) // GROUP))
    return np.concatenate([predictor.logits(batch)[0] for batch in batches]).astype(np.float64)
