"""Weights on disk: safetensors only, written completely or not at all, identified by their hash."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from chestxray.errors import RunInvalid
from chestxray.files import write_atomically

Weights = Mapping[str, Tensor]


def snapshot(module: torch.nn.Module) -> dict[str, Tensor]:
    """Return a copy of a module's weights and buffers in CPU memory; further training does not change the copy."""
    return {
        name: tensor.detach().cpu().clone(memory_format=torch.contiguous_format)
        for name, tensor in module.state_dict().items()
    }


def to_bytes(weights: Weights) -> bytes:
    """Return weights as a safetensors file; equal weights give equal bytes."""
    return save({name: weights[name] for name in sorted(weights)})


def hash_of(weights: Weights) -> str:
    """Return the SHA-256 of ``to_bytes``, which identifies the weights."""
    return hashlib.sha256(to_bytes(weights)).hexdigest()


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
        raise RunInvalid(f'{path}: cannot be read ({error}). Train again with "chestxray train"') from error
    found = hashlib.sha256(data).hexdigest()
    if found != sha256:
        raise RunInvalid(
            f"{path}: SHA-256 is {found[:12]}..., expected {sha256[:12]}...: "
            "the file was changed or damaged. Copy the whole run again"
        )
    return data
