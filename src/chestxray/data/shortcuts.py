"""How films were acquired: features besides the lungs, their out-of-fold predictions, and groups of similar films.

The features are the frame, burnt-in marks, grey levels, sharpness, size and file. Those of the picture come from the
border alone, the outer ``BORDER`` of each side; the middle, where the lungs are, is never used. So a feature that tells
the classes apart here is no disease.

The learner is scikit-learn's boosted trees: it must find what a network could find; a weaker one would report too
little.
"""

from __future__ import annotations

import hashlib
import io
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Final, NamedTuple

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageFilter
from PIL.JpegImagePlugin import JpegImageFile

from chestxray.arrays import BoolArray, Float32Array, Float64Array, IndexArray, Int64Array, UInt8Array
from chestxray.data.parallel import map_in_order
from chestxray.data.sources import name_of, read_film
from chestxray.errors import FilmError, MissingExtra
from chestxray.images import WHITE, Radiograph
from chestxray.images.decode import decode, format_of
from chestxray.images.dicom import elements, open_data_set
from chestxray.images.preprocess import resample
from chestxray.progress import ProgressCallback, no_progress
from chestxray.schema import Film, Resize

Array = npt.NDArray[Any]

SQUARE_SIDE: Final = 240  # pixels: side of the square to which every film is scaled
BORDER_CELL: Final = 12  # pixels: side of a cell of the border
CELLS: Final = SQUARE_SIDE // BORDER_CELL  # 20 cells a side
BORDER: Final = 0.15  # of each side; on synthetic films that differ in the lungs only, it is alike in both classes
BORDER_CELLS: Final = round(CELLS * BORDER)  # 3
BORDER_PIXELS: Final = BORDER_CELLS * BORDER_CELL  # 36

_LEVEL_QUANTILES: Final = (0.0, 0.01, 0.05, 0.1, 0.25, 0.5, 0.75, 0.9, 0.95, 0.99, 1.0)
_GRADIENT_QUANTILES: Final = (0.5, 0.9, 0.99)
_BANDS: Final = (2, 4, 8, 16, 24, 32, 48, 64, 80, 100, 121)  # edges, cycles a side of the film
_STROKE: Final = 4  # pixels: radius of the neighbourhood from which a stroke must stand out
_FAINTEST: Final = 8.0  # grey levels between bright and dark of a border; a smaller spread is noise
_DARK: Final = 0.05  # of white: a row or column darker than this is a black margin

_DICOM_TEXTS: Final = {
    0x00080070: "manufacturer",
    0x00081090: "model",
    0x00181004: "plate",
    0x00181020: "software",
    0x00181400: "processing",
}  # no element that could name a patient, a place or a person

_BORDER_OF_CELLS: Final = np.ones((CELLS, CELLS), dtype=np.bool_)
_BORDER_OF_CELLS[BORDER_CELLS:-BORDER_CELLS, BORDER_CELLS:-BORDER_CELLS] = False
_BORDER_OF_PIXELS: Final = np.kron(_BORDER_OF_CELLS, np.ones((BORDER_CELL, BORDER_CELL), dtype=np.bool_))


class FilmFeatures(NamedTuple):
    """The features of one film.

    Attributes:
        numbers: one array a group of ``GROUPS``, the same length for every film; NaN if the file does not state the
            value.
        texts: text values of the file's header, by name ("format", "model"); empty values are left out.
    """

    numbers: dict[str, Float32Array]
    texts: dict[str, str]


def film_features(data: bytes, source: str) -> FilmFeatures:
    """Measure the features of one film. Raises: the errors of ``decode``."""
    film = decode(data, source, at_least=(SQUARE_SIDE, SQUARE_SIDE))
    plane = resample(film.pixels, SQUARE_SIDE, SQUARE_SIDE, Resize.SQUEEZE, film.frame)
    numbers = {name: np.asarray(measure(plane), dtype=np.float32) for name, measure in PICTURE_GROUPS.items()}
    numbers["size"] = np.array([film.width, film.height, film.width / film.height], dtype=np.float32)
    file_numbers, texts = _header_features(data, source, film)
    numbers["file"] = file_numbers
    return FilmFeatures(numbers, texts)


