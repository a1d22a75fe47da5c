"""Several runs as one: averaged weights, averaged answers, and weights in 16 bits."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

from chestxray.errors import RunInvalid, UsageError
from chestxray.inference.bundle import Bundle
from chestxray.inference.predictor import Predictor
from chestxray.training.checkpoint import read_weights
from chestxray.training.config import Recipe
from chestxray.training.ensemble import Trained, blend_runs
from chestxray.training.export import export_run
from chestxray.training.run import train_run
from chestxray.training.run_folder import BEST_WEIGHTS, RunInfo
from packs import HEIGHT, WIDTH, write_small_pack

pytestmark = pytest.mark.slow  # five trainings; "several runs answer as one" in test_public_api.py is quick

RECIPE = Recipe(epochs=2, batch_size=16, precision="float32")
TRANSFER = RECIPE.with_changes(network="efficientnet_lite0", epochs=1, learning_rate=1e-4)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("several")
    write_small_pack(folder / "pack")
    train_run(folder / "pack", folder / "alexnet5", RECIPE)
    train_run(folder / "pack", folder / "residual", RECIPE.with_changes(network="residual", seed=1))
    for seed in (0, 1):
        train_run(folder / "pack", folder / f"transfer{seed}", TRANSFER.with_changes(seed=seed))
    return folder


@pytest.fixture(scope="module")
def planes() -> npt.NDArray[np.uint8]:
    return np.random.default_rng(2).integers(0, 256, (5, HEIGHT, WIDTH), dtype=np.uint8)


def answers(folder: Path, name: str, planes: npt.NDArray[np.uint8], **options: object) -> tuple[np.ndarray, ...]:
    export_run(folder / name, folder / f"bundle_{name}", **options)
    return Predictor.load(folder / f"bundle_{name}").logits(planes)


def test_runs_side_by_side_answer_with_the_mean_of_their_log_odds(folder: Path, planes: npt.NDArray[np.uint8]) -> None:
    one, other = answers(folder, "alexnet5", planes), answers(folder, "residual", planes)
    info = export_run(folder / "alexnet5", folder / "both", beside=[folder / "residual"])
    logits, maps = Predictor.load(folder / "both").logits(planes)
    np.testing.assert_allclose(logits, (one[0] + other[0]) / 2, atol=1e-4)
    finest = max(one[1].shape[1], other[1].shape[1])
    assert maps.shape[1] == finest
    sums = [found[1].sum(axis=(1, 2)) for found in (one, other)]
    np.testing.assert_allclose(maps.sum(axis=(1, 2)), (sums[0] + sums[1]) / 2, atol=1e-3)
    assert info.network == "alexnet5 + residual"
    assert info.parameters == sum(
        Bundle.open(folder / f"bundle_{name}").info.parameters for name in ("alexnet5", "residual")
    )
    card = (folder / "both" / "MODEL_CARD.md").read_text()
    assert "`alexnet5`, recipe with seed 0" in card
    assert "`residual`, recipe with seed 1" in card


def test_thresholds_are_chosen_on_the_mean_answers(folder: Path) -> None:
    trained = Trained.read([folder / "alexnet5", folder / "residual"])
    single = [Trained.read([folder / name]) for name in ("alexnet5", "residual")]
    np.testing.assert_allclose(trained.table.logits, (single[0].table.logits + single[1].table.logits) / 2)
    np.testing.assert_allclose(trained.stress["noisy"], (single[0].stress["noisy"] + single[1].stress["noisy"]) / 2)


def test_runs_on_two_packs_do_not_answer_as_one(folder: Path, tmp_path: Path) -> None:
    write_small_pack(tmp_path / "pack", contrast=50.0)
    train_run(tmp_path / "pack", tmp_path / "run", RECIPE.with_changes(epochs=1))
    with pytest.raises(RunInvalid, match="was trained on another pack"):
        export_run(folder / "alexnet5", tmp_path / "bundle", beside=[tmp_path / "run"])


def test_a_compact_bundle_is_half_as_large_and_answers_alike(folder: Path, planes: npt.NDArray[np.uint8]) -> None:
    logits, _ = answers(folder, "residual", planes)
    info = export_run(folder / "residual", folder / "compact", compact=True)
    Bundle.open(folder / "compact").verify()
    assert "weights.safetensors" not in info.files
    sizes = [(folder / name / "model.onnx").stat().st_size for name in ("compact", "bundle_residual")]
    assert sizes[0] < 0.55 * sizes[1]
    np.testing.assert_allclose(Predictor.load(folder / "compact").logits(planes)[0], logits, atol=0.05)


def test_a_blend_is_a_run_with_the_mean_weights(folder: Path) -> None:
    runs = [folder / "transfer0", folder / "transfer1"]
    summary = blend_runs(runs, folder / "pack", folder / "blend")
    weights = [
        read_weights(run / BEST_WEIGHTS, RunInfo.read(run).files[BEST_WEIGHTS]) for run in (*runs, folder / "blend")
    ]
    learnt = [name for name in weights[0] if name.endswith(("weight", "bias"))]
    assert len(learnt) > 100
    for name in learnt:
        np.testing.assert_allclose(weights[2][name], (weights[0][name] + weights[1][name]) / 2, atol=1e-6)
    measured = [name for name in weights[0] if name.endswith("running_mean")]
    assert any(not np.allclose(weights[2][name], weights[0][name]) for name in measured)
    assert summary.info.blended == (0, 1)
    assert RunInfo.read(folder / "blend") == summary.info
    export_run(folder / "blend", folder / "blend_bundle")
    card = (folder / "blend_bundle" / "MODEL_CARD.md").read_text()
    assert "the mean of the weights of 2 runs of one recipe (seeds 0, 1)" in card


def test_only_like_runs_that_began_alike_are_blended(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="at least two"):
        blend_runs([folder / "transfer0"], folder / "pack", tmp_path / "out")
    with pytest.raises(RunInvalid, match="another recipe"):
        blend_runs([folder / "transfer0", folder / "residual"], folder / "pack", tmp_path / "out")
    with pytest.raises(UsageError, match="alexnet5 begins from chance"):
        blend_runs([folder / "alexnet5", folder / "alexnet5"], folder / "pack", tmp_path / "out")
    assert not (tmp_path / "out").exists()
