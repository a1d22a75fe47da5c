"""The training loop. It yields; whoever calls it prints, saves and stops."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from chestxray.data.pack import Pack, labels_of
from chestxray.data.parallel import Progress, no_progress
from chestxray.errors import TrainingDiverged
from chestxray.evaluation.metrics import Confusion, auroc
from chestxray.training.checkpoint import snapshot
from chestxray.training.recipe import Recipe
from chestxray.training.schedule import epochs_of, learning_rate_at, steps_of
from chestxray.training.sides import Sides, sides_of
from chestxray.training.step import Step
from chestxray.training.validation import Floats, validate


@dataclass(frozen=True, slots=True)
class EpochRecord:
    """What one epoch gave: one line of ``metrics.jsonl``.

    Attributes:
        epoch, epochs: counted from 1, and how many there will be.
        training_loss: mean over the films as the recipe weighs, smooths and varies them, while training.
        validation_loss: mean cross-entropy in nats, unweighted, so that recipes can be compared.
        auroc: on the validation films.
        sensitivity, specificity: on the validation films where log-odds of 0 and more are called pneumonia,
            which is a probability of a half before calibration.
        learning_rate: of the last step.
        films_per_second: training alone, without validation.
        seconds: training and validation.
        is_best: no earlier epoch had a higher AUROC, or the same with a lower validation loss.
    """

    epoch: int
    epochs: int
    training_loss: float
    validation_loss: float
    auroc: float
    sensitivity: float
    specificity: float
    learning_rate: float
    films_per_second: float
    seconds: float
    is_best: bool


@dataclass(frozen=True, slots=True)
class Epoch:
    """What the loop yields.

    Attributes:
        record: the figures.
        weights: a copy of the classifier's, averaged where the recipe says so, in ordinary memory.
        logits: log-odds of the validation films, shape (n,), in the order of ``sides.validation``.
        sides: which films were trained on and which were not.
    """

    record: EpochRecord
    weights: Mapping[str, Tensor]
    logits: Floats
    sides: Sides


def train(pack: Pack, recipe: Recipe, *, device: str = "auto", on_progress: Progress = no_progress) -> Iterator[Epoch]:
    """Train a network, one epoch an item. The same pack, recipe, machine and threads give the same weights.

    Args:
        pack: the films.
        recipe: how.
        device: "auto" takes a GPU where there is one; else a name that torch knows.
        on_progress: called with (films done, films in all) after each step of an epoch.

    Raises (before the first epoch):
        PackInvalid: a side holds no films.
        DegenerateLabels: a side holds one class only.
        Leakage: a patient or a film stands on both given sides.
        RecipeInvalid: the network or the device does not exist or does not fit.
        TrainingDiverged: later, where the loss is no longer finite.
    """
    sides = sides_of(pack, recipe)
    labels = labels_of(pack.films).astype(np.int64)
    step = Step.prepared(pack, recipe, sides, labels, device)
    best = (-math.inf, -math.inf)
    epochs = epochs_of(recipe, len(sides.training))
    for epoch in range(1, epochs + 1):
        started = time.perf_counter()
        training_loss, rate = _train_epoch(step, epoch, epochs, on_progress)
        trained = time.perf_counter()
        logits, validation_loss = validate(step)
        if not math.isfinite(validation_loss):
            raise TrainingDiverged(f"epoch {epoch}: the validation loss is {validation_loss}. Lower the learning rate")
        truths = labels[sides.validation]
        area = auroc(truths, logits)
        counts = Confusion.at(0.0, truths, logits)
        record = EpochRecord(
            epoch=epoch,
            epochs=epochs,
            training_loss=training_loss,
            validation_loss=validation_loss,
            auroc=area,
            sensitivity=counts.sensitivity or 0.0,
            specificity=counts.specificity or 0.0,
            learning_rate=rate,
            films_per_second=len(sides.training) / (trained - started),
            seconds=time.perf_counter() - started,
            is_best=(area, -validation_loss) > best,
        )
        best = max(best, (area, -validation_loss))
        yield Epoch(record, snapshot(step.average.module), logits, sides)


def _train_epoch(step: Step, epoch: int, epochs: int, on_progress: Progress) -> tuple[float, float]:
    """One pass over the training films. Returns the mean loss and the last learning rate.

    Everything random comes from the recipe's seed and the number of the epoch, so an epoch does not depend
    on what else draws from torch's global generator.
    """
    recipe, rows = step.recipe, step.sides.training
    generator = torch.Generator(step.device).manual_seed(_seed(recipe.seed, epoch, "augmentation"))
    order = np.random.default_rng(_seed(recipe.seed, epoch, "order")).permutation(rows)
    per_epoch = steps_of(len(rows), recipe.batch_size)
    total, done, rate = 0.0, 0, 0.0
    step.classifier.train()
    with torch.random.fork_rng(devices=[step.device] if step.device.type == "cuda" else []):
        torch.manual_seed(_seed(recipe.seed, epoch, "dropout"))
        for index, batch in enumerate(np.array_split(order, per_epoch)):
            rate = learning_rate_at(recipe, (epoch - 1) * per_epoch + index, epochs * per_epoch)
            loss = step.descend(np.sort(batch), rate, generator)
            if not math.isfinite(loss):
                raise TrainingDiverged(
                    f"epoch {epoch}, batch {index + 1} of {per_epoch}: the loss is {loss}. "
                    f"Lower the learning rate (it was {rate:g}) or set precision to float32"
                )
            total += loss * len(batch)
            done += len(batch)
            on_progress(done, len(rows))
    return total / len(rows), rate


def _seed(seed: int, epoch: int, purpose: str) -> int:
    """Independent numbers for each epoch and purpose: 0 to 2**63 - 1."""
    words = np.random.SeedSequence([seed, epoch, *purpose.encode()]).generate_state(1, np.uint64)
    return int(words[0]) >> 1
