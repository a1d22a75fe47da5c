"""The gate of a bundle: which films the model must not classify, by their pixels and by the facts in their files.

The out-of-distribution detector accepts a picture as a frontal chest film if its thumbnail, with brightness and
contrast removed, lies within three limits: a small network's log-odds that it is something else, its distance from the
plane of principal axes of the training films, and its distance from their centre within that plane. The second and
third are fitted without examples of refused pictures; the first is fitted with them (see ``training.ood_fit``). If
there were enough films, a convolutional network of four layers also sees 64 x 64 pixels: its log-odds have a fourth
limit, and it names the kind of picture. It is computed with NumPy, because the processes that read films load no
heavier library.

    plane -> picture of 64 x 64 -> up to four distances -> score, 0 to 1, refused above 0.5 -> Gate

Only the network's input is looked at, so neither the film's resolution nor that of the input matters.
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple, Self

import numpy as np
from PIL import Image

from chestxray.arrays import Float32Array, Float64Array, UInt8Array
from chestxray.errors import BundleInvalid
from chestxray.images import Radiograph
from chestxray.images.decode import decode
from chestxray.images.preprocess import resample
from chestxray.images.quality import objection_to
from chestxray.inference.bundle import Bundle
from chestxray.schema import Gate, Preprocessing

GATE_JSON: Final = "gate.json"
GATE_VERSION: Final = 2
READ_VERSIONS: Final = (1, GATE_VERSION)  # the first version has no convolutional network

PICTURE_SIDE: Final = 64  # pixels a side of the convolutional network's input
KERNELS: Final = (5, 3, 3, 3)  # pixels a side of its layers' filters; each layer halves the picture

SIDE: Final = 24  # pixels a side of the thumbnail: it shows heart, lungs and diaphragm, but hardly a pneumonia
FLAT: Final = 4.0  # grey levels added to the deviation, so that an empty picture is not amplified to pure noise
FARTHEST: Final = 6.0  # deviations along an axis; larger distances are clipped to this
REFUSED_ABOVE: Final = 0.5  # limit of the score
# highest score of the turned or inverted picture at which the reason says "turned" or "inverted"
SURE_BELOW: Final = 0.35

LOG_ODDS: Final = 2.0  # log-odds beyond the limit that count as much as ...
SHARE: Final = 0.1  # ... a distance longer than its limit by this fraction

DAYS_A_YEAR: Final = 365.25
MONTHS_A_YEAR: Final = 12
FEWEST: Final = 2  # an age is stated in the largest unit of which it has at least so many

# Changes that are tried on a refused picture: if one of them makes it look like a chest film, the reason says so.
TURNS: Final[tuple[tuple[Callable[[UInt8Array], UInt8Array], str], ...]] = (
    (lambda film: np.rot90(film, 1), "it looks like a chest film turned by 90 degrees to the right. Turn it back"),
    (lambda film: np.rot90(film, -1), "it looks like a chest film turned by 90 degrees to the left. Turn it back"),
    (lambda film: np.rot90(film, 2), "it looks like a chest film that is upside down. Turn it"),
    (lambda film: 255 - film, "it looks like the negative of a chest film. Invert it"),
)
UNLIKE: Final = "it does not look like a frontal chest film"
WORDS: Final = {
    "turned films": "a film that was turned",
    "negatives": "a negative",
    "cut or small films": "a part of a film, or a film on a page",
    "two films on one picture": "two films on one picture",
    "screenshots": "a screenshot",
    "phone pictures": "a picture of a film taken by a camera",
    "lateral views": "a lateral view",
    "oblique views": "an oblique view",
    "photographs, pages and drawings": "a photograph, a page or a drawing",
    "slices of the body": "a slice of CT or MRI",
    "other parts of the body": "another part of the body",
}  # names for the kinds that the fit makes; other kinds keep their own names

# The arrays that are stored, with their shapes: p pixels of a thumbnail, k axes, h hidden units.
ARRAYS: Final = ("centre", "axes", "deviations", "hidden", "hidden_bias", "output", "output_bias", "limits")


class RefusedCount(NamedTuple):
    """How many pictures of a kind were refused, of how many."""

    refused: int
    of: int


@dataclass(frozen=True, slots=True, eq=False)
class KindClassifier:
    """A convolutional network that tells what kind of picture one of 64 x 64 pixels is.

    Attributes:
        kinds: the kinds of picture that it distinguishes besides films.
        filters: one array a layer, shape (channels before x side x side, channels behind); see ``KERNELS``.
        biases: one array a layer.
        dense, dense_bias: from the last layer's 4 x 4 places to the logits; the first column is that of films.
        limit: of the log-odds that it is no film.
    """

    kinds: tuple[str, ...]
    filters: tuple[Float32Array, ...]
    biases: tuple[Float32Array, ...]
    dense: Float32Array
    dense_bias: Float32Array
    limit: float = 0.0
    _by_place: tuple[Float32Array, ...] = field(init=False, repr=False, default=())  # filters, channels innermost

    def __post_init__(self) -> None:
        before, cells = 1, PICTURE_SIDE // 2 ** len(KERNELS)
        for side, filters, bias in zip(KERNELS, self.filters, self.biases, strict=True):
            if filters.shape != (before * side * side, len(bias)):
                raise ValueError(f"a layer of shape {filters.shape} behind {before} channels")
            before = len(bias)
        shape = (before * cells * cells, len(self.kinds) + 1)
        if self.dense.shape != shape or self.dense_bias.shape != shape[1:]:
            raise ValueError(f"a last layer of shape {self.dense.shape}; {shape} is expected")
        arrays = (*self.filters, *self.biases, self.dense, self.dense_bias, np.array(self.limit))
        if not all(np.isfinite(array).all() for array in arrays):
            raise ValueError("an array holds something else than numbers")
        by_place = [
            np.ascontiguousarray(
                filters.reshape(-1, side, side, filters.shape[1]).transpose(1, 2, 0, 3).reshape(filters.shape)
            )
            for side, filters in zip(KERNELS, self.filters, strict=True)
        ]
        object.__setattr__(self, "_by_place", tuple(by_place))

    def logits(self, pictures: UInt8Array) -> Float32Array:
        """Return the logits of "film" and of each kind: shape (n, kinds + 1).

        Args:
            pictures: shape (n, PICTURE_SIDE, PICTURE_SIDE), uint8.
        """
        number, size = len(pictures), PICTURE_SIDE
        padded, inside = _with_rim(number, size, 1, KERNELS[0])
        np.subtract(pictures[..., None], np.float32(128), out=inside)
        inside /= np.float32(64)
        features = inside
        for layer, (side, filters, bias) in enumerate(zip(KERNELS, self._by_place, self.biases, strict=True)):
            size //= 2
            features = _windows(padded, side, size).reshape(-1, len(filters)) @ filters
            features += bias
            features = features.reshape(number, size, size, -1)
            if layer + 1 < len(KERNELS):  # the next layer's input is written where that layer looks for it
                padded, inside = _with_rim(number, size, features.shape[-1], KERNELS[layer + 1])
                np.maximum(features, 0.0, out=inside)
        np.maximum(features, 0.0, out=features)
        scores: Float32Array = features.reshape(number, -1) @ self.dense + self.dense_bias
        return scores

    def log_odds(self, pictures: UInt8Array) -> Float64Array:
        """Return the log-odds that each picture is no film: shape (n,)."""
        scores = self.logits(pictures).astype(np.float64)
        highest = scores[:, 1:].max(axis=1)
        others = highest + np.log(np.exp(scores[:, 1:] - highest[:, None]).sum(axis=1))
        odds: Float64Array = others - scores[:, 0]
        return odds

    def kind(self, picture: UInt8Array) -> str:
        """Return the likeliest kind other than film of a picture, shape (PICTURE_SIDE, PICTURE_SIDE)."""
        return self.kinds[int(self.logits(picture[None])[0, 1:].argmax())]

    def to_json(self) -> dict[str, Any]:
        """Return the network as JSON values, with arrays in 16 bits.

        Law: ``KindClassifier.from_json(x.to_json())`` answers as x, except for the rounding.
        """
        parts = {"filters": self.filters, "biases": self.biases, "dense": [self.dense], "dense_bias": [self.dense_bias]}
        arrays = {name: [_packed(array) for array in part] for name, part in parts.items()}
        return {"kinds": list(self.kinds), "limit": self.limit, "arrays": arrays}

    @classmethod
    def from_json(cls, raw: Mapping[str, Any]) -> Self:
        """Read what ``to_json`` returned. Raises: ValueError, TypeError or KeyError."""
        parts = {name: tuple(_unpacked(array) for array in part) for name, part in raw["arrays"].items()}
        return cls(
            tuple(map(str, raw["kinds"])),
            parts["filters"],
            parts["biases"],
            parts["dense"][0],
            parts["dense_bias"][0],
            float(raw["limit"]),
        )


@dataclass(frozen=True, slots=True, eq=False)
class OODDetector:
    """The fitted out-of-distribution detector: measures how unlike a frontal chest film a picture is.

    Attributes:
        centre: shape (p,), mean of the training films' thumbnails; p is ``SIDE`` squared.
        axes: shape (p, k), their principal axes.
        deviations: shape (k,), along the axes.
        hidden, hidden_bias: shapes (k + 1, h) and (h,), of the network's hidden layer; it sees the place along each
            axis, in deviations, and the distance from the plane of the axes.
        output, output_bias: shapes (h,) and (1,), to the log-odds of "something else".
        limits: shape (3,), of the log-odds, of the distance from the plane and of that within it.
        refused: counts of refused pictures among those not used in the fit, by kind; the first is "films".
        curve: fraction of each kind that is refused at each limit of the score in ``curve_limits``.
        validation: counts of refused validation films, by label; they set no limit. Empty if the fit had none.
        looks: the convolutional network; None if there were too few films, and in gates of the first version.
    """

    centre: Float32Array
    axes: Float32Array
    deviations: Float32Array
    hidden: Float32Array
    hidden_bias: Float32Array
    output: Float32Array
    output_bias: Float32Array
    limits: Float32Array
    refused: Mapping[str, RefusedCount]
    curve_limits: tuple[float, ...] = ()
    curve: Mapping[str, tuple[float, ...]] = field(default_factory=dict)
    looks: KindClassifier | None = None
    validation: Mapping[str, RefusedCount] = field(default_factory=dict)

    def __post_init__(self) -> None:
        pixels, axes = self.axes.shape
        units = self.output.shape[0]
        shapes = [(pixels,), (pixels, axes), (axes,), (axes + 1, units), (units,), (units,), (1,), (3,)]
        found = [getattr(self, name).shape for name in ARRAYS]
        if pixels != SIDE * SIDE or found != shapes:
            raise ValueError(f"arrays of shapes {found}; {shapes} are expected")
        if not all(np.isfinite(getattr(self, name)).all() for name in ARRAYS):
            raise ValueError("an array holds something else than numbers")

    def score(self, plane: UInt8Array) -> float:
        """Return the score of a picture, 0 to 1; it is refused above ``REFUSED_ABOVE``.

        Args:
            plane: the network's input, shape (height, width), uint8.
        """
        return float(self.scores([plane])[0])

    def scores(self, planes: Sequence[UInt8Array]) -> Float64Array:
        """Return the scores, shape (n,): the largest distance relative to its limit, where 0.5 is at the limit.

        Args:
            planes: pictures of any size.
        """
        return self.scores_of(self.distances(planes))

    def scores_of(self, distances: Float64Array) -> Float64Array:
        """Return the scores of distances that ``distances`` returned."""
        limits = self.all_limits
        units = np.array([LOG_ODDS, *(SHARE * limits[1:3]), LOG_ODDS])[: len(limits)]
        beyond = ((distances - limits) / units).max(axis=1)
        shares: Float64Array = 1.0 / (1.0 + np.exp(-beyond.clip(-30.0, 30.0)))
        return shares

    @property
    def all_limits(self) -> Float64Array:
        """Limits of the three distances, and of the fourth if there is one."""
        return np.array([*self.limits, *([self.looks.limit] if self.looks else [])], dtype=np.float64)

    def distances(self, planes: Sequence[UInt8Array]) -> Float64Array:
        """Measure the distances of pictures: shape (n, 3) or (n, 4).

        The columns are: the log-odds; the distance from the plane of the axes, per pixel; the distance within that
        plane, per axis; the log-odds of the convolutional network.
        """
        coded, beside = self.coded(np.stack([thumbnail(plane) for plane in planes]))
        active = np.maximum(coded @ self.hidden + self.hidden_bias, 0.0)
        log_odds = active @ self.output + self.output_bias
        within = np.sqrt(np.mean(coded[:, :-1] ** 2, axis=1))
        found = [log_odds, beside, within]
        if self.looks:
            found.append(self.looks.log_odds(np.stack([picture(plane) for plane in planes])))
        return np.stack(found, axis=1).astype(np.float64)

    def coded(self, thumbnails: Float32Array) -> tuple[Float32Array, Float32Array]:
        """Return the network's input, shape (n, k + 1), and the distance from the plane of the axes, shape (n,)."""
        return coded(thumbnails, self.centre, self.axes, self.deviations)

    def reason(self, plane: UInt8Array, score: float) -> str:
        """Explain in words why a picture with that score is refused."""
        upright = picture(plane)
        scores = self.scores([np.ascontiguousarray(change(upright)) for change, _ in TURNS])
        best = int(scores.argmin())
        if scores[best] < SURE_BELOW:
            words = TURNS[best][1]
        elif self.looks and self.looks.log_odds(upright[None])[0] > self.looks.limit:
            kind = self.looks.kind(upright)
            words = f"it looks like {WORDS.get(kind, kind)}, which this model was not trained on"
        else:
            words = UNLIKE
        return f"{words} (score {score:.2f}; refused above {REFUSED_ABOVE:.2f})"

    def to_json(self) -> str:
        """Return the detector as text. Law: ``OODDetector.from_json(text).to_json() == text``.

        Arrays are stored with 16 bits a number.
        """
        arrays = {name: _packed(getattr(self, name)) for name in ARRAYS}
        curve = {name: list(values) for name, values in self.curve.items()}
        measured = {"refused": self.refused, "curve_limits": self.curve_limits, "curve": curve}
        if self.validation:
            measured["validation"] = self.validation
        looks = {"looks": self.looks.to_json()} if self.looks else {}
        return json.dumps({"version": GATE_VERSION, **measured, "arrays": arrays, **looks}, indent=1)

    @classmethod
    def from_json(cls, text: str, source: str = GATE_JSON) -> Self:
        """Read the detector from text. Raises: BundleInvalid, if it is no gate of a known version."""
        try:
            raw = json.loads(text)
            if raw["version"] not in READ_VERSIONS:
                raise BundleInvalid(f"{source}: gate version {raw['version']}; this program reads up to {GATE_VERSION}")
            return cls(
                **{name: _unpacked(raw["arrays"][name]) for name in ARRAYS},
                refused={name: RefusedCount(*counts) for name, counts in raw["refused"].items()},
                curve_limits=tuple(raw["curve_limits"]),
                curve={name: tuple(values) for name, values in raw["curve"].items()},
                looks=KindClassifier.from_json(raw["looks"]) if "looks" in raw else None,
                validation={name: RefusedCount(*counts) for name, counts in raw.get("validation", {}).items()},
            )
        except (ValueError, TypeError, KeyError) as error:
            raise BundleInvalid(f"{source}: not a gate ({error!r}). Export the run again") from error


