"""A folder of synthetic chest X-rays in the published layout, with which the whole pipeline runs without a download.

    FOLDER/train|val|test/NORMAL|PNEUMONIA/person12_bacteria_34.jpeg
    FOLDER/synthetic_films.json     content of each file, position of its opacities, files that are faulty on purpose

These are drawings. A network that classifies them well proves only that the pipeline works.
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
from PIL import Image

from chestxray.arrays import UInt8Array
from chestxray.data.labels import parse_name
from chestxray.data.parallel import map_in_order
from chestxray.errors import OutOfRange, UsageError
from chestxray.files import folder_written_whole
from chestxray.progress import ProgressCallback, no_progress
from chestxray.schema import Label, Split, is_number
from chestxray.synthetic.anatomy import random_anatomy
from chestxray.synthetic.films import BACTERIA, HEALTHY, VIRUS, SyntheticFilm, draw_film

__all__ = [
    "MARKER",
    "SyntheticFilm",
    "SyntheticSettings",
    "PlannedFilm",
    "draw_film",
    "plan_of",
    "write_synthetic_films",
]


MARKER: Final = "synthetic_films.json"
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
MIN_PATIENTS: Final = 4  # of each class, so that each folder gets one
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
        if min(self.sick, self.patients - self.sick) < MIN_PATIENTS:
            raise UsageError(
                f"{self.patients} patients, {self.sick} of them with pneumonia: each class needs at least "
                f"{MIN_PATIENTS}. Ask for more patients"
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


def write_synthetic_films(
    folder: Path | str,
    settings: SyntheticSettings = SyntheticSettings(),
    on_progress: ProgressCallback = no_progress,
    workers: int | None = None,
) -> tuple[Path, ...]:
    """Draw all films and write them, completely or not at all.

    Args:
        on_progress: called with (films drawn, films in all).
        workers: number of processes; by default one a core.

    Returns: the films' paths, in the order of ``synthetic_films.json``.
    Raises: OutputExists, if ``folder`` exists and holds something else.
    """
    folder = Path(folder)
    plan = plan_of(settings)
    drawn = [film for film in plan if not film.copy_of]
    with folder_written_whole(folder, MARKER) as beside:
        for subfolder in {(beside / film.path).parent for film in plan}:
            subfolder.mkdir(parents=True, exist_ok=True)
        draw = functools.partial(_draw_file, beside, settings)
        rows = dict(zip((film.path for film in drawn), map_in_order(draw, drawn, on_progress, workers), strict=True))
        for film in plan:
            if film.copy_of:
                shutil.copyfile(beside / film.copy_of, beside / film.path)
                rows[film.path] = {**rows[film.copy_of], **_metadata_of(film)}
        (beside / MARKER).write_text(_description(settings, plan, rows), encoding="utf-8")
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
    picture = np.stack([pixels, pixels // 2, 255 - pixels], axis=-1)
    out = io.BytesIO()
    Image.fromarray(picture).save(out, "JPEG", quality=JPEG_QUALITY)
    return out.getvalue()


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
