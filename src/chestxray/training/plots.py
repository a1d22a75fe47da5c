"""What people see of a training: learning curves, pictures of films and filters, and trackers.

A tracker passes the figures of each epoch on to TensorBoard or MLflow, beside the run's own ``metrics.jsonl``. After an
interruption it continues the record that it began.
"""

from __future__ import annotations

import dataclasses
import math
import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any, Final

import numpy as np
from torch import Tensor

from chestxray.arrays import Float32Array
from chestxray.errors import MissingExtra, RecipeInvalid
from chestxray.files import write_atomically
from chestxray.training.config import Recipe
from chestxray.training.train_state import EpochRecord

CURVE_NAMES: Final = ("learning_curves.svg", "learning_curves.png")
MANY: Final = 40  # epochs; with more, markers only blur the line

# (series, colour) of the upper and the lower picture; the colours differ for people with colour blindness, too
_LOSSES: Final = (("training_loss", "#0072b2"), ("validation_loss", "#d55e00"))
_RATES: Final = (
    ("auroc", "#0072b2"),
    ("stress_auroc", "#56b4e9"),
    ("exchange_auroc", "#e69f00"),
    ("sensitivity", "#d55e00"),
    ("specificity", "#009e73"),
)
_TITLES: Final = {
    "auroc": "AUROC",
    "stress_auroc": "AUROC under shifts",
    "exchange_auroc": "AUROC, irrelevant properties exchanged",
}


def plot_curves(records: Sequence[EpochRecord], folder: Path) -> None:
    """Write ``learning_curves.svg`` and ``.png``. Raises: MissingExtra, if matplotlib is not installed."""
    try:
        import matplotlib as mpl
        from matplotlib.figure import Figure
        from matplotlib.ticker import MaxNLocator
    except ImportError as error:
        raise MissingExtra("Drawing learning curves", "report") from error
    epochs = [record.epoch for record in records]
    marker = "o" if len(records) <= MANY else None
    best = [record for record in records if record.is_best][-1]
    # A fixed salt and no date: the same records give the same file.
    with mpl.rc_context({"svg.hashsalt": "chestxray", "svg.fonttype": "none"}):
        figure = Figure(figsize=(7.0, 6.0), layout="constrained")
        upper, lower = figure.subplots(2, 1, sharex=True)
        for axes, series, free in ((upper, _LOSSES, "upper right"), (lower, _RATES, "lower right")):
            for name, colour in series:
                values = [getattr(record, name) for record in records]
                label = _TITLES.get(name, name.replace("_", " "))
                axes.plot(epochs, values, marker=marker, markersize=4, color=colour, label=label)
            axes.axvline(best.epoch, color="0.6", linestyle=":", label="best epoch")
            axes.grid(visible=True, alpha=0.3)
            axes.legend(loc=free)  # a search for the best place warns where the machine is busy
        upper.set_ylabel("cross-entropy (nats)")
        lower.set_ylabel("on validation films")
        lower.set_xlabel("epoch")
        lower.xaxis.set_major_locator(MaxNLocator(integer=True))
        figure.savefig(folder / CURVE_NAMES[0], metadata={"Date": None})
        figure.savefig(folder / CURVE_NAMES[1], dpi=120)


AUGMENTED: Final = "augmented_films.png"
FILTERS: Final = "first_filters.png"
PICTURE_NAMES: Final = (AUGMENTED, FILTERS)

FEWEST_COLUMNS: Final = 6  # films, or filters, side by side at least
FILTER_AXES: Final = 4  # dimensions of a convolution's weights: filters, channels, rows, columns


def plot_augmented_films(films: Float32Array, folder: Path) -> None:
    """Write a sheet of films as training sees them.

    Args:
        films: shape (n, height, width), grey levels 0..255.
        folder: gets ``augmented_films.png``.

    Raises: MissingExtra, if matplotlib is not installed.
    """
    _plot_sheet(films, folder / AUGMENTED, (0.0, 255.0))


def plot_filters(weights: Mapping[str, Tensor], folder: Path) -> None:
    """Write the filters of the first convolution, light where a filter prefers light; each channel by itself.

    For a network without convolutions nothing is written.

    Args:
        weights: in forward order.
        folder: gets ``first_filters.png``.

    Raises: MissingExtra, if matplotlib is not installed.
    """
    first = next((tensor for tensor in weights.values() if tensor.ndim == FILTER_AXES), None)
    if first is None:
        return
    planes = first.float().flatten(0, 1).numpy()
    highest = float(np.abs(planes).max()) or 1.0
    _plot_sheet(planes, folder / FILTERS, (-highest, highest))


def _plot_sheet(planes: Float32Array, path: Path, levels: tuple[float, float]) -> None:
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise MissingExtra("Drawing films and filters", "report") from error
    across = min(len(planes), max(FEWEST_COLUMNS, math.isqrt(len(planes))))
    down = -(-len(planes) // across)
    height, width = planes.shape[1:]
    figure = Figure(figsize=(1.5 * across, 1.5 * down * height / width), layout="tight")
    for axes in figure.subplots(down, across, squeeze=False).flat:
        axes.set_axis_off()
    for axes, plane in zip(figure.axes, planes, strict=False):
        axes.imshow(plane, cmap="gray", vmin=levels[0], vmax=levels[1], interpolation="nearest")
    figure.savefig(path, dpi=120, metadata={"Software": None})


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


Tracker = Callable[[EpochRecord], None]  # called after each epoch


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

        def record_epoch(record: EpochRecord) -> None:
            for name in FIGURES:
                writer.add_scalar(name, getattr(record, name), record.epoch)
            writer.flush()

        yield record_epoch


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

        def record_epoch(record: EpochRecord) -> None:
            for name in FIGURES:
                client.log_metric(run, name, getattr(record, name), step=record.epoch)

        status = "FAILED"
        try:
            yield record_epoch
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
