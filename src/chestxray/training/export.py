"""From finished run to bundle: graph, weights, calibration, operating points, model card."""

from __future__ import annotations

import io
import json
import logging
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stdout
from datetime import UTC, datetime
from importlib import resources
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from torch import Tensor, nn

from chestxray import __version__
from chestxray.data.dedup import TRAINING_FILMS
from chestxray.data.pack import Pack
from chestxray.errors import BundleInvalid, RunInvalid
from chestxray.evaluation.model_card import (
    CARD_FILE,
    METRICS_JSON,
    gate_figures,
    gate_table,
    header,
    measured_where_chosen,
    section,
)
from chestxray.evaluation.robustness import CLEAN, measured_again, pool_shifts, reliance, under_shifts
from chestxray.files import folder_written_whole
from chestxray.inference.bundle import BUNDLE_JSON, GRAPH, write_bundle
from chestxray.inference.ood import GATE_JSON, OODDetector, ages_in_words, refusals_in_words
from chestxray.inference.predictor import Predictor
from chestxray.metrics.calibration import Calibration, calibrated, choose_operating_points, fit_calibration, left_out
from chestxray.schema import INTENDED_AGES, BundleInfo, Split
from chestxray.training.checkpoint import read_checked, to_bytes
from chestxray.training.ensemble import Ensemble, Trained
from chestxray.training.networks import Classifier, parameters_of, spec_of
from chestxray.training.ood_fit import fitted_to, pictures_to_refuse
from chestxray.training.run_folder import ByShift, RunInfo, ValidationTable

OPSET: Final = 20  # supported by onnxruntime 1.17 and later
OUTPUTS: Final = ("logit", "activation")
HALVED_FROM: Final = 256  # numbers in a tensor; smaller tensors stay in 32 bits


class _Explained(nn.Module):
    """The function that the graph computes; the argument's name becomes the input's name."""

    def __init__(self, classifier: Classifier | Ensemble) -> None:
        super().__init__()
        self.classifier = classifier

    def forward(self, film: Tensor) -> tuple[Tensor, Tensor]:
        return self.classifier.explain(film)


def to_onnx(classifier: Classifier | Ensemble, size: tuple[int, int]) -> bytes:
    """Convert a classifier, or an ensemble, to one ONNX file that contains the weights.

    Input "film": uint8 (N, 1, height, width). Outputs "logit": float32 (N,), log-odds before calibration;
    "activation": float32 (N, rows, columns). N is free.

    Args:
        classifier: the classifier; it is set to evaluation mode.
        size: (height, width) in pixels.
    """
    module = _Explained(classifier).eval()
    # 2, because the exporter would take a batch of 1 for a constant
    film = torch.zeros((2, 1, *size), dtype=torch.uint8)
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
    if program is None:  # the exporter's signature allows None, for the case that it writes a file itself
        raise BundleInvalid("the exporter gave no graph")
    return _without_traces(program.model_proto)


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence the exporter, which prints, logs and warns about its internals; its errors still arise."""
    level = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(), redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(level)


def _without_traces(model: Any) -> bytes:
    """Return the serialised graph without the exporter's notes about files and source lines of this machine."""
    graph = model.graph
    for part in (model, graph, *graph.node, *graph.input, *graph.output, *graph.value_info, *graph.initializer):
        del part.metadata_props[:]
        part.doc_string = ""
    data: bytes = model.SerializeToString(deterministic=True)
    return data


def in_half_precision(graph: bytes) -> bytes:
    """Return the same graph with its weights stored in 16 bits: half the size.

    The weights are converted back when the graph is loaded, so the graph computes in 32 bits and is as fast as before.
    """
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    model = onnx.load_model_from_string(graph)
    widened = []
    for weights in model.graph.initializer:
        if weights.data_type != TensorProto.FLOAT or np.prod(weights.dims) < HALVED_FROM:
            continue
        values, name = numpy_helper.to_array(weights), weights.name
        weights.CopyFrom(numpy_helper.from_array(values.astype(np.float16), f"{name}_half"))
        widened.append(helper.make_node("Cast", [f"{name}_half"], [name], to=TensorProto.FLOAT))
    nodes = [*widened, *model.graph.node]
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    data: bytes = model.SerializeToString(deterministic=True)
    return data


