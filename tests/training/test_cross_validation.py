"""Networks that were trained without some of the films, and what they make of those."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from chestxray.cli import main
from chestxray.data.audit import audit, overlap
from chestxray.data.pack import Pack
from chestxray.errors import OutOfRange
from chestxray.metrics.scores import read_scores
from chestxray.schema import Film, Split, write_manifest
from chestxray.training.config import Recipe
from chestxray.training.cross_validation import PACK, CrossValidation

QUICK = Recipe.shipped("default").with_changes(epochs=1, batch_size=16, minimum_steps=0)


@pytest.fixture(scope="module")
def films(synthetic_rows: Sequence[Film]) -> list[Film]:
    """The accepted films, with a column that says which of two rooms a patient was taken in."""
    accepted = [film for film in synthetic_rows if film.is_accepted]
    names = sorted({film.patient_id for film in accepted})
    room = {name: "one" if number % 3 else "two" for number, name in enumerate(names)}
    return [dataclasses.replace(film, extra=(("room", room[film.patient_id]),)) for film in accepted]


@pytest.fixture(scope="module")
def networks(films: list[Film], tmp_path_factory: pytest.TempPathFactory) -> CrossValidation:
    found = audit(films, workers=1)
    return CrossValidation(films, found, tmp_path_factory.mktemp("runs"), QUICK, device="cpu", workers=1)


@pytest.mark.slow
def test_every_film_is_scored_by_a_network_that_saw_no_film_of_its_patient(networks: CrossValidation) -> None:
    table = networks.by_patient(2)
    assert table.paths == networks.found.paths
    assert np.isfinite(table.probabilities).all()
    last = Pack.open(networks.runs / PACK)  # of the second fold
    held_out = {film.patient_id for film in last.films if film.split == Split.VAL}
    assert held_out.isdisjoint(film.patient_id for film in last.films if film.split == Split.TRAIN)
    assert 0 < len(held_out) < len({film.patient_id for film in networks.films})
    measured = overlap(networks.found, dict(zip(table.paths, table.probabilities.tolist(), strict=True)))
    assert measured.missing == 0

    weights = networks.runs / "fold-1-of-2" / "best.safetensors"
    trained = weights.stat().st_mtime_ns
    assert networks.by_patient(2) == table  # a second call reads what stands there
    assert weights.stat().st_mtime_ns == trained


@pytest.mark.slow
def test_a_group_left_out_of_training_is_measured_on_its_own_films(networks: CrossValidation) -> None:
    (largest,) = networks.by_group(1)
    group = next(group for group in networks.found.groups if group.number == largest.group)
    kept = [film for film in Pack.open(networks.runs / PACK).films if film.split == Split.TRAIN]
    inside = {
        path
        for path, number in zip(networks.found.paths, networks.found.group_of[group.kind].tolist(), strict=True)
        if number == group.number
    }
    patients = {film.patient_id for film in networks.films if film.path in inside}
    assert kept
    assert not [film for film in kept if film.path in inside or film.patient_id in patients]
    assert largest.measure.value is not None
    assert largest.measure.films >= group.films


@pytest.mark.parametrize("folds", [0, 1, 21])
def test_folds_outside_their_range_are_refused(folds: int, tmp_path: Path) -> None:
    no_audit: Any = None  # refused before it is looked at
    with pytest.raises(OutOfRange, match="give 2 to 20"):
        CrossValidation((), no_audit, tmp_path, QUICK).by_patient(folds)


@pytest.mark.slow
def test_the_verb_keeps_the_scores_and_shows_the_model_on_the_page(
    films: list[Film], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_manifest(films, tmp_path / "clean.csv")
    recipe = tmp_path / "quick.toml"
    recipe.write_text(QUICK.to_toml(), encoding="utf-8")
    with pytest.raises(SystemExit) as end:
        main(
            [
                *("audit", str(tmp_path / "clean.csv"), "--out", str(tmp_path / "audit"), "--folds", "2"),
                *("--leave-out", "1", "--runs", str(tmp_path / "runs"), "--recipe", str(recipe), "--workers", "1"),
                "--json",
            ]
        )
    assert not end.value.code
    document = json.loads(capsys.readouterr().out)
    assert document["overlap"]["missing"] == 0
    assert document["left_out"][0]["measure"]["value"] is not None
    assert len(read_scores(tmp_path / "runs" / "scores.csv")) == len(films)
    page = (tmp_path / "audit" / "index.html").read_text(encoding="utf-8")
    assert "A model, where the shortcut cannot help it" in page
    assert f"group {document['left_out'][0]['group']}, left out of training" in page


@pytest.mark.parametrize(
    ("typed", "said"),
    [
        (["--leave-out", "1"], "Give --runs FOLDER"),
        (["--folds", "2", "--runs", "RUNS", "--scores", "SCORES"], "Leave --scores out"),
        (["--folds", "2", "--runs", "RUNS", "--recipe", "transfr"], "transfer"),
        (["--folds", "2", "--runs", "RUNS", "--recipe", "distilled"], "needs a teacher"),
        (["--scores", "SCORES"], "SCORES"),
    ],
)
def test_what_cannot_be_done_is_refused_before_a_film_is_opened(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], typed: Sequence[str], said: str
) -> None:
    write_manifest([Film(str(tmp_path / "gone.png"), label="normal")], tmp_path / "films.csv")
    with pytest.raises(SystemExit) as end:
        main(["audit", str(tmp_path / "films.csv"), *typed])
    assert end.value.code
    printed = capsys.readouterr().err
    assert said in printed
    assert "gone.png" not in printed  # which is what opening the films ends with


def test_networks_without_a_place_for_them_are_refused_before_a_film_is_opened(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_manifest([Film(str(tmp_path / "gone.png"), label="normal")], tmp_path / "films.csv")
    with pytest.raises(SystemExit) as end:
        main(["audit", str(tmp_path / "films.csv"), "--folds", "2"])
    assert end.value.code == 2
    assert "Give --runs FOLDER" in capsys.readouterr().err
