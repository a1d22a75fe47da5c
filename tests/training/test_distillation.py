"""A student learns from its labels and from a teacher's answers to the very films that it sees."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from test_distributed import torchrun
from torch import Generator

from chestxray.data.pack import Pack, labels_of
from chestxray.errors import OutputExists, RunInvalid, UsageError
from chestxray.training.config import Augmentation, Recipe
from chestxray.training.ensemble import teacher_of
from chestxray.training.export import export_run
from chestxray.training.run import RunOptions, train_run
from chestxray.training.run_folder import LAST_WEIGHTS, RunInfo, ValidationTable
from chestxray.training.trainer import Training
from packs import small_pack, write_small_pack
from typed import run, told

TEACHERS = Recipe(epochs=3, batch_size=8, learning_rate=1e-3, precision="float32", dropout=0.2)
STUDENTS = TEACHERS.with_changes(
    distillation=0.7, dropout=0.0, mixup=0.5, seed=3, augmentation=Augmentation(rotation=10, gamma=0.3)
)


@pytest.fixture(scope="module")
def pack(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_small_pack(tmp_path_factory.mktemp("pack") / "pack")


@pytest.fixture(scope="module")
def teachers(pack: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Two finished runs."""
    folder = tmp_path_factory.mktemp("teachers")
    return [train_run(pack, folder / str(seed), TEACHERS.with_changes(seed=seed)).folder for seed in (1, 2)]


def shares_by_hand(training: Training, films: torch.Tensor) -> np.ndarray:
    """The probabilities of the mean of the teachers' log-odds, by numpy."""
    assert training.state.teacher
    with torch.inference_mode():
        scores = np.stack([network(films).double().numpy() for network in training.state.teacher.networks])
    suspicion = 1.0 / (1.0 + np.exp(-(scores[..., 1] - scores[..., 0]).mean(axis=0)))
    return np.stack([1.0 - suspicion, suspicion], axis=1)


@pytest.mark.parametrize("distillation", [0.3, 0.7, 1.0])
def test_the_loss_is_the_cross_entropy_with_labels_and_teacher_in_their_shares(
    pack: Path, teachers: list[Path], distillation: float
) -> None:
    recipe = STUDENTS.with_changes(distillation=distillation, mixup=0.0)
    opened = Pack.open(pack)
    training = Training(opened, recipe, teacher=teacher_of(teachers, recipe, opened))
    batch = training.state.splits.training[:8]
    films = training.state.varied(batch, Generator().manual_seed(4))
    training.state.classifier.train()
    with torch.no_grad():
        scores = training.state.classifier(films).double().numpy()
    logs = scores - np.log(np.exp(scores).sum(axis=1, keepdims=True))
    targets = np.eye(2)[labels_of(opened.films)[batch]]
    target = (1.0 - distillation) * targets + distillation * shares_by_hand(training, films)
    expected = -(target * logs).sum(axis=1).mean()
    loss = training.state.train_step(batch, 1e-3, Generator().manual_seed(4))
    assert loss == pytest.approx(expected, rel=1e-4)


@pytest.mark.slow
def test_a_student_of_nothing_but_its_teacher_comes_to_agree_with_it(
    pack: Path, teachers: list[Path], tmp_path: Path
) -> None:
    """Agreement is measured on films that neither was trained on, and against a student of the labels alone."""
    alone = STUDENTS.with_changes(epochs=12, distillation=0.0, mixup=0.0)
    runs = {
        "alone": train_run(pack, tmp_path / "alone", alone),
        "taught": train_run(pack, tmp_path / "taught", alone.with_changes(distillation=1.0), teachers=teachers[:1]),
    }
    log_odds = {name: table_of(run.folder) for name, run in runs.items()}
    theirs = table_of(teachers[0])
    far = {name: np.abs(values - theirs).mean() for name, values in log_odds.items()}
    assert far["taught"] < far["alone"]


def table_of(run: Path) -> np.ndarray:
    info = RunInfo.read(run)
    return ValidationTable.read(run / "validation.csv", info.files["validation.csv"]).logits


