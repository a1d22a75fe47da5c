"""Several processes that train one network, started by ``torchrun``.

Each process augments the whole batch, in the same way, and passes its own part through the network. What belongs to the
whole batch is exchanged: the statistics of batch normalisation, the random numbers of dropout, the class scores (so the
loss is that of the whole batch, whatever its form) and the gradients, which are summed. The only difference between one
process and several is the order in which numbers are added.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any, Final

import torch
from torch import Tensor, distributed, nn
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from chestxray.errors import RecipeInvalid


@dataclass(frozen=True, slots=True)
class World:
    """The processes of one training.

    Attributes:
        rank: number of this process, from 0; rank 0 writes the files.
        size: number of processes.
    """

    rank: int
    size: int

    @property
    def is_main(self) -> bool:
        """True for the process that writes the files and prints."""
        return self.rank == 0

    def share_of(self, count: int) -> slice:
        """Return this process's part of ``count`` films, as a slice; the parts differ by one film at most."""
        return slice(count * self.rank // self.size, count * (self.rank + 1) // self.size)

    def sharing_random_numbers(self, count: int) -> AbstractContextManager[object]:
        """Draw random numbers for the whole batch until the block ends, and keep those of this process's films."""
        return nullcontext() if self.size == 1 else _SharedRandomNumbers(count, self.share_of(count))

    def gather(self, own: Tensor, count: int) -> Tensor:
        """Gather the rows of every process, in order, shape (count, ...); gradients reach this process's own rows only.

        Args:
            own: shape (rows of ``share_of(count)``, ...).
            count: rows of all processes.
        """
        if self.size == 1:
            return own
        share = self.share_of(count)
        everyones = own.new_zeros((count, *own.shape[1:]))
        everyones[share] = own.detach()
        distributed.all_reduce(everyones)
        return torch.cat([everyones[: share.start], own, everyones[share.stop :]])

    def sum_gradients(self, parameters: Iterable[nn.Parameter]) -> None:
        """Sum the gradients of all processes; afterwards each process holds the same numbers."""
        if self.size == 1:
            return
        gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
        together = torch.cat([gradient.reshape(-1) for gradient in gradients])
        distributed.all_reduce(together)
        for gradient, summed in zip(gradients, together.split([g.numel() for g in gradients]), strict=True):  # type: ignore[no-untyped-call]
            gradient.copy_(summed.view_as(gradient))

    def sum(self, values: Tensor) -> Tensor:
        """Sum over the processes, in place."""
        if self.size > 1:
            distributed.all_reduce(values)
        return values

    def any(self, wanted: bool) -> bool:  # noqa: FBT001 - the only argument
        """Check whether the argument is true in any process."""
        return wanted if self.size == 1 else bool(self.sum(_on_its_device(int(wanted))).item())

    def broadcast_bytes(self, words: bytes) -> bytes:
        """Send bytes from the first process to all; every process returns them."""
        if self.size == 1:
            return words
        length = _on_its_device(len(words))
        distributed.broadcast(length, src=0)
        if not length.item():
            return b""
        spoken = torch.zeros(int(length.item()), dtype=torch.uint8, device=length.device)
        if self.is_main:
            spoken.copy_(torch.frombuffer(bytearray(words), dtype=torch.uint8))
        distributed.broadcast(spoken, src=0)
        return spoken.cpu().numpy().tobytes()


SINGLE_PROCESS: Final = World(rank=0, size=1)


def is_main_process() -> bool:
    """Check whether this process prints; works before the processes are connected."""
    return os.environ.get("RANK", "0") == "0"


@contextmanager
def init_distributed(device: str) -> Iterator[tuple[World, str]]:
    """Connect the processes that ``torchrun`` started; yield the world, and the device of this process.

    Raises: RecipeInvalid, if they cannot connect.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        yield SINGLE_PROCESS, device
        return
    on_gpu = device == "cuda" or (device == "auto" and torch.cuda.is_available())
    own = f"cuda:{os.environ.get('LOCAL_RANK', '0')}" if on_gpu else device
    if on_gpu:
        torch.cuda.set_device(own)
    try:
        distributed.init_process_group("nccl" if on_gpu else "gloo")
    except (RuntimeError, ValueError) as error:
        raise RecipeInvalid(f"the processes cannot find each other ({error}). Start them with torchrun") from error
    try:
        yield World(distributed.get_rank(), distributed.get_world_size()), own
    finally:
        distributed.destroy_process_group()


def _on_its_device(number: int) -> Tensor:
    """Return a number as a tensor on the device through which the processes communicate."""
    return torch.tensor(number, device="cuda" if distributed.get_backend() == "nccl" else "cpu")


class _SharedRandomNumbers(TorchFunctionMode):
    """Draws random numbers for the whole batch and keeps those of this process's films."""

    def __init__(self, count: int, share: slice) -> None:
        super().__init__()
        self._count = count
        self._share = share

    def __torch_function__(
        self, func: Callable[..., Any], types: Sequence[type], args: Sequence[Any] = (), kwargs: Any = None
    ) -> Any:
        """Replace torch's random functions; torch calls this in place of each of its functions."""
        named: Mapping[str, Any] = kwargs or {}
        if func is functional.dropout:
            return self._dropout(*args, **named)
        if func is torch.rand and args and tuple(args[0])[:1] == (self._share.stop - self._share.start,):
            return torch.rand((self._count, *tuple(args[0])[1:]), **named)[self._share]
        return func(*args, **named)

    def _dropout(self, films: Tensor, p: float = 0.5, training: bool = True, inplace: bool = False) -> Tensor:  # noqa: ARG002, FBT001, FBT002 - torch's signature
        if not training or not p:
            return films
        kept = films.new_empty((self._count, *films.shape[1:])).bernoulli_(1.0 - p)
        return films * kept.div_(1.0 - p)[self._share]


class SharedBatchNorm2d(nn.BatchNorm2d):
    """``BatchNorm2d`` whose statistics in training are those of all processes' films together."""

    def forward(self, films: Tensor) -> Tensor:
        """Normalise features of shape (N, channels, height, width); the shape stays."""
        if not self.training:
            return super().forward(films)
        normalised, mean, variance, count = _Normalised.apply(films, self.weight, self.bias, self.eps)  # type: ignore[no-untyped-call]
        self._update_running_statistics(mean, variance * (count / (count - 1.0)))
        out: Tensor = normalised
        return out

    @torch.no_grad()
    def _update_running_statistics(self, mean: Tensor, variance: Tensor) -> None:
        if self.running_mean is None or self.running_var is None or self.num_batches_tracked is None:
            return
        self.num_batches_tracked += 1
        weight = 1.0 / float(self.num_batches_tracked) if self.momentum is None else self.momentum
        self.running_mean.lerp_(mean, weight)
        self.running_var.lerp_(variance, weight)


class _Normalised(torch.autograd.Function):
    """Normalises over films, rows and columns of all processes."""

    @staticmethod
    def forward(ctx: Any, films: Tensor, weight: Tensor, bias: Tensor, eps: float) -> tuple[Tensor, ...]:
        values = films.float()
        own_count = values.new_tensor([float(values.numel() // values.shape[1])])
        own_mean = values.mean(dim=(0, 2, 3))
        own_squares = (values - _spread(own_mean)).square().sum(dim=(0, 2, 3))
        mine = torch.cat([own_mean, own_squares, own_count])
        everyones = [torch.empty_like(mine) for _ in range(distributed.get_world_size())]
        distributed.all_gather(everyones, mine)
        means, squares, counts = torch.stack(everyones).split([len(own_mean), len(own_mean), 1], dim=1)  # type: ignore[no-untyped-call]
        count = counts.sum()
        mean = (means * counts).sum(dim=0) / count
        variance = (squares.sum(dim=0) + (counts * (means - mean).square()).sum(dim=0)) / count
        inverse = torch.rsqrt(variance + eps)
        standard = (values - _spread(mean)) * _spread(inverse)
        ctx.save_for_backward(standard, weight, inverse, count)
        ctx.mark_non_differentiable(mean, variance, count)
        normalised = standard * _spread(weight) + _spread(bias)
        return normalised.to(films.dtype), mean, variance, count

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        standard, weight, inverse, count = ctx.saved_tensors
        gradient = gradients[0].float()
        own = torch.stack([gradient.sum(dim=(0, 2, 3)), (gradient * standard).sum(dim=(0, 2, 3))])
        everyones = own.clone()
        distributed.all_reduce(everyones)
        along_mean, along_deviation = everyones / count
        inner = gradient - _spread(along_mean) - standard * _spread(along_deviation)
        of_films = (inner * _spread(weight * inverse)).to(gradients[0].dtype)
        return of_films, own[1], own[0], None


def _spread(channels: Tensor) -> Tensor:
    return channels[None, :, None, None]


def share_statistics(module: nn.Module) -> None:
    """Replace every ``BatchNorm2d`` of a module by the shared one; names, weights and buffers stay the same objects."""
    for part in module.modules():
        if type(part) is nn.BatchNorm2d:
            part.__class__ = SharedBatchNorm2d
