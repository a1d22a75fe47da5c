"""A training run on disk, from the first epoch on.

    run.json               RunInfo; written first, with state "training", and last, with state "finished"
    recipe.toml            the recipe, with every field
    metrics.jsonl          one EpochRecord a line, appended as epochs end
    best.safetensors       weights of the best epoch so far
    last.safetensors       weights of the last epoch
    validation.csv         the best epoch's logit of every validation film
    learning_curves.svg, learning_curves.png

A run that was interrupted keeps the state "training": ``export`` refuses it, and another run may take its
place.
"""

from __future__ import annotations

import csv
import dataclasses
import io
import json
import platform
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Self

import numpy as np
import numpy.typing as npt
import torch

from chestxray import __version__
from chestxray.data.pack import Pack
from chestxray.data.parallel import Progress, no_progress
from chestxray.errors import OutputExists, RunInvalid
from chestxray.files import may_be_replaced, sha256_of_file, write_atomically
from chestxray.schema import Label, Preprocessing
from chestxray.training.checkpoint import read_checked, write_weights
from chestxray.training.curves import NAMES, draw_curves
from chestxray.training.device import device_of
from chestxray.training.loop import Epoch, train
from chestxray.training.recipe import Recipe
from chestxray.training.record import EpochRecord, best_of

RUN_VERSION: Final = 1

DESCRIPTION: Final = "run.json"
RECIPE: Final = "recipe.toml"
METRICS: Final = "metrics.jsonl"
BEST: Final = "best.safetensors"
LAST: Final = "last.safetensors"
VALIDATION: Final = "validation.csv"
RUN_FILES: Final = (DESCRIPTION, RECIPE, METRICS, BEST, LAST, VALIDATION, *NAMES)

TRAINING: Final = "training"
FINISHED: Final = "finished"
VALIDATION_COLUMNS: Final = ("sha256", "path", "patient_id", "label", "logit")


