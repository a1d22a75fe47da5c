"""The films of a pack that are trained on, and those that are validated on."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np

from chestxray.arrays import Float64Array, IndexArray
from chestxray.data.pack import Pack, labels_of
from chestxray.data.shortcuts import acquisition_features, linear_log_odds
from chestxray.data.split import refuse_leakage
from chestxray.errors import DegenerateLabels, PackInvalid
from chestxray.metrics.calibration import calibrated
from chestxray.schema import Label, Split
from chestxray.training.config import Recipe
from chestxray.training.networks import CLASSES

LOG_ODDS_KEPT: Final = 0.5  # of the log-odds by frame and exposure: with all of them too few films would count
LEAST: Final = 0.02  # weight of a film whose frame reveals its class with certainty


@dataclass(frozen=True, slots=True)
class DataSplits:
    """Rows of the pack in each split, ascending.

    Attributes:
        leak: a sentence that says why the validation figures cannot be trusted; empty if they can.
    """

    training: IndexArray
    validation: IndexArray
    leak: str = ""


def splits_of(pack: Pack, recipe: Recipe) -> DataSplits:
    """Return the films to train on and those to validate on. Raises: PackInvalid, DegenerateLabels, Leakage."""
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


def chances_against_shortcuts(pack: Pack, rows: IndexArray) -> Float64Array:
    """Return probabilities of drawing each training film that weaken what its pixels outside the lungs tell.

    p is the probability of pneumonia from frame, grey levels and sharpness alone, with halved log-odds, by a model that
    was not fitted on the film's patient. A pneumonia film has the weight 1 - p, a normal film p, and each a little
    more; both classes have the same total weight.

    Returns: shape (n,), of sum 1.
    Source: Rosenbaum and Rubin, Biometrika 70 (1983), for the propensity; Li, Morgan and Zaslavsky, "Balancing
        covariates via propensity score weighting", JASA 113 (2018), for the weights.
    """
    labels = labels_of([pack.films[row] for row in rows])
    features = np.concatenate(list(acquisition_features(pack.images[rows]).values()), axis=1)
    patients = [pack.films[row].patient_id or pack.films[row].sha256 for row in rows]
    tells = calibrated(linear_log_odds(features, labels, patients) * LOG_ODDS_KEPT)
    weights: Float64Array = np.where(labels == 1, 1.0 - tells, tells) + LEAST
    for label in range(CLASSES):
        of_class = labels == label
        weights[of_class] /= CLASSES * weights[of_class].sum()
    return weights


def drawn(rows: IndexArray, chances: Float64Array | None, random: np.random.Generator) -> IndexArray:
    """Return the films of an epoch in the order of training: each once, or each as often as its probability asks for.

    Source of the second way: systematic resampling; Kitagawa, Journal of Computational and Graphical Statistics 5
    (1996).
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
    """Draw validation films one by one, as the original work did, and describe the leak that this causes."""
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
