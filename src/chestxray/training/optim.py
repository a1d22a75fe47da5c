"""Optimisers, learning-rate schedules and film sizes, as tables; the moving average of the weights."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator, Mapping
from typing import Final, Generic, TypeVar

import torch
from torch import Tensor, nn

from chestxray.training.config import Recipe


def optimiser_of(module: nn.Module, recipe: Recipe) -> torch.optim.Optimizer:
    """Return the recipe's optimiser; weight decay does not apply to biases and batch normalisation."""
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


GROWN: Final = 0.7  # of all steps: from this point on films have their whole size
SIDE_STEP: Final = 32  # pixels: the sides of smaller films are multiples of this


def steps_of(films: int, batch_size: int) -> int:
    """Return the number of steps of an epoch: batches differ by one film at most, and none exceeds ``batch_size``."""
    return math.ceil(films / batch_size)


def epochs_of(recipe: Recipe, films: int) -> int:
    """Return the number of passes over ``films`` training films that the recipe asks for."""
    return max(recipe.epochs, math.ceil(recipe.minimum_steps / steps_of(films, recipe.batch_size)))


def _constant(_recipe: Recipe, _position: float) -> float:
    return 1.0


def _one_cycle(recipe: Recipe, position: float) -> float:
    if position < recipe.warm_up:
        return position / recipe.warm_up
    return 0.5 + 0.5 * math.cos(math.pi * (position - recipe.warm_up) / (1.0 - recipe.warm_up))


_SCHEDULES: Final[Mapping[str, Callable[[Recipe, float], float]]] = {"constant": _constant, "one_cycle": _one_cycle}


def learning_rate_at(recipe: Recipe, step: int, steps: int) -> float:
    """Return the learning rate of one of ``steps`` steps, counted from 0.

    Source of the one cycle: Smith and Topin, "Super-convergence", arXiv:1708.07120 (2017).
    """
    return recipe.learning_rate * _SCHEDULES[recipe.schedule](recipe, (step + 0.5) / steps)


def size_at(recipe: Recipe, step: int, steps: int, whole: tuple[int, int]) -> tuple[int, int]:
    """Return height and width of the films in one of ``steps`` steps, counted from 0; ``whole`` is the pack's size.

    Source: Tan and Le, "EfficientNetV2: smaller models and faster training", ICML (2021), on progressive learning.
    """
    share = recipe.first_size + (1.0 - recipe.first_size) * step / (GROWN * steps)
    if share >= 1.0:
        return whole
    height, width = (min(side, max(SIDE_STEP, SIDE_STEP * int(share * side / SIDE_STEP + 0.5))) for side in whole)
    return height, width


UPDATES: Final = 8  # updates within the window; more would cost time and change nothing

Module = TypeVar("Module", bound=nn.Module)


class MovingAverage(Generic[Module]):
    """The moving average of a module in training.

    Attributes:
        module: module of the same kind, with the averaged weights and the averaged statistics of batch normalisation.
        steps: number of the optimiser's steps so far.
    """

    def __init__(self, trained: Module, window: int) -> None:
        """Start from the module's present weights.

        Args:
            trained: the module in training; not modified.
            window: number of steps that the average covers; 0 follows the module without averaging.
        """
        self._trained = trained
        self.module = copy.deepcopy(trained).requires_grad_(requires_grad=False) if window else trained
        self._every = max(1, window // UPDATES)
        self._weight = min(1.0, self._every / window) if window else 1.0
        self.steps = 0

    @torch.no_grad()
    def step(self) -> None:
        """Note that the optimiser has taken a step, and update the average if due."""
        self.steps += 1
        if self.module is self._trained or self.steps % self._every:
            return
        averages, values = list(_tensors(self.module)), list(_tensors(self._trained))
        # Early on, the average covers all steps so far, so that the random start loses its weight.
        weight = max(self._weight, self._every / self.steps)
        torch._foreach_lerp_(averages, values, weight)


def _tensors(module: nn.Module) -> Iterator[Tensor]:
    """Yield the weights, and the buffers that are no counters."""
    yield from module.parameters()
    yield from (buffer for buffer in module.buffers() if buffer.is_floating_point())