# --------------------------------------------------------------------------- the picture's border


def _frame(plane: UInt8Array) -> Float32Array:
    """Return brightness of the border's cells, and width of the black margin at each edge; shape (208,).

    A cell's mean grey is relative to the film's own scale, so that a darker exposure has the same frame.
    """
    cells = plane.reshape(CELLS, BORDER_CELL, CELLS, BORDER_CELL).mean(axis=(1, 3), dtype=np.float32)[_BORDER_OF_CELLS]
    low, high = np.quantile(cells, (0.1, 0.9))
    return np.concatenate([(cells - low) / max(float(high - low), _FAINTEST), _margins(plane)]).astype(np.float32)


def _margins(plane: UInt8Array) -> Float32Array:
    """Return the black rows or columns at the left, right, upper and lower edge, at most the border's width."""
    margins = []
    for levels in (plane.mean(axis=0), plane.mean(axis=1)):
        for towards_middle in (levels[:BORDER_PIXELS], levels[::-1][:BORDER_PIXELS]):
            lit = np.flatnonzero(towards_middle > WHITE * _DARK)
            margins.append(float(lit[0]) if len(lit) else float(BORDER_PIXELS))
    return np.array(margins, dtype=np.float32)


def _marks(plane: UInt8Array) -> Float32Array:
    """Return how far the brightest stroke of each border cell stands out from its neighbourhood, shape (204,).

    Letters, arrows and wires are a few pixels wide; a rib or the edge of the patient is wider.
    """
    image = Image.fromarray(plane)
    round_it = np.asarray(image.filter(ImageFilter.BoxBlur(_STROKE)), dtype=np.int16)
    strokes = (plane.astype(np.int16) - round_it).clip(0)
    brightest = strokes.astype(np.float32).reshape(CELLS, BORDER_CELL, CELLS, BORDER_CELL).max(axis=(1, 3))
    found: Float32Array = brightest[_BORDER_OF_CELLS]
    return found


def _grey_levels(plane: UInt8Array) -> Float32Array:
    """Return quantiles of the border's grey levels, fractions of black and white, and number of levels; shape (14,)."""
    counts = np.bincount(plane[_BORDER_OF_PIXELS], minlength=WHITE + 1)
    below = np.cumsum(counts) / counts.sum()
    quantiles = np.searchsorted(below, np.array(_LEVEL_QUANTILES) - 1e-9).clip(0, WHITE)
    quantiles[0] = np.flatnonzero(counts)[0]
    extremes = (counts[0] / counts.sum(), counts[-1] / counts.sum(), np.count_nonzero(counts))
    return np.concatenate([quantiles, extremes]).astype(np.float32)


def _sharpness(plane: UInt8Array) -> Float32Array:
    """Return gradients and spectra along the border, which compression and enlarging smooth; shape (28,)."""
    levels = plane.astype(np.float32)
    across, down = np.abs(np.diff(levels, axis=1)), np.abs(np.diff(levels, axis=0))
    found: list[Any] = []
    for steps, border in ((across, _BORDER_OF_PIXELS[:, 1:]), (down, _BORDER_OF_PIXELS[1:])):
        values = steps[border]
        found += [values.mean(), *np.quantile(values, _GRADIENT_QUANTILES)]
    for turned in (levels, levels.T):
        strips = np.concatenate([turned[:BORDER_PIXELS], turned[-BORDER_PIXELS:]])
        spectrum = np.abs(np.fft.rfft(strips * np.hanning(SQUARE_SIDE), axis=1)).mean(axis=0)
        found += [np.log1p(spectrum[low:high].mean()) for low, high in pairwise(_BANDS)]
    return np.array(found, dtype=np.float32)


# One row for each group of features from the picture's border.
PICTURE_GROUPS: Final[dict[str, Callable[[UInt8Array], Float32Array]]] = {
    "frame": _frame,
    "marks": _marks,
    "grey": _grey_levels,
    "sharpness": _sharpness,
}
GROUPS: Final = (*PICTURE_GROUPS, "size", "file")


