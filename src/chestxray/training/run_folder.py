"""The folder of a training run.

    run.json               RunInfo; written first, with state "training", and last, with state "finished"
    recipe.toml            the recipe, with every field
    metrics.jsonl          one EpochRecord a line, appended as epochs end
    augmented_films.png    training films as the recipe varies them
    best.safetensors       weights of the best epoch so far
    last.safetensors       weights of the last epoch
    validation.csv         the best epoch's logit of every validation film
    stress.csv             the same under every shift and every exchange of the stress validation
    gate.json              the fitted out-of-distribution detector
    training_films.json    their hashes; written last
    first_filters.png      filters of the first convolution at the best epoch
    learning_curves.svg, learning_curves.png
    checkpoints/           during training, unless another folder was given

A run that was interrupted keeps the state "training": ``export`` refuses it, and the same command resumes it.
"""

from __future__ import annotations

import csv
import dataclasses
import io
import json
import platform
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Self

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from chestxray import __version__
from chestxray.arrays import Float64Array, IndexArray
from chestxray.data.dedup import TRAINING_FILMS, TrainingFilms
from chestxray.data.pack import Pack
from chestxray.errors import RunInvalid, reason_of
from chestxray.files import sha256_of_file, write_atomically
from chestxray.images.shifts import EXCHANGES, SHIFTS
from chestxray.inference.ood import GATE_JSON
from chestxray.progress import Log, ProgressCallback
from chestxray.schema import Film, Label, Preprocessing, Split
from chestxray.text import of_cell, table_bytes
from chestxray.training import plots
from chestxray.training.checkpoint import Best, Origin, Weights, read_checked, write_weights, writing
from chestxray.training.config import RECIPE_TOML, Recipe, every_field
from chestxray.training.networks import Classifier, build
from chestxray.training.ood_fit import write_gate
from chestxray.training.optim import steps_of
from chestxray.training.plots import plot_filters
from chestxray.training.train_state import EpochRecord, TrainState, best_of
from chestxray.training.trainer import VALIDATION_BATCH, Training, under_every_shift

RUN_VERSION: Final = 1

RUN_JSON: Final = "run.json"
METRICS_JSONL: Final = "metrics.jsonl"
BEST_WEIGHTS: Final = "best.safetensors"
LAST_WEIGHTS: Final = "last.safetensors"
VALIDATION: Final = "validation.csv"
STRESS: Final = "stress.csv"
HASHED: Final = (
    BEST_WEIGHTS,
    LAST_WEIGHTS,
    VALIDATION,
    STRESS,
    GATE_JSON,
    TRAINING_FILMS,
)  # files that an export of the run needs
RUN_FILES: Final = (RUN_JSON, RECIPE_TOML, METRICS_JSONL, *HASHED, *plots.CURVE_NAMES, *plots.PICTURE_NAMES)

TRAINING: Final = "training"
FINISHED: Final = "finished"
VALIDATION_COLUMNS: Final = ("sha256", "path", "patient_id", "label", "logit")
STRESS_KEY: Final = "sha256"

ByShift = Mapping[str, Float64Array]  # log-odds of the validation films, by the name of the shift or exchange


