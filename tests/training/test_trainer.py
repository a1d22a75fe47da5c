"""Recipe, augmentation, the loop and the run folder."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import sklearn.metrics
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Generator, Tensor

from chestxray.data.pack import Pack, labels_of
from chestxray.errors import (
    DegenerateLabels,
    Leakage,
    OutputExists,
    PackInvalid,
    RecipeInvalid,
    RunInvalid,
    TrainingDiverged,
)
from chestxray.files import sha256_of_file
from chestxray.schema import Split, fingerprint
from chestxray.training.augment import AUGMENTATIONS, EXCHANGED, augment, exchange
from chestxray.training.checkpoint import read_weights, to_bytes, write_weights
from chestxray.training.config import AUGMENTATION_LIMITS, Augmentation, Recipe, shipped_recipes
from chestxray.training.dataset import splits_of
from chestxray.training.networks import build
from chestxray.training.optim import epochs_of, learning_rate_at, optimiser_of
from chestxray.training.run import RunOptions, train_run
from chestxray.training.run_folder import METRICS_JSONL, RUN_FILES, RUN_JSON, RunInfo, ValidationTable
from chestxray.training.trainer import Epoch, train
from packs import small_pack, write_small_pack

QUICK = Recipe(epochs=3, batch_size=8, learning_rate=1e-3, precision="float32", dropout=0.2)
EVERYTHING = Augmentation(
    rotation=10,
    scale=0.2,
    aspect=0.15,
    shift=0.06,
    flip=0.5,
    gamma=0.4,
    contrast=0.3,
    brightness=20,
    blur=0.5,
    resolution=0.5,
    noise=6,
)

# --------------------------------------------------------------------------- recipe


@given(
    epochs=st.integers(1, 10_000),
    rate=st.floats(1e-12, 100.0),
    balance=st.booleans(),
    schedule=st.sampled_from(["constant", "one_cycle"]),
    rotation=st.floats(0, 180),
)
def test_a_recipe_read_from_its_own_toml_is_the_same_recipe(
    epochs: int, rate: float, balance: bool, schedule: str, rotation: float
) -> None:
    recipe = Recipe(
        epochs=epochs,
        learning_rate=rate,
        class_balance=balance,
        schedule=schedule,
        augmentation=Augmentation(rotation=rotation),
    )
    assert Recipe.from_toml(recipe.to_toml(), "r.toml") == recipe


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("epoch = 3", r"r\.toml: there is no key 'epoch'; the nearest is 'epochs'"),
        ("[augmentation]\nrotate = 3", "there is no key 'augmentation.rotate'; the nearest is 'augmentation.rotation'"),
        ("epochs = 0", "epochs is 0; it must lie in 1 to 10000"),
        ("epochs = 2.5", r"epochs is 2\.5; it must be a whole number"),
        ("epochs = true", "epochs is True; it must be a whole number"),
        ("class_balance = 1", "class_balance is 1; it must be true or false"),
        ("learning_rate = nan", "learning_rate is nan; it must lie in"),
        ("dropout = 1", r"dropout is 1\.0; it must lie in 0 to 1"),
        ('optimiser = "adam"', "optimiser is 'adam'; it may be sgd or adamw"),
        ("augmentation = 3", "augmentation: must be a table of settings, not 3"),
        ("[augmentation]\nflip = 2", r"augmentation\.flip is 2\.0; it must lie in 0 to 1"),
        ("epochs = ", r"r\.toml: not TOML"),
    ],
)
def test_a_recipe_that_makes_no_sense_is_refused_with_the_reason(text: str, message: str) -> None:
    with pytest.raises(RecipeInvalid, match=message):
        Recipe.from_toml(text, "r.toml")


def test_a_missing_recipe_file_and_an_unknown_recipe_are_refused(tmp_path: Path) -> None:
    with pytest.raises(RecipeInvalid, match=r"none\.toml: cannot be read"):
        Recipe.read(tmp_path / "none.toml")
    with pytest.raises(RecipeInvalid, match="no recipe 'best'; there are default, default-distilled, distilled"):
        Recipe.shipped("best")


def test_the_original_recipe_is_the_original_works() -> None:
    recipe = Recipe.shipped("original")
    assert (recipe.batch_size, recipe.optimiser, recipe.learning_rate, recipe.epochs) == (1, "sgd", 0.001, 25)
    assert (recipe.validation, recipe.validation_share, recipe.schedule) == ("random", 0.2, "constant")
    assert recipe.augmentation == Augmentation()


def test_the_default_recipe_validates_by_patient() -> None:
    assert shipped_recipes() == ("default", "default-distilled", "distilled", "original", "small", "transfer")
    assert Recipe.shipped().validation == "given"


def test_changes_reach_both_the_recipe_and_its_augmentation() -> None:
    changed = Recipe.shipped().with_changes(epochs=2, flip=0.0, seed=None)
    assert (changed.epochs, changed.augmentation.flip, changed.seed) == (2, 0.0, Recipe.shipped().seed)
    with pytest.raises(RecipeInvalid, match="the nearest is 'learning_rate'"):
        Recipe().with_changes(learning_rat=1.0)


def test_few_films_get_more_epochs_so_that_there_are_enough_steps() -> None:
    recipe = Recipe(epochs=10, minimum_steps=240, batch_size=32)
    assert epochs_of(recipe, 320) == 24
    assert epochs_of(recipe, 5000) == 10


def test_whoever_asks_for_so_many_epochs_gets_them_however_few_films_there_are() -> None:
    recipe = Recipe(epochs=10, minimum_steps=240)
    assert epochs_of(recipe.with_changes(epochs=2), 320) == 2
    assert epochs_of(recipe.with_changes(epochs=2, minimum_steps=100), 320) == 10
    assert epochs_of(recipe.with_changes(seed=1), 320) == 24


# --------------------------------------------------------------------------- augmentation


def batch_of(count: int = 6, height: int = 48, width: int = 64) -> Tensor:
    rng = np.random.default_rng(2)
    return torch.from_numpy(rng.uniform(0, 255, (count, 1, height, width)).astype(np.float32))


def generator(seed: int = 0) -> Generator:
    return torch.Generator().manual_seed(seed)


def test_every_setting_belongs_to_one_row_of_the_table() -> None:
    named = [name for row in AUGMENTATIONS for name in row.settings] + [row.setting for row in EXCHANGED]
    fields = [field.name for field in dataclasses.fields(Augmentation)]
    assert sorted(named) == sorted(fields) == sorted(AUGMENTATION_LIMITS)


def test_no_augmentation_changes_nothing() -> None:
    films = batch_of()
    assert augment(films, Augmentation(), generator()) is films


@pytest.mark.parametrize("name", AUGMENTATION_LIMITS)
def test_each_setting_alone_varies_films_and_keeps_shape_and_range(name: str) -> None:
    films = batch_of()
    before = films.clone()
    settings, random = Augmentation(**{name: min(AUGMENTATION_LIMITS[name], 0.9)}), generator()
    varied = augment(exchange(films, films.flip(0) / 2.0, settings, random), settings, random)
    assert torch.equal(films, before)
    assert varied.shape == films.shape
    assert varied.dtype == films.dtype
    assert 0.0 <= float(varied.min()) <= float(varied.max()) <= 255.0 + 1e-3
    assert not torch.allclose(varied, films)


@given(seed=st.integers(0, 2**32))
@settings(max_examples=10)
def test_the_same_generator_gives_the_same_films(seed: int) -> None:
    films = batch_of()
    first, second = (augment(films, EVERYTHING, generator(seed)) for _ in range(2))
    assert torch.equal(first, second)
    assert not torch.equal(first, augment(films, EVERYTHING, generator(seed + 1)))


def test_films_of_a_batch_are_varied_independently() -> None:
    same = batch_of(1).expand(8, -1, -1, -1)
    varied = augment(same, EVERYTHING, generator())
    assert len({film.numpy().tobytes() for film in varied}) == 8


def test_a_mirror_image_is_exact() -> None:
    films = batch_of()
    flipped = augment(films, Augmentation(flip=1.0), generator())
    torch.testing.assert_close(flipped, films.flip(3), rtol=0, atol=1e-2)


def test_noise_is_of_single_pixels_or_shared_by_neighbours_and_as_strong_as_drawn() -> None:
    """In about half of the batches a pixel says nothing of the next; in the others up to three share their grain."""
    alike, strengths = [], []
    for seed in range(40):
        films = torch.full((8, 1, 96, 96), 127.5)
        grain = augment(films, Augmentation(noise=12.0), generator(seed)) - films
        left, right = grain[..., :-1].flatten(), grain[..., 1:].flatten()
        alike.append(float(torch.corrcoef(torch.stack([left, right]))[0, 1]))
        strengths.append(float(grain.std()))
    single = sum(abs(value) < 0.05 for value in alike)
    assert 10 <= single <= 30
    assert max(alike) > 0.5
    assert all(0.0 < strength < 12.0 * 1.05 for strength in strengths)


@pytest.mark.parametrize(("setting", "wide"), [("sharpen", 1), ("unsharp", 2)])
def test_the_haloes_of_an_edge_are_as_wide_as_the_kernel(setting: str, wide: int) -> None:
    """An edge between 100 and 150 overshoots on both sides, by the same amount, and no farther than the kernel."""
    film = torch.full((16, 1, 40, 40), 100.0)
    film[..., 20:] = 150.0
    varied = augment(film, Augmentation(**{setting: 1.0}), generator())
    changed = (varied - film).abs().amax(dim=(0, 1, 2)) > 1e-3
    assert changed.nonzero().flatten().tolist() == list(range(20 - wide, 20 + wide))
    dark, bright = varied[..., 19], varied[..., 20]
    assert bool((dark <= 100.0).all() and (bright >= 150.0).all())
    torch.testing.assert_close(100.0 - dark, bright - 150.0, rtol=0, atol=1e-3)


def test_rotation_keeps_lengths_on_a_film_that_is_not_square() -> None:
    """A disc stays a disc: a rotation in the grid's own units would make an ellipse of it."""
    rows, columns = np.mgrid[0:100, 0:200]
    disc = 255.0 * ((rows - 49.5) ** 2 + (columns - 99.5) ** 2 < 30**2)
    films = torch.from_numpy(disc.astype(np.float32)).expand(5, 1, 100, 200)
    rotated = augment(films, Augmentation(rotation=90.0), generator())
    assert float((rotated - films).abs().mean()) < 2.0


