"""The training loop, the validation between two epochs, and the estimate of what a training costs.

The validation films are evaluated unchanged, and again as two panels: each film under one of the shifts of the stress
validation, and each film with one property exchanged with a training film of the other class. Unchanged films of the
training hospital soon no longer distinguish two epochs; the panels do, at the same cost. The whole stress validation
follows once, at the end.
"""

from __future__ import annotations

import ctypes
import dataclasses
import math
import platform
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from chestxray.arrays import Float32Array, Float64Array, IndexArray, UInt8Array
from chestxray.data.pack import Pack, labels_of
from chestxray.errors import TrainingDiverged
from chestxray.images.shifts import (
    EXCHANGED_FROM,
    EXCHANGES,
    OTHER,
    SHIFTS,
    Nuisance,
    Shift,
    condition,
    donors_of,
    exchanged,
    shifted,
)
from chestxray.metrics.metrics import Confusion, auroc
from chestxray.progress import Log, ProgressCallback, no_progress
from chestxray.training.checkpoint import TrainSnapshot, restore, snapshot_of
from chestxray.training.config import Recipe
from chestxray.training.dataset import DataSplits, drawn, splits_of
from chestxray.training.distributed import SINGLE_PROCESS, World
from chestxray.training.networks import CLASSES, log_odds, parameters_of
from chestxray.training.optim import epochs_of, learning_rate_at, size_at, steps_of
from chestxray.training.train_state import EpochRecord, TrainState, best_of, snapshot

if TYPE_CHECKING:
    from chestxray.training.ensemble import Teacher

VALIDATION_BATCH: Final = 32  # films; larger batches exceed the processor's cache and are slower


class ValidationResult(NamedTuple):
    """The figures of a validation, with the names of ``EpochRecord``.

    Attributes:
        logits: log-odds of the unchanged films, shape (n,).
    """

    logits: Float32Array
    validation_loss: float
    auroc: float
    stress_auroc: float
    exchange_auroc: float
    sensitivity: float
    specificity: float

    def figures(self) -> dict[str, float]:
        """Return all but the logits, by name."""
        return {name: value for name, value in self._asdict().items() if name != "logits"}


class Panels(NamedTuple):
    """Two changed copies of the validation films, in the order of ``splits.validation``, shape (n, height, width) each.

    Attributes:
        shifted: each under a shift.
        exchanged: each with one property taken from a training film of the other class.
    """

    shifted: UInt8Array
    exchanged: UInt8Array


def validate(state: TrainState, panels: Panels) -> ValidationResult:
    """Evaluate the validation films unchanged, and both panels."""
    rows = state.splits.validation
    targets = state.labels[rows]
    scores = scores_of(state, len(rows), lambda batch: state.pack.images[rows[batch]])
    logits = log_odds(scores).numpy()
    loss = functional.cross_entropy(scores, torch.from_numpy(targets)).item()
    if not math.isfinite(loss):
        return ValidationResult(logits, loss, math.nan, math.nan, math.nan, math.nan, math.nan)
    counts = Confusion.at(0.0, targets, logits)
    under_shifts, exchanged = (
        auroc(targets, log_odds(scores_of(state, len(panel), panel.__getitem__)).numpy()) for panel in panels
    )
    areas = auroc(targets, logits), under_shifts, exchanged
    return ValidationResult(logits, loss, *areas, counts.sensitivity or 0.0, counts.specificity or 0.0)


def exchanged_panel_of(pack: Pack, splits: DataSplits) -> UInt8Array:
    """Return each film under one exchange with a training film of the other class, in turn as in ``panel_of``.

    Returns: shape (n, height, width), in the order of ``splits.validation``.
    """
    keys = [pack.films[row].sha256 for row in splits.validation]
    planes = np.array(pack.images[splits.validation])
    order = np.array(sorted(range(len(keys)), key=keys.__getitem__), dtype=np.intp)
    for turn, one in enumerate(EXCHANGES):
        places = order[turn :: len(EXCHANGES)]
        planes[places] = exchanged_films(pack, splits, places, one, OTHER)
    return planes


