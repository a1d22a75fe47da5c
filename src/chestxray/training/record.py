"""The figures of an epoch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class EpochRecord:
    """What one epoch gave: one line of ``metrics.jsonl``.

    Attributes:
        epoch, epochs: counted from 1, and how many there will be.
        training_loss: mean over the films as the recipe weighs, smooths and varies them, while training.
        validation_loss: mean cross-entropy in nats, unweighted, so that recipes can be compared.
        auroc: on the validation films.
        stress_auroc: on the same films, each under one of the shifts of the stress validation.
        exchange_auroc: on the same films, each with one thing taken from a training film of the other class.
        sensitivity, specificity: on the validation films where log-odds of 0 and more are called pneumonia,
            which is a probability of a half before calibration.
        learning_rate: of the last step.
        films_per_second: training alone, without validation.
        seconds: training and validation. Of an epoch that was interrupted, both tell of the part after that.
        is_best: no earlier epoch had a higher sum of the AUROCs under shifts and under exchanges, or the same with a
            lower validation loss.
    """

    epoch: int
    epochs: int
    training_loss: float
    validation_loss: float
    auroc: float
    stress_auroc: float
    exchange_auroc: float
    sensitivity: float
    specificity: float
    learning_rate: float
    films_per_second: float
    seconds: float
    is_best: bool


def best_of(records: Sequence[EpochRecord]) -> EpochRecord:
    """The epoch whose weights are kept. The first epoch is always the best so far, so there is one."""
    return [record for record in records if record.is_best][-1]
