"""Several processes that train as one: the same draws, the same statistics, nearly the same weights."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, distributed, nn
from torch.nn import functional

from chestxray.errors import RecipeInvalid
from chestxray.training.config import Augmentation, Recipe
from chestxray.training.distributed import SINGLE_PROCESS, World, share_statistics
from chestxray.training.run import train_run
from chestxray.training.run_folder import LAST_WEIGHTS, METRICS_JSONL, RunInfo, ValidationTable
from chestxray.training.trainer import Training
from packs import small_pack, write_small_pack

TOLERANCE = 2e-3  # of weights and log-odds after 12 steps; AdamW's first steps turn a gradient's last digit into a sign
RECIPE = Recipe(
    epochs=2,
    batch_size=9,
    learning_rate=1e-4,
    precision="float32",
    dropout=0.5,
    class_balance=True,
    label_smoothing=0.05,
    average_weights=0.3,
    mixup=0.5,
    augmentation=Augmentation(rotation=10, scale=0.2, flip=0.5, gamma=0.3, resolution=0.5, noise=5),
)


@pytest.fixture(scope="module")
def pack(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_small_pack(tmp_path_factory.mktemp("pack") / "pack", training=(22, 25))


@pytest.fixture(scope="module")
def recipe_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("recipe") / "recipe.toml"
    path.write_text(RECIPE.to_toml())
    return path


def torchrun(processes: int, *arguments: object) -> subprocess.CompletedProcess[str]:
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
    command = [*launcher, "--no-python", str(Path(sys.executable).with_name("chestxray")), *map(str, arguments)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
    return subprocess.run(command, capture_output=True, text=True, check=False, env=environment)


def figures(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / METRICS_JSONL).read_text().splitlines()]


@pytest.mark.slow
def test_two_processes_train_what_one_trains(pack: Path, recipe_file: Path, tmp_path: Path) -> None:
    one = train_run(pack, tmp_path / "one", RECIPE)
    arguments = ("train", pack, "--out", tmp_path / "two", "--recipe", recipe_file, "--json")
    done = torchrun(2, *arguments)
    assert done.returncode == 0, done.stderr
    document = json.loads(done.stdout)  # one document: the second process is silent
    assert document["info"]["state"] == "finished"
    assert "in each of 2 processes" in done.stderr
    expected, found = load_file(tmp_path / "one" / LAST_WEIGHTS), load_file(tmp_path / "two" / LAST_WEIGHTS)
    for name, tensor in expected.items():
        torch.testing.assert_close(found[name].float(), tensor.float(), rtol=TOLERANCE, atol=TOLERANCE)
    for alone, together in zip(figures(tmp_path / "one"), figures(tmp_path / "two"), strict=True):
        assert together["training_loss"] == pytest.approx(alone["training_loss"], rel=TOLERANCE)
    tables = [
        ValidationTable.read(tmp_path / name / "validation.csv", RunInfo.read(tmp_path / name).files["validation.csv"])
        for name in ("one", "two")
    ]
    np.testing.assert_allclose(tables[0].logits, tables[1].logits, atol=TOLERANCE)
    assert one.info.training_films == document["info"]["training_films"]

    again = torchrun(2, *arguments)
    assert again.returncode == 0, again.stderr
    assert "this run is finished" in again.stderr
    assert json.loads(again.stdout) == document


def test_more_processes_than_films_in_a_batch_are_refused(pack: Path) -> None:
    message = "2 processes cannot share batches of 1 films. Start fewer, or raise batch_size"
    with pytest.raises(RecipeInvalid, match=message):
        Training(small_pack(pack), RECIPE.with_changes(batch_size=1), world=World(0, 2))


def test_shares_hold_every_film_once() -> None:
    for count in (5, 8, 47):
        for size in (1, 2, 3, 5):
            shares = [range(count)[World(rank, size).share_of(count)] for rank in range(size)]
            assert [film for share in shares for film in share] == list(range(count))
            assert max(map(len, shares)) - min(map(len, shares)) <= 1


@pytest.mark.parametrize("draw", [lambda films: functional.dropout(films, 0.4), lambda films: torch.rand(films.shape)])
def test_what_is_drawn_for_a_share_is_that_part_of_what_is_drawn_for_the_whole(
    draw: Callable[[Tensor], Tensor],
) -> None:
    films = torch.ones(7, 40)
    torch.manual_seed(3)
    whole = draw(films)
    following = torch.rand(1)
    for rank in range(3):
        world = World(rank, 3)
        torch.manual_seed(3)
        with world.sharing_random_numbers(7):
            assert torch.equal(draw(films[world.share_of(7)]), whole[world.share_of(7)])
        assert torch.equal(torch.rand(1), following)


def test_one_process_has_nothing_to_exchange() -> None:
    scores = torch.ones(3, 2, requires_grad=True)
    assert SINGLE_PROCESS.gather(scores, 3) is scores
    assert SINGLE_PROCESS.broadcast_bytes(b"words") == b"words"
    assert not SINGLE_PROCESS.any(False)


def test_shared_batch_normalisation_of_one_process_is_batch_normalisation(tmp_path: Path) -> None:
    distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/meeting", rank=0, world_size=1)
    try:
        torch.manual_seed(0)
        films = torch.randn(5, 3, 4, 6, dtype=torch.float32) * 7 + 2
        weights = torch.randn(5, 3, 4, 6)
        results = []
        for shared in (False, True):
            module = nn.BatchNorm2d(3)
            nn.init.uniform_(module.weight)
            with torch.no_grad():
                module.weight.copy_(torch.tensor([0.5, 1.5, -1.0]))
            if shared:
                share_statistics(module)
            given = films.clone().requires_grad_()
            out = module(given)
            (out * weights).sum().backward()
            buffers = [module.running_mean, module.running_var, module.num_batches_tracked.float()]
            results.append([out, given.grad, module.weight.grad, module.bias.grad, *buffers, module.eval()(films)])
        for expected, found in zip(*results, strict=True):
            torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    finally:
        distributed.destroy_process_group()
