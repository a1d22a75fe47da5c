"""Several runs that act as one: an ensemble, a blend, or the teacher of another network.

An ensemble is the mean of the networks' log-odds. Networks of different kinds err on different films, so the mean ranks
films better than each network does, above all under shifts. For an export, every value of several runs is the mean of
the runs' values.

A blend is one network whose weights are the mean of the runs' weights. Runs that start from the same pretrained weights
and differ in their seeds end in one basin of the loss, so a blend ranks films about as well as the ensemble does, at
the cost of one network, and is more robust on films that differ from the training films. The statistics of batch
normalisation are measured again, on augmented training films.

A teacher is an ensemble whose probabilities for the augmented film are part of each target (distillation). A label says
what a film shows; a teacher says how clearly, also for films that were warped, cropped or mixed. So a small network
learns more than the labels alone contain.

Sources: Lakshminarayanan et al., "Simple and scalable predictive uncertainty estimation using deep ensembles", NeurIPS
(2017); Wortsman et al., "Model soups", ICML (2022), for the blend; Izmailov et al., UAI (2018), for the statistics;
Hinton, Vinyals and Dean, "Distilling the knowledge in a neural network", arXiv:1503.02531 (2015), and Beyer et al.,
"Knowledge distillation: a good teacher is patient and consistent", CVPR (2022), for showing both the same view.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, cast

import numpy as np
import torch
from torch import Generator, Tensor, nn
from torch.nn import functional

from chestxray.data.pack import Pack
from chestxray.errors import OutputExists, RunInvalid, UsageError
from chestxray.files import may_be_replaced
from chestxray.progress import Log, ProgressCallback, no_log, no_progress
from chestxray.training.checkpoint import Best, read_weights
from chestxray.training.config import Recipe
from chestxray.training.dataset import drawn
from chestxray.training.networks import Classifier, spec_of
from chestxray.training.optim import steps_of
from chestxray.training.run_folder import (
    BEST_WEIGHTS,
    RUN_JSON,
    STRESS,
    VALIDATION,
    ByShift,
    RunFolder,
    RunInfo,
    RunSummary,
    ValidationTable,
    evaluate_best,
    read_stress_table,
    restored,
    unfinished_info,
)
from chestxray.training.train_state import EpochRecord, snapshot
from chestxray.training.trainer import Training, ValidationResult, validate


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
    stress: ByShift

    @property
    def network(self) -> str:
        """Names of the networks: "efficientnet_lite0 + residual"."""
        return " + ".join(info.recipe["network"] for info in self.infos)

    @classmethod
    def read(cls, runs: Sequence[Path]) -> Trained:
        """Read finished runs.

        Raises: RunInvalid: a run is missing, unfinished, damaged or changed, or was trained on another pack.
        """
        infos = tuple(map(RunInfo.read_finished, runs))
        weights, tables, under = [], [], []
        for run, info in zip(runs, infos, strict=True):
            if (info.training_data, info.preprocessing) != (infos[0].training_data, infos[0].preprocessing):
                raise RunInvalid(f"{run}: was trained on another pack than {runs[0]}, so the two cannot answer as one")
            weights.append(_best_weights(run, info))
            tables.append(ValidationTable.read(run / VALIDATION, info.files[VALIDATION]))
            under.append(read_stress_table(run / STRESS, info.files[STRESS]))
        return cls(
            infos,
            Ensemble([restored(info, one) for info, one in zip(infos, weights, strict=True)]),
            weights[0] if len(runs) == 1 else {f"{i}.{k}": v for i, one in enumerate(weights) for k, v in one.items()},
            dataclasses.replace(tables[0], logits=np.mean([table.logits for table in tables], axis=0)),
            {name: np.mean([one[name] for one in under], axis=0) for name in under[0]},
        )


def _best_weights(run: Path, info: RunInfo) -> dict[str, Tensor]:
    return read_weights(run / BEST_WEIGHTS, info.files[BEST_WEIGHTS])


MEASURED: Final = 2048  # training films on which the statistics of batch normalisation are measured
MEASURED_BATCH: Final = 32  # films in one batch of them


def blend_runs(
    runs: Sequence[Path | str],
    pack_folder: Path | str,
    out: Path | str,
    *,
    device: str = "auto",
    on_progress: ProgressCallback = no_progress,
    log: Log = no_log,
) -> RunSummary:
    """Average the best weights of finished runs, and write the result as a new run, ready for export.

    Args:
        runs: at least two, of one recipe except for the seed, on the pack.
        pack_folder: the pack.
        out: the new run's folder; an earlier run there is replaced.
        device: as for ``trainer.train``.
        on_progress: called with (films done, films in all).
        log: called with a line about each step.

    Raises:
        UsageError: fewer than two runs, or a network that does not start from pretrained weights.
        RunInvalid: a run is unfinished, damaged, or of another recipe or pack.
        OutputExists: ``out`` exists and is no run.
    """
    started = time.perf_counter()
    folders, out = [Path(run) for run in runs], Path(out)
    if not may_be_replaced(out, RUN_JSON):
        raise OutputExists(f"{out}: exists and is not a run. Give another --out")
    pack = Pack.open(pack_folder)
    infos = _checked_for_blending(folders, pack)
    training = Training(pack, Recipe.from_fields(infos[0].recipe), device=device)
    blended = training.state.average.module
    blended.load_state_dict(_mean(list(map(_best_weights, folders, infos))))
    log(f"Statistics of batch normalisation: on {MEASURED:,} training films")
    _measure_statistics(training, blended)
    result = validate(training.state, training.panels)
    best = Best(snapshot(blended), result.logits)
    training.records = [_record([info.best for info in infos if info.best], result)]
    info = dataclasses.replace(unfinished_info(training), blended=tuple(int(info.recipe["seed"]) for info in infos))
    folder = RunFolder(out, pack, training.state.splits.validation)
    folder.begin(info, training.state.recipe, training.records, best)
    info = dataclasses.replace(info, typical_peak=evaluate_best(folder, training, best, log, on_progress))
    seconds = sum(info.seconds for info in infos) + time.perf_counter() - started
    return RunSummary(out, folder.finish(info, training.records, best.weights, seconds), tuple(training.records))


def _checked_for_blending(runs: Sequence[Path], pack: Pack) -> list[RunInfo]:
    """Return the descriptions of runs after a check that they may be blended. Raises: UsageError, RunInvalid."""
    if len(runs) < 2:  # noqa: PLR2004 - a mean of one is none
        raise UsageError("blending needs at least two runs")
    infos = list(map(RunInfo.read_finished, runs))
    for run, info in zip(runs, infos, strict=True):
        if not info.was_trained_on(pack):
            raise RunInvalid(f"{run}: was trained on another pack than {pack.folder}")
        if _recipe_without_seed(info) != _recipe_without_seed(infos[0]):
            raise RunInvalid(
                f"{run}: was trained by another recipe than {runs[0]}. Blend runs that differ in --seed alone"
            )
    name = infos[0].recipe["network"]
    if spec_of(name).start is None:
        raise UsageError(f"{name} begins from chance, so the mean of two of its runs is no network. Blend others")
    return infos


def _recipe_without_seed(info: RunInfo) -> dict[str, object]:
    return {name: value for name, value in info.recipe.items() if name != "seed"}


def _mean(weights: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """Return the mean of each tensor; counters are taken from the first."""
    return {
        name: torch.stack([one[name] for one in weights]).mean(dim=0) if first.is_floating_point() else first
        for name, first in weights[0].items()
    }


def _record(records: Sequence[EpochRecord], result: ValidationResult) -> EpochRecord:
    """Return the blend as the one epoch of its run: its own validation figures, and the mean of the runs' losses."""
    loss = sum(record.training_loss for record in records) / len(records)
    first = dataclasses.asdict(records[0])
    fields: dict[str, Any] = {**first, "training_loss": loss, "is_best": True, **result.figures()}
    return EpochRecord(**fields)