def exchanged_films(pack: Pack, splits: DataSplits, places: IndexArray, one: Nuisance, of: str) -> UInt8Array:
    """Return validation films, given by their indices, with one property taken from training films."""
    rows = splits.validation[places]
    names = [[(pack.films[row].sha256, pack.films[row].patient_id) for row in some] for some in (rows, splits.training)]
    labels = [labels_of([pack.films[row] for row in some]) for some in (rows, splits.training)]
    donors = donors_of(names[0], labels[0], names[1], labels[1], one, of)
    return exchanged(pack.images[rows], pack.images[splits.training[donors]], one, donors >= 0)


def panel_of(pack: Pack, rows: IndexArray) -> UInt8Array:
    """Return each film under one shift, in turn by the order of their SHA-256, so that every shift is used.

    Returns: shape (n, height, width), in the order of ``rows``.
    """
    keys = [pack.films[row].sha256 for row in rows]
    planes = np.array(pack.images[rows])
    for turn, index in enumerate(sorted(range(len(keys)), key=keys.__getitem__)):
        shift = SHIFTS[turn % len(SHIFTS)]
        planes[index] = shifted(planes[index : index + 1], [keys[index]], shift)[0]
    return planes


def scores_of(state: TrainState, films: int, read: Callable[[IndexArray], UInt8Array]) -> Tensor:
    """Return class scores by the averaged weights, shape (n, 2), in CPU memory.

    The scores are computed in float32 whatever the precision of the training: they decide the best epoch, the
    calibration and the operating points, and the three digits of bfloat16 would produce ties.

    Args:
        state: its processes share the work; each gets all scores.
        films: number of films.
        read: returns the planes of a batch, shape (b, height, width), for its places in 0 to ``films - 1``.
    """
    averaged = state.average.module.eval()
    with torch.inference_mode():
        batches = np.array_split(np.arange(films), steps_of(films, VALIDATION_BATCH))
        found = torch.zeros((films, CLASSES), device=state.device)
        # Whole batches to each process, so that the batches do not depend on the number of processes.
        for batch in batches[state.world.rank :: state.world.size]:
            found[batch] = state.scores(averaged, state.on_device(read(batch)), reduced=False)
        return state.world.sum(found).cpu()


def under_every_shift(state: TrainState, on_progress: ProgressCallback = no_progress) -> dict[str, Float64Array]:
    """Return log-odds of the validation films under each shift and each exchange, by the averaged weights.

    The shift of a film does not depend on its batch, so films are read and shifted a batch at a time.

    Args:
        state: its processes share the work; each gets all log-odds.
        on_progress: called with (films done, films in all), a film counts once for each shift.
    """
    rows = state.splits.validation
    keys = [state.pack.films[row].sha256 for row in rows]
    found = {}
    conditions = len(SHIFTS) + len(EXCHANGED_FROM)
    for index, shift in enumerate(SHIFTS, start=1):

        def read(batch: IndexArray, shift: Shift = shift) -> UInt8Array:
            return shifted(state.pack.images[rows[batch]], [keys[place] for place in batch], shift)

        found[shift.name] = log_odds(scores_of(state, len(rows), read)).double().numpy()
        on_progress(index * len(rows), conditions * len(rows))
    for index, (one, of) in enumerate(EXCHANGED_FROM, start=len(SHIFTS) + 1):
        planes = exchanged_films(state.pack, state.splits, np.arange(len(rows)), one, of)
        logits = log_odds(scores_of(state, len(rows), planes.__getitem__))
        found[condition(one, of)] = logits.double().numpy()
        on_progress(index * len(rows), conditions * len(rows))
    return found


# Parameters of mallopt(3), and their defaults.
_M_TRIM_THRESHOLD: Final = -1
_M_MMAP_MAX: Final = -4
_USUAL: Final = {_M_MMAP_MAX: 65_536, _M_TRIM_THRESHOLD: 128 * 1024}
# never a separate mapping for a block; the largest threshold that is accepted
_KEEPING: Final = {_M_MMAP_MAX: 0, _M_TRIM_THRESHOLD: 2**31 - 1}


@contextmanager
def freed_memory_kept() -> Iterator[None]:
    """Let glibc keep freed memory in this process until the block ends; then return all of it to the system."""
    if platform.libc_ver()[0] != "glibc":
        yield
        return
    library = ctypes.CDLL(None)
    for parameter, value in _KEEPING.items():
        library.mallopt(parameter, value)
    try:
        yield
    finally:
        for parameter, value in _USUAL.items():
            library.mallopt(parameter, value)
        library.malloc_trim(0)


