"""Synthetic chest X-rays: one film, and a folder of them in the published layout.

    FOLDER/train|val|test/NORMAL|PNEUMONIA/person12_bacteria_34.jpeg
    FOLDER/synthetic_films.json     content of each file, position of its opacities, files that are faulty on purpose

Nothing but the shadows in the lungs depends on the class. Exposure, contrast, size, marker, collimation and grain do
not, so a network that tells the classes apart uses the lungs. These are drawings: a network that classifies them well
proves only that the pipeline works, which runs on them without a download.
"""

from __future__ import annotations

import dataclasses
import functools
import io
import json
import shutil
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from chestxray.arguments import arguments_checked, is_number
from chestxray.arrays import BoolArray, UInt8Array
from chestxray.data.labels import parse_name
from chestxray.data.parallel import map_in_order
from chestxray.errors import OutOfRange, UsageError
from chestxray.files import folder_written_whole
from chestxray.progress import ProgressCallback, no_progress
from chestxray.schema import Label, Split
from chestxray.synthetic.anatomy import (
    LUNG_EDGE,
    SIDES,
    Anatomy,
    Chest,
    Field,
    View,
    chest_of,
    ellipse,
    noise_field,
    random_anatomy,
    random_view,
    smooth,
    vessel_shadows,
)

DRAWING_SIDE: Final = 272  # pixels of the longer side while drawing; the film is enlarged afterwards
MILDEST: Final = 0.5  # severity of the subtlest pneumonia
MASK_SHARE: Final = 0.35  # an opacity reaches as far as its density exceeds this fraction of its peak
CONSOLIDATION: Final = 0.95  # fraction of the air that severe disease displaces at its densest place
INTERSTITIAL: Final = 0.75  # the same, for a thickened network between open air sacs

BACTERIAL_KINDS: Final = (0.45, 0.4, 0.15)  # probabilities of a lobe, of several patches, of one round patch
VIRAL_PATCH: Final = 0.3  # of the viral films show a patch beside the net
DEEP: Final = 0.9  # a patch is centred where more than this fraction of the pixel is lung

ELECTRODES: Final = 0.15  # of the films
COLLIMATED: Final = 0.5  # of the edges
RIGHT_MARKED: Final = 0.8  # of the films show an R, the others an L

BACTERIA: Final = "bacteria"
VIRUS: Final = "virus"
HEALTHY: Final = ""


class PixelBox(NamedTuple):
    """A rectangle of pixels; right and lower are the first column and row outside."""

    left: int
    upper: int
    right: int
    lower: int


@dataclass(frozen=True, slots=True)
class SyntheticFilm:
    """A synthetic film and its known facts.

    Attributes:
        pixels: shape (height, width), uint8, black is 0.
        label: normal, or pneumonia if there is a cause.
        cause: "bacteria", "virus" or "".
        patient_id: as in the file name.
        severity: 0 for a normal film, else ``MILDEST`` (subtle) to 1 (obvious).
        opacity: shape of the pixels: mask of the opacities; always within ``lungs``.
        lungs: shape of the pixels: mask of the lung fields, without heart and diaphragm.
        boxes: one box around each opacity.
    """

    pixels: UInt8Array
    label: Label
    cause: str
    patient_id: str
    severity: float
    opacity: BoolArray
    lungs: BoolArray
    boxes: tuple[PixelBox, ...]


class Opacity(NamedTuple):
    """One abnormal shadow in a lung.

    Attributes:
        density: 0 to 1, smooth; it defines the extent of the opacity.
        texture: factor on the density, about 1.
        displaced: fraction of the air that is displaced where density and texture are 1 and the disease is severe.
    """

    density: Field
    texture: Field
    displaced: float