@dataclass(frozen=True, slots=True)
class RunInfo:
    """The content of ``run.json``: the origin of the weights beside it.

    Attributes:
        state: "training" until everything is written, then "finished".
        recipe: every field by name.
        preprocessing: preprocessing of the pack. training_data: fingerprint of the pack.
        training_films, validation_films: how many.
        leak: empty; or why the validation figures cannot be trusted.
        device, threads, versions: what it ran on.
        best: the record of the best epoch; None until the first has ended.
        seconds: that the training took, all parts of an interrupted one together.
        files: SHA-256 of what it is exported from, by name, once finished.
        leakage_allowed: of the pack.
        blended: seeds of the runs whose weights were averaged; empty for a run of its own.
        teachers: SHA-256 of the weights of each network that it learnt from.
        typical_peak: as in ``BundleInfo``, of this network alone; None for runs from before it was measured.
    """

    state: str
    recipe: Mapping[str, Any]
    preprocessing: Preprocessing
    training_data: str
    training_films: int
    validation_films: int
    leak: str
    device: str
    threads: int
    versions: Mapping[str, str]
    best: EpochRecord | None = None
    seconds: float = 0.0
    files: Mapping[str, str] = field(default_factory=dict)
    version: int = RUN_VERSION
    leakage_allowed: str = ""
    blended: tuple[int, ...] = ()
    teachers: tuple[str, ...] = ()
    typical_peak: float | None = None

    def __post_init__(self) -> None:
        """Check that a finished run has all its files. Raises: RunInvalid."""
        missing = set(HASHED) - set(self.files) if self.state == FINISHED else ()
        if missing:
            raise RunInvalid(f"a finished run without {', '.join(sorted(missing))}. Train again")

    def to_json(self) -> str:
        """Return the description as JSON. Law: ``RunInfo.from_json(i.to_json()) == i``."""
        return json.dumps(dataclasses.asdict(self), indent=2)

    @classmethod
    def from_json(cls, text: str, source: str = RUN_JSON) -> Self:
        """Read a description. Raises: RunInvalid, if it is not a run of this version."""
        try:
            raw = json.loads(text)
            if raw["version"] != RUN_VERSION:
                raise RunInvalid(f"{source}: run version {raw['version']}; this program reads {RUN_VERSION}")
            best = EpochRecord(**raw["best"]) if raw["best"] else None
            given = {
                "recipe": every_field(raw["recipe"]),
                "preprocessing": Preprocessing(**raw["preprocessing"]),
                "blended": tuple(raw["blended"]),
                "teachers": tuple(raw.get("teachers", ())),  # older runs have none
            }
            return cls(**{**raw, **given, "best": best})
        except (ValueError, TypeError, KeyError) as error:
            raise RunInvalid(f"{source}: not a description of a run ({error!r})") from error

    @classmethod
    def read(cls, folder: Path) -> Self:
        """Read the description of the run in a folder. Raises: RunInvalid, if it is missing or damaged."""
        path = folder / RUN_JSON
        try:
            return cls.from_json(path.read_text(encoding="utf-8"), str(path))
        except (OSError, UnicodeDecodeError) as error:
            raise RunInvalid(
                f'{folder}: not a run, {RUN_JSON} cannot be read. Make one with "chestxray train"'
            ) from error

    @classmethod
    def read_finished(cls, folder: Path) -> Self:
        """Read the description of a finished run. Raises: RunInvalid, if it is missing, damaged or not finished."""
        info = cls.read(folder)
        if info.state != FINISHED:
            raise RunInvalid(f'{folder}: the run was interrupted before it ended. Resume it with "chestxray train"')
        return info

    @property
    def origin(self) -> Origin:
        """What the training started from."""
        return Origin(self.recipe, self.training_data, self.preprocessing, self.teachers)

    def was_trained_on(self, pack: Pack) -> bool:
        """Check whether the run was trained on these films with this preprocessing."""
        return (self.training_data, self.preprocessing) == (pack.info.fingerprint, pack.info.preprocessing)


@dataclass(frozen=True, slots=True)
class RunSummary:
    """The result of ``train_run``.

    Attributes:
        folder: folder of the run.
        info: its description, finished.
        records: one for each epoch.
        was_there: True if the run was finished before, so that nothing was trained.
    """

    folder: Path
    info: RunInfo
    records: tuple[EpochRecord, ...]
    was_there: bool = False

    @property
    def best(self) -> EpochRecord:
        """Record of the best epoch."""
        return best_of(self.records)


@dataclass(frozen=True, slots=True)
class ValidationTable:
    """The content of ``validation.csv``: the best epoch's log-odds for the validation films.

    Attributes:
        labels: shape (n,), 0 or 1.
        logits: shape (n,), log-odds of pneumonia before calibration.
        patients: n names; "" where unknown.
        paths: n names of films.
    """

    labels: npt.NDArray[np.int8]
    logits: Float64Array
    patients: tuple[str, ...]
    paths: tuple[str, ...]

    @classmethod
    def read(cls, path: Path, sha256: str) -> Self:
        """Read a table and compare its hash. Raises: RunInvalid."""
        data = read_checked(path, sha256)
        try:
            rows = list(csv.DictReader(io.StringIO(data.decode("utf-8", "surrogateescape"), newline="")))
            return cls(
                labels=np.array([Label(row["label"]).class_index for row in rows], dtype=np.int8),
                logits=np.array([float(row["logit"]) for row in rows], dtype=np.float64),
                patients=tuple(of_cell(row["patient_id"]) for row in rows),
                paths=tuple(of_cell(row["path"]) for row in rows),
            )
        except (ValueError, KeyError) as error:
            raise RunInvalid(f"{path}: not a table of validation films ({error!r}). Train again") from error


