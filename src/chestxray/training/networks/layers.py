"""What networks are made of: their interface, the head that most share, and the common scale of grey levels."""

from __future__ import annotations

from itertools import pairwise
from typing import Final

import torch
from torch import Tensor, nn

from chestxray.schema import Label

CLASSES: Final = len(Label)


class Network(nn.Module):
    """The interface of every row of the table: normalised films in, class scores and activation maps out."""

    def forward(self, films: Tensor) -> Tensor:
        """Return class scores of shape (N, 2) for normalised films of shape (N, channels, height, width)."""
        raise NotImplementedError

    def explain(self, films: Tensor) -> tuple[Tensor, Tensor]:
        """Return class scores of shape (N, 2), and activation maps of shape (N, rows, columns).

        A cell of the map is the contribution of its place to the log-odds of pneumonia; the cells cover the film as a
        regular grid.
        """
        raise NotImplementedError


class PooledNetwork(Network):
    """A network of features, their mean over the film, and one dense layer.

    Because pooling and the dense layer are linear, the activation map is exact: its cells sum to the log-odds. The bias
    of the dense layer is spread evenly over the cells.

    Source: Zhou et al., "Learning deep features for discriminative localization", CVPR (2016).
    """

    def __init__(self, features: nn.Module, channels: int, dropout: float) -> None:
        """Add the head to the features.

        Args:
            features: (N, inputs, height, width) to (N, channels, rows, columns).
            channels: number of channels after ``features``.
            dropout: probability of dropping a pooled feature.
        """
        super().__init__()
        self.features = features
        self.dropout = nn.Dropout(dropout)
        self.scores = nn.Linear(channels, CLASSES)

    def forward(self, films: Tensor) -> Tensor:
        """Return class scores; see ``Network.forward``."""
        scores: Tensor = self.scores(self.dropout(self.features(films).mean(dim=(2, 3))))
        return scores

    def explain(self, films: Tensor) -> tuple[Tensor, Tensor]:
        """Explain films; see ``Network.explain``. The cells sum to the log-odds."""
        features = self.features(films)
        scores = self.scores(features.mean(dim=(2, 3)))
        cells = features.shape[2] * features.shape[3]
        to_log_odds = difference(self.scores.weight)
        places = (features * to_log_odds[None, :, None, None]).sum(dim=1) + difference(self.scores.bias)
        return scores, places / cells


def difference(of_classes: Tensor) -> Tensor:
    """Return the values for pneumonia less those for normal; the first axis is the class."""
    return of_classes[Label.PNEUMONIA.class_index] - of_classes[Label.NORMAL.class_index]


def convolution(before: int, after: int, kernel: int, *, stride: int = 1, groups: int = 1) -> nn.Sequential:
    """Return a convolution without bias, followed by batch normalisation."""
    return nn.Sequential(
        nn.Conv2d(before, after, kernel, stride, padding=kernel // 2, groups=groups, bias=False),
        nn.BatchNorm2d(after),
    )


QUANTILES: Final = (0.01, 0.1, 0.25, 0.5, 0.75, 0.9, 0.99)
EQUALISED: Final = 0.7  # weight of the equalised film; the rest is stretched from the first to the last quantile
MARGIN: Final = 10  # a tenth of each side is left out at either end: edges and margins do not set the scale
STEP: Final = 3  # every third pixel along each side is used
FLATTEST: Final = 1 / 64  # of the grey scale: a film whose quantiles span less is not amplified to noise
NARROWEST: Final = 1 / 512  # of the grey scale: least distance between neighbouring quantiles


def on_one_scale(films: Tensor) -> Tensor:
    """Return films of shape (N, 1, height, width) in 0..1 with their quantiles moved to fixed levels.

    A network that sees stored levels can learn which unit made a film, and its answer changes if the same film is
    stored with a quarter of the scale. Here seven quantiles of the film's middle, black and white ends included, are
    moved to fixed levels, and the levels between are interpolated: any gain and offset cancels exactly, and most of any
    other monotone change. This is part of the network, so training and every way of serving do the same.

    Source: Nyul and Udupa, "On standardizing the MR image intensity scale", Magnetic Resonance in Medicine 42 (1999),
        for the landmarks; Pizer et al., "Adaptive histogram equalization and its variations" (1987), for the target.
    """
    height, width = films.shape[2:]
    rows, columns = (slice(side // MARGIN, side - side // MARGIN, STEP) for side in (height, width))
    middle = films[:, :, rows, columns].flatten(1)
    count = middle.shape[1]
    ranked = torch.topk(middle, count, dim=1, largest=False, sorted=True).values
    marks = [ranked[:, round(share * (count - 1)), None, None, None] for share in QUANTILES]
    stretched = _between(films, marks[0], marks[-1], FLATTEST)
    equalised = torch.zeros_like(films)
    for index, (low, high) in enumerate(pairwise(marks)):
        share = (QUANTILES[index + 1] - QUANTILES[index]) / (QUANTILES[-1] - QUANTILES[0])
        equalised = equalised + share * _between(films, low, high, NARROWEST)
    return stretched.lerp(equalised, EQUALISED)


def _between(films: Tensor, low: Tensor, high: Tensor, least: float) -> Tensor:
    """Return 0 up to ``low``, 1 from ``high`` on, and a linear ramp between them."""
    return ((films - low) / (high - low).clamp(min=least)).clamp(0.0, 1.0)
