"""The stages of a network: the sizes that a film has on its way through the layers."""

from __future__ import annotations

from typing import Final, NamedTuple

import torch
from torch import Tensor, nn

from chestxray.errors import RecipeInvalid
from chestxray.schema import Preprocessing, Resize
from chestxray.training.networks import build, spec_of

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