def model_card(
    bundle: BundleInfo, runs: Sequence[RunInfo], metrics: Mapping[str, Any], notes: Sequence[str] = ()
) -> str:
    """Return the model card as Markdown with YAML front matter.

    Args:
        bundle: the bundle's description; its hashes are not needed.
        runs: finished runs on one pack, whose networks form one model.
        metrics: as ``measured_where_chosen`` makes them, and "gate" as ``model_card.gate_figures`` does.
        notes: results that were measured elsewhere, in sentences.
    """
    ages = f"patients of {ages_in_words(bundle.intended_ages)}" if bundle.intended_ages else "patients like those below"
    template = resources.files("chestxray.training").joinpath("model_card.md").read_text(encoding="utf-8")
    return template.format(
        header=header(bundle.name, metrics, bundle.default_operating_point),
        name=bundle.name,
        notice=bundle.notice,
        network=bundle.network,
        description="; ".join(spec_of(run.recipe["network"]).description for run in runs),
        parameters=bundle.parameters,
        height=bundle.preprocessing.height,
        width=bundle.preprocessing.width,
        resize=bundle.preprocessing.resize.value,
        intended_use=bundle.intended_use.replace(bundle.notice, "").strip(),
        ages=ages,
        elsewhere="\n".join(["", "## Measured elsewhere", "", *(f"- {note}" for note in notes), ""]) if notes else "",
        refuses=refusals_in_words(bundle.intended_ages, by_looks=bool(metrics.get("gate"))),
        counts=_counts(metrics.get("gate")),
        training_films=runs[0].training_films,
        validation_films=runs[0].validation_films,
        training_data=bundle.training_data,
        figures=section(metrics, bundle.default_operating_point),
        made="; beside it ".join(f"`{run.recipe['network']}`, {_made(run)}" for run in runs),
        version=bundle.package_version,
        device=runs[0].device,
    )


def _counts(gate: Mapping[str, Any] | None) -> str:
    if not gate:
        return ""
    known = "How much of each kind it refuses, of pictures that nothing was fitted on (all but the validation films set"
    return f"\n\n{known}\nits limits, so unseen ones will fare somewhat worse):\n\n{gate_table(gate)}"


def _made(run: RunInfo) -> str:
    """Describe in one clause which seeds and epochs the weights come from."""
    if run.blended:
        seeds = ", ".join(map(str, run.blended))
        return f"the mean of the weights of {len(run.blended)} runs of one recipe (seeds {seeds})"
    epoch, epochs = (run.best.epoch, run.best.epochs) if run.best else (0, 0)
    chosen = "the best on the validation films under shifts and with irrelevant properties exchanged"
    taught = f", taught by {len(run.teachers)} trained network" + "s" * (len(run.teachers) > 1) if run.teachers else ""
    return f"recipe with seed {run.recipe['seed']}, epoch {epoch} of {epochs} ({chosen}){taught}"


DEFAULT_OPERATING_POINT: Final = "balanced"
TOLERANCE: Final = 1e-4  # largest difference in log-odds between the graph and the network
HALF_TOLERANCE: Final = 0.05  # the same, for weights stored in 16 bits
MAP_TOLERANCE: Final = 1e-2  # for the cells of a map: a hidden unit near zero may be active in only one of the two
COMPARED: Final = (1, 3)  # sizes of the batches that are compared

CHOSEN_HERE: Final = (
    "The best epoch was chosen on these same films, the calibration and the operating points on them as they are, "
    "under the shifts and with the exchanges below. So the figures are better than those on unseen films will be: "
    "evaluate the bundle on a test set."
)

LEAKAGE_ALLOWED: Final = (
    "The splits share patients or films, so the figures are too good. This was allowed, with the reason:"
)

WEIGHTS: Final = "weights.safetensors"


def export_run(
    run: Path,
    out: Path,
    name: str = "pneumonia",
    *,
    beside: Sequence[Path] = (),
    compact: bool = False,
    refuse: Sequence[str] = (),
    pack: Path | None = None,
    notes: Sequence[str] = (),
) -> BundleInfo:
    """Export the best epoch of a run, or of several runs that form one model, as a bundle.

    The calibration and the operating points are chosen on the run's validation films, unchanged and under every shift:
    a threshold that separates the unchanged films would not separate those of the next hospital.

    Args:
        run: a finished run.
        out: the bundle's folder, written completely or not at all; an earlier bundle there is replaced.
        name: the model's name, which its predictions carry.
        beside: further finished runs on the same pack, of any network; the bundle's log-odds are the mean of all runs'.
        compact: store the graph's weights in 16 bits and leave out the second copy, which is for further training.
        refuse: pictures that the bundle must refuse, as ``ood_fit.pictures_to_refuse`` reads them; the gate is then
            fitted again, with these pictures and the films of the pack.
        pack: the pack on which the run was trained; needed with ``refuse``.
        notes: results that were measured elsewhere, in sentences, for the card.

    Raises:
        SourceInvalid: none of the pictures to refuse can be read.
        RunInvalid: a run is missing, unfinished, damaged or changed, or was trained on another pack.
        BundleInvalid: the graph and the network give different results.
        OutputExists: ``out`` exists and is no bundle.
    """
    trained = Trained.read([run, *beside])
    info = trained.infos[0]
    gate = _gate_against(refuse, pack, info) if refuse else read_checked(run / GATE_JSON, info.files[GATE_JSON])
    size = info.preprocessing.size
    with folder_written_whole(out, marker=BUNDLE_JSON) as folder:
        bundle = _described(name, trained)
        metrics = validation_metrics(trained.table, trained.stress, bundle, _caution(info))
        metrics["gate"] = gate_figures(OODDetector.from_json(gate.decode()))
        graph = to_onnx(trained.ensemble, size)
        files = {
            **({GRAPH: in_half_precision(graph)} if compact else {GRAPH: graph, WEIGHTS: to_bytes(trained.weights)}),
            METRICS_JSON: (json.dumps(metrics, indent=2) + "\n").encode(),
            CARD_FILE: model_card(bundle, trained.infos, metrics, notes).encode(),
            GATE_JSON: gate,
            TRAINING_FILMS: read_checked(run / TRAINING_FILMS, info.files[TRAINING_FILMS]),
        }
        complete = write_bundle(folder, bundle, files)
        _compare(folder, trained.ensemble, size, HALF_TOLERANCE if compact else TOLERANCE)
    return complete


