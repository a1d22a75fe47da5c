"""The figures of a report, as SVG for the page and for papers, and as PNG. Needs matplotlib (extra "report").

Every colour is one of ``CSS_VARIABLES``; on the page each becomes a variable of the style sheet, so the same drawing
suits a light and a dark page.
"""

from __future__ import annotations

import io
import re
from collections.abc import Callable
from itertools import cycle
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from chestxray.errors import MissingExtra
from chestxray.evaluation.assessment import Assessment, GateCurve
from chestxray.metrics.intervals import wilson_interval

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

INK: Final = "#1c2630"
MUTED: Final = "#5c6975"
LINE: Final = "#d9dfe4"
ACCENT: Final = "#0b6e75"
WARM: Final = "#b4541a"
COOL: Final = "#3b6ea5"
GREEN: Final = "#4f8a10"
PLUM: Final = "#8a3b8f"
GOLD: Final = "#a07800"
CARD: Final = "#fffffe"
CSS_VARIABLES: Final = {
    INK: "var(--ink)",
    MUTED: "var(--muted)",
    LINE: "var(--line)",
    ACCENT: "var(--accent)",
    WARM: "var(--warm)",
    COOL: "var(--cool)",
    GREEN: "var(--green)",
    PLUM: "var(--plum)",
    GOLD: "var(--gold)",
    CARD: "var(--card)",
}

_MARKERS: Final = "os^Dv"  # one for each operating point, so that they differ without colour
# Films first, then the kinds that must be refused: six colours, repeated with other lines, so that all kinds differ.
_GATE_LINES: Final = tuple(
    (colour, line) for line in ("-", (0, (4, 2)), (0, (1, 1.5))) for colour in (ACCENT, COOL, WARM, PLUM, GREEN, GOLD)
)
_PNG_DPI: Final = 200
_DASHED: Final = (0, (4, 3))  # an offset, then points on and off
_DOTTED: Final = (0, (1, 2))
STYLE: Final[dict[Any, Any]] = {
    "axes.edgecolor": LINE,
    "axes.facecolor": "none",
    "axes.labelcolor": MUTED,
    "axes.labelsize": 9,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.unicode_minus": True,
    "figure.facecolor": "none",
    "font.size": 9,
    "grid.color": LINE,
    "grid.linewidth": 0.6,
    "legend.borderaxespad": 0.8,
    "legend.edgecolor": LINE,
    "legend.facecolor": CARD,
    "legend.fontsize": 8.5,
    "legend.framealpha": 1.0,
    "legend.labelcolor": INK,
    "svg.fonttype": "none",
    "svg.hashsalt": "chestxray",
    "text.color": INK,
    "text.parse_math": False,  # a name may hold a dollar sign
    "xtick.color": LINE,
    "xtick.labelcolor": MUTED,
    "ytick.color": LINE,
    "ytick.labelcolor": MUTED,
}


class Drawing(NamedTuple):
    """One figure in three forms.

    Attributes:
        svg: a complete file, on a white background.
        inline: the same drawing for a page: colours are variables, identifiers begin with the figure's name.
    """

    name: str
    title: str
    caption: str
    svg: bytes
    inline: str
    png: bytes


class _Plot(NamedTuple):
    """One row of the table of figures."""

    name: str
    title: str
    caption: str
    draw: Callable[[Assessment, Figure], None]
    needs_both_classes: bool
    more_height: float = 0.0  # inches, for a long legend


def drawings(assessment: Assessment, gate: GateCurve | None = None) -> tuple[Drawing, ...]:
    """Draw every figure that these films allow, and the gate's if there is one. Raises: MissingExtra."""
    try:
        import matplotlib as mpl
        from matplotlib.figure import Figure
    except ImportError as error:
        raise MissingExtra("Drawing the figures of a report", "report") from error
    made = []
    gates = () if gate is None else (_gate_plot(gate),)
    with mpl.rc_context(STYLE):
        for plot in (*PLOTS, *gates):
            if plot.needs_both_classes and assessment.roc is None:
                continue
            figure = Figure(figsize=(4.8, 3.9 + plot.more_height), layout="constrained")
            plot.draw(assessment, figure)
            svg = _saved(figure, format="svg", metadata={"Date": None})
            png = _saved(figure, format="png", dpi=_PNG_DPI, facecolor="white", metadata={"Software": None})
            made.append(Drawing(plot.name, plot.title, plot.caption, svg, _inline(svg, plot.name), png))
    return tuple(made)


# --------------------------------------------------------------------------- the figures


