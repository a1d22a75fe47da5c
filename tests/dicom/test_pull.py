"""Retrospective studies from a real PACS, and the command line of the node as a process of its own."""

from __future__ import annotations

import csv
import json
import signal
import subprocess
import sys
from pathlib import Path

import pytest

import live_orthanc
from chestxray.dicom.pull import Search, pull_batch
from chestxray.dicom.settings import NodeSettings
from chestxray.errors import PeerError, SourceInvalid, UsageError
from hospital import grey, modality_film, settings, settings_text
from live_orthanc import Orthanc, free_port, modality, orthanc, until

PROGRAM = Path(sys.executable).with_name("chestxray")
here = pytest.mark.skipif(not live_orthanc.HERE, reason=live_orthanc.MISSING)


@pytest.fixture
def january(pacs: Orthanc, film_paths: tuple[Path, ...]) -> tuple[Orthanc, int]:
    """Orthanc with four films of January, one of March, and one of another modality; and a port that it may send to."""
    port = free_port()
    pacs.put("/modalities/puller", modality("PULLER", port))
    for number in range(1, 5):
        pacs.post("/instances", modality_film(grey(film_paths[number - 1]), number))
    pacs.post("/instances", modality_film(grey(film_paths[4]), 5, StudyDate="20260315"))
    pacs.post("/instances", modality_film(grey(film_paths[5]), 6, Modality="MG"))
    return pacs, port


def rows_of(table: Path) -> list[dict[str, str]]:
    with table.open(newline="") as file:
        return list(csv.DictReader(file))


@here
@pytest.mark.parametrize("way", ["get", "move", "web"])
def test_the_films_of_some_days_are_fetched_once_and_classified(
    january: tuple[Orthanc, int], way: str, tmp_path: Path
) -> None:
    running, port = january
    address = f'host = "127.0.0.1"\nport = {running.dicom}\nae_title = "ORTHANC"\nretrieve = "{way}"'
    if way == "web":
        address = f'url = "{running.url}/dicom-web"'
    title = 'ae_title = "PULLER"'
    node = settings(tmp_path / "queue", running.dicom, port=port, destination=address, node=title)
    table, films = tmp_path / "january.csv", tmp_path / "films"
    result = pull_batch(node, "pacs", Search("20260101-20260131"), table, films, workers=1)
    assert (result.films, result.predicted) == (4, 4)
    assert len(list(films.rglob("*.dcm"))) == 4
    assert all(row["score"] or row["reason"] for row in rows_of(table))
    before = table.read_bytes()
    again = pull_batch(node, "pacs", Search("20260101-20260131"), table, films, workers=1)
    assert (again.films, again.predicted) == (4, 0)
    assert table.read_bytes() == before
    march = pull_batch(node, "pacs", Search("20260315"), tmp_path / "march.csv", films, workers=1)
    assert march.films == 1
    with pytest.raises(SourceInvalid, match="pacs has no film of 20250101"):
        pull_batch(node, "pacs", Search("20250101"), table, films)


@here
def test_a_film_without_an_age_is_refused_as_the_node_does(
    pacs: Orthanc, tmp_path: Path, film_paths: tuple[Path, ...]
) -> None:
    pacs.post("/instances", modality_film(grey(film_paths[0]), PatientAge="", PatientBirthDate=""))
    address = f'url = "{pacs.url}/dicom-web"'
    reasons = []
    for asked in ("false", "true"):
        node = settings(tmp_path / "queue", pacs.dicom, destination=address, node=f"require_age = {asked}")
        pull_batch(node, "pacs", Search("20260115"), tmp_path / f"{asked}.csv", tmp_path / "films", workers=1)
        reasons += [row["reason"] for row in rows_of(tmp_path / f"{asked}.csv")]
    assert reasons[0] == ""
    assert reasons[1].startswith("its file states no age")


def test_a_pacs_that_is_not_there_is_named(tmp_path: Path) -> None:
    node = settings(tmp_path / "queue", free_port())
    with pytest.raises(PeerError, match=r"destination pacs: no answer from 127\.0\.0\.1, port \d+\. Check"):
        pull_batch(node, "pacs", Search("20260101"), tmp_path / "x.csv", tmp_path / "films")


@pytest.mark.parametrize("date", ["yesterday", "2026-01-01", "20260101-", "-20260101"])
def test_a_date_that_is_none_is_refused(date: str) -> None:
    with pytest.raises(UsageError, match="write a day or a range"):
        Search(date)


@pytest.mark.parametrize(
    ("date", "said"), [("20260230", "not a day of the calendar"), ("20260131-20260101", "ends before it begins")]
)
def test_days_that_no_film_can_be_of_are_refused_before_the_pacs_is_asked(date: str, said: str) -> None:
    with pytest.raises(UsageError, match=said):
        Search(date)


# --------------------------------------------------------------------------- the command line


def chestxray(*words: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run([PROGRAM, "dicom", *map(str, words)], capture_output=True, text=True, check=False)


def test_settings_that_are_wrong_end_with_status_2_and_no_traceback(tmp_path: Path) -> None:
    (tmp_path / "node.toml").write_text("[node]\nfoldr = 'q'\n")
    done = chestxray("serve", "--config", tmp_path / "node.toml")
    assert done.returncode == 2
    assert "the nearest is 'folder'" in done.stderr
    assert "Traceback" not in done.stderr


@here
@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_a_node_that_is_stopped_or_killed_resumes(number: int, tmp_path: Path, film_paths: tuple[Path, ...]) -> None:
    port = free_port()
    with orthanc(tmp_path / "orthanc", ("CHESTXRAY", port)) as running:
        # Without commitment: its report may come while no node listens, and is asked for again minutes later.
        address = f'host = "127.0.0.1"\nport = {running.dicom}\nae_title = "ORTHANC"\ncommitment = false'
        (tmp_path / "node.toml").write_text(settings_text(tmp_path / "queue", 0, port=port, destination=address))
        command = [PROGRAM, "dicom", "serve", "--config", tmp_path / "node.toml", "--json"]
        film = tmp_path / "film.dcm"
        film.write_bytes(modality_film(grey(film_paths[0])))
        for _ in range(2):
            node = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
            assert node.stdout is not None
            assert json.loads("".join(iter(node.stdout.readline, "}\n")) + "}")["port"] == port
            subprocess.run(["storescu", "-aec", "CHESTXRAY", "127.0.0.1", str(port), film], check=True)
            node.send_signal(number)
            node.wait(60)
            node.stdout.close()
        node = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, text=True)
        until(lambda: running.instances("SR"))
        until(
            lambda: (
                not json.loads(chestxray("queue", "ls", "--config", tmp_path / "node.toml", "--json").stdout)["films"]
            )
        )
        node.terminate()
        node.wait(60)
        assert len(running.instances("SR")) == 1
    assert NodeSettings.read(tmp_path / "node.toml").port == port
