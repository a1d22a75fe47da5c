"""Trackers: further places for the figures of a run, besides its own ``metrics.jsonl``.

A tracker receives each epoch as it ends. After an interruption it continues the record that it began.
"""

from __future__ import annotations

import dataclasses
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any, Final, Protocol

from chestxray.errors import MissingExtra, RecipeInvalid
from chestxray.files import write_atomically
from chestxray.training.config import Recipe
from chestxray.training.train_state import EpochRecord

FIGURES: Final = (
    "training_loss",
    "validation_loss",
    "auroc",
    "stress_auroc",
    "exchange_auroc",
    "sensitivity",
    "specificity",
    "learning_rate",
    "films_per_second",
)
TENSORBOARD_FOLDER: Final = "tensorboard"
MLFLOW_RUN: Final = "mlflow_run.txt"  # holds the name of the run at the tracking server
MLFLOW_SERVER: Final = "MLFLOW_TRACKING_URI"
MLFLOW_EXPERIMENT: Final = "MLFLOW_EXPERIMENT_NAME"


class Tracker(Protocol):
    """Receives the figures of a run."""

    def epoch(self, record: EpochRecord) -> None:
        """Record an epoch that has ended."""


def track(name: str, folder: Path, recipe: Recipe, recorded: int) -> AbstractContextManager[Tracker]:
    """Open a tracker until the block ends; a run that fails inside the block is marked as failed.

    Args:
        name: name of a row of the table.
        folder: the run's folder.
        recipe: recorded beside the figures.
        recorded: epochs that were recorded before an interruption.

    Raises: RecipeInvalid: no such tracker, or it cannot be reached. MissingExtra.
    """
    if name not in TRACKERS:
        raise RecipeInvalid(f"there is no tracker {name!r}; there are {', '.join(TRACKERS)}")
    return TRACKERS[name](folder, recipe, recorded)


class _TensorBoard:
    def __init__(self, writer: Any) -> None:
        self._writer = writer

    def epoch(self, record: EpochRecord) -> None:
        for name in FIGURES:
            self._writer.add_scalar(name, getattr(record, name), record.epoch)
        self._writer.flush()


@contextmanager
def _tensorboard(folder: Path, recipe: Recipe, recorded: int) -> Iterator[Tracker]:
    """Write event files in ``tensorboard/`` of the run's folder."""
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise MissingExtra("The tracker tensorboard", "tensorboard") from error
    place = folder / TENSORBOARD_FOLDER
    if not recorded:
        shutil.rmtree(place, ignore_errors=True)
    with SummaryWriter(place, purge_step=recorded + 1) as writer:
        writer.add_text("recipe", f"```toml\n{recipe.to_toml()}```")
        yield _TensorBoard(writer)


class _MLflow:
    def __init__(self, client: Any, run: str) -> None:
        self._client = client
        self._run = run

    def epoch(self, record: EpochRecord) -> None:
        for name in FIGURES:
            self._client.log_metric(self._run, name, getattr(record, name), step=record.epoch)


@contextmanager
def _mlflow(folder: Path, recipe: Recipe, recorded: int) -> Iterator[Tracker]:
    """Record a run at MLFLOW_TRACKING_URI, in the experiment MLFLOW_EXPERIMENT_NAME or "chestxray"."""
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")  # only that server may learn of a run
    try:
        from mlflow import MlflowClient
        from mlflow.exceptions import MlflowException
    except ImportError as error:
        raise MissingExtra("The tracker mlflow", "mlflow") from error
    server = os.environ.get(MLFLOW_SERVER)
    if not server:
        raise RecipeInvalid(f"the tracker mlflow needs a server: set {MLFLOW_SERVER}")
    try:
        client = MlflowClient(tracking_uri=server)
        run = _mlflow_run(client, folder / MLFLOW_RUN, recipe, recorded)
        status = "FAILED"
        try:
            yield _MLflow(client, run)
            status = "FINISHED"
        finally:
            client.set_terminated(run, status)
    except MlflowException as error:
        raise RecipeInvalid(
            f"MLflow at {server}: {error}. The same command without this tracker resumes the training"
        ) from error


def _mlflow_run(client: Any, note: Path, recipe: Recipe, recorded: int) -> str:
    """Return the id of the run that began before an interruption, else of a new one."""
    if recorded and note.is_file():
        run = note.read_text(encoding="utf-8").strip()
        client.update_run(run, status="RUNNING")
        return run
    name = os.environ.get(MLFLOW_EXPERIMENT, "chestxray")
    experiment = client.get_experiment_by_name(name)
    place = experiment.experiment_id if experiment else client.create_experiment(name)
    run = str(client.create_run(place).info.run_id)
    for key, value in dataclasses.asdict(recipe).items():
        client.log_param(run, key, value)
    write_atomically(note, run.encode())
    return run


TRACKERS: Final[Mapping[str, Callable[[Path, Recipe, int], AbstractContextManager[Tracker]]]] = {
    "tensorboard": _tensorboard,
    "mlflow": _mlflow,
}
