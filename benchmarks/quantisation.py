"""What fewer bits cost and save: size, latency and validation AUROC of a bundle's graph in several precisions.

    python benchmarks/quantisation.py BUNDLE PACK [--calibration 256] [--rounds 30] [--threads 1] [--json]

Static quantisation is calibrated on training films; the AUROC is that of the pack's validation films. A precision is
worth its while where it is faster and its AUROC stays within 0.001 of float32's.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
from onnxruntime.quantization import (
    CalibrationDataReader,
    QuantFormat,
    QuantType,
    quantize_dynamic,
    quantize_static,
)
from onnxruntime.quantization.shape_inference import quant_pre_process

from chestxray.data.pack import Pack, labels_of
from chestxray.inference.bundle import folder_of
from chestxray.inference.predictor import session_options
from chestxray.metrics.metrics import auroc
from chestxray.schema import Split
from side_by_side import machine, take_turns

BATCH = 32
LARGE = 1024  # numbers; smaller initialisers are shapes and biases, and stay as they are


class TrainingFilms(CalibrationDataReader):
    """Films that ranges of activations are found on, one by one."""

    def __init__(self, planes: np.ndarray) -> None:
        self._planes: Iterator[np.ndarray] = iter(planes[:, None, None])

    def get_next(self) -> dict[str, np.ndarray] | None:
        """The next film as the graph's input; None at the end."""
        plane = next(self._planes, None)
        return None if plane is None else {"film": plane}


def dense_in_8_bits(source: Path, target: Path, _films: np.ndarray) -> None:
    """Weights of the dense layers in 8 bits, activations scaled film by film."""
    quantize_dynamic(source, target, op_types_to_quantize=["Gemm", "MatMul"], weight_type=QuantType.QInt8)


def dynamic_8_bits(source: Path, target: Path, _films: np.ndarray) -> None:
    """Weights of every layer in 8 bits, activations scaled film by film."""
    quantize_dynamic(source, target, weight_type=QuantType.QUInt8)


def static_8_bits(source: Path, target: Path, films: np.ndarray) -> None:
    """Weights and activations of the network's layers in 8 bits, ranges found on training films."""
    quantize_static(
        source,
        target,
        TrainingFilms(films),
        quant_format=QuantFormat.QDQ,
        op_types_to_quantize=["Conv", "Gemm", "Relu", "MaxPool"],
        per_channel=True,
        activation_type=QuantType.QUInt8,
        weight_type=QuantType.QInt8,
    )


def weights_in_16_bits(source: Path, target: Path, _films: np.ndarray) -> None:
    """Weights stored in 16 bits and widened while loading: half the file, the same arithmetic."""
    model = onnx.load(source)
    for tensor in [one for one in model.graph.initializer if one.data_type == onnx.TensorProto.FLOAT]:
        values = onnx.numpy_helper.to_array(tensor)
        if values.size < LARGE:
            continue
        narrow = f"{tensor.name}_16"
        model.graph.initializer.append(onnx.numpy_helper.from_array(values.astype(np.float16), narrow))
        model.graph.node.insert(0, onnx.helper.make_node("Cast", [narrow], [tensor.name], to=onnx.TensorProto.FLOAT))
        model.graph.initializer.remove(tensor)
    onnx.save(model, target)


WAYS: dict[str, Callable[[Path, Path, np.ndarray], object]] = {
    "float32": lambda source, target, _films: shutil.copy(source, target),
    "16-bit weights": weights_in_16_bits,
    "8-bit dynamic, dense layers": dense_in_8_bits,
    "8-bit dynamic": dynamic_8_bits,
    "8-bit static": static_8_bits,
}


@dataclass(frozen=True)
class Precision:
    """What one precision gave. Times in milliseconds a film."""

    name: str
    megabytes: float
    one_film: float
    of_a_batch: float
    auroc: float
    largest_change: float  # of a logit


def session_of(graph: Path, threads: int) -> Callable[[np.ndarray], np.ndarray]:
    """Planes to logits."""
    session = ort.InferenceSession(graph, session_options(threads), providers=["CPUExecutionProvider"])
    return lambda planes: session.run(["logit"], {"film": planes[:, None]})[0]


def logits_of(score: Callable[[np.ndarray], np.ndarray], planes: np.ndarray) -> np.ndarray:
    """Of all films, in batches."""
    return np.concatenate([score(planes[start : start + BATCH]) for start in range(0, len(planes), BATCH)])


def measure(folder: Path, bundle: Path, pack: Pack, arguments: argparse.Namespace) -> list[Precision]:
    """Every precision on the same films; the times are taken in turn."""
    rows = pack.rows(Split.VAL)
    labels, planes = labels_of([pack.films[row] for row in rows]), np.asarray(pack.images[rows])
    training = pack.rows(Split.TRAIN)
    chosen = np.random.default_rng(0).permutation(training)[: arguments.calibration]
    prepared = folder / "prepared.onnx"
    quant_pre_process(bundle / "model.onnx", prepared, skip_symbolic_shape=True)
    graphs, scores = {}, {}
    for number, (name, make) in enumerate(WAYS.items()):
        graphs[name] = folder / f"{number}.onnx"
        make(prepared, graphs[name], pack.images[np.sort(chosen)])
        scores[name] = session_of(graphs[name], arguments.threads)
    some = planes[:BATCH]
    one = take_turns({n: lambda s=s: s(some[:1]) for n, s in scores.items()}, arguments.rounds)
    many = take_turns({n: lambda s=s: s(some) for n, s in scores.items()}, arguments.rounds)
    logits = {name: logits_of(score, planes) for name, score in scores.items()}
    return [
        Precision(
            alone.name,
            graphs[alone.name].stat().st_size / 1e6,
            1e3 * statistics.median(alone.seconds),
            1e3 * statistics.median(batch.seconds) / len(some),
            float(auroc(labels, logits[alone.name])),
            float(np.abs(logits[alone.name] - logits["float32"]).max()),
        )
        for alone, batch in zip(one, many, strict=True)
    ]


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("bundle", type=folder_of)
    parser.add_argument("pack", type=Path)
    parser.add_argument("--calibration", type=int, default=256, help="training films that ranges are found on")
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    pack = Pack.open(arguments.pack)
    with tempfile.TemporaryDirectory() as folder:
        found = measure(Path(folder), arguments.bundle, pack, arguments)
    if arguments.json:
        print(json.dumps({"machine": machine(), "precisions": [asdict(row) for row in found]}, indent=2))
        return
    films = len(pack.rows(Split.VAL))
    print(f"{arguments.bundle.name} on {films} validation films\n{machine()}; medians of {arguments.rounds} rounds")
    columns = ("MB", "one film", f"of {BATCH}", "AUROC", "change", "logit moves by")
    print("  ".join([" " * 30, *(column.rjust(14) for column in columns)]))
    for row in found:
        cells = (
            f"{row.megabytes:.1f}",
            f"{row.one_film:.2f} ms",
            f"{row.of_a_batch:.2f} ms",
            f"{row.auroc:.4f}",
            f"{row.auroc - found[0].auroc:+.4f}",
            f"{row.largest_change:.3f}",
        )
        print("  ".join([f"  {row.name:28}", *(cell.rjust(14) for cell in cells)]))


if __name__ == "__main__":
    main()
