"""The state of a training: the network, its data, and one step of the optimiser; and what of it is kept on disk."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import numpy as np
import torch
from torch import Generator, Tensor, nn
from torch.nn import functional

from chestxray.arrays import Float64Array, IndexArray, Int64Array, UInt8Array
from chestxray.data.pack import Pack
from chestxray.errors import RecipeInvalid
from chestxray.progress import Log
from chestxray.training.augment import augment, exchange, exchanges, mixed, resized
from chestxray.training.config import Recipe
from chestxray.training.dataset import DataSplits, chances_against_shortcuts
from chestxray.training.distributed import World, share_statistics
from chestxray.training.networks import CLASSES, Classifier, build, spec_for
from chestxray.training.optim import MovingAverage, epochs_of, optimiser_of, steps_of

if TYPE_CHECKING:
    from chestxray.training.ensemble import Teacher


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


def device_of(wanted: str) -> torch.device:
    """Return the device of that name. Raises: RecipeInvalid, if this machine does not have it."""
    if wanted == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(wanted)
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError) as error:
        raise RecipeInvalid(f'the device {wanted!r} cannot be used here ({error}). Try "cpu"') from error
    return device


def has_native_bfloat16(device: torch.device) -> bool:
    """Check whether bfloat16 is faster than float32 on a device, because its hardware multiplies bfloat16 directly."""
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    # The oldest torch that is supported has no get_capabilities.
    capabilities: Mapping[str, object] = getattr(torch.cpu, "get_capabilities", dict)()
    return bool(capabilities.get("avx512_bf16") or capabilities.get("amx_bf16"))


class TrainState(NamedTuple):
    """The network in training, its data, and the tools of a step."""

    pack: Pack
    recipe: Recipe
    splits: DataSplits
    labels: Int64Array
    device: torch.device
    reduced: bool  # whether convolutions and dense layers compute in bfloat16
    classifier: Classifier
    trained: nn.Module  # the classifier itself, or the result of torch.compile; both hold the same weights
    average: MovingAverage[Classifier]
    optimiser: torch.optim.Optimizer
    class_weights: Tensor | None
    # probability of each training film to be drawn next; None draws each film once
    chances: Float64Array | None
    world: World
    teacher: Teacher | None

    @classmethod
    def prepared(
        cls,
        pack: Pack,
        recipe: Recipe,
        splits: DataSplits,
        labels: Int64Array,
        wanted: str,
        world: World,
        teacher: Teacher | None = None,
    ) -> TrainState:
        """Build the state of a training, with new weights on the wanted device. Raises: RecipeInvalid."""
        device = device_of(wanted)
        reduced = _computes_in_bfloat16(recipe, device)
        classifier = build(
            recipe.network,
            pack.info.preprocessing,
            dropout=recipe.dropout,
            seed=recipe.seed,
            common_scale=recipe.grey_scale == "common",
        )
        classifier = classifier.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        films = len(splits.training)
        steps = epochs_of(recipe, films) * steps_of(films, recipe.batch_size)
        average = MovingAverage(classifier, round(recipe.average_weights * steps))
        optimiser = optimiser_of(classifier, recipe)
        if world.size > 1:
            _refuse_too_many(world, recipe, films)
            share_statistics(classifier)
        chances = chances_against_shortcuts(pack, splits.training) if recipe.draw == "against_shortcuts" else None
        # drawing against shortcuts yields equally many films of each class already
        balanced = recipe.class_balance and chances is None
        return cls(
            pack=pack,
            recipe=recipe,
            splits=splits,
            labels=labels,
            device=device,
            reduced=reduced,
            classifier=classifier,
            trained=classifier,
            average=average,
            optimiser=optimiser,
            class_weights=_class_weights(labels[splits.training]).to(device) if balanced else None,
            chances=chances,
            world=world,
            teacher=teacher.on(device) if teacher else None,
        )

    def films(self, rows: IndexArray) -> Tensor:
        """Return grey levels of some rows, shape (n, 1, height, width), float, on the device."""
        return self.on_device(self.pack.images[rows])

    def on_device(self, planes: UInt8Array) -> Tensor:
        """Return films of shape (n, height, width) in the form that ``films`` returns."""
        levels = torch.from_numpy(planes[:, None])
        if self.device.type == "cuda":
            levels = levels.pin_memory()  # lets the copy run at the same time as the computation
        return levels.to(self.device, non_blocking=True).float()

    def varied(self, rows: IndexArray, generator: Generator) -> Tensor:
        """Return the augmented films of some rows, in the form that ``films`` returns."""
        films = self.films(rows)
        if exchanges(self.recipe.augmentation):
            films = exchange(films, self.films(self._donors(rows, generator)), self.recipe.augmentation, generator)
        return augment(films, self.recipe.augmentation, generator)

    def _donors(self, rows: IndexArray, generator: Generator) -> IndexArray:
        """Draw a training film of the other class for each of the rows."""
        training = self.splits.training
        labels = self.labels[training]
        drawn = torch.rand(len(rows), generator=generator, device=self.device).cpu().numpy()
        pools = [training[labels != label] for label in range(CLASSES)]
        found: IndexArray = np.array(
            [
                pools[label][int(share * len(pools[label]))]
                for label, share in zip(self.labels[rows].tolist(), drawn.tolist(), strict=True)
            ],
            dtype=np.intp,
        )
        return found

    def scores(self, classifier: nn.Module, films: Tensor, *, reduced: bool) -> Tensor:
        """Return class scores as float32."""
        films = films.contiguous(memory_format=torch.channels_last)
        with torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=reduced):
            scores: Tensor = classifier(films)
        return scores.float()

    def train_step(
        self, batch: IndexArray, rate: float, generator: Generator, size: tuple[int, int] | None = None
    ) -> float:
        """Take a step on films of the given size, or whole films if None; a teacher always sees whole films.

        Returns: the loss before the step; if it is not finite, nothing is changed.
        """
        films = self.varied(batch, generator)
        targets = functional.one_hot(torch.from_numpy(self.labels[batch]).to(self.device), CLASSES).float()
        if self.recipe.mixup:
            films, targets = mixed(films, targets, self.recipe.mixup, generator)
        share = self.world.share_of(len(batch))
        if self.teacher:
            taught = self.world.gather(self.teacher.probabilities(films[share]), len(batch))
            targets = targets.lerp(taught, self.recipe.distillation)
        with self.world.sharing_random_numbers(len(batch)):
            shown = resized(films[share], size or self.pack.info.preprocessing.size)
            own = self.scores(self.trained, shown, reduced=self.reduced)
        loss = functional.cross_entropy(
            self.world.gather(own, len(batch)),
            targets,
            weight=self.class_weights,
            label_smoothing=self.recipe.label_smoothing,
        )
        value = loss.item()
        if math.isfinite(value):
            for group in self.optimiser.param_groups:
                group["lr"] = rate
            self.optimiser.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            self.world.sum_gradients(self.classifier.parameters())
            self.optimiser.step()
            self.average.step()
        return value


def _computes_in_bfloat16(recipe: Recipe, device: torch.device) -> bool:
    """Check whether convolutions and dense layers compute in bfloat16. Raises: RecipeInvalid."""
    spec = spec_for(recipe)
    pays = has_native_bfloat16(device) and (device.type == "cuda" or spec.favours_bfloat16)
    return {"float32": False, "bfloat16": True, "auto": pays}[recipe.precision]


def _class_weights(labels: Int64Array) -> Tensor:
    """Return weights of the loss, shape (classes,), with which both classes count the same."""
    counts = np.bincount(labels, minlength=CLASSES)
    return torch.tensor(len(labels) / (CLASSES * counts), dtype=torch.float32)


def _refuse_too_many(world: World, recipe: Recipe, films: int) -> None:
    smallest = films // steps_of(films, recipe.batch_size)
    if smallest < world.size:
        raise RecipeInvalid(
            f"{world.size} processes cannot share batches of {smallest} films. Start fewer, or raise batch_size"
        )


REASON: Final = 160  # characters of the compiler's message that are repeated


def compiled_where_possible(state: TrainState, log: Log) -> TrainState:
    """Return the state with a compiled network; if compiling fails, log a sentence and return the same state.

    Compiled arithmetic may round differently, so the hash of the weights may differ from that without compiling.
    """
    if state.world.size > 1:
        log("--compile is left out: processes that share a batch stop for each other within the network")
        return state
    before = snapshot(state.classifier)
    try:
        compiled: Any = torch.compile(state.classifier)  # a module, though the annotation is wider
        candidate = state._replace(trained=compiled)
        _try_out(candidate)
    except Exception as error:  # noqa: BLE001 - compilers fail in many ways, and none may stop a training
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:REASON]
        log(f"--compile is left out: the network cannot be compiled here ({reason})")
        candidate = state
    state.classifier.load_state_dict(before)  # the trial changed the statistics of batch normalisation
    state.optimiser.zero_grad()
    return candidate


def _try_out(state: TrainState) -> None:
    """Run once forward and backward, because torch compiles at the first use."""
    state.classifier.train()
    rows = state.splits.training[: state.recipe.batch_size]
    with torch.random.fork_rng(devices=[state.device] if state.device.type == "cuda" else []):
        state.scores(state.trained, state.films(rows), reduced=state.reduced).sum().backward()  # type: ignore[no-untyped-call]


def snapshot(module: nn.Module) -> dict[str, Tensor]:
    """Return a copy of a module's weights and buffers in CPU memory; further training does not change the copy."""
    return in_cpu_memory(module.state_dict())


def in_cpu_memory(values: Mapping[str, Any]) -> dict[str, Tensor]:
    """Return copies of the tensors among ``values``, contiguous and in CPU memory."""
    return {
        name: value.detach().cpu().clone(memory_format=torch.contiguous_format)
        for name, value in values.items()
        if isinstance(value, Tensor)
    }
