"""Pictures for inspection: films, their distribution, scaling, a network, an answer.

Each function returns a matplotlib figure, which a notebook shows and ``figure.savefig("name.png")`` writes. The extra
"report" installs matplotlib.
"""

from __future__ import annotations

import base64
import io
import math
import textwrap
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from PIL import Image

from chestxray.arguments import arguments_checked
from chestxray.arrays import UInt8Array
from chestxray.data.sources import name_of, open_film
from chestxray.errors import FilmError, MissingExtra
from chestxray.evaluation.figures import ACCENT, CARD, COOL, INK, LINE, MUTED, STYLE, WARM
from chestxray.images.decode import decode
from chestxray.images.preprocess import resample
from chestxray.inference.heatmap import over_film
from chestxray.schema import Film, Label, Levels, Prediction, Resize, Split, Verdict, rows_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from chestxray.training.networks import LayerStage


ACROSS: Final = 4  # films side by side
SHOWN: Final = 320  # pixels: height of a film in a picture
CLASS_COLOURS: Final = {Label.NORMAL.value: COOL, Label.PNEUMONIA.value: WARM}
_UNDER: Final = 30  # characters of a line under a film


# --------------------------------------------------------------------------- films


@arguments_checked
def plot_films(films: Sequence[Film], titles: Sequence[str] = ()) -> Figure:
    """Plot films side by side, each with its name, its label and its verdict from cleaning.

    Args:
        films: rows of a manifest; a film that cannot be read is an empty frame.
        titles: one for each film, in place of its name and label.
    """
    films = rows_of(films)
    across = max(1, min(ACROSS, len(films)))
    down = max(1, math.ceil(len(films) / across))
    texts = list(titles) or [_caption(film) for film in films]
    with _figure(2.7 * across, 3.1 * down) as figure:
        panels = figure.subplots(down, across, squeeze=False)
        for axes in panels.flat:
            axes.set_anchor("N")
            axes.set_axis_off()
        if not films:
            _write_message(panels[0, 0], "no film")
        for axes, film, text in zip(panels.flat, films, texts, strict=False):
            _show(axes, film)
            axes.set_title(text, fontsize=8, color=INK)
    return figure


def _caption(film: Film) -> str:
    lines = [name_of(film), film.label or "unlabelled"]
    if film.verdict and not film.is_accepted:
        lines.append(film.reason)
    return "\n".join(part for line in lines for part in textwrap.wrap(line, _UNDER) or [""])


def _show(axes: Axes, film: Film) -> None:
    try:
        grey = _shown(open_film(film), name_of(film))
    except FilmError:
        axes.set(aspect=1.0)
        axes.set_axis_on()
        axes.spines[:].set_visible(True)
        _write_message(axes, "cannot be shown")
        return
    axes.imshow(grey, cmap="gray", vmin=0, vmax=255)


def _write_message(axes: Axes, what: str) -> None:
    """Write a message where there is nothing to draw."""
    axes.set(xticks=[], yticks=[])
    axes.text(0.5, 0.5, what, ha="center", va="center", fontsize=8, color=MUTED, transform=axes.transAxes)


def _shown(data: bytes, name: str) -> UInt8Array:
    """Return a film in its own proportions, SHOWN pixels high."""
    film = decode(data, name, at_least=(SHOWN, SHOWN))
    return resample(film.pixels, SHOWN, max(1, round(SHOWN * film.width / film.height)), Resize.SQUEEZE, film.frame)


# --------------------------------------------------------------------------- what there is


@arguments_checked
def plot_distribution(films: Sequence[Film]) -> Figure:
    """Plot a cleaned manifest: accepted films by split and label, their sizes, and the films that cleaning rejected."""
    films = rows_of(films)
    with _figure(10.5, 3.4) as figure:
        splits, sizes, set_aside = figure.subplots(1, 3)
        accepted = [film for film in films if film.is_accepted]
        _draw_splits(splits, accepted)
        _draw_sizes(sizes, accepted)
        _draw_set_aside(set_aside, films)
    return figure