def _with_rim(number: int, size: int, channels: int, side: int) -> tuple[Float32Array, Float32Array]:
    """Return an empty array with a rim of zeros for filters of that side, and its part without the rim."""
    rim = side // 2
    padded = np.zeros((number, size + 2 * rim, size + 2 * rim, channels), np.float32)
    return padded, padded[:, rim : rim + size, rim : rim + size]


def _windows(padded: Float32Array, side: int, size: int) -> Float32Array:
    """Return a view of every second square of that side: shape (n, size, size, side, side * channels).

    NumPy's ``sliding_window_view`` takes as long as a whole layer.
    """
    number, _, _, channels = padded.shape
    picture, row, column, value = padded.strides
    shape, strides = (number, size, size, side, side * channels), (picture, 2 * row, 2 * column, row, value)
    return np.ndarray(shape, np.float32, padded, strides=strides)


def picture(plane: UInt8Array) -> UInt8Array:
    """Return a picture resized to ``PICTURE_SIDE`` x ``PICTURE_SIDE`` pixels."""
    side = (PICTURE_SIDE, PICTURE_SIDE)
    return np.asarray(Image.fromarray(np.ascontiguousarray(plane)).resize(side, Image.Resampling.BILINEAR))


def thumbnail(plane: UInt8Array) -> Float32Array:
    """Return a picture at ``SIDE`` x ``SIDE`` pixels, with mean 0 and deviation about 1: shape (p,)."""
    small = np.asarray(Image.fromarray(plane).resize((SIDE, SIDE), Image.Resampling.BILINEAR), dtype=np.float32)
    levels = (small - small.mean()).ravel()
    shape: Float32Array = levels / (np.sqrt(levels @ levels / np.float32(levels.size)) + np.float32(FLAT))
    return shape


