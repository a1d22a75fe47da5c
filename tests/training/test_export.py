"""Run to bundle: the same answers without torch, calibrated, complete, and nothing of this machine in it."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
import sklearn.metrics
import torch

from chestxray.errors import OutputExists, RunInvalid, SourceInvalid
from chestxray.evaluation.robustness import pool_shifts
from chestxray.images.preprocess import preprocess
from chestxray.images.shifts import SHIFTS
from chestxray.inference.bundle import Bundle
from chestxray.inference.predictor import Predictor
from chestxray.schema import BundleInfo, Preprocessing, Resize
from chestxray.training.checkpoint import read_weights
from chestxray.training.config import Recipe
from chestxray.training.ensemble import Trained
from chestxray.training.export import export_run, model_card, to_onnx, validation_metrics
from chestxray.training.networks import Classifier, build
from chestxray.training.run import train_run
from chestxray.training.run_folder import RunInfo, ValidationTable, restored
from drawing import encoded
from packs import HEIGHT, WIDTH, write_small_pack

# Weak contrast and few epochs: the classes must overlap, or there is nothing to calibrate.
RECIPE = Recipe(epochs=4, batch_size=8, learning_rate=3e-4, precision="float32", seed=2)


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("export")
    write_small_pack(folder / "pack", training=(40, 40), validation=(30, 30), contrast=22.0)
    train_run(folder / "pack", folder / "run", RECIPE)
    return folder / "run"


@pytest.fixture(scope="module")
def bundle(run_folder: Path) -> Bundle:
    export_run(run_folder, run_folder.parent / "bundle", "small")
    return Bundle.open(run_folder.parent / "bundle")


def classifier_of(run: Path) -> Classifier:
    info = RunInfo.read(run)
    return restored(info, read_weights(run / "best.safetensors", info.files["best.safetensors"]))


def assert_same_answers(predictor: Predictor, classifier: Classifier, planes: np.ndarray) -> None:
    logits, maps = predictor.logits(planes)
    with torch.inference_mode():
        expected, expected_maps = classifier.explain(torch.from_numpy(planes[:, None]))
    assert (logits.dtype, logits.shape) == (np.float32, (len(planes),))
    assert (maps.dtype, maps.shape) == (np.float32, tuple(expected_maps.shape))
    np.testing.assert_allclose(logits, expected.numpy(), rtol=0, atol=1e-4)
    np.testing.assert_allclose(maps, expected_maps.numpy(), rtol=0, atol=1e-4)


@pytest.mark.parametrize("films", [1, 5])
def test_the_bundle_answers_as_the_training_network_does(bundle: Bundle, run_folder: Path, films: int) -> None:
    planes = np.random.default_rng(films).integers(0, 256, (films, HEIGHT, WIDTH), dtype=np.uint8)
    assert_same_answers(Predictor(bundle), classifier_of(run_folder), planes)


def test_the_bundle_gives_the_logits_that_validation_saw(bundle: Bundle, run_folder: Path) -> None:
    images = np.load(run_folder.parent / "pack" / "images.npy")
    info = RunInfo.read(run_folder)
    table = ValidationTable.read(run_folder / "validation.csv", info.files["validation.csv"])
    logits, _ = Predictor(bundle).logits(images[80:])
    np.testing.assert_allclose(logits, table.logits, rtol=0, atol=1e-4)


@pytest.mark.real_films
def test_at_full_size_real_films_answer_the_same_in_both(real_films: Path, tmp_path: Path) -> None:
    """The graph of the network that ships, on films from 0.5 to 3.5 megapixels."""
    paths = sorted((real_films / "originals").glob("*/*.jp*g"))[::24]
    planes = np.stack([preprocess(path.read_bytes(), path.name, 112, 160, Resize.SQUEEZE) for path in paths])
    assert len(planes) >= 5
    classifier = build("alexnet5", Preprocessing(112, 160, Resize.SQUEEZE, 0.482, 0.236), seed=4).eval()
    (tmp_path / "model.onnx").write_bytes(to_onnx(classifier, (112, 160)))
    predictor = Predictor(Bundle(tmp_path, minimal_info(tmp_path / "model.onnx", classifier)))
    assert_same_answers(predictor, classifier, planes)
    assert_same_answers(predictor, classifier, planes[:1])


def minimal_info(graph: Path, classifier: Classifier) -> BundleInfo:
    from chestxray.files import sha256_of_file
    from chestxray.schema import OperatingPoint

    return BundleInfo(
        name="fresh",
        network="alexnet5",
        preprocessing=Preprocessing(112, 160, Resize.SQUEEZE, float(classifier.mean), float(classifier.std)),
        temperature=1.0,
        operating_points=(OperatingPoint("half", 0.5, 0.0, 0.0, 0, 0),),
        default_operating_point="half",
        training_data="",
        files={"model.onnx": sha256_of_file(graph)},
        parameters=0,
        created="",
        package_version="",
    )


def test_the_graph_is_one_valid_file_without_traces_of_this_machine(bundle: Bundle) -> None:
    data = (bundle.folder / "model.onnx").read_bytes()
    model = onnx.load_from_string(data)
    onnx.checker.check_model(model, full_check=True)
    assert [(i.name, i.type.tensor_type.elem_type) for i in model.graph.input] == [("film", onnx.TensorProto.UINT8)]
    assert [output.name for output in model.graph.output] == ["logit", "activation"]
    assert all(not tensor.external_data for tensor in model.graph.initializer)
    assert "BatchNormalization" not in {node.op_type for node in model.graph.node}
    for trace in (b"site-packages", b"export.py", b"networks.py", str(Path.cwd()).encode()):
        assert trace not in data


def test_the_same_run_exports_the_same_graph(bundle: Bundle, run_folder: Path, tmp_path: Path) -> None:
    again = export_run(run_folder, tmp_path / "again", "small")
    assert again.files == bundle.info.files


def test_a_bundle_is_complete_and_every_hash_is_right(bundle: Bundle) -> None:
    bundle.verify()
    names = {path.name for path in bundle.folder.iterdir()}
    assert names == {
        "model.onnx",
        "weights.safetensors",
        "metrics.json",
        "MODEL_CARD.md",
        "gate.json",
        "training_films.json",
        "bundle.json",
    }
    assert set(bundle.info.files) == names - {"bundle.json"}


def test_a_bundle_knows_what_it_is(bundle: Bundle, run_folder: Path) -> None:
    info, run = bundle.info, RunInfo.read(run_folder)
    assert (info.name, info.network, info.default_operating_point) == ("small", "alexnet5", "balanced")
    assert info.preprocessing == run.preprocessing
    assert info.training_data == run.training_data
    names = [point.name for point in info.operating_points]
    assert names == [name for name in ("screening", "balanced", "confirming") if name in names]
    assert len(info.operating_points_left_out) == 3 - len(names)


def test_exported_weights_are_those_of_the_best_epoch(bundle: Bundle, run_folder: Path) -> None:
    assert bundle.info.files["weights.safetensors"] == RunInfo.read(run_folder).files["best.safetensors"]


def test_operating_points_reach_what_they_claim(bundle: Bundle, run_folder: Path) -> None:
    run = RunInfo.read(run_folder)
    table = ValidationTable.read(run_folder / "validation.csv", run.files["validation.csv"])
    probabilities = Predictor(bundle).probabilities(table.logits.astype(np.float32))
    for point in bundle.info.operating_points:
        called = probabilities >= point.threshold
        assert point.sensitivity == pytest.approx(sklearn.metrics.recall_score(table.labels, called))
        assert point.specificity == pytest.approx(sklearn.metrics.recall_score(table.labels, called, pos_label=0))


def test_the_calibrated_probabilities_mean_the_share_of_pneumonia_over_all_shifts(
    bundle: Bundle, run_folder: Path
) -> None:
    trained = Trained.read([run_folder])
    labels, logits = pool_shifts(trained.table.labels, {"clean": trained.table.logits, **trained.stress})
    probabilities = Predictor(bundle).probabilities(logits.astype(np.float32))
    assert probabilities.mean() == pytest.approx(labels.mean(), abs=0.01)


def test_metrics_come_with_counts_intervals_and_a_caution(bundle: Bundle) -> None:
    metrics = json.loads((bundle.folder / "metrics.json").read_text())
    assert (metrics["films"], metrics["positives"], metrics["negatives"], metrics["patients"]) == (60, 30, 30, 30)
    assert metrics["auroc"]["interval"]["low"] <= metrics["auroc"]["value"] <= metrics["auroc"]["interval"]["high"]
    for point in metrics["operating_points"]:
        assert sum(point["confusion"].values()) == 60
        assert point["sensitivity"]["films"] == 30
    assert "chosen on these same films" in metrics["cautions"][0]
    assert [row["shift"] for row in metrics["stress"]["rows"]] == ["clean", *(shift.name for shift in SHIFTS)]
    assert metrics["stress"]["rows"][0]["auroc"]["value"] == pytest.approx(metrics["auroc"]["value"])


def test_a_leak_is_told_in_metrics_and_card(bundle: Bundle, run_folder: Path) -> None:
    run = RunInfo.read(run_folder)
    table = ValidationTable.read(run_folder / "validation.csv", run.files["validation.csv"])
    metrics = validation_metrics(table, Trained.read([run_folder]).stress, bundle.info, "films were drawn by film")
    assert metrics["cautions"][0] == "films were drawn by film"
    assert "- films were drawn by film\n" in model_card(bundle.info, [run], metrics)
    assert "Measured elsewhere" not in model_card(bundle.info, [run], metrics)
    assert "## Measured elsewhere\n\n- AUROC 0.9 there\n" in model_card(
        bundle.info, [run], metrics, ["AUROC 0.9 there"]
    )


def test_the_card_says_what_it_is_for_and_what_it_is_not(bundle: Bundle) -> None:
    card = (bundle.folder / "MODEL_CARD.md").read_text()
    front, body = card.removeprefix("---\n").split("\n---\n", 1)
    assert "license: apache-2.0" in front
    assert "model_name: small" in front
    assert body.count(bundle.info.notice) == 1
    assert bundle.info.intended_use.replace(bundle.info.notice, "").strip() in body
    assert "| intended | not intended |" in body
    assert bundle.info.training_data in body
    assert "| clean (" not in body  # the figures of the films as they are stand once
    assert "30 films with pneumonia and 30 normal ones" in body
    assert "{" not in body
    assert all(f"| {shift.name} ({shift.what}) |" in body for shift in SHIFTS)


def test_an_edited_or_unfinished_run_is_not_exported(run_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(RunInvalid, match=r"not a run, run\.json cannot be read"):
        export_run(tmp_path / "none", tmp_path / "bundle")
    copy = tmp_path / "run"
    copy.mkdir()
    for name in ("run.json", "best.safetensors", "validation.csv", "stress.csv"):
        (copy / name).write_bytes((run_folder / name).read_bytes())
    (copy / "validation.csv").write_text((copy / "validation.csv").read_text().replace("normal", "pneumonia", 1))
    with pytest.raises(RunInvalid, match=r"validation\.csv: SHA-256 is .* the file was changed or damaged"):
        export_run(copy, tmp_path / "bundle")
    unfinished = dataclasses.replace(RunInfo.read(copy), state="training")
    (copy / "run.json").write_text(unfinished.to_json())
    with pytest.raises(RunInvalid, match="interrupted before it ended"):
        export_run(copy, tmp_path / "bundle")
    assert not (tmp_path / "bundle").exists()


def test_a_folder_that_is_no_bundle_is_not_overwritten(run_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(OutputExists, match="not a folder that this command wrote"):
        export_run(run_folder, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


@pytest.mark.slow
def test_exporting_is_quiet_and_predicting_needs_no_torch(run_folder: Path, bundle: Bundle, tmp_path: Path) -> None:
    export = (
        "from pathlib import Path; from chestxray.training.export import export_run; "
        f"export_run(Path({str(run_folder)!r}), Path({str(tmp_path / 'quiet')!r}))"
    )
    done = subprocess.run([sys.executable, "-W", "error", "-c", export], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    predict = (
        "import sys; from pathlib import Path; from chestxray.inference.predictor import Predictor; "
        f"Predictor.load(Path({str(bundle.folder)!r})); "
        "sys.exit(bool({'torch', 'onnx', 'safetensors'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", predict], check=False).returncode == 0


# --------------------------------------------------------------------------- pictures to refuse


def checkerboard(patient: int, squares: int) -> np.ndarray:
    """A picture that no training film looks like; the same patient's differ in the number of squares."""
    down, across = np.mgrid[0:HEIGHT, 0:WIDTH]
    grain = np.random.default_rng((patient, squares)).normal(size=(HEIGHT, WIDTH)) * 12
    levels = 60 + 130 * ((down * squares // HEIGHT + across * squares // WIDTH) % 2) + grain
    picture: np.ndarray = levels.clip(0, 255).astype(np.uint8)
    return picture


@pytest.fixture(scope="module")
def boards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A table of 40 checkerboards of 20 patients."""
    folder = tmp_path_factory.mktemp("boards")
    rows = ["path,patient_id"]
    for patient in range(20):
        for squares in (5, 7):
            name = f"{patient}-{squares}.png"
            (folder / name).write_bytes(encoded(checkerboard(patient, squares)))
            rows.append(f"{name},{patient}")
    (folder / "boards.csv").write_text("\n".join([*rows, ""]))
    return folder / "boards.csv"


@pytest.mark.soak  # the fit of the gate takes three minutes
def test_a_bundle_learns_what_it_must_not_answer_and_counts_it_by_patients_held_out(
    run_folder: Path, boards: Path, tmp_path: Path
) -> None:
    export_run(run_folder, tmp_path / "out", refuse=[f"a checkerboard={boards}"], pack=run_folder.parent / "pack")
    made = Bundle.open(tmp_path / "out")
    rows = {row["kind"]: row for row in json.loads((made.folder / "metrics.json").read_text())["gate"]["kinds"]}
    assert rows["a checkerboard"]["origin"] == "given"
    assert 0 < rows["a checkerboard"]["of"] < 40
    assert rows["a checkerboard"]["value"] == 1.0
    assert "| a checkerboard | given, held out by patient |" in (made.folder / "MODEL_CARD.md").read_text()
    board = checkerboard(99, 6).repeat(4, axis=0).repeat(4, axis=1)  # films of less than 64 pixels are refused for that
    gate = Predictor(made, threads=1).predict(encoded(board), "board").gate
    assert not gate.accepted
    assert "like a checkerboard" in gate.reason


def test_pictures_to_refuse_need_the_pack_of_the_run_and_something_that_can_be_read(
    run_folder: Path, boards: Path, tmp_path: Path
) -> None:
    wanted = f"a checkerboard={boards}"
    with pytest.raises(RunInvalid, match="--pack"):
        export_run(run_folder, tmp_path / "out", refuse=[wanted])
    write_small_pack(tmp_path / "other", training=(8, 8), validation=(4, 4))
    with pytest.raises(RunInvalid, match="not the pack that the run was trained on"):
        export_run(run_folder, tmp_path / "out", refuse=[wanted], pack=tmp_path / "other")
    (tmp_path / "words").mkdir()
    (tmp_path / "words" / "a.png").write_text("no picture")
    with pytest.raises(SourceInvalid, match="nothing to learn to refuse"):
        export_run(run_folder, tmp_path / "out", refuse=[str(tmp_path / "words")], pack=run_folder.parent / "pack")
    assert not (tmp_path / "out").exists()