def _draw_splits(axes: Axes, films: Sequence[Film]) -> None:
    names = [side.value for side in Split if any(film.split == side for film in films)]
    names += [""] * any(not film.split for film in films)
    for shift, (label, colour) in zip((-0.2, 0.2), CLASS_COLOURS.items(), strict=True):
        counts = [sum(film.split == name and film.label == label for film in films) for name in names]
        bars = axes.bar([place + shift for place in range(len(names))], counts, 0.4, color=colour, label=label)
        axes.bar_label(bars, labels=[f"{count:,}" for count in counts], fontsize=8, color=MUTED, padding=2)
    axes.set_xticks(range(len(names)), [name or "no split yet" for name in names])
    axes.set(title="accepted films", ylabel="films")
    axes.margins(y=0.15)
    axes.legend(loc="upper right", frameon=False)


def _draw_sizes(axes: Axes, films: Sequence[Film]) -> None:
    for label, colour in CLASS_COLOURS.items():
        of_label = [film for film in films if film.label == label]
        axes.scatter(
            [film.width for film in of_label], [film.height for film in of_label], 12, color=colour, alpha=0.6, lw=0
        )
    axes.set(title="their sizes", xlabel="width, pixels", ylabel="height, pixels")
    axes.grid(visible=True)


def _draw_set_aside(axes: Axes, films: Sequence[Film]) -> None:
    axes.set(title="set aside by cleaning")
    counts = Counter(film.verdict for film in films if film.verdict and not film.is_accepted)
    names = [verdict.value for verdict in reversed(Verdict) if counts[verdict.value]]
    if not names:
        _write_message(axes, "nothing")
        return
    bars = axes.barh([name.replace("_", " ") for name in names], [counts[name] for name in names], 0.6, color=MUTED)
    axes.bar_label(bars, fontsize=8, color=MUTED, padding=3)
    axes.set(xlabel="films")
    axes.locator_params(axis="x", integer=True)
    axes.margins(x=0.15)


# --------------------------------------------------------------------------- scaling


@arguments_checked
def plot_scaling(film: Film, size: tuple[int, int] = (112, 160), levels: Levels = Levels.EQUALISED) -> Figure:
    """Plot a film, and the network's input under each policy of scaling.

    Args:
        film: a row of a manifest.
        size: (height, width) of the network's input, in pixels.
        levels: how the film's grey levels are mapped.

    Raises: FilmError, if the film cannot be opened or read.
    """
    data, name = open_film(film), name_of(film)
    radiograph = decode(data, name)
    panels = [(_shown(data, name), f"the film\n{radiograph.width} x {radiograph.height} pixels")]
    for policy in Resize:
        plane = resample(radiograph.pixels, *size, policy, radiograph.frame, levels)
        panels.append((plane, f"{policy.value}\n{size[1]} x {size[0]} pixels"))
    widths = [plane.shape[1] / plane.shape[0] for plane, _ in panels]
    with _figure(2.3 * sum(widths), 2.9) as figure:
        for axes, (plane, title) in zip(figure.subplots(1, len(panels), width_ratios=widths), panels, strict=True):
            axes.imshow(plane, cmap="gray", vmin=0, vmax=255, interpolation="nearest")
            axes.set_title(title, fontsize=9)
            axes.set(xticks=[], yticks=[])
    return figure


# --------------------------------------------------------------------------- a network


@arguments_checked
def plot_network(network: str = "alexnet5", size: tuple[int, int] | None = None) -> Figure:
    """Plot a network as the sizes of a film on its way through the layers, with the parameters of each stage.

    Args:
        network: name of a row in the table of networks: alexnet5, residual, efficientnet_lite0.
        size: (height, width) of the film in pixels; by default the network's own.

    Raises: RecipeInvalid, MissingExtra.
    """
    from chestxray.training.networks import stages_of

    stages = stages_of(network, size)
    total = sum(stage.parameters for stage in stages)
    with _figure(1.35 * len(stages) + 0.6, 3.6) as figure:
        axes = figure.subplots()
        axes.set_axis_off()
        axes.set_aspect("equal")
        left = 0.0
        for stage in stages:
            left += _draw_stage(axes, stage, left, stages[0]) + _GAP
        axes.set_title(f"{network}: {total:,} parameters", fontsize=11, color=INK)
        axes.autoscale_view()
    return figure


_GAP: Final = 0.55  # between two stages; a film's height is 2
_TILT: Final = 0.3  # how far the depth of a stage leans to the right and up