@dataclass(frozen=True, slots=True)
class Epoch:
    """One item of the training loop.

    Attributes:
        record: the figures.
        weights: a copy of the classifier's weights, averaged if the recipe says so, in CPU memory.
        logits: log-odds of the validation films, shape (n,), in the order of ``splits.validation``.
        splits: which films were trained on and which were not.
    """

    record: EpochRecord
    weights: Mapping[str, Tensor]
    logits: Float32Array
    splits: DataSplits


def train(
    pack: Pack, recipe: Recipe, *, device: str = "auto", on_progress: ProgressCallback = no_progress
) -> Iterator[Epoch]:
    """Train a network and yield each epoch. The same pack, recipe, machine and threads give the same weights.

    Args:
        pack: the films.
        recipe: how to train.
        device: "auto" takes a GPU if there is one; otherwise a name that torch knows.
        on_progress: called with (films done, films in all) after each step of an epoch.

    Raises (before the first epoch):
        PackInvalid: a split holds no films.
        DegenerateLabels: a split holds one class only.
        Leakage: a patient or a film is in both given splits.
        RecipeInvalid: the network or the device does not exist or does not fit.
        TrainingDiverged: later, if the loss is no longer finite.
    """
    yield from Training(pack, recipe, device=device).epochs(on_progress)


def no_step_callback() -> None:
    """Do nothing after a step."""


