"""Finished runs as a teacher for another."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from chestxray.data.pack import Pack
from chestxray.errors import RunInvalid, UsageError
from chestxray.training.checkpoint import read_weights
from chestxray.training.ensemble import restored
from chestxray.training.recipe import Recipe
from chestxray.training.run_folder import BEST, RunInfo
from chestxray.training.teacher import Teacher


def teacher_of(runs: Sequence[Path], recipe: Recipe, pack: Pack) -> Teacher | None:
    """The teacher that a recipe asks for: the best epochs of finished runs on the same pack.

    Raises:
        UsageError: runs without ``distillation`` in the recipe, or the other way round.
        RunInvalid: a run is missing, unfinished or damaged; or it was trained on another pack, and may so have learnt
            from the films that its student is judged by.
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
                "is judged by. Train the teacher on this pack"
            )
    hashes = tuple(info.files[BEST] for info in infos)
    weights = [read_weights(run / BEST, one) for run, one in zip(runs, hashes, strict=True)]
    return Teacher(tuple(map(restored, infos, weights)), hashes)
