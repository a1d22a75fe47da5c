"""``import chestxray``: what the command line does, in the same words, from Python."""

from __future__ import annotations

import ast
import inspect
import json
import os
import re
import subprocess
import sys
import sysconfig
from collections.abc import Callable, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any, Final

import numpy as np
import pytest

import chestxray
from chestxray.cli import chestxray_group, main
from chestxray.data.pack import IMAGES
from chestxray.inference.bundle import GRAPH
from chestxray.schema import Film
from chestxray.training.run_folder import BEST_WEIGHTS

NAMES = [name for name in chestxray.__all__ if name != "__version__"]


def declared() -> dict[str, tuple[str, str]]:
    """What the stub tells type checkers: module and name there, by public name."""
    tree = ast.parse(Path(chestxray.__file__).with_suffix(".pyi").read_text(encoding="utf-8"))
    imports = [node for node in tree.body if isinstance(node, ast.ImportFrom)]
    return {alias.name: (f"chestxray.{node.module}", alias.name) for node in imports for alias in node.names}


# --------------------------------------------------------------------------- names


def test_type_checkers_know_every_name_and_no_other() -> None:
    assert sorted(declared()) == sorted(NAMES)
    assert len(set(NAMES)) == len(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_a_name_is_the_object_that_lives_in_its_stage(name: str) -> None:
    module, there = declared()[name]
    assert getattr(chestxray, name) is getattr(import_module(module), there)


@pytest.mark.parametrize("name", NAMES)
def test_a_name_says_what_it_is(name: str) -> None:
    found = getattr(chestxray, name)
    text = inspect.getdoc(found) or ""
    assert text.split("\n")[0].endswith((".", ".``")) or ":" in text
    if inspect.isfunction(found):
        for argument in inspect.signature(found).parameters.values():
            assert argument.annotation is not inspect.Parameter.empty, f"{name}({argument.name})"


def test_every_verb_of_the_command_line_is_a_function_of_its_name() -> None:
    verbs = set(chestxray_group.commands) - {"aws", "dicom"}  # groups of verbs of their own
    assert {name for name in verbs if inspect.isfunction(getattr(chestxray, name, None))} == verbs


def test_dir_lists_what_there_is() -> None:
    assert set(chestxray.__all__) <= set(dir(chestxray))


@pytest.mark.parametrize("wrong", ["trian", "evaluat", "Predicton"])
def test_an_unknown_name_is_an_attribute_error_that_names_it(wrong: str) -> None:
    with pytest.raises(AttributeError, match=wrong):
        getattr(chestxray, wrong)


def test_importing_the_package_loads_nothing_heavy() -> None:
    code = (
        "import sys, chestxray; dir(chestxray)\n"
        "third_party = {name.partition('.')[0] for name in sys.modules} - set(sys.stdlib_module_names)\n"
        "print(sorted(name for name in third_party if not name.startswith('_')))"
    )
    done = subprocess.run(
        [sys.executable, "-S", "-c", code], capture_output=True, text=True, check=False, env=on_path()
    )
    assert done.stdout.strip() == "['chestxray', 'lazy_loader']", done.stderr


def on_path() -> dict[str, str]:
    """An environment in which the package is found without site-packages, whose own start-up loads things."""
    return {"PYTHONPATH": os.pathsep.join((str(Path(chestxray.__file__).parents[1]), sysconfig.get_path("purelib")))}


# --------------------------------------------------------------------------- one pipeline, twice

EPOCHS = 1


@pytest.fixture(scope="module")
def films(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of small synthetic films."""
    folder = tmp_path_factory.mktemp("api") / "films"
    settings = chestxray.SyntheticSettings(patients=48, films_per_patient=2, min_width=160, max_width=240, faults=True)
    chestxray.write_synthetic_films(str(folder), settings, workers=1)
    return folder


@pytest.fixture(scope="module")
def by_python(films: Path) -> Path:
    """Every stage by its function, places given as text."""
    out = films.parent / "python"
    out.mkdir()
    rows = chestxray.collect(str(films))
    chestxray.write_manifest(rows, f"{out}/manifest.csv")
    cleaned = chestxray.clean(rows, workers=1)
    chestxray.write_manifest(cleaned, f"{out}/clean.csv")
    splits = chestxray.split(cleaned, chestxray.SplitSettings(seed=4))
    chestxray.write_manifest(splits, f"{out}/split.csv")
    chestxray.pack(splits, f"{out}/pack", resize="letterbox", workers=1)
    recipe = chestxray.recipe("default", epochs=EPOCHS)
    chestxray.train(f"{out}/pack", f"{out}/training", recipe)
    chestxray.export(f"{out}/training", f"{out}/bundle", "ours")
    chestxray.evaluate(f"{out}/bundle", f"{out}/split.csv", f"{out}/report", workers=1)
    chestxray.calibrate(f"{out}/bundle", f"{out}/split.csv", f"{out}/local", split="val", workers=1)
    chestxray.batch(films, f"{out}/scores.csv", f"{out}/bundle", workers=1)
    chestxray.evaluate_scores(f"{out}/scores.csv", f"{out}/of_scores", threshold=0.4)
    return out


@pytest.fixture(scope="module")
def by_command(films: Path) -> Path:
    """Every stage by its verb."""
    out = films.parent / "command"
    out.mkdir()
    recipe = out / "recipe.toml"
    recipe.write_text(chestxray.recipe("default", epochs=EPOCHS).to_toml())
    for verb in (
        ("collect", films, "--out", out / "manifest.csv"),
        ("clean", out / "manifest.csv", "--out", out / "clean.csv", "--workers", 1),
        ("split", out / "clean.csv", "--out", out / "split.csv", "--seed", 4),
        ("pack", out / "split.csv", "--out", out / "pack", "--resize", "letterbox", "--workers", 1),
        ("train", out / "pack", "--out", out / "training", "--recipe", recipe),
        ("export", out / "training", "--out", out / "bundle", "--name", "ours"),
        ("evaluate", out / "bundle", out / "split.csv", "--out", out / "report", "--workers", 1),
        ("calibrate", out / "bundle", out / "split.csv", "--out", out / "local", "--split", "val", "--workers", 1),
        ("batch", films, "--out", out / "scores.csv", "--bundle", out / "bundle", "--workers", 1),
        ("evaluate", "--scores", out / "scores.csv", "--out", out / "of_scores", "--threshold", 0.4),
    ):
        with pytest.raises(SystemExit) as end:
            main([*map(str, verb), "--json"])
        assert not end.value.code, verb
    return out


def as_bytes(path: Path) -> bytes:
    return path.read_bytes()


def assessment(path: Path) -> Any:
    return json.loads(path.read_text())["assessment"]


def without_its_time(path: Path) -> Any:
    return {name: value for name, value in json.loads(path.read_text()).items() if name not in {"created", "files"}}


COMPARED: dict[str, Callable[[Path], Any]] = {
    "manifest.csv": as_bytes,
    "clean.csv": as_bytes,
    "split.csv": as_bytes,
    f"pack/{IMAGES}": as_bytes,
    "pack/pack.json": as_bytes,
    f"training/{BEST_WEIGHTS}": as_bytes,
    f"bundle/{GRAPH}": as_bytes,
    "bundle/bundle.json": without_its_time,
    "report/report.json": assessment,
    "report/scores.csv": as_bytes,
    "local/bundle.json": without_its_time,
    "scores.csv": as_bytes,
    "of_scores/report.json": assessment,
}


@pytest.mark.slow
def test_each_function_writes_what_its_verb_writes(by_python: Path, by_command: Path) -> None:
    differ = [file for file, read in COMPARED.items() if read(by_python / file) != read(by_command / file)]
    assert differ == []


# --------------------------------------------------------------------------- answers


def test_predict_answers_as_the_verb_does(
    bundle: Path, film_paths: Sequence[Path], capsys: pytest.CaptureFixture[str]
) -> None:
    film = film_paths[0]
    with pytest.raises(SystemExit):
        main(["predict", str(film), "--bundle", str(bundle), "--operating-point", "screening", "--json"])
    (expected,) = json.loads(capsys.readouterr().out)["predictions"]
    answer = chestxray.predict(film, bundle, operating_point="screening")
    assert json.loads(answer.to_json()) == {name: value for name, value in expected.items() if name != "file"}
    assert chestxray.predict(film.read_bytes(), str(bundle), operating_point="screening") == answer


def test_several_runs_given_as_text_answer_as_one_bundle(training: Path, bundle: Path, tmp_path: Path) -> None:
    two = chestxray.export([str(training), training], f"{tmp_path}/two")
    assert two.parameters == 2 * chestxray.load(bundle).info.parameters


def test_a_batch_of_which_nothing_can_be_classified_is_an_error_and_a_table(bundle: Path, tmp_path: Path) -> None:
    (tmp_path / "films").mkdir()
    (tmp_path / "films" / "letter.jpeg").write_text("Dear colleague")
    with pytest.raises(chestxray.ChestXrayError, match="none of its films could be classified"):
        chestxray.batch(tmp_path / "films", tmp_path / "scores.csv", bundle)
    assert "letter.jpeg" in (tmp_path / "scores.csv").read_text()


def test_an_engine_that_does_not_exist_is_refused(synthetic_films: Path, tmp_path: Path) -> None:
    with pytest.raises(chestxray.ChestXrayError, match="no engine 'spark'; there are local, ray"):
        chestxray.batch(synthetic_films, tmp_path / "scores.csv", engine="spark")


def test_a_recipe_is_given_by_name_by_file_or_as_it_is(tmp_path: Path) -> None:
    small = chestxray.recipe("small", epochs=3, rotation=0.0)
    (tmp_path / "mine.toml").write_text(small.to_toml())
    assert chestxray.recipe(tmp_path / "mine.toml") == chestxray.recipe(small) == small
    assert (small.epochs, small.augmentation.rotation) == (3, 0.0)
    with pytest.raises(chestxray.ChestXrayError, match="the nearest is 'epochs'"):
        chestxray.recipe("small", epoch=3)


# --------------------------------------------------------------------------- everything at once


@pytest.mark.slow
def test_run_leaves_what_its_stages_leave_and_says_what_it_measured(films: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    recipe = chestxray.recipe("default", epochs=EPOCHS)
    result = chestxray.run(films, str(out), chestxray.RunSettings(recipe, workers=1))
    assert (result.bundle, result.report) == (out / "bundle", out / "report" / "index.html")
    assert json.loads((out / "report" / "report.json").read_text())["assessment"] == result.assessment.to_json()
    assert list(result.seconds) == ["collect", "clean", "split", "audit", "pack", "train", "export", "evaluate"]
    assert chestxray.Pack.open(str(out / "pack")).images.shape[1:] == (112, 160)  # the network's own size


def test_the_functions_say_nothing_unless_they_are_given_someone_to_tell(
    synthetic_rows: Sequence[chestxray.Film], film_paths: Sequence[Path], capfd: pytest.CaptureFixture[str]
) -> None:
    chestxray.clean(synthetic_rows[:10], workers=1)
    chestxray.predict(film_paths[0])
    assert capfd.readouterr() == ("", "")


FILM: Final = Film("film.png", label="normal", split="train")


@pytest.mark.parametrize(
    "call",
    [
        lambda: chestxray.SplitSettings(test="x"),
        lambda: chestxray.SplitSettings(test=True),
        lambda: chestxray.SplitSettings(validation=None),
        lambda: chestxray.SplitSettings(seed="1"),
        lambda: chestxray.SplitSettings(seed=1.5),
        lambda: chestxray.SyntheticSettings(patients="24"),
        lambda: chestxray.SyntheticSettings(patients=float("nan")),
        lambda: chestxray.SyntheticSettings(prevalence="0.5"),
        lambda: chestxray.pack([FILM], "pack", size="112x160"),
        lambda: chestxray.pack([FILM], "pack", size=(112,)),
        lambda: chestxray.pack([FILM], "pack", size=5),
        lambda: chestxray.pack([FILM], "pack", size=(112.5, 160)),
        lambda: chestxray.pack("split.csv", "pack"),
        lambda: chestxray.clean("manifest.csv"),
        lambda: chestxray.clean([FILM, None]),
        lambda: chestxray.split(Path("clean.csv")),
        lambda: chestxray.describe(None),
        lambda: chestxray.audit(3),
        lambda: chestxray.quarantine("split.csv", "rejected"),
        lambda: chestxray.export([], "bundle"),
        lambda: chestxray.predict("gone.png"),
        lambda: chestxray.predict(Path()),
        lambda: chestxray.plot_scaling(FILM),
        lambda: chestxray.plot_films(None),
        lambda: chestxray.plot_distribution("manifest.csv"),
        lambda: chestxray.pack([FILM], "pack", size=()),
        lambda: chestxray.write_manifest([None], "manifest.csv"),
        lambda: chestxray.write_data_report([None], "report", "title"),
        lambda: chestxray.clean([FILM], seen=""),
    ],
)
def test_a_value_of_a_wrong_kind_is_one_of_our_errors_before_anything_is_written(
    call: Callable[[], object], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(chestxray.ChestXrayError):
        call()
    assert list(tmp_path.iterdir()) == []


FUNCTIONS: Final = [name for name in NAMES if inspect.isfunction(getattr(chestxray, name))]
CHECKED_BY_THE_STAGE: Final = frozenset(
    ("Any", "Resize", "Levels", "Film", "bytes", "Callable", "Sequence[Film]", "Iterable[Film]", "tuple[int, int]")
) | {"Overlap", "Sequence[LeftOut]", "StageReporter"}


def kinds_of(argument: inspect.Parameter) -> list[str]:
    """The kinds of value that an annotation names."""
    return str(argument.annotation).partition("Callable[")[0].replace("Path | str", "StrPath").strip().split(" | ")


@pytest.mark.parametrize("name", FUNCTIONS)
def test_every_function_refuses_a_wrong_type_before_it_does_anything(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    function = getattr(chestxray, name)
    arguments = inspect.signature(function).parameters
    for argument in arguments.values():
        if CHECKED_BY_THE_STAGE.isdisjoint(kinds_of(argument)) and kinds_of(argument) != [""]:
            given = {one.name: "film.png" for one in arguments.values() if one.default is one.empty}
            for wrong in (object(), float("nan"), b"film.png", -1, np.arange(2), "a\0b"):
                if isinstance(wrong, str) and "StrPath" not in kinds_of(argument):
                    continue
                with pytest.raises(chestxray.ChestXrayError, match="is "):
                    function(**{**given, argument.name: wrong})
    assert list(tmp_path.iterdir()) == []


def test_a_film_that_cannot_be_opened_is_named_with_the_cause_and_is_an_os_error_too(tmp_path: Path) -> None:
    for path, cause in ((tmp_path / "gone.png", "No such file or directory"), (tmp_path, "is a folder")):
        with pytest.raises(OSError, match=re.escape(f"{path}: cannot be opened ({cause}). Give the path")) as caught:
            chestxray.predict(path)
        assert isinstance(caught.value, chestxray.ChestXrayError)