class Training:
    """A training that can be inspected, and stopped, after any step.

    Attributes:
        state: the network in training, its data, and the tools of a step.
        records: records of the epochs that ended.
        epoch_count: number of all epochs.
        steps_an_epoch: the optimiser's steps in one epoch.
        steps_taken: steps taken in the present epoch.
        panels: the validation films, each under a shift, and each under an exchange.
    """

    def __init__(
        self,
        pack: Pack,
        recipe: Recipe,
        *,
        device: str = "auto",
        world: World = SINGLE_PROCESS,
        teacher: Teacher | None = None,
    ) -> None:
        """Prepare the training. Raises: what ``train`` raises before the first epoch."""
        splits = splits_of(pack, recipe)
        labels = labels_of(pack.films).astype(np.int64)
        self.state = TrainState.prepared(pack, recipe, splits, labels, device, world, teacher)
        self.records: list[EpochRecord] = []
        self.epoch_count = epochs_of(recipe, len(splits.training))
        self.steps_an_epoch = steps_of(len(splits.training), recipe.batch_size)
        self.steps_taken = 0
        self._summed_loss = 0.0
        self.panels = Panels(panel_of(pack, splits.validation), exchanged_panel_of(pack, splits))

    @property
    def all_steps_taken(self) -> int:
        """Number of steps since the beginning."""
        return len(self.records) * self.steps_an_epoch + self.steps_taken

    @property
    def all_steps(self) -> int:
        """Number of steps from the beginning to the end."""
        return self.epoch_count * self.steps_an_epoch

    def snapshot(self) -> TrainSnapshot:
        """Return a copy of everything on which the rest of the training depends."""
        return snapshot_of(self.state, self.steps_taken, self._summed_loss, tuple(self.records))

    def restore(self, saved: TrainSnapshot) -> None:
        """Restore an earlier or later state of the same pack and recipe. Raises: RunInvalid, if it does not fit."""
        self.records = list(saved.records)
        self.steps_taken = saved.steps_taken
        self._summed_loss = saved.summed_loss
        restore(self.state, saved, self.all_steps_taken)

    def varied_films(self, count: int = 24) -> Float32Array:
        """Return the first augmented films of epoch 1: shape (count or fewer, height, width), grey levels."""
        seed = self.state.recipe.seed
        generator = torch.Generator(self.state.device)
        sheet: list[Tensor] = []
        for index, batch in enumerate(_batches(seed, 1, self.state, self.steps_an_epoch)):
            generator.manual_seed(seed_of(seed, 1, index, "augmentation"))
            sheet.append(self.state.varied(batch, generator)[:, 0].cpu())
            if sum(map(len, sheet)) >= count:
                break
        films: Float32Array = torch.cat(sheet)[:count].numpy()
        return films

    def epochs(
        self, on_progress: ProgressCallback = no_progress, after_step: Callable[[], None] = no_step_callback
    ) -> Iterator[Epoch]:
        """Train to the end and yield each epoch.

        Args:
            on_progress: called with (films done, films in all) after each step of an epoch.
            after_step: called after each step; an error that it raises ends the training at that step.
        """
        while len(self.records) < self.epoch_count:
            started = time.perf_counter()
            before = self._films_done()
            with freed_memory_kept():
                rate = self._train_epoch(on_progress, after_step)
                trained = time.perf_counter()
                result = validate(self.state, self.panels)
            films = len(self.state.splits.training)
            record = self._record(result, rate, (films - before) / (trained - started), started)
            self.records.append(record)
            self.steps_taken, self._summed_loss = 0, 0.0
            yield Epoch(record, snapshot(self.state.average.module), result.logits, self.state.splits)

    def _train_epoch(self, on_progress: ProgressCallback, after_step: Callable[[], None]) -> float:
        """Take the remaining steps of this epoch. Returns the last learning rate."""
        recipe, rows, device = self.state.recipe, self.state.splits.training, self.state.device
        epoch = len(self.records) + 1
        batches = _batches(recipe.seed, epoch, self.state, self.steps_an_epoch)
        generator = torch.Generator(device)
        self.state.classifier.train()
        with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
            for index, batch in enumerate(batches[self.steps_taken :], start=self.steps_taken):
                generator.manual_seed(seed_of(recipe.seed, epoch, index, "augmentation"))
                torch.manual_seed(seed_of(recipe.seed, epoch, index, "dropout"))
                rate = self._rate_of(self.all_steps_taken)
                loss = self.state.train_step(batch, rate, generator, self.size_of(self.all_steps_taken))
                if not math.isfinite(loss):
                    raise self._diverged(epoch, index, batch, loss, rate)
                self._summed_loss += loss * len(batch)
                self.steps_taken += 1
                on_progress(self._films_done(), len(rows))
                after_step()
        return self._rate_of(self.all_steps_taken - 1)

    def _films_done(self) -> int:
        """Return the number of films of this epoch that were trained on."""
        films, steps = len(self.state.splits.training), self.steps_an_epoch
        return self.steps_taken * (films // steps) + min(self.steps_taken, films % steps)  # as np.array_split cuts

    def size_of(self, step: int) -> tuple[int, int]:
        """Return height and width of the films in a step, counted from the beginning of the training."""
        return size_at(self.state.recipe, step, self.all_steps, self.state.pack.info.preprocessing.size)

    def _rate_of(self, step: int) -> float:
        """Return the learning rate of a step, counted from the beginning of the training."""
        return learning_rate_at(self.state.recipe, step, self.all_steps)

    def _diverged(self, epoch: int, index: int, batch: IndexArray, loss: float, rate: float) -> TrainingDiverged:
        films = ", ".join(self.state.pack.films[row].path for row in batch)
        return TrainingDiverged(
            f"epoch {epoch}, batch {index + 1} of {self.steps_an_epoch}: the loss is {loss}. "
            f"Lower the learning rate (it was {rate:g}) or set precision to float32; "
            f"if that does not help, look at the films of the batch: {films}"
        )

    def _record(self, result: ValidationResult, rate: float, films_per_second: float, started: float) -> EpochRecord:
        epoch, loss = len(self.records) + 1, result.validation_loss
        if not math.isfinite(loss):
            raise TrainingDiverged(f"epoch {epoch}: the validation loss is {loss}. Lower the learning rate")
        best = best_of(self.records) if self.records else None
        return EpochRecord(
            epoch=epoch,
            epochs=self.epoch_count,
            training_loss=self._summed_loss / len(self.state.splits.training),
            learning_rate=rate,
            films_per_second=films_per_second,
            seconds=time.perf_counter() - started,
            is_best=best is None or _rank(result.figures()) > _rank(dataclasses.asdict(best)),
            **result.figures(),
        )


def _rank(figures: Mapping[str, float]) -> tuple[float, float]:
    """Return the key that ranks epochs: the mean AUROC of both panels, then the lower loss."""
    return figures["stress_auroc"] + figures["exchange_auroc"], -figures["validation_loss"]


def _batches(seed: int, epoch: int, state: TrainState, count: int) -> list[IndexArray]:
    """Return the rows in that epoch's order, cut into batches; rows ascend within a batch, for faster reading."""
    order = drawn(state.splits.training, state.chances, np.random.default_rng(seed_of(seed, epoch, 0, "order")))
    return [np.sort(batch) for batch in np.array_split(order, count)]


def seed_of(seed: int, epoch: int, step: int, purpose: str) -> int:
    """Return an independent seed for each epoch, step and purpose: 0 to 2**63 - 1."""
    words = np.random.SeedSequence([seed, epoch, step, *purpose.encode()]).generate_state(1, np.uint64)
    return int(words[0]) >> 1


WARM_UP: Final = 3  # steps that are not timed: the first ones reserve memory and choose kernels
TIMED: Final = 8  # steps
VALIDATING: Final = 1.0 / 3.0  # of a training film's time: the forward pass is about a third of a step
TEACHING: Final = 1.0  # of a step's time: the rough cost of a teacher, which is often the larger network
MINUTE: Final = 60.0  # seconds


@dataclass(frozen=True, slots=True)
class Estimate:
    """The work that is left in a training.

    Attributes:
        network: by name.
        parameters: number of trainable parameters.
        training_films, validation_films: numbers of films.
        batch_size: number of films in the largest step.
        steps_an_epoch, epochs, steps_left: of the optimiser.
        work_left: work of all the steps that are left; a step on whole films without a teacher is 1.
        next_work: work of the next step, in the same unit.
        device, precision: where convolutions are computed, and in which number format.
        threads, processes: numbers of threads and processes that compute.
    """

    network: str
    parameters: int
    training_films: int
    validation_films: int
    batch_size: int
    steps_an_epoch: int
    epochs: int
    steps_left: int
    work_left: float
    next_work: float
    device: str
    precision: str
    threads: int
    processes: int

    @classmethod
    def of(cls, training: Training) -> Estimate:
        """Estimate the work that is left in a training."""
        state = training.state
        films = len(state.splits.training)
        left = range(training.all_steps_taken, training.all_steps)
        whole = math.prod(state.pack.info.preprocessing.size)
        teaching = TEACHING if state.teacher else 0.0
        work = [math.prod(training.size_of(index)) / whole + teaching for index in left]
        return cls(
            network=state.recipe.network,
            parameters=parameters_of(state.classifier),
            training_films=films,
            validation_films=len(state.splits.validation),
            batch_size=-(-films // training.steps_an_epoch),
            steps_an_epoch=training.steps_an_epoch,
            epochs=training.epoch_count,
            steps_left=len(left),
            work_left=sum(work),
            next_work=work[0] if work else 1.0,
            device=str(state.device),
            precision="bfloat16" if state.reduced else "float32",
            threads=torch.get_num_threads(),
            processes=state.world.size,
        )

    def __str__(self) -> str:
        """Describe the estimate in one line for people."""
        on = f"{self.threads} thread" + ("s" if self.threads > 1 else "")
        on += f" in each of {self.processes} processes" if self.processes > 1 else ""
        return (
            f"{self.network}, {self.parameters:,} parameters: {self.training_films:,} films in "
            f"{self.steps_an_epoch:,} steps of up to {self.batch_size}, {self.epochs:,} epochs, "
            f"{self.steps_left:,} steps to go; {self.validation_films:,} films to evaluate after each epoch; "
            f"{self.precision} on {self.device}, {on}"
        )

    def seconds(self, a_step: float) -> float:
        """Return the expected seconds for what is left, if the next step takes ``a_step`` seconds."""
        unit = a_step / self.next_work
        epochs_left = self.steps_left / self.steps_an_epoch
        return unit * (self.work_left + epochs_left * self.validation_films * VALIDATING / self.batch_size)


class Forecast:
    """Times a few steps, and then reports once how many minutes are left."""

    def __init__(self, estimate: Estimate, log: Log) -> None:
        self._estimate = estimate
        self._log = log
        self._steps = 0
        self._started = 0.0

    def step(self) -> None:
        """Note that a step has ended."""
        self._steps += 1
        if self._steps == WARM_UP:
            self._started = time.perf_counter()
        elif self._steps == WARM_UP + TIMED:
            a_step = (time.perf_counter() - self._started) / TIMED
            self._log(f"{1e3 * a_step:.0f} ms a step: {_in_words(self._estimate.seconds(a_step))} in all")


def _in_words(seconds: float) -> str:
    if seconds < 2 * MINUTE:
        return f"about {max(1, round(seconds))} seconds"
    return f"about {round(seconds / MINUTE)} minutes"
