"""What a bundle says of itself: the figures on the films that its temperature and thresholds were chosen on."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from chestxray.evaluation.calibration import Calibration, brier_score, calibrated, expected_calibration_error
from chestxray.evaluation.intervals import Interval, delong_interval, wilson_interval
from chestxray.evaluation.metrics import Confusion, auroc
from chestxray.schema import OperatingPoint

LOGITS: Final = "logits_where_chosen"
_DIGITS: Final = 4  # of a stored logit: far below what any figure shows


def measured_where_chosen(
    labels: npt.ArrayLike,
    logits: npt.ArrayLike,
    patients: Sequence[str],
    calibration: Calibration,
    points: Sequence[OperatingPoint],
    *,
    chosen_on: str,
    cautions: Sequence[str],
) -> dict[str, Any]:
    """What ``metrics.json`` says: each figure with its count and its 95% interval, and the logits by class.

    The logits are sorted, so that they name no film; conformal sets are fitted on them.

    Args:
        labels, logits: shape (n,); both classes must occur.
        patients: n names, "" where unknown.
        chosen_on: the name of these films.
        cautions: what a reader must know of them, in sentences.

    Raises: DataError, DegenerateLabels.
    """
    truths, values = np.asarray(labels), np.asarray(logits, dtype=np.float64)
    probabilities = calibrated(values, *calibration)
    positives = int(truths.sum())
    return {
        "split": chosen_on,
        "films": len(truths),
        "positives": positives,
        "negatives": len(truths) - positives,
        "patients": len(set(patients) - {""}) + list(patients).count(""),
        "auroc": {"value": auroc(truths, values), "interval": _plain(delong_interval(truths, values))},
        "brier": brier_score(truths, probabilities),
        "expected_calibration_error": expected_calibration_error(truths, probabilities),
        **calibration._asdict(),
        "operating_points": [_reached(point, Confusion.at(point.threshold, truths, probabilities)) for point in points],
        "cautions": list(cautions),
        LOGITS: {
            name: np.sort(values[truths == index]).round(_DIGITS).tolist()
            for index, name in enumerate(("normal", "pneumonia"))
        },
    }


def _reached(point: OperatingPoint, counts: Confusion) -> dict[str, Any]:
    return {
        "name": point.name,
        "threshold": point.threshold,
        "confusion": dataclasses.asdict(counts),
        "sensitivity": _proportion(counts.tp, counts.positives),
        "specificity": _proportion(counts.tn, counts.negatives),
        "precision": _proportion(counts.tp, counts.tp + counts.fp),
    }


def _proportion(numerator: int, films: int) -> dict[str, Any]:
    if not films:
        return {"value": None, "numerator": 0, "films": 0, "interval": None}
    interval = _plain(wilson_interval(numerator, films))
    return {"value": numerator / films, "numerator": numerator, "films": films, "interval": interval}


def _plain(interval: Interval) -> dict[str, Any]:
    return dataclasses.asdict(interval)
