"""Pictures of a training: learning curves, augmented films, filters."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

import numpy as np
from torch import Tensor

from chestxray.arrays import Float32Array
from chestxray.errors import MissingExtra
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
    "exchange_auroc": "AUROC, what must not matter exchanged",
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

ACROSS: Final = 6  # films, or filters, side by side at least
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
    across = min(len(planes), max(ACROSS, math.isqrt(len(planes))))
    down = -(-len(planes) // across)
    height, width = planes.shape[1:]
    figure = Figure(figsize=(1.5 * across, 1.5 * down * height / width), layout="tight")
    for axes in figure.subplots(down, across, squeeze=False).flat:
        axes.set_axis_off()
    for axes, plane in zip(figure.axes, planes, strict=False):
        axes.imshow(plane, cmap="gray", vmin=levels[0], vmax=levels[1], interpolation="nearest")
    figure.savefig(path, dpi=120, metadata={"Software": None})
