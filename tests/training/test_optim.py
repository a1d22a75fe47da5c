"""The moving average of the weights: what it holds, what it costs nothing to leave out."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from chestxray.training.checkpoint import to_bytes
from chestxray.training.config import Recipe
from chestxray.training.optim import UPDATES, MovingAverage
from chestxray.training.trainer import train
from packs import small_pack


def module_of(value: float) -> nn.Module:
    module = nn.Sequential(nn.Linear(2, 1), nn.BatchNorm1d(1))
    set_to(module, value)
    return module


def set_to(module: nn.Module, value: float) -> None:
    with torch.no_grad():
        for tensor in (*module.parameters(), module[1].running_mean):
            tensor.fill_(value)


def test_the_average_of_what_never_changes_is_that() -> None:
    module = module_of(3.0)
    average = MovingAverage(module, window=40)
    for _ in range(100):
        average.step()
    assert average.module[0].weight.tolist() == [[3.0, 3.0]]


@pytest.mark.parametrize("window", [UPDATES, 40, 400])
def test_the_start_is_forgotten_and_the_average_follows(window: int) -> None:
    module = module_of(-1000.0)
    average = MovingAverage(module, window)
    set_to(module, 1.0)
    for _ in range(window):
        average.step()
    assert average.module[0].weight[0, 0].item() == pytest.approx(1.0, abs=1e-4)
    set_to(module, 2.0)
    for _ in range(8 * window):
        average.step()
    assert average.module[0].weight[0, 0].item() == pytest.approx(2.0, abs=1e-2)


def test_the_statistics_of_batch_normalisation_are_averaged_too_and_the_trained_module_is_untouched() -> None:
    module = module_of(0.0)
    average = MovingAverage(module, window=40)
    for step in range(200):
        set_to(module, float(step % 2))
        average.step()
    assert 0.0 < average.module[1].running_mean.item() < 1.0
    assert module[0].weight[0, 0].item() == 1.0
    assert not any(parameter.requires_grad for parameter in average.module.parameters())


def test_no_window_is_the_module_itself() -> None:
    module = module_of(1.0)
    assert MovingAverage(module, window=0).module is module


def test_averaging_leaves_the_training_itself_as_it_was(tmp_path: Path) -> None:
    pack = small_pack(tmp_path)
    plain = Recipe(epochs=2, batch_size=8, precision="float32")
    averaged = plain.with_changes(average_weights=0.5)
    as_trained, as_averaged = (list(train(pack, recipe)) for recipe in (plain, averaged))
    assert [e.record.training_loss for e in as_trained] == [e.record.training_loss for e in as_averaged]
    assert to_bytes(as_trained[-1].weights) != to_bytes(as_averaged[-1].weights)
