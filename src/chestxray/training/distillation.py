"""Distillation: trained networks teach another; their probabilities for the augmented film are part of each target.

A label says what a film shows; a teacher says how clearly, also for films that were warped, cropped or mixed, where the
label says nothing about it. So a small network learns more than the labels alone contain.

Sources: Hinton, Vinyals and Dean, "Distilling the knowledge in a neural network", arXiv:1503.02531 (2015); Beyer et
al., "Knowledge distillation: a good teacher is patient and consistent", CVPR (2022), for showing both the same view.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from chestxray.data.pack import Pack
from chestxray.errors import RunInvalid, UsageError
from chestxray.training.checkpoint import read_weights
from chestxray.training.config import Recipe
from chestxray.training.networks import Classifier
from chestxray.training.run_folder import BEST, RunInfo, restored


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


def teacher_of(runs: Sequence[Path], recipe: Recipe, pack: Pack) -> Teacher | None:
    """Return the teacher that a recipe asks for: the best epochs of finished runs on the same pack.

    Raises:
        UsageError: runs without ``distillation`` in the recipe, or the other way round.
        RunInvalid: a run is missing, unfinished or damaged; or it was trained on another pack, and so may have been
            trained on films on which the student is evaluated.
    """
    if runs and not recipe.distillation:
        raise UsageError(
            "a teacher was given, but the recipe has distillation = 0. Take the recipe distilled or default-distilled, "
            "or set it"
        )
    if recipe.distillation and not runs:
        raise UsageError(f"the recipe has distillation = {recipe.distillation:g}: give its teacher, --teacher RUN")
    if not runs:
        return None
    infos = [RunInfo.read(run) for run in runs]
    for run, info in zip(runs, infos, strict=True):
        info.require_finished(run)
        if not info.was_trained_on(pack):
            raise RunInvalid(
                f"{run}: was trained on another pack than {pack.folder}, so it may know the films that its student "
                "is evaluated by. Train the teacher on this pack"
            )
    hashes = tuple(info.files[BEST] for info in infos)
    weights = [read_weights(run / BEST, one) for run, one in zip(runs, hashes, strict=True)]
    return Teacher(tuple(map(restored, infos, weights)), hashes)
