"""The vocabulary of the package: four contracts between the stages, standard library only.

    Manifest    manifest.csv     one Film a row           collect, clean, split -> pack, batch
    Pack        pack.json        PackInfo                 pack -> train, evaluate
    Bundle      bundle.json      BundleInfo               export -> predict, serve
    Prediction  JSON             Prediction               predict -> everybody

Each is a frozen dataclass that refuses invalid values, with one round-trip law: reading what was written
gives an equal value. Stages know these contracts, not each other.
"""

from __future__ import annotations

import csv
import dataclasses
import hashlib
import html
import io
import json
import math
import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any, Final, Self, TypeVar, cast

from chestxray.arguments import arguments_checked, is_number
from chestxray.errors import BundleInvalid, ManifestInvalid, OutOfRange, PackInvalid, UsageError, reason_of
from chestxray.files import read_text, refuse_to_replace, write_atomically
from chestxray.text import of_cell, table_bytes

MANIFEST_VERSION: Final = 1
PACK_VERSION: Final = 1
BUNDLE_VERSION: Final = 1
PREDICTION_VERSION: Final = 1

MIN_INPUT_SIDE: Final = 32  # pixels: five halvings leave one cell
MAX_INPUT_SIDE: Final = 4096

NOTICE: Final = "Research use only. Not a medical device; not for clinical use."
PATIENTS_UNKNOWN: Final = "patients unknown: every film counts as its own; a split may leak"
INTENDED_USE: Final = (
    "Research and teaching on frontal chest radiographs of children (the published training films are "
    "antero-posterior views of patients aged one to five years, from one hospital). " + NOTICE
)
# Years, from the first to below the second; a DICOM film with a stated age outside is refused. The published
# training films are of children aged one to five. Those years are in two of the age classes of ICH E11(R1) section
# 2.5, "infants and toddlers" and "children"; newborns before them and adolescents after have different chests.
INTENDED_AGES: Final = (28 / 365.25, 12.0)

Choice = TypeVar("Choice", bound=StrEnum)


class Label(StrEnum):
    """What a film shows. The order gives the class index: pneumonia is positive."""

    NORMAL = "normal"
    PNEUMONIA = "pneumonia"

    @property
    def class_index(self) -> int:
        """0 for normal, 1 for pneumonia."""
        return tuple(Label).index(self)


class Split(StrEnum):
    """The split of a film."""

    TRAIN = "train"
    VAL = "val"
    TEST = "test"


class Verdict(StrEnum):
    """The result of ``clean``. Only accepted films are packed; nothing is ever deleted."""

    ACCEPTED = "accepted"
    UNREADABLE = "unreadable"
    TRUNCATED = "truncated"
    COLOURED = "coloured"
    BLANK = "blank"
    TOO_SMALL = "too_small"
    NOT_FRONTAL = "not_frontal"
    INVERTED = "inverted"
    GREY_LEVELS = "grey_levels"
    DUPLICATE = "duplicate"
    NEAR_DUPLICATE = "near_duplicate"
    CONFLICTING = "conflicting"


class Resize(StrEnum):
    """How a film of any shape becomes a picture of one shape."""

    SQUEEZE = "squeeze"  # each axis is scaled on its own: the aspect ratio is lost, no pixel is
    LETTERBOX = "letterbox"  # the aspect ratio is kept, black bars are added
    CROP = "crop"  # the aspect ratio is kept, the centre is cut out


class Levels(StrEnum):
    """How a film's grey levels are mapped on their way to the network."""

    STORED = "stored"  # unchanged: a dark export stays dark
    STRETCHED = "stretched"  # the darkest and brightest hundredth of the film's middle become black and white
    EQUALISED = "equalised"  # the same, and then moved towards the levels' ranks within the film


# --------------------------------------------------------------------------- manifest