def draw_film(
    anatomy: Anatomy, cause: str, rng: np.random.Generator, *, height: int, width: int, patient_id: str = ""
) -> SyntheticFilm:
    """Draw one film of a patient, with its own pose and exposure.

    Args:
        cause: "bacteria" or "virus" for pneumonia, "" for a normal film.
        height, width: of the film, in pixels.
    """
    shrunk = DRAWING_SIDE / max(height, width)
    view = random_view(rng, round(height * shrunk), round(width * shrunk))
    # Two random streams, so that the disease does not change the exposure.
    illness, exposure = rng.spawn(2)
    chest = chest_of(anatomy, view)
    attenuation = chest.attenuation + _haze(exposure, chest)
    severity = illness.uniform(MILDEST, 1.0) if cause else 0.0
    field = chest.lungs > LUNG_EDGE
    masks, aerated = [], np.ones_like(attenuation)
    for opacity in _opacities(cause, illness, anatomy, view, chest):
        aerated *= 1 - np.clip(np.float32(severity * opacity.displaced) * opacity.density * opacity.texture, 0, 1)
        masks.append(_enlarged((opacity.density > MASK_SHARE * opacity.density[field].max()) & field, height, width))
    attenuation += chest.air * (1 - aerated)
    return SyntheticFilm(
        pixels=_exposed(attenuation, chest.body > LUNG_EDGE, exposure, height, width),
        label=Label.PNEUMONIA if cause else Label.NORMAL,
        cause=cause,
        patient_id=patient_id,
        severity=severity,
        opacity=np.logical_or.reduce(masks) if masks else np.zeros((height, width), dtype=np.bool_),
        lungs=_enlarged(field, height, width),
        boxes=tuple(_box_of(mask) for mask in masks),
    )


# --------------------------------------------------------------------------- disease


def _opacities(cause: str, rng: np.random.Generator, anatomy: Anatomy, view: View, chest: Chest) -> list[Opacity]:
    """Return the opacities of one film; a virus thickens both lungs, bacteria fill a part of one or two."""
    if not cause:
        return []
    if cause == VIRUS:
        patches = _patchy(rng, view, chest, 1) if rng.random() < VIRAL_PATCH else []
        return [_interstitial(rng, anatomy, view, side) for side in SIDES] + patches
    kind = rng.choice(3, p=BACTERIAL_KINDS)
    if kind == 0:
        return [_lobar(rng, view, chest, int(rng.choice(SIDES)))]
    return _patchy(rng, view, chest, int(rng.integers(3, 7))) if kind == 1 else _patchy(rng, view, chest, 1)


def _lobar(rng: np.random.Generator, view: View, chest: Chest, side: int) -> Opacity:
    """Return a lobe without air: sharp at the fissure, fading on the other side, with dark bronchi."""
    height, width = view.x.shape
    upper, lower = ((-1.1, -0.12), (-0.4, 0.3), (-0.1, 0.95))[rng.integers(3)]
    slanted = view.y - rng.uniform(-0.35, 0.1) * np.abs(view.x) - np.float32(rng.normal(0, 0.04))
    slanted += 0.03 * noise_field(rng, height, width, 9)
    soft, sharp = rng.permutation((0.22, 0.07)).tolist()
    density = smooth((slanted - upper) / soft) * smooth((lower - slanted) / sharp) * smooth(view.x * side / 0.1)
    mottled = 0.85 + 0.28 * noise_field(rng, height, width, 36)
    return Opacity(density, mottled * (1 - 0.7 * chest.vessels), CONSOLIDATION)


def _patchy(rng: np.random.Generator, view: View, chest: Chest, count: int) -> list[Opacity]:
    """Return patches with ragged edges, more often low in the lungs; a single one is large and round."""
    height, width = view.x.shape
    rows, columns = np.nonzero(chest.lungs > DEEP)
    odds = 1.2 + view.y[rows, columns].clip(-1, 1)
    radii = rng.uniform(0.2, 0.34, count) if count > 1 else rng.uniform(0.32, 0.44, 1)
    ragged = noise_field(rng, height, width, 16)
    mottled = 0.85 + 0.28 * noise_field(rng, height, width, 36)
    blots = []
    for place, radius in zip(rng.choice(len(rows), count, p=odds / odds.sum()), radii, strict=True):
        centre = float(view.x[rows[place], columns[place]]), float(view.y[rows[place], columns[place]])
        distance = ellipse(view, centre, (radius, radius * rng.uniform(0.7, 1.2)), rng.uniform(0, np.pi))
        side = smooth(view.x * np.float32(np.sign(centre[0]) / 0.05))  # an opacity stays in its own lung
        blots.append(Opacity(smooth((1.25 - distance + 0.16 * ragged) / 0.8) * side, mottled, CONSOLIDATION))
    return blots