def test_a_crop_keeps_one_part_of_half_of_the_films_and_fills_the_film_with_it() -> None:
    """A ramp from edge to edge tells what was cut off at either end, and stays a ramp."""
    ramp = (torch.arange(200.0) + 0.5) / 200.0 * 255.0
    across = ramp.expand(64, 1, 100, 200)
    down = ((torch.arange(100.0) + 0.5) / 100.0 * 255.0)[:, None].expand(64, 1, 100, 200)
    for films, axis in ((across, 3), (down, 2)):
        varied = augment(films, Augmentation(crop=0.3), generator())
        middle = varied.movedim(axis, 3)[:, 0, 50].double() / 255.0
        inner = middle[:, 2:-2]
        steps = inner.diff(dim=1)
        torch.testing.assert_close(steps, steps.mean(dim=1, keepdim=True).expand_as(steps), rtol=0, atol=1e-5)
        size = middle.shape[1]
        lost_before = inner[:, 0] - 2.5 * steps.mean(dim=1)
        lost_after = 1.0 - inner[:, -1] - 2.5 * steps.mean(dim=1)
        torch.testing.assert_close(lost_before + lost_after + size * steps.mean(dim=1), torch.ones(64).double())
        for lost in (lost_before, lost_after):
            assert float(lost.min()) > -1e-6
            assert 0.2 < float(lost.max()) <= 0.3
        whole = (varied - films).abs().amax(dim=(1, 2, 3)) < 1e-2
        assert 20 <= int(whole.sum()) <= 44


