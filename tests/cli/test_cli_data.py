"""The verbs from a source to a pack, as they are typed."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from chestxray.cli import main
from chestxray.data.pack import Pack
from chestxray.schema import read_manifest
from drawing import write_film

Run = Callable[..., tuple[int, Any]]


@pytest.fixture
def chestxray(capsys: pytest.CaptureFixture[str]) -> Run:
    """Run a verb with --json: its exit status and its document."""

    def run(*arguments: object) -> tuple[int, Any]:
        with pytest.raises(SystemExit) as end:
            main([*(str(argument) for argument in arguments), "--json"])
        return int(end.value.code or 0), json.loads(capsys.readouterr().out)

    return run


@pytest.fixture
def leaking(chestxray: Run, tmp_path: Path) -> Path:
    """A cleaned manifest whose given test split shows a patient of the training split."""
    for number in range(6):
        write_film(tmp_path / f"films/train/NORMAL/IM-{number:04}-0001.png", number)
        write_film(tmp_path / f"films/train/PNEUMONIA/person{number}_virus_1.png", 100 + number)
    write_film(tmp_path / "films/test/NORMAL/IM-0002-0002.png", 50)
    write_film(tmp_path / "films/test/PNEUMONIA/person2_bacteria_1.png", 51)
    chestxray("collect", tmp_path / "films", "--out", tmp_path / "m.csv")
    chestxray("clean", tmp_path / "m.csv", "--out", tmp_path / "c.csv")
    return tmp_path / "c.csv"


def test_a_reason_for_leakage_travels_from_the_split_into_the_pack(
    chestxray: Run, leaking: Path, tmp_path: Path
) -> None:
    status, document = chestxray("split", leaking, "--out", tmp_path / "s.csv")
    assert (status, document["error"]["type"]) == (1, "Leakage")
    reason = "the published split, for comparison"
    status, document = chestxray("split", leaking, "--out", tmp_path / "s.csv", "--allow-leakage", reason)
    assert status == 0
    assert document["shared_patients"] == {"by_number": 2, "by_full_key": 1}
    assert document["leaks"] == 1
    assert chestxray("pack", tmp_path / "s.csv", "--out", tmp_path / "pack", "--size", "32x32")[0] == 0
    assert Pack.open(tmp_path / "pack").info.leakage_allowed == reason


def test_without_its_reason_a_leaking_manifest_is_not_packed(chestxray: Run, leaking: Path, tmp_path: Path) -> None:
    chestxray("split", leaking, "--out", tmp_path / "s.csv", "--allow-leakage", "why not")
    (tmp_path / "s.csv").rename(tmp_path / "elsewhere.csv")
    status, document = chestxray("pack", tmp_path / "elsewhere.csv", "--out", tmp_path / "pack", "--size", "32x32")
    assert (status, document["error"]["type"]) == (1, "Leakage")
    chestxray("split", leaking, "--out", tmp_path / "s.csv", "--allow-leakage", "  ")
    assert not (tmp_path / "s.csv").exists()


@pytest.mark.parametrize("verb", ["clean", "split"])
@pytest.mark.parametrize("out", ["out.json", "/dev/null"])
def test_a_manifest_and_the_document_beside_it_are_two_files(
    chestxray: Run, leaking: Path, tmp_path: Path, verb: str, out: str
) -> None:
    status, document = chestxray(verb, leaking, "--out", tmp_path / out)
    assert (status, document["error"]["type"]) == (1, "OutputUnwritable")
    assert not (tmp_path / out).exists() or out == "/dev/null"
    assert not Path("/dev/null.json").exists()


def test_cleaning_writes_quarantine_and_report_where_asked(chestxray: Run, tmp_path: Path) -> None:
    write_film(tmp_path / "films/NORMAL/a.png", 1)
    (tmp_path / "films/NORMAL/b.png").write_bytes(b"no film")
    chestxray("collect", tmp_path / "films", "--out", tmp_path / "m.csv")
    wanted = ["--quarantine", tmp_path / "q", "--report", tmp_path / "r"]
    status, document = chestxray("clean", tmp_path / "m.csv", "--out", tmp_path / "c.csv", *wanted)
    assert (status, document["verdicts"]) == (0, {"accepted": 1, "unreadable": 1})
    assert len(list((tmp_path / "q/unreadable").iterdir())) == 1
    assert (tmp_path / "r/index.html").is_file()
    assert len(read_manifest(tmp_path / "c.csv")) == 2
