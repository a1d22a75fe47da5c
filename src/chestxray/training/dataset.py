"""Which films of a pack are trained on and which are evaluated."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from chestxray.data.acquisition import acquisition_features, out_of_fold
from chestxray.data.pack import Pack, labels_of
from chestxray.data.split import refuse_leakage
from chestxray.errors import DegenerateLabels, PackInvalid
from chestxray.metrics.calibration import calibrated
from chestxray.schema import Label, Split
from chestxray.training.config import Recipe
from chestxray.training.networks import CLASSES

Rows = npt.NDArray[np.intp]

LOG_ODDS_KEPT: Final = 0.5  # of what frame and exposure say: the whole would leave few films that count
LEAST: Final = 0.02  # weight of a film whose frame says its class for certain


@dataclass(frozen=True, slots=True)
class DataSplits:
    """Rows of a pack, ascending.

    Attributes:
        leak: empty; or a sentence that says why the validation figures cannot be trusted.
    """

    training: Rows
    validation: Rows
    leak: str = ""


def splits_of(pack: Pack, recipe: Recipe) -> DataSplits:
    """The films to train on and those to validate on. Raises: PackInvalid, DegenerateLabels, Leakage."""
    splits = _random_splits(pack, recipe) if recipe.validation == "random" else _given_splits(pack)
    labels = labels_of(pack.films)
    for name, rows in (("training", splits.training), ("validation", splits.validation)):
        if not len(rows):
            raise PackInvalid(
                f'{pack.folder}: holds no {name} films. Run "chestxray split" with a larger share and pack again'
            )
        if len(set(labels[rows].tolist())) < CLASSES:
            only = tuple(Label)[labels[rows[0]]]
            raise DegenerateLabels(
                f"{pack.folder}: all {len(rows):,} {name} films are labelled {only}. Add films of the other class"
            )
    return splits


def chances_against_shortcuts(pack: Pack, rows: Rows) -> npt.NDArray[np.float64]:
    """How likely each training film is to be drawn next, so that what it shows beside the lungs tells its class less.

    p is the probability of pneumonia by frame, grey levels and sharpness alone, by a model that has not seen the film's
    patient, its log-odds halved. A pneumonia film counts 1 - p, a normal one p, and each a little more; the films of a
    class count as much as those of the other.

    Returns: shape (n,), of sum 1.
    Source: Rosenbaum and Rubin, Biometrika 70 (1983), for the propensity; Li, Morgan and Zaslavsky, "Balancing
        covariates via propensity score weighting", JASA 113 (2018), for the weights.
    """
    labels = labels_of([pack.films[row] for row in rows])
    features = np.concatenate(list(acquisition_features(pack.images[rows]).values()), axis=1)
    patients = [pack.films[row].patient_id or pack.films[row].sha256 for row in rows]
    tells = calibrated(out_of_fold(features, labels, patients) * LOG_ODDS_KEPT)
    weights: npt.NDArray[np.float64] = np.where(labels == 1, 1.0 - tells, tells) + LEAST
    for label in range(CLASSES):
        of_class = labels == label
        weights[of_class] /= CLASSES * weights[of_class].sum()
    return weights


def drawn(rows: Rows, chances: npt.NDArray[np.float64] | None, random: np.random.Generator) -> Rows:
    """The films of an epoch in the order of training: each once, or each as often as its chance asks for.

    Source of the latter: systematic resampling; Kitagawa, Journal of Computational and Graphical Statistics 5 (1996).
    """
    if chances is None:
        return random.permutation(rows)
    marks = (np.arange(len(rows)) + random.random()) / len(rows)
    places = np.searchsorted(np.cumsum(chances), marks).clip(max=len(rows) - 1)
    return random.permutation(rows[places])


def _given_splits(pack: Pack) -> DataSplits:
    refuse_leakage(pack.films, allowed=pack.info.leakage_allowed)
    return DataSplits(pack.rows(Split.TRAIN), pack.rows(Split.VAL))


def _random_splits(pack: Pack, recipe: Recipe) -> DataSplits:
    """Draw validation films one by one, as the original work did, and say what that leaks."""
    pool = np.union1d(pack.rows(Split.TRAIN), pack.rows(Split.VAL))
    drawn = np.random.default_rng(recipe.seed).permutation(pool)
    kept = round(len(pool) * recipe.validation_share)
    training, validation = np.sort(drawn[kept:]), np.sort(drawn[:kept])
    known = {pack.films[row].patient_id for row in training} - {""}
    shared = sum(pack.films[row].patient_id in known for row in validation)
    leak = (
        f"validation films were drawn at random by film: {shared:,} of {len(validation):,} show a patient who was "
        "also trained on, so the validation figures, the calibration and the operating points are too good"
    )
    return DataSplits(training, validation, leak)
