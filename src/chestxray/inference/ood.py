"""The gate of a bundle: which films the model must not classify, from their looks and from what their files say.

A picture is taken for a frontal chest film where its thumbnail, with brightness and contrast taken away, lies within
three limits: a small network's log-odds that it is something else, its distance from the plane of principal axes of
the training films, and its distance from their centre within that plane. The second and third know no example of
what is refused; the first does (see ``training.ood_fit``). Where there were films enough, a convolutional network of
four layers looks at 64 x 64 pixels as well: its log-odds have a fourth limit, and it names the kind that it sees. It is
computed with NumPy, since the processes that read films load nothing heavier.

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
import numpy.typing as npt
from PIL import Image

from chestxray.errors import BundleInvalid
from chestxray.images.decode import decode
from chestxray.images.preprocess import Plane, resample
from chestxray.images.quality import objection_to
from chestxray.images.radiograph import Radiograph
from chestxray.inference.bundle import Bundle
from chestxray.schema import Gate, Preprocessing

Float32Array = npt.NDArray[np.float32]

GATE: Final = "gate.json"
GATE_VERSION: Final = 2
READ_VERSIONS: Final = (1, GATE_VERSION)  # the first has no convolutional network

PICTURE_SIDE: Final = 64  # pixels of what the convolutional network sees
KERNELS: Final = (5, 3, 3, 3)  # pixels a side of its layers' filters; each layer halves the picture

SIDE: Final = 24  # pixels of the thumbnail: heart, lungs and diaphragm are seen, a pneumonia hardly
FLAT: Final = 4.0  # grey levels added to the deviation, so that an empty picture is not blown up to pure noise
FARTHEST: Final = 6.0  # deviations along an axis; beyond that it no longer matters how far
REFUSED_ABOVE: Final = 0.5  # of the score
SURE_BELOW: Final = 0.35  # score of a picture turned or inverted, for saying that it was turned or inverted

LOG_ODDS: Final = 2.0  # beyond the limit that count as much as ...
SHARE: Final = 0.1  # ... a distance longer than its limit by this share

DAYS_A_YEAR: Final = 365.25
MONTHS_A_YEAR: Final = 12
FEWEST: Final = 2  # of a unit in which an age is told

# What is tried on a refused picture: where one of these makes a chest film of it, the reason can say so.
REMEDIES: Final[tuple[tuple[Callable[[Plane], Plane], str], ...]] = (
    (lambda film: np.rot90(film, 1), "it looks like a chest film turned by 90 degrees to the right. Turn it back"),
    (lambda film: np.rot90(film, -1), "it looks like a chest film turned by 90 degrees to the left. Turn it back"),
    (lambda film: np.rot90(film, 2), "it looks like a chest film that stands upside down. Turn it"),
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
}  # of the kinds that the fit makes; others are called by their own names

# The parts that are stored, with their shapes: p pixels of a thumbnail, k axes, h hidden units.
ARRAYS: Final = ("centre", "axes", "deviations", "hidden", "hidden_bias", "output", "output_bias", "limits")


class Share(NamedTuple):
    """So many of so many pictures of a kind were refused."""

    refused: int
    of: int


@dataclass(frozen=True, slots=True, eq=False)
class Looks:
    """The convolutional network: what a picture of 64 x 64 pixels shows.

    Attributes:
        kinds: what it tells apart besides films.
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

    def logits(self, pictures: Plane) -> Float32Array:
        """Of film and of each kind: shape (n, kinds + 1).

        Args:
            pictures: shape (n, PICTURE_SIDE, PICTURE_SIDE), uint8.
        """
        features: Float32Array = ((pictures.astype(np.float32) - np.float32(128)) / np.float32(64))[..., None]
        for side, filters, bias in zip(KERNELS, self.filters, self.biases, strict=True):
            rim = side // 2
            number, rows, columns, channels = features.shape  # np.pad takes as long as a layer
            padded = np.zeros((number, rows + 2 * rim, columns + 2 * rim, channels), np.float32)
            padded[:, rim : rim + rows, rim : rim + columns] = features
            windows = np.lib.stride_tricks.sliding_window_view(padded, (side, side), axis=(1, 2))[:, ::2, ::2]
            number, rows, columns = windows.shape[:3]
            seen = windows.reshape(number * rows * columns, -1) @ filters + bias
            features = np.maximum(seen, 0.0).reshape(number, rows, columns, -1)
        scores: Float32Array = features.reshape(len(pictures), -1) @ self.dense + self.dense_bias
        return scores

    def log_odds(self, pictures: Plane) -> npt.NDArray[np.float64]:
        """That a picture is none of the films: shape (n,)."""
        scores = self.logits(pictures).astype(np.float64)
        highest = scores[:, 1:].max(axis=1)
        others = highest + np.log(np.exp(scores[:, 1:] - highest[:, None]).sum(axis=1))
        odds: npt.NDArray[np.float64] = others - scores[:, 0]
        return odds

    def kind(self, picture: Plane) -> str:
        """The likeliest but for films; shape (PICTURE_SIDE, PICTURE_SIDE)."""
        return self.kinds[int(self.logits(picture[None])[0, 1:].argmax())]

    def to_json(self) -> dict[str, Any]:
        """Law: ``Looks.from_json(x.to_json())`` answers as x, but for rounding to 16 bits."""
        parts = {"filters": self.filters, "biases": self.biases, "dense": [self.dense], "dense_bias": [self.dense_bias]}
        arrays = {name: [_packed(array) for array in part] for name, part in parts.items()}
        return {"kinds": list(self.kinds), "limit": self.limit, "arrays": arrays}

    @classmethod
    def from_json(cls, raw: Mapping[str, Any]) -> Self:
        """Raises: ValueError, TypeError or KeyError."""
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
    """How unlike a frontal chest film a picture is: everything that the fit found.

    Attributes:
        centre: shape (p,), mean of the training films' thumbnails; p is ``SIDE`` squared.
        axes: shape (p, k), their principal axes.
        deviations: shape (k,), along the axes.
        hidden, hidden_bias: shapes (k + 1, h) and (h,), of the network's hidden layer; it sees the place along each
            axis, in deviations, and the distance from the plane of the axes.
        output, output_bias: shapes (h,) and (1,), to the log-odds of "something else".
        limits: shape (3,), of the log-odds, of the distance from the plane and of that within it.
        refused: what became of pictures that nothing was fitted on, by kind; the first is "films".
        curve: the share of each kind that is refused where the score's limit is each of ``curve_limits``.
        validation: what became of validation films, by label: these set no limit. Empty where the fit saw none.
        looks: the convolutional network; None where films were too few, and in gates of the first version.
    """

    centre: Float32Array
    axes: Float32Array
    deviations: Float32Array
    hidden: Float32Array
    hidden_bias: Float32Array
    output: Float32Array
    output_bias: Float32Array
    limits: Float32Array
    refused: Mapping[str, Share]
    curve_limits: tuple[float, ...] = ()
    curve: Mapping[str, tuple[float, ...]] = field(default_factory=dict)
    looks: Looks | None = None
    validation: Mapping[str, Share] = field(default_factory=dict)

    def __post_init__(self) -> None:
        pixels, axes = self.axes.shape
        units = self.output.shape[0]
        shapes = [(pixels,), (pixels, axes), (axes,), (axes + 1, units), (units,), (units,), (1,), (3,)]
        found = [getattr(self, name).shape for name in ARRAYS]
        if pixels != SIDE * SIDE or found != shapes:
            raise ValueError(f"arrays of shapes {found}; {shapes} are expected")
        if not all(np.isfinite(getattr(self, name)).all() for name in ARRAYS):
            raise ValueError("an array holds something else than numbers")

    def score(self, plane: Plane) -> float:
        """0 to 1; refused above ``REFUSED_ABOVE``.

        Args:
            plane: the network's input, shape (height, width), uint8.
        """
        return float(self.scores([plane])[0])

    def scores(self, planes: Sequence[Plane]) -> npt.NDArray[np.float64]:
        """The largest of the distances by its limit, as a share: 0.5 lies at the limit. Shape (n,).

        Args:
            planes: of any size.
        """
        return self.scores_of(self.distances(planes))

    def scores_of(self, distances: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        """The same, from what ``distances`` gives."""
        limits = self.all_limits
        units = np.array([LOG_ODDS, *(SHARE * limits[1:3]), LOG_ODDS])[: len(limits)]
        beyond = ((distances - limits) / units).max(axis=1)
        shares: npt.NDArray[np.float64] = 1.0 / (1.0 + np.exp(-beyond.clip(-30.0, 30.0)))
        return shares

    @property
    def all_limits(self) -> npt.NDArray[np.float64]:
        """Of the three distances, and of the fourth where there is one."""
        return np.array([*self.limits, *([self.looks.limit] if self.looks else [])], dtype=np.float64)

    def distances(self, planes: Sequence[Plane]) -> npt.NDArray[np.float64]:
        """Shape (n, 3) or (n, 4).

        Log-odds, distance from the plane of the axes and distance within it, a pixel or an axis; the log-odds of the
        convolutional network.
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
        """What the network sees, shape (n, k + 1), and the distance from the plane of the axes, shape (n,)."""
        return coded(thumbnails, self.centre, self.axes, self.deviations)

    def reason(self, plane: Plane, score: float) -> str:
        """Why a picture of that score is refused, in words."""
        upright = picture(plane)
        scores = self.scores([np.ascontiguousarray(change(upright)) for change, _ in REMEDIES])
        best = int(scores.argmin())
        if scores[best] < SURE_BELOW:
            words = REMEDIES[best][1]
        elif self.looks and self.looks.log_odds(upright[None])[0] > self.looks.limit:
            kind = self.looks.kind(upright)
            words = f"{UNLIKE}, but like {WORDS.get(kind, kind)}"
        else:
            words = UNLIKE
        return f"{words} (score {score:.2f}; refused above {REFUSED_ABOVE:.2f})"

    def to_json(self) -> str:
        """Law: ``OODDetector.from_json(text).to_json() == text``. Arrays are stored with 16 bits a number."""
        arrays = {name: _packed(getattr(self, name)) for name in ARRAYS}
        curve = {name: list(values) for name, values in self.curve.items()}
        measured = {"refused": self.refused, "curve_limits": self.curve_limits, "curve": curve}
        if self.validation:
            measured["validation"] = self.validation
        looks = {"looks": self.looks.to_json()} if self.looks else {}
        return json.dumps({"version": GATE_VERSION, **measured, "arrays": arrays, **looks}, indent=1)

    @classmethod
    def from_json(cls, text: str, source: str = GATE) -> Self:
        """Raises: BundleInvalid, when it is no gate of this version."""
        try:
            raw = json.loads(text)
            if raw["version"] not in READ_VERSIONS:
                raise BundleInvalid(f"{source}: gate version {raw['version']}; this program reads up to {GATE_VERSION}")
            return cls(
                **{name: _unpacked(raw["arrays"][name]) for name in ARRAYS},
                refused={name: Share(*counts) for name, counts in raw["refused"].items()},
                curve_limits=tuple(raw["curve_limits"]),
                curve={name: tuple(values) for name, values in raw["curve"].items()},
                looks=Looks.from_json(raw["looks"]) if "looks" in raw else None,
                validation={name: Share(*counts) for name, counts in raw.get("validation", {}).items()},
            )
        except (ValueError, TypeError, KeyError) as error:
            raise BundleInvalid(f"{source}: not a gate ({error!r}). Export the run again") from error


def picture(plane: Plane) -> Plane:
    """A picture at ``PICTURE_SIDE`` x ``PICTURE_SIDE`` pixels."""
    side = (PICTURE_SIDE, PICTURE_SIDE)
    return np.asarray(Image.fromarray(np.ascontiguousarray(plane)).resize(side, Image.Resampling.BILINEAR))


def thumbnail(plane: Plane) -> Float32Array:
    """A picture at ``SIDE`` x ``SIDE`` pixels, its mean 0 and its deviation about 1: shape (p,)."""
    small = np.asarray(Image.fromarray(plane).resize((SIDE, SIDE), Image.Resampling.BILINEAR), dtype=np.float32)
    levels = small - small.mean()
    shape: Float32Array = (levels / (levels.std() + np.float32(FLAT))).ravel()
    return shape


def coded(
    thumbnails: Float32Array, centre: Float32Array, axes: Float32Array, deviations: Float32Array
) -> tuple[Float32Array, Float32Array]:
    """Thumbnails by their places along the axes and their distance from the plane of them; see ``OODDetector``."""
    from_centre = thumbnails - centre
    along = from_centre @ axes
    squares = np.sum(from_centre**2, axis=1) - np.sum(along**2, axis=1)
    beside = np.sqrt(squares.clip(0.0) / thumbnails.shape[1])
    places = (along / deviations).clip(-FARTHEST, FARTHEST)
    return np.concatenate([places, beside[:, None] / SHARE], axis=1), beside


# --------------------------------------------------------------------------- the gate


@dataclass(frozen=True, slots=True)
class Gatekeeper:
    """What a bundle refuses; small enough to travel to worker processes.

    Attributes:
        ages: of the patients that the model is meant for, in years: from the first, to below the second; None for any.
        likeness: None where the bundle has none.
        require_age: whether a film whose file states no age is refused; else it is answered, with a note.
    """

    ages: tuple[float, float] | None = None
    likeness: OODDetector | None = None
    require_age: bool = False

    @classmethod
    def of(cls, bundle: Bundle, *, require_age: bool = False) -> Self:
        """The gate of a bundle; one that refuses nothing where the bundle has none. Raises: BundleInvalid."""
        return cls(bundle.info.intended_ages, likeness_of(bundle), require_age)

    def predict(self, film: Radiograph, plane: Plane) -> Gate:
        """Whether the model may classify a film.

        Args:
            film: as decoded.
            plane: the same, as the network sees it.
        """
        score = self.likeness.score(plane) if self.likeness else None
        if self.ages and film.patient_age_years is not None and not _within(film.patient_age_years, self.ages):
            age = age_in_words(film.patient_age_years)
            reason = f"its file gives an age of {age}, and the model is for {ages_in_words(self.ages)}"
            return Gate(accepted=False, reason=reason, score=score)
        if self.likeness and score is not None and score > REFUSED_ABOVE:
            return Gate(accepted=False, reason=self.likeness.reason(plane, score), score=score)
        if self.require_age and film.patient_age_years is None:
            reason = "its file states no age, and this service answers only where one is stated (--require-age)"
            return Gate(accepted=False, reason=reason, score=score)
        return Gate(accepted=True, score=score)

    def notes_on(self, film: Radiograph) -> tuple[str, ...]:
        """What stands beside the answer to a film: what was ignored in its file, and whether its age is unknown."""
        if self.ages is None or film.patient_age_years is not None:
            return film.notes
        return (*film.notes, f"age not stated; the model is for {ages_in_words(self.ages)}")

    def in_words(self) -> str:
        """What it refuses, with the counts that were measured, in one line."""
        parts = []
        if self.likeness:
            counts = f"of pictures that set the limits, {_counted(self.likeness.refused)}"
            if self.likeness.validation:
                counts += f"; of validation films, which set none, {_counted(self.likeness.validation)}"
            parts.append(f"pictures unlike the training films ({counts})")
        if self.ages:
            parts.append(f"DICOM films of patients outside of {ages_in_words(self.ages)}")
        return f"refuses {', and '.join(parts)}" if parts else "refuses no film for its looks or its patient's age"


def _counted(refused: Mapping[str, Share]) -> str:
    return ", ".join(f"{share.refused:,} of {share.of:,} {kind}" for kind, share in refused.items())


def likeness_of(bundle: Bundle) -> OODDetector | None:
    """What ``gate.json`` of a bundle holds; None where it has none. Raises: BundleInvalid."""
    if GATE not in bundle.info.files:
        return None
    return OODDetector.from_json(bundle.read(GATE).decode(), str(bundle.folder / GATE))


def age_in_words(age: float) -> str:
    """Such as "67 years", "18 months" or "10 days"."""
    units = ((age, "years"), (age * MONTHS_A_YEAR, "months"), (age * DAYS_A_YEAR, "days"))
    number, unit = next((found for found in units if found[0] >= FEWEST), units[-1])
    return f"{int(number)} {unit}"


def ages_in_words(ages: tuple[float, float]) -> str:
    """Such as "28 days to under 12 years"."""
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


ANYTHING: Final = Gatekeeper()  # refuses nothing, as a bundle from before there were gates


@dataclass(frozen=True, slots=True)
class Prepared:
    """One film, read.

    Attributes:
        sha256: of its bytes.
        gate: accepted, or refused and why.
        size: (height, width) of the film, upright, in pixels.
        plane: the network's input, shape (height, width), uint8; None where the gate is closed.
        notes: what stands beside the answer, each in half a sentence.
    """

    sha256: str
    gate: Gate
    size: tuple[int, int]
    plane: Plane | None
    notes: tuple[str, ...] = ()


def prepare(
    data: bytes,
    source: str,
    preprocessing: Preprocessing,
    gatekeeper: Gatekeeper = ANYTHING,
    film: Radiograph | None = None,
) -> Prepared:
    """Read the bytes of one film.

    Args:
        data: the whole file.
        source: what to call it in errors.
        preprocessing: of the bundle.
        gatekeeper: of the bundle; refuses beyond what no bundle may classify.
        film: the same film decoded, where the caller has it.

    Raises: FilmError, where they cannot be read as a film.
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
