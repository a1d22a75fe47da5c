"""The specification of the file formats says what the code does: no field is missing, no refusal is words alone."""

from __future__ import annotations

import csv
import dataclasses
import json
import re
import typing
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final

import pytest

from chestxray import schema
from chestxray.errors import ChestXrayError
from chestxray.inference import ood
from chestxray.metrics import scores
from chestxray.metrics.scores import read_score_file
from chestxray.schema import BundleInfo, Film, PackInfo, Prediction, Verdict, read_manifest, write_manifest
from chestxray.training import run_folder
from chestxray.training.train_state import EpochRecord
from pages import ROOT

PAGE: Final = (ROOT / "docs" / "reference" / "formats.md").read_text(encoding="utf-8")
_SECTION: Final = re.compile(r"^#{1,3} (.+?)\n(.*?)(?=^#{1,3} |\Z)", re.MULTILINE | re.DOTALL)
SECTIONS: Final = {found[1]: found[2] for found in _SECTION.finditer(PAGE)}
Row = list[str]

# What the page calls the types of the code.
WORDS: Final = {
    "str": "text",
    "str | None": "text or null",
    "int": "whole number",
    "float": "number",
    "float | None": "number or null",
    "bool": "boolean",
    "Resize": "text",
    "Levels": "text",
    "tuple[str, ...]": "list of text",
    "tuple[int, ...]": "list of whole number",
    "tuple[float, float] | None": "two numbers or null",
    "Mapping[str, str]": "object of text",
    "Mapping[str, Any]": "object",
    "Preprocessing": "Preprocessing",
    "Gate": "Gate",
    "EpochRecord | None": "EpochRecord or null",
    "tuple[OperatingPoint, ...]": "list of OperatingPoint",
}