def _interstitial(rng: np.random.Generator, anatomy: Anatomy, view: View, side: int) -> Opacity:
    """Return a net of fine lines, densest round the hilum, with thickened vessels."""
    height, width = view.x.shape
    far = ellipse(view, (side * 0.3, 0.05), (rng.uniform(0.6, 0.9), rng.uniform(0.6, 0.9)))
    density = (0.25 + 0.75 * smooth(1.25 - far)) * smooth(view.x * side / 0.05)
    net = np.exp(-np.square(1.6 * noise_field(rng, height, width, 46))) + np.exp(
        -np.square(1.6 * noise_field(rng, height, width, 30))
    )
    return Opacity(density, 0.25 + 0.5 * net + 0.8 * vessel_shadows(anatomy, view, thicker=1.8), INTERSTITIAL)


def _haze(rng: np.random.Generator, chest: Chest) -> Field:
    """Return the harmless unevenness of every body: fat, muscle, clothes."""
    height, width = chest.body.shape
    coarse, fine = noise_field(rng, height, width, 5), noise_field(rng, height, width, 40)
    return (0.022 * coarse + 0.008 * fine) * chest.body


# --------------------------------------------------------------------------- exposure


def _exposed(attenuation: Field, body: BoolArray, rng: np.random.Generator, height: int, width: int) -> UInt8Array:
    """Convert attenuation to grey levels with an automatic exposure: the body's mean meets a target."""
    white = np.quantile(attenuation[::3, ::3], rng.uniform(0.97, 0.998)) * rng.uniform(1.0, 1.12)
    levels = np.clip((attenuation + 0.01) / np.float32(white), 0, 1)
    levels = levels ** np.float32(_gamma_for(levels[::3, ::3][body[::3, ::3]], rng.normal(0.58, 0.05)))
    contrast = rng.uniform(-0.1, 0.5)  # towards an S-shaped film curve
    levels += np.float32(contrast) * (smooth(levels) - levels)
    fog = rng.uniform(0.0, 0.07)
    image = Image.fromarray(np.float32(255 * (1 - fog)) * levels + np.float32(255 * fog))
    film = image.resize((width, height), Image.Resampling.BICUBIC)
    lit = _with_markers(film, rng)
    grain = rng.standard_normal((height, width), dtype=np.float32) * np.float32(rng.uniform(1.5, 4.5))
    return np.rint(lit + grain).clip(0, 255).astype(np.uint8)


def _gamma_for(levels: Field, target: float) -> float:
    """Find the exponent that brings the mean of the levels to the target, by bisection."""
    low, high = 0.4, 2.5
    for _ in range(8):
        middle = (low + high) / 2
        low, high = (middle, high) if float(np.mean(levels ** np.float32(middle))) > target else (low, middle)
    return (low + high) / 2


def _with_markers(film: Image.Image, rng: np.random.Generator) -> Field:
    """Collimate the film and burn in a letter for the side; some films show electrodes on the skin."""
    width, height = film.size
    draw = ImageDraw.Draw(film)
    if rng.random() < ELECTRODES:
        _draw_electrodes(draw, rng, width, height)
    bounds = rng.uniform(0.0, 0.045, 4) * (rng.random(4) < COLLIMATED) * (width, height, width, height)
    left, upper, right, lower = (round(float(bound)) for bound in bounds)
    black = float(rng.uniform(0, 8))
    for box in (
        (0, 0, left, height),
        (0, 0, width, upper),
        (width - right, 0, width, height),
        (0, height - lower, width, height),
    ):
        if box[2] > box[0] and box[3] > box[1]:
            draw.rectangle((box[0], box[1], box[2] - 1, box[3] - 1), fill=black)
    on_right = rng.random() < RIGHT_MARKED  # the patient's right side is the left of the film
    across = rng.uniform(0.03, 0.15) if on_right else rng.uniform(0.83, 0.93)
    place = (across * width, rng.uniform(0.03, 0.3) * height)
    font = ImageFont.load_default(size=height * rng.uniform(0.045, 0.085))
    draw.text(place, "R" if on_right else "L", fill=float(rng.uniform(205, 255)), font=font)
    return np.asarray(film)


def _draw_electrodes(draw: ImageDraw.ImageDraw, rng: np.random.Generator, width: int, height: int) -> None:
    """Draw two or three discs, each with its lead to the film's edge."""
    radius = 0.014 * height
    for across, down in rng.uniform((0.25, 0.15), (0.75, 0.85), (rng.integers(2, 4), 2)) * (width, height):
        level = float(rng.uniform(190, 240))
        draw.line((across, down, across + rng.normal(0, 0.1) * width, height), fill=level * 0.85, width=2)
        draw.ellipse((across - radius, down - radius, across + radius, down + radius), fill=level)