def _draw_stage(axes: Axes, stage: LayerStage, left: float, film: LayerStage) -> float:
    """Draw a box whose sides stand for rows, columns and channels, by square roots and logarithms.

    Returns: its right edge.
    """
    high, deep = 2 * math.sqrt(stage.rows / film.rows), 2 * math.sqrt(stage.columns / film.columns)
    if stage.rows == stage.columns == 1:
        high, deep = min(2.0, math.log2(2 * stage.channels) / 6), 0.0
    thick, lean = 0.08 + 0.07 * math.log2(stage.channels), _TILT * deep
    right, lower, upper = left + thick, -high / 2, high / 2
    style: dict[str, Any] = {"facecolor": _colour_of(stage), "edgecolor": CARD, "linewidth": 0.8}
    faces = {
        1.0: [(left, lower), (right, lower), (right, upper), (left, upper)],
        0.8: [(left, upper), (right, upper), (right + lean, upper + lean), (left + lean, upper + lean)],
        0.6: [(right, lower), (right + lean, lower + lean), (right + lean, upper + lean), (right, upper)],
    }
    for opacity, corners in faces.items():
        axes.fill(*zip(*corners, strict=True), alpha=opacity, **style)
    middle = (left + right + lean) / 2
    axes.text(middle, -1.25, _label_of(stage), ha="center", va="top", fontsize=8, color=INK, linespacing=1.35)
    return max(thick + lean, 0.75)


def _colour_of(stage: LayerStage) -> str:
    if stage.convolutions:
        return ACCENT
    return WARM if stage.rows == stage.columns == 1 else LINE if stage.parameters else COOL


def _label_of(stage: LayerStage) -> str:
    size = (
        f"{stage.channels:,}"
        if stage.rows == stage.columns == 1
        else f"{stage.channels:,} x\n{stage.rows} x {stage.columns}"
    )
    if stage.convolutions:
        kind = "convolution" if stage.convolutions == 1 else f"{stage.convolutions} convolutions"
    else:
        kind = "dense" if stage.parameters else "pooled" if stage.channels > 1 else "film"
    learnt = f"\n{stage.parameters:,}" if stage.parameters else ""
    return f"{size}\n{kind}{learnt}"


# --------------------------------------------------------------------------- an answer


@arguments_checked
def plot_prediction(film: Path | str | bytes, answer: Prediction) -> Figure:
    """Plot a film next to its heat map, with the model's prediction.

    Args:
        film: its path, or the bytes of its file.
        answer: the answer to this film, made with ``heatmap=True``; without a heat map the film is shown alone.

    Raises: FilmError, if the film cannot be opened or read.
    """
    data, name = (film, "film") if isinstance(film, bytes) else (open_film(Path(film)), Path(film).name)
    panels: list[UInt8Array] = [_shown(data, name)]
    if answer.heatmap:
        with Image.open(io.BytesIO(over_film(data, name, base64.b64decode(answer.heatmap)))) as picture:
            panels.append(np.asarray(picture))
    widths = [panel.shape[1] / panel.shape[0] for panel in panels]
    with _figure(3.2 * sum(widths), 3.6) as figure:
        for axes, panel in zip(np.ravel(figure.subplots(1, len(panels))), panels, strict=True):
            axes.imshow(panel, cmap="gray", vmin=0, vmax=255)
            axes.set_axis_off()
        figure.suptitle(_answered(answer), fontsize=10, color=INK)
    return figure


def _answered(answer: Prediction) -> str:
    if answer.probability is None:
        return f"not classified: {answer.gate.reason}"
    return (
        f"{answer.label}: probability {answer.probability:.3f} "
        f"({answer.operating_point}: pneumonia from {answer.threshold:.3f})"
    )


# --------------------------------------------------------------------------- paper


@contextmanager
def _figure(width: float, height: float) -> Iterator[Figure]:
    """Open a figure of so many inches on white, in the style of the reports. Raises: MissingExtra."""
    try:
        import matplotlib as mpl
        from matplotlib.figure import Figure
    except ImportError as error:
        raise MissingExtra("Drawing pictures", "report") from error
    with mpl.rc_context({**STYLE, "figure.facecolor": "white", "axes.titlesize": 10, "axes.titlecolor": INK}):
        yield Figure(figsize=(width, height), layout="constrained")
