"""The networks, as a table, and the wrapper that carries their normalisation.

A film goes through three steps, all inside one graph:

    grey levels 0..255 -> Classifier: / 255, - mean, / deviation -> Network: logits (and activation map)
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, NamedTuple

import torch
from torch import Tensor, nn

from chestxray.data.pack import DEFAULT_SIZE
from chestxray.errors import RecipeInvalid
from chestxray.schema import Label, Preprocessing

LEVELS: Final = 255.0  # grey level of white
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


class AlexNet5(Network):
    """The network of the original work: five convolutions, each halving the film, and two dense layers.

    Batch normalisation, ReLU and pooling are applied as batch normalisation, pooling, ReLU. ReLU never
    decreases, so the largest of four values stays the largest and the function is the same, while ReLU and
    its gradient touch a quarter of the values.
    """

    WIDTHS: Final = (16, 32, 64, 128, 256)  # channels behind each convolution
    HIDDEN: Final = 2048
    SCALE: Final = 2 ** len(WIDTHS)  # input pixels a side of one cell that the dense layers see

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
        """See ``Network.forward``."""
        return self._scores_of(self._features(films)[1])[0]

    def explain(self, films: Tensor) -> tuple[Tensor, Tensor]:
        """See ``Network.explain``. Cells are 16 pixels a side: 7 x 10 for a film of 112 x 160.

        HiResCAM in closed form. Behind the features f of shape (N, 256, rows, columns) the network is
        piecewise linear: the active hidden units decide the gradient g of the log-odds, so
        ``log-odds = sum(g * f) + constant`` exactly, and no backward pass is needed. Each product is then
        handed to the one of the four places before the last pooling that was its maximum, which doubles the
        resolution and keeps the sum. Rows and columns that the last pooling drops add nothing.

        Source: Draelos and Carin, "Use HiResCAM instead of Grad-CAM", arXiv:2011.08891 (2020).
        """
        finest, features = self._features(films)
        scores, hidden = self._scores_of(features)
        to_log_odds = self.scores.weight[Label.PNEUMONIA.class_index] - self.scores.weight[Label.NORMAL.class_index]
        gradient = ((hidden > 0) * to_log_odds) @ self.hidden.weight
        return scores, _to_the_maxima(gradient.reshape(features.shape) * features, finest)

    def _features(self, films: Tensor) -> tuple[Tensor, Tensor]:
        """The last block before its pooling, and the features behind it."""
        finest = features = films
        for block in self.blocks:
            finest = block(features)
            features = torch.relu(self.pool(finest))
        return finest, features

    def _scores_of(self, features: Tensor) -> tuple[Tensor, Tensor]:
        hidden = torch.relu(self.hidden(self.dropout(features.flatten(1))))
        return self.scores(self.dropout(hidden)), hidden


def _to_the_maxima(evidence: Tensor, finest: Tensor) -> Tensor:
    """Hand what each pooled cell adds to the place that it was pooled from; equal places share it.

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


class NetworkSpec(NamedTuple):
    """One row of the table.

    Attributes:
        build: (channels, height, width, dropout) to a network with fresh weights from torch's generator.
        size: (height, width) that it was designed for, in pixels.
        smallest: side in pixels below which nothing is left to look at.
        description: one sentence.
        source: where it comes from.
    """

    build: Callable[[int, int, int, float], Network]
    size: tuple[int, int]
    smallest: int
    description: str
    source: str


NETWORKS: Final[dict[str, NetworkSpec]] = {
    "alexnet5": NetworkSpec(
        build=AlexNet5,
        size=DEFAULT_SIZE,
        smallest=AlexNet5.SCALE,
        description="five 3 x 3 convolutions with batch normalisation, two dense layers; 8.3 million parameters",
        source="the original work, after Krizhevsky, Sutskever and Hinton, NeurIPS (2012)",
    ),
}


class Classifier(nn.Module):
    """A network with the normalisation that its weights expect, so that nobody can apply another.

    Attributes:
        network: the wrapped row of the table, built for one input channel.
        mean, std: buffers; of the grey level over the training films, black 0, white 1.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, network: Network, mean: float, std: float) -> None:
        super().__init__()
        self.network = network
        self.register_buffer("mean", torch.tensor(mean, dtype=torch.float32))
        self.register_buffer("std", torch.tensor(std, dtype=torch.float32))

    def forward(self, films: Tensor) -> Tensor:
        """Grey levels 0..255, uint8 or float, shape (N, 1, height, width), to class scores (N, 2)."""
        scores: Tensor = self.network(self._normalised(films))
        return scores

    def explain(self, films: Tensor) -> tuple[Tensor, Tensor]:
        """Grey levels as in ``forward`` to log-odds of pneumonia (N,) and maps (N, rows, columns)."""
        scores, activation = self.network.explain(self._normalised(films))
        return log_odds(scores), activation

    def _normalised(self, films: Tensor) -> Tensor:
        return (films.to(self.mean.dtype) / LEVELS - self.mean) / self.std


def log_odds(scores: Tensor) -> Tensor:
    """Class scores (N, 2) to the log-odds of pneumonia (N,): the difference of the two."""
    return scores[:, Label.PNEUMONIA.class_index] - scores[:, Label.NORMAL.class_index]


def spec_of(name: str) -> NetworkSpec:
    """The row of that name. Raises: RecipeInvalid, naming those that exist."""
    if name not in NETWORKS:
        raise RecipeInvalid(f"there is no network {name!r}; there are {', '.join(NETWORKS)}")
    return NETWORKS[name]


def build(name: str, preprocessing: Preprocessing, *, dropout: float = 0.5, seed: int = 0) -> Classifier:
    """A classifier with fresh weights; the same seed gives the same weights.

    Args:
        name: row of the table.
        preprocessing: the films' size and the statistics of the training films.
        dropout: probability, 0 to 1.
        seed: torch's global generator is left as it was.

    Raises: RecipeInvalid: no such network, or films too small for it.
    """
    spec = spec_of(name)
    size = (preprocessing.height, preprocessing.width)
    if min(size) < spec.smallest:
        raise RecipeInvalid(
            f"films of {size[0]} x {size[1]} pixels are too small for {name}: "
            f"each side needs at least {spec.smallest}. Pack them larger"
        )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = spec.build(1, *size, dropout)
    return Classifier(network, preprocessing.mean, preprocessing.std)


def parameters_of(module: nn.Module) -> int:
    """How many numbers training adjusts."""
    return sum(parameter.numel() for parameter in module.parameters() if parameter.requires_grad)