@dataclass(frozen=True, slots=True)
class Film:
    """One row of a manifest. Empty text and zero mean "not known yet".

    Attributes:
        path: absolute path in memory; relative to the manifest on disk if the film is below the manifest's folder.
        label: "normal", "pneumonia" or "".
        split: "train", "val", "test" or "".
        patient_id: the name of the patient as the source gives it, with its counter's name.
        cause: "bacteria", "virus" or "": cause of the pneumonia, for subgroups.
        sha256: hash of the file's bytes, 64 hexadecimal digits.
        width, height: in pixels, after the EXIF orientation was applied.
        channels: as stored in the file (a greyscale film may be stored with 3).
        bit_depth: bits a sample, as stored.
        perceptual_hash: 512-bit difference hash, 128 hexadecimal digits.
        verdict, reason: the result of ``clean``, and its reason in one sentence.
        mean_level: mean of the pixels, black 0 and white 1, rounded to 4 decimals.
        extra: further columns of the source, as (name, value) sorted by name; empty values are left out.
    """

    path: str
    label: str = ""
    split: str = ""
    patient_id: str = ""
    cause: str = ""
    sha256: str = ""
    width: int = 0
    height: int = 0
    channels: int = 0
    bit_depth: int = 0
    perceptual_hash: str = ""
    verdict: str = ""
    reason: str = ""
    mean_level: float = 0.0
    extra: tuple[tuple[str, str], ...] = ()

    def __post_init__(self) -> None:
        if not self.path:
            raise ManifestInvalid("a row has no path")
        if self.extra:
            object.__setattr__(self, "extra", _further(self.extra))
        for name, allowed in (("label", Label), ("split", Split), ("verdict", Verdict)):
            value = getattr(self, name)
            if value and value not in tuple(allowed):
                raise ManifestInvalid(
                    f"{self.path}: the {name} is {value!r}; it may be one of {', '.join(allowed)}, or empty"
                )
        if min(self.width, self.height, self.channels, self.bit_depth) < 0:
            raise ManifestInvalid(f"{self.path}: a size is negative")
        if not 0.0 <= self.mean_level <= 1.0:
            raise ManifestInvalid(f"{self.path}: the mean level is {self.mean_level}; it lies in 0 to 1")

    @property
    def is_accepted(self) -> bool:
        """True if ``clean`` found no objection to this film."""
        return self.verdict == Verdict.ACCEPTED


FILM_COLUMNS: Final = tuple(f.name for f in dataclasses.fields(Film) if f.name != "extra")
_NUMBERS: Final = {"width": int, "height": int, "channels": int, "bit_depth": int, "mean_level": float}
_AS_WRITTEN: Final = frozenset({"path", "patient_id"})  # spaces in these belong to the value
VERSION_COLUMN: Final = "manifest_version"


def _further(pairs: Iterable[tuple[str, str]]) -> tuple[tuple[str, str], ...]:
    """Return further columns in one form: single spaces, no empty value, sorted. Raises: ManifestInvalid."""
    tidy = sorted((" ".join(name.split()), " ".join(value.split())) for name, value in pairs)
    names = [name for name, value in tidy if value]
    if len(set(names)) < len(names) or not {"", *FILM_COLUMNS, VERSION_COLUMN}.isdisjoint(names):
        raise ManifestInvalid(f"the further columns {', '.join(names)}: each needs a name of its own")
    return tuple((name, value) for name, value in tidy if value)


def check_manifest(path: Path | str) -> None:
    """Check that a manifest may be written to ``path``: it is free, or a manifest. Raises: OutputExists."""
    column = VERSION_COLUMN.encode()
    refuse_to_replace(Path(path), lambda head: column in head.split(b"\n", 1)[0], "a manifest")


@arguments_checked
def write_manifest(films: Iterable[Film], path: Path | str) -> None:
    """Write films as CSV, completely or not at all. Law: ``read_manifest(p)`` returns the same films.

    Names of files that are no valid text are written as their bytes.

    Raises: OutputExists, if ``path`` is another file; OutputUnwritable.
    """
    path = Path(path)
    check_manifest(path)
    base = path.parent.resolve()
    films = rows_of(films)
    further = sorted({name for film in films for name, _ in film.extra})
    rows: list[list[object]] = [[*FILM_COLUMNS, VERSION_COLUMN, *further]]
    for film in films:
        row = [getattr(film, name) for name in FILM_COLUMNS]
        row[0] = _as_stored(film.path, base)
        extra = dict(film.extra)
        values = ["" if value == 0 else value for value in row]
        rows.append([*values, MANIFEST_VERSION, *(extra.get(name, "") for name in further)])
    write_atomically(path, table_bytes(rows))


