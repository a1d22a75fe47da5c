"""What the network makes of the validation films between two epochs.

They are judged as they are, and once more as a panel: each film under one of the shifts of the stress validation. Films
of the hospital that a network learnt from soon leave nothing to choose between two epochs; the panel does, and costs no
more than they do. The whole stress validation follows once, at the end.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Final, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional

from chestxray.data.pack import Pack
from chestxray.evaluation.metrics import Confusion, auroc
from chestxray.evaluation.shifts import SHIFTS, shifted
from chestxray.training.networks import CLASSES, log_odds
from chestxray.training.schedule import steps_of
from chestxray.training.sides import Rows
from chestxray.training.step import Step

Floats = npt.NDArray[np.float32]
Planes = npt.NDArray[np.uint8]

VALIDATION_BATCH: Final = 32  # films; larger batches leave the processor's cache and are slower


class Judged(NamedTuple):
    """The figures, as ``EpochRecord`` names them.

    Attributes:
        logits: log-odds of the films as they are, shape (n,).
    """

    logits: Floats
    validation_loss: float
    auroc: float
    stress_auroc: float
    sensitivity: float
    specificity: float

    def figures(self) -> dict[str, float]:
        """All but the logits, by name."""
        return {name: value for name, value in self._asdict().items() if name != "logits"}


def validate(step: Step, panel: Planes) -> Judged:
    """Judge the validation films as they are, and the panel."""
    rows = step.sides.validation
    truths = step.labels[rows]
    scores = scores_of(step, len(rows), lambda batch: step.pack.images[rows[batch]])
    logits = log_odds(scores).numpy()
    loss = functional.cross_entropy(scores, torch.from_numpy(truths)).item()
    if not math.isfinite(loss):
        return Judged(logits, loss, math.nan, math.nan, math.nan, math.nan)
    counts = Confusion.at(0.0, truths, logits)
    under_shifts = auroc(truths, log_odds(scores_of(step, len(panel), panel.__getitem__)).numpy())
    return Judged(
        logits, loss, auroc(truths, logits), under_shifts, counts.sensitivity or 0.0, counts.specificity or 0.0
    )


def panel_of(pack: Pack, rows: Rows) -> Planes:
    """Each film under one shift, in turn by the order of their SHA-256, so that every shift gets its share.

    Returns: shape (n, height, width), in the order of ``rows``.
    """
    keys = [pack.films[row].sha256 for row in rows]
    planes = np.array(pack.images[rows])
    for turn, index in enumerate(sorted(range(len(keys)), key=keys.__getitem__)):
        shift = SHIFTS[turn % len(SHIFTS)]
        planes[index] = shifted(planes[index : index + 1], [keys[index]], shift)[0]
    return planes


def scores_of(step: Step, films: int, read: Callable[[Rows], Planes]) -> Tensor:
    """Class scores of the averaged weights, shape (n, 2), in ordinary memory.

    In float32 whatever training computes in: these decide the best epoch, the calibration and the operating
    points, and bfloat16's three digits would make ties of them.

    Args:
        step: whose processes share the work; each gets all scores.
        films: how many.
        read: gives the planes of a batch, shape (b, height, width), for its places in 0 to ``films - 1``.
    """
    judge = step.average.module.eval()
    with torch.inference_mode():
        batches = np.array_split(np.arange(films), steps_of(films, VALIDATION_BATCH))
        found = torch.zeros((films, CLASSES), device=step.device)
        # Whole batches to each process, so that a film meets the same company however many there are.
        for batch in batches[step.team.rank :: step.team.size]:
            found[batch] = step.scores(judge, step.on_device(read(batch)), reduced=False)
        return step.team.sum(found).cpu()
