"""Several trained networks that act as one model, and their results on the validation films.

Networks of different kinds err on different films, so the mean of their log-odds ranks films better than each network
does, above all under shifts. For an export, every value of several runs is the mean of the runs' values.

Source: Lakshminarayanan et al., "Simple and scalable predictive uncertainty estimation using deep ensembles",
NeurIPS (2017).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from chestxray.data.pack import Pack
from chestxray.errors import RunInvalid, UsageError
from chestxray.training import trainer
from chestxray.training.config import Recipe
from chestxray.training.distillation import Teacher
from chestxray.training.networks import Classifier, build
from chestxray.training.run_folder import BEST, VALIDATION, RunInfo, ValidationTable
from chestxray.training.trainer import STRESS
from chestxray.training.weights import read_weights


class Ensemble(nn.Module):
    """Trained networks side by side.

    Attributes:
        members: the networks, each with its own normalisation, for films of the same size.
    """

    def __init__(self, members: Sequence[Classifier]) -> None:
        super().__init__()
        self.members = nn.ModuleList(members)

    def explain(self, films: Tensor) -> tuple[Tensor, Tensor]:
        """Return mean log-odds (N,) and mean maps (N, rows, columns) for grey levels (N, 1, height, width).

        Maps are resampled to the finest grid among them. The value of a coarse cell is spread over the cells that it
        covers, so that the sum of each map stays the same.
        """
        answers = [cast("Classifier", member).explain(films) for member in self.members]
        rows, columns = (max(activation.shape[axis] for _, activation in answers) for axis in (1, 2))
        maps = [_spread(activation, rows, columns) for _, activation in answers]
        return torch.stack([logits for logits, _ in answers]).mean(dim=0), torch.stack(maps).mean(dim=0)


def _spread(activation: Tensor, rows: int, columns: int) -> Tensor:
    if activation.shape[1:] == (rows, columns):
        return activation
    finer = functional.interpolate(activation[:, None], (rows, columns), mode="nearest")[:, 0]
    return finer * (activation.shape[1] * activation.shape[2] / (rows * columns))


@dataclass(frozen=True, slots=True)
class Trained:
    """Finished runs on one pack, combined.

    Attributes:
        infos: their descriptions; the first one's recipe names the whole.
        ensemble: their networks, ready to use.
        weights: the weights of all networks; with several, each name begins with the number of its run.
        table: the mean of the runs' log-odds for the validation films.
        stress: the same mean under every shift.
    """

    infos: tuple[RunInfo, ...]
    ensemble: Ensemble
    weights: dict[str, Tensor]
    table: ValidationTable
    stress: trainer.ByShift

    @property
    def network(self) -> str:
        """Names of the networks: "efficientnet_lite0 + residual"."""
        return " + ".join(info.recipe["network"] for info in self.infos)

    @classmethod
    def read(cls, runs: Sequence[Path]) -> Trained:
        """Read finished runs.

        Raises: RunInvalid: a run is missing, unfinished, damaged or changed, or was trained on another pack.
        """
        infos = tuple(RunInfo.read(run) for run in runs)
        for run, info in zip(runs, infos, strict=True):
            info.require_finished(run)
            if (info.training_data, info.preprocessing) != (infos[0].training_data, infos[0].preprocessing):
                raise RunInvalid(f"{run}: was trained on another pack than {runs[0]}, so the two cannot answer as one")
        weights = [read_weights(run / BEST, info.files[BEST]) for run, info in zip(runs, infos, strict=True)]
        tables = [
            ValidationTable.read(run / VALIDATION, info.files[VALIDATION])
            for run, info in zip(runs, infos, strict=True)
        ]
        under = [trainer.from_csv(run / STRESS, info.files[STRESS]) for run, info in zip(runs, infos, strict=True)]
        return cls(
            infos,
            Ensemble([restored(info, one) for info, one in zip(infos, weights, strict=True)]),
            weights[0] if len(runs) == 1 else {f"{i}.{k}": v for i, one in enumerate(weights) for k, v in one.items()},
            dataclasses.replace(tables[0], logits=np.mean([table.logits for table in tables], axis=0)),
            {name: np.mean([one[name] for one in under], axis=0) for name in under[0]},
        )


def restored(info: RunInfo, weights: dict[str, Tensor]) -> Classifier:
    """Build the trained classifier, ready to use. Raises: RunInvalid, if the weights do not fit the network."""
    common_scale = info.recipe["grey_scale"] == "common"
    classifier = build(info.recipe["network"], info.preprocessing, started=False, common_scale=common_scale)
    try:
        classifier.load_state_dict(weights)
    except RuntimeError as error:
        raise RunInvalid(f"the weights do not fit {info.recipe['network']} ({error})") from error
    return classifier.eval()


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