def test_shading_is_a_straight_ramp_over_half_of_the_films_that_nowhere_clips() -> None:
    film = torch.full((64, 1, 60, 90), 250.0)
    varied = augment(film, Augmentation(shading=0.5), generator())
    assert 0.0 < float(varied.min()) < float(varied.max()) <= 250.0 + 1e-3
    for axis in (2, 3):
        torch.testing.assert_close(
            varied.diff(n=2, dim=axis), torch.zeros(()).expand_as(varied.diff(n=2, dim=axis)), rtol=0, atol=1e-3
        )
    assert 20 <= int((varied == film).all(dim=3).all(dim=2).sum()) <= 44
    edges = varied[..., [0, -1], :][..., [0, -1]].flatten(1)
    assert float((edges.amax(1) / edges.amin(1)).max()) > 2.0


def test_a_rotated_bar_turns_by_the_angle_that_was_drawn() -> None:
    film = torch.zeros(40, 1, 100, 200)
    film[:, :, 48:52, 60:140] = 255.0
    rotated = augment(film, Augmentation(rotation=30.0), generator())
    rows, columns = torch.meshgrid(torch.arange(100.0) - 49.5, torch.arange(200.0) - 99.5, indexing="ij")
    weight = rotated[:, 0] / rotated.sum(dim=(1, 2, 3))[:, None, None]
    xx, yy, xy = ((weight * a * b).sum(dim=(1, 2)) for a, b in ((columns, columns), (rows, rows), (columns, rows)))
    angles = torch.rad2deg(0.5 * torch.atan2(2 * xy, xx - yy))
    assert float(angles.abs().max()) <= 31.0
    assert float(angles.max()) > 20.0
    assert float(angles.min()) < -20.0
    torch.testing.assert_close(xx + yy, torch.full((40,), (80**2 + 4**2) / 12), rtol=0.03, atol=0)


