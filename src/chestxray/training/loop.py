"""The training loop. It yields; whoever calls it prints, saves and stops.

Everything random comes from the recipe's seed, the number of the epoch and the number of the step in it. So a
step does not depend on what else draws from torch's global generator, and a training that was stopped after
any step goes on as if it had not been.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from chestxray.data.pack import Pack, labels_of
from chestxray.data.parallel import Progress, no_progress
from chestxray.errors import TrainingDiverged
from chestxray.training.checkpoint import snapshot
from chestxray.training.memory import freed_memory_kept
from chestxray.training.recipe import Recipe
from chestxray.training.record import EpochRecord, best_of
from chestxray.training.schedule import epochs_of, learning_rate_at, size_at, steps_of
from chestxray.training.sides import Rows, Sides, sides_of
from chestxray.training.state import State, state_of, take_up
from chestxray.training.step import Step
from chestxray.training.teacher import Teacher
from chestxray.training.team import ALONE, Team
from chestxray.training.validation import Floats, Judged, panel_of, validate


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
    yield from Training(pack, recipe, device=device).epochs(on_progress)


def nothing_more() -> None:
    """Do nothing after a step."""


class Training:
    """A training that can be looked at, and stopped, after any step.

    Attributes:
        step: what is trained, on what and with what.
        records: of the epochs that ended.
        epoch_count: how many there will be.
        steps_an_epoch: of the optimiser.
        steps_taken: of the epoch under way.
        panel: the validation films, each under a shift.
    """

    def __init__(
        self, pack: Pack, recipe: Recipe, *, device: str = "auto", team: Team = ALONE, teacher: Teacher | None = None
    ) -> None:
        """Make everything ready. Raises: what ``train`` raises before the first epoch."""
        sides = sides_of(pack, recipe)
        labels = labels_of(pack.films).astype(np.int64)
        self.step = Step.prepared(pack, recipe, sides, labels, device, team, teacher)
        self.records: list[EpochRecord] = []
        self.epoch_count = epochs_of(recipe, len(sides.training))
        self.steps_an_epoch = steps_of(len(sides.training), recipe.batch_size)
        self.steps_taken = 0
        self._summed_loss = 0.0
        self.panel = panel_of(pack, sides.validation)

    @property
    def all_steps_taken(self) -> int:
        """Steps since the beginning."""
        return len(self.records) * self.steps_an_epoch + self.steps_taken

    @property
    def all_steps(self) -> int:
        """Steps from the beginning to the end."""
        return self.epoch_count * self.steps_an_epoch

    def state(self) -> State:
        """Everything that the rest of the training depends on, copied."""
        return state_of(self.step, self.steps_taken, self._summed_loss, tuple(self.records))

    def restore(self, state: State) -> None:
        """Go back, or forward, to a state of the same pack and recipe. Raises: RunInvalid, where it does not fit."""
        self.records = list(state.records)
        self.steps_taken = state.steps_taken
        self._summed_loss = state.summed_loss
        take_up(self.step, state, self.all_steps_taken)

    def varied_films(self, count: int = 24) -> Floats:
        """The first films of the first epoch as it sees them: shape (count or fewer, height, width), grey levels."""
        seed = self.step.recipe.seed
        generator = torch.Generator(self.step.device)
        sheet: list[Tensor] = []
        for index, batch in enumerate(_batches(seed, 1, self.step.sides.training, self.steps_an_epoch)):
            generator.manual_seed(seed_of(seed, 1, index, "augmentation"))
            sheet.append(self.step.varied(batch, generator)[:, 0].cpu())
            if sum(map(len, sheet)) >= count:
                break
        films: Floats = torch.cat(sheet)[:count].numpy()
        return films

    def epochs(
        self, on_progress: Progress = no_progress, after_step: Callable[[], None] = nothing_more
    ) -> Iterator[Epoch]:
        """Train on to the end.

        Args:
            on_progress: called with (films done, films in all) after each step of an epoch.
            after_step: called after each step; what it raises ends the training there.
        """
        while len(self.records) < self.epoch_count:
            started = time.perf_counter()
            before = self._films_done()
            with freed_memory_kept():
                rate = self._train_epoch(on_progress, after_step)
                trained = time.perf_counter()
                judged = validate(self.step, self.panel)
            films = len(self.step.sides.training)
            record = self._record(judged, rate, (films - before) / (trained - started), started)
            self.records.append(record)
            self.steps_taken, self._summed_loss = 0, 0.0
            yield Epoch(record, snapshot(self.step.average.module), judged.logits, self.step.sides)

    def _train_epoch(self, on_progress: Progress, after_step: Callable[[], None]) -> float:
        """The steps of this epoch that were not taken yet. Returns the last learning rate."""
        recipe, rows, device = self.step.recipe, self.step.sides.training, self.step.device
        epoch = len(self.records) + 1
        batches = _batches(recipe.seed, epoch, rows, self.steps_an_epoch)
        generator = torch.Generator(device)
        self.step.classifier.train()
        with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
            for index, batch in enumerate(batches[self.steps_taken :], start=self.steps_taken):
                generator.manual_seed(seed_of(recipe.seed, epoch, index, "augmentation"))
                torch.manual_seed(seed_of(recipe.seed, epoch, index, "dropout"))
                rate = self._rate_of(self.all_steps_taken)
                loss = self.step.descend(batch, rate, generator, self.size_of(self.all_steps_taken))
                if not math.isfinite(loss):
                    raise self._diverged(epoch, index, batch, loss, rate)
                self._summed_loss += loss * len(batch)
                self.steps_taken += 1
                on_progress(self._films_done(), len(rows))
                after_step()
        return self._rate_of(self.all_steps_taken - 1)

    def _films_done(self) -> int:
        """Films of this epoch that were trained on."""
        films, steps = len(self.step.sides.training), self.steps_an_epoch
        return self.steps_taken * (films // steps) + min(self.steps_taken, films % steps)  # as np.array_split cuts

    def size_of(self, step: int) -> tuple[int, int]:
        """Height and width of the films of a step, counted from the beginning of the training."""
        return size_at(self.step.recipe, step, self.all_steps, self.step.pack.info.preprocessing.size)

    def _rate_of(self, step: int) -> float:
        """Learning rate of a step, counted in the same way."""
        return learning_rate_at(self.step.recipe, step, self.all_steps)

    def _diverged(self, epoch: int, index: int, batch: Rows, loss: float, rate: float) -> TrainingDiverged:
        films = ", ".join(self.step.pack.films[row].path for row in batch)
        return TrainingDiverged(
            f"epoch {epoch}, batch {index + 1} of {self.steps_an_epoch}: the loss is {loss}. "
            f"Lower the learning rate (it was {rate:g}) or set precision to float32; "
            f"if that does not help, look at the films of the batch: {films}"
        )

    def _record(self, judged: Judged, rate: float, films_per_second: float, started: float) -> EpochRecord:
        epoch, loss = len(self.records) + 1, judged.validation_loss
        if not math.isfinite(loss):
            raise TrainingDiverged(f"epoch {epoch}: the validation loss is {loss}. Lower the learning rate")
        best = best_of(self.records) if self.records else None
        return EpochRecord(
            epoch=epoch,
            epochs=self.epoch_count,
            training_loss=self._summed_loss / len(self.step.sides.training),
            learning_rate=rate,
            films_per_second=films_per_second,
            seconds=time.perf_counter() - started,
            is_best=best is None or (judged.stress_auroc, -loss) > (best.stress_auroc, -best.validation_loss),
            **judged.figures(),
        )


def _batches(seed: int, epoch: int, rows: Rows, count: int) -> list[Rows]:
    """The rows in the order of that epoch, cut into so many; within a batch they ascend, as the disk likes it."""
    order = np.random.default_rng(seed_of(seed, epoch, 0, "order")).permutation(rows)
    return [np.sort(batch) for batch in np.array_split(order, count)]


def seed_of(seed: int, epoch: int, step: int, purpose: str) -> int:
    """Independent numbers for each epoch, step and purpose: 0 to 2**63 - 1."""
    words = np.random.SeedSequence([seed, epoch, step, *purpose.encode()]).generate_state(1, np.uint64)
    return int(words[0]) >> 1