def _enlarged(mask: BoolArray, height: int, width: int) -> BoolArray:
    """Return a mask of the drawing at the film's size."""
    image = Image.fromarray(mask.astype(np.uint8)).resize((width, height), Image.Resampling.NEAREST)
    return np.asarray(image).astype(np.bool_)


def _box_of(mask: BoolArray) -> PixelBox:
    rows, columns = np.nonzero(mask.any(axis=1))[0], np.nonzero(mask.any(axis=0))[0]
    return PixelBox(int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1)


SYNTHETIC_FILMS_JSON: Final = "synthetic_films.json"
SYNTHETIC_NOTICE: Final = (
    "These films are drawings made by a program. They show no patient, and nothing measured on them says "
    "anything about patients."
)

VALIDATION_FILMS: Final = 8  # of each class: the published validation folder holds 16 films in all
TEST_SHARE: Final = 0.17  # of each class's patients
VIRUS_SHARE: Final = 0.35  # of the patients with pneumonia; of the published films 1,345 of 3,875
MAX_FILMS: Final = 99  # of one patient
MIN_WIDTH: Final = 128  # pixels
MAX_WIDTH: Final = 4096
SECOND_SERIES: Final = 0.5  # of the normal patients have names of the second series
MIN_SYNTHETIC_PATIENTS: Final = 4  # of each class, so that each folder gets one
ASPECTS: Final = (1.0, 1.5)  # width / height of most published films
JPEG_QUALITY: Final = 90
RGB_SHARE: Final = 0.1  # of the films are stored with three equal channels
PNG_SHARE: Final = 0.04


@dataclass(frozen=True, slots=True)
class SyntheticSettings:
    """What to draw.

    Attributes:
        patients: number of patients; each is in one folder only.
        films_per_patient: largest number; a patient has 1 to that many films, and one in the validation folder.
        min_width, max_width: width of a film, in pixels; the height follows from an aspect of 1.0 to 1.5.
        prevalence: share of patients with pneumonia.
        seed: the same settings draw the same pixels, on any number of processes.
        faults: add one file of each fault to the training folder.
    """

    patients: int = 300
    films_per_patient: int = 3
    min_width: int = 460
    max_width: int = 700
    prevalence: float = 0.6
    seed: int = 0
    faults: bool = False

    def __post_init__(self) -> None:
        for name in ("patients", "films_per_patient", "min_width", "max_width", "seed"):
            if not is_number(getattr(self, name), whole=True):
                raise OutOfRange(f"{name} is {getattr(self, name)!r}; it is a whole number")
        if not is_number(self.prevalence) or not 0.0 < self.prevalence < 1.0:
            raise UsageError(f"prevalence {self.prevalence}: must lie between 0 and 1")
        if min(self.sick, self.patients - self.sick) < MIN_SYNTHETIC_PATIENTS:
            raise UsageError(
                f"{self.patients} patients, {self.sick} of them with pneumonia: each class needs at least "
                f"{MIN_SYNTHETIC_PATIENTS}. Ask for more patients"
            )
        if not 1 <= self.films_per_patient <= MAX_FILMS:
            raise UsageError(f"{self.films_per_patient} films per patient: may be 1 to {MAX_FILMS}")
        if not MIN_WIDTH <= self.min_width <= self.max_width <= MAX_WIDTH:
            raise UsageError(
                f"width {self.min_width} to {self.max_width}: must rise, within {MIN_WIDTH} to {MAX_WIDTH} pixels"
            )
        if self.seed < 0:
            raise UsageError(f"seed {self.seed}: must be 0 or more")

    @property
    def sick(self) -> int:
        """Number of patients with pneumonia."""
        return round(self.patients * self.prevalence)


class PlannedFilm(NamedTuple):
    """One file before it is drawn.

    Attributes:
        path: below the folder, with forward slashes.
        patient, film: the patient's number and the number of the film among theirs, both from 1.
        stored: "L", "RGB" or "PNG".
        fault: a row of ``FAULTS`` or ``COPIES``, or "".
        copy_of: the path of the film whose bytes this one repeats, or "".
    """

    path: str
    cause: str
    patient: int
    film: int
    stored: str = "L"
    fault: str = ""
    copy_of: str = ""

    @property
    def patient_id(self) -> str:
        """Patient id in the file's name."""
        named = parse_name(Path(self.path).stem)
        return named.patient_id if named else ""