# --------------------------------------------------------------------------- schedule and optimiser


def test_one_cycle_rises_to_the_given_rate_and_falls_to_nothing() -> None:
    recipe = Recipe(learning_rate=0.01, schedule="one_cycle", warm_up=0.25)
    rates = [learning_rate_at(recipe, step, 400) for step in range(400)]
    peak = int(np.argmax(rates))
    assert 98 <= peak <= 101
    assert rates[peak] == pytest.approx(0.01, rel=1e-2)
    assert all(a < b for a, b in pairwise(rates[:100]))
    assert all(a > b for a, b in pairwise(rates[101:]))
    assert 0.0 < rates[-1] < 1e-6


@pytest.mark.parametrize("warm_up", [0.0, 1.0])
def test_the_extremes_of_the_warm_up_are_schedules_too(warm_up: float) -> None:
    recipe = Recipe(learning_rate=1.0, warm_up=warm_up)
    assert all(0.0 < learning_rate_at(recipe, step, 10) <= 1.0 for step in range(10))


def test_a_constant_rate_stays() -> None:
    assert {learning_rate_at(Recipe(schedule="constant"), step, 7) for step in range(7)} == {Recipe().learning_rate}


def test_only_convolution_and_dense_weights_decay(tmp_path: Path) -> None:
    classifier = build("alexnet5", small_pack(tmp_path).info.preprocessing)
    decayed, others = optimiser_of(classifier, Recipe(weight_decay=0.1)).param_groups
    assert (len(decayed["params"]), decayed["weight_decay"]) == (7, 0.1)
    assert (len(others["params"]), others["weight_decay"]) == (17, 0.0)


# --------------------------------------------------------------------------- loop


@pytest.fixture(scope="module")
def pack(tmp_path_factory: pytest.TempPathFactory) -> Pack:
    return small_pack(tmp_path_factory.mktemp("pack") / "pack")


@pytest.fixture(scope="module")
def epochs(pack: Pack) -> tuple[Epoch, ...]:
    return tuple(train(pack, QUICK.with_changes(epochs=6, rotation=5.0, noise=3.0)))


