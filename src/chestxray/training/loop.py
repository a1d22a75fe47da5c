"""The training loop. It yields; whoever calls it prints, saves and stops."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Final, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn import functional

from chestxray.data.pack import Pack, labels_of
from chestxray.data.parallel import Progress, no_progress
from chestxray.data.split import refuse_leakage
from chestxray.errors import DegenerateLabels, PackInvalid, RecipeInvalid, TrainingDiverged
from chestxray.evaluation.metrics import Confusion, auroc
from chestxray.schema import Label, Split
from chestxray.training.augment import augment
from chestxray.training.averaging import MovingAverage
from chestxray.training.checkpoint import snapshot
from chestxray.training.networks import CLASSES, Classifier, build, log_odds
from chestxray.training.recipe import Recipe

Rows = npt.NDArray[np.intp]
Floats = npt.NDArray[np.float32]

VALIDATION_BATCH: Final = 32  # films; larger batches leave the processor's cache and are slower


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


@dataclass(frozen=True, slots=True)
class Sides:
    """Rows of a pack, ascending.

    Attributes:
        leak: empty; or a sentence that says why the validation figures cannot be trusted.
    """

    training: Rows
    validation: Rows
    leak: str = ""


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
    step = _Step.prepared(pack, recipe, sides, labels, device)
    best = (-math.inf, -math.inf)
    epochs = epochs_of(recipe, len(sides.training))
    for epoch in range(1, epochs + 1):
        started = time.perf_counter()
        training_loss, rate = _train_epoch(step, epoch, epochs, on_progress)
        trained = time.perf_counter()
        logits, validation_loss = _validate(step, epoch)
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


def epochs_of(recipe: Recipe, films: int) -> int:
    """How many passes over that many training films the recipe asks for."""
    return max(recipe.epochs, math.ceil(recipe.minimum_steps / _steps_of(films, recipe.batch_size)))


def sides_of(pack: Pack, recipe: Recipe) -> Sides:
    """The films to train on and those to validate on. Raises: PackInvalid, DegenerateLabels, Leakage."""
    sides = _random_sides(pack, recipe) if recipe.validation == "random" else _given_sides(pack)
    labels = labels_of(pack.films)
    for name, rows in (("training", sides.training), ("validation", sides.validation)):
        if not len(rows):
            raise PackInvalid(
                f'{pack.folder}: holds no {name} films. Run "chestxray split" with a larger share and pack again'
            )
        if len(set(labels[rows].tolist())) < CLASSES:
            only = tuple(Label)[labels[rows[0]]]
            raise DegenerateLabels(
                f"{pack.folder}: all {len(rows):,} {name} films are labelled {only}. Add films of the other class"
            )
    return sides


def _given_sides(pack: Pack) -> Sides:
    refuse_leakage(pack.films, allowed=pack.info.leakage_allowed)
    return Sides(pack.rows(Split.TRAIN), pack.rows(Split.VAL))


def _random_sides(pack: Pack, recipe: Recipe) -> Sides:
    """Draw validation films one by one, as the original work did, and say what that leaks."""
    pool = np.union1d(pack.rows(Split.TRAIN), pack.rows(Split.VAL))
    drawn = np.random.default_rng(recipe.seed).permutation(pool)
    kept = round(len(pool) * recipe.validation_share)
    training, validation = np.sort(drawn[kept:]), np.sort(drawn[:kept])
    known = {pack.films[row].patient_id for row in training} - {""}
    shared = sum(pack.films[row].patient_id in known for row in validation)
    leak = (
        f"validation films were drawn at random by film: {shared:,} of {len(validation):,} show a patient who was "
        "also trained on, so the validation figures, the calibration and the operating points are too good"
    )
    return Sides(training, validation, leak)


# --------------------------------------------------------------------------- one step and one epoch


class _Step(NamedTuple):
    """All that a step of the optimiser needs."""

    pack: Pack
    recipe: Recipe
    sides: Sides
    labels: npt.NDArray[np.int64]
    device: torch.device
    reduced: bool  # whether convolutions and dense layers compute in bfloat16
    classifier: Classifier
    average: MovingAverage[Classifier]
    optimiser: torch.optim.Optimizer
    class_weights: Tensor | None

    @classmethod
    def prepared(cls, pack: Pack, recipe: Recipe, sides: Sides, labels: npt.NDArray[np.int64], wanted: str) -> _Step:
        device = device_of(wanted)
        classifier = build(recipe.network, pack.info.preprocessing, dropout=recipe.dropout, seed=recipe.seed)
        classifier = classifier.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        weights = None
        if recipe.class_balance:
            counts = np.bincount(labels[sides.training], minlength=CLASSES)
            weights = torch.tensor(len(sides.training) / (CLASSES * counts), dtype=torch.float32, device=device)
        reduced = {"float32": False, "bfloat16": True, "auto": has_native_bfloat16(device)}[recipe.precision]
        films = len(sides.training)
        steps = epochs_of(recipe, films) * _steps_of(films, recipe.batch_size)
        average = MovingAverage(classifier, round(recipe.average_weights * steps))
        optimiser = optimiser_of(classifier, recipe)
        return cls(pack, recipe, sides, labels, device, reduced, classifier, average, optimiser, weights)

    def films(self, rows: Rows) -> Tensor:
        """Grey levels of those rows, shape (n, 1, height, width), float, on the device."""
        levels = torch.from_numpy(self.pack.images[rows][:, None])
        return levels.to(self.device).float()

    def scores(self, classifier: Classifier, films: Tensor, *, reduced: bool) -> Tensor:
        """Class scores as float32."""
        films = films.contiguous(memory_format=torch.channels_last)
        with torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=reduced):
            scores: Tensor = classifier(films)
        return scores.float()


def _train_epoch(step: _Step, epoch: int, epochs: int, on_progress: Progress) -> tuple[float, float]:
    """One pass over the training films. Returns the mean loss and the last learning rate.

    Everything random comes from the recipe's seed and the number of the epoch, so an epoch does not depend
    on what else draws from torch's global generator.
    """
    recipe, rows = step.recipe, step.sides.training
    generator = torch.Generator(step.device).manual_seed(_seed(recipe.seed, epoch, "augmentation"))
    order = np.random.default_rng(_seed(recipe.seed, epoch, "order")).permutation(rows)
    per_epoch = _steps_of(len(rows), recipe.batch_size)
    total, done, rate = 0.0, 0, 0.0
    step.classifier.train()
    with torch.random.fork_rng(devices=[step.device] if step.device.type == "cuda" else []):
        torch.manual_seed(_seed(recipe.seed, epoch, "dropout"))
        for index, batch in enumerate(np.array_split(order, per_epoch)):
            rate = learning_rate_at(recipe, (epoch - 1) * per_epoch + index, epochs * per_epoch)
            loss = _descend(step, np.sort(batch), rate, generator)
            if not math.isfinite(loss):
                raise TrainingDiverged(
                    f"epoch {epoch}, batch {index + 1} of {per_epoch}: the loss is {loss}. "
                    f"Lower the learning rate (it was {rate:g}) or set precision to float32"
                )
            total += loss * len(batch)
            done += len(batch)
            on_progress(done, len(rows))
    return total / len(rows), rate


def _descend(step: _Step, batch: Rows, rate: float, generator: torch.Generator) -> float:
    """One step of the optimiser. Returns the loss before it."""
    films = augment(step.films(batch), step.recipe.augmentation, generator)
    loss = functional.cross_entropy(
        step.scores(step.classifier, films, reduced=step.reduced),
        torch.from_numpy(step.labels[batch]).to(step.device),
        weight=step.class_weights,
        label_smoothing=step.recipe.label_smoothing,
    )
    value = loss.item()
    if math.isfinite(value):
        for group in step.optimiser.param_groups:
            group["lr"] = rate
        step.optimiser.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        step.optimiser.step()
        step.average.step()
    return value


def _validate(step: _Step, epoch: int) -> tuple[Floats, float]:
    """Log-odds of the validation films, shape (n,), and their mean cross-entropy in nats.

    In float32 whatever training computes in: these logits decide the best epoch, the calibration and the
    operating points, and bfloat16's three digits would make ties of them.
    """
    rows = step.sides.validation
    judge = step.average.module.eval()
    with torch.inference_mode():
        batches = np.array_split(rows, _steps_of(len(rows), VALIDATION_BATCH))
        scores = torch.cat([step.scores(judge, step.films(batch), reduced=False) for batch in batches]).cpu()
        loss = functional.cross_entropy(scores, torch.from_numpy(step.labels[rows])).item()
    if not math.isfinite(loss):
        raise TrainingDiverged(f"epoch {epoch}: the validation loss is {loss}. Lower the learning rate")
    return log_odds(scores).numpy(), loss


def _steps_of(films: int, batch_size: int) -> int:
    return math.ceil(films / batch_size)


def _seed(seed: int, epoch: int, purpose: str) -> int:
    """Independent numbers for each epoch and purpose: 0 to 2**63 - 1."""
    words = np.random.SeedSequence([seed, epoch, *purpose.encode()]).generate_state(1, np.uint64)
    return int(words[0]) >> 1


# --------------------------------------------------------------------------- device, schedule, optimiser


def device_of(wanted: str) -> torch.device:
    """The device of that name. Raises: RecipeInvalid, where this machine does not have it."""
    if wanted == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(wanted)
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError) as error:
        raise RecipeInvalid(f'the device {wanted!r} cannot be used here ({error}). Try "cpu"') from error
    return device


def has_native_bfloat16(device: torch.device) -> bool:
    """Whether bfloat16 is faster there than float32, because the hardware multiplies it directly."""
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    tell = getattr(torch.cpu, "get_capabilities", dict)  # younger than the oldest torch that is supported
    capabilities: Mapping[str, object] = tell()
    return bool(capabilities.get("avx512_bf16") or capabilities.get("amx_bf16"))


def _constant(_recipe: Recipe, _position: float) -> float:
    return 1.0


def _one_cycle(recipe: Recipe, position: float) -> float:
    if position < recipe.warm_up:
        return position / recipe.warm_up
    return 0.5 + 0.5 * math.cos(math.pi * (position - recipe.warm_up) / (1.0 - recipe.warm_up))


_SCHEDULES: Final[Mapping[str, Callable[[Recipe, float], float]]] = {"constant": _constant, "one_cycle": _one_cycle}


def learning_rate_at(recipe: Recipe, step: int, steps: int) -> float:
    """Learning rate of one of ``steps`` steps, counted from 0.

    Source of the one cycle: Smith and Topin, "Super-convergence", arXiv:1708.07120 (2017).
    """
    return recipe.learning_rate * _SCHEDULES[recipe.schedule](recipe, (step + 0.5) / steps)


def optimiser_of(module: nn.Module, recipe: Recipe) -> torch.optim.Optimizer:
    """The recipe's optimiser; biases and batch normalisation are not decayed."""
    decayed = [parameter for parameter in module.parameters() if parameter.ndim > 1]
    others = [parameter for parameter in module.parameters() if parameter.ndim <= 1]
    groups = [{"params": decayed, "weight_decay": recipe.weight_decay}, {"params": others, "weight_decay": 0.0}]
    return _OPTIMISERS[recipe.optimiser](groups, recipe)


_OPTIMISERS: Final[Mapping[str, Callable[[list[dict[str, object]], Recipe], torch.optim.Optimizer]]] = {
    "sgd": lambda groups, r: torch.optim.SGD(
        groups, lr=r.learning_rate, momentum=r.momentum, nesterov=r.momentum > 0.0, fused=True
    ),
    "adamw": lambda groups, r: torch.optim.AdamW(groups, lr=r.learning_rate, betas=(r.momentum, 0.999), fused=True),
}