def tables_of(section: str) -> list[tuple[Row, list[Row]]]:
    """Every table of a section: its head, and its rows."""
    found = []
    for text in re.findall(r"(?:^\|.*\|\n)+", SECTIONS[section], re.MULTILINE):
        rows = [[cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for line in text.splitlines()]
        found.append((rows[0], rows[2:]))
    return found


def fields_told(section: str, head: str = "field") -> dict[str, str]:
    """Names and types of the table of fields of a section, links taken away."""
    (rows,) = (rows for first, rows in tables_of(section) if first[:2] == [head, "type"])
    return {name.strip("`"): re.sub(r"\[(\w+)\]\(\S+\)", r"\1", kind) for name, kind, _ in rows}


def refusals(section: str) -> list[str]:
    return [rows[0].strip() for first, body in tables_of(section) if first[0] == "a reader refuses" for rows in body]


# --------------------------------------------------------------------------- fields


@pytest.mark.parametrize(
    ("section", "kind"),
    [
        ("PackInfo", PackInfo),
        ("Preprocessing", schema.Preprocessing),
        ("RunInfo", run_folder.RunInfo),
        ("EpochRecord", EpochRecord),
        ("BundleInfo", BundleInfo),
        ("OperatingPoint", schema.OperatingPoint),
        ("Prediction", Prediction),
        ("Gate", schema.Gate),
    ],
)
def test_the_page_has_every_field_with_its_type_in_order(section: str, kind: type) -> None:
    fields = {field.name: WORDS[str(field.type)] for field in dataclasses.fields(kind)}
    assert list(fields_told(section).items()) == list(fields.items())


def test_the_page_has_every_column_of_a_manifest_with_its_type() -> None:
    types = typing.get_type_hints(Film)
    columns = {name: WORDS[types[name].__name__] for name in schema.FILM_COLUMNS}
    assert list(fields_told("Film", "column").items()) == list(columns.items())
    assert f"`{schema.VERSION_COLUMN}`" in SECTIONS["Film"]


def test_the_page_has_every_column_of_the_other_tables() -> None:
    assert tuple(fields_told("Scores", "column")) == scores.COLUMNS
    assert tuple(fields_told("validation.csv", "column")) == run_folder.VALIDATION_COLUMNS
    assert all(f"`{ending}`" in SECTIONS["Scores"] for ending in scores.SCORE_FORMATS)


def test_the_page_names_every_word_that_a_manifest_may_hold() -> None:
    for words in (schema.Label, schema.Split, Verdict):
        (row,) = re.findall(rf"^\| `{words.__name__.lower()}` \|.*$", SECTIONS["Film"], re.MULTILINE)
        assert re.findall(r"`(\w+)`", row)[1:] == [word.value for word in words]
    assert all(f"`{policy}`" in SECTIONS["Preprocessing"] for policy in schema.Resize)


def test_the_page_lists_every_file_of_a_run_and_of_a_bundle(bundle: Path) -> None:
    listed = {row[0].strip("`") for _, rows in tables_of("Run") for row in rows}
    assert listed == set(run_folder.RUN_FILES)
    listed = {row[0].strip("`") for head, rows in tables_of("Bundle") if head[0] == "file" for row in rows}
    assert {path.name for path in bundle.iterdir()} == listed
    told = fields_told("gate.json")
    written = json.loads((bundle / "gate.json").read_text())
    assert set(told) - {"looks"} <= set(written) <= set(told)  # a gate of few films has no network
    assert all(f"`{name}`" in SECTIONS["gate.json"] for name in ood.ARRAYS)


def test_the_page_tells_the_versions_that_are_written() -> None:
    ((_, rows),) = tables_of("File formats")
    told = {re.sub(r"\[(\w+)\]\(\S+\)", r"\1", row[0]): row[2] for row in rows}
    assert told == {
        "manifest": str(schema.MANIFEST_VERSION),
        "pack": str(schema.PACK_VERSION),
        "run": str(run_folder.RUN_VERSION),
        "bundle": str(schema.BUNDLE_VERSION),
        "gate": str(ood.GATE_VERSION),
        "prediction": str(schema.PREDICTION_VERSION),
        "scores": "",
    }


# --------------------------------------------------------------------------- examples, and what is refused

READERS: Final[Mapping[str, tuple[str, Callable[[str], Any]]]] = {
    "Pack": ("Preprocessing", PackInfo.from_json),
    "Bundle": ("OperatingPoint", BundleInfo.from_json),
    "Prediction": ("Gate", Prediction.from_json),
}


@pytest.mark.parametrize("name", READERS)
def test_the_example_of_a_format_is_read_and_holds_every_field(name: str) -> None:
    section, read = READERS[name]
    example = _example(section)
    value = read(json.dumps(example))
    assert set(example) == {field.name for field in dataclasses.fields(value)}
    assert json.loads(value.to_json()) == example


@pytest.mark.parametrize(
    ("name", "change"), [(name, change) for name, (section, _) in READERS.items() for change in refusals(section)]
)
def test_a_json_format_refuses_what_the_page_says(name: str, change: str) -> None:
    section, read = READERS[name]
    changed = {**_example(section), **json.loads(f"{{{change.strip('`')}}}")}
    with pytest.raises((ChestXrayError, ValueError, TypeError)):
        read(json.dumps(changed))


def _example(section: str) -> dict[str, Any]:
    (text,) = re.findall(r"^```json\n(.*?)^```", SECTIONS[section], re.MULTILINE | re.DOTALL)
    example: dict[str, Any] = json.loads(text)
    return example


@pytest.mark.parametrize("change", refusals("Film"))
def test_a_manifest_refuses_what_the_page_says(change: str, tmp_path: Path) -> None:
    path = tmp_path / "manifest.csv"
    write_manifest([Film("a.png", label="normal", width=100, height=100, mean_level=0.5)], path)
    _changed(path, change)
    with pytest.raises(ChestXrayError, match="line 2"):
        read_manifest(path)


@pytest.mark.parametrize("change", refusals("Scores"))
def test_a_table_of_scores_refuses_what_the_page_says(change: str, tmp_path: Path) -> None:
    path = tmp_path / "scores.csv"
    path.write_text("path,label,score\na.png,normal,0.2\nb.png,pneumonia,0.9\n")
    assert len(read_score_file(path).table) == 2
    _changed(path, change)
    with pytest.raises(ChestXrayError, match="row 1"):
        read_score_file(path)


def _changed(path: Path, change: str) -> None:
    """Set one cell of the first row of a table, as the page writes it: `column` = `value`, or = (empty)."""
    column, value = (part.strip("`") for part in change.replace("(empty)", "").split(" = "))
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert column in rows[0]
    rows[0][column] = value
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


def test_the_page_tells_refusals_of_every_format() -> None:
    assert all(len(refusals(section)) >= 4 for section in ("Film", "Scores", *(s for s, _ in READERS.values())))
