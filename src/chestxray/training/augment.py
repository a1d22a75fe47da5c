"""Augmentation of training films, a batch at a time, as a table of pure functions.

Each function takes films of shape (N, 1, height, width), float grey levels 0..255, and returns the same shape; the
random generator is an argument, so that the same generator gives the same films. Geometry is one step: its settings
become one affine map, and a film is resampled once.

Exchanges give films the exposure, the low frequencies or the corners of films of the other class. The film keeps its
label, so that the exchanged property does not predict the label. They are the batched counterparts of
``images.shifts``; rings, margins and proportions have no counterpart here on purpose: the exchange stress of the
validation keeps kinds that no training has seen.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Final, NamedTuple

import torch
from torch import Generator, Tensor
from torch.nn import functional

from chestxray.images import LEVELS, WHITE
from chestxray.training.config import Augmentation

BANDS_PRESENT: Final = 0.5  # probability that a film with bands has one along a given edge
BLACK_BANDS: Final = 0.6  # probability that the bands are black
WIDE: Final = 2  # pixels between those that the kernel of ``unsharp`` takes in
COARSEST_GRAIN: Final = 3.0  # pixels along each axis that share one value of the noise, at most


class AugmentationStep(NamedTuple):
    """A step of the augmentation: applied if one of its settings is not zero."""

    settings: tuple[str, ...]
    apply: Callable[[Tensor, Augmentation, Generator], Tensor]


def augment(films: Tensor, settings: Augmentation, generator: Generator) -> Tensor:
    """Vary each film independently, by the steps of the table in their order.

    Args:
        films: shape (N, 1, height, width), float grey levels 0..255; not modified.
        settings: how far films are varied.
        generator: random generator on the films' device.
    """
    for step in AUGMENTATIONS:
        if any(getattr(settings, name) for name in step.settings):
            films = step.apply(films, settings, generator)
    return films


def _uniform(films: Tensor, largest: float, generator: Generator) -> Tensor:
    """Return one random number a film, from -largest to largest: shape (N, 1, 1, 1)."""
    drawn = torch.rand((len(films), 1, 1, 1), generator=generator, device=films.device, dtype=films.dtype)
    return (2.0 * drawn - 1.0) * largest


def _factor(films: Tensor, share: float, generator: Generator) -> Tensor:
    """Return one random factor a film, from 1 / (1 + share) to 1 + share, above 1 as often as below."""
    return torch.exp(_uniform(films, math.log1p(share), generator))


def chosen_films(films: Tensor, probability: float, generator: Generator) -> Tensor:
    """Choose films at random: boolean, shape (N, 1, 1, 1)."""
    return _uniform(films, 1.0, generator) < 2.0 * probability - 1.0


def changed(films: Tensor, chosen: Tensor, change: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
    """Return the films with a change applied to the chosen ones; only these cost time.

    Args:
        films: shape (N, 1, height, width).
        chosen: as ``chosen_films`` returns it.
        change: function of the chosen films and their indices in 0 to N - 1.
    """
    places = chosen.flatten().nonzero().flatten()
    return films.index_copy(0, places, change(films[places], places)) if len(places) else films


def geometry(films: Tensor, settings: Augmentation, generator: Generator) -> Tensor:
    """Rotate, scale, stretch, shift, mirror and crop films, in one resampling; pixels from outside are black."""
    height, width = films.shape[2:]
    angle = _uniform(films, math.radians(settings.rotation), generator).flatten()
    scale = _factor(films, settings.scale, generator).flatten()
    aspect = _factor(films, settings.aspect, generator).flatten().sqrt()
    mirror = torch.where(chosen_films(films, settings.flip, generator).flatten(), -1.0, 1.0)
    across, down = (2.0 * _uniform(films, settings.shift, generator).flatten() for _ in range(2))
    # The grid's unit is half the side, so an angle in it has to be corrected by the film's shape.
    cosine, sine = torch.cos(angle), torch.sin(angle)
    first = cosine * scale * aspect * mirror, -sine * scale * aspect * height / width, across
    second = sine * scale / aspect * width / height * mirror, cosine * scale / aspect, down
    places = [_on_grid(films, *each) for each in (first, second)]
    if settings.crop:
        places = _cropped(films, places, settings.crop, generator)
    grid = torch.stack(places, dim=3)
    return functional.grid_sample(films, grid, mode="bilinear", padding_mode="zeros", align_corners=False)


def _on_grid(films: Tensor, by_column: Tensor, by_row: Tensor, start: Tensor) -> Tensor:
    """Return one coordinate of an affine map, shape (N, height, width), where the film's edges are at -1 and 1.

    Adding a row to a column takes a third of what ``functional.affine_grid`` does with a product of matrices.
    """
    rows, columns = ((2.0 * torch.arange(side, device=films.device) + 1.0) / side - 1.0 for side in films.shape[2:])
    along = by_column[:, None, None] * columns
    return along + (by_row[:, None, None] * rows[:, None] + start[:, None, None])


def _cropped(films: Tensor, places: list[Tensor], most: float, generator: Generator) -> list[Tensor]:
    """Map coordinates, of which -1 and 1 are a film's edges, into what a crop leaves; half of the films are cropped.

    What is cut off one edge is the mean of a draw for the film and one for the edge: people who crop to the lungs cut
    a little of every edge, or much of every edge.
    """
    drawn = torch.rand((len(films), 5), generator=generator, device=films.device)
    cut = most / 2.0 * (drawn[:, :1] + drawn[:, 1:]) * chosen_films(films, 0.5, generator).flatten()[:, None]
    return [
        along * (1.0 - before - after)[:, None, None] + (before - after)[:, None, None]
        for along, before, after in zip(places, cut[:, 0::2].T, cut[:, 1::2].T, strict=True)
    ]


def gamma(films: Tensor, settings: Augmentation, generator: Generator) -> Tensor:
    """Bend the grey scale: black and white stay, the levels between become darker or brighter."""
    exponent = _factor(films, settings.gamma, generator)
    return (films / WHITE).clamp(0.0, 1.0).pow(exponent) * WHITE


def contrast(films: Tensor, settings: Augmentation, generator: Generator) -> Tensor:
    """Stretch or flatten the contrast around each film's own mean."""
    mean = films.mean(dim=(1, 2, 3), keepdim=True)
    return (mean + (films - mean) * _factor(films, settings.contrast, generator)).clamp(0.0, WHITE)


