"""A finished run to a bundle: graph, weights, calibration, operating points, model card."""

from __future__ import annotations

import io
import json
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from torch import Tensor, nn

from chestxray import __version__
from chestxray.errors import BundleInvalid, RunInvalid
from chestxray.evaluation.calibration import Calibration, calibrated, choose_operating_points, fit_calibration
from chestxray.evaluation.summary import measured_where_chosen
from chestxray.files import folder_written_whole
from chestxray.inference.bundle import DESCRIPTION, GRAPH, write_bundle
from chestxray.inference.predictor import Predictor
from chestxray.schema import BundleInfo, OperatingPoint, Split
from chestxray.training.card import model_card
from chestxray.training.checkpoint import read_weights, to_bytes
from chestxray.training.networks import Classifier, build, parameters_of
from chestxray.training.run_folder import BEST, VALIDATION, RunInfo, ValidationTable

OPSET: Final = 20  # read by onnxruntime from 1.17 on
DEFAULT_OPERATING_POINT: Final = "balanced"
TOLERANCE: Final = 1e-4  # log-odds by which the graph may differ from the network it was made of
COMPARED: Final = (1, 3)  # films in the batches that are compared

OUTPUTS: Final = ("logit", "activation")

CHOSEN_HERE: Final = (
    "The best epoch, the calibration and the operating points were chosen on these same films: the figures are "
    "better than those on unseen films will be. Evaluate the bundle on a test set."
)

LEAKAGE_ALLOWED: Final = (
    "The sides of the split share patients or films, so the figures are too good. This was allowed, with the reason:"
)

WEIGHTS: Final = "weights.safetensors"
METRICS: Final = "metrics.json"
CARD: Final = "MODEL_CARD.md"


def export_run(run: Path, out: Path, name: str = "pneumonia") -> BundleInfo:
    """Make a bundle of a run's best epoch.

    The calibration and the operating points are chosen on the run's validation films.

    Args:
        run: a finished run.
        out: the bundle's folder, written whole or not at all; an earlier bundle there is replaced.
        name: the model's, as predictions name it.

    Raises:
        RunInvalid: the run is missing, unfinished, damaged or changed.
        BundleInvalid: the graph does not answer as the network does.
        OutputExists: something that is no bundle stands at ``out``.
    """
    info = RunInfo.read(run)
    info.require_finished(run)
    weights = read_weights(run / BEST, info.files[BEST])
    table = ValidationTable.read(run / VALIDATION, info.files[VALIDATION])
    classifier = restored(info, weights)
    size = (info.preprocessing.height, info.preprocessing.width)
    with folder_written_whole(out, marker=DESCRIPTION) as beside:
        bundle = _described(name, info, table, parameters_of(classifier))
        metrics = validation_metrics(
            table, Calibration(bundle.temperature, bundle.bias), bundle.operating_points, _caution(info)
        )
        files = {
            GRAPH: to_onnx(classifier, size),
            WEIGHTS: to_bytes(weights),
            METRICS: (json.dumps(metrics, indent=2) + "\n").encode(),
            CARD: model_card(bundle, info, metrics).encode(),
        }
        complete = write_bundle(beside, bundle, files)
        _compare(beside, classifier, size)
    return complete


def _described(name: str, info: RunInfo, table: ValidationTable, parameters: int) -> BundleInfo:
    calibration = fit_calibration(table.labels, table.logits)
    return BundleInfo(
        name=name,
        network=info.recipe["network"],
        preprocessing=info.preprocessing,
        temperature=calibration.temperature,
        bias=calibration.bias,
        operating_points=choose_operating_points(table.labels, calibrated(table.logits, *calibration), Split.VAL),
        default_operating_point=DEFAULT_OPERATING_POINT,
        training_data=info.training_data,
        files={GRAPH: ""},  # write_bundle takes the hashes
        parameters=parameters,
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        package_version=__version__,
        leakage_allowed=info.leakage_allowed,
    )


