"""Batch normalisation over a batch that several processes share.

torch's own works on GPUs alone. Source of the formulas: Ioffe and Szegedy, "Batch normalization",
arXiv:1502.03167 (2015); of joining the variances: Chan, Golub and LeVeque, COMPSTAT (1982).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, distributed, nn


class SharedBatchNorm2d(nn.BatchNorm2d):
    """``BatchNorm2d`` whose statistics in training are those of all processes' films together."""

    def forward(self, films: Tensor) -> Tensor:
        """Shape (N, channels, height, width) to the same."""
        if not self.training:
            return super().forward(films)
        normalised, mean, variance, count = _Normalised.apply(films, self.weight, self.bias, self.eps)  # type: ignore[no-untyped-call]
        self._follow(mean, variance * (count / (count - 1.0)))
        out: Tensor = normalised
        return out

    @torch.no_grad()
    def _follow(self, mean: Tensor, variance: Tensor) -> None:
        if self.running_mean is None or self.running_var is None or self.num_batches_tracked is None:
            return
        self.num_batches_tracked += 1
        weight = 1.0 / float(self.num_batches_tracked) if self.momentum is None else self.momentum
        self.running_mean.lerp_(mean, weight)
        self.running_var.lerp_(variance, weight)


class _Normalised(torch.autograd.Function):
    """Normalise over films, rows and columns of all processes."""

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
    """Let every ``BatchNorm2d`` of a module be shared; names, weights and buffers stay the same objects."""
    for part in module.modules():
        if type(part) is nn.BatchNorm2d:
            part.__class__ = SharedBatchNorm2d
