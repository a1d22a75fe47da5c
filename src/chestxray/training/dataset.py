"""The films of a pack that are trained on, and those that are validated on."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt
from PIL import Image

from chestxray.arrays import Float64Array, IndexArray, UInt8Array
from chestxray.data.pack import Pack, labels_of
from chestxray.data.shortcuts import FOLDS
from chestxray.data.split import refuse_leakage
from chestxray.errors import DegenerateLabels, PackInvalid
from chestxray.metrics.calibration import calibrated, fit_calibration
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
    """Return the probability of drawing each training film, so that pixels outside the lungs predict the class less.

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
    predicted = calibrated(linear_log_odds(features, labels, patients) * LOG_ODDS_KEPT)
    weights: Float64Array = np.where(labels == 1, 1.0 - predicted, predicted) + LEAST
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
    shuffled = np.random.default_rng(recipe.seed).permutation(pool)
    kept = round(len(pool) * recipe.validation_share)
    training, validation = np.sort(shuffled[kept:]), np.sort(shuffled[:kept])
    known = {pack.films[row].patient_id for row in training} - {""}
    shared = sum(pack.films[row].patient_id in known for row in validation)
    leak = (
        f"validation films were drawn at random by film: {shared:,} of {len(validation):,} show a patient who was "
        "also trained on, so the validation figures, the calibration and the operating points are too good"
    )
    return DataSplits(training, validation, leak)


# --------------------------------------------------------------------------- what tells the classes apart

_CELLS_OF_PLANE: Final = 28  # cells a side
_BLANKED: Final = slice(6, 22)  # of the cells: the middle 57% along each side
_QUANTILES: Final = (0.0, 0.01, 0.02, 0.05, 0.1, 0.25, 0.5, 0.75, 0.9, 0.95, 0.98, 0.99, 1.0)
_GRADIENTS: Final = (0.5, 0.9, 0.99)
_OCTAVES: Final = 10  # bands of the spectrum, all of the same width in octaves

_RIDGE: Final = 30.0  # of the standardised features: a few hundred films cannot be fitted exactly


def acquisition_features(planes: UInt8Array) -> dict[str, Float64Array]:
    """Return features without the lungs, by group.

    Args:
        planes: shape (n, height, width).

    Returns: "frame", "grey_levels" and "sharpness", each of shape (n, features of the group).
    """
    groups = [_features_of(plane) for plane in planes]
    return {name: np.stack([group[name] for group in groups]) for name in groups[0]}


def _features_of(plane: UInt8Array) -> dict[str, Float64Array]:
    cells = np.asarray(
        Image.fromarray(plane).resize((_CELLS_OF_PLANE, _CELLS_OF_PLANE), Image.Resampling.BOX), dtype=np.float64
    )
    kept = np.ones((_CELLS_OF_PLANE, _CELLS_OF_PLANE), dtype=bool)
    kept[_BLANKED, _BLANKED] = False
    levels = plane.astype(np.float64)
    steps = [np.abs(np.diff(levels, axis=axis)) for axis in (0, 1)]
    gradients = [[step.mean(), *np.quantile(step, _GRADIENTS)] for step in steps]
    return {
        "frame": cells[kept],
        "grey_levels": np.quantile(levels, _QUANTILES),
        "sharpness": np.concatenate([*gradients, _spectrum(levels)]),
    }


def _spectrum(levels: Float64Array) -> Float64Array:
    """Return the log of the mean amplitude in bands from one cycle over the film to the finest."""
    amplitude = np.abs(np.fft.rfft2(levels - levels.mean()))
    height = levels.shape[0]
    down, across = np.fft.fftfreq(height, 1 / height)[:, None], np.arange(amplitude.shape[1])[None]
    edges = np.geomspace(1.0, height / 2 + 1.0, _OCTAVES + 1)
    band = np.digitize(np.hypot(down, across), edges)
    sums = np.bincount(band.ravel(), amplitude.ravel(), _OCTAVES + 2)
    counts = np.bincount(band.ravel(), minlength=_OCTAVES + 2)
    return np.log1p(sums[1:-1] / np.maximum(counts[1:-1], 1))


def linear_log_odds(
    features: Float64Array, labels: npt.ArrayLike, patients: npt.ArrayLike, *, seed: int = 0
) -> Float64Array:
    """Return log-odds of pneumonia from features alone, for films of patients not in the fit; classes count equally.

    Args:
        features: shape (n, k).
        labels: shape (n,), 0 or 1; both must occur.
        patients: shape (n,); films of one patient are in one fold.

    Returns: shape (n,).
    Source: ridge regression on the two classes, which is Fisher's discriminant (Hastie et al., The Elements of
        Statistical Learning, 4.2 and 4.3), and Platt's calibration of it.
    """
    targets = np.asarray(labels)
    names, which = np.unique(np.asarray(patients), return_inverse=True)
    fold = np.random.default_rng(seed).permutation(np.arange(len(names)) % FOLDS)[which]
    found = np.zeros(len(targets))
    for number in range(FOLDS):
        train, rest = fold != number, fold == number
        if len(set(targets[train].tolist())) == 2 and rest.any():  # noqa: PLR2004 - both classes
            found[rest] = _ridge(features[train], targets[train], features[rest])
    calibration = fit_calibration(targets, found)
    odds = float(np.log(max(1, np.sum(targets == 1)) / max(1, np.sum(targets == 0))))
    return (found + calibration.bias) / calibration.temperature - odds


def _ridge(features: Float64Array, targets: npt.NDArray[np.integer[Any]], others: Float64Array) -> Float64Array:
    """Fit a linear score on films, 4 apart for the two classes, and return the score of others."""
    centre, spread = features.mean(axis=0), features.std(axis=0)
    scale = np.where(spread > 0.0, spread, 1.0)
    rows = (features - centre) / scale
    share = float(np.mean(targets))
    weight = np.where(targets == 1, 0.5 / share, 0.5 / (1 - share))
    middle = np.average(rows, axis=0, weights=weight)
    rows = rows - middle
    moments = (rows * weight[:, None]).T @ rows + _RIDGE * np.eye(rows.shape[1])
    beta = np.linalg.solve(moments, rows.T @ (weight * np.where(targets == 1, 2.0, -2.0)))
    found: Float64Array = ((others - centre) / scale - middle) @ beta
    return found
