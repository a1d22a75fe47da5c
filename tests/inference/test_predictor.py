"""Bundle and film to prediction: the corridor, the heat map, and bundles that must be refused."""

from __future__ import annotations

import base64
import csv
import dataclasses
import hashlib
import io
import json
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from chestxray.errors import BundleInvalid, TruncatedFilm, UnsupportedFormat
from chestxray.inference.batch import score_films, write_scored_films
from chestxray.inference.bundle import Bundle, write_bundle
from chestxray.inference.predictor import Predictor
from chestxray.schema import NOTICE, BundleInfo, Film
from drawing import encoded


@pytest.fixture(scope="module")
def predictor(bundle: Path) -> Predictor:
    return Predictor.load(bundle, threads=1)


def test_a_prediction_names_film_model_point_and_notice(predictor: Predictor, film: bytes) -> None:
    answer = predictor.predict(film, "film.jpeg")
    assert answer.film_sha256 == hashlib.sha256(film).hexdigest()
    assert answer.model_sha256 == hashlib.sha256((predictor.folder / "model.onnx").read_bytes()).hexdigest()
    assert answer.operating_point == predictor.info.default_operating_point
    assert answer.notice == NOTICE
    assert answer.probability is not None
    assert answer.label == ("pneumonia" if answer.probability >= answer.threshold else "normal")
    assert answer.heatmap is None


def test_the_operating_point_changes_the_label_and_never_the_probability(predictor: Predictor, film: bytes) -> None:
    probability = predictor.predict(film, "film.jpeg").probability
    assert probability is not None
    below, at, above = probability / 2, probability, (1 + probability) / 2
    points = [
        dataclasses.replace(point, threshold=threshold)
        for point, threshold in zip(predictor.info.operating_points, (below, at, above), strict=True)
    ]
    moved = Predictor.load(predictor.folder, threads=1)
    moved.info = dataclasses.replace(predictor.info, operating_points=tuple(points))
    answers = [moved.predict(film, "film.jpeg", operating_point=point.name) for point in points]
    assert [answer.label for answer in answers] == ["pneumonia", "pneumonia", "normal"]
    assert {answer.probability for answer in answers} == {probability}


def test_an_unknown_operating_point_is_refused_with_those_that_exist(predictor: Predictor, film: bytes) -> None:
    with pytest.raises(BundleInvalid, match="'strict'; it has .*balanced"):
        predictor.predict(film, "film.jpeg", operating_point="strict")


def test_bytes_that_are_no_film_raise_and_a_film_that_must_not_be_classified_is_refused(
    predictor: Predictor, film: bytes
) -> None:
    with pytest.raises(UnsupportedFormat):
        predictor.predict(b"not a film", "film.gif")
    with pytest.raises(TruncatedFilm):
        predictor.predict(film[: len(film) // 2], "film.jpeg")
    blank = predictor.predict(encoded(np.full((200, 200), 9, np.uint8)), "blank.png")
    assert not blank.gate.accepted
    assert "uniform" in blank.gate.reason
    assert blank.probability is None
    assert blank.label is None


def test_a_batch_gives_what_single_films_give(predictor: Predictor, synthetic_rows: Sequence[Film]) -> None:
    rows = list(score_films(predictor, synthetic_rows, workers=1))
    assert [row.film for row in rows] == list(synthetic_rows)
    refused = 0
    for row in rows:
        if row.prediction.gate.accepted:
            single = predictor.predict(Path(row.film.path).read_bytes(), row.film.path)
            assert row.prediction.probability == pytest.approx(single.probability, abs=1e-5)
            assert row.prediction.film_sha256 == row.film.sha256
        else:
            refused += 1
            assert row.prediction.gate.reason
    assert 0 < refused < 15


def test_the_scores_file_has_a_row_a_film_with_its_reason(
    tmp_path: Path, predictor: Predictor, synthetic_rows: Sequence[Film]
) -> None:
    rows = list(score_films(predictor, synthetic_rows[:40], workers=1))
    gone = list(score_films(predictor, [Film(str(tmp_path / "gone.png"))], workers=1))
    write_scored_films(rows + gone, tmp_path / "scores.csv")
    with (tmp_path / "scores.csv").open() as file:
        table = list(csv.DictReader(file))
    assert len(table) == 41
    assert table[-1]["score"] == ""
    assert "No such file" in table[-1]["reason"]
    for line, row in zip(table, rows, strict=False):
        assert (line["score"] == "") == (line["reason"] != "")
        if line["score"]:
            assert float(line["score"]) == row.prediction.probability


def test_predicting_imports_no_torch(bundle: Path, film_paths: Sequence[Path]) -> None:
    code = (
        "import sys\n"
        "from chestxray.cli import main\n"
        "try: main(['predict', sys.argv[2], '--bundle', sys.argv[1], '--json'])\n"
        "except SystemExit as end: assert not end.code, end.code\n"
        "assert 'torch' not in sys.modules and 'fastapi' not in sys.modules\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, bundle, film_paths[0]], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["predictions"][0]["gate"]["accepted"]


# --------------------------------------------------------------------------- heat map


def test_the_heat_map_has_the_films_proportions(predictor: Predictor, film: bytes) -> None:
    answer = predictor.predict(film, "film.jpeg", heatmap=True)
    assert answer.heatmap is not None
    with Image.open(io.BytesIO(base64.b64decode(answer.heatmap))) as overlay, Image.open(io.BytesIO(film)) as original:
        assert overlay.mode == "RGBA"
        assert max(overlay.size) == 512
        assert overlay.width / overlay.height == pytest.approx(original.width / original.height, rel=0.01)


# --------------------------------------------------------------------------- bundles


@pytest.fixture
def copy(bundle: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(bundle, tmp_path / "copy"))


def test_a_bundle_that_was_written_verifies(bundle: Path) -> None:
    opened = Bundle.open(bundle)
    opened.verify()
    assert set(opened.info.files) == {
        "model.onnx",
        "weights.safetensors",
        "MODEL_CARD.md",
        "metrics.json",
        "gate.json",
        "training_films.json",
    }


def test_one_changed_byte_of_the_graph_is_refused_by_its_hash(copy: Path) -> None:
    graph = bytearray((copy / "model.onnx").read_bytes())
    graph[len(graph) // 2] ^= 1
    (copy / "model.onnx").write_bytes(graph)
    with pytest.raises(BundleInvalid, match=r"model\.onnx: SHA-256 is .* expected"):
        Predictor.load(copy)


def test_a_missing_file_and_a_missing_folder_are_named(copy: Path) -> None:
    (copy / "weights.safetensors").unlink()
    with pytest.raises(BundleInvalid, match=r"weights\.safetensors is missing"):
        Bundle.open(copy)
    with pytest.raises(BundleInvalid, match="not a bundle"):
        Bundle.open(copy / "nowhere")


def test_a_bundle_cannot_point_outside_its_folder(copy: Path) -> None:
    info = Bundle.open(copy).info
    outside = dataclasses.replace(info, files={**info.files, "../secret": "0" * 64})
    (copy / "bundle.json").write_text(outside.to_json())
    with pytest.raises(BundleInvalid, match="lies outside the bundle"):
        Bundle.open(copy)


def test_a_graph_that_is_none_is_refused_in_one_line(tmp_path: Path, bundle: Path) -> None:
    info: BundleInfo = Bundle.open(bundle).info
    written = write_bundle(tmp_path / "other", info, {"model.onnx": b"not a graph"})
    assert Bundle.open(tmp_path / "other").info == written
    with pytest.raises(BundleInvalid, match="onnxruntime refuses the graph"):
        Predictor.load(tmp_path / "other")