def _caution(info: RunInfo) -> str:
    """Why the validation figures cannot be trusted; empty where nothing speaks against them."""
    allowed = f"{LEAKAGE_ALLOWED} {info.leakage_allowed}" if info.leakage_allowed else ""
    return " ".join(sentence for sentence in (allowed, info.leak) if sentence)


def restored(info: RunInfo, weights: dict[str, Tensor]) -> Classifier:
    """The trained classifier, ready to judge. Raises: RunInvalid, where the weights do not fit the network."""
    classifier = build(info.recipe["network"], info.preprocessing)
    try:
        classifier.load_state_dict(weights)
    except RuntimeError as error:
        raise RunInvalid(f"the weights do not fit {info.recipe['network']} ({error})") from error
    return classifier.eval()


# --------------------------------------------------------------------------- graph


class _Explained(nn.Module):
    """What the graph computes; the argument's name is the input's."""

    def __init__(self, classifier: Classifier) -> None:
        super().__init__()
        self.classifier = classifier

    def forward(self, film: Tensor) -> tuple[Tensor, Tensor]:
        return self.classifier.explain(film)


def to_onnx(classifier: Classifier, size: tuple[int, int]) -> bytes:
    """The classifier as one ONNX file, weights within.

    Input "film": uint8 (N, 1, height, width). Outputs "logit": float32 (N,), log-odds before calibration;
    "activation": float32 (N, rows, columns). N is free.

    Args:
        classifier: set to evaluation.
        size: (height, width) in pixels.
    """
    module = _Explained(classifier).eval()
    film = torch.zeros((2, 1, *size), dtype=torch.uint8)  # 2, since a batch of 1 would be taken for a constant
    with _quiet():
        program = torch.onnx.export(
            module,
            (film,),
            dynamo=True,
            input_names=["film"],
            output_names=list(OUTPUTS),
            dynamic_shapes=({0: torch.export.Dim("films")},),
            opset_version=OPSET,
            verbose=False,
        )
    if program is None:  # the exporter's signature allows it where it writes a file itself
        raise BundleInvalid("the exporter gave no graph")
    return _without_traces(program.model_proto)


@contextmanager
def _quiet() -> Iterator[None]:
    """The exporter prints, logs and warns about its own inner workings; its errors still arise."""
    level = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(), redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(level)


def _without_traces(model: Any) -> bytes:
    """The serialised graph without what the exporter notes about this machine's files and source lines."""
    graph = model.graph
    for part in (model, graph, *graph.node, *graph.input, *graph.output, *graph.value_info, *graph.initializer):
        del part.metadata_props[:]
        part.doc_string = ""
    data: bytes = model.SerializeToString(deterministic=True)
    return data


def _compare(bundle: Path, classifier: Classifier, size: tuple[int, int]) -> None:
    """Ask both the same. Raises: BundleInvalid, where the answers differ by more than TOLERANCE."""
    predictor = Predictor.load(bundle)
    generator = np.random.default_rng(0)
    for films in COMPARED:
        planes = generator.integers(0, 256, (films, *size), dtype=np.uint8)
        with torch.inference_mode():
            expected = classifier.explain(torch.from_numpy(planes[:, None]))
        for name, wanted, found in zip(OUTPUTS, expected, predictor.logits(planes), strict=True):
            apart = float(np.abs(wanted.numpy() - found).max())
            if not apart <= TOLERANCE * max(1.0, float(wanted.abs().max())):
                raise BundleInvalid(f"the exported graph's {name} differs from the network's by {apart:g}")


# --------------------------------------------------------------------------- figures


def validation_metrics(
    table: ValidationTable, calibration: Calibration, points: tuple[OperatingPoint, ...], leak: str
) -> dict[str, Any]:
    """What ``metrics.json`` says: each figure with its count and its 95% interval."""
    return measured_where_chosen(
        table.labels,
        table.logits,
        table.patients,
        calibration,
        points,
        chosen_on=Split.VAL.value,
        cautions=[leak, CHOSEN_HERE] if leak else [CHOSEN_HERE],
    )
