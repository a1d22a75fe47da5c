"""The figures of an epoch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class EpochRecord:
    """The figures of one epoch: one line of ``metrics.jsonl``.

    Attributes:
        epoch, epochs: number of the epoch, from 1, and the number of all epochs.
        training_loss: mean over the training films, with the recipe's weights, label smoothing and augmentation.
        validation_loss: mean cross-entropy in nats, unweighted, so that recipes can be compared.
        auroc: on the validation films.
        stress_auroc: on the same films, each under one of the shifts of the stress validation.
        exchange_auroc: on the same films, each with one thing taken from a training film of the other class.
        sensitivity, specificity: on the validation films, with log-odds of 0 and more as pneumonia, which is a
            probability of a half before calibration.
        learning_rate: of the last step.
        films_per_second: training alone, without validation.
        seconds: training and validation. Of an epoch that was interrupted, both describe the part after the
            interruption.
        is_best: True if no earlier epoch had a higher sum of the AUROCs under shifts and exchanges, or the same sum
            with a lower validation loss.
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
    """Return the epoch whose weights are kept. The first epoch is the best so far by definition, so one exists."""
    return [record for record in records if record.is_best][-1]