def _draw_roc(assessment: Assessment, figure: Figure) -> None:
    axes = _unit_square(figure, "1 - specificity", "Sensitivity")
    axes.plot([0, 1], [0, 1], color=MUTED, linewidth=1, linestyle=_DASHED, label="chance")
    if assessment.roc is not None:
        axes.plot(assessment.roc.false_positive_rate, assessment.roc.true_positive_rate, color=ACCENT, linewidth=1.8)
    for measured, marker in zip(assessment.points, cycle(_MARKERS), strict=False):
        specificity = measured.confusion.specificity
        across = None if specificity is None else 1 - specificity
        _mark(axes, across, measured.confusion.sensitivity, marker, measured.point.name)
    _legend_above(axes, ncols=4)


def _draw_precision_recall(assessment: Assessment, figure: Figure) -> None:
    axes = _unit_square(figure, "Sensitivity (recall)", "Precision")
    share = assessment.positives / assessment.films
    axes.axhline(share, color=MUTED, linewidth=1, linestyle=_DASHED, label=f"every film: {share:.0%}")
    if assessment.precision_recall is not None:
        curve = assessment.precision_recall
        recall, precision = [0.0, *curve.recall], [curve.precision[0], *curve.precision]
        axes.plot(recall, precision, color=ACCENT, linewidth=1.8, drawstyle="steps-pre")
    for measured, marker in zip(assessment.points, cycle(_MARKERS), strict=False):
        _mark(axes, measured.confusion.recall, measured.confusion.precision, marker, measured.point.name)
    _legend_above(axes, ncols=4)


def _draw_reliability(assessment: Assessment, figure: Figure) -> None:
    upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=(4, 1))
    upper.set(xlim=(-0.02, 1.02), ylim=(-0.02, 1.02), ylabel="Share with pneumonia")
    upper.plot([0, 1], [0, 1], color=MUTED, linewidth=1, linestyle=_DASHED)
    upper.grid(visible=True)
    filled = [
        (b, b.predicted, b.observed) for b in assessment.bins if b.predicted is not None and b.observed is not None
    ]
    predicted, observed = [row[1] for row in filled], [row[2] for row in filled]
    ends = [wilson_interval(b.positives, b.films) for b, _, _ in filled]
    upper.vlines(predicted, [end.low for end in ends], [end.high for end in ends], color=ACCENT, linewidth=1.2)
    upper.plot(predicted, observed, color=ACCENT, marker="o", markersize=4.5, linewidth=0)
    widths = [b.high - b.low for b in assessment.bins]
    lows = [b.low for b in assessment.bins]
    lower.bar(
        lows, [b.films for b in assessment.bins], widths, align="edge", color=LINE, edgecolor=MUTED, linewidth=0.6
    )
    lower.set(xlabel="Predicted probability of pneumonia", ylabel="Films")
    lower.locator_params(axis="y", nbins=2, integer=True)
    figure.align_ylabels()


def _draw_histogram(assessment: Assessment, figure: Figure) -> None:
    axes = figure.subplots()
    edges, lows = assessment.histogram.edges, assessment.histogram.edges[:-1]
    width = edges[1] - edges[0]
    style: dict[str, Any] = {"align": "edge", "edgecolor": CARD, "linewidth": 0.8}
    axes.bar(lows, assessment.histogram.pneumonia, width, color=WARM, label="pneumonia", **style)
    axes.bar(lows, [-count for count in assessment.histogram.normal], width, color=COOL, label="normal", **style)
    axes.axhline(0, color=MUTED, linewidth=0.8)
    point = assessment.answer.point
    axes.axvline(
        point.threshold, color=INK, linewidth=1, linestyle=_DOTTED, label=f"{point.name}: {point.threshold:.3f}"
    )
    axes.set(xlim=(-0.01, 1.01), xlabel="Predicted probability of pneumonia", ylabel="Films")
    axes.yaxis.set_major_formatter(lambda value, _: f"{abs(value):,.0f}")
    axes.locator_params(axis="y", integer=True)
    _legend_above(axes, ncols=3)


def _draw_decision(assessment: Assessment, figure: Figure) -> None:
    axes = figure.subplots()
    curve = assessment.decision
    if curve is None:
        return
    top = max(float(curve.model.max()), float(curve.everybody.max()), 0.01)
    axes.set(
        xlim=(0, 1), ylim=(-0.15 * top, 1.1 * top), ylabel="Net benefit", xlabel="Threshold probability for acting"
    )
    axes.grid(visible=True)
    axes.axhline(0, color=MUTED, linewidth=1, label="act on none")
    axes.plot(curve.thresholds, curve.everybody, color=COOL, linewidth=1.3, linestyle=_DASHED, label="act on all")
    axes.plot(curve.thresholds, curve.model, color=ACCENT, linewidth=1.8, label="act on the model")
    _legend_above(axes, ncols=3)


