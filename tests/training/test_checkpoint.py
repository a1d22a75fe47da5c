"""Killed, stopped, damaged, out of room: what becomes of a training run, and that it ends with the same weights."""

from __future__ import annotations

import dataclasses
import json
import multiprocessing
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from chestxray.errors import OutputExists, OutputUnwritable, RunInvalid, TrainingDiverged, TrainingInterrupted
from chestxray.files import sha256_of_file
from chestxray.training.checkpoint import Checkpoint, CheckpointFolder, Origin, TrainSnapshot
from chestxray.training.config import Augmentation, Recipe
from chestxray.training.run import CHECKPOINTS, RunOptions, train_run
from chestxray.training.run_folder import (
    BEST_WEIGHTS,
    FINISHED,
    LAST_WEIGHTS,
    METRICS_JSONL,
    RUN_FILES,
    VALIDATION,
    RunInfo,
)
from chestxray.training.train_state import EpochRecord
from chestxray.training.trainer import Training
from packs import small_pack, write_small_pack

RECIPE = Recipe(
    epochs=3,
    batch_size=8,
    learning_rate=1e-3,
    precision="float32",
    dropout=0.3,
    average_weights=0.4,
    augmentation=Augmentation(rotation=10, scale=0.2, shift=0.05, flip=0.5, gamma=0.3, resolution=0.5, noise=5),
)
SAME = (BEST_WEIGHTS, LAST_WEIGHTS, VALIDATION)  # what an interruption must not change, byte for byte
TIMES = ("seconds", "films_per_second")


class Stop(Exception):
    """Stands for whatever ends a process between two steps."""


def stop_after(steps: int) -> Callable[[int, int], None]:
    taken = 0

    def on_progress(_done: int, _total: int) -> None:
        nonlocal taken
        taken += 1
        if taken == steps:
            raise Stop

    return on_progress


