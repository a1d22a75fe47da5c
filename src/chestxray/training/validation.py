"""What the network makes of the validation films between two epochs."""

from __future__ import annotations

from typing import Final

import numpy as np
import numpy.typing as npt
import torch
from torch.nn import functional

from chestxray.training.networks import CLASSES, log_odds
from chestxray.training.schedule import steps_of
from chestxray.training.step import Step

Floats = npt.NDArray[np.float32]

VALIDATION_BATCH: Final = 32  # films; larger batches leave the processor's cache and are slower


def validate(step: Step) -> tuple[Floats, float]:
    """Log-odds of the validation films, shape (n,), and their mean cross-entropy in nats.

    In float32 whatever training computes in: these logits decide the best epoch, the calibration and the
    operating points, and bfloat16's three digits would make ties of them.
    """
    rows = step.sides.validation
    judge = step.average.module.eval()
    with torch.inference_mode():
        batches = np.array_split(np.arange(len(rows)), steps_of(len(rows), VALIDATION_BATCH))
        found = torch.zeros((len(rows), CLASSES), device=step.device)
        # Whole batches to each process, so that a film meets the same company however many there are.
        for batch in batches[step.team.rank :: step.team.size]:
            found[batch] = step.scores(judge, step.films(rows[batch]), reduced=False)
        scores = step.team.sum(found).cpu()
        loss = functional.cross_entropy(scores, torch.from_numpy(step.labels[rows])).item()
    return log_odds(scores).numpy(), loss
