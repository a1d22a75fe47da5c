"""torch.compile, where this machine can do it."""

from __future__ import annotations

from typing import Any, Final

import torch

from chestxray.training.checkpoint import snapshot
from chestxray.training.resume import Say
from chestxray.training.step import Step

REASON: Final = 160  # characters of the compiler's own words that are repeated


def compiled_where_possible(step: Step, say: Say) -> Step:
    """A step whose network was compiled; the same step, and a sentence, where that fails.

    Compiled arithmetic may round otherwise, so the weights' hash is another one than without.
    """
    if step.team.size > 1:
        say("--compile is left out: processes that share a batch stop for each other within the network")
        return step
    before = snapshot(step.classifier)
    try:
        compiled: Any = torch.compile(step.classifier)  # a module, though its annotation says less
        candidate = step._replace(trained=compiled)
        _try_out(candidate)
    except Exception as error:  # noqa: BLE001 - compilers fail in ways of their own, and none may stop a training
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:REASON]
        say(f"--compile is left out: the network cannot be compiled here ({reason})")
        candidate = step
    step.classifier.load_state_dict(before)  # trying out moved the statistics of batch normalisation
    step.optimiser.zero_grad()
    return candidate


def _try_out(step: Step) -> None:
    """Once forward and backward, since compilers work when they are first used."""
    step.classifier.train()
    rows = step.sides.training[: step.recipe.batch_size]
    with torch.random.fork_rng(devices=[step.device] if step.device.type == "cuda" else []):
        step.scores(step.trained, step.films(rows), reduced=step.reduced).sum().backward()  # type: ignore[no-untyped-call]
