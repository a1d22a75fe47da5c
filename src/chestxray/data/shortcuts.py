"""How films were acquired: features without the lungs, their out-of-fold predictions, and groups of similar films.

Two learners separate the classes by them. The audit takes scikit-learn's boosted trees on the border of whole films: it
must find what a network could find; a weaker learner would report too little. Training uses a ridge regression on
the films of a pack: NumPy is enough for it, and its calibrated log-odds say how often a film is drawn.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple

import numpy as np
import numpy.typing as npt
from PIL import Image

from chestxray.arrays import BoolArray, Float32Array, Float64Array, IndexArray, Int64Array, UInt8Array
from chestxray.data.parallel import map_in_order
from chestxray.data.sources import name_of, read_film
from chestxray.errors import FilmError, MissingExtra
from chestxray.images.lungless import BORDER_CELLS, CELLS, GROUPS, Lungless, lungless
from chestxray.metrics.calibration import fit_calibration
from chestxray.progress import ProgressCallback, no_progress
from chestxray.schema import Film

Array = npt.NDArray[Any]

FOLDS: Final = 5
FITTED_ON: Final = 20_000  # films at most, to limit time and memory; the other films are scored all the same
AT_ONCE: Final = 10_000  # films scored together; limits the memory of their features in float64
MOST_WORDS: Final = 200  # different texts of a column; with more, the column names films and not kinds of films

# Boosted trees: half the rounds of the library's default, half as many leaves, and each split uses some features only.
# On the published films the border's 454 features give AUROC 0.9928, against 0.9936 with everything, in a fifth of the
# time.
_TREES: Final = {
    "max_iter": 60,
    "max_leaf_nodes": 15,
    "learning_rate": 0.15,
    "early_stopping": False,
    "random_state": 0,
}
_LEAF: Final = 20  # films at least in a leaf; a tenth of fewer than 200 films, or few films would never be divided
_WIDE: Final = 100  # number of features; with more, each split uses ``_SEEN_OF_WIDE``
_SEEN_OF_WIDE: Final = 0.15

STROKE: Final = 30  # grey levels above its surroundings: a letter, not a rib
FILMS_A_GROUP: Final = 160
MOST_GROUPS: Final = 32
_COMPONENTS: Final = 32  # principal components by which films are compared


class Features(NamedTuple):
    """A set of features by which films may be told apart.

    Attributes:
        numbers: shape (n, features); NaN if a film has none.
        texts: one list of n texts for each column; "" if a film has none.
    """

    numbers: Array
    texts: tuple[tuple[str, ...], ...] = ()

    @property
    def is_constant(self) -> bool:
        """True if all films have the same values."""
        numbers = self.numbers
        alike = all(
            bool(np.all(column == column[0]) or np.all(np.isnan(column.astype(np.float32)))) for column in numbers.T
        )
        return alike and all(len(set(column)) <= 1 for column in self.texts)


@dataclass(frozen=True, slots=True, eq=False)
class Acquisition:
    """The features without the lungs of many films.

    Attributes:
        films: those that could be read, n in all.
        numbers: features of each group of ``images.lungless.GROUPS``, shape (n, features).
        texts: texts of the headers, n for each name.
        skipped: the names of films that could not be read, and why.
    """

    films: tuple[Film, ...]
    numbers: dict[str, Array]
    texts: dict[str, tuple[str, ...]]
    skipped: tuple[tuple[str, str], ...] = field(default=())

    @property
    def patients(self) -> Int64Array:
        """Patient of each film, counted from 0; shape (n,). A film without a patient counts as one of its own."""
        names = [film.patient_id or f"film {film.path}" for film in self.films]
        return np.unique(names, return_inverse=True)[1].astype(np.int64)


def measure(
    films: Sequence[Film], on_progress: ProgressCallback = no_progress, workers: int | None = None
) -> Acquisition:
    """Open every film once and measure its features without the lungs; the order stays.

    Features are kept in 16 bits where they are grey levels: 100,000 films take 100 MB.

    Args:
        films: rows of a manifest.
        on_progress: called with (films done, films in all).
        workers: number of processes; by default one a core.
    """
    kept: list[Film] = []
    skipped: list[tuple[str, str]] = []
    numbers: dict[str, Array] = {}
    texts: list[dict[str, str]] = []
    for film, found in zip(films, map_in_order(_measure_one, films, on_progress, workers), strict=True):
        if isinstance(found, str):
            skipped.append((name_of(film), found))
            continue
        for name, values in found.numbers.items():
            if name not in numbers:
                kind = np.float32 if name in {"size", "file"} else np.float16
                numbers[name] = np.empty((len(films), len(values)), dtype=kind)
            numbers[name][len(kept)] = values
        kept.append(film)
        texts.append(found.texts)
    names = sorted({name for row in texts for name in row})
    return Acquisition(
        tuple(kept),
        {name: numbers[name][: len(kept)] for name in GROUPS if name in numbers},
        {name: tuple(row.get(name, "") for row in texts) for name in names},
        tuple(skipped),
    )


def _measure_one(film: Film) -> Lungless | str:
    try:
        return lungless(read_film(film), name_of(film))
    except (OSError, FilmError) as error:
        return str(error)


# --------------------------------------------------------------------------- telling apart


def folds_of(labels: BoolArray, patients: Int64Array, folds: int = FOLDS) -> Int64Array:
    """Assign each film a fold, shape (n,), 0 to folds - 1: by patient, with each class spread evenly.

    The folds do not depend on the order of the films: the same patients give the same folds.
    """
    positive = np.bincount(patients, labels) > 0
    dealt = np.random.default_rng(0).permutation(len(positive))
    fold = np.empty(len(positive), dtype=np.int64)
    for of_class in (True, False):
        rows = dealt[positive[dealt] == of_class]
        fold[rows] = np.arange(len(rows)) % folds
    return fold[patients]


def out_of_fold(features: Features, labels: BoolArray, fold: Int64Array) -> Float64Array:
    """Score each film by trees that were fitted without its patient; both classes count as equally common.

    Args:
        features: features of n films.
        labels: shape (n,).
        fold: shape (n,), as ``folds_of`` returns it.

    Returns: log-odds, shape (n,).
    Raises: MissingExtra.
    """
    trees, one_thread = require_trees()
    texts = [_coded(column) for column in features.texts]
    columns = [features.numbers, *(codes[:, None] for codes in texts)]
    categorical = [False] * features.numbers.shape[1] + [True] * len(texts)
    count = len(categorical)
    scores = np.zeros(len(labels))
    rng = np.random.default_rng(0)
    with one_thread():
        for held_out in np.unique(fold):
            rows = np.flatnonzero(fold != held_out)
            if len(rows) > FITTED_ON:
                rows = np.sort(rng.choice(rows, FITTED_ON, replace=False))
            model = trees(
                **_TREES,
                min_samples_leaf=min(_LEAF, max(1, len(rows) // 10)),
                # of few films no word is common enough for the library; their codes are numbers as well
                categorical_features=categorical if len(rows) >= 10 * _LEAF else None,
                max_features=_SEEN_OF_WIDE if count > _WIDE else 1.0,
            )
            # The prior is removed afterwards: with weights, the library would bin every feature at thirty times the
            # cost.
            model.fit(_rows(columns, rows), labels[rows])
            prior = float(np.log(labels[rows].sum() / (~labels[rows]).sum()))
            there = np.flatnonzero(fold == held_out)
            for start in range(0, len(there), AT_ONCE):
                part = there[start : start + AT_ONCE]
                scores[part] = model.decision_function(_rows(columns, part)) - prior
    return scores


def _rows(columns: Sequence[Array], rows: IndexArray) -> Float64Array:
    return np.concatenate([column[rows].astype(np.float64) for column in columns], axis=1)


def _coded(texts: Sequence[str]) -> Float64Array:
    """Return texts as numbers, the most common first; NaN for an empty text."""
    order = {text: code for code, (text, _) in enumerate(Counter(filter(None, texts)).most_common(MOST_WORDS))}
    return np.array([order.get(text, MOST_WORDS) if text else np.nan for text in texts], dtype=np.float64)


def require_trees() -> tuple[Any, Callable[[], Any]]:
    """Return the trees' class, and a context of one thread: on shared cores several threads wait for each other.

    Raises: MissingExtra.
    """
    try:
        from sklearn.ensemble import HistGradientBoostingClassifier
        from threadpoolctl import threadpool_limits
    except ImportError as error:
        raise MissingExtra("Auditing films", "report") from error
    return HistGradientBoostingClassifier, lambda: threadpool_limits(1)


_LEAST_WEIGHT: Final = 1e-3  # so that no film is left out, and the weight of such films has a known limit


def overlap_weights(labels: BoolArray, probabilities: Float64Array) -> Float64Array:
    """Weigh each film by how common its acquisition is in the other class; shape (n,).

    A film with pneumonia weighs 1 - p and a normal film p, where p is the probability of pneumonia by irrelevant
    features. With these weights both classes look as if they had been acquired alike.

    Source: Li, Morgan, Zaslavsky, Journal of the American Statistical Association 113 (2018), 390-400.
    """
    weights: Float64Array = np.where(labels, 1 - probabilities, probabilities)
    return weights.clip(_LEAST_WEIGHT)


# --------------------------------------------------------------------------- films that are alike


def clusters(acquisition: Acquisition) -> dict[str, Int64Array]:
    """Group films acquired alike, once by their burnt-in marks and once by frame, grey levels and sharpness.

    Returns: by "marks" and "exposure", the cluster of each film, shape (n,).
    Raises: MissingExtra.
    """
    numbers = acquisition.numbers
    strokes = (numbers["marks"] > STROKE).astype(np.float32)
    exposure = np.concatenate([_standardised(numbers[name]) for name in ("frame", "grey", "sharpness")], axis=1)
    return {"marks": _alike(strokes), "exposure": _alike(exposure)}


def _standardised(values: Array) -> Float32Array:
    """Return each feature with mean 0 and deviation 1, the group as a whole with variance 1; constants become 0."""
    mean, deviation = values.mean(axis=0, dtype=np.float64), values.std(axis=0, dtype=np.float64)
    scaled = (values - mean) / np.where(deviation > 0, deviation, np.inf)
    return np.asarray(scaled.clip(-5, 5) / np.sqrt(values.shape[1]), dtype=np.float32)


def _alike(values: Float32Array) -> Int64Array:
    from sklearn.cluster import KMeans
    from sklearn.decomposition import PCA

    _, one_thread = require_trees()
    count = min(MOST_GROUPS, len(values) // FILMS_A_GROUP + 1)
    if count == 1 or np.all(values == values[0]):
        return np.zeros(len(values), dtype=np.int64)
    sample = values
    if len(values) > FITTED_ON:
        sample = values[np.random.default_rng(0).choice(len(values), FITTED_ON, replace=False)]
    with one_thread():
        components = min(_COMPONENTS, *sample.shape)
        principal = PCA(components, svd_solver="randomized", random_state=0).fit(sample)
        placed = principal.transform(sample)
        distinct = len(np.unique(placed[:, 0]))  # with few films, or equal ones, there are fewer groups than asked for
        means = KMeans(min(count, distinct), n_init=3, random_state=0).fit(placed)
        return np.concatenate(
            [
                means.predict(principal.transform(values[start : start + AT_ONCE]))
                for start in range(0, len(values), AT_ONCE)
            ]
        ).astype(np.int64)


# --------------------------------------------------------------------------- in words

_ROWS: Final = ("upper", "", "lower")
_COLUMNS: Final = ("left", "", "right")
_MORE_OFTEN: Final = 0.3  # fraction of films, above that of all films, from which a mark is typical of a group
_APART: Final = 0.75  # deviations from the mean of all films from which a property is typical of a group


def described(kind: str, acquisition: Acquisition, films: BoolArray) -> str:
    """Describe in a few words what distinguishes the films of a cluster."""
    numbers = acquisition.numbers
    if kind == "marks":
        strokes = numbers["marks"] > STROKE
        excess = np.zeros((CELLS, CELLS))
        border = np.ones((CELLS, CELLS), dtype=np.bool_)
        border[BORDER_CELLS:-BORDER_CELLS, BORDER_CELLS:-BORDER_CELLS] = False
        excess[border] = strokes[films].mean(axis=0) - strokes.mean(axis=0)
        places = _places(excess)
        return f"marks {', '.join(places)}" if places else "no marks that others have not"
    grey, sharp, frame = numbers["grey"], numbers["sharpness"], numbers["frame"]
    properties = (
        (grey[:, 5], "brighter border", "darker border"),
        (grey[:, 8].astype(np.float32) - grey[:, 2], "harder contrast", "softer contrast"),
        (sharp[:, 0].astype(np.float32) + sharp[:, 4], "sharper or grainier", "smoother"),
        (frame[:, -4:].sum(axis=1, dtype=np.float32), "wider black margins", "no black margins"),
        (grey[:, 12], "more white", ""),
    )
    words = []
    for values, more, less in properties:
        deviation = values.std(dtype=np.float64)
        away = (values[films].mean(dtype=np.float64) - values.mean(dtype=np.float64)) / deviation if deviation else 0.0
        if abs(away) > _APART and (word := more if away > 0 else less):
            words.append((abs(away), word))
    return ", ".join(word for _, word in sorted(words, reverse=True)) or "an arrangement of its own"


def _places(excess: Float64Array) -> list[str]:
    """Describe where marks are, in thirds of the film."""
    thirds = np.array_split(np.arange(CELLS), 3)
    places = []
    for row, across in zip(_ROWS, thirds, strict=True):
        for column, down in zip(_COLUMNS, thirds, strict=True):
            if (row or column) and excess[np.ix_(across, down)].max() > _MORE_OFTEN:
                places.append(f"{row} {column}".strip() or "middle")
    return places


def digest(text: str) -> int:
    """Return a number for a name that is the same on every machine."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big")


# --------------------------------------------------------------------------- the films of a pack

_CELLS_OF_PLANE: Final = 28  # cells a side
_BLANKED: Final = slice(6, 22)  # of the cells: the middle 57% along each side
_QUANTILES: Final = (0.0, 0.01, 0.02, 0.05, 0.1, 0.25, 0.5, 0.75, 0.9, 0.95, 0.98, 0.99, 1.0)
_GRADIENTS: Final = (0.5, 0.9, 0.99)
_BANDS: Final = 10  # bands of the spectrum, all of the same width in octaves

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
    edges = np.geomspace(1.0, height / 2 + 1.0, _BANDS + 1)
    band = np.digitize(np.hypot(down, across), edges)
    sums = np.bincount(band.ravel(), amplitude.ravel(), _BANDS + 2)
    counts = np.bincount(band.ravel(), minlength=_BANDS + 2)
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
