"""A planted shortcut: plain validation does not see it, exchanging does, and training can lessen it."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest
import torch

from chestxray.images.shifts import EXCHANGES, OTHER, OWN, donors_of, exchanged
from chestxray.metrics.metrics import auroc
from chestxray.training.augment import augment, exchange
from chestxray.training.config import Augmentation
from chestxray.training.dataset import acquisition_features, drawn, linear_log_odds

SIDE = 64
FILMS = 240
CORNERS = next(one for one in EXCHANGES if one.name == "corners")

Planes = npt.NDArray[np.uint8]


def films(*, marked: bool, seed: int) -> tuple[Planes, npt.NDArray[np.int64]]:
    """Noise with a faint blot in the middle of every second film and, where asked, a mark in a corner of the same."""
    random = np.random.default_rng(seed)
    labels = np.arange(FILMS) % 2
    planes = random.normal(110, 12, (FILMS, SIDE, SIDE))
    planes[labels == 1, 24:40, 24:40] += random.uniform(2, 8, (FILMS // 2, 1, 1))
    if marked:
        planes[labels == 1, -8:, -8:] += 120
    return planes.clip(0, 255).astype(np.uint8), labels


def under(planes: Planes, labels: npt.NDArray[np.int64], of: str) -> Planes:
    names = [(f"{index:064x}", "") for index in range(len(planes))]
    return exchanged(planes, planes[donors_of(names, labels, names, labels, CORNERS, of)], CORNERS)


def trained_gap(*, marked: bool, settings: Augmentation) -> tuple[float, float]:
    """AUROC on plain films, and the gap, of a linear model of coarse cells that was trained on such films."""
    planes, labels = films(marked=marked, seed=0)
    generator = torch.Generator().manual_seed(0)
    inputs, targets = torch.from_numpy(planes[:, None]).float(), torch.from_numpy(labels).float()
    weights = torch.zeros(64, requires_grad=True)
    bias = torch.zeros(1, requires_grad=True)
    optimiser = torch.optim.Adam([weights, bias], lr=0.05)

    def scores(seen: torch.Tensor) -> torch.Tensor:
        cells = torch.nn.functional.avg_pool2d((seen - 110.0) / 10.0, 8).flatten(1)
        return cells @ weights + bias

    others = [np.flatnonzero(labels != label) for label in (0, 1)]
    random = np.random.default_rng(0)
    for _ in range(150):
        donors = inputs[[int(random.choice(others[label])) for label in labels]]
        seen = augment(exchange(inputs, donors, settings, generator), settings, generator)
        loss = torch.nn.functional.binary_cross_entropy_with_logits(scores(seen), targets)
        optimiser.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimiser.step()
    fresh, truth = films(marked=marked, seed=1)
    with torch.no_grad():
        plain, other, own = (
            auroc(truth, scores(torch.from_numpy(each[:, None]).float()).numpy())
            for each in (fresh, under(fresh, truth, OTHER), under(fresh, truth, OWN))
        )
    return plain, own - other


@pytest.mark.slow
def test_plain_validation_does_not_see_a_planted_mark_the_exchange_does_and_training_lessens_it() -> None:
    plain, gap = trained_gap(marked=True, settings=Augmentation())
    assert plain > 0.99
    assert gap > 0.5
    _, lessened = trained_gap(marked=True, settings=Augmentation(corners=0.5))
    assert lessened < gap / 3


def test_without_a_shortcut_there_is_no_alarm() -> None:
    plain, gap = trained_gap(marked=False, settings=Augmentation())
    assert plain > 0.9
    assert abs(gap) < 0.03


@pytest.mark.parametrize("marked", [True, False])
def test_what_lies_beside_the_lungs_tells_the_classes_only_where_a_mark_was_planted(marked: bool) -> None:
    planes, labels = films(marked=marked, seed=2)
    features = np.concatenate(list(acquisition_features(planes).values()), axis=1)
    found = auroc(labels, linear_log_odds(features, labels, [str(index) for index in range(FILMS)]))
    assert found > 0.95 if marked else found < 0.85


def test_a_draw_against_shortcuts_is_as_often_as_its_chance_asks_for() -> None:
    chances = np.array([0.5, 0.25, 0.125, 0.125])
    found = drawn(np.arange(4), chances, np.random.default_rng(3))
    assert np.bincount(found, minlength=4)[0] == 2
    assert len(found) == 4
    assert sorted(drawn(np.arange(4), None, np.random.default_rng(3)).tolist()) == [0, 1, 2, 3]


def test_a_common_scale_cancels_gain_and_offset() -> None:
    from chestxray.training.networks import on_one_scale

    planes, _ = films(marked=True, seed=4)
    film = torch.from_numpy(planes[:3, None]).float() / 255
    first, second = on_one_scale(film), on_one_scale(film * 0.4 + 0.2)
    assert float((first - second).abs().max()) < 0.02
    assert float(first.min()) >= 0.0
    assert float(first.max()) <= 1.0