@arguments_checked
def write_synthetic_films(
    folder: Path | str,
    settings: SyntheticSettings = SyntheticSettings(),
    on_progress: ProgressCallback = no_progress,
    workers: int | None = None,
) -> tuple[Path, ...]:
    """Draw all films and write them, completely or not at all.

    Args:
        on_progress: called with (films drawn, films in all).
        workers: number of processes; by default one for each core.

    Returns: the films' paths, in the order of ``synthetic_films.json``.
    Raises: OutputExists, if ``folder`` exists and holds something else.
    """
    folder = Path(folder)
    plan = plan_of(settings)
    drawn = [film for film in plan if not film.copy_of]
    with folder_written_whole(folder, SYNTHETIC_FILMS_JSON) as beside:
        for subfolder in {(beside / film.path).parent for film in plan}:
            subfolder.mkdir(parents=True, exist_ok=True)
        draw = functools.partial(_draw_file, beside, settings)
        rows = dict(zip((film.path for film in drawn), map_in_order(draw, drawn, on_progress, workers), strict=True))
        for film in plan:
            if film.copy_of:
                shutil.copyfile(beside / film.copy_of, beside / film.path)
                rows[film.path] = {**rows[film.copy_of], **_metadata_of(film)}
        (beside / SYNTHETIC_FILMS_JSON).write_text(_description(settings, plan, rows), encoding="utf-8")
    return tuple(folder / film.path for film in plan)


def _draw_file(folder: Path, settings: SyntheticSettings, film: PlannedFilm) -> dict[str, Any]:
    """Draw one film and write its file; return its row of ``synthetic_films.json``."""
    anatomy = random_anatomy(_random(settings, film.patient))
    rng = _random(settings, film.patient, film.film)
    width = int(rng.integers(settings.min_width, settings.max_width, endpoint=True))
    height = round(width / rng.uniform(*ASPECTS))
    drawn = draw_film(anatomy, film.cause, rng, height=height, width=width, patient_id=film.patient_id)
    data = FAULTS[film.fault](drawn.pixels) if film.fault else _encoded(drawn.pixels, film.stored)
    (folder / film.path).write_bytes(data)
    boxes = [] if film.fault else [list(box) for box in drawn.boxes]
    return {**_metadata_of(film), "severity": round(drawn.severity, 3), "boxes": boxes}


def _random(settings: SyntheticSettings, *key: int) -> np.random.Generator:
    """Return a random generator for each patient and film, independent of the process."""
    return np.random.default_rng(np.random.SeedSequence(settings.seed, spawn_key=key))


def _metadata_of(film: PlannedFilm) -> dict[str, Any]:
    label = Label.PNEUMONIA if film.cause else Label.NORMAL
    return {"label": str(label), "cause": film.cause, "patient_id": film.patient_id}


def _description(settings: SyntheticSettings, plan: Iterable[PlannedFilm], rows: dict[str, dict[str, Any]]) -> str:
    """Return ``synthetic_films.json``. Boxes are [left, upper, right, lower] in pixels."""
    faults = {
        film.path: {"fault": film.fault, **({"copy_of": film.copy_of} if film.copy_of else {})}
        for film in plan
        if film.fault
    }
    films = {film.path: rows[film.path] for film in plan}
    whole = {"notice": SYNTHETIC_NOTICE, "settings": dataclasses.asdict(settings), "faults": faults, "films": films}
    return json.dumps(whole, indent=1)


# --------------------------------------------------------------------------- the plan


def plan_of(settings: SyntheticSettings) -> tuple[PlannedFilm, ...]:
    """Plan every file to write. Patient numbers are unique across the counters, hence across the folders."""
    rng = _random(settings)
    numbers = rng.permutation(np.arange(1, settings.patients + 1))
    splits = [*_splits_of(settings.sick), *_splits_of(settings.patients - settings.sick)]
    counter: Counter[str] = Counter()
    plan: list[PlannedFilm] = []
    for place in np.argsort(numbers):
        patient, split = int(numbers[place]), splits[place]
        cause = HEALTHY
        if place < settings.sick:
            cause = VIRUS if rng.random() < VIRUS_SHARE else BACTERIA
        series = "NORMAL2-IM" if rng.random() < SECOND_SERIES else "IM"
        count = 1 if split is Split.VAL else int(rng.integers(1, settings.films_per_patient, endpoint=True))
        for film in range(1, count + 1):
            counter[cause] += 1
            stored = str(rng.choice(("L", "RGB", "PNG"), p=(1 - RGB_SHARE - PNG_SHARE, RGB_SHARE, PNG_SHARE)))
            name = _name(cause, patient, film, counter[cause], series)
            ending = "png" if stored == "PNG" else "jpeg"
            plan.append(PlannedFilm(f"{_folder(split, cause)}/{name}.{ending}", cause, patient, film, stored))
    return (*plan, *_faulty(settings, plan, counter)) if settings.faults else tuple(plan)


