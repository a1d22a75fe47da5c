"""Trained networks that teach another: part of each label is what they make of the film as training varies it.

A label says what a film shows; a teacher says how plainly, also of films that were bent, cropped or mixed, which their
label knows nothing of. A small network so learns more of them than their labels alone hold.

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
    """Networks that answer as one.

    Attributes:
        networks: ready to use, on films of the student's size.
        hashes: SHA-256 of the weights of each.
    """

    networks: tuple[Classifier, ...]
    hashes: tuple[str, ...]

    def on(self, device: torch.device) -> Teacher:
        """The same there, in the order of memory that convolutions like."""
        moved = [one.to(device, memory_format=torch.channels_last) for one in self.networks]  # type: ignore[call-overload]
        return Teacher(tuple(moved), self.hashes)

    @torch.no_grad()
    def shares(self, films: Tensor) -> Tensor:
        """Grey levels (n, 1, height, width) to the probability of each class, shape (n, classes)."""
        films = films.contiguous(memory_format=torch.channels_last)
        return torch.stack([network(films) for network in self.networks]).mean(dim=0).softmax(dim=1)