def test_the_loop_learns_and_says_how_it_went(epochs: tuple[Epoch, ...]) -> None:
    records = [epoch.record for epoch in epochs]
    assert [record.epoch for record in records] == [1, 2, 3, 4, 5, 6]
    assert {record.epochs for record in records} == {6}
    assert records[-1].training_loss < records[0].training_loss
    assert max(record.auroc for record in records) > 0.9
    assert all(record.films_per_second > 0.0 and record.seconds > 0.0 for record in records)


def test_figures_of_an_epoch_agree_with_an_independent_library(pack: Pack, epochs: tuple[Epoch, ...]) -> None:
    for epoch in epochs:
        targets = labels_of(pack.films)[epoch.splits.validation]
        called = epoch.logits >= 0.0
        record = epoch.record
        assert record.auroc == pytest.approx(sklearn.metrics.roc_auc_score(targets, epoch.logits))
        assert record.sensitivity == pytest.approx(sklearn.metrics.recall_score(targets, called))
        assert record.specificity == pytest.approx(sklearn.metrics.recall_score(targets, called, pos_label=0))
        odds = epoch.logits.astype(np.float64)
        assert record.validation_loss == pytest.approx(
            sklearn.metrics.log_loss(targets, 1 / (1 + np.exp(-odds))), rel=1e-3, abs=1e-6
        )


def test_the_weights_of_an_epoch_give_its_logits(pack: Pack, epochs: tuple[Epoch, ...]) -> None:
    for epoch in (epochs[0], epochs[-1]):
        classifier = build("alexnet5", pack.info.preprocessing)
        classifier.load_state_dict(dict(epoch.weights))
        with torch.inference_mode():
            logits, _ = classifier.eval().explain(torch.from_numpy(pack.images[epoch.splits.validation][:, None]))
        np.testing.assert_allclose(logits.numpy(), epoch.logits, rtol=1e-4, atol=1e-4)


def test_an_epoch_is_best_by_auroc_under_shifts_and_then_by_loss(epochs: tuple[Epoch, ...]) -> None:
    best = (-math.inf, -math.inf)
    for record in (epoch.record for epoch in epochs):
        rank = (record.stress_auroc + record.exchange_auroc, -record.validation_loss)
        assert record.is_best == (rank > best)
        best = max(best, rank)


def weights_after(pack: Pack, recipe: Recipe, between: Callable[[], object] = lambda: None) -> bytes:
    weights = b""
    for epoch in train(pack, recipe):
        weights = to_bytes(epoch.weights)
        between()
    return weights


def test_the_same_seed_gives_the_same_weights_whatever_else_draws_numbers(pack: Pack) -> None:
    recipe = QUICK.with_changes(epochs=2, augmentation=EVERYTHING)
    first = weights_after(pack, recipe)
    assert weights_after(pack, recipe, between=lambda: torch.rand(3)) == first
    assert weights_after(pack, recipe.with_changes(seed=1)) != first


def test_training_leaves_the_global_generator_alone(pack: Pack) -> None:
    torch.manual_seed(11)
    expected = torch.rand(1)
    torch.manual_seed(11)
    weights_after(pack, QUICK.with_changes(epochs=1))
    assert torch.equal(torch.rand(1), expected)


@pytest.mark.parametrize("precision", ["auto", "bfloat16"])
def test_reduced_precision_learns_as_well(pack: Pack, precision: str) -> None:
    records = [epoch.record for epoch in train(pack, QUICK.with_changes(epochs=6, precision=precision))]
    assert max(record.auroc for record in records) > 0.9


def test_the_original_recipe_trains_film_by_film_and_owns_up_to_its_leak(pack: Pack) -> None:
    steps: list[tuple[int, int]] = []
    epoch = next(train(pack, Recipe.shipped("original"), on_progress=lambda done, total: steps.append((done, total))))
    assert steps == [(done, 54) for done in range(1, 55)]  # 80% of 68 films, one a step
    assert epoch.record.learning_rate == 0.001
    known = {pack.films[row].patient_id for row in epoch.splits.training}
    shared = sum(pack.films[row].patient_id in known for row in epoch.splits.validation)
    assert shared > 0
    assert f"{shared} of 14 show a patient who was also trained on" in epoch.splits.leak


