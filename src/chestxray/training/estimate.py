"""The expected cost of a training: stated before it starts, and in minutes after a few timed steps."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass
from typing import Final

import torch

from chestxray.progress import Log
from chestxray.training.networks import parameters_of
from chestxray.training.trainer import Training

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
