"""The wheel in an environment of its own, at the pinned versions, without extras: "pip install chestxray"."""

from __future__ import annotations

import importlib.metadata
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import httpx
import numpy as np
import pytest
from test_distribution import Built, built, unpacked  # noqa: F401 - fixtures

import live_service
from chestxray.serving.static import EXAMPLES
from dicoms import header, written
from requirements import pins
from supply_chain import bare_environment, bill_of_materials

FILM = EXAMPLES / "lobe.jpg"
MEGABYTES = 250  # of all that is installed, compiled modules included
ENVIRONMENT = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "CHESTXRAY", "AWS"))}

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]


def an_index_answers(folder: Path) -> bool:
    wanted = f"click=={pins()['click']}"
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", folder, wanted]
    return subprocess.run(command, capture_output=True, check=False).returncode == 0


@pytest.fixture(scope="module")
def python(
    built: Built,  # noqa: F811 - the fixture
    shared: Callable[[str, Callable[[Path], object]], Path],
    tmp_path_factory: pytest.TempPathFactory,
) -> Path:
    """The interpreter of the environment."""
    if not an_index_answers(tmp_path_factory.mktemp("index")):
        pytest.skip("no package index answers here, so nothing can be installed")
    return shared("bare", lambda path: bare_environment(built.wheel, path)) / "bin" / "python"


@pytest.fixture
def chestxray(python: Path, tmp_path: Path) -> Callable[..., subprocess.CompletedProcess[str]]:
    def run(*arguments: object) -> subprocess.CompletedProcess[str]:
        command = [python.with_name("chestxray"), *map(str, arguments)]
        return subprocess.run(command, cwd=tmp_path, env=ENVIRONMENT, capture_output=True, text=True, check=False)

    return run


Run = Callable[..., subprocess.CompletedProcess[str]]


def test_it_is_small_and_brings_nothing_to_train_with(python: Path) -> None:
    (site,) = python.parents[1].glob("lib/python*/site-packages")
    subprocess.run([python, "-m", "compileall", "-q", site], env=ENVIRONMENT, check=False, capture_output=True)
    size = sum(path.stat().st_size for path in site.rglob("*") if path.is_file() and not path.is_symlink())
    assert size < MEGABYTES * 1_000_000
    assert not {"torch", "onnx", "matplotlib", "scipy", "pandas", "boto3"} & {path.name for path in site.iterdir()}


def test_a_film_is_answered_as_in_the_environment_of_the_tests(chestxray: Run) -> None:
    answered = json.loads(chestxray("predict", FILM, "--json").stdout)["predictions"][0]
    here = subprocess.run(
        [Path(sys.executable).with_name("chestxray"), "predict", FILM, "--json"],
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
        check=True,
    )
    expected = json.loads(here.stdout)["predictions"][0]
    assert answered["label"] == expected["label"]
    assert answered["probability"] == pytest.approx(expected["probability"], abs=1e-6)


def test_the_service_answers(python: Path, tmp_path: Path) -> None:
    with live_service.process(Path("pneumonia"), tmp_path / "log", program=python.with_name("chestxray")) as (
        address,
        _,
    ):
        assert httpx.get(f"{address}/ping", timeout=60).status_code == httpx.codes.OK
        assert "<html" in httpx.get(address, timeout=60).text
        sent = {"content": FILM.read_bytes(), "headers": {"Content-Type": "image/jpeg"}}
        assert 0.0 <= httpx.post(f"{address}/v1/predict", **sent, timeout=60).json()["probability"] <= 1.0


def test_films_are_listed_classified_packed_and_scored_without_any_extra(
    chestxray: Run, synthetic_films: Path, tmp_path: Path
) -> None:
    for arguments in (
        ["collect", synthetic_films, "--out", "m.csv"],
        ["clean", "m.csv", "--out", "c.csv"],
        ["split", "c.csv", "--out", "s.csv"],
        ["pack", "s.csv", "--out", "pack", "--size", "48x64"],
        ["batch", synthetic_films / "test", "--out", "scores.csv", "--bundle", "pneumonia"],
        ["doctor"],
        ["key", "ward-7"],
    ):
        done = chestxray(*arguments)
        assert done.returncode == 0, done.stderr
    assert (tmp_path / "pack" / "images.npy").is_file()