def brightness(films: Tensor, settings: Augmentation, generator: Generator) -> Tensor:
    """Add a number of grey levels to the whole film."""
    return (films + _uniform(films, settings.brightness, generator)).clamp(0.0, WHITE)


def shading(films: Tensor, settings: Augmentation, generator: Generator) -> Tensor:
    """Let the brightness of half of the films rise or fall in a straight line along a random direction.

    The anode of the tube, an oblique grid, or the light box behind a scanned film have this effect. No level leaves
    0..255: a corner may stay as bright as it is, and everything else becomes darker.
    """
    angle = _uniform(films, math.pi, generator)
    steepness = _uniform(films, settings.shading, generator) * chosen_films(films, 0.5, generator)
    down, across = (torch.linspace(-1.0, 1.0, side, device=films.device) for side in films.shape[2:])
    place = torch.sin(angle) * down[:, None] + torch.cos(angle) * across
    return films * (1.0 + steepness * place) / (1.0 + math.sqrt(2.0) * steepness.abs())


def blur(films: Tensor, settings: Augmentation, generator: Generator) -> Tensor:
    """Soften some films, each by its own fraction of a 3 x 3 binomial kernel."""
    weight = _uniform(films, 0.5, generator) + 0.5
    chosen = chosen_films(films, settings.blur, generator)
    return changed(films, chosen, lambda some, places: some.lerp(_softened(some), weight[places]))


def sharpen(films: Tensor, settings: Augmentation, generator: Generator) -> Tensor:
    """Sharpen some films: add up to three times the detail that the same kernel removes."""
    return _with_detail(films, settings.sharpen, 3.0, 1, generator)


def unsharp(films: Tensor, settings: Augmentation, generator: Generator) -> Tensor:
    """Mask some films unsharply: add up to twice the detail that a kernel of twice the width removes.

    Processing stations do so to bring out edges and lung markings; its haloes are wider than those of ``sharpen``.
    """
    return _with_detail(films, settings.unsharp, 2.0, WIDE, generator)


def _with_detail(films: Tensor, probability: float, most: float, apart: int, generator: Generator) -> Tensor:
    """Add detail to some films: up to ``most`` times what a kernel with pixels so far apart removes."""
    weight = most / 2.0 * (_uniform(films, 1.0, generator) + 1.0)

    def sharper(some: Tensor, places: Tensor) -> Tensor:
        return some.lerp(_softened(some, apart), -weight[places]).clamp(0.0, WHITE)

    return changed(films, chosen_films(films, probability, generator), sharper)


def _softened(films: Tensor, apart: int = 1) -> Tensor:
    """Return films softened by a 3 x 3 binomial kernel: the mean of pixels so far apart, twice along each axis."""
    padded = functional.pad(films, (apart,) * 4, mode="replicate")
    for axis, side in enumerate(films.shape[2:], start=2):
        for shorter in (side + apart, side):
            padded = padded.narrow(axis, 0, shorter).lerp(padded.narrow(axis, apart, shorter), 0.5)
    return padded