# --------------------------------------------------------------------------- the file


def _header_features(data: bytes, source: str, film: Radiograph) -> tuple[Float32Array, dict[str, str]]:
    """Return the header's numbers (channels, bits, quantisation, density) and its texts."""
    form = format_of(data, source).name
    numbers = [float(film.channels), float(film.bit_depth), np.nan, np.nan, np.nan]
    texts = {"format": form, "photometric": film.photometric, "view": film.view_position, "modality": film.modality}
    if form == "JPEG":
        numbers[2:], more = _jpeg(data)
        texts |= more
    elif form == "DICOM":
        texts |= _dicom(data, source)
    return np.array(numbers, dtype=np.float32), {name: text for name, text in texts.items() if text}


def _jpeg(data: bytes) -> tuple[list[float], dict[str, str]]:
    """Return mean quantisation steps (first and last table), dots an inch, and texts that reveal the encoder."""
    image = JpegImageFile(io.BytesIO(data))  # reads only the header
    tables = [np.mean(table) for _, table in sorted(image.quantization.items())]
    steps = [float(tables[0]), float(tables[-1])] if tables else [np.nan, np.nan]
    density = float(image.info.get("jfif_density", (np.nan,))[0])
    fingerprint = hashlib.sha256(repr(sorted(image.quantization.items())).encode()).hexdigest()[:8]
    exif = image.getexif()
    made = " ".join(str(exif.get(tag, "")).strip("\0 ") for tag in (0x010F, 0x0110, 0x0131)).strip()
    info = image.info
    parts = {"progressive": info.get("progressive"), "EXIF": bool(exif), "colour profile": "icc_profile" in info}
    return [*steps, density], {
        "tables": fingerprint,
        "sampling": str([layer[1:3] for layer in image.layer]),
        "parts": ", ".join(name for name, there in parts.items() if there),
        "made by": made,
    }


def _dicom(data: bytes, source: str) -> dict[str, str]:
    """Return manufacturer, model, plate, software and processing; nothing that names a patient or a place."""
    try:
        data_set = open_data_set(data, source)
        found = {}
        for element in elements(data_set.data, data_set.start, data_set.encoding, source):
            if name := _DICOM_TEXTS.get(element.tag):
                text = data_set.data[element.value : element.end].decode("ascii", "replace")
                found[name] = " ".join(text.strip("\0 ").split())[:64]
        return found | {"syntax": data_set.transfer_syntax}
    except FilmError:  # the film was decoded already; keep what a header that ends early has given
        return {}


# --------------------------------------------------------------------------- many films


@dataclass(frozen=True, slots=True, eq=False)
class Acquisition:
    """The features without the lungs of many films.

    Attributes:
        films: those that could be read, n in all.
        numbers: features of each group of ``images.film_features.GROUPS``, shape (n, features).
        texts: texts of the headers, n for each name.
        skipped: the names of films that could not be read, and why.
    """

    films: tuple[Film, ...]
    numbers: dict[str, Array]
    texts: dict[str, tuple[str, ...]]
    skipped: tuple[tuple[str, str], ...] = ()

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
        workers: number of processes; by default one for each core.
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


def _measure_one(film: Film) -> FilmFeatures | str:
    try:
        return film_features(read_film(film), name_of(film))
    except (OSError, FilmError) as error:
        return str(error)


# --------------------------------------------------------------------------- telling apart

FOLDS: Final = 5
FITTED_ON: Final = 20_000  # films at most, to limit time and memory; the other films are scored all the same
SCORED_AT_ONCE: Final = 10_000  # films scored together; limits the memory of their features in float64
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
            for start in range(0, len(there), SCORED_AT_ONCE):
                part = there[start : start + SCORED_AT_ONCE]
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
                means.predict(principal.transform(values[start : start + SCORED_AT_ONCE]))
                for start in range(0, len(values), SCORED_AT_ONCE)
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
        excess[_BORDER_OF_CELLS] = strokes[films].mean(axis=0) - strokes.mean(axis=0)
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
