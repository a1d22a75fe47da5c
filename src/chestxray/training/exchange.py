"""Exchanges: training films take exposure, low frequencies or corners from films of the other class.

The film keeps its label, so that the exchanged property does not predict the label. These are the batched counterparts
of ``images.exchange``; rings, margins and proportions have no counterpart here on purpose: the exchange stress of the
validation keeps kinds that no training has seen.

Each function takes films and their donors of shape (N, 1, height, width), float grey levels 0..255.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, NamedTuple

import torch
from torch import Generator, Tensor

from chestxray.images.exchange import LEVELS
from chestxray.training.augment import changed, chosen_films
from chestxray.training.config import Augmentation

LOWEST: Final = (1.0, 6.0)  # cycles over the film: upper limit of the low frequencies, drawn for each batch
CORNERS: Final = (0.08, 0.22)  # of the height: side of a corner, drawn for each batch


class ExchangeStep(NamedTuple):
    """One kind of exchange; its setting is the probability for each film."""

    setting: str
    apply: Callable[[Tensor, Tensor, Generator], Tensor]


def exchange(films: Tensor, donors: Tensor, settings: Augmentation, generator: Generator) -> Tensor:
    """Exchange properties of some films with those of their donors, by the steps of the table in their order.

    Args:
        films: not modified.
        donors: one donor for each film.
        settings: the probability of each exchange.
        generator: random generator on the films' device.
    """
    for step in EXCHANGED:
        if probability := getattr(settings, step.setting):
            chosen = chosen_films(films, probability, generator)

            def take(some: Tensor, places: Tensor, step: ExchangeStep = step) -> Tensor:
                return step.apply(some, donors[places], generator)

            films = changed(films, chosen, take)
    return films


def exchanges(settings: Augmentation) -> bool:
    """Check whether any exchange is turned on, so that donors are needed."""
    return any(getattr(settings, step.setting) for step in EXCHANGED)


def _drawn(between: tuple[float, float], films: Tensor, generator: Generator) -> float:
    low, high = between
    return low + (high - low) * float(torch.rand((), generator=generator, device=films.device))


def low_frequencies(films: Tensor, donors: Tensor, generator: Generator) -> Tensor:
    """Replace the amplitudes of the lowest frequencies by the donors'; the films' phases stay."""
    height, width = films.shape[2:]
    own, other = torch.fft.rfft2(films), torch.fft.rfft2(donors)
    down = torch.fft.fftfreq(height, 1 / height, device=films.device)[:, None]
    across = torch.arange(own.shape[-1], device=films.device)[None]
    low = down**2 + across**2 <= _drawn(LOWEST, films, generator) ** 2
    amplitude = torch.where(low, other.abs(), own.abs())
    mixed: Tensor = torch.fft.irfft2(torch.polar(amplitude, own.angle()), s=(height, width))
    return mixed.clamp(0.0, LEVELS - 1.0)


def grey_levels(films: Tensor, donors: Tensor, _generator: Generator) -> Tensor:
    """Match the films' histograms to the donors', so that each level keeps its rank."""
    levels, ranks = _levels(films), _ranks(films)
    others = _ranks(donors)
    # The donor's level of each rank: interpolated between the two levels whose ranks enclose it.
    above = torch.searchsorted(others, ranks).clamp(1, LEVELS - 1)
    low, high = others.gather(1, above - 1), others.gather(1, above)
    share = ((ranks - low) / (high - low).clamp(min=1e-6)).clamp(0.0, 1.0)
    matched = above - 1 + share
    return matched.gather(1, levels.flatten(1)).reshape(films.shape).to(films.dtype)


def _levels(films: Tensor) -> Tensor:
    return films.round().clamp(0, LEVELS - 1).long()


def _ranks(films: Tensor) -> Tensor:
    """Return the fraction of pixels below each grey level, those at the level counting half: shape (N, LEVELS)."""
    levels = _levels(films).flatten(1)
    counts = torch.zeros((len(films), LEVELS), device=films.device)
    counts.scatter_add_(1, levels, torch.ones_like(levels, dtype=counts.dtype))
    return (counts.cumsum(1) - counts / 2) / levels.shape[1]


def corners(films: Tensor, donors: Tensor, generator: Generator) -> Tensor:
    """Replace the four corners by the donors', with any text and markers in them."""
    height, width = films.shape[2:]
    side = max(1, round(height * _drawn(CORNERS, films, generator)))
    rows, columns = (torch.arange(length, device=films.device) for length in (height, width))
    edges = [(along < side) | (along >= along.numel() - side) for along in (rows, columns)]
    return torch.where(edges[0][:, None] & edges[1][None], donors, films)


EXCHANGED: Final = (
    ExchangeStep("low_frequencies", low_frequencies),
    ExchangeStep("grey_levels", grey_levels),
    ExchangeStep("corners", corners),
)