def coded(
    thumbnails: Float32Array, centre: Float32Array, axes: Float32Array, deviations: Float32Array
) -> tuple[Float32Array, Float32Array]:
    """Return thumbnails as places along the axes, and their distance from the plane of the axes.

    See ``OODDetector`` for the shapes.
    """
    from_centre = thumbnails - centre
    along = from_centre @ axes
    squares = np.sum(from_centre**2, axis=1) - np.sum(along**2, axis=1)
    beside = np.sqrt(squares.clip(0.0) / thumbnails.shape[1])
    places = (along / deviations).clip(-FARTHEST, FARTHEST)
    return np.concatenate([places, beside[:, None] / SHARE], axis=1), beside


# --------------------------------------------------------------------------- the gate


@dataclass(frozen=True, slots=True)
class Gatekeeper:
    """The films that a bundle refuses; small enough to be sent to worker processes.

    Attributes:
        ages: ages of the patients for whom the model is meant, in years: from the first, to below the second; None for
            any.
        detector: the out-of-distribution detector; None if the bundle has none.
        require_age: whether a film whose file states no age is refused; otherwise it is classified, with a note.
    """

    ages: tuple[float, float] | None = None
    detector: OODDetector | None = None
    require_age: bool = False

    @classmethod
    def of(cls, bundle: Bundle, *, require_age: bool = False) -> Self:
        """Return the gate of a bundle; a bundle without one refuses nothing. Raises: BundleInvalid."""
        return cls(bundle.info.intended_ages, detector_of(bundle), require_age)

    def predict(self, film: Radiograph, plane: UInt8Array) -> Gate:
        """Decide whether the model may classify a film.

        Args:
            film: the decoded film.
            plane: the same film as the network's input.
        """
        score = self.detector.score(plane) if self.detector else None
        if self.ages and film.patient_age_years is not None and not _within(film.patient_age_years, self.ages):
            age = age_in_words(film.patient_age_years)
            reason = f"its file gives an age of {age}, and the model is for {ages_in_words(self.ages)}"
            return Gate(accepted=False, reason=reason, score=score)
        if self.detector and score is not None and score > REFUSED_ABOVE:
            return Gate(accepted=False, reason=self.detector.reason(plane, score), score=score)
        if self.require_age and film.patient_age_years is None:
            reason = "its file states no age, and this service answers only where one is stated (--require-age)"
            return Gate(accepted=False, reason=reason, score=score)
        return Gate(accepted=True, score=score)

    def notes_on(self, film: Radiograph) -> tuple[str, ...]:
        """Return the notes beside a film's answer: what was ignored in its file, and whether its age is unknown."""
        if self.ages is None or film.patient_age_years is not None:
            return film.notes
        return (*film.notes, f"age not stated; the model is for {ages_in_words(self.ages)}")

    def in_words(self) -> str:
        """Describe in one line what the gate refuses, with the measured counts."""
        counts = ""
        if self.detector:
            counts = f" (of pictures that set the limits, {_counted(self.detector.refused)}"
            if self.detector.validation:
                counts += f"; of validation films, which set none, {_counted(self.detector.validation)}"
            counts += ")"
        return refusals_in_words(self.ages, by_looks=self.detector is not None, counts=counts)