@pytest.fixture(scope="module")
def pack(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_small_pack(tmp_path_factory.mktemp("pack") / "pack")


@pytest.fixture(scope="module")
def undisturbed(pack: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("undisturbed") / "run"
    train_run(pack, folder, RECIPE)
    return folder


def figures(folder: Path) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in (folder / METRICS_JSONL).read_text().splitlines()]
    return [{name: value for name, value in line.items() if name not in TIMES} for line in lines]


def assert_same(folder: Path, undisturbed: Path) -> None:
    for name in SAME:
        assert sha256_of_file(folder / name) == sha256_of_file(undisturbed / name), name
    assert figures(folder) == figures(undisturbed)
    assert {path.name for path in folder.iterdir()} == set(RUN_FILES)


# --------------------------------------------------------------------------- going on


SGD, RESIDUAL = {"optimiser": "sgd"}, {"network": "residual", "first_size": 0.5}


@cache
def state_at_the_end(pack: Path, recipe: Recipe) -> TrainSnapshot:
    """Of a training that nothing interrupted."""
    training = Training(small_pack(pack), recipe)
    list(training.epochs())
    return training.snapshot()


@pytest.mark.parametrize(
    ("changes", "steps"),  # an epoch has 6
    [
        *(({"optimiser": "adamw"}, steps) for steps in (1, 5, 6, 7, 17, 18)),
        (SGD, 6),
        (SGD, 17),
        (RESIDUAL, 6),
        (RESIDUAL, 17),
    ],
    ids=str,
)
def test_a_training_taken_up_after_any_step_is_the_same_training(
    pack: Path, steps: int, changes: dict[str, Any]
) -> None:
    recipe = RECIPE.with_changes(**changes)
    opened = small_pack(pack)
    first, second = Training(opened, recipe), Training(opened, recipe)
    with pytest.raises(Stop):
        list(first.epochs(stop_after(steps)))
    second.restore(first.snapshot())
    list(second.epochs())
    expected, found = state_at_the_end(pack, recipe), second.snapshot()
    assert expected.tensors.keys() == found.tensors.keys()
    assert all(torch.equal(expected.tensors[name], found.tensors[name]) for name in expected.tensors)


def test_a_checkpoint_read_from_its_files_is_the_same_checkpoint(pack: Path) -> None:
    opened = small_pack(pack)
    training = Training(opened, RECIPE)
    with pytest.raises(Stop):
        list(training.epochs(stop_after(8)))
    written = Checkpoint(Origin.of(opened, RECIPE), training.snapshot(), None, 1.5)
    read = Checkpoint.from_files(*written.to_files())
    assert (read.origin, read.seconds, read.best) == (written.origin, written.seconds, None)
    assert read.state.records == written.state.records
    assert (read.state.steps_taken, read.state.summed_loss) == (written.state.steps_taken, written.state.summed_loss)
    assert all(torch.equal(read.state.tensors[name], tensor) for name, tensor in written.state.tensors.items())


def before_there_were(fields: tuple[str, ...], recipe: dict[str, Any]) -> dict[str, Any]:
    """A recipe as a version wrote it that did not have those fields yet."""
    inner = {name: value for name, value in recipe["augmentation"].items() if name not in fields}
    return {name: value for name, value in recipe.items() if name not in fields} | {"augmentation": inner}


def test_what_an_earlier_version_left_is_gone_on_with(pack: Path, undisturbed: Path, tmp_path: Path) -> None:
    opened, new = small_pack(pack), ("first_size", "distillation", "sharpen", "unsharp")
    training, origin = Training(opened, RECIPE), Origin.of(opened, RECIPE)
    old = dataclasses.replace(origin, recipe=before_there_were(new, dict(origin.recipe)))
    assert Checkpoint.from_files(*Checkpoint(old, training.snapshot(), None, 1.5).to_files()).origin == origin

    finished = shutil.copytree(undisturbed, tmp_path / "run")
    written = json.loads((finished / "run.json").read_text())
    written["recipe"] = before_there_were(new, written["recipe"])
    (finished / "run.json").write_text(json.dumps(written))
    said: list[str] = []
    train_run(pack, finished, RECIPE, log=said.append)
    assert "this run is finished" in said[0]
    assert RunInfo.read(finished) == RunInfo.read(undisturbed)


LONGEST = 2.0  # seconds that a process lives before it is killed: about what the steps and epochs take


def trained(pack: Path, out: Path, every: float) -> None:
    """What the killed processes run."""
    torch.set_num_threads(1)
    train_run(pack, out, RECIPE, options=RunOptions(every=every))


def killed_and_finished(pack: Path, out: Path, rng: np.random.Generator, kills: int) -> int:
    """Start a run again and again, each time killed at some moment, and once more to its end. Returns the kills."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["chestxray.training.run", "torch._dynamo", "matplotlib.backends.backend_agg"])
    for done in range(kills + 1):
        # Each step written, or each epoch alone: the one is mostly killed while it writes, the other while it trains.
        process = context.Process(target=trained, args=(pack, out, float(rng.choice([0.0, 1e9]))))
        process.start()
        process.join(rng.uniform(0.0, LONGEST) if done < kills else None)
        if not process.is_alive():
            assert process.exitcode == 0
            return done
        process.kill()
        process.join()
    raise AssertionError("unreachable: the last one is waited for")


@pytest.mark.slow
def test_a_run_that_is_killed_ten_times_ends_with_the_weights_of_one_that_was_not(
    pack: Path, undisturbed: Path, tmp_path: Path
) -> None:
    assert killed_and_finished(pack, tmp_path / "run", np.random.default_rng(4), 10) > 0
    assert_same(tmp_path / "run", undisturbed)


@pytest.mark.soak
@pytest.mark.timeout(1800)
def test_two_hundred_kills_change_nothing(pack: Path, undisturbed: Path, tmp_path: Path) -> None:
    rng, kills, run = np.random.default_rng(200), 0, 0
    while kills < 200:
        run += 1
        kills += killed_and_finished(pack, tmp_path / f"{run}", rng, min(25, 200 - kills))
        assert_same(tmp_path / f"{run}", undisturbed)


# --------------------------------------------------------------------------- damage


@pytest.fixture
def stopped(pack: Path, tmp_path: Path) -> Path:
    """A run that ended between two steps of its second epoch, with a checkpoint of each step."""
    with pytest.raises(Stop):
        train_run(pack, tmp_path / "run", RECIPE, options=RunOptions(every=0.0), on_progress=stop_after(9))
    return tmp_path / "run"


def cut(data: bytes) -> bytes:
    return data[: len(data) // 2]


def flipped(data: bytes) -> bytes:
    return data[:-1] + bytes([data[-1] ^ 1])


def with_another_loss(data: bytes) -> bytes:
    return data.replace(b'"summed_loss": ', b'"summed_loss": 1')


@pytest.mark.parametrize(
    ("kind", "damage"),
    [("safetensors", cut), ("safetensors", flipped), ("json", cut), ("json", with_another_loss)],
)
def test_a_torn_or_edited_checkpoint_is_passed_over_for_the_one_before(
    pack: Path, stopped: Path, undisturbed: Path, kind: str, damage: Callable[[bytes], bytes]
) -> None:
    latest = max((stopped / CHECKPOINTS).glob(f"*.{kind}"))
    before = latest.read_bytes()
    latest.write_bytes(damage(before))
    assert latest.read_bytes() != before
    said: list[str] = []
    train_run(pack, stopped, RECIPE, log=said.append)
    assert "not a whole checkpoint" in said[0]
    assert said[0].endswith("It is skipped")
    assert "resumes after step 7 of 18" in said[1]
    assert_same(stopped, undisturbed)


def test_where_no_checkpoint_is_whole_nothing_is_trained_unasked(pack: Path, stopped: Path, undisturbed: Path) -> None:
    for path in (stopped / CHECKPOINTS).glob("*.safetensors"):
        path.write_bytes(cut(path.read_bytes()))
    with pytest.raises(RunInvalid, match="no checkpoint is whole. Train from the beginning with --restart"):
        train_run(pack, stopped, RECIPE)
    train_run(pack, stopped, RECIPE, options=RunOptions(restart=True))
    assert_same(stopped, undisturbed)


def test_two_checkpoints_are_kept_and_none_once_the_run_is_finished(pack: Path, stopped: Path) -> None:
    assert len(list((stopped / CHECKPOINTS).glob("*.json"))) == 2
    assert len(list((stopped / CHECKPOINTS).iterdir())) == 4
    train_run(pack, stopped, RECIPE)
    assert not (stopped / CHECKPOINTS).exists()


def test_checkpoints_elsewhere_are_enough_where_the_run_itself_is_lost(
    pack: Path, undisturbed: Path, tmp_path: Path
) -> None:
    elsewhere = tmp_path / "checkpoints"
    elsewhere.mkdir()
    (elsewhere / "notes.txt").write_text("mine")
    with pytest.raises(Stop):
        train_run(pack, tmp_path / "lost", RECIPE, options=RunOptions(elsewhere, every=0.0), on_progress=stop_after(14))
    train_run(pack, tmp_path / "run", RECIPE, options=RunOptions(elsewhere))
    assert_same(tmp_path / "run", undisturbed)
    assert [path.name for path in elsewhere.iterdir()] == ["notes.txt"]


# --------------------------------------------------------------------------- the same command, another command


@pytest.mark.slow
def test_the_same_command_on_a_finished_run_trains_nothing_and_says_so(pack: Path, tmp_path: Path) -> None:
    first = train_run(pack, tmp_path / "run", RECIPE)
    before = {path.name: (path.read_bytes(), path.stat().st_mtime_ns) for path in (tmp_path / "run").iterdir()}
    said: list[str] = []
    again = train_run(pack, tmp_path / "run", RECIPE, log=said.append)
    assert {p.name: (p.read_bytes(), p.stat().st_mtime_ns) for p in (tmp_path / "run").iterdir()} == before
    assert (again.was_there, again.info, again.records) == (True, first.info, first.records)
    assert said == [
        f"{tmp_path / 'run'}: this run is finished, and training again would give the same. Start again with --restart"
    ]
    assert not train_run(pack, tmp_path / "run", RECIPE, options=RunOptions(restart=True)).was_there


def test_a_finished_run_that_was_damaged_since_is_not_called_finished(pack: Path, tmp_path: Path) -> None:
    train_run(pack, tmp_path / "run", RECIPE.with_changes(epochs=1))
    (tmp_path / "run" / BEST_WEIGHTS).write_bytes(b"")
    with pytest.raises(RunInvalid, match="the file was changed or damaged"):
        train_run(pack, tmp_path / "run", RECIPE.with_changes(epochs=1))


def test_checkpoints_of_another_recipe_or_pack_are_refused_with_what_differs(
    pack: Path, stopped: Path, undisturbed: Path, tmp_path: Path
) -> None:
    elsewhere = stopped / CHECKPOINTS
    with pytest.raises(OutputExists, match=r"checkpoints: holds another run: its recipe has seed = 0, this one 5\."):
        train_run(pack, tmp_path / "other", RECIPE.with_changes(seed=5), options=RunOptions(elsewhere))
    other = write_small_pack(tmp_path / "pack", contrast=20.0)
    with pytest.raises(OutputExists, match="holds another run: it was trained on another pack"):
        train_run(other, tmp_path / "other", RECIPE, options=RunOptions(elsewhere))
    train_run(pack, stopped, RECIPE)
    assert_same(stopped, undisturbed)


# --------------------------------------------------------------------------- asked to stop


def command(*arguments: object) -> list[str]:
    return [str(Path(sys.executable).with_name("chestxray")), "train", *map(str, arguments)]


@pytest.fixture(scope="module")
def recipe_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("recipe") / "recipe.toml"
    path.write_text(RECIPE.with_changes(epochs=40).to_toml())
    return path


@pytest.mark.parametrize(
    ("number", "status"), [(signal.SIGTERM, 143), pytest.param(signal.SIGINT, 130, marks=pytest.mark.slow)]
)
def test_a_signal_ends_the_step_writes_a_checkpoint_and_leaves_by_its_own_status(
    pack: Path, recipe_file: Path, tmp_path: Path, number: signal.Signals, status: int
) -> None:
    arguments = (pack, "--out", tmp_path / "run", "--recipe", recipe_file)
    process = subprocess.Popen(command(*arguments), stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    metrics = tmp_path / "run" / METRICS_JSONL
    while process.poll() is None and not (metrics.is_file() and metrics.read_text()):
        time.sleep(0.02)
    process.send_signal(number)
    out, err = process.communicate(timeout=120)
    assert process.returncode == status, err
    last = err.strip().splitlines()[-1]
    assert last.startswith(f"TrainingInterrupted: {tmp_path / 'run'}: stopped on {number.name} after step ")
    assert last.endswith(" of 240; a checkpoint is written. The same command resumes")
    assert out == ""
    assert RunInfo.read(tmp_path / "run").state == "training"
    checkpoint = CheckpointFolder(tmp_path / "run" / CHECKPOINTS).latest(pytest.fail)
    assert checkpoint is not None
    steps = 6 * len(checkpoint.state.records) + checkpoint.state.steps_taken
    assert f"after step {steps} of" in last


def test_a_stopped_run_goes_on_from_the_very_step(pack: Path, undisturbed: Path, tmp_path: Path) -> None:
    def ask(done: int, _total: int) -> None:
        if done == 24:
            signal.raise_signal(signal.SIGTERM)

    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(TrainingInterrupted, match="stopped on SIGTERM after step 3 of 18") as interrupted:
        train_run(pack, tmp_path / "run", RECIPE, on_progress=ask)
    assert interrupted.value.exit_status == 143
    assert signal.getsignal(signal.SIGTERM) is before
    said: list[str] = []
    train_run(pack, tmp_path / "run", RECIPE, log=said.append)
    assert "resumes after step 3 of 18" in said[0]
    assert_same(tmp_path / "run", undisturbed)


def test_a_request_during_the_last_evaluating_lets_the_run_finish(pack: Path, tmp_path: Path) -> None:
    def ask(record: EpochRecord) -> None:
        if record.epoch == record.epochs:
            signal.raise_signal(signal.SIGTERM)

    assert train_run(pack, tmp_path / "run", RECIPE, on_epoch=ask).info.state == FINISHED


# --------------------------------------------------------------------------- no room


@pytest.mark.slow
def test_a_full_disk_is_one_line_and_the_last_checkpoint_stays(pack: Path, stopped: Path, undisturbed: Path) -> None:
    recipe = stopped / "recipe.toml"
    limited = ["bash", "-c", 'ulimit -f 1000; exec "$@"', "bash"]  # blocks of 1024 bytes; a checkpoint is larger
    before = sorted((stopped / CHECKPOINTS).iterdir())
    done = subprocess.run(
        [*limited, *command(pack, "--out", stopped, "--recipe", recipe)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    assert done.stderr.strip().splitlines()[-1].startswith("OutputUnwritable: ")
    assert "cannot be written (File too large). Make room" in done.stderr
    assert "Traceback" not in done.stderr
    assert sorted((stopped / CHECKPOINTS).iterdir()) == before
    train_run(pack, stopped, RECIPE)
    assert_same(stopped, undisturbed)


def test_a_folder_that_cannot_be_written_is_found_before_anything_is_trained(pack: Path, tmp_path: Path) -> None:
    steps: list[int] = []
    for options, out in ((RunOptions(Path("/proc/checkpoints")), tmp_path / "run"), (RunOptions(), Path("/proc/run"))):
        with pytest.raises(OutputUnwritable, match=r"/proc/\w+.*: cannot be written"):
            train_run(pack, out, RECIPE, options=options, on_progress=lambda done, _total: steps.append(done))
    assert steps == []


# --------------------------------------------------------------------------- a loss that is none


def test_a_loss_that_is_none_names_the_films_of_the_batch(pack: Path) -> None:
    recipe = RECIPE.with_changes(optimiser="sgd", learning_rate=100.0, schedule="constant", weight_decay=10.0)
    opened = small_pack(pack)
    with pytest.raises(TrainingDiverged) as diverged:
        list(Training(opened, recipe.with_changes(epochs=20)).epochs())
    named = str(diverged.value).split("films of the batch: ")[1].split(", ")
    assert len(named) == 8
    assert set(named) <= {film.path for film in opened.films if film.split == "train"}
