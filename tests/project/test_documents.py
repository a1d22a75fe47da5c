"""Every command and every Python block in README.md and in docs/ runs, as it stands there."""

from __future__ import annotations

import ast
import csv
import os
import re
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

import boto3
import click
import numpy as np
import pytest
from PIL import Image

import live_moto
from chestxray.cli import chestxray_group
from chestxray.inference.bundle import folder_of
from chestxray.synthetic.films import SyntheticSettings, write_synthetic_films
from dicoms import native
from pages import ROOT, RUNNABLE, Block, Page, Reader, commands_of, lines_of, pages

PAGES: Final = pages()
BLOCKS: Final = tuple(block for page in PAGES for block in page.blocks)

# Pages that train a network; the others take seconds.
SLOW: Final = frozenset(
    {
        "README.md",
        "docs/explanation/gate.md",
        "docs/explanation/shortcuts.md",
        "docs/explanation/stress-validation.md",
        "docs/how-to/air-gap.md",
        "docs/how-to/bring-films.md",
        "docs/how-to/compare.md",
        "docs/how-to/recalibrate.md",
        "docs/how-to/several-processes.md",
        "docs/how-to/verify-a-bundle.md",
        "docs/tutorial/your-own-films.md",
    }
)

NOT_RUN: Final = frozenset(
    {
        "needs an AWS account",
        "needs a network",
        "needs a node's queue",
        "needs another machine",
        "needs the published films",
        "sets up an environment of its own",
    }
)
SHOWN: Final = frozenset(
    {"csv", "dockerfile", "ini", "json", "lua", "nginx", "text", "toml", "yaml"}
)  # blocks that are no commands
FOLLOWED_ELSEWHERE: Final = frozenset({"docs/how-to/beside-the-pacs.md"})  # by a test in tests/dicom
DIRECTIVES: Final = re.compile(r"\{[a-z-]+\}")

ENVIRONMENT: Final = {
    **{name: value for name, value in os.environ.items() if not name.startswith(("AWS_", "CHESTXRAY_"))},
    "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
    "COLUMNS": "120",
}


# --------------------------------------------------------------------------- what the pages show


def test_every_fenced_block_is_of_a_known_kind() -> None:
    kinds = {block.kind for block in BLOCKS if not DIRECTIVES.fullmatch(block.kind)}
    assert kinds <= {*RUNNABLE, *SHOWN}
    assert set(RUNNABLE) <= kinds


def test_no_command_hides_in_an_indented_block() -> None:
    assert [page.name for page in PAGES if re.search(r"^[ \t]+(```|~~~)|^~~~", page.text, re.MULTILINE)] == []


def literals() -> set[str]:
    """Every text of the code, without what f-strings fill in."""
    trees = (ast.parse(path.read_text(encoding="utf-8")) for path in (ROOT / "src").rglob("*.py"))
    nodes = (node for tree in trees for node in ast.walk(tree) if isinstance(node, ast.Constant))
    return {node.value for node in nodes if isinstance(node.value, str)}


def test_each_message_of_the_troubleshooting_page_is_one_that_the_code_prints() -> None:
    text = (ROOT / "docs" / "how-to" / "troubleshooting.md").read_text(encoding="utf-8")
    heads = re.findall(r"^(`.+)\n: ", text, re.MULTILINE)
    messages = {message for head in heads for message in re.findall(r"`([^`]* [^`]*)`", head)}
    of_others = {"No matching distribution found for chestxray"}  # pip's
    parts = {part for message in messages - of_others for part in re.split(r"\s*\.\.\.\s*|SIGTERM", message) if part}
    code = literals()
    assert len(messages) > 10
    assert {part for part in parts if not any(part.strip() in literal for literal in code)} == set()