@torch.no_grad()
def _measure_statistics(training: Training, blended: Classifier) -> None:
    """Measure every batch normalisation's mean and variance over augmented training films, batches counting alike."""
    norms = [module for module in blended.modules() if isinstance(module, nn.BatchNorm2d)]
    kept = [norm.momentum for norm in norms]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # None: a plain mean over the batches
    state = training.state
    generator = Generator(state.device).manual_seed(state.recipe.seed)
    random = np.random.default_rng(state.recipe.seed)
    rows = drawn(state.splits.training, state.chances, random)[:MEASURED]
    blended.train()
    for batch in np.array_split(rows, steps_of(len(rows), MEASURED_BATCH)):
        state.scores(blended, state.varied(batch, generator), reduced=False)
    blended.eval()
    for norm, momentum in zip(norms, kept, strict=True):
        norm.momentum = momentum


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
    infos = list(map(RunInfo.read_finished, runs))
    for run, info in zip(runs, infos, strict=True):
        if not info.was_trained_on(pack):
            raise RunInvalid(
                f"{run}: was trained on another pack than {pack.folder}, so it may know the films that its student "
                "is evaluated by. Train the teacher on this pack"
            )
    weights = map(_best_weights, runs, infos)
    return Teacher(tuple(map(restored, infos, weights)), tuple(info.files[BEST_WEIGHTS] for info in infos))
