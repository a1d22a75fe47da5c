"""The interface of every network in the table, and the head that most of them share."""

from __future__ import annotations

from typing import Final

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
