"""Every command and every Python block in the README runs, as it stands there."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest

from chestxray.data.phantom import PhantomSettings, write_phantoms

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```(\w+)\n(.*?)^```", README, re.MULTILINE | re.DOTALL)
COMMANDS = [line for kind, text in BLOCKS if kind == "sh" for line in text.splitlines() if line.strip()]
PYTHON = [text for kind, text in BLOCKS if kind == "python"]

SERVE = "chestxray serve"
SERVING = ("curl",)  # run while the service is up
ENVIRONMENT = {**os.environ, "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}


def without_comment(line: str) -> str:
    return shlex.join(shlex.split(line, comments=True))


def test_the_readme_names_every_verb_and_only_verbs_that_exist() -> None:
    from chestxray.cli.main import chestxray_group

    named = {words[1] for line in COMMANDS if (words := shlex.split(line))[0] == "chestxray"}
    mentioned = set(re.findall(r"`chestxray ([a-z]+)", README))
    assert named | mentioned == set(chestxray_group.commands)


def test_every_file_that_the_readme_links_to_exists() -> None:
    links = re.findall(r"\]\(([^)#:]+)\)", README)
    assert links
    assert [link for link in links if not (ROOT / link).exists()] == []


def test_every_make_target_in_the_readme_exists() -> None:
    targets = {shlex.split(line)[1] for line in COMMANDS if line.startswith("make ")}
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    assert targets
    assert all(re.search(rf"^{target}:", makefile, re.MULTILINE) for target in targets)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the README takes for granted: a folder of films, and one film."""
    folder = tmp_path_factory.mktemp("readme")
    write_phantoms(folder / "films", PhantomSettings(patients=150, seed=3, faults=True))
    shutil.copy(next((folder / "films" / "test" / "PNEUMONIA").glob("*.jpeg")), folder / "film.jpeg")
    return folder


def run(line: str, folder: Path) -> None:
    done = subprocess.run(
        without_comment(line), shell=True, cwd=folder, env=ENVIRONMENT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, f"{line}\n{done.stdout}\n{done.stderr}"


@contextmanager
def serving(line: str, folder: Path) -> Iterator[None]:
    process = subprocess.Popen(shlex.split(line, comments=True), cwd=folder, env=ENVIRONMENT, stderr=subprocess.DEVNULL)
    try:
        for _ in range(200):
            try:
                if httpx.get("http://127.0.0.1:8000/ping").status_code == 200:
                    break
            except httpx.TransportError:
                time.sleep(0.1)
        yield
    finally:
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=30) == 0


@pytest.mark.slow
@pytest.mark.timeout(1500)
def test_every_command_in_the_readme_runs_as_it_stands_there(folder: Path) -> None:
    stages = [line for line in COMMANDS if line.startswith("chestxray ") and not line.startswith(SERVE)]
    for line in stages:
        run(line, folder)
    (serve,) = (line for line in COMMANDS if line.startswith(SERVE))
    with serving(serve, folder):
        requests = [line for line in COMMANDS if line.startswith(SERVING)]
        assert requests
        for line in requests:
            run(line, folder)


@pytest.mark.slow
@pytest.mark.timeout(1500)
def test_every_python_block_in_the_readme_runs(folder: Path, bundle: Path) -> None:
    if not (folder / "bundle").exists():
        shutil.copytree(bundle, folder / "bundle")
    assert PYTHON
    for text in PYTHON:
        done = subprocess.run([sys.executable, "-c", text], cwd=folder, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr


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
