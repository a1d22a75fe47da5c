"""What a terminal may be given; and cells of CSV files: no program takes them for formulas, and none is lost."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from chestxray.cli import main
from chestxray.data.sources import read_film
from chestxray.images import MAX_BYTES
from chestxray.metrics.scores import ScoreRow, read_score_file, write_table
from chestxray.schema import Film, read_manifest, write_manifest
from chestxray.text import as_cell, of_cell, printable


@given(text=st.text(st.sampled_from("'=+-@\t\ra1."), max_size=6) | st.text(max_size=10))
def test_a_cell_reads_back_as_the_text_that_was_written(text: str) -> None:
    assert of_cell(as_cell(text)) == text


@pytest.mark.parametrize("text", ["=1+1", "+cmd", "-cmd", "@sum", "\tx", "\rx", "\n=x"])
def test_what_begins_like_a_formula_does_not_when_it_is_written(text: str) -> None:
    assert as_cell(text).startswith("'")


@pytest.mark.parametrize("text", ["-5", "+1.5e-3", "film.jpeg", "", "it's"])
def test_numbers_and_names_stay_as_they_are(text: str) -> None:
    assert as_cell(text) == text


def test_a_manifest_keeps_names_that_look_like_formulas(tmp_path: Path) -> None:
    films = (Film(str(tmp_path / "=a.jpeg"), patient_id="@b"), Film(str(tmp_path / "c\rd.jpeg"), patient_id="-e"))
    write_manifest(films, tmp_path / "m.csv")
    assert b"\n=" not in (tmp_path / "m.csv").read_bytes()
    assert read_manifest(tmp_path / "m.csv") == films


def test_a_carriage_return_in_a_name_makes_no_row_of_its_own(tmp_path: Path) -> None:
    names = ("a\rb", "=c", "d")
    rows = [ScoreRow(f"{name}.jpeg", "normal", 0.25, "=p", "normal", "", "", "0" * 64, "", "") for name in names]
    write_table(rows, tmp_path / "scores.csv")
    table = read_score_file(tmp_path / "scores.csv").table
    assert table.paths == ("a\rb.jpeg", "=c.jpeg", "d.jpeg")
    assert table.patients == ("=p",) * 3


def test_only_regular_files_of_a_films_size_are_read(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.jpeg")
    with (tmp_path / "sparse.jpeg").open("wb") as file:
        file.truncate(3 * 2**30)
    for path, reason in (("pipe.jpeg", "no regular file"), ("sparse.jpeg", f"more than {MAX_BYTES:,} bytes")):
        with pytest.raises(OSError, match=reason):
            read_film(Film(str(tmp_path / path)))
    with pytest.raises(OSError, match="no regular file"):
        read_film(Film("/dev/zero"))


def test_no_name_of_a_file_commands_the_terminal(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    film = tmp_path / "a\x1b]0;b\x07\x9bc\u202egpj.png"
    film.write_bytes(b"no picture")
    for verb in (["predict", str(film)], ["batch", str(film), "--out", str(tmp_path / "scores.csv")]):
        with pytest.raises(SystemExit):
            main(verb)
        shown = "".join(capsys.readouterr())
        assert r"a\x1b]0;b\x07\x9bc\u202egpj.png" in shown
        assert printable(shown) == shown
