"""A finished run to a bundle: graph, weights, calibration, operating points, model card."""

from __future__ import annotations

import json
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch

from chestxray import __version__
from chestxray.errors import BundleInvalid
from chestxray.evaluation.calibration import Calibration, calibrated, choose_operating_points, fit_calibration
from chestxray.evaluation.stress import CLEAN, measured_again, pooled, under_shifts
from chestxray.evaluation.summary import measured_where_chosen
from chestxray.files import folder_written_whole
from chestxray.inference.bundle import DESCRIPTION, GRAPH, write_bundle
from chestxray.inference.gate import GATE
from chestxray.inference.predictor import Predictor
from chestxray.schema import INTENDED_AGES, BundleInfo, Split
from chestxray.training import stressed
from chestxray.training.card import model_card
from chestxray.training.checkpoint import read_checked, to_bytes
from chestxray.training.ensemble import Ensemble, Trained
from chestxray.training.graph import OUTPUTS, in_half_precision, to_onnx
from chestxray.training.networks import parameters_of
from chestxray.training.run_folder import RunInfo, ValidationTable

DEFAULT_OPERATING_POINT: Final = "balanced"
TOLERANCE: Final = 1e-4  # log-odds by which the graph may differ from the network it was made of
HALF_TOLERANCE: Final = 0.05  # the same, where weights are stored in 16 bits
COMPARED: Final = (1, 3)  # films in the batches that are compared

CHOSEN_HERE: Final = (
    "The best epoch was chosen on these same films, the calibration and the operating points on them as they are and "
    "under the shifts below: the figures are better than those on unseen films will be. Evaluate the bundle on a test "
    "set."
)

LEAKAGE_ALLOWED: Final = (
    "The sides of the split share patients or films, so the figures are too good. This was allowed, with the reason:"
)

WEIGHTS: Final = "weights.safetensors"
METRICS: Final = "metrics.json"
CARD: Final = "MODEL_CARD.md"


def export_run(
    run: Path, out: Path, name: str = "pneumonia", *, beside: Sequence[Path] = (), compact: bool = False
) -> BundleInfo:
    """Make a bundle of a run's best epoch, or of several runs' that answer as one.

    The calibration and the operating points are chosen on the run's validation films, as they are and under every
    shift: a threshold between two clean sets of scores does not stay between them at the next hospital.

    Args:
        run: a finished run.
        out: the bundle's folder, written whole or not at all; an earlier bundle there is replaced.
        name: the model's, as predictions name it.
        beside: further finished runs on the same pack, of any network; the bundle's log-odds are the mean of all.
        compact: store the graph's weights in 16 bits and leave the second copy, for training on, out.

    Raises:
        RunInvalid: a run is missing, unfinished, damaged or changed, or was trained on another pack.
        BundleInvalid: the graph does not answer as the network does.
        OutputExists: something that is no bundle stands at ``out``.
    """
    trained = Trained.read([run, *beside])
    info = trained.infos[0]
    gate = read_checked(run / GATE, info.files[GATE])
    size = info.preprocessing.size
    with folder_written_whole(out, marker=DESCRIPTION) as folder:
        bundle = _described(name, trained)
        metrics = validation_metrics(trained.table, trained.stress, bundle, _caution(info))
        graph = to_onnx(trained.ensemble, size)
        files = {
            **({GRAPH: in_half_precision(graph)} if compact else {GRAPH: graph, WEIGHTS: to_bytes(trained.weights)}),
            METRICS: (json.dumps(metrics, indent=2) + "\n").encode(),
            CARD: model_card(bundle, trained.infos, metrics, gate).encode(),
            GATE: gate,
        }
        complete = write_bundle(folder, bundle, files)
        _compare(folder, trained.ensemble, size, HALF_TOLERANCE if compact else TOLERANCE)
    return complete


def _described(name: str, trained: Trained) -> BundleInfo:
    info, table = trained.infos[0], trained.table
    labels, logits = pooled(table.labels, {CLEAN: table.logits, **trained.stress})
    calibration = fit_calibration(labels, logits)
    points = choose_operating_points(labels, calibrated(logits, *calibration), Split.VAL)
    return BundleInfo(
        name=name,
        network=trained.network,
        preprocessing=info.preprocessing,
        temperature=calibration.temperature,
        bias=calibration.bias,
        operating_points=measured_again(points, table.labels, calibrated(table.logits, *calibration)),
        default_operating_point=DEFAULT_OPERATING_POINT,
        training_data=info.training_data,
        files={GRAPH: ""},  # write_bundle takes the hashes
        parameters=parameters_of(trained.ensemble),
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        package_version=__version__,
        leakage_allowed=info.leakage_allowed,
        intended_ages=INTENDED_AGES,
    )


def _caution(info: RunInfo) -> str:
    """Why the validation figures cannot be trusted; empty where nothing speaks against them."""
    allowed = f"{LEAKAGE_ALLOWED} {info.leakage_allowed}" if info.leakage_allowed else ""
    return " ".join(sentence for sentence in (allowed, info.leak) if sentence)


def _compare(bundle: Path, networks: Ensemble, size: tuple[int, int], tolerance: float) -> None:
    """Ask both the same. Raises: BundleInvalid, where the answers differ by more than the tolerance."""
    predictor = Predictor.load(bundle)
    generator = np.random.default_rng(0)
    for films in COMPARED:
        planes = generator.integers(0, 256, (films, *size), dtype=np.uint8)
        with torch.inference_mode():
            expected = networks.explain(torch.from_numpy(planes[:, None]))
        for name, wanted, found in zip(OUTPUTS, expected, predictor.logits(planes), strict=True):
            apart = float(np.abs(wanted.numpy() - found).max())
            if not apart <= tolerance * max(1.0, float(wanted.abs().max())):
                raise BundleInvalid(f"the exported graph's {name} differs from the network's by {apart:g}")


# --------------------------------------------------------------------------- figures


def validation_metrics(
    table: ValidationTable, stress: stressed.ByShift, bundle: BundleInfo, leak: str
) -> dict[str, Any]:
    """What ``metrics.json`` says: each figure with its count and its 95% interval, clean and under every shift."""
    calibration = Calibration(bundle.temperature, bundle.bias)
    measured = measured_where_chosen(
        table.labels,
        table.logits,
        table.patients,
        calibration,
        bundle.operating_points,
        chosen_on=Split.VAL.value,
        cautions=[leak, CHOSEN_HERE] if leak else [CHOSEN_HERE],
    )
    shifts = under_shifts(table.labels, {CLEAN: table.logits, **stress}, calibration, bundle.operating_point())
    return {**measured, "stress": shifts.to_json()}
