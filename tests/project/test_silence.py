"""Nothing is told to anybody: every socket and every new file of a verb, as the system sees them."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from chestxray.serving.static import EXAMPLES

PROGRAM = Path(sys.executable).with_name("chestxray")
BUNDLE = "pneumonia"

pytestmark = pytest.mark.skipif(shutil.which("strace") is None, reason="strace is not here")

ADDRESS = re.compile(r'sin6?_addr=inet_(?:addr\("([^"]+)"\)|pton\(AF_INET6, "([^"]+)")')
PORT = re.compile(r"sin6?_port=htons\((\d+)\)")
MADE = re.compile(r'\b(?:openat|open|creat|mkdir|mkdirat)\((?:AT_FDCWD(?:<[^>]*>)?, )?"([^"]+)"(.*)')
OWN = ("/proc/", "/dev/", "/sys/")


def traced(log: Path, *words: object) -> list[str]:
    return [
        "strace", "-f", "-qq", "-s", "400", "-e", "trace=connect,sendto,sendmsg,bind,openat,open,creat,mkdir,mkdirat",
        "-o", str(log), *map(str, words),
    ]  # fmt: skip


def environment(home: Path) -> dict[str, str]:
    """A user who has set nothing."""
    kept = {name: os.environ[name] for name in ("PATH", "LANG", "PYTHONPATH") if name in os.environ}
    return kept | {"HOME": str(home), "TMPDIR": str(home / "tmp")}


def spoken_to(log: Path) -> set[str]:
    """Addresses beyond this machine that a socket was pointed at, and name servers wherever they are."""
    found = set()
    for line in log.read_text(errors="replace").splitlines():
        for match in ADDRESS.finditer(line):
            address = match[1] or match[2]
            port = PORT.search(line)
            if not (address.startswith("127.") or address in {"::1", "0.0.0.0", "::"}) or (port and port[1] == "53"):
                found.add(f"{address}:{port[1] if port else '?'}")
    return found


def made(log: Path, *allowed: Path) -> set[str]:
    """Files and folders that were made, or opened to be written, outside of those folders."""
    found = set()
    for line in log.read_text(errors="replace").splitlines():
        match = MADE.search(line)
        if match is None or " = -1 " in line:
            continue
        writes = "O_CREAT" in match[2] or "O_WRONLY" in match[2] or "O_RDWR" in match[2] or "mkdir" in match[0]
        path = match[1]
        if writes and not path.startswith(OWN) and not any(path.startswith(str(folder)) for folder in allowed):
            found.add(path)
    return {path for path in found if "__pycache__" not in path}


@pytest.fixture
def home(tmp_path: Path) -> Path:
    (tmp_path / "home" / "tmp").mkdir(parents=True)
    return tmp_path / "home"


@pytest.fixture
def films(tmp_path: Path) -> Path:
    shutil.copytree(EXAMPLES, tmp_path / "films", ignore=shutil.ignore_patterns("*.json"))
    return tmp_path / "films"


def assert_silent(log: Path, home: Path, *allowed: Path) -> None:
    assert spoken_to(log) == set()
    assert made(log, home / "tmp", *allowed) == set()
    assert [path for path in home.rglob("*") if path != home / "tmp" and home / "tmp" not in path.parents] == []


@pytest.mark.parametrize("verb", ["predict", "batch", "doctor"])
def test_a_verb_speaks_to_nobody_and_writes_only_what_it_was_asked_for(
    verb: str, home: Path, films: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    out.mkdir()
    words: dict[str, list[object]] = {
        "predict": [next(films.glob("*.jpg")), "--bundle", BUNDLE],
        "batch": [films, "--bundle", BUNDLE, "--out", out / "scores.csv"],
        "doctor": [],
    }
    done = subprocess.run(
        traced(tmp_path / "trace", PROGRAM, verb, *words[verb]),
        env=environment(home), cwd=out, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert_silent(tmp_path / "trace", home, out)


@contextmanager
def serving(log: Path, home: Path, out: Path) -> Iterator[str]:
    command = traced(log, PROGRAM, "serve", "--bundle", BUNDLE, "--port", 0, "--json")
    started = subprocess.Popen(
        command, env=environment(home), cwd=out, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    )
    assert started.stdout is not None
    try:
        text = ""
        while not text.endswith("\n}\n"):
            line = started.stdout.readline()
            assert line, "the service did not start"
            text += line
        document = json.loads(text)
        yield document["address"]
        os.kill(document["process"], signal.SIGTERM)
        started.wait()
    finally:
        started.kill()
        started.communicate()


def test_the_service_speaks_to_nobody_but_its_callers(home: Path, films: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    with serving(tmp_path / "trace", home, out) as address:
        film = next(films.glob("*.jpg")).read_bytes()
        asked = urllib.request.Request(f"{address}/v1/predict?heatmap=1", film, {"Content-Type": "image/jpeg"})  # noqa: S310
        with urllib.request.urlopen(asked) as answer:  # noqa: S310
            assert answer.status == 200
    assert_silent(tmp_path / "trace", home, out)


def test_a_notebook_that_imports_the_package_is_silent_too(home: Path, films: Path, tmp_path: Path) -> None:
    code = f"import chestxray; print(chestxray.load({BUNDLE!r})({str(next(films.glob('*.jpg')))!r}).probability)"
    done = subprocess.run(
        traced(tmp_path / "trace", sys.executable, "-c", code),
        env=environment(home), cwd=tmp_path, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert_silent(tmp_path / "trace", home)


def test_libraries_that_would_report_are_told_not_to_and_a_choice_of_the_user_stays() -> None:
    names = ("ORT_DISABLE_TELEMETRY", "HF_HUB_DISABLE_TELEMETRY", "MLFLOW_DISABLE_TELEMETRY", "RAY_USAGE_STATS_ENABLED")
    code = f"import os, chestxray; print([os.environ.get(name) for name in {names!r}])"
    bare = {name: value for name, value in os.environ.items() if name not in names}
    for given, expected in (({}, ["1", "1", "true", "0"]), ({names[0]: "0"}, ["0", "1", "true", "0"])):
        done = subprocess.run(
            [sys.executable, "-c", code], env=bare | given, capture_output=True, text=True, check=True
        )
        assert done.stdout.strip() == str(expected)