@arguments_checked
def read_manifest(path: Path | str) -> tuple[Film, ...]:
    """Read a manifest. Raises: ManifestInvalid, which names the line."""
    path = Path(path)
    try:
        data = read_text(path)
        data.split(b"\n", 1)[0].decode("utf-8")  # names of files may be any bytes; the header is text
        text = data.decode("utf-8-sig", "surrogateescape")
    except (OSError, ValueError) as error:
        raise ManifestInvalid(f"{path}: cannot be read as a manifest ({reason_of(error)})") from error
    rows = csv.DictReader(io.StringIO(text, newline=""))
    try:
        return tuple(_films_of(rows, path))
    except csv.Error as error:
        raise ManifestInvalid(f"{path}, line {rows.line_num + 1}: {error}. Close its quotes") from error


def _films_of(rows: csv.DictReader[str], path: Path) -> Iterator[Film]:
    if "path" not in (rows.fieldnames or ()):
        raise ManifestInvalid(f'{path}: has no column "path". Make a manifest with "chestxray collect"')
    base = path.parent.resolve()
    for row in rows:
        line = f"{path}, line {rows.line_num}"
        version = row.get(VERSION_COLUMN) or str(MANIFEST_VERSION)
        if version != str(MANIFEST_VERSION):
            raise ManifestInvalid(f"{line}: manifest version {version}; this program reads {MANIFEST_VERSION}")
        try:
            yield _film_of_row(row, base)
        except (ManifestInvalid, ValueError) as error:
            raise ManifestInvalid(f"{line}: {error}") from error


def _film_of_row(row: Mapping[str, str | None], base: Path) -> Film:
    values: dict[str, Any] = {}
    for name in FILM_COLUMNS:
        text = of_cell(row.get(name) or "")
        if name not in _AS_WRITTEN:
            text = text.strip()
        values[name] = _NUMBERS[name](text or 0) if name in _NUMBERS else text
    if values["path"] and "://" not in values["path"]:
        values["path"] = str(base / values["path"])
    known = {*FILM_COLUMNS, VERSION_COLUMN, None}
    extra = tuple((of_cell(name), of_cell(value or "")) for name, value in row.items() if name not in known and name)
    return Film(**values, extra=extra)


def _as_stored(path: str, base: Path) -> str:
    below = Path(path)
    return below.relative_to(base).as_posix() if below.is_relative_to(base) else path


# --------------------------------------------------------------------------- pack


def rows_of(films: Iterable[Film]) -> tuple[Film, ...]:
    """Return the films that a caller gives as a tuple. Raises: UsageError, if they are a path or anything else."""
    if isinstance(films, str | os.PathLike):
        raise UsageError(
            f"{os.fspath(films)!r}: is a path, and films are rows. Read a manifest with read_manifest, and any other "
            "source with collect"
        )
    rows: tuple[object, ...] = tuple(films) if isinstance(films, Iterable) else (films,)
    for row in rows:
        if not isinstance(row, Film):
            raise UsageError(f"films are rows of a manifest, and {str(row)[:40]!r} is none. Give what collect returns")
    return cast("tuple[Film, ...]", rows)


def member(kind: type[Choice], value: Choice | str) -> Choice:
    """Return the member of an enumeration that has this value. Raises: OutOfRange, which names the members."""
    try:
        return kind(value)
    except ValueError as error:
        raise OutOfRange(f"{value!r} is no {kind.__name__.lower()}; it may be {' or '.join(kind)}") from error


