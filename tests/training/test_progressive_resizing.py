"""Films that grow while a network is trained: how large they are in which step, who sees them so, what it costs."""

from __future__ import annotations

import math
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from chestxray.data.pack import Pack
from chestxray.errors import RecipeInvalid
from chestxray.pipeline import RunSettings, run
from chestxray.training.augment import resized
from chestxray.training.config import Recipe
from chestxray.training.ensemble import teacher_of
from chestxray.training.optim import GROWN, SIDE_STEP, size_at
from chestxray.training.run import train_run
from chestxray.training.trainer import VALIDATING, Estimate, Training
from packs import HEIGHT, WIDTH, small_pack

WHOLE = (HEIGHT, WIDTH)
GROWING = Recipe(network="residual", epochs=3, batch_size=8, precision="float32", first_size=0.5)

splits = st.integers(1, 16).map(lambda cells: SIDE_STEP * cells)


@pytest.fixture(scope="module")
def pack(tmp_path_factory: pytest.TempPathFactory) -> Pack:
    return small_pack(tmp_path_factory.mktemp("pack") / "pack")


class Seen:
    """Sizes of the films that a network was shown, those of training and those of evaluating."""

    def __init__(self, network: nn.Module) -> None:
        self.training: list[tuple[int, ...]] = []
        self.evaluating: set[tuple[int, ...]] = set()
        network.register_forward_pre_hook(self._look)

    def _look(self, network: nn.Module, films: tuple[Tensor]) -> None:
        size = tuple(films[0].shape[2:])
        if network.training:
            self.training.append(size)
        else:
            self.evaluating.add(size)


# --------------------------------------------------------------------------- how large


@given(st.floats(0.1, 1.0), st.integers(1, 500), splits, splits)
def test_films_only_grow_and_are_whole_in_the_end(first: float, steps: int, height: int, width: int) -> None:
    recipe = Recipe(network="residual", first_size=first)
    sizes = [size_at(recipe, step, steps, (height, width)) for step in range(steps + 1)]
    assert all(small <= large for two in pairwise(sizes) for small, large in zip(*two, strict=True))
    assert {size for step, size in enumerate(sizes) if step >= GROWN * steps} == {(height, width)}
    assert all(split >= SIDE_STEP and split % SIDE_STEP == 0 for size in sizes for split in size)
    assert abs(sizes[0][1] - first * width) <= max(SIDE_STEP / 2, SIDE_STEP - first * width)


@given(st.integers(0, 99), st.integers(1, 700), st.integers(1, 700))
def test_a_recipe_that_says_nothing_shows_whole_films(step: int, height: int, width: int) -> None:
    assert size_at(Recipe(), step, 100, (height, width)) == (height, width)


def test_a_smaller_film_is_the_mean_of_what_it_covers() -> None:
    films = torch.rand((3, 1, 64, 96), generator=torch.Generator().manual_seed(0)) * 255.0
    smaller = resized(films, (32, 32))
    assert smaller.shape == (3, 1, 32, 32)
    torch.testing.assert_close(smaller.mean(dim=(1, 2, 3)), films.mean(dim=(1, 2, 3)), rtol=0.01, atol=0.0)
    assert float(smaller.std()) < 0.6 * float(films.std())  # without a filter single pixels would be picked out
    assert resized(films, (64, 96)) is films


# --------------------------------------------------------------------------- who sees them so


def test_the_network_is_trained_on_growing_films_and_evaluated_on_whole_ones(pack: Pack) -> None:
    training = Training(pack, GROWING)
    trained, averaged = Seen(training.state.classifier), Seen(training.state.average.module)
    list(training.epochs())
    assert trained.training == [size_at(GROWING, step, 18, WHOLE) for step in range(18)]
    assert trained.training[0] == (32, 32)
    assert trained.training[-1] == WHOLE
    assert trained.evaluating | averaged.evaluating == {WHOLE}


def test_a_teacher_sees_whole_films(pack: Pack, tmp_path: Path) -> None:
    teacher_run = train_run(pack.folder, tmp_path / "teacher", GROWING.with_changes(epochs=1)).folder
    student = GROWING.with_changes(epochs=1, distillation=0.5)
    training = Training(pack, student, teacher=teacher_of([teacher_run], student, pack))
    assert training.state.teacher
    (network,) = training.state.teacher.networks
    teacher, own = Seen(network), Seen(training.state.classifier)
    next(training.epochs())
    assert own.training[0] == (32, 32)
    assert teacher.evaluating == {WHOLE}


def test_a_network_of_one_size_is_told_so(pack: Pack) -> None:
    with pytest.raises(RecipeInvalid, match="alexnet5 takes films of one size alone"):
        Training(pack, GROWING.with_changes(network="alexnet5"))


def test_and_a_run_of_all_stages_says_so_before_it_draws_a_film(tmp_path: Path) -> None:
    with pytest.raises(RecipeInvalid, match="one size alone"):
        run(None, tmp_path / "run", RunSettings(recipe=GROWING.with_changes(network="alexnet5")))
    assert not (tmp_path / "run").exists()


# --------------------------------------------------------------------------- what it costs


def test_the_cost_counts_pixels(pack: Pack) -> None:
    training = Training(pack, GROWING)
    cost = Estimate.of(training)
    shares = [math.prod(training.size_of(step)) / math.prod(WHOLE) for step in range(18)]
    assert shares[0] == pytest.approx(1 / 3)
    assert cost.seconds(0.8) == pytest.approx(3 * 0.8 * sum(shares) + 3 * 0.8 * 3 * 20 * VALIDATING / 8)
    next(training.epochs())
    assert Estimate.of(training).work_left == pytest.approx(sum(shares[6:]))