def _gate_against(refuse: Sequence[str], pack: Path | None, info: RunInfo) -> bytes:
    if pack is None:
        raise RunInvalid("a gate against pictures is fitted to the training films as well. Name their pack with --pack")
    opened = Pack.open(pack)
    if opened.info.fingerprint != info.training_data:
        raise RunInvalid(f"{pack}: is not the pack that the run was trained on. Name that one")
    return fitted_to(opened, [pictures_to_refuse(one, opened.info.preprocessing) for one in refuse]).to_json().encode()


def _described(name: str, trained: Trained) -> BundleInfo:
    info, table = trained.infos[0], trained.table
    labels, logits = pool_shifts(table.labels, {CLEAN: table.logits, **trained.stress})
    calibration = fit_calibration(labels, logits)
    points = choose_operating_points(labels, calibrated(logits, *calibration), Split.VAL)
    return BundleInfo(
        name=name,
        network=trained.network,
        preprocessing=info.preprocessing,
        temperature=calibration.temperature,
        bias=calibration.bias,
        operating_points=measured_again(points, table.labels, calibrated(table.logits, *calibration)),
        operating_points_left_out=left_out(points),
        default_operating_point=DEFAULT_OPERATING_POINT,
        training_data=info.training_data,
        files={GRAPH: ""},  # write_bundle computes the hashes
        parameters=parameters_of(trained.ensemble),
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        package_version=__version__,
        leakage_allowed=info.leakage_allowed,
        intended_ages=INTENDED_AGES,
        typical_peak=_typical_peak(trained.infos),
    )


def _typical_peak(infos: Sequence[RunInfo]) -> float | None:
    """Return the mean of the networks' typical peaks, as for their log-odds; None if one was not measured."""
    peaks = [info.typical_peak for info in infos]
    return None if None in peaks else float(np.mean([peak for peak in peaks if peak is not None]))


def _caution(info: RunInfo) -> str:
    """Explain why the validation figures cannot be trusted; empty if they can."""
    allowed = f"{LEAKAGE_ALLOWED} {info.leakage_allowed}" if info.leakage_allowed else ""
    return " ".join(sentence for sentence in (allowed, info.leak) if sentence)


def _compare(bundle: Path, networks: Ensemble, size: tuple[int, int], tolerance: float) -> None:
    """Compare graph and network on the same films. Raises: BundleInvalid, if they differ by more than the tolerance."""
    predictor = Predictor.load(bundle)
    generator = np.random.default_rng(0)
    for films in COMPARED:
        planes = generator.integers(0, 256, (films, *size), dtype=np.uint8)
        with torch.inference_mode():
            expected = networks.explain(torch.from_numpy(planes[:, None]))
        for name, wanted, found in zip(OUTPUTS, expected, predictor.logits(planes), strict=True):
            apart = float(np.abs(wanted.numpy() - found).max())
            allowed = tolerance if name == "logit" else max(tolerance, MAP_TOLERANCE)
            if not apart <= allowed * max(1.0, float(wanted.abs().max())):
                raise BundleInvalid(f"the exported graph's {name} differs from the network's by {apart:g}")


# --------------------------------------------------------------------------- figures


def validation_metrics(table: ValidationTable, stress: ByShift, bundle: BundleInfo, leak: str) -> dict[str, Any]:
    """Return the content of ``metrics.json``: figures with count and 95% interval, unchanged and under every shift."""
    calibration = Calibration(bundle.temperature, bundle.bias)
    measured = measured_where_chosen(
        table.labels,
        table.logits,
        table.patients,
        calibration,
        bundle.operating_points,
        chosen_on=Split.VAL.value,
        cautions=[leak, CHOSEN_HERE] if leak else [CHOSEN_HERE],
        left_out=bundle.operating_points_left_out,
    )
    logits, point = {CLEAN: table.logits, **stress}, bundle.operating_point()
    shifts = under_shifts(table.labels, logits, calibration, point)
    relied = reliance(table.labels, table.patients, logits, calibration, point)
    return {**measured, "stress": shifts.to_json(), "reliance": relied.to_json()}