def _draw_risk_coverage(assessment: Assessment, figure: Figure) -> None:
    axes = figure.subplots()
    curve = assessment.risk_coverage
    axes.set(xlabel="Coverage: share of films kept, the surest first", ylabel="Share of those classified wrongly")
    axes.set(xlim=(0, 1.02), ylim=(0, max(0.02, 1.15 * float(curve.risk.max()))))
    axes.grid(visible=True)
    overall = float(curve.risk[-1])
    axes.axhline(overall, color=MUTED, linewidth=1, linestyle=_DASHED, label=f"all films: {overall:.1%}")
    steps = ([0.0, *curve.coverage], [curve.risk[0], *curve.risk])
    axes.plot(*steps, color=ACCENT, linewidth=1.8, drawstyle="steps-pre")
    axes.yaxis.set_major_formatter(lambda value, _: f"{100 * value:.3g}%")
    _legend_above(axes)


def _gate_plot(gate: GateCurve) -> _Plot:
    def draw(_: Assessment, figure: Figure) -> None:
        axes = _unit_square(figure, "Limit of the gate's score", "Share refused")
        for (kind, shares), (colour, line) in zip(gate.refused.items(), cycle(_GATE_LINES), strict=False):
            axes.plot(gate.limits, shares, color=colour, linestyle=line, label=f"{kind} ({gate.counts[kind]:,})")
        axes.axvline(gate.limit, color=INK, linewidth=1, linestyle=_DOTTED, label=f"used: {gate.limit:.2f}")
        figure.legend(loc="outside lower center", ncols=2, frameon=False, fontsize=7.5)

    caption = "What is refused at other limits, of the pictures that set the gate's own: films, and what is none."
    rows = -(-(len(gate.refused) + 1) // 2)
    return _Plot("gate", "The gate", caption, draw, needs_both_classes=False, more_height=0.17 * rows)


PLOTS: Final = (
    _Plot(
        "roc",
        "ROC curve",
        "Sensitivity against false positives over all thresholds; the marks are the operating points, measured here.",
        _draw_roc,
        needs_both_classes=True,
    ),
    _Plot(
        "precision_recall",
        "Precision and recall",
        "How many films classified as pneumonia show it, against how many with it are found; dashed: every film.",
        _draw_precision_recall,
        needs_both_classes=True,
    ),
    _Plot(
        "reliability",
        "Reliability",
        "Predicted probability against the share that shows pneumonia, with 95% Wilson intervals; below, films a bin.",
        _draw_reliability,
        needs_both_classes=False,
    ),
    _Plot(
        "histogram",
        "Scores by class",
        "Films with pneumonia upwards, normal films downwards; the dotted line is the threshold of the answer.",
        _draw_histogram,
        needs_both_classes=False,
    ),
    _Plot(
        "decision",
        "Decision curve",
        "The net benefit of acting on the model, in true positives a film, by the probability from which one acts.",
        _draw_decision,
        needs_both_classes=True,
    ),
    _Plot(
        "risk_coverage",
        "Risk and coverage",
        "Errors among the films that are left when the least sure (nearest to the threshold) go to a reader.",
        _draw_risk_coverage,
        needs_both_classes=False,
    ),
)


# --------------------------------------------------------------------------- parts


def _unit_square(figure: Figure, xlabel: str, ylabel: str) -> Axes:
    axes = figure.subplots()
    axes.set(xlim=(-0.02, 1.02), ylim=(-0.02, 1.02), xlabel=xlabel, ylabel=ylabel)
    axes.grid(visible=True)
    return axes


def _legend_above(axes: Axes, ncols: int = 1) -> None:
    axes.legend(loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=ncols, frameon=False)


def _mark(axes: Axes, x: float | None, y: float | None, marker: str, name: str) -> None:
    """Mark an operating point, unless one of its rates is not defined."""
    if x is None or y is None:
        return
    style: dict[str, Any] = {"markersize": 7, "markerfacecolor": CARD, "markeredgecolor": INK, "markeredgewidth": 1.3}
    axes.plot([x], [y], marker=marker, linewidth=0, label=name, zorder=3, clip_on=False, **style)


def _saved(figure: Figure, **how: Any) -> bytes:
    out = io.BytesIO()
    figure.savefig(out, **how)
    return out.getvalue()


def _inline(svg: bytes, name: str) -> str:
    """Return the drawing for use inside a page: no prologue, no fixed size, no name that another figure has."""
    text = svg.decode()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    text = re.sub(r' (?:width|height)="[\d.]+pt"', "", text, count=2)
    text = re.sub(r'(\bid="|url\(#|href="#)', rf"\g<1>{name}-", text)
    text = re.sub(r"font: ([\d.]+px) [^;\"]*", r"font-size: \1", text)  # the page's own typeface is used instead
    text = re.sub(r"font-family: [^;\"]*;? ?", "", text)
    for colour, variable in CSS_VARIABLES.items():
        text = text.replace(colour, variable)
    return text
