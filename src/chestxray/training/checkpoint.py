"""Weights and checkpoints on disk: from the latter the same command resumes a killed run.

Weights are safetensors only, written completely or not at all, and identified by their SHA-256.

    checkpoint-000007.safetensors   weights, averaged weights, the optimiser's moments, the best epoch's weights
    checkpoint-000007.json          everything else, with the SHA-256 of the tensors and of itself

Each file is written under another name, synced and renamed. The tensors come first; the JSON file completes the
checkpoint. The previous checkpoint is kept, and is used if the latest is damaged.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Self

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from chestxray.arrays import Float32Array
from chestxray.data.pack import Pack
from chestxray.errors import OutputUnwritable, RunInvalid, reason_of
from chestxray.files import sync, write_atomically
from chestxray.progress import Log
from chestxray.schema import Preprocessing
from chestxray.training.config import Recipe, every_field
from chestxray.training.train_state import EpochRecord, TrainState, in_cpu_memory, snapshot

Weights = Mapping[str, Tensor]


def to_bytes(weights: Weights) -> bytes:
    """Return weights as a safetensors file; equal weights give equal bytes."""
    return save({name: weights[name] for name in sorted(weights)})


def write_weights(path: Path, weights: Weights) -> str:
    """Write a safetensors file and return its SHA-256. Law: ``read_weights`` with that hash returns the weights."""
    data = to_bytes(weights)
    write_atomically(path, data)
    return hashlib.sha256(data).hexdigest()


def read_weights(path: Path, sha256: str) -> dict[str, Tensor]:
    """Read weights and compare their hash. Raises: RunInvalid: missing, changed, damaged."""
    try:
        return load(read_checked(path, sha256))
    except SafetensorError as error:
        raise RunInvalid(f"{path}: not a safetensors file ({error})") from error


def read_checked(path: Path, sha256: str) -> bytes:
    """Read a file of a run and compare its hash. Raises: RunInvalid: missing or changed."""
    try:
        data = path.read_bytes()
    except OSError as error:
        raise RunInvalid(f'{path}: cannot be read ({reason_of(error)}). Train again with "chestxray train"') from error
    found = hashlib.sha256(data).hexdigest()
    if found != sha256:
        raise RunInvalid(
            f"{path}: SHA-256 is {found[:12]}..., expected {sha256[:12]}...: "
            "the file was changed or damaged. Copy the whole run again"
        )
    return data


CHECKPOINT_VERSION: Final = 1
CHECKPOINTS_KEPT: Final = 2  # the latest checkpoint, and the one before


@dataclass(frozen=True, slots=True)
class TrainSnapshot:
    """The state of a training between two steps. Later random numbers are not part of it: they follow from the seed.

    Attributes:
        records: records of the epochs that ended.
        steps_taken: steps taken in the epoch after these.
        summed_loss: sum of the loss over the films of those steps, in nats.
        tensors: "weights/..." of the classifier, "average/..." if an average is kept, and "optimiser/..." as
            "optimiser/<number of the parameter>/<name>", in ordinary memory.
    """

    records: tuple[EpochRecord, ...]
    steps_taken: int
    summed_loss: float
    tensors: Mapping[str, Tensor]


def snapshot_of(
    state: TrainState, steps_taken: int, summed_loss: float, records: tuple[EpochRecord, ...]
) -> TrainSnapshot:
    """Copy the state of a training."""
    tensors = _named("weights", snapshot(state.classifier))
    if state.average.module is not state.classifier:
        tensors |= _named("average", snapshot(state.average.module))
    for number, held in state.optimiser.state_dict()["state"].items():
        tensors |= _named(f"optimiser/{number}", in_cpu_memory(held))
    return TrainSnapshot(records, steps_taken, summed_loss, tensors)


def restore(state: TrainState, saved: TrainSnapshot, all_steps: int) -> None:
    """Restore a state, bit for bit and in the memory layout that training uses.

    Args:
        state: state of a training with the same pack and recipe.
        saved: a snapshot of that training, from this or an earlier process.
        all_steps: number of steps since the beginning.

    Raises: RunInvalid, if the state is of another network or optimiser.
    """
    try:
        state.classifier.load_state_dict(_under("weights", saved.tensors))
        if state.average.module is not state.classifier:
            state.average.module.load_state_dict(_under("average", saved.tensors))
        _restore_optimiser(state.optimiser, _under("optimiser", saved.tensors))
    except (RuntimeError, ValueError, IndexError) as error:
        raise RunInvalid(f"the checkpoint does not fit the network {state.recipe.network} ({error})") from error
    state.average.steps = all_steps


def _restore_optimiser(optimiser: torch.optim.Optimizer, tensors: Mapping[str, Tensor]) -> None:
    parameters = [parameter for group in optimiser.param_groups for parameter in group["params"]]
    held: dict[int, dict[str, Tensor]] = {}
    for path, value in tensors.items():
        number, name = path.split("/")
        parameter = parameters[int(number)]
        # The fused optimisers read weights and moments side by side in memory, so both need the same layout.
        laid_out = value if value.shape != parameter.shape else torch.empty_like(parameter).copy_(value)
        held.setdefault(int(number), {})[name] = laid_out.detach()
    optimiser.load_state_dict({"state": held, "param_groups": optimiser.state_dict()["param_groups"]})


def _named(part: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {f"{part}/{name}": tensor for name, tensor in tensors.items()}


def _under(part: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    prefix = f"{part}/"
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}


_BEST_LOGITS: Final = "best_logits"
_NUMBERED: Final = re.compile(r"checkpoint-(\d{6,})\.(json|safetensors)")


@dataclass(frozen=True, slots=True)
class Origin:
    """What a training starts from; the same origin gives the same weights.

    Attributes:
        recipe: every field by name.
        training_data: the pack's fingerprint.
        preprocessing: of the pack.
        teachers: SHA-256 of the weights of each.
    """

    recipe: Mapping[str, Any]
    training_data: str
    preprocessing: Preprocessing
    teachers: tuple[str, ...] = ()

    @classmethod
    def of(cls, pack: Pack, recipe: Recipe, teachers: tuple[str, ...] = ()) -> Self:
        """Return the origin of a training with that recipe on that pack."""
        return cls(dataclasses.asdict(recipe), pack.info.fingerprint, pack.info.preprocessing, teachers)

    def apart_from(self, other: Origin) -> str:
        """Describe the first difference from the wanted origin, as a clause; empty if there is none."""
        for name in sorted({*self.recipe, *other.recipe}):
            there, here = self.recipe.get(name), other.recipe.get(name)
            if there != here:
                return f"its recipe has {name} = {there}, this one {here}"
        if self.teachers != other.teachers:
            return "it learnt from another teacher"
        same = (self.training_data, self.preprocessing) == (other.training_data, other.preprocessing)
        return "" if same else "it was trained on another pack"


@dataclass(frozen=True, slots=True)
class Best:
    """The data that are kept of the best epoch so far.

    Attributes:
        weights: the classifier's weights, averaged if the recipe says so.
        logits: shape (n,), log-odds of the validation films.
    """

    weights: Mapping[str, Tensor]
    logits: Float32Array


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """Everything that another process needs to resume a training.

    Attributes:
        origin: what the training started from.
        state: the snapshot of the training.
        best: None before the first epoch has ended.
        seconds: training time so far.
    """

    origin: Origin
    state: TrainSnapshot
    best: Best | None
    seconds: float

    def to_files(self) -> tuple[bytes, bytes]:
        """Return the JSON file and the safetensors file.

        Law: ``Checkpoint.from_files(*c.to_files())`` is ``c``.
        """
        tensors = dict(self.state.tensors)
        if self.best is not None:
            tensors |= _named("best", self.best.weights)
            tensors[_BEST_LOGITS] = torch.from_numpy(self.best.logits)
        data = to_bytes(tensors)
        content = {
            "version": CHECKPOINT_VERSION,
            "tensors_sha256": hashlib.sha256(data).hexdigest(),
            "origin": dataclasses.asdict(self.origin),
            "seconds": self.seconds,
            "records": [dataclasses.asdict(record) for record in self.state.records],
            "steps_taken": self.state.steps_taken,
            "summed_loss": self.state.summed_loss,
        }
        return json.dumps({"content": content, "sha256": _digest(content)}, indent=1).encode(), data

    @classmethod
    def from_files(cls, text: bytes, data: bytes, source: str = "checkpoint") -> Self:
        """Read a checkpoint. Raises: RunInvalid, if a file is changed, incomplete or of another version."""
        try:
            content = _unsealed(text, data)
            tensors = load(data)
            logits = tensors.pop(_BEST_LOGITS, None)
            best = None if logits is None else Best(_under("best", tensors), logits.numpy())
            records = tuple(EpochRecord(**record) for record in content["records"])
            of_state = {name: tensor for name, tensor in tensors.items() if not name.startswith("best/")}
            state = TrainSnapshot(records, content["steps_taken"], content["summed_loss"], of_state)
            origin = content["origin"]
            began = Origin(
                every_field(origin["recipe"]),
                origin["training_data"],
                Preprocessing(**origin["preprocessing"]),
                tuple(origin["teachers"]),
            )
            return cls(began, state, best, content["seconds"])
        except (ValueError, TypeError, KeyError, SafetensorError) as error:
            raise RunInvalid(f"{source}: not a whole checkpoint ({error})") from error


def _digest(content: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _unsealed(text: bytes, data: bytes) -> dict[str, Any]:
    """Return the content of the JSON file, after a check of its hashes. Raises: ValueError, KeyError, TypeError."""
    sealed = json.loads(text)
    content: dict[str, Any] = sealed["content"]
    if content["version"] != CHECKPOINT_VERSION:
        raise ValueError(f"version {content['version']}; this program reads {CHECKPOINT_VERSION}")
    for name, expected, found in (
        ("figures", sealed["sha256"], _digest(content)),
        ("tensors", content["tensors_sha256"], hashlib.sha256(data).hexdigest()),
    ):
        if found != expected:
            raise ValueError(f"SHA-256 of its {name} is {found[:12]}..., expected {expected[:12]}...")
    return content


class CheckpointFolder:
    """A folder with the latest two checkpoints of one training."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def write(self, checkpoint: Checkpoint) -> None:
        """Write a checkpoint and keep the one before it. Raises: OutputUnwritable."""
        numbers = sorted(self._numbers())
        number = numbers[-1] + 1 if numbers else 1
        name = f"checkpoint-{number:06}"
        text, data = checkpoint.to_files()
        with writing(self.folder):
            write_atomically(self.folder / f"{name}.safetensors", data)
            write_atomically(self.folder / f"{name}.json", text)
            sync(self.folder)
            self._remove_all_but([*numbers, number][-CHECKPOINTS_KEPT:])

    def latest(self, log: Log) -> Checkpoint | None:
        """Return the latest undamaged checkpoint; None if there is none at all.

        Args:
            log: called with a line about each damaged checkpoint.

        Raises: RunInvalid, if all the checkpoints are damaged.
        """
        damaged = ""
        for number in sorted(self._numbers(), reverse=True):
            try:
                return self._read(number)
            except RunInvalid as error:
                damaged = str(error)
                log(f"{damaged}. It is skipped")
        if damaged:
            raise RunInvalid(f"{self.folder}: no checkpoint is whole. Train from the beginning with --restart")
        return None

    def clear(self) -> None:
        """Remove the checkpoints, and the folder if nothing else is in it. Raises: OutputUnwritable."""
        with writing(self.folder):
            self._remove_all_but([])
            if self.folder.is_dir() and not any(self.folder.iterdir()):
                self.folder.rmdir()

    def _numbers(self) -> list[int]:
        """Return the numbers of the complete checkpoints."""
        found = (_NUMBERED.fullmatch(path.name) for path in self._files())
        return [int(match[1]) for match in found if match and match[2] == "json"]

    def _files(self) -> list[Path]:
        return list(self.folder.iterdir()) if self.folder.is_dir() else []

    def _read(self, number: int) -> Checkpoint:
        path = self.folder / f"checkpoint-{number:06}.json"
        try:
            return Checkpoint.from_files(path.read_bytes(), path.with_suffix(".safetensors").read_bytes(), str(path))
        except OSError as error:
            raise RunInvalid(f"{path}: not a whole checkpoint ({reason_of(error)})") from error

    def _remove_all_but(self, kept: list[int]) -> None:
        """Remove other checkpoints, the JSON file first, and half-written files of a killed process."""
        for path in sorted(self._files()):
            match = _NUMBERED.fullmatch(path.name)
            left_behind = path.name.startswith(".checkpoint-") and path.name.endswith(".part")
            if left_behind or (match and int(match[1]) not in kept):
                path.unlink(missing_ok=True)


@contextmanager
def writing(folder: Path) -> Iterator[None]:
    """Translate an OSError of writing into a sentence with a remedy. Raises: OutputUnwritable."""
    try:
        yield
    except OSError as error:
        raise OutputUnwritable(
            f"{error.filename or folder}: cannot be written ({error.strerror or error}). "
            "Make room or give another folder; the same command then resumes from the last checkpoint"
        ) from error
