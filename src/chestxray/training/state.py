"""What a training is at one moment: everything that the rest of it depends on."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

import torch
from torch import Tensor

from chestxray.errors import RunInvalid
from chestxray.training.checkpoint import snapshot
from chestxray.training.record import EpochRecord
from chestxray.training.step import Step


@dataclass(frozen=True, slots=True)
class State:
    """A moment between two steps. The randomness of what follows needs no place here: it comes from the seed.

    Attributes:
        records: of the epochs that ended.
        steps_taken: in the epoch after these.
        summed_loss: over the films of those steps, in nats.
        tensors: "weights/..." of the classifier, "average/..." where an average is kept, and "optimiser/..." as
            "optimiser/<number of the parameter>/<name>", in ordinary memory.
    """

    records: tuple[EpochRecord, ...]
    steps_taken: int
    summed_loss: float
    tensors: Mapping[str, Tensor]

    def figures(self) -> dict[str, Any]:
        """All but the tensors, as JSON knows it. Law: ``State.joined(s.figures(), s.tensors) == s``."""
        return {
            "records": [dataclasses.asdict(record) for record in self.records],
            "steps_taken": self.steps_taken,
            "summed_loss": self.summed_loss,
        }

    @classmethod
    def joined(cls, figures: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Self:
        """Raises: KeyError, TypeError, where the figures are of something else."""
        records = tuple(EpochRecord(**record) for record in figures["records"])
        return cls(records, figures["steps_taken"], figures["summed_loss"], tensors)


def state_of(step: Step, steps_taken: int, summed_loss: float, records: tuple[EpochRecord, ...]) -> State:
    """Copy the state of a training."""
    tensors = _named("weights", snapshot(step.classifier))
    if step.average.module is not step.classifier:
        tensors |= _named("average", snapshot(step.average.module))
    for number, held in step.optimiser.state_dict()["state"].items():
        named = {name: value for name, value in held.items() if isinstance(value, Tensor)}
        tensors |= {f"optimiser/{number}/{name}": _copied(value) for name, value in named.items()}
    return State(records, steps_taken, summed_loss, tensors)


def take_up(step: Step, state: State, all_steps: int) -> None:
    """Put a state back, bit for bit and in the memory layout that training uses.

    Args:
        step: of the same pack and recipe.
        state: taken from it, or from an earlier process.
        all_steps: since the beginning.

    Raises: RunInvalid, where the state is of another network or optimiser.
    """
    try:
        step.classifier.load_state_dict(_under("weights", state.tensors))
        if step.average.module is not step.classifier:
            step.average.module.load_state_dict(_under("average", state.tensors))
        _restore_optimiser(step.optimiser, _under("optimiser", state.tensors))
    except (RuntimeError, ValueError, IndexError) as error:
        raise RunInvalid(f"the checkpoint does not fit the network {step.recipe.network} ({error})") from error
    step.average.steps = all_steps


def _restore_optimiser(optimiser: torch.optim.Optimizer, tensors: Mapping[str, Tensor]) -> None:
    parameters = [parameter for group in optimiser.param_groups for parameter in group["params"]]
    held: dict[int, dict[str, Tensor]] = {}
    for path, value in tensors.items():
        number, name = path.split("/")
        parameter = parameters[int(number)]
        # The fused optimisers walk through weights and moments side by side in memory, so both need one layout.
        laid_out = value if value.shape != parameter.shape else torch.empty_like(parameter).copy_(value)
        held.setdefault(int(number), {})[name] = laid_out.detach()
    optimiser.load_state_dict({"state": held, "param_groups": optimiser.state_dict()["param_groups"]})


def _copied(value: Tensor) -> Tensor:
    return value.detach().cpu().clone(memory_format=torch.contiguous_format)


def _named(part: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {f"{part}/{name}": tensor for name, tensor in tensors.items()}


def _under(part: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    prefix = f"{part}/"
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}