def stress_table(logits: ByShift, films: Sequence[Film]) -> bytes:
    """Return the log-odds as a CSV table. Law: ``read_stress_table`` returns them again."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow([STRESS_KEY, *logits])
    columns = [values.tolist() for values in logits.values()]
    writer.writerows(
        [film.sha256, *map(repr, row)] for film, row in zip(films, zip(*columns, strict=True), strict=True)
    )
    return text.getvalue().encode()


def read_stress_table(path: Path, sha256: str) -> ByShift:
    """Read a table and compare its hash. Raises: RunInvalid."""
    data = read_checked(path, sha256)
    try:
        rows = list(csv.DictReader(io.StringIO(data.decode())))
        names = [name for name in rows[0] if name != STRESS_KEY]
        return {name: np.array([float(row[name]) for row in rows]) for name in names}
    except (ValueError, KeyError, IndexError, TypeError) as error:
        raise RunInvalid(f"{path}: not a table of shifted validation films ({error!r}). Train again") from error


def restored(info: RunInfo, weights: dict[str, Tensor]) -> Classifier:
    """Build the trained classifier, ready to use. Raises: RunInvalid, if the weights do not fit the network."""
    common_scale = info.recipe["grey_scale"] == "common"
    classifier = build(info.recipe["network"], info.preprocessing, started=False, common_scale=common_scale)
    try:
        classifier.load_state_dict(weights)
    except RuntimeError as error:
        raise RunInvalid(f"the weights do not fit {info.recipe['network']} ({error})") from error
    return classifier.eval()


class RunFolder:
    """The folder of a run that is being written. Every method raises OutputUnwritable if writing fails."""

    def __init__(self, folder: Path, pack: Pack, validation: IndexArray) -> None:
        self.folder = folder
        self._pack = pack
        self._validation = validation

    def begin(self, info: RunInfo, recipe: Recipe, records: Sequence[EpochRecord], best: Best | None) -> None:
        """Start or continue the folder: write everything that belongs to these records.

        The description is written first, so that a folder with any other file of a run is always recognised as a run.
        """
        with writing(self.folder):
            write_atomically(self.folder / RUN_JSON, info.to_json().encode())
            for name in RUN_FILES:
                if name not in {RUN_JSON, plots.AUGMENTED}:
                    (self.folder / name).unlink(missing_ok=True)
            for part in self.folder.glob(".*.part"):  # left half-written by a killed process
                part.unlink()
            write_atomically(self.folder / RECIPE_TOML, recipe.to_toml().encode())
            write_atomically(self.folder / METRICS_JSONL, records_to_lines(records).encode())
        if best is not None:
            self.keep_best(best)

    def keep_best(self, best: Best) -> None:
        """Write the best epoch's weights and its log-odds for the validation films."""
        with writing(self.folder):
            write_weights(self.folder / BEST_WEIGHTS, best.weights)
            write_atomically(self.folder / VALIDATION, _validation_table(self._pack, self._validation, best))

    def add(self, record: EpochRecord) -> None:
        """Append an epoch's line to the metrics."""
        with writing(self.folder), (self.folder / METRICS_JSONL).open("a", encoding="utf-8") as metrics:
            metrics.write(records_to_lines([record]))

    def finish(self, info: RunInfo, records: Sequence[EpochRecord], last: Weights, seconds: float) -> RunInfo:
        """Write what is known at the end, and return the finished description."""
        with writing(self.folder):
            write_weights(self.folder / LAST_WEIGHTS, last)
            plots.plot_curves(records, self.folder)
            write_gate(self._pack, self.folder)
            write_atomically(self.folder / TRAINING_FILMS, TrainingFilms.of(self._trained_on()).to_json().encode())
            finished = dataclasses.replace(
                info,
                state=FINISHED,
                best=best_of(records),
                seconds=seconds,
                files={name: sha256_of_file(self.folder / name) for name in HASHED},
            )
            write_atomically(self.folder / RUN_JSON, finished.to_json().encode())
        return finished

    def _trained_on(self) -> Iterator[Film]:
        """Yield the films that are neither validated on nor reserved for testing."""
        kept = set(self._validation.tolist())
        for row, film in enumerate(self._pack.films):
            if film.split in (Split.TRAIN, Split.VAL) and row not in kept:
                yield film