def refusals_in_words(ages: tuple[float, float] | None, *, by_looks: bool, counts: str = "") -> str:
    """Describe in one line what a gate refuses; ``counts`` follow what it refuses for its looks."""
    parts = [f"pictures unlike the training films{counts}"] if by_looks else []
    if ages:
        parts.append(f"DICOM films of patients outside of {ages_in_words(ages)}")
    return f"refuses {', and '.join(parts)}" if parts else "refuses no film for its looks or its patient's age"


def _counted(refused: Mapping[str, RefusedCount]) -> str:
    return ", ".join(f"{share.refused:,} of {share.of:,} {kind}" for kind, share in refused.items())


def detector_of(bundle: Bundle) -> OODDetector | None:
    """Return the detector in ``gate.json`` of a bundle; None if the bundle has none. Raises: BundleInvalid."""
    if GATE_JSON not in bundle.info.files:
        return None
    return OODDetector.from_json(bundle.read(GATE_JSON).decode(), str(bundle.folder / GATE_JSON))


def age_in_words(age: float) -> str:
    """Return an age in words, such as "67 years", "18 months" or "10 days"."""
    units = ((age, "years"), (age * MONTHS_A_YEAR, "months"), (age * DAYS_A_YEAR, "days"))
    number, unit = next((found for found in units if found[0] >= FEWEST), units[-1])
    return f"{int(number)} {unit}"


