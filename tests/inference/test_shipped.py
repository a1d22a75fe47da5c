"""The bundles that come with the package: whole, small, and answering without anybody having trained anything."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import chestxray
from chestxray.data.dedup import TRAINING_FILMS, TrainingFilms
from chestxray.errors import BundleInvalid
from chestxray.images.shifts import EXCHANGES, SHIFTS
from chestxray.inference.bundle import BUNDLES, DEFAULT, Bundle, folder_of, shipped_bundles

PAGE_EXAMPLES = Path(chestxray.__file__).parent / "serving" / "page" / "examples"
MEGABYTES_TOGETHER = 8


def test_one_bundle_is_shipped_and_it_is_the_default() -> None:
    assert shipped_bundles() == ("pneumonia",)
    assert DEFAULT in shipped_bundles()


@pytest.mark.parametrize("name", shipped_bundles())
def test_every_file_is_as_it_was_written_and_nothing_else_is_there(name: str) -> None:
    bundle = Bundle.open(folder_of(name))
    bundle.verify()
    assert {path.name for path in bundle.folder.iterdir()} == {*bundle.info.files, "bundle.json"}
    assert bundle.info.name == name
    assert {"model.onnx", "gate.json", "metrics.json", "MODEL_CARD.md"} <= set(bundle.info.files)


def test_they_are_small_enough_to_travel_with_the_package() -> None:
    size = sum(path.stat().st_size for path in BUNDLES.rglob("*") if path.is_file())
    assert size <= MEGABYTES_TOGETHER * 1_000_000


@pytest.mark.parametrize("name", shipped_bundles())
def test_the_measurements_come_with_it_clean_and_under_every_shift(name: str) -> None:
    metrics = json.loads((folder_of(name) / "metrics.json").read_text())
    assert metrics["auroc"]["value"] > 0.99
    assert [row["shift"] for row in metrics["stress"]["rows"]] == ["clean", *(shift.name for shift in SHIFTS)]
    assert all(row["auroc"]["interval"]["low"] > 0.95 for row in metrics["stress"]["rows"])
    assert all(point["sensitivity"]["films"] > 500 for point in metrics["operating_points"])


@pytest.mark.parametrize("name", shipped_bundles())
def test_exchanging_what_must_not_matter_hardly_moves_it(name: str) -> None:
    metrics = json.loads((folder_of(name) / "metrics.json").read_text())
    rows = {row["exchange"]: row for row in metrics["reliance"]["rows"]}
    assert list(rows) == [exchange.name for exchange in EXCHANGES]
    assert rows["grey_levels"]["other"]["value"] > 0.995
    assert rows["low_frequencies"]["other"]["value"] > 0.993
    assert all(row["gap"] < 0.003 for row in rows.values())
    assert sum(not row["trained"] for row in rows.values()) >= 2


@pytest.mark.parametrize("name", shipped_bundles())
def test_it_knows_what_it_was_trained_on(name: str) -> None:
    bundle = Bundle.open(folder_of(name))
    assert len(TrainingFilms.from_json(bundle.read(TRAINING_FILMS).decode()).sha256) > 4_000


@pytest.mark.parametrize("name", shipped_bundles())
def test_a_drawn_film_is_answered_and_a_drawn_opacity_is_more_suspicious(name: str) -> None:
    model = chestxray.load(name)
    clear, net = (model(PAGE_EXAMPLES / f"{film}.jpg", heatmap=True) for film in ("clear", "net"))
    assert clear.gate.accepted
    assert net.gate.accepted
    assert clear.probability < net.probability
    assert net.heatmap is not None


@pytest.mark.real_films
@pytest.mark.parametrize("name", shipped_bundles())
def test_real_films_are_told_apart(name: str, real_films: Path) -> None:
    """A plausibility check, no measurement: some of these films were trained on."""
    model = chestxray.load(name)
    films = {split: sorted((real_films / "originals" / split).glob("*"))[::8] for split in ("NORMAL", "PNEUMONIA")}
    answers = {split: [model(film) for film in paths] for split, paths in films.items()}
    right = [a.label == "normal" for a in answers["NORMAL"]] + [a.label == "pneumonia" for a in answers["PNEUMONIA"]]
    assert sum(right) >= 0.85 * len(right)


def test_a_name_that_nobody_knows_is_refused_with_those_that_exist() -> None:
    with pytest.raises(BundleInvalid, match="pneumonia"):
        folder_of("pneumonitis")


def test_a_folder_of_ones_own_comes_before_a_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "pneumonia").mkdir()
    assert folder_of("pneumonia") == Path("pneumonia")
