"""Grey levels moved to one scale inside the network, so that exposure, gain and bit depth carry no information.

A network that sees stored levels can learn which unit made a film, and its answer changes if the same film is stored
with a quarter of the scale. Here seven quantiles of the film's middle, black and white ends included, are moved to
fixed levels, and the levels between are interpolated: any gain and offset cancels exactly, and most of any other
monotone change. This is part of the network, so training and every way of serving do the same.

Source: Nyul and Udupa, "On standardizing the MR image intensity scale", Magnetic Resonance in Medicine 42 (1999), for
the landmarks; Pizer et al., "Adaptive histogram equalization and its variations" (1987), for the target.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Final

import torch
from torch import Tensor

QUANTILES: Final = (0.01, 0.1, 0.25, 0.5, 0.75, 0.9, 0.99)
EQUALISED: Final = 0.7  # weight of the equalised film; the rest is stretched from the first to the last quantile
MARGIN: Final = 10  # a tenth of each side is left out at either end: edges and margins do not set the scale
STEP: Final = 3  # every third pixel along each side is used
FLATTEST: Final = 1 / 64  # of the grey scale: a film whose quantiles span less is not amplified to noise
NARROWEST: Final = 1 / 512  # of the grey scale: least distance between neighbouring quantiles


def on_one_scale(films: Tensor) -> Tensor:
    """Return films of shape (N, 1, height, width) in 0..1 with their quantiles moved to fixed levels."""
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