def resolution(films: Tensor, settings: Augmentation, generator: Generator) -> Tensor:
    """Shrink some films and enlarge them again, as if they came from a coarser scan.

    One factor a batch, so that a batch stays one array.
    """
    drawn = torch.rand((), generator=generator, device=films.device)
    height, width = (max(1, round(side * (1.0 - 2.0 / 3.0 * float(drawn)))) for side in films.shape[2:])

    def coarser(some: Tensor, _: Tensor) -> Tensor:
        small = resized(some, (height, width))
        return functional.interpolate(small, films.shape[2:], mode="bilinear", align_corners=False)

    return changed(films, chosen_films(films, settings.resolution, generator), coarser)


def noise(films: Tensor, settings: Augmentation, generator: Generator) -> Tensor:
    """Add Gaussian grain, of a strength drawn for each film.

    Half of the batches get grain of single pixels; in the others up to three neighbours along each axis share theirs,
    as in films that were enlarged after they had been taken. One coarseness a batch, so that a batch stays one array.
    """
    strength = _uniform(films, settings.noise, generator).abs()
    drawn = torch.rand((), generator=generator, device=films.device)
    coarse = 1.0 + (COARSEST_GRAIN - 1.0) * max(0.0, 2.0 * float(drawn) - 1.0)
    size = tuple(max(1, round(side / coarse)) for side in films.shape[2:])
    grain = torch.randn((*films.shape[:2], *size), generator=generator, device=films.device, dtype=films.dtype)
    if size != films.shape[2:]:
        grain = functional.interpolate(grain, films.shape[2:], mode="nearest")
    return (films + strength * grain).clamp(0.0, WHITE)


def collimation(films: Tensor, settings: Augmentation, generator: Generator) -> Tensor:
    """Paint bands of one grey level along some edges of half of the films, as collimators, scanners and viewers do."""
    height, width = films.shape[2:]
    drawn = torch.rand((len(films), 4), generator=generator, device=films.device) * settings.collimation
    present = torch.rand((len(films), 4), generator=generator, device=films.device) < BANDS_PRESENT
    level = torch.rand((len(films), 1, 1, 1), generator=generator, device=films.device) * WHITE
    level = torch.where(chosen_films(films, BLACK_BANDS, generator), torch.zeros_like(level), level)
    wide = (drawn * present)[:, :, None]
    rows, columns = ((torch.arange(side, device=films.device) + 0.5)[None] / side for side in (height, width))
    covered = ((rows < wide[:, 0]) | (rows > 1.0 - wide[:, 1]))[:, None, :, None] | (
        (columns < wide[:, 2]) | (columns > 1.0 - wide[:, 3])
    )[:, None, None, :]
    return torch.where(covered & chosen_films(films, 0.5, generator), level, films)


AUGMENTATIONS: Final = (
    AugmentationStep(("rotation", "scale", "aspect", "shift", "flip", "crop"), geometry),
    AugmentationStep(("collimation",), collimation),
    AugmentationStep(("gamma",), gamma),
    AugmentationStep(("contrast",), contrast),
    AugmentationStep(("brightness",), brightness),
    AugmentationStep(("shading",), shading),
    AugmentationStep(("blur",), blur),
    AugmentationStep(("sharpen",), sharpen),
    AugmentationStep(("unsharp",), unsharp),
    AugmentationStep(("resolution",), resolution),
    AugmentationStep(("noise",), noise),
)


def resized(films: Tensor, size: tuple[int, int]) -> Tensor:
    """Return films of shape (N, 1, height, width) at another height and width; unchanged if the size is the same."""
    if films.shape[2:] == size:
        return films
    return functional.interpolate(films, size, mode="bilinear", align_corners=False, antialias=True)


def mixed(films: Tensor, targets: Tensor, probability: float, generator: Generator) -> tuple[Tensor, Tensor]:
    """Blend some films and their targets, by the same weights, with another film of the batch.

    Args:
        films: shape (N, 1, height, width).
        targets: shape (N, classes), probabilities that sum to 1.
        probability: probability that a film is blended; its own weight is then uniform in 0 to 1.
        generator: random generator on the films' device.

    Source: Zhang et al., "mixup: beyond empirical risk minimization", ICLR (2018), with their alpha of 1.
    """
    share = 0.5 + _uniform(films, 0.5, generator)
    share = torch.where(chosen_films(films, probability, generator), share, 1.0)
    partners = torch.randperm(len(films), generator=generator, device=films.device)
    down = share[:, :, 0, 0]
    return films * share + films[partners] * (1.0 - share), targets * down + targets[partners] * (1.0 - down)


# --------------------------------------------------------------------------- exchanges with other films

LOWEST: Final = (1.0, 6.0)  # cycles over the film: upper limit of the low frequencies, drawn for each batch
CORNERS: Final = (0.08, 0.22)  # of the height: side of a corner, drawn for each batch


class ExchangeStep(NamedTuple):
    """One kind of exchange; its setting is the probability for each film.

    ``apply`` takes films and their donors, of the same shape.
    """

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
    taken: Tensor = torch.fft.irfft2(torch.polar(amplitude, own.angle()), s=(height, width))
    return taken.clamp(0.0, LEVELS - 1.0)


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