def _splits_of(patients: int) -> list[Split]:
    """Assign a split to each patient of one class: a few validate, a fraction tests, the others train."""
    val, test = min(VALIDATION_FILMS, patients // 4), max(1, round(TEST_SHARE * patients))
    return [Split.VAL] * val + [Split.TEST] * test + [Split.TRAIN] * (patients - val - test)


def _folder(split: Split, cause: str) -> str:
    return f"{split}/{'PNEUMONIA' if cause else 'NORMAL'}"


def _name(cause: str, patient: int, film: int, running: int, series: str = "IM") -> str:
    return f"person{patient}_{cause}_{running}" if cause else f"{series}-{patient:04d}-{film:04d}"


def _faulty(settings: SyntheticSettings, plan: list[PlannedFilm], counter: Counter[str]) -> list[PlannedFilm]:
    """Plan one file of each fault, all in the training folder; except copies, each has a patient of its own."""
    faulty = []
    for row, fault in enumerate(FAULTS, start=1):
        cause = (HEALTHY, BACTERIA)[row % 2]
        patient = settings.patients + row
        counter[cause] += 1
        path = f"{_folder(Split.TRAIN, cause)}/{_name(cause, patient, 1, counter[cause])}.jpeg"
        faulty.append(PlannedFilm(path, cause, patient, 1, fault=fault))
    normal = [film for film in plan if film.path.startswith(_folder(Split.TRAIN, HEALTHY))]
    for fault, original, cause in (("duplicate", normal[0], HEALTHY), ("two_labels", normal[-1], BACTERIA)):
        # The duplicate stays with its patient; the other label requires the name of another patient.
        patient = settings.patients + len(FAULTS) + 1 if cause else original.patient
        counter[cause] += 1
        stem, ending = Path(original.path).stem, Path(original.path).suffix
        name = _name(cause, patient, 1, counter[cause]) if cause else f"{stem[:-4]}{MAX_FILMS + original.film:04d}"
        path = f"{_folder(Split.TRAIN, cause)}/{name}{ending}"
        faulty.append(PlannedFilm(path, cause, patient, 1, original.stored, fault, original.path))
    return faulty


# --------------------------------------------------------------------------- files and faults


def _encoded(pixels: UInt8Array, stored: str) -> bytes:
    out = io.BytesIO()
    if stored == "PNG":
        Image.fromarray(pixels).save(out, "PNG", compress_level=3)
    else:
        Image.fromarray(pixels).convert(stored).save(out, "JPEG", quality=JPEG_QUALITY)
    return out.getvalue()


def _truncated(pixels: UInt8Array) -> bytes:
    data = _encoded(pixels, "L")
    return data[: len(data) * 2 // 5]


def _empty(_pixels: UInt8Array) -> bytes:
    return b""


def _text(_pixels: UInt8Array) -> bytes:
    return b"This is a letter to the ward and not a film.\n"


def _coloured(pixels: UInt8Array) -> bytes:
    """Return the film in false colours, from blue to red."""
    return _encoded(np.stack([pixels, pixels // 2, 255 - pixels], axis=-1), "RGB")


def _blank(pixels: UInt8Array) -> bytes:
    """Return an empty exposure: fog and a trace of grain."""
    return _encoded(16 + pixels % 3, "L")


def _tiny(pixels: UInt8Array) -> bytes:
    return _encoded(np.asarray(Image.fromarray(pixels).resize((48, 40))), "L")


# Functions from a well-drawn film to the faulty bytes that are written in its place.
FAULTS: Final[dict[str, Callable[[UInt8Array], bytes]]] = {
    "truncated": _truncated,
    "empty": _empty,
    "text": _text,
    "coloured": _coloured,
    "blank": _blank,
    "tiny": _tiny,
}