@dataclass(frozen=True, slots=True)
class Preprocessing:
    """All steps between a decoded film and the network's input.

    Attributes:
        height, width: size of the network's input, in pixels.
        resize: how a film of another shape is resized.
        mean, std: mean and deviation of the grey level over all pixels of the training films, black 0, white 1.
        levels: how a film's grey levels are mapped; bundles and packs from before 2026-11-28 keep them as stored.
    """

    height: int
    width: int
    resize: Resize
    mean: float
    std: float
    levels: Levels = Levels.STORED

    def __post_init__(self) -> None:
        object.__setattr__(self, "resize", member(Resize, self.resize))
        object.__setattr__(self, "levels", member(Levels, self.levels))
        sides = (self.height, self.width)
        if not all(is_number(side, whole=True) and MIN_INPUT_SIDE <= side <= MAX_INPUT_SIDE for side in sides):
            raise OutOfRange(
                f"input size {self.height} x {self.width}: "
                f"each side must be {MIN_INPUT_SIDE} to {MAX_INPUT_SIDE} pixels"
            )
        if not (0.0 <= self.mean <= 1.0 and 0.0 < self.std <= 1.0):
            raise OutOfRange(f"mean {self.mean}, deviation {self.std}: must lie in 0 to 1, deviation above 0")

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of the network's input, in pixels."""
        return self.height, self.width


@dataclass(frozen=True, slots=True)
class PackInfo:
    """The content of ``pack.json``: a description of the array.

    Attributes:
        count: films in ``images.npy``, in the order of the pack's own ``manifest.csv``.
        preprocessing: the size, the policy and the statistics of the training rows.
        fingerprint: SHA-256 over each film's hash, label, split and patient, in order.
        leakage_allowed: the reason that was given for using splits that share patients or films; empty if they share
            none.
        decoder: SHA-256 of the code that decoded the films; a later pack copies films only if it is the same.
    """

    count: int
    preprocessing: Preprocessing
    fingerprint: str
    version: int = PACK_VERSION
    leakage_allowed: str = ""
    decoder: str = ""

    def to_json(self) -> str:
        """Return the description as JSON. Law: ``PackInfo.from_json(i.to_json()) == i``."""
        return json.dumps(dataclasses.asdict(self), indent=2)

    @classmethod
    def from_json(cls, text: str, source: str = "pack.json") -> Self:
        """Read a description. Raises: PackInvalid, if it is not a pack of this version."""
        try:
            raw = json.loads(text)
            if raw["version"] != PACK_VERSION:
                raise PackInvalid(f"{source}: pack version {raw['version']}; this program reads {PACK_VERSION}")
            return cls(**{**raw, "preprocessing": Preprocessing(**raw["preprocessing"])})
        except (ValueError, TypeError, KeyError) as error:
            raise PackInvalid(f"{source}: not a description of a pack ({error!r})") from error


def fingerprint(films: Iterable[Film]) -> str:
    """Return the SHA-256 that identifies a data set: the same films, labels, splits and patients in the same order."""
    digest = hashlib.sha256()
    for film in films:
        digest.update(
            f"{film.sha256}\t{film.label}\t{film.split}\t{film.patient_id}\n".encode("utf-8", "surrogateescape")
        )
    return digest.hexdigest()


# --------------------------------------------------------------------------- bundle


@dataclass(frozen=True, slots=True)
class OperatingPoint:
    """A named threshold on the calibrated probability, with its figures on the films on which it was chosen.

    A film is classified as pneumonia if ``probability >= threshold``.

    Attributes:
        sensitivity, specificity: on the films named by ``chosen_on``, in 0 to 1.
        positives, negatives: numbers of films on which these two were measured.
    """

    name: str
    threshold: float
    sensitivity: float
    specificity: float
    positives: int
    negatives: int
    chosen_on: str = "val"

    def __post_init__(self) -> None:
        if not 0.0 <= self.threshold <= 1.0:
            raise OutOfRange(f"operating point {self.name}: threshold {self.threshold} is not a probability")


