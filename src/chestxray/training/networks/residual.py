"""A small residual network for grey films, trained from scratch.

Source: He et al., "Deep residual learning", CVPR (2016), and "Identity mappings", ECCV (2016).
"""

from __future__ import annotations

from typing import Final

import torch
from torch import Tensor, nn
from torch.nn import functional

from chestxray.training.networks.base import PooledNetwork, convolution

STEM: Final = 24
STAGES: Final = ((24, 1), (48, 2), (96, 2), (160, 1))
"""Width, and by how much the first block shrinks the film. The last does not: a cell of the heat map is 16 pixels."""


class Residual(nn.Module):
    """Two 3 x 3 convolutions with a shortcut."""

    def __init__(self, before: int, after: int, stride: int) -> None:
        super().__init__()
        self.first = convolution(before, after, 3, stride=stride)
        self.second = convolution(after, after, 3)
        self.shortcut = nn.Identity() if before == after else convolution(before, after, 1)
        self.shrink = nn.AvgPool2d(stride, ceil_mode=True) if stride > 1 else nn.Identity()

    def forward(self, features: Tensor) -> Tensor:
        """Return features of shape (N, after, rows / stride, columns / stride) for (N, before, rows, columns)."""
        found = self.second(functional.relu(self.first(features)))
        return torch.relu(found + self.shortcut(self.shrink(features)))


def residual(channels: int, _height: int, _width: int, dropout: float, blocks: int = 1) -> PooledNetwork:
    """Return the network with new random weights."""
    layers: list[nn.Module] = [convolution(channels, STEM, 5, stride=2), nn.ReLU(inplace=True), nn.MaxPool2d(2)]
    before = STEM
    for width, stride in STAGES:
        for index in range(blocks):
            layers.append(Residual(before, width, stride if index == 0 else 1))
            before = width
    return PooledNetwork(nn.Sequential(*layers), before, dropout)
