"""Features of a film besides the lungs, and how well they tell the classes apart.

Frame, exposure, sharpness: a film of 28 x 28 cells whose middle is blanked, quantiles of its grey levels, its gradients
and its spectrum. If these tell pneumonia from normal, a network can be right for the wrong reason.
"""

from __future__ import annotations

from typing import Any, Final

import numpy as np
import numpy.typing as npt
from PIL import Image

from chestxray.metrics.calibration import fit_calibration
from chestxray.metrics.metrics import FloatArray

Planes = npt.NDArray[np.uint8]

CELLS: Final = 28  # cells a side
BLANKED: Final = slice(6, 22)  # of the cells: the middle 57% along each side
QUANTILES: Final = (0.0, 0.01, 0.02, 0.05, 0.1, 0.25, 0.5, 0.75, 0.9, 0.95, 0.98, 0.99, 1.0)
GRADIENTS: Final = (0.5, 0.9, 0.99)
BANDS: Final = 10  # bands of the spectrum, all of the same width in octaves

FOLDS: Final = 5
RIDGE: Final = 30.0  # of the standardised features: a few hundred films cannot be fitted exactly


def acquisition_features(planes: Planes) -> dict[str, FloatArray]:
    """Return features without the lungs, by group.

    Args:
        planes: shape (n, height, width).

    Returns: "frame", "grey_levels" and "sharpness", each of shape (n, features of the group).
    """
    groups = [_features(plane) for plane in planes]
    return {name: np.stack([group[name] for group in groups]) for name in groups[0]}


def _features(plane: Planes) -> dict[str, FloatArray]:
    cells = np.asarray(Image.fromarray(plane).resize((CELLS, CELLS), Image.Resampling.BOX), dtype=np.float64)
    kept = np.ones((CELLS, CELLS), dtype=bool)
    kept[BLANKED, BLANKED] = False
    levels = plane.astype(np.float64)
    steps = [np.abs(np.diff(levels, axis=axis)) for axis in (0, 1)]
    gradients = [[step.mean(), *np.quantile(step, GRADIENTS)] for step in steps]
    return {
        "frame": cells[kept],
        "grey_levels": np.quantile(levels, QUANTILES),
        "sharpness": np.concatenate([*gradients, _spectrum(levels)]),
    }


def _spectrum(levels: FloatArray) -> FloatArray:
    """Return the log of the mean amplitude in bands from one cycle over the film to the finest."""
    amplitude = np.abs(np.fft.rfft2(levels - levels.mean()))
    height = levels.shape[0]
    down, across = np.fft.fftfreq(height, 1 / height)[:, None], np.arange(amplitude.shape[1])[None]
    edges = np.geomspace(1.0, height / 2 + 1.0, BANDS + 1)
    band = np.digitize(np.hypot(down, across), edges)
    sums = np.bincount(band.ravel(), amplitude.ravel(), BANDS + 2)
    counts = np.bincount(band.ravel(), minlength=BANDS + 2)
    return np.log1p(sums[1:-1] / np.maximum(counts[1:-1], 1))


def out_of_fold(
    features: FloatArray, labels: npt.ArrayLike, patients: npt.ArrayLike, *, folds: int = FOLDS, seed: int = 0
) -> FloatArray:
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
    fold = np.random.default_rng(seed).permutation(np.arange(len(names)) % folds)[which]
    found = np.zeros(len(targets))
    for number in range(folds):
        train, rest = fold != number, fold == number
        if len(set(targets[train].tolist())) == 2 and rest.any():  # noqa: PLR2004 - both classes
            found[rest] = _fitted(features[train], targets[train], features[rest])
    calibration = fit_calibration(targets, found)
    odds = float(np.log(max(1, np.sum(targets == 1)) / max(1, np.sum(targets == 0))))
    return (found + calibration.bias) / calibration.temperature - odds


def _fitted(features: FloatArray, targets: npt.NDArray[np.integer[Any]], others: FloatArray) -> FloatArray:
    """Fit a linear score on films, 4 apart for the two classes, and return the score of others."""
    centre, spread = features.mean(axis=0), features.std(axis=0)
    scale = np.where(spread > 0.0, spread, 1.0)
    rows = (features - centre) / scale
    share = float(np.mean(targets))
    weight = np.where(targets == 1, 0.5 / share, 0.5 / (1 - share))
    middle = np.average(rows, axis=0, weights=weight)
    rows = rows - middle
    moments = (rows * weight[:, None]).T @ rows + RIDGE * np.eye(rows.shape[1])
    beta = np.linalg.solve(moments, rows.T @ (weight * np.where(targets == 1, 2.0, -2.0)))
    found: FloatArray = ((others - centre) / scale - middle) @ beta
    return found
