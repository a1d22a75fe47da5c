"""Which films of a pack are trained on and which are judged."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from chestxray.data.pack import Pack, labels_of
from chestxray.data.split import refuse_leakage
from chestxray.errors import DegenerateLabels, PackInvalid
from chestxray.schema import Label, Split
from chestxray.training.config import Recipe
from chestxray.training.networks import CLASSES

Rows = npt.NDArray[np.intp]


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