def test_the_reasons_for_not_running_a_block_are_few_and_known() -> None:
    assert {block.not_run for block in BLOCKS if block.not_run} <= NOT_RUN
    skipped = [
        block for block in BLOCKS if block.kind in RUNNABLE and block.not_run and block.page not in FOLLOWED_ELSEWHERE
    ]
    run = [block for page in PAGES for block in page.to_run]
    assert len(skipped) < len(run) / 4


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_command_that_a_page_shows_is_one_that_the_program_knows(page: Page) -> None:
    for block in page.blocks:
        if block.kind in {"sh", "console"}:
            for words in commands_of(block):
                understand(chestxray_group, words)


def understand(command: click.Command, words: list[str]) -> None:
    """As click would: options that exist, values of the right kind, nothing missing and nothing too much."""
    if isinstance(command, click.Group) and words and words[0] in command.commands:
        understand(command.commands[words[0]], words[1:])
        return
    ctx = click.Context(command)
    given, rest, _ = command.make_parser(ctx).parse_args(list(words))
    assert not rest, f"{command.name}: {rest} is too much"
    assert given.get("version") or given.get("help") or not isinstance(command, click.Group), f"no verb in {words}"
    for parameter in [] if given.get("help") else command.params:
        value = given.get(parameter.name or "")
        missing = value is None or value == () or "UNSET" in str(value)
        assert not (parameter.required and missing), f"{command.name} {words}: {parameter.name} is missing"
        if isinstance(parameter, click.Option) and not missing and not parameter.is_flag and not parameter.multiple:
            parameter.type_cast_value(ctx, value)


def test_every_option_that_a_sentence_mentions_exists() -> None:
    mentioned = [(page.name, text) for page in PAGES for text in re.findall(r"`chestxray ([^`]+)`", page.text)]
    wrong = []
    for name, text in mentioned:
        command: click.Command = chestxray_group
        words = text.split()
        while isinstance(command, click.Group) and words and words[0] in command.commands:
            command = command.commands[words.pop(0)]
        known = {spelling for parameter in command.params for spelling in (*parameter.opts, *parameter.secondary_opts)}
        wrong += [(name, text, word) for word in words if word.startswith("--") and word not in {*known, "--help"}]
    assert mentioned
    assert wrong == []


def test_a_command_that_the_program_does_not_know_is_noticed() -> None:
    for words in (
        ["collect", "films", "--ouput", "x"],
        ["collect", "films"],
        ["collect", "--out", "x"],
        ["collect", "films", "more", "--out", "x"],
        ["pack", "m.csv", "--out", "p", "--size", "large"],
        ["aws", "website", "--access", "nobody"],
        ["diagnose"],
    ):
        with pytest.raises((click.UsageError, AssertionError)):
            understand(chestxray_group, words)


def test_the_pages_name_every_verb_and_only_verbs_that_exist() -> None:
    shown = {words[0] for block in BLOCKS if block.kind in {"sh", "console"} for words in commands_of(block) if words}
    mentioned = {verb for page in PAGES for verb in re.findall(r"`chestxray ([a-z]+)", page.text)}
    verbs = {name for name in shown | mentioned if not name.startswith("-")}
    assert verbs == set(chestxray_group.commands)


def test_every_make_target_in_the_pages_exists() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    shown = {words[0] for block in BLOCKS if block.kind == "sh" for words in commands_of(block, "make")}
    targets = shown | {target for page in PAGES for target in re.findall(r"`make ([a-z-]+)", page.text)}
    assert targets
    assert [target for target in targets if not re.search(rf"^{target}:", makefile, re.MULTILINE)] == []


def test_the_quick_start_names_every_extra() -> None:
    (page,) = (page for page in PAGES if page.name == "docs/quick-start.md")
    first_cells = re.findall(r"^\| ((?:`[a-z]+`(?:, )?)+) \|", page.text, re.MULTILINE)
    named = {name for cell in first_cells for name in re.findall(r"`([a-z]+)`", cell)}
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert named == set(project["optional-dependencies"])


