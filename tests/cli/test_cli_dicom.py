"""The command line of the node: what would happen to a film, what waits, and copies that name nobody."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from chestxray.cli import main
from chestxray.dicom.queue import Order, Queue
from chestxray.dicom.receive import FILM_CLASSES
from hospital import modality_film, read, settings_text

BLACK = np.zeros((8, 8), np.uint8)

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def chestxray(capsys: pytest.CaptureFixture[str]) -> Run:
    """Run the command line in this process: status, standard output, standard error."""

    def run(*arguments: object) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as end:
            main(["dicom", *map(str, arguments)])
        return (int(end.value.code or 0), *capsys.readouterr())

    return run


@pytest.fixture
def config(tmp_path: Path) -> Path:
    path = tmp_path / "node.toml"
    path.write_text(settings_text(tmp_path / "queue", 4242))
    return path


def film_file(tmp_path: Path, **elements: Any) -> Path:
    path = tmp_path / "film.dcm"
    path.write_bytes(modality_film(BLACK, **elements))
    return path


@pytest.mark.parametrize(
    ("elements", "words", "answered", "said"),
    [
        ({}, (), True, "rule chest films: met: results go to pacs"),
        ({"Modality": "MG"}, (), False, "rule chest films: not met: modality is MG; the rule wants CR or DX"),
        (
            {"SOPClassUID": "1.2.840.10008.5.1.4.1.1.2", "Modality": "CT"},
            (),
            False,
            f"the node refuses it: its SOP class is not one of {', '.join(FILM_CLASSES.values())}",
        ),
        ({"Manufacturer": "chestxray"}, (), False, "it is a result of this program, which is never answered"),
        ({}, ("--from", "ROOM1"), True, "rule chest films: met: results go to pacs"),
    ],
)
def test_explain_says_what_would_happen_and_why_and_starts_nothing(
    elements: dict[str, str],
    words: tuple[str, ...],
    answered: bool,
    said: str,
    chestxray: Run,
    config: Path,
    tmp_path: Path,
) -> None:
    film = film_file(tmp_path, **elements)
    status, out, _ = chestxray("serve", "--config", config, "--explain", film, *words)
    assert status == 0
    assert f"would {'be' if answered else 'not be'} answered" in out
    assert said in out
    status, out, _ = chestxray("serve", "--config", config, "--explain", film, *words, "--json")
    document = json.loads(out)
    assert (document["answered"], document["reasons"][0]) == (answered, said)
    assert document["send_to"] == (["pacs"] if answered else [])
    assert not (tmp_path / "queue").exists()


def test_explain_of_what_is_no_dicom_names_the_file(chestxray: Run, config: Path, tmp_path: Path) -> None:
    (tmp_path / "x.dcm").write_bytes(b"Doe^Jane" * 40)
    status, _, said = chestxray("serve", "--config", config, "--explain", tmp_path / "x.dcm")
    assert status == 1
    assert "x.dcm: not a DICOM file" in said
    assert "Doe" not in said


def dead_letters(folder: Path, *instances: str) -> None:
    """A queue in which these films could not be answered."""
    queue = Queue(folder, "model")
    for instance in instances:
        queue.take(b"film", instance, "ROOM1", Order("chest films", ("pacs",), secondary_capture=True))
        (film,) = queue.next_films(1)
        queue.bury(film, "damaged")
    queue.close()


def test_dead_letters_are_listed_retried_and_dropped(chestxray: Run, config: Path, tmp_path: Path) -> None:
    for words in (("ls",), ("retry",), ("drop", "1")):
        status, _, said = chestxray("queue", *words, "--config", config)
        assert status == 1
        assert f"{tmp_path / 'queue'}: no queue of a node. Start the node, or correct its folder" in said
    assert not (tmp_path / "queue").exists()  # which would be of this user, and not of the node's
    Queue(tmp_path / "queue", "model").close()
    status, out, _ = chestxray("queue", "ls", "--config", config)
    assert (status, out.strip()) == (0, "nothing waits")
    dead_letters(tmp_path / "queue", "1.2.3.1", "1.2.3.2")
    status, out, _ = chestxray("queue", "ls", "--config", config)
    assert status == 0
    assert [line.split()[2] for line in out.splitlines() if "damaged" in line] == ["dead", "dead"]
    assert "1.2.3" not in out
    listed = json.loads(chestxray("queue", "ls", "--config", config, "--state", "dead", "--json")[1])["films"]
    assert [(film["id"], film["reason"], film["peer"]) for film in listed] == [
        (1, "damaged", "ROOM1"),
        (2, "damaged", "ROOM1"),
    ]

    assert json.loads(chestxray("queue", "retry", "1", "--config", config, "--json")[1]) == {"retried": 1}
    assert json.loads(chestxray("queue", "retry", "--config", config, "--json")[1]) == {"retried": 1}
    status, _, said = chestxray("queue", "retry", "1", "--config", config)
    assert status == 1
    assert "there is no dead letter 1" in said

    assert chestxray("queue", "drop", "1", "--config", config)[:2] == (0, "film 1 is forgotten\n")
    listed = json.loads(chestxray("queue", "ls", "--config", config, "--json")[1])["films"]
    assert [(film["id"], film["state"]) for film in listed] == [(2, "waiting")]
    status, _, said = chestxray("queue", "drop", "99", "--config", config)
    assert status == 1
    assert 'there is no film 99 in the queue; "chestxray dicom queue ls" lists them' in said


def test_a_copy_without_names_is_written_and_its_salt_decides_the_uids(chestxray: Run, tmp_path: Path) -> None:
    film = film_file(tmp_path)
    for name, salt in (("one", "our-site"), ("again", "our-site"), ("other", "another")):
        status, out, _ = chestxray("deidentify", film, "--salt", salt, "--out", tmp_path / f"{name}.dcm")
        assert status == 0
        assert "look at the pixels yourself" in out
    one, again, other = ((tmp_path / f"{name}.dcm").read_bytes() for name in ("one", "again", "other"))
    assert one == again
    assert b"Doe" not in one
    assert len({str(read(data).SOPInstanceUID) for data in (one, other, film.read_bytes())}) == 3


def test_a_copy_replaces_a_copy_and_never_the_film(chestxray: Run, tmp_path: Path) -> None:
    film = film_file(tmp_path)
    before = film.read_bytes()
    status, _, said = chestxray("deidentify", film, "--salt", "our-site", "--out", film)
    assert status != 0
    assert "exists and is not a de-identified copy" in said
    assert film.read_bytes() == before
    for _ in range(2):
        assert chestxray("deidentify", film, "--salt", "our-site", "--out", tmp_path / "copy.dcm")[0] == 0


@pytest.mark.parametrize(
    ("elements", "said"),
    [({"BurnedInAnnotation": "YES"}, "burnt into its pixels"), (None, "could not be de-identified")],
)
def test_a_copy_that_cannot_be_made_is_not_written(
    elements: dict[str, str] | None, said: str, chestxray: Run, tmp_path: Path
) -> None:
    film = film_file(tmp_path, **(elements or {}))
    if elements is None:
        film.write_bytes(b"Doe^Jane")
    status, _, told = chestxray("deidentify", film, "--salt", "our-site", "--out", tmp_path / "copy.dcm")
    assert status == 1
    assert said in told
    assert "Doe" not in told
    assert not (tmp_path / "copy.dcm").exists()
