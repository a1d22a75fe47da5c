"""Calibration and operating points of a bundle, fitted again to local films.

bundle + films -> logits -> calibration, operating points -> another bundle with the same graph
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from chestxray import __version__
from chestxray.arrays import Float64Array
from chestxray.data.dedup import refuse_training_films
from chestxray.data.split import read_allowance
from chestxray.errors import DegenerateLabels, UsageError
from chestxray.evaluation import model_card
from chestxray.evaluation.evaluate import (
    EvaluationSettings,
    examined_films,
    metrics_of,
    name_of_films,
    score_table,
    training_films_of,
)
from chestxray.inference.batch import score_films
from chestxray.inference.bundle import Bundle, write_bundle
from chestxray.inference.predictor import Predictor
from chestxray.metrics.calibration import (
    BALANCED,
    SCREENING_SENSITIVITY,
    Calibration,
    calibrated,
    choose_operating_points,
    fit_calibration,
    left_out,
)
from chestxray.progress import Reporter
from chestxray.schema import BundleInfo, Film, OperatingPoint, Split

FEW_TO_CALIBRATE: Final = round(1 / (1 - SCREENING_SENSITIVITY))
"""Films of a class, 100: with fewer, a sensitivity of 0.99 can only mean that none of them was missed."""


@dataclass(frozen=True, slots=True)
class Recalibrated:
    """The result of fitting calibration and operating points again.

    Attributes:
        info: description of the new bundle.
        before: description of the original bundle.
        metrics: content of its ``metrics.json``.
        warnings: limits of the new operating points, in sentences.
    """

    info: BundleInfo
    before: BundleInfo
    metrics: dict[str, Any]
    warnings: tuple[str, ...]


def calibrate_bundle(
    bundle: Path, films: Sequence[Film], source: Path, out: Path, reporter: Reporter, settings: EvaluationSettings
) -> Recalibrated:
    """Fit calibration and operating points again on labelled films; the graph stays the same, byte for byte.

    Args:
        bundle: the folder of a bundle.
        films: films; those that are not cleaned yet are cleaned.
        source: the source of the films; the operating points name it.
        out: the new bundle's folder, written completely or not at all.
        settings: only the split (None: every film) and the workers are used.

    Raises:
        DegenerateLabels: the films are all of one class.
        Leakage: the bundle was trained on some of them.
        SourceInvalid: no labelled film is left.
        UsageError: ``out`` is the bundle itself.
    """
    if out.exists() and bundle.exists() and out.samefile(bundle):
        raise UsageError(f"{out}: is the bundle itself. Give another --out, so that both can be compared")
    opened = Bundle.open(bundle)
    opened.verify()
    before = opened.info
    allowed = read_allowance(source)
    examined, _ = examined_films(films, allowed, settings, reporter)
    split = settings.split
    chosen = [film for film in examined if film.is_accepted and film.label and (split is None or film.split == split)]
    if not allowed:
        refuse_training_films(training_films_of(opened), chosen, before.name)
    labels, logits, patients = _logits(opened, chosen, source, reporter, settings.workers)
    chosen_on = name_of_films(source, split)
    warnings = (*_refuse_or_warn(labels, chosen_on), *_trained_on(chosen))
    calibration = fit_calibration(labels, logits)
    points = choose_operating_points(labels, calibrated(logits, *calibration), chosen_on)
    metrics = model_card.measured_where_chosen(
        labels,
        logits,
        patients,
        calibration,
        points,
        chosen_on=chosen_on,
        cautions=[_chosen_here(chosen_on), *warnings],
        left_out=left_out(points),
    )
    known = metrics_of(bundle, before)
    if "gate" in known:  # it is not fitted again
        metrics["gate"] = known["gate"]
    metrics["before"] = {name: v for name, v in known.items() if name not in {model_card.LOGITS, "before", "gate"}}
    info = _recalibrated(before, calibration, points)
    return Recalibrated(write_bundle(out, info, _files_with(opened, info, metrics)), before, metrics, warnings)


def _recalibrated(before: BundleInfo, calibration: Calibration, points: tuple[OperatingPoint, ...]) -> BundleInfo:
    default = before.default_operating_point
    return dataclasses.replace(
        before,
        temperature=calibration.temperature,
        bias=calibration.bias,
        operating_points=points,
        operating_points_left_out=left_out(points),
        default_operating_point=default if default in {point.name for point in points} else BALANCED,
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        package_version=__version__,
    )


def _logits(
    opened: Bundle, films: Sequence[Film], source: Path, reporter: Reporter, workers: int | None
) -> tuple[npt.NDArray[np.int8], Float64Array, tuple[str, ...]]:
    """Return labels, logits and patients of the films that the gate accepts.

    Raises: SourceInvalid, if there is none.
    """
    with reporter.progress("Evaluating") as move:
        scored = tuple(score_films(Predictor(opened), films, on_progress=move, workers=workers))
    table = score_table(scored, source)
    logits = np.array([row.logit for row in scored if row.logit is not None], dtype=np.float64)
    return table.labels, logits, table.patients


def _refuse_or_warn(labels: npt.NDArray[np.int8], chosen_on: str) -> tuple[str, ...]:
    counts = {"normal": int(np.sum(labels == 0)), "pneumonia": int(np.sum(labels == 1))}
    if not all(counts.values()):
        only = max(counts, key=lambda name: counts[name])
        raise DegenerateLabels(
            f"{chosen_on}: all {len(labels):,} films that can be evaluated are labelled {only}. A threshold needs "
            "films of both classes; add some of the other"
        )
    return tuple(
        f"Only {count:,} films of {chosen_on} are labelled {name}; below {FEW_TO_CALIBRATE} a class, thresholds follow "
        "single films and will move with the next ones."
        for name, count in counts.items()
        if count < FEW_TO_CALIBRATE
    )


def _trained_on(films: Sequence[Film]) -> tuple[str, ...]:
    count = sum(film.split == Split.TRAIN for film in films)
    if not count:
        return ()
    return (f"{count:,} of the films are in a training split; on films it learnt from, a network is too sure.",)


def _chosen_here(chosen_on: str) -> str:
    return (
        f"The calibration and the operating points were chosen on these same films ({chosen_on}): the figures are "
        "better than those on unseen films will be. Evaluate the bundle on other films."
    )


def _files_with(opened: Bundle, info: BundleInfo, metrics: dict[str, Any]) -> dict[str, bytes]:
    """Return every file of the bundle, with the same graph and new figures in the card and in the metrics."""
    files = {name: (opened.folder / name).read_bytes() for name in opened.info.files}
    old = files.get(model_card.CARD_FILE, f"# {info.name}\n\n> **{info.notice}**\n".encode()).decode()
    new = model_card.amended(old, info.name, metrics, info.default_operating_point)
    written = (json.dumps(metrics, indent=2) + "\n").encode()
    return files | {model_card.METRICS_JSON: written, model_card.CARD_FILE: new.encode()}
