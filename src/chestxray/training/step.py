"""One step of the optimiser, and all that it needs."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Generator, Tensor, nn
from torch.nn import functional

from chestxray.data.pack import Pack
from chestxray.errors import RecipeInvalid
from chestxray.training.augment import augment, mixed, resized
from chestxray.training.averaging import MovingAverage
from chestxray.training.device import device_of, has_native_bfloat16
from chestxray.training.networks import CLASSES, Classifier, build, spec_for
from chestxray.training.optimiser import optimiser_of
from chestxray.training.recipe import Recipe
from chestxray.training.schedule import epochs_of, steps_of
from chestxray.training.shared_norm import share_statistics
from chestxray.training.sides import Rows, Sides
from chestxray.training.teacher import Teacher
from chestxray.training.team import Team


class Step(NamedTuple):
    """What is trained, on what and with what."""

    pack: Pack
    recipe: Recipe
    sides: Sides
    labels: npt.NDArray[np.int64]
    device: torch.device
    reduced: bool  # whether convolutions and dense layers compute in bfloat16
    classifier: Classifier
    trained: nn.Module  # the classifier itself, or what torch compiled of it; both hold the same weights
    average: MovingAverage[Classifier]
    optimiser: torch.optim.Optimizer
    class_weights: Tensor | None
    team: Team
    teacher: Teacher | None

    @classmethod
    def prepared(
        cls,
        pack: Pack,
        recipe: Recipe,
        sides: Sides,
        labels: npt.NDArray[np.int64],
        wanted: str,
        team: Team,
        teacher: Teacher | None = None,
    ) -> Step:
        """Fresh weights on the wanted device. Raises: RecipeInvalid."""
        spec = spec_for(recipe)
        device = device_of(wanted)
        classifier = build(recipe.network, pack.info.preprocessing, dropout=recipe.dropout, seed=recipe.seed)
        classifier = classifier.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        weights = None
        if recipe.class_balance:
            counts = np.bincount(labels[sides.training], minlength=CLASSES)
            weights = torch.tensor(len(sides.training) / (CLASSES * counts), dtype=torch.float32, device=device)
        pays = has_native_bfloat16(device) and (device.type == "cuda" or spec.favours_bfloat16)
        reduced = {"float32": False, "bfloat16": True, "auto": pays}[recipe.precision]
        films = len(sides.training)
        steps = epochs_of(recipe, films) * steps_of(films, recipe.batch_size)
        average = MovingAverage(classifier, round(recipe.average_weights * steps))
        optimiser = optimiser_of(classifier, recipe)
        if team.size > 1:
            _refuse_too_many(team, recipe, films)
            share_statistics(classifier)
        return cls(
            pack=pack,
            recipe=recipe,
            sides=sides,
            labels=labels,
            device=device,
            reduced=reduced,
            classifier=classifier,
            trained=classifier,
            average=average,
            optimiser=optimiser,
            class_weights=weights,
            team=team,
            teacher=teacher.on(device) if teacher else None,
        )

    def films(self, rows: Rows) -> Tensor:
        """Grey levels of those rows, shape (n, 1, height, width), float, on the device."""
        return self.on_device(self.pack.images[rows])

    def on_device(self, planes: npt.NDArray[np.uint8]) -> Tensor:
        """Films of shape (n, height, width), in the shape of ``films``."""
        levels = torch.from_numpy(planes[:, None])
        if self.device.type == "cuda":
            levels = levels.pin_memory()  # so that the copy runs beside the computation
        return levels.to(self.device, non_blocking=True).float()

    def varied(self, rows: Rows, generator: Generator) -> Tensor:
        """The films of those rows as training sees them, in the shape of ``films``."""
        return augment(self.films(rows), self.recipe.augmentation, generator)

    def scores(self, classifier: nn.Module, films: Tensor, *, reduced: bool) -> Tensor:
        """Class scores as float32."""
        films = films.contiguous(memory_format=torch.channels_last)
        with torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=reduced):
            scores: Tensor = classifier(films)
        return scores.float()

    def descend(self, batch: Rows, rate: float, generator: Generator, size: tuple[int, int] | None = None) -> float:
        """Take a step, on films of that height and width or whole ones; a teacher sees them whole.

        Returns: the loss before it; where that is not finite, nothing is changed.
        """
        films = self.varied(batch, generator)
        truths = functional.one_hot(torch.from_numpy(self.labels[batch]).to(self.device), CLASSES).float()
        if self.recipe.mixup:
            films, truths = mixed(films, truths, self.recipe.mixup, generator)
        share = self.team.share_of(len(batch))
        if self.teacher:
            taught = self.team.whole(self.teacher.shares(films[share]), len(batch))
            truths = truths.lerp(taught, self.recipe.distillation)
        with self.team.as_one(len(batch)):
            shown = resized(films[share], size or self.pack.info.preprocessing.size)
            own = self.scores(self.trained, shown, reduced=self.reduced)
        loss = functional.cross_entropy(
            self.team.whole(own, len(batch)),
            truths,
            weight=self.class_weights,
            label_smoothing=self.recipe.label_smoothing,
        )
        value = loss.item()
        if math.isfinite(value):
            for group in self.optimiser.param_groups:
                group["lr"] = rate
            self.optimiser.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            self.team.sum_gradients(self.classifier.parameters())
            self.optimiser.step()
            self.average.step()
        return value


def _refuse_too_many(team: Team, recipe: Recipe, films: int) -> None:
    smallest = films // steps_of(films, recipe.batch_size)
    if smallest < team.size:
        raise RecipeInvalid(
            f"{team.size} processes cannot share batches of {smallest} films. Start fewer, or raise batch_size"
        )