@pytest.mark.slow
def test_a_taught_run_names_its_teachers_goes_on_with_them_and_with_no_others(
    pack: Path, teachers: list[Path], tmp_path: Path
) -> None:
    whole = train_run(pack, tmp_path / "whole", STUDENTS, teachers=teachers)
    assert list(whole.info.teachers) == [RunInfo.read(run).files["best.safetensors"] for run in teachers]

    class Stopped(Exception):
        pass

    def stop(_done: int, _all: int) -> None:
        stop.steps += 1
        if stop.steps == 9:
            raise Stopped

    stop.steps = 0
    with pytest.raises(Stopped):
        train_run(pack, tmp_path / "cut", STUDENTS, teachers=teachers, options=RunOptions(every=0.0), on_progress=stop)
    with pytest.raises(OutputExists, match="learnt from another teacher"):
        train_run(pack, tmp_path / "cut", STUDENTS, teachers=teachers[::-1])
    ended = train_run(pack, tmp_path / "cut", STUDENTS, teachers=teachers)
    assert (tmp_path / "cut" / LAST_WEIGHTS).read_bytes() == (tmp_path / "whole" / LAST_WEIGHTS).read_bytes()
    assert train_run(pack, tmp_path / "cut", STUDENTS, teachers=teachers).was_there
    assert ended.info.teachers == whole.info.teachers
    export_run(tmp_path / "cut", tmp_path / "bundle")
    assert "taught by 2 trained networks" in (tmp_path / "bundle" / "MODEL_CARD.md").read_text()


def test_a_teacher_and_a_recipe_that_asks_for_one_come_together(
    pack: Path, teachers: list[Path], tmp_path: Path
) -> None:
    with pytest.raises(UsageError, match="distillation = 0"):
        train_run(pack, tmp_path / "run", TEACHERS, teachers=teachers)
    with pytest.raises(UsageError, match="--teacher RUN"):
        train_run(pack, tmp_path / "run", STUDENTS)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(("taught", "plain"), [("distilled", "small"), ("default-distilled", "default")])
def test_a_shipped_recipe_with_a_teacher_is_the_plain_one_otherwise(taught: str, plain: str) -> None:
    recipe, without = Recipe.shipped(taught), Recipe.shipped(plain)
    assert recipe.distillation
    smoothing, first = without.label_smoothing, without.first_size
    assert recipe.with_changes(distillation=0.0, label_smoothing=smoothing, first_size=first) == without


def test_a_teacher_of_other_films_is_refused(teachers: list[Path], tmp_path: Path) -> None:
    other = small_pack(tmp_path, training=(20, 20))
    with pytest.raises(RunInvalid, match="may know the films"):
        train_run(other.folder, tmp_path / "run", STUDENTS, teachers=teachers)


def test_the_command_line_teaches_and_an_unfinished_teacher_is_one_line(
    pack: Path, teachers: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = tmp_path / "recipe.toml"
    recipe.write_text(STUDENTS.with_changes(epochs=1).to_toml())
    train = ("train", pack, "--out", tmp_path / "run", "--recipe", recipe)
    taught = told(capsys, *train, "--teacher", teachers[0])
    assert (taught["exit"], len(taught["info"]["teachers"])) == (0, 1)
    assert run(*train, "--teacher", tmp_path) == 1
    said = capsys.readouterr().err
    assert "not a run" in said
    assert "Traceback" not in said


@pytest.mark.slow
def test_two_processes_teach_as_one_does(pack: Path, teachers: list[Path], tmp_path: Path) -> None:
    recipe = tmp_path / "recipe.toml"
    recipe.write_text(STUDENTS.with_changes(epochs=1, learning_rate=1e-4).to_toml())
    one = train_run(pack, tmp_path / "one", Recipe.read(recipe), teachers=teachers)
    given = ("train", pack, "--out", tmp_path / "two", "--recipe", recipe)
    done = torchrun(2, *given, *(word for run in teachers for word in ("--teacher", run)))
    assert done.returncode == 0, done.stderr
    assert table_of(tmp_path / "two") == pytest.approx(table_of(one.folder), abs=2e-3)
