"""How many steps a recipe takes, how large each of them is, and how large the films are in it."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Final

from chestxray.training.recipe import Recipe

GROWN: Final = 0.7  # share of the steps after which films have their whole size
CELL: Final = 32  # pixels: sides are multiples of it until then


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


def size_at(recipe: Recipe, step: int, steps: int, whole: tuple[int, int]) -> tuple[int, int]:
    """Height and width of the films of one of ``steps`` steps, counted from 0; ``whole`` are those of the pack.

    Source: Tan and Le, "EfficientNetV2: smaller models and faster training", ICML (2021), on progressive learning.
    """
    share = recipe.first_size + (1.0 - recipe.first_size) * step / (GROWN * steps)
    if share >= 1.0:
        return whole
    height, width = (min(side, max(CELL, CELL * int(share * side / CELL + 0.5))) for side in whole)
    return height, width
