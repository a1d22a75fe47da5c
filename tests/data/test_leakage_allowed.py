"""Leakage that was allowed on purpose: its reason stays with everything that is made of those films."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest

from chestxray.data.pack import Pack
from chestxray.errors import Leakage
from chestxray.evaluation.evaluate import score_table
from chestxray.inference.batch import ScoredFilm
from chestxray.inference.bundle import Bundle
from chestxray.schema import Film, Gate, PackInfo, Prediction, fingerprint, read_manifest, write_manifest
from chestxray.training.config import Recipe
from chestxray.training.export import export_run
from chestxray.training.run import train_run
from chestxray.training.run_folder import RunInfo
from packs import write_small_pack

REASON = "the split of a published study, for comparison"


@pytest.fixture
def leaking(tmp_path: Path) -> Path:
    """A small pack in which one patient stands on both splits."""
    folder = tmp_path / "pack"
    write_small_pack(folder, training=(12, 12), validation=(6, 6))
    films = [dataclasses.replace(film, patient_id="p1") for film in read_manifest(folder / "manifest.csv")]
    write_manifest(films, folder / "manifest.csv")
    info = PackInfo.from_json((folder / "pack.json").read_text())
    (folder / "pack.json").write_text(dataclasses.replace(info, fingerprint=fingerprint(films)).to_json())
    return folder


def allow(pack: Path) -> None:
    info = dataclasses.replace(Pack.open(pack).info, leakage_allowed=REASON)
    (pack / "pack.json").write_text(info.to_json())


@pytest.mark.slow
def test_the_reason_stands_in_run_bundle_metrics_and_card(leaking: Path, tmp_path: Path) -> None:
    recipe = Recipe(epochs=1, batch_size=8, precision="float32")
    with pytest.raises(Leakage, match="p1"):
        train_run(leaking, tmp_path / "run", recipe)
    allow(leaking)
    train_run(leaking, tmp_path / "run", recipe)
    assert RunInfo.read(tmp_path / "run").leakage_allowed == REASON
    export_run(tmp_path / "run", tmp_path / "bundle")
    assert Bundle.open(tmp_path / "bundle").info.leakage_allowed == REASON
    assert REASON in json.loads((tmp_path / "bundle/metrics.json").read_text())["cautions"][0]
    assert REASON in (tmp_path / "bundle/MODEL_CARD.md").read_text()


def test_further_columns_of_the_source_become_subgroups() -> None:
    films = [
        Film("/a.png", "normal", extra=(("age", "3"), ("score", "9"))),
        Film("/b.png", "pneumonia", cause="virus", extra=(("ward", "north"),)),
    ]
    answer = Prediction("", Gate(accepted=True), 0.5, "pneumonia", "balanced", 0.5, "model", "")
    table = score_table([ScoredFilm(film, answer) for film in films], Path("films.csv"))
    assert dict(table.columns) == {"cause": ("", "virus"), "age": ("3", ""), "ward": ("", "north")}