def ages_in_words(ages: tuple[float, float]) -> str:
    """Return a range of ages in words, such as "28 days to under 12 years"."""
    low, high = (f"{round(age * DAYS_A_YEAR)} days" if age < 1.0 else f"{age:g} years" for age in ages)
    return f"{low} to under {high}"


def _within(age: float, ages: tuple[float, float]) -> bool:
    return ages[0] <= age < ages[1]


def _packed(array: Float32Array) -> dict[str, Any]:
    data = base64.b64encode(array.astype("<f2").tobytes()).decode()
    return {"shape": list(array.shape), "float16": data}


def _unpacked(raw: Mapping[str, Any]) -> Float32Array:
    data = base64.b64decode(raw["float16"], validate=True)
    return np.frombuffer(data, dtype="<f2").reshape(raw["shape"]).astype(np.float32)


ANYTHING: Final = Gatekeeper()  # refuses nothing, as bundles from before there were gates


@dataclass(frozen=True, slots=True)
class Prepared:
    """One film, decoded, checked and preprocessed.

    Attributes:
        sha256: SHA-256 of the film's bytes.
        gate: accepted, or refused and why.
        size: (height, width) of the film, upright, in pixels.
        plane: the network's input, shape (height, width), uint8; None where the gate is closed.
        notes: remarks beside the answer, each a short clause.
    """

    sha256: str
    gate: Gate
    size: tuple[int, int]
    plane: UInt8Array | None
    notes: tuple[str, ...] = ()


def prepare(
    data: bytes,
    source: str,
    preprocessing: Preprocessing,
    gatekeeper: Gatekeeper = ANYTHING,
    film: Radiograph | None = None,
) -> Prepared:
    """Decode, check and preprocess the bytes of one film.

    Args:
        data: the whole file.
        source: the film's name in errors.
        preprocessing: of the bundle.
        gatekeeper: the bundle's gate; it adds to what every bundle refuses.
        film: the same film decoded, if the caller has it.

    Raises: FilmError, if the bytes cannot be read as a film.
    """
    height, width = preprocessing.height, preprocessing.width
    film = film or decode(data, source, at_least=(height, width))
    digest = hashlib.sha256(data).hexdigest()
    size = (film.height, film.width)
    if objection := objection_to(film):
        return Prepared(digest, Gate(accepted=False, reason=objection.reason), size, None, film.notes)
    plane = resample(film.pixels, height, width, preprocessing.resize, film.frame, preprocessing.levels)
    gate = gatekeeper.predict(film, plane)
    return Prepared(digest, gate, size, plane if gate.accepted else None, gatekeeper.notes_on(film))
