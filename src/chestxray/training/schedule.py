"""How many steps a recipe takes, and how large each of them is."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Final

from chestxray.training.recipe import Recipe


def steps_of(films: int, batch_size: int) -> int:
    """Steps of an epoch: batches of equal size, give or take a film, and none larger than asked for."""
    return math.ceil(films / batch_size)


def epochs_of(recipe: Recipe, films: int) -> int:
    """How many passes over that many training films the recipe asks for."""
    return max(recipe.epochs, math.ceil(recipe.minimum_steps / steps_of(films, recipe.batch_size)))


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
