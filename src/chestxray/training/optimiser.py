"""The optimisers, as a table."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Final

import torch
from torch import nn

from chestxray.training.recipe import Recipe


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