def test_random_validation_takes_all_but_the_test_films_and_each_once(pack: Pack) -> None:
    recipe = QUICK.with_changes(validation="random", validation_share=0.25)
    splits = splits_of(pack, recipe)
    together = np.concatenate([splits.training, splits.validation])
    assert sorted(together) == list(range(len(pack.films)))
    assert len(splits.validation) == 17
    assert not np.array_equal(splits.validation, splits_of(pack, recipe.with_changes(seed=1)).validation)


def test_given_sides_are_the_packs_and_leak_nothing(pack: Pack) -> None:
    splits = splits_of(pack, QUICK)
    np.testing.assert_array_equal(splits.training, pack.rows(Split.TRAIN))
    np.testing.assert_array_equal(splits.validation, pack.rows(Split.VAL))
    assert splits.leak == ""


@pytest.mark.parametrize(
    ("counts", "error", "message"),
    [
        ({"validation": (0, 0)}, PackInvalid, "holds no validation films"),
        ({"validation": (4, 0)}, DegenerateLabels, "all 4 validation films are labelled normal"),
        ({"training": (0, 6)}, DegenerateLabels, "all 6 training films are labelled pneumonia"),
    ],
)
def test_films_that_nothing_can_be_learnt_from_are_refused(
    tmp_path: Path, counts: dict[str, object], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        next(train(small_pack(tmp_path / "pack", **counts), QUICK))


def test_a_patient_on_both_sides_is_an_error(pack: Pack) -> None:
    films = tuple(dataclasses.replace(film, patient_id="p1") for film in pack.films)
    leaking = dataclasses.replace(
        pack, films=films, info=dataclasses.replace(pack.info, fingerprint=fingerprint(films))
    )
    with pytest.raises(Leakage, match="p1"):
        next(train(leaking, QUICK))


def test_a_loss_that_is_no_longer_finite_stops_training_and_names_the_batch(pack: Pack) -> None:
    with pytest.raises(TrainingDiverged, match=r"epoch \d+.*the loss is .*Lower the learning rate \(it was 100\)"):
        list(
            train(
                pack,
                Recipe(
                    epochs=20,
                    batch_size=8,
                    optimiser="sgd",
                    learning_rate=100.0,
                    schedule="constant",
                    weight_decay=10.0,
                    precision="float32",
                ),
            )
        )


def test_a_device_that_is_not_there_is_refused(pack: Pack) -> None:
    with pytest.raises(RecipeInvalid, match="the device 'quantum' cannot be used here"):
        next(train(pack, QUICK, device="quantum"))


# --------------------------------------------------------------------------- on disk


def test_weights_read_from_disk_are_those_that_were_written(tmp_path: Path, epochs: tuple[Epoch, ...]) -> None:
    path = tmp_path / "w.safetensors"
    sha256 = write_weights(path, epochs[0].weights)
    found = read_weights(path, sha256)
    assert to_bytes(found) == to_bytes(epochs[0].weights) == path.read_bytes()
    assert hashlib.sha256(path.read_bytes()).hexdigest() == sha256
    assert all(torch.equal(found[name], tensor) for name, tensor in epochs[0].weights.items())


def test_edited_missing_and_foreign_weights_are_refused(tmp_path: Path, epochs: tuple[Epoch, ...]) -> None:
    path = tmp_path / "w.safetensors"
    sha256 = write_weights(path, epochs[0].weights)
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    with pytest.raises(RunInvalid, match="the file was changed or damaged"):
        read_weights(path, sha256)
    with pytest.raises(RunInvalid, match=r"none\.safetensors: cannot be read"):
        read_weights(tmp_path / "none.safetensors", sha256)
    path.write_bytes(b"not tensors")
    with pytest.raises(RunInvalid, match="not a safetensors file"):
        read_weights(path, sha256_of_file(path))


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run")
    write_small_pack(folder / "pack")
    train_run(folder / "pack", folder / "run", QUICK)
    return folder / "run"


def test_a_run_leaves_its_files_and_nothing_half_written(run_folder: Path) -> None:
    assert {path.name for path in run_folder.iterdir()} == set(RUN_FILES)


def test_the_description_of_a_run_survives_its_file(run_folder: Path) -> None:
    info = RunInfo.read(run_folder)
    assert RunInfo.from_json(info.to_json()) == info
    assert info.state == "finished"
    assert Recipe.read(run_folder / "recipe.toml") == QUICK
    assert info.recipe == dataclasses.asdict(QUICK)


def test_the_run_records_every_epoch_and_the_best_ones_logits(run_folder: Path) -> None:
    lines = [json.loads(line) for line in (run_folder / METRICS_JSONL).read_text().splitlines()]
    info = RunInfo.read(run_folder)
    assert [line["epoch"] for line in lines] == [1, 2, 3]
    assert dataclasses.asdict(info.best) == [line for line in lines if line["is_best"]][-1]
    table = ValidationTable.read(run_folder / "validation.csv", info.files["validation.csv"])
    assert sklearn.metrics.roc_auc_score(table.labels, table.logits) == pytest.approx(info.best.auroc)


def test_the_pictures_are_pictures(run_folder: Path) -> None:
    assert (run_folder / "learning_curves.png").read_bytes().startswith(b"\x89PNG")
    svg = (run_folder / "learning_curves.svg").read_text()
    assert "AUROC" in svg
    assert "validation loss" in svg


@pytest.mark.slow
def test_another_run_takes_the_place_of_an_earlier_one_only_when_told_to_and_of_nothing_else(tmp_path: Path) -> None:
    write_small_pack(tmp_path / "pack")
    recipe = QUICK.with_changes(epochs=1)
    train_run(tmp_path / "pack", tmp_path / "run", recipe.with_changes(epochs=2))
    (tmp_path / "run" / "notes.txt").write_text("mine")
    before = (tmp_path / "run" / RUN_JSON).read_bytes()
    with pytest.raises(OutputExists, match=r"holds another run: its recipe has epochs = 2, this one 1\. Give another"):
        train_run(tmp_path / "pack", tmp_path / "run", recipe)
    assert (tmp_path / "run" / RUN_JSON).read_bytes() == before
    train_run(tmp_path / "pack", tmp_path / "run", recipe, options=RunOptions(replace=True))
    assert len((tmp_path / "run" / METRICS_JSONL).read_text().splitlines()) == 1
    assert (tmp_path / "run" / "notes.txt").read_text() == "mine"
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter.txt").write_text("mine")
    with pytest.raises(OutputExists, match="thesis: exists and is not a run"):
        train_run(tmp_path / "pack", tmp_path / "thesis", recipe)


def test_an_interrupted_run_says_so_and_the_same_command_ends_it(tmp_path: Path) -> None:
    write_small_pack(tmp_path / "pack")

    def interrupt(_record: object) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train_run(tmp_path / "pack", tmp_path / "run", QUICK, on_epoch=interrupt)
    with pytest.raises(RunInvalid, match="the run was interrupted before it ended"):
        RunInfo.read_finished(tmp_path / "run")
    assert not [path for path in (tmp_path / "run").iterdir() if path.name.startswith(".")]
    summary = train_run(tmp_path / "pack", tmp_path / "run", QUICK)
    assert summary.info.state == "finished"
    assert [record.epoch for record in summary.records] == [1, 2, 3]


def test_a_run_that_cannot_start_leaves_the_earlier_one(tmp_path: Path, run_folder: Path) -> None:
    before = (run_folder / RUN_JSON).read_bytes()
    write_small_pack(tmp_path / "pack", validation=(4, 0))
    with pytest.raises(DegenerateLabels):
        train_run(tmp_path / "pack", run_folder, QUICK, options=RunOptions(restart=True))
    assert (run_folder / RUN_JSON).read_bytes() == before


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{}", "not a description of a run"),
        ('{"version": 9}', "run version 9; this program reads 1"),
        ("[", "not a description"),
    ],
)
def test_a_damaged_description_is_refused(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / RUN_JSON).write_text(text)
    with pytest.raises(RunInvalid, match=message):
        RunInfo.read(tmp_path)