@dataclass(frozen=True, slots=True)
class BundleInfo:
    """The content of ``bundle.json``: everything that is needed to classify a film, and to identify the model.

    Attributes:
        network: name of a row in the table of networks.
        preprocessing: the preprocessing of the training films; serving applies the same.
        temperature, bias: the probability is ``1 / (1 + exp(-(logit + bias) / temperature))``; the
            temperature is above 0.
        operating_points: at least one; ``default_operating_point`` names one of them.
        operating_points_left_out: why further points are missing, in sentences.
        training_data: fingerprint of the pack that the network was trained on.
        files: SHA-256 of every other file of the bundle, by name.
        leakage_allowed: the reason that was given for training on splits that share patients or films; empty if they
            share none.
        intended_ages: ages of patients, in years: from the first, to below the second. A DICOM film with another stated
            age is refused. None for any age.
        typical_peak: the lowest end of the heat-map scale: the log-odds before calibration that a whole film would have
            if each cell of its map argued as its strongest one, as the lower quartile of validation films with
            pneumonia. None if it was not measured.
    """

    name: str
    network: str
    preprocessing: Preprocessing
    temperature: float
    operating_points: tuple[OperatingPoint, ...]
    default_operating_point: str
    training_data: str
    files: Mapping[str, str]
    parameters: int
    created: str
    package_version: str
    bias: float = 0.0
    labels: tuple[str, ...] = tuple(Label)
    intended_use: str = INTENDED_USE
    notice: str = NOTICE
    version: int = BUNDLE_VERSION
    leakage_allowed: str = ""
    intended_ages: tuple[float, float] | None = None
    typical_peak: float | None = None
    operating_points_left_out: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.intended_ages is not None and not 0.0 <= self.intended_ages[0] < self.intended_ages[1]:
            raise OutOfRange(f"intended ages {self.intended_ages}: must rise, from 0 years on")
        if not self.temperature > 0.0:
            raise OutOfRange(f"temperature {self.temperature}: must be above 0")
        if not math.isfinite(self.bias):
            raise OutOfRange(f"bias {self.bias}: must be a number")
        if self.typical_peak is not None and not math.isfinite(self.typical_peak):
            raise OutOfRange(f"typical peak {self.typical_peak}: must be a number")
        if self.default_operating_point not in (point.name for point in self.operating_points):
            raise OutOfRange(f"no operating point is named {self.default_operating_point!r}")
        if "model.onnx" not in self.files:
            raise OutOfRange('the list of files has no "model.onnx"')

    def operating_point(self, name: str | None = None) -> OperatingPoint:
        """Return the point of that name, or the default. Raises: BundleInvalid, which names the existing ones."""
        wanted = name or self.default_operating_point
        for point in self.operating_points:
            if point.name == wanted:
                return point
        known = ", ".join(point.name for point in self.operating_points)
        why = "".join(f". {sentence}" for sentence in self.operating_points_left_out if f'"{wanted}"' in sentence)
        raise BundleInvalid(f"{self.name}: has no operating point {wanted!r}; it has {known}{why}")

    @property
    def model_sha256(self) -> str:
        """SHA-256 of ``model.onnx``, which identifies the model in every prediction."""
        return self.files["model.onnx"]

    def to_json(self) -> str:
        """Return the description as JSON. Law: ``BundleInfo.from_json(i.to_json()) == i``."""
        return json.dumps(dataclasses.asdict(self), indent=2)

    @classmethod
    def from_json(cls, text: str, source: str = "bundle.json") -> Self:
        """Read a description. Raises: BundleInvalid, if it is not a bundle of this version."""
        try:
            raw = json.loads(text)
            if raw["version"] != BUNDLE_VERSION:
                raise BundleInvalid(f"{source}: bundle version {raw['version']}; this program reads {BUNDLE_VERSION}")
            return cls(
                **{
                    **raw,
                    "preprocessing": Preprocessing(**raw["preprocessing"]),
                    "operating_points": tuple(OperatingPoint(**point) for point in raw["operating_points"]),
                    "operating_points_left_out": tuple(raw.get("operating_points_left_out", ())),
                    "labels": tuple(raw["labels"]),
                    "intended_ages": tuple(ages) if (ages := raw.get("intended_ages")) else None,
                }
            )
        except (ValueError, TypeError, KeyError) as error:
            raise BundleInvalid(f"{source}: not a description of a bundle ({error!r})") from error