@dataclass(frozen=True, slots=True)
class RunInfo:
    """``run.json``: where the weights beside it come from.

    Attributes:
        state: "training" until everything is written, then "finished".
        recipe: every field by name.
        preprocessing: of the pack.
        training_data: fingerprint of the pack.
        training_films, validation_films: how many.
        leak: empty; or why the validation figures cannot be trusted.
        device, threads, versions: what it ran on.
        best: the record of the best epoch; None until the first has ended.
        seconds: from start to finish.
        files: SHA-256 of the weights and of the validation table, by name, once finished.
        leakage_allowed: of the pack.
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

    def to_json(self) -> str:
        """Law: ``RunInfo.from_json(i.to_json()) == i``."""
        return json.dumps(dataclasses.asdict(self), indent=2)

    @classmethod
    def from_json(cls, text: str, source: str = DESCRIPTION) -> Self:
        """Raises: RunInvalid, when it is not a run of this version."""
        try:
            raw = json.loads(text)
            if raw["version"] != RUN_VERSION:
                raise RunInvalid(f"{source}: run version {raw['version']}; this program reads {RUN_VERSION}")
            best = EpochRecord(**raw["best"]) if raw["best"] else None
            return cls(**{**raw, "preprocessing": Preprocessing(**raw["preprocessing"]), "best": best})
        except (ValueError, TypeError, KeyError) as error:
            raise RunInvalid(f"{source}: not a description of a run ({error!r})") from error

    @classmethod
    def read(cls, folder: Path) -> Self:
        """The description of the run in that folder. Raises: RunInvalid, where it is missing or damaged."""
        path = folder / DESCRIPTION
        try:
            return cls.from_json(path.read_text(encoding="utf-8"), str(path))
        except (OSError, UnicodeDecodeError) as error:
            raise RunInvalid(
                f'{folder}: not a run, {DESCRIPTION} cannot be read. Make one with "chestxray train"'
            ) from error

    def require_finished(self, folder: Path) -> None:
        """Raises: RunInvalid, where the run did not come to its end."""
        if self.state != FINISHED:
            raise RunInvalid(f'{folder}: the run was interrupted before it ended. Train again with "chestxray train"')


@dataclass(frozen=True, slots=True)
class RunSummary:
    """What ``train_run`` gives back.

    Attributes:
        folder: where the run lies.
        info: its description, finished.
        records: one an epoch.
    """

    folder: Path
    info: RunInfo
    records: tuple[EpochRecord, ...]

    @property
    def best(self) -> EpochRecord:
        """The record of the best epoch."""
        return best_of(self.records)


@dataclass(frozen=True, slots=True)
class ValidationTable:
    """``validation.csv``: what the best epoch made of the validation films.

    Attributes:
        labels: shape (n,), 0 or 1.
        logits: shape (n,), log-odds of pneumonia before calibration.
        patients: n names; "" where unknown.
    """

    labels: npt.NDArray[np.int8]
    logits: npt.NDArray[np.float64]
    patients: tuple[str, ...]

    @classmethod
    def read(cls, path: Path, sha256: str) -> Self:
        """Read a table that must have that hash. Raises: RunInvalid."""
        data = read_checked(path, sha256)
        try:
            rows = list(csv.DictReader(io.StringIO(data.decode())))
            return cls(
                labels=np.array([Label(row["label"]).class_index for row in rows], dtype=np.int8),
                logits=np.array([float(row["logit"]) for row in rows], dtype=np.float64),
                patients=tuple(row["patient_id"] for row in rows),
            )
        except (ValueError, KeyError) as error:
            raise RunInvalid(f"{path}: not a table of validation films ({error!r}). Train again") from error


def no_report(record: EpochRecord) -> None:
    """Report nothing."""


def train_run(
    pack_folder: Path,
    out: Path,
    recipe: Recipe,
    *,
    device: str = "auto",
    on_epoch: Callable[[EpochRecord], None] = no_report,
    on_progress: Progress = no_progress,
) -> RunSummary:
    """Train, and write a run folder as it goes.

    Args:
        pack_folder: a pack.
        out: the run's folder. An earlier run there, finished or not, is replaced once the first epoch of
            this one has ended; files that no run wrote are left alone.
        recipe: how to train.
        device: as for ``loop.train``.
        on_epoch: called after each epoch, when its line is on disk.
        on_progress: called with (films done, films in all) after each step.

    Raises: OutputExists: something else stands at ``out``; and what ``Pack.open`` and ``loop.train`` raise.
    """
    started = time.perf_counter()
    if not may_be_replaced(out, DESCRIPTION):
        raise OutputExists(f"{out}: exists and is not a run. Give another --out")
    pack = Pack.open(pack_folder)
    records: list[EpochRecord] = []
    for epoch in train(pack, recipe, device=device, on_progress=on_progress):
        if not records:
            _begin(out, pack, recipe, epoch, device)
        records.append(epoch.record)
        _add(out, pack, epoch)
        on_epoch(epoch.record)
    write_weights(out / LAST, epoch.weights)
    draw_curves(records, out)
    info = dataclasses.replace(
        RunInfo.read(out),
        state=FINISHED,
        best=best_of(records),
        seconds=time.perf_counter() - started,
        files={name: sha256_of_file(out / name) for name in (BEST, LAST, VALIDATION)},
    )
    write_atomically(out / DESCRIPTION, info.to_json().encode())
    return RunSummary(out, info, tuple(records))


def _begin(out: Path, pack: Pack, recipe: Recipe, epoch: Epoch, device: str) -> None:
    """Take the folder: an earlier run's files go, and the description says that training is under way."""
    info = RunInfo(
        state=TRAINING,
        recipe=dataclasses.asdict(recipe),
        preprocessing=pack.info.preprocessing,
        training_data=pack.info.fingerprint,
        training_films=len(epoch.sides.training),
        validation_films=len(epoch.sides.validation),
        leak=epoch.sides.leak,
        device=str(device_of(device)),
        threads=torch.get_num_threads(),
        versions={
            "chestxray": __version__,
            "python": platform.python_version(),
            "torch": torch.__version__,
            "numpy": np.__version__,
        },
        leakage_allowed=pack.info.leakage_allowed,
    )
    # The description goes first: a folder is known as a run as long as any other file of it is there.
    write_atomically(out / DESCRIPTION, info.to_json().encode())
    for name in RUN_FILES:
        if name != DESCRIPTION:
            (out / name).unlink(missing_ok=True)
    write_atomically(out / RECIPE, recipe.to_toml().encode())


def _add(out: Path, pack: Pack, epoch: Epoch) -> None:
    if epoch.record.is_best:
        write_weights(out / BEST, epoch.weights)
        write_atomically(out / VALIDATION, _validation_table(pack, epoch))
    with (out / METRICS).open("a", encoding="utf-8") as metrics:
        metrics.write(json.dumps(dataclasses.asdict(epoch.record)) + "\n")


def _validation_table(pack: Pack, epoch: Epoch) -> bytes:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(VALIDATION_COLUMNS)
    for row, logit in zip(epoch.sides.validation, epoch.logits.tolist(), strict=True):
        film = pack.films[row]
        writer.writerow([film.sha256, film.path, film.patient_id, film.label, repr(logit)])
    return text.getvalue().encode()
