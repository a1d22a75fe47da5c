"""Pictures of what goes in and of what comes out: varied training films, and the first filters."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt
from torch import Tensor

from chestxray.errors import MissingExtra

AUGMENTED: Final = "augmented_films.png"
FILTERS: Final = "first_filters.png"
NAMES: Final = (AUGMENTED, FILTERS)

ACROSS: Final = 6  # films, or filters, side by side at least
FILTER_AXES: Final = 4  # of a convolution's weights: filters, channels, rows, columns

Planes = npt.NDArray[np.float32]


def draw_films(films: Planes, folder: Path) -> None:
    """Write a sheet of films as training sees them.

    Args:
        films: shape (n, height, width), grey levels 0..255.
        folder: gets ``augmented_films.png``.

    Raises: MissingExtra, where matplotlib is not installed.
    """
    _draw_sheet(films, folder / AUGMENTED, (0.0, 255.0))


def draw_filters(weights: Mapping[str, Tensor], folder: Path) -> None:
    """Write the filters of the first convolution, light where they ask for light; each film channel by itself.

    A network without convolutions has none to draw.

    Args:
        weights: in the order in which a film meets them.
        folder: gets ``first_filters.png``.

    Raises: MissingExtra, where matplotlib is not installed.
    """
    first = next((tensor for tensor in weights.values() if tensor.ndim == FILTER_AXES), None)
    if first is None:
        return
    planes = first.float().flatten(0, 1).numpy()
    highest = float(np.abs(planes).max()) or 1.0
    _draw_sheet(planes, folder / FILTERS, (-highest, highest))


def _draw_sheet(planes: Planes, path: Path, levels: tuple[float, float]) -> None:
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
