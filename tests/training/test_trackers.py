"""Trackers are told what metrics.jsonl says, and go on after an interruption; what a run costs is said before."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from chestxray.errors import RecipeInvalid
from chestxray.schema import Preprocessing, Resize
from chestxray.training.config import Recipe
from chestxray.training.networks import NETWORKS, build, parameters_of
from chestxray.training.plots import (
    AUGMENTED,
    FIGURES,
    FILTERS,
    MLFLOW_RUN,
    TENSORBOARD_FOLDER,
    plot_augmented_films,
    plot_filters,
    track,
)
from chestxray.training.train_state import EpochRecord
from chestxray.training.trainer import TIMED, WARM_UP, Estimate, Forecast, Training
from packs import small_pack

RECIPE = Recipe(epochs=4, batch_size=8, precision="float32")


def record(epoch: int) -> EpochRecord:
    return EpochRecord(epoch, 4, 0.5 / epoch, 0.25 / epoch, 0.9, 0.8, 0.7, 0.75, 0.5, 0.125, 100.0, 3.0, is_best=True)


def tell(name: str, folder: Path, epochs: range) -> None:
    with track(name, folder, RECIPE, recorded=epochs.start - 1) as tracker:
        for epoch in epochs:
            tracker(record(epoch))


def interrupted(name: str, folder: Path) -> None:
    """Record two epochs, then a third that the checkpoint does not know; then resume from the second."""
    with suppress(KeyboardInterrupt), track(name, folder, RECIPE, recorded=0) as tracker:
        for epoch in (1, 2, 3):
            tracker(record(epoch))
        raise KeyboardInterrupt
    tell(name, folder, range(3, 5))


def test_tensorboard_shows_every_epoch_once(tmp_path: Path) -> None:
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    interrupted("tensorboard", tmp_path)
    shown = accumulator.EventAccumulator(str(tmp_path / TENSORBOARD_FOLDER))
    shown.Reload()
    assert set(shown.Tags()["scalars"]) == set(FIGURES)
    for name in FIGURES:
        expected = [(epoch, pytest.approx(getattr(record(epoch), name))) for epoch in (1, 2, 3, 4)]
        assert [(event.step, event.value) for event in shown.Scalars(name)] == expected


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    pytest.importorskip("mlflow")
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"file:{tmp_path / 'store'}")
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "films")
    return f"file:{tmp_path / 'store'}"


def test_mlflow_holds_one_run_with_the_recipe_and_every_epoch(server: str, tmp_path: Path) -> None:
    from mlflow import MlflowClient

    interrupted("mlflow", tmp_path)
    client = MlflowClient(tracking_uri=server)
    experiment = client.get_experiment_by_name("films")
    (run,) = client.search_runs([experiment.experiment_id])
    assert run.info.run_id == (tmp_path / MLFLOW_RUN).read_text()
    assert run.info.status == "FINISHED"
    assert run.data.params["network"] == "alexnet5"
    for name in FIGURES:
        assert run.data.metrics[name] == pytest.approx(getattr(record(4), name))
        assert {point.step for point in client.get_metric_history(run.info.run_id, name)} == {1, 2, 3, 4}


def test_an_interrupted_run_is_marked_at_mlflow(server: str, tmp_path: Path) -> None:
    from mlflow import MlflowClient

    with pytest.raises(KeyboardInterrupt), track("mlflow", tmp_path, RECIPE, recorded=0):
        raise KeyboardInterrupt
    run = MlflowClient(tracking_uri=server).get_run((tmp_path / MLFLOW_RUN).read_text())
    assert run.info.status == "FAILED"


def test_mlflow_without_a_server_and_an_unknown_tracker_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(RecipeInvalid, match="no tracker 'wandb'; there are tensorboard, mlflow"):
        track("wandb", tmp_path, RECIPE, recorded=0)
    pytest.importorskip("mlflow")
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    with pytest.raises(RecipeInvalid, match="the tracker mlflow needs a server: set MLFLOW_TRACKING_URI"):
        tell("mlflow", tmp_path, range(1, 2))


# --------------------------------------------------------------------------- what it costs


def test_what_a_training_costs_is_said_in_its_own_numbers(tmp_path: Path) -> None:
    training = Training(small_pack(tmp_path), RECIPE)
    estimate = Estimate.of(training)
    assert estimate.parameters == parameters_of(build("alexnet5", small_pack(tmp_path).info.preprocessing))
    assert (estimate.training_films, estimate.validation_films, estimate.steps_an_epoch, estimate.steps_left) == (
        48,
        20,
        6,
        24,
    )
    assert str(estimate).startswith(
        f"alexnet5, {estimate.parameters:,} parameters: 48 films in 6 steps of up to 8, 4 epochs"
    )
    next(training.epochs())
    assert Estimate.of(training).steps_left == 18
    # 24 steps of 8 films, and 4 times 20 films that are only evaluated, at a third of the price.
    assert estimate.seconds(0.8) == pytest.approx(24 * 0.8 + 4 * 20 * 0.1 / 3)


def test_the_minutes_are_said_once(tmp_path: Path) -> None:
    said: list[str] = []
    forecast = Forecast(Estimate.of(Training(small_pack(tmp_path), RECIPE)), said.append)
    for _ in range(2 * (WARM_UP + TIMED)):
        forecast.step()
    (line,) = said
    assert line.endswith(" in all")


# --------------------------------------------------------------------------- pictures


def size_of(path: Path) -> tuple[int, int]:
    with Image.open(path) as image:
        return image.size


def test_the_sheet_shows_the_films_of_the_first_steps_as_they_are_trained_on(tmp_path: Path) -> None:
    recipe = RECIPE.with_changes(rotation=10.0, noise=5.0)
    training = Training(small_pack(tmp_path), recipe)
    seen: list[torch.Tensor] = []
    sheet = training.varied_films(12)
    training.state.classifier.register_forward_pre_hook(lambda _module, given: seen.append(given[0]))
    next(training.epochs())
    np.testing.assert_array_equal(sheet, torch.cat(seen)[:12, 0].numpy())
    plot_augmented_films(sheet, tmp_path)
    assert size_of(tmp_path / AUGMENTED)[0] > size_of(tmp_path / AUGMENTED)[1]


@pytest.mark.parametrize("network", NETWORKS)
def test_every_networks_first_filters_are_drawn(tmp_path: Path, network: str) -> None:
    classifier = build(network, Preprocessing(64, 64, Resize.SQUEEZE, 0.5, 0.2), started=False)
    plot_filters(classifier.state_dict(), tmp_path)
    assert min(size_of(tmp_path / FILTERS)) > 100
