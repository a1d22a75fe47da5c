"""Learning curves as pictures."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Final

from chestxray.errors import MissingExtra
from chestxray.training.record import EpochRecord

NAMES: Final = ("learning_curves.svg", "learning_curves.png")
MANY: Final = 40  # epochs; with more, single points only blur the line

# (series, colour) of the upper and the lower picture; colours tell apart in every common colour blindness
_LOSSES: Final = (("training_loss", "#0072b2"), ("validation_loss", "#d55e00"))
_RATES: Final = (
    ("auroc", "#0072b2"),
    ("stress_auroc", "#56b4e9"),
    ("sensitivity", "#d55e00"),
    ("specificity", "#009e73"),
)


def draw_curves(records: Sequence[EpochRecord], folder: Path) -> None:
    """Write ``learning_curves.svg`` and ``.png``. Raises: MissingExtra, where matplotlib is not installed."""
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
        for axes, series in ((upper, _LOSSES), (lower, _RATES)):
            for name, colour in series:
                values = [getattr(record, name) for record in records]
                label = {"auroc": "AUROC", "stress_auroc": "AUROC under shifts"}.get(name, name.replace("_", " "))
                axes.plot(epochs, values, marker=marker, markersize=4, color=colour, label=label)
            axes.axvline(best.epoch, color="0.6", linestyle=":", label="best epoch")
            axes.grid(visible=True, alpha=0.3)
            axes.legend()
        upper.set_ylabel("cross-entropy (nats)")
        lower.set_ylabel("on validation films")
        lower.set_xlabel("epoch")
        lower.xaxis.set_major_locator(MaxNLocator(integer=True))
        figure.savefig(folder / NAMES[0], metadata={"Date": None})
        figure.savefig(folder / NAMES[1], dpi=120)
