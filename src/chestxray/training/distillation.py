"""Distillation: trained networks teach another; their probabilities for the augmented film are part of each target.

A label says what a film shows; a teacher says how clearly, also for films that were warped, cropped or mixed, where the
label says nothing about it. So a small network learns more than the labels alone contain.

Sources: Hinton, Vinyals and Dean, "Distilling the knowledge in a neural network", arXiv:1503.02531 (2015); Beyer et
al., "Knowledge distillation: a good teacher is patient and consistent", CVPR (2022), for showing both the same view.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from chestxray.training.networks import Classifier


@dataclass(frozen=True, slots=True)
class Teacher:
    """Trained networks whose mean logits are the teacher's answer.

    Attributes:
        networks: ready to use, on films of the student's size.
        hashes: SHA-256 of the weights of each.
    """

    networks: tuple[Classifier, ...]
    hashes: tuple[str, ...]

    def on(self, device: torch.device) -> Teacher:
        """Return the same teacher on a device, in the memory layout that convolutions prefer."""
        moved = [one.to(device, memory_format=torch.channels_last) for one in self.networks]  # type: ignore[call-overload]
        return Teacher(tuple(moved), self.hashes)

    @torch.no_grad()
    def probabilities(self, films: Tensor) -> Tensor:
        """Return the probability of each class, shape (n, classes), for grey levels (n, 1, height, width)."""
        films = films.contiguous(memory_format=torch.channels_last)
        return torch.stack([network(films) for network in self.networks]).mean(dim=0).softmax(dim=1)