def read_finished(folder: Path, info: RunInfo) -> RunSummary:
    """Read a finished run. Raises: RunInvalid, if a file of it is changed or missing."""
    for name, sha256 in info.files.items():
        read_checked(folder / name, sha256)
    try:
        records = records_of_lines((folder / METRICS_JSONL).read_text(encoding="utf-8"))
    except (OSError, ValueError, TypeError) as error:
        raise RunInvalid(
            f"{folder / METRICS_JSONL}: cannot be read ({reason_of(error)}). Train again with --restart"
        ) from error
    return RunSummary(folder, info, records, was_there=True)


def records_to_lines(records: Sequence[EpochRecord]) -> str:
    """Return epochs as JSON lines. Law: ``records_of_lines`` returns them again."""
    return "".join(json.dumps(dataclasses.asdict(record)) + "\n" for record in records)


def records_of_lines(text: str) -> tuple[EpochRecord, ...]:
    """Read epochs from JSON lines. Raises: ValueError, TypeError."""
    return tuple(EpochRecord(**json.loads(line)) for line in text.splitlines())


def _validation_table(pack: Pack, rows: IndexArray, best: Best) -> bytes:
    films = [pack.films[row] for row in rows]
    cells = ([film.sha256, film.path, film.patient_id, film.label] for film in films)
    values = map(repr, best.logits.tolist())
    return table_bytes([VALIDATION_COLUMNS, *([*row, value] for row, value in zip(cells, values, strict=True))])


PEAK_FILMS: Final = 256  # validation films with pneumonia, at most, on which the scale of heat maps is measured


PEAK_QUANTILE: Final = 0.25  # three of four films with pneumonia reach this quantile


def evaluate_best(
    out: RunFolder, training: Training, best: Best, log: Log, on_progress: ProgressCallback
) -> float | None:
    """Evaluate the weights that are kept, after training: the first filters and the whole stress validation.

    Every process takes part; the first one writes.

    Returns: the typical peak of heat maps, as in ``RunInfo``.
    """
    state = training.state
    count = f"{len(state.splits.validation):,} films"
    log(f"Stress validation: {count} under {len(SHIFTS)} shifts and {len(EXCHANGES)} exchanges")
    averaged = state.average.module
    averaged.load_state_dict(best.weights)
    logits = under_every_shift(state, on_progress)
    if state.world.is_main:
        films = [state.pack.films[row] for row in state.splits.validation]
        with writing(out.folder):
            # the classifier's own weights are in the order of the layers, which a checkpoint does not keep
            plot_filters(averaged.state_dict(), out.folder)
            write_atomically(out.folder / STRESS, stress_table(logits, films))
    return typical_peak(averaged, state)


def typical_peak(classifier: Classifier, state: TrainState) -> float | None:
    """Measure the lowest end of the heat-map scale; None without validation films with pneumonia.

    Args:
        classifier: the weights that are kept.
        state: holds the films.
    """
    rows = [row for row in state.splits.validation if state.pack.films[row].label == Label.PNEUMONIA][:PEAK_FILMS]
    if not rows:
        return None
    peaks = []
    with torch.inference_mode():
        for batch in np.array_split(rows, steps_of(len(rows), VALIDATION_BATCH)):
            _, maps = classifier.eval().explain(state.on_device(state.pack.images[batch]))
            peaks.append(maps.amax(dim=(1, 2)).double().cpu() * maps[0].numel())
    return float(torch.cat(peaks).quantile(PEAK_QUANTILE))


def unfinished_info(training: Training) -> RunInfo:
    """Return the description of an unfinished run."""
    state = training.state
    return RunInfo(
        state=TRAINING,
        recipe=dataclasses.asdict(state.recipe),
        preprocessing=state.pack.info.preprocessing,
        training_data=state.pack.info.fingerprint,
        training_films=len(state.splits.training),
        validation_films=len(state.splits.validation),
        leak=state.splits.leak,
        device=str(state.device),
        threads=torch.get_num_threads(),
        versions={
            "chestxray": __version__,
            "python": platform.python_version(),
            "torch": torch.__version__,
            "numpy": np.__version__,
        },
        leakage_allowed=state.pack.info.leakage_allowed,
        teachers=state.teacher.hashes if state.teacher else (),
    )