def test_every_benchmark_that_a_page_names_exists() -> None:
    named = {script for page in PAGES for script in re.findall(r"benchmarks/\w+\.py", page.text)}
    assert named
    assert [script for script in named if not (ROOT / script).exists()] == []


def test_every_test_that_a_document_names_exists() -> None:
    texts = [page.text for page in PAGES]
    texts += [(ROOT / name).read_text(encoding="utf-8") for name in ("CONTRIBUTING.md", "SECURITY.md")]
    named = {name for text in texts for name in re.findall(r"\btest_\w+\.py\b", text)}
    assert named
    assert named - {path.name for path in (ROOT / "tests").rglob("test_*.py")} == set()


@pytest.mark.parametrize("name", ["README.md", "CONTRIBUTING.md", "SECURITY.md", "CHANGELOG.md"])
def test_every_file_that_a_document_beside_the_site_links_to_exists(name: str) -> None:
    links = re.findall(r"\]\(([^)#:]+)\)", (ROOT / name).read_text(encoding="utf-8"))
    assert [link for link in links if not (ROOT / link).exists()] == []


# --------------------------------------------------------------------------- what a page starts with

Maker = Callable[[Path, pytest.FixtureRequest], None]


def films(folder: Path, request: pytest.FixtureRequest) -> None:
    shutil.copytree(request.getfixturevalue("synthetic_films"), folder / "films")


def one_film(folder: Path, request: pytest.FixtureRequest) -> None:
    synthetic_films: Path = request.getfixturevalue("synthetic_films")
    shutil.copy(next((synthetic_films / "test" / "PNEUMONIA").glob("*.jpeg")), folder / "film.jpeg")


def bundle(folder: Path, request: pytest.FixtureRequest) -> None:
    shutil.copytree(request.getfixturevalue("bundle"), folder / "bundle")


def other_bundle(folder: Path, request: pytest.FixtureRequest) -> None:
    shutil.copytree(folder_of("pneumonia"), folder / "other")


def pack(folder: Path, request: pytest.FixtureRequest) -> None:
    shutil.copytree(request.getfixturevalue("pack"), folder / "pack")


def local_films(folder: Path, request: pytest.FixtureRequest) -> None:
    """Films of another hospital, which no bundle learnt from: one folder a class, names that say no patient."""
    shared: Callable[[str, Callable[[Path], object]], Path] = request.getfixturevalue("shared")
    settings = SyntheticSettings(patients=80, seed=71, min_width=460, max_width=700)
    elsewhere = shared("elsewhere", lambda path: write_synthetic_films(path, settings, workers=1))
    for label in ("NORMAL", "PNEUMONIA"):
        (folder / "local" / label).mkdir(parents=True)
        for number, path in enumerate(sorted(elsewhere.glob(f"*/{label}/*.jpeg"))[:40]):
            shutil.copy(path, folder / "local" / label / f"{number:04}.jpeg")


def table(folder: Path, request: pytest.FixtureRequest) -> None:
    """A hospital's own list of its films, with columns of its own."""
    synthetic_films: Path = request.getfixturevalue("synthetic_films")
    with (folder / "films.csv").open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["path", "label", "patient_id", "ward", "device"])
        for split in ("train", "test"):
            for label in ("NORMAL", "PNEUMONIA"):
                for number, path in enumerate(sorted((synthetic_films / split / label).glob("*.jpeg"))[:30]):
                    name = f"archive/{split}-{label.lower()}-{number:03}.jpeg"
                    (folder / name).parent.mkdir(exist_ok=True)
                    shutil.copy(path, folder / name)
                    word = {"NORMAL": "0", "PNEUMONIA": "1"}[label]
                    rows.writerow([name, word, f"{split}{label[0]}{number}", f"w{number % 3}", "AB"[number % 2]])