# --------------------------------------------------------------------------- prediction


@dataclass(frozen=True, slots=True)
class Gate:
    """Whether the model may classify the film at all and, if not, why in one sentence.

    Attributes:
        score: out-of-distribution score of the film, 0 to 1, refused above one half; None if the film was refused
            before for another reason, or if the bundle has no detector.
    """

    accepted: bool
    reason: str = ""
    score: float | None = None

    def __post_init__(self) -> None:
        if self.score is not None and not 0.0 <= self.score <= 1.0:
            raise OutOfRange(f"score {self.score}: must lie in 0 to 1")

    def to_dict(self) -> dict[str, Any]:
        """Return the gate as a dictionary. Law: ``Gate(**gate.to_dict()) == gate``."""
        return {"accepted": self.accepted, "reason": self.reason, "score": self.score}


@dataclass(frozen=True, slots=True)
class Prediction:
    """The result for one film.

    Attributes:
        film_sha256: SHA-256 of the bytes that were classified.
        gate: accepted, or refused and why; a refused film has neither label nor probability.
        probability: of pneumonia, calibrated, 0 to 1.
        label: "pneumonia" if probability >= threshold, else "normal".
        operating_point, threshold: the named point that was applied.
        heatmap: PNG as base64 text, if asked for: the strength of each place's evidence for pneumonia.
        notes: remarks on the film for the reader of the answer, each a short clause: that its age is not stated, or
            which values of its header were ignored.
        model, model_sha256: the bundle's name and the hash of its graph.
    """

    film_sha256: str
    gate: Gate
    probability: float | None
    label: str | None
    operating_point: str
    threshold: float
    model: str
    model_sha256: str
    heatmap: str | None = None
    notice: str = NOTICE
    version: int = PREDICTION_VERSION
    notes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "notes", tuple(self.notes))
        classified = self.probability is not None and self.label is not None
        if classified != self.gate.accepted:
            raise OutOfRange("a film is classified if and only if the gate accepts it")
        if self.probability is not None and not 0.0 <= self.probability <= 1.0:
            raise OutOfRange(f"probability {self.probability}: must lie in 0 to 1")

    @property
    def scores(self) -> list[dict[str, str | float]]:
        """Labels with their probabilities, likeliest first, in the form of ``transformers``' image classifiers.

        Empty if the film was refused.
        """
        if self.probability is None:
            return []
        both = {Label.PNEUMONIA.value: self.probability, Label.NORMAL.value: 1.0 - self.probability}
        return [{"label": label, "score": both[label]} for label in sorted(both, key=lambda name: -both[name])]

    def __repr__(self) -> str:
        if self.probability is None:
            return f"Prediction(refused: {self.gate.reason})"
        drawn = ", with heat map" if self.heatmap else ""
        noted = "".join(f"; {note}" for note in self.notes)
        return (
            f"Prediction({self.label}, probability {self.probability:.3f}; {self.operating_point}: pneumonia from "
            f"{self.threshold:.3f}{drawn}{noted})"
        )

    def _repr_html_(self) -> str:
        """Return the answer as HTML for notebooks, with the heat map if there is one."""
        picture = (
            f'<br><img alt="heat map" style="background: black" src="data:image/png;base64,{self.heatmap}">'
            if self.heatmap
            else ""
        )
        return f"<b>{html.escape(repr(self))}</b>{picture}<br><small>{html.escape(self.notice)}</small>"

    def to_json(self) -> str:
        """Return the prediction as JSON. Law: ``Prediction.from_json(p.to_json()) == p``."""
        fields = {name: getattr(self, name) for name in self.__slots__}
        return json.dumps(fields | {"gate": self.gate.to_dict()})

    @classmethod
    def from_json(cls, text: str) -> Self:
        """Read a prediction. Raises: ValueError, KeyError or TypeError, if it is no prediction."""
        raw = json.loads(text)
        return cls(**{**raw, "gate": Gate(**raw["gate"])})
