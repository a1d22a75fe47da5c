"""A bundle on films under every shift: what is left of its figures at another place."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import numpy as np
import numpy.typing as npt

from chestxray.data.films import name_of, read_film
from chestxray.data.pack import labels_of
from chestxray.data.parallel import Progress, map_in_order, no_progress
from chestxray.evaluation.calibration import Calibration
from chestxray.evaluation.shifts import SHIFTS, shifted
from chestxray.evaluation.stress import CLEAN, Stress, under_shifts
from chestxray.images.preprocess import Plane, preprocess
from chestxray.inference.judge import GROUP
from chestxray.inference.predictor import Predictor
from chestxray.schema import Film, Preprocessing


def judge_under_shifts(
    predictor: Predictor, films: Sequence[Film], on_progress: Progress = no_progress, workers: int | None = None
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
    return preprocess(read_film(film), name_of(film), *preprocessing.size, preprocessing.resize)


def _logits(predictor: Predictor, planes: npt.NDArray[np.uint8]) -> npt.NDArray[np.float64]:
    batches = np.array_split(planes, -(-len(planes) // GROUP))
    return np.concatenate([predictor.logits(batch)[0] for batch in batches]).astype(np.float64)