def dicoms(folder: Path, request: pytest.FixtureRequest) -> None:
    """The same films as a PACS gives them: no ending that says so, one folder a class."""
    synthetic_films: Path = request.getfixturevalue("synthetic_films")
    for label in ("NORMAL", "PNEUMONIA"):
        (folder / "export" / label).mkdir(parents=True)
        for number, path in enumerate(sorted((synthetic_films / "test" / label).glob("*.jpeg"))[:8]):
            with Image.open(path) as picture:
                pixels = np.asarray(picture.convert("L"))
            uids = {"StudyInstanceUID": f"1.2.4.{number}", "SeriesInstanceUID": f"1.2.5.{number}"}
            elements = {"PatientID": f"{label[0]}{number:03}", "PatientAge": "004Y", "ViewPosition": "AP", **uids}
            file = native(pixels, Modality="DX", BodyPartExamined="CHEST", **elements)
            (folder / "export" / label / f"1.2.3.{number}").write_bytes(file)
    shutil.copy(folder / "export" / "PNEUMONIA" / "1.2.3.0", folder / "film.dcm")


STARTS: Final[dict[str, Maker]] = {
    "nothing": lambda _folder, _request: None,
    "films": films,
    "film.jpeg": one_film,
    "bundle": bundle,
    "other": other_bundle,
    "pack": pack,
    "local": local_films,
    "films.csv": table,
    "export": dicoms,
}


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory, synthetic_films: Path) -> Iterator[dict[str, str]]:
    """An S3 store on this machine, with films in its bucket "hospital"; gives the environment that leads there."""
    with live_moto.running() as address:
        keys = {"aws_access_key_id": "test", "aws_secret_access_key": "test", "region_name": "us-east-1"}
        client = boto3.client("s3", endpoint_url=address, **keys)
        client.create_bucket(Bucket="hospital")
        for path in sorted((synthetic_films / "test").rglob("*.jpeg")):
            client.upload_file(str(path), "hospital", f"films/{path.relative_to(synthetic_films).as_posix()}")
        client.close()
        yield {**live_moto.CREDENTIALS, "AWS_ENDPOINT_URL_S3": address}


# --------------------------------------------------------------------------- the pages, followed


@pytest.mark.parametrize(
    "page",
    [
        pytest.param(page, id=page.name, marks=[pytest.mark.slow] if page.name in SLOW else [])
        for page in PAGES
        if page.to_run
    ],
)
@pytest.mark.timeout(1500)
def test_every_block_of_a_page_runs_as_it_stands_there(
    page: Page, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    environment = ENVIRONMENT
    for name in page.starts_with:
        if name == "s3":
            environment = {**environment, **request.getfixturevalue("store")}
        else:
            STARTS[name](tmp_path, request)
    followed = Reader(tmp_path, environment).follow(page)
    expected = [block for block in page.blocks if block.kind in RUNNABLE and not block.not_run]
    assert list(followed) == expected
    assert all(lines_of(block) for block in expected)


def test_a_block_that_fails_or_prints_something_else_is_noticed(tmp_path: Path) -> None:
    for kind, text in (("sh", "false\ntrue\n"), ("console", "$ echo 3\n4\n"), ("python", "import nothing\n")):
        page = Page("page.md", f"```{kind}\n{text}```\n")
        with pytest.raises(AssertionError):
            Reader(tmp_path, ENVIRONMENT).follow(page)
    page = Page("page.md", "```console\n$ echo 3 films of 2 patients\n3 films of ... patients\n```\n")
    assert Reader(tmp_path, ENVIRONMENT).follow(page) == (
        Block("page.md", "console", "$ echo 3 films of 2 patients\n3 films of ... patients\n"),
    )


@pytest.mark.slow
@pytest.mark.timeout(1500)
def test_make_run_goes_from_nothing_to_a_report(tmp_path: Path) -> None:
    done = subprocess.run(
        ["make", "run", "SERVE=0", f"OUT={tmp_path / 'run'}"],
        cwd=ROOT,
        env={**ENVIRONMENT, "MAKEFLAGS": ""},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "run" / "report" / "index.html").is_file()
    assert (tmp_path / "run" / "bundle" / "bundle.json").is_file()