@pytest.mark.parametrize(
    ("extra", "arguments"),
    [
        ("train", ["train", "pack", "--out", "out"]),
        ("train", ["blend", "a", "b", "--pack", "pack", "--out", "out"]),
        ("train", ["export", "run", "--out", "out"]),
        ("train", ["run", "--out", "out"]),
        ("report", ["clean", "m.csv", "--out", "out", "--report", "report"]),
        ("report", ["evaluate", "pneumonia", "films", "--out", "out"]),
        ("sign", ["sign", "pneumonia", "--private-key", "key.pem"]),
        ("sign", ["verify", "pneumonia", "--public-key", "key.pub"]),
        ("sign", ["serve", "--verify-key", "key.pub"]),
        ("aws", ["aws", "status"]),
        ("aws", ["collect", "s3://hospital/films", "--out", "out"]),
        ("kaggle", ["collect", "kaggle:owner/dataset", "--out", "out"]),
        ("parquet", ["batch", EXAMPLES, "--out", "out.parquet"]),
        ("ray", ["batch", EXAMPLES, "--out", "out.csv", "--engine", "ray"]),
    ],
)
def test_a_verb_whose_extra_is_missing_says_so_in_one_line_and_leaves_nothing(
    chestxray: Run, tmp_path: Path, extra: str, arguments: Sequence[object]
) -> None:
    (tmp_path / "films" / "NORMAL").mkdir(parents=True)
    (tmp_path / "films" / "NORMAL" / "a.jpeg").write_bytes(FILM.read_bytes())
    (tmp_path / "m.csv").write_text("path,label\nfilms/NORMAL/a.jpeg,normal\n")
    before = {path.name for path in tmp_path.iterdir()}
    done = chestxray(*arguments)
    assert f'pip install "chestxray[{extra}]"' in done.stderr
    assert (done.returncode, done.stdout, len(done.stderr.splitlines())) == (2, "", 1)
    assert {path.name for path in tmp_path.iterdir() if not path.name.startswith(".")} == before


def test_a_dicom_film_names_the_extra_that_reads_it(chestxray: Run, tmp_path: Path) -> None:
    (tmp_path / "film.dcm").write_bytes(written(header(np.zeros((64, 64), np.uint8)), "1.2.840.10008.1.2.1"))
    done = chestxray("predict", "film.dcm")
    assert 'pip install "chestxray[dicom]"' in done.stderr
    assert (done.returncode, done.stdout, len(done.stderr.splitlines())) == (2, "", 1)


def test_the_bill_of_materials_lists_what_is_installed_with_licences_and_is_the_same_again(
    python: Path, tmp_path: Path
) -> None:
    first, second = tmp_path / "first.json", tmp_path / "second.json"
    for out in (first, second):
        bill_of_materials(python, out)
    assert first.read_bytes() == second.read_bytes()
    bill = json.loads(first.read_text())
    assert (bill["bomFormat"], bill["metadata"]["component"]["name"]) == ("CycloneDX", "chestxray")
    (site,) = python.parents[1].glob("lib/python*/site-packages")
    there = {found.name: found.version for found in importlib.metadata.distributions(path=[str(site)])}
    del there["chestxray"]
    assert {part["name"]: part["version"] for part in bill["components"]} == there
    assert {name for name in there if there[name] != pins()[name.lower().replace("_", "-").replace(".", "-")]} == set()
    assert str(python.parents[1]) not in first.read_text()
    root = next(entry for entry in bill["dependencies"] if entry["ref"] == bill["metadata"]["component"]["bom-ref"])
    assert {ref.partition("==")[0] for ref in root["dependsOn"]} >= {"numpy", "onnxruntime", "fastapi"}


@pytest.mark.usefixtures("python")  # which is skipped where no package index answers
def test_make_serve_goes_from_the_source_archive_to_an_answer(
    unpacked: Path,  # noqa: F811 - the fixture
    tmp_path: Path,
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    address = f"http://127.0.0.1:{port}"
    with (
        (tmp_path / "log").open("w") as log,
        subprocess.Popen(
            ["make", "serve", f"PORT={port}"],
            cwd=unpacked,
            env={**ENVIRONMENT, "MAKEFLAGS": ""},
            stdout=log,
            stderr=log,
            start_new_session=True,
        ) as made,
    ):
        try:
            while not is_served(address):
                assert made.poll() is None, (tmp_path / "log").read_text()
                time.sleep(0.5)
            sent = {"content": FILM.read_bytes(), "headers": {"Content-Type": "image/jpeg"}}
            assert httpx.post(f"{address}/v1/predict", **sent, timeout=60).json()["model"] == "pneumonia"
        finally:
            os.killpg(made.pid, signal.SIGTERM)
    assert not (unpacked / ".venv").exists()


def is_served(address: str) -> bool:
    try:
        return httpx.get(f"{address}/readyz", timeout=60).status_code == httpx.codes.OK
    except httpx.TransportError:
        return False
