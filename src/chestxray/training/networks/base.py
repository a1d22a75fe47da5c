"""What every network of the table is, and the head that most of them share."""

from __future__ import annotations

from typing import Final

from torch import Tensor, nn

from chestxray.schema import Label

CLASSES: Final = len(Label)


class Network(nn.Module):
    """What every row of the table builds: normalised films in, evidence out."""

    def forward(self, films: Tensor) -> Tensor:
        """Normalised films of shape (N, channels, height, width) to class scores of shape (N, 2)."""
        raise NotImplementedError

    def explain(self, films: Tensor) -> tuple[Tensor, Tensor]:
        """Class scores of shape (N, 2), and activation maps of shape (N, rows, columns).

        A cell of the map is what its place adds to the log-odds of pneumonia; the cells lie over the film
        as an even grid.
        """
        raise NotImplementedError


class PooledNetwork(Network):
    """Features, their mean over the film, one dense layer.

    Since pooling and the dense layer are linear, the activation map is exact: its cells sum to the log-odds,
    but for the share of them that the bias of the dense layer adds to each cell alike.

    Source: Zhou et al., "Learning deep features for discriminative localization", CVPR (2016).
    """

    def __init__(self, features: nn.Module, channels: int, dropout: float) -> None:
        """Put the head on.

        Args:
            features: (N, inputs, height, width) to (N, channels, rows, columns).
            channels: behind ``features``.
            dropout: probability, of the pooled features.
        """
        super().__init__()
        self.features = features
        self.dropout = nn.Dropout(dropout)
        self.scores = nn.Linear(channels, CLASSES)

    def forward(self, films: Tensor) -> Tensor:
        """See ``Network.forward``."""
        scores: Tensor = self.scores(self.dropout(self.features(films).mean(dim=(2, 3))))
        return scores

    def explain(self, films: Tensor) -> tuple[Tensor, Tensor]:
        """See ``Network.explain``; the cells sum to the log-odds."""
        features = self.features(films)
        scores = self.scores(features.mean(dim=(2, 3)))
        cells = features.shape[2] * features.shape[3]
        to_log_odds = difference(self.scores.weight)
        places = (features * to_log_odds[None, :, None, None]).sum(dim=1) + difference(self.scores.bias)
        return scores, places / cells


def difference(of_classes: Tensor) -> Tensor:
    """What speaks for pneumonia less what speaks for normal; the classes are the first axis."""
    return of_classes[Label.PNEUMONIA.class_index] - of_classes[Label.NORMAL.class_index]


def convolution(before: int, after: int, kernel: int, *, stride: int = 1, groups: int = 1) -> nn.Sequential:
    """A convolution without bias, and batch normalisation."""
    return nn.Sequential(
        nn.Conv2d(before, after, kernel, stride, padding=kernel // 2, groups=groups, bias=False),
        nn.BatchNorm2d(after),
    )
