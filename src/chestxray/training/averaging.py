"""A moving average of the weights: one steady network out of many that swing about it.

Under a high learning rate the log-odds of one epoch lie far from those of the next, though both rank the
films alike; their average ranks them a little better and stays in place.

Source: Izmailov et al., "Averaging weights leads to wider optima", UAI (2018), in its exponential form.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Final, Generic, TypeVar

import torch
from torch import Tensor, nn

UPDATES: Final = 8  # within the window; more would cost time and change nothing

Module = TypeVar("Module", bound=nn.Module)


class MovingAverage(Generic[Module]):
    """The average of a module that is being trained.

    Attributes:
        module: of the same kind, holding the averaged weights and the averaged statistics of batch normalisation.
        steps: of the optimiser so far.
    """

    def __init__(self, trained: Module, window: int) -> None:
        """Start from the module as it stands.

        Args:
            trained: stays untouched.
            window: steps that the average reaches back; 0 follows the module without any averaging.
        """
        self._trained = trained
        self.module = copy.deepcopy(trained).requires_grad_(requires_grad=False) if window else trained
        self._every = max(1, window // UPDATES)
        self._weight = min(1.0, self._every / window) if window else 1.0
        self.steps = 0

    @torch.no_grad()
    def step(self) -> None:
        """Take notice of a step of the optimiser."""
        self.steps += 1
        if self.module is self._trained or self.steps % self._every:
            return
        averages, values = list(_tensors(self.module)), list(_tensors(self._trained))
        # Early on the average is of all steps so far, so that the random start does not linger.
        weight = max(self._weight, self._every / self.steps)
        torch._foreach_lerp_(averages, values, weight)


def _tensors(module: nn.Module) -> Iterator[Tensor]:
    """Weights, and buffers that are no counters."""
    yield from module.parameters()
    yield from (buffer for buffer in module.buffers() if buffer.is_floating_point())
