"""The command line: verbs in order, one JSON document each, exit statuses that mean something, no traceback."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import click
import numpy as np
import pytest
from PIL import Image

from chestxray.cli import main
from chestxray.images.decode import decode
from chestxray.schema import NOTICE, read_manifest
from chestxray.training.config import shipped_recipes
from drawing import encoded, write_film

VERBS = (
    "collect",
    "clean",
    "split",
    "audit",
    "pack",
    "train",
    "blend",
    "evaluate",
    "export",
    "calibrate",
    "sign",
    "verify",
    "predict",
    "batch",
    "serve",
    "dicom",
    "key",
    "run",
    "doctor",
)


class Outcome(NamedTuple):
    status: int
    out: str
    err: str

    @property
    def document(self) -> Any:
        return json.loads(self.out)


Run = Callable[..., Outcome]


@pytest.fixture
def chestxray(capsys: pytest.CaptureFixture[str]) -> Run:
    """Run the command line in this process."""

    def run(*arguments: object) -> Outcome:
        with pytest.raises(SystemExit) as end:
            main([str(argument) for argument in arguments])
        return Outcome(int(end.value.code or 0), *capsys.readouterr())

    return run


def test_help_lists_the_verbs_in_the_order_of_the_pipeline(chestxray: Run) -> None:
    text = chestxray("--help").out
    listed = text.split("Commands:")[1].split("\n\n")[0]
    assert tuple(line.split()[0] for line in listed.strip().splitlines()) == (*VERBS, "aws")  # a group of its own
    assert "Not a medical device" in text


@pytest.mark.parametrize(
    "verb", [verb for verb in VERBS if verb != "dicom"]
)  # a group, whose verbs have their own tests
def test_every_verb_and_every_option_has_help_and_json(chestxray: Run, verb: str) -> None:
    from chestxray.cli import chestxray_group

    outcome = chestxray(verb, "--help")
    assert outcome.status == 0
    assert "--json" in outcome.out
    command = chestxray_group.commands[verb]
    assert all(option.help for option in command.params if isinstance(option, click.Option))


def test_python_runs_the_package_as_the_command() -> None:
    done = [
        subprocess.run([*command, "--version"], capture_output=True, text=True, check=True).stdout
        for command in ([sys.executable, "-m", "chestxray"], [Path(sys.executable).with_name("chestxray")])
    ]
    assert done[0] == done[1]
    assert done[0].startswith("chestxray, version ")


def test_the_help_of_train_names_each_recipe_of_the_package(chestxray: Run) -> None:
    words = chestxray("train", "--help").out.replace(",", " ").split()
    assert set(shipped_recipes()) <= set(words)


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_is_printed_for_each_shell(chestxray: Run, shell: str) -> None:
    assert "_CHESTXRAY_COMPLETE" in chestxray("--completion", shell).out


@pytest.mark.parametrize(
    ("typed", "offered"),
    [
        ("ev", ["plain,evaluate"]),
        ("predict --bundle pneu", ["dir,pneu", "plain,pneumonia"]),
        ("predict --bundle pneumonia --operating-point s", ["plain,screening"]),
        ("predict --bundle nowhere --operating-point s", []),
        ("train pack --recipe tr", ["file,tr", "plain,transfer"]),
        ("train pack --network a", ["plain,alexnet5"]),
        ("train pack --device c", ["plain,cpu", "plain,cuda"]),
        ("audit split.csv --recipe tr", ["file,tr", "plain,transfer"]),
        ("audit split.csv --device c", ["plain,cpu", "plain,cuda"]),
        ("evaluate pneu", ["dir,pneu", "plain,pneumonia"]),
        ("predict --heat", ["plain,--heatmap"]),
    ],
)
def test_completion_offers_what_there_is(typed: str, offered: list[str]) -> None:
    words = {"COMP_WORDS": f"chestxray {typed}", "COMP_CWORD": str(len(typed.split()))}
    command = Path(sys.executable).with_name("chestxray")
    environment = {**os.environ, "_CHESTXRAY_COMPLETE": "bash_complete", **words}
    done = subprocess.run([command], env=environment, capture_output=True, text=True, check=True)
    assert (done.stdout.split(), done.stderr) == (offered, "")


def test_the_names_that_are_completed_are_those_of_the_networks() -> None:
    from chestxray.training.config import NETWORK_NAMES
    from chestxray.training.networks import NETWORKS

    assert tuple(NETWORKS) == NETWORK_NAMES


# --------------------------------------------------------------------------- each stage alone


def test_the_stages_follow_each_other_and_each_tells_people_and_machines(
    chestxray: Run, synthetic_films: Path, tmp_path: Path
) -> None:
    manifest, cleaned, splits, pack = (tmp_path / name for name in ("m.csv", "c.csv", "s.csv", "pack"))
    collected = chestxray("collect", synthetic_films, "--out", manifest, "--json")
    assert collected.status == 0
    assert collected.document["films"] == len(read_manifest(manifest))

    clean = chestxray("clean", manifest, "--out", cleaned, "--workers", 1)
    assert clean.status == 0
    assert "1 truncated" in clean.out
    assert json.loads((tmp_path / "c.json").read_text())["verdicts"]["truncated"] == 1

    split = chestxray("split", cleaned, "--out", splits, "--json")
    counts = split.document["splits"]
    assert set(counts) == {"train", "val", "test"}
    assert all(split["normal"] and split["pneumonia"] for split in counts.values())

    packed = chestxray("pack", splits, "--out", pack, "--size", "48x64", "--workers", 1, "--json")
    assert packed.document["preprocessing"]["height"] == 48
    assert packed.document["count"] == sum(split["normal"] + split["pneumonia"] for split in counts.values())


@pytest.mark.slow
def test_train_export_and_predict_follow_from_a_pack(
    chestxray: Run, pack: Path, film_paths: Sequence[Path], tmp_path: Path
) -> None:
    run, bundle = tmp_path / "training", tmp_path / "bundle"
    trained = chestxray("train", pack, "--out", run, "--epochs", 1, "--recipe", "default", "--json")
    assert trained.status == 0
    assert trained.document["info"]["state"] == "finished"
    assert {path.name for path in run.iterdir()} >= {"metrics.jsonl", "learning_curves.svg", "best.safetensors"}
    exported = chestxray("export", run, "--out", bundle, "--name", "tiny", "--json")
    assert exported.document["name"] == "tiny"
    answers = chestxray("predict", *film_paths[:2], "--bundle", bundle, "--heatmap", tmp_path / "maps", "--json")
    assert answers.status == 0
    for answer in answers.document["predictions"]:
        assert 0.0 <= answer["probability"] <= 1.0
        assert answer["model"] == "tiny"
        assert Path(answer["heatmap"]).read_bytes().startswith(b"\x89PNG")


def test_a_page_of_a_tiff_is_classified_as_the_film_that_it_holds(
    chestxray: Run, bundle: Path, film_paths: Sequence[Path], tmp_path: Path
) -> None:
    first, second = (Image.fromarray(decode(path.read_bytes(), path.name).pixels) for path in film_paths[:2])
    for name, pages in (("two.tif", [first, second]), ("alone.tif", [second])):
        pages[0].save(tmp_path / name, save_all=True, append_images=pages[1:])
    refused = chestxray("predict", tmp_path / "two.tif", "--bundle", bundle)
    assert refused.status == 1
    assert "the TIFF has 2 pages" in refused.out
    answers = [
        chestxray("predict", tmp_path / name, "--page", page, "--bundle", bundle, "--json").document["predictions"][0]
        for name, page in (("two.tif", 2), ("alone.tif", 1))
    ]
    assert answers[0]["probability"] == answers[1]["probability"]
    missing = chestxray("predict", tmp_path / "two.tif", "--page", 3, "--bundle", bundle)
    assert missing.status == 1
    assert "there is no page 3: the file has 2 pages" in missing.out


def test_heat_maps_of_films_of_one_name_lie_in_files_of_their_own(
    chestxray: Run, bundle: Path, film_paths: Sequence[Path], tmp_path: Path
) -> None:
    films = [tmp_path / name for name in ("a/x.jpeg", "b/x.jpeg", "b/X.JPG")]
    for film, source in zip(films, film_paths, strict=False):
        film.parent.mkdir(exist_ok=True)
        film.write_bytes(source.read_bytes())
    maps = tmp_path / "maps"

    def written(*arguments: Path | str) -> list[Path]:
        outcome = chestxray("predict", *arguments, "--bundle", bundle, "--heatmap", maps, "--json")
        return [Path(answer["heatmap"]) for answer in outcome.document["predictions"]]

    together = written(*films)
    assert [path.name for path in together] == ["x.heatmap.png", "b-x.heatmap.png", "X-2.heatmap.png"]
    kept = together[0].read_bytes()
    assert written(films[1]) == together[1:2]  # a film finds its own file again, and leaves the others alone
    assert together[0].read_bytes() == kept
    with Image.open(together[0]) as over, Image.open(written(films[0], "--layer")[0]) as layer:
        assert over.mode == "RGB"
        assert layer.mode == "RGBA"
    said = chestxray("predict", films[0], "--bundle", bundle, "--heatmap", maps, "--contours").out
    assert str(together[0]) in said
    refused = chestxray("predict", films[0], "--bundle", bundle, "--contours")
    assert refused.status == 2
    assert "give --heatmap" in refused.err


def test_predict_answers_the_good_films_and_exits_1_for_the_bad(
    chestxray: Run, bundle: Path, film_paths: Sequence[Path], tmp_path: Path
) -> None:
    text, blank = tmp_path / "text.jpeg", tmp_path / "blank.png"
    text.write_bytes(b"not a film")
    blank.write_bytes(encoded(np.full((100, 100), 3, np.uint8)))
    outcome = chestxray("predict", film_paths[0], text, blank, "--bundle", bundle)
    assert outcome.status == 1
    good, note, unreadable, refused, notice = outcome.out.strip().splitlines()
    assert "probability" in good
    assert note.startswith("  note: age not stated")
    assert "not a DICOM, JPEG, PNG, TIFF, " in unreadable
    assert "cannot classify: its grey levels are almost uniform" in refused
    assert notice == NOTICE


def test_predict_names_what_is_no_file_of_a_film(chestxray: Run, bundle: Path, tmp_path: Path) -> None:
    pipe = tmp_path / "pipe.jpeg"
    os.mkfifo(pipe)
    outcome = chestxray("predict", pipe, "--bundle", bundle)
    assert outcome.status == 1
    assert outcome.out.startswith(f"{pipe}: cannot be opened (is no regular file). Give the path")


def test_a_film_that_is_not_there_stops_predict_before_anything_runs(
    chestxray: Run, bundle: Path, film_paths: Sequence[Path], tmp_path: Path
) -> None:
    outcome = chestxray("predict", film_paths[0], tmp_path / "gone.png", "--bundle", bundle)
    assert outcome.status != 0
    assert outcome.out == ""
    assert "gone.png" in outcome.err


def test_batch_writes_a_row_a_film(chestxray: Run, bundle: Path, synthetic_films: Path, tmp_path: Path) -> None:
    out = tmp_path / "scores.csv"
    outcome = chestxray("batch", synthetic_films / "test", "--out", out, "--bundle", bundle, "--workers", 1, "--json")
    assert outcome.status == 0
    assert outcome.document["films"] == len(out.read_text().splitlines()) - 1 > 10


def test_a_batch_in_which_nothing_can_be_classified_exits_1(chestxray: Run, bundle: Path, tmp_path: Path) -> None:
    (tmp_path / "films").mkdir()
    (tmp_path / "films" / "a.png").write_bytes(b"")
    outcome = chestxray("batch", tmp_path / "films", "--out", tmp_path / "scores.csv", "--bundle", bundle)
    assert outcome.status == 1
    assert "none of its films could be classified" in outcome.err
    assert "the file is empty" in (tmp_path / "scores.csv").read_text()


@pytest.mark.slow
def test_evaluate_writes_a_report_that_needs_no_network(
    chestxray: Run, bundle: Path, synthetic_films: Path, tmp_path: Path
) -> None:
    outcome = chestxray(
        "evaluate", bundle, synthetic_films / "test", "--out", tmp_path / "report", "--workers", 1, "--json"
    )
    assert outcome.status == 0
    page = (tmp_path / "report" / "index.html").read_text()
    assert NOTICE in page
    assert 'src="http' not in page
    assert (tmp_path / "report" / "scores.csv").is_file()
    assert outcome.document["assessment"] == json.loads((tmp_path / "report" / "report.json").read_text())["assessment"]


def test_doctor_says_what_is_here(chestxray: Run) -> None:
    checks = {check["name"]: check for check in chestxray("doctor", "--json").document["checks"]}
    assert "torch" in checks["extra train"]["finding"]
    assert checks["training on"]["ok"]


# --------------------------------------------------------------------------- rubbish


def test_wrong_usage_exits_2_and_a_problem_in_the_data_1(chestxray: Run, tmp_path: Path, bundle: Path) -> None:
    write_film(tmp_path / "films" / "NORMAL" / "a.png", 1)
    text = tmp_path / "notes.csv"
    text.write_text("hello\n")
    film = tmp_path / "films" / "NORMAL" / "a.png"
    cases: list[tuple[int, str, Sequence[object]]] = [
        (2, "No such command", ["diagnose"]),
        (2, "No such option", ["collect", tmp_path, "--ouput", "x"]),
        (2, "Missing option '--out'", ["collect", tmp_path]),
        (2, "is not a size", ["pack", text, "--out", tmp_path / "p", "--size", "large"]),
        (2, "the nearest is", ["train", tmp_path, "--out", tmp_path / "t", "--recipe", unknown_key(tmp_path)]),
        (2, "cannot be read as a recipe", ["train", tmp_path, "--out", tmp_path / "t", "--recipe", "nowhere.toml"]),
        (1, "does not exist", ["collect", tmp_path / "nowhere", "--out", tmp_path / "m.csv"]),
        (1, 'no column "path"', ["clean", text, "--out", tmp_path / "c.csv"]),
        (1, "not a bundle", ["predict", film, "--bundle", tmp_path]),
        (1, "not a complete pack", ["train", tmp_path, "--out", tmp_path / "t"]),
        (1, "not a run", ["export", tmp_path, "--out", tmp_path / "b"]),
        (1, "'strict'", ["predict", film, "--bundle", bundle, "--operating-point", "strict"]),
        (1, "at least 2 are needed", ["run", tmp_path / "films", "--out", tmp_path / "run", "--workers", 1]),
        (2, "needs a teacher", ["run", "--recipe", "distilled", "--out", tmp_path / "run"]),
        (2, "let other machines in", ["serve", "--bundle", bundle, "--host", "0.0.0.0"]),
    ]
    for status, complaint, arguments in cases:
        outcome = chestxray(*arguments)
        assert complaint in outcome.err, (arguments, outcome)
        assert outcome.status == status, (arguments, outcome)
        assert "Traceback" not in outcome.err
        assert len(outcome.out.strip().splitlines()) == 0
        in_json = chestxray(*arguments, "--json")
        assert in_json.status == status
        assert in_json.document["error"]["exit_status"] == status


@pytest.mark.parametrize(
    "arguments", [["train", "PACK", "--out", "t"], ["run", "--out", "r"], ["export", "RUN", "--out", "b"]]
)
def test_without_the_training_libraries_a_verb_names_the_extra(arguments: Sequence[str], tmp_path: Path) -> None:
    code = "import sys; sys.modules['torch'] = None; from chestxray.cli import main; main(sys.argv[1:])"
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=False, cwd=tmp_path
    )
    assert done.returncode == 2
    assert done.stderr.strip() == (
        'MissingExtra: This command needs an extra. Install it with: pip install "chestxray[train]"'
    )
    assert list(tmp_path.iterdir()) == []


def unknown_key(folder: Path) -> Path:
    path = folder / "recipe.toml"
    path.write_text("epoch = 3\n")
    return path


def test_an_output_that_cannot_be_written_is_one_line(chestxray: Run, tmp_path: Path) -> None:
    write_film(tmp_path / "films" / "NORMAL" / "a.png", 1)
    outcome = chestxray("collect", tmp_path / "films", "--out", tmp_path / "films" / "NORMAL" / "a.png" / "m.csv")
    assert outcome.status == 1
    assert len(outcome.err.strip().splitlines()) == 1
    assert "a.png" in outcome.err


@pytest.mark.slow
def test_a_folder_that_is_not_ours_is_never_overwritten(
    chestxray: Run, pack: Path, training: Path, bundle: Path, synthetic_films: Path, tmp_path: Path
) -> None:
    for index, arguments in enumerate(
        (
            ["pack", pack / "manifest.csv"],
            ["train", pack],
            ["export", training],
            ["evaluate", bundle, synthetic_films / "test"],
        )
    ):
        theirs = tmp_path / str(index)
        theirs.mkdir()
        (theirs / "thesis.txt").write_text("mine")
        outcome = chestxray(*arguments, "--out", theirs)
        assert outcome.status == 2, outcome
        assert [path.name for path in theirs.iterdir()] == ["thesis.txt"]


@pytest.mark.parametrize("arguments", [("collect", "", "--out", "m.csv"), ("collect", "films", "--out", "")])
def test_an_empty_path_is_not_the_current_folder(
    chestxray: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: Sequence[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    write_film(tmp_path / "films/NORMAL/a.png", 1)
    outcome = chestxray(*arguments)
    assert outcome.status != 0
    assert "is empty" in outcome.err
    assert [path.name for path in tmp_path.iterdir()] == ["films"]


def test_an_output_of_too_long_a_name_is_refused_before_any_work(chestxray: Run, tmp_path: Path) -> None:
    outcome = chestxray("collect", tmp_path, "--out", tmp_path / "not yet there" / f"{'m' * 300}.csv")
    assert outcome.status == 1
    assert "a name of over 255 bytes" in outcome.err


@pytest.mark.parametrize(
    "arguments",
    [
        ("train", "pack", "--out", "run", "--recipe"),
        ("evaluate", "--out", "report", "--scores"),
        ("dicom", "serve", "--config"),
        ("dicom", "deidentify", "--salt", "x" * 32, "--out", "copy.dcm"),
    ],
)
@pytest.mark.parametrize("make", [os.mkfifo, lambda path: path.symlink_to("/dev/zero")], ids=["pipe", "device"])
def test_a_pipe_or_a_device_as_an_input_is_refused(
    chestxray: Run, tmp_path: Path, arguments: Sequence[str], make: Callable[[Path], None]
) -> None:
    given = tmp_path / "given.toml"
    make(given)
    outcome = chestxray(*arguments, given)
    assert outcome.status in {1, 2}, outcome  # of a film or a table, and of an option
    assert "is no regular file" in outcome.err, outcome
    assert "given.toml" in outcome.err


def test_a_leak_in_a_given_split_stops_the_run_with_1(chestxray: Run, tmp_path: Path) -> None:
    films = tmp_path / "films"
    for number in range(4):
        write_film(films / f"train/NORMAL/IM-{number:04}-0001.png", number)
        write_film(films / f"train/PNEUMONIA/person{number}_virus_1.png", 100 + number)
    write_film(films / "test/NORMAL/IM-0002-0002.png", 50)
    write_film(films / "test/PNEUMONIA/person9_virus_1.png", 51)
    chestxray("collect", films, "--out", tmp_path / "m.csv")
    chestxray("clean", tmp_path / "m.csv", "--out", tmp_path / "c.csv")
    outcome = chestxray("split", tmp_path / "c.csv", "--out", tmp_path / "s.csv")
    assert outcome.status == 1
    assert "patient IM-0002 (train/IM-0002-0001.png and test/IM-0002-0002.png)" in outcome.err
    assert not (tmp_path / "s.csv").exists()


def test_ctrl_c_during_the_imports_leaves_no_traceback() -> None:
    with subprocess.Popen(
        [sys.executable, "-X", "importtime", "-m", "chestxray", "doctor"], stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stderr is not None
        while "click" not in process.stderr.readline():  # a line for each module, as soon as it is there
            assert process.poll() is None
        process.send_signal(signal.SIGINT)
        _, said = process.communicate()
    assert "Traceback" not in said or "Exception ignored" in said  # the latter: it fell into a callback of the import
