"""The five-convolution network of the original work.

Source: the original work, after Krizhevsky, Sutskever and Hinton, NeurIPS (2012).
"""

from __future__ import annotations

from typing import Final

import torch
from torch import Tensor, nn

from chestxray.training.networks.layers import CLASSES, Network, difference


class AlexNet5(Network):
    """The network of the original work: five convolutions, each halving the film, and two dense layers.

    Batch normalisation, ReLU and pooling are applied as batch normalisation, pooling, ReLU. ReLU never
    decreases, so the largest of four values stays the largest and the function is the same, while ReLU and
    its gradient touch a quarter of the values.
    """

    WIDTHS: Final = (16, 32, 64, 128, 256)  # channels after each convolution
    HIDDEN: Final = 2048
    SCALE: Final = 2 ** len(WIDTHS)  # input pixels a side of one cell of the features that the dense layers see

    def __init__(self, channels: int, height: int, width: int, dropout: float) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.Conv2d(before, after, kernel_size=3, padding=1), nn.BatchNorm2d(after))
            for before, after in zip((channels, *self.WIDTHS), self.WIDTHS, strict=False)
        )
        self.pool = nn.MaxPool2d(2)
        cells = (height // self.SCALE) * (width // self.SCALE)
        self.hidden = nn.Linear(self.WIDTHS[-1] * cells, self.HIDDEN)
        self.scores = nn.Linear(self.HIDDEN, CLASSES)
        self.dropout = nn.Dropout(dropout)

    def forward(self, films: Tensor) -> Tensor:
        """Return class scores; see ``Network.forward``."""
        return self._scores_of(self._features(films)[1])[0]

    def explain(self, films: Tensor) -> tuple[Tensor, Tensor]:
        """Explain films; see ``Network.explain``. Cells are 16 pixels a side: 7 x 10 for a film of 112 x 160.

        HiResCAM in closed form. After the features f of shape (N, 256, rows, columns) the network is piecewise linear:
        the active hidden units decide the gradient g of the log-odds, so ``log-odds = sum(g * f) + constant`` exactly,
        and no backward pass is needed. Each product is then moved to the place that was the maximum of the four before
        the last pooling, which doubles the resolution and keeps the sum. Rows and columns that the last pooling drops
        add nothing.

        Source: Draelos and Carin, "Use HiResCAM instead of Grad-CAM", arXiv:2011.08891 (2020).
        """
        finest, features = self._features(films)
        scores, hidden = self._scores_of(features)
        gradient = ((hidden > 0) * difference(self.scores.weight)) @ self.hidden.weight
        return scores, _to_the_maxima(gradient.reshape(features.shape) * features, finest)

    def _features(self, films: Tensor) -> tuple[Tensor, Tensor]:
        """Return the last block before its pooling, and the features after it."""
        finest = features = films
        for block in self.blocks:
            finest = block(features)
            features = torch.relu(self.pool(finest))
        return finest, features

    def _scores_of(self, features: Tensor) -> tuple[Tensor, Tensor]:
        hidden = torch.relu(self.hidden(self.dropout(features.flatten(1))))
        return self.scores(self.dropout(hidden)), hidden


def _to_the_maxima(evidence: Tensor, finest: Tensor) -> Tensor:
    """Move the contribution of each pooled cell to the place of its maximum; equal places share it.

    Args:
        evidence: shape (N, channels, rows, columns).
        finest: shape (N, channels, h, w) with h // 2 = rows and w // 2 = columns, before the 2 x 2 pooling.

    Returns: shape (N, h, w), with the same sum over all places as ``evidence``.
    """
    rows, columns = evidence.shape[2:]
    height, width = finest.shape[2:]
    pooled = finest[:, :, : 2 * rows, : 2 * columns]
    windows = pooled.reshape(*evidence.shape[:2], rows, 2, columns, 2)
    is_maximum = (windows == windows.amax(dim=(3, 5), keepdim=True)).to(evidence.dtype)
    share = evidence / is_maximum.sum(dim=(3, 5))
    placed = (is_maximum * share[:, :, :, None, :, None]).sum(dim=1).flatten(3, 4).flatten(1, 2)
    return nn.functional.pad(placed, (0, width - 2 * columns, 0, height - 2 * rows))
