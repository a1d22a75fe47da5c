"""A trained classifier as an ONNX graph."""

from __future__ import annotations

import io
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from typing import Any, Final

import numpy as np
import torch
from torch import Tensor, nn

from chestxray.errors import BundleInvalid
from chestxray.training.ensemble import Ensemble
from chestxray.training.networks import Classifier

OPSET: Final = 20  # read by onnxruntime from 1.17 on
OUTPUTS: Final = ("logit", "activation")
HALVED_FROM: Final = 256  # numbers in a tensor of weights; smaller ones are kept as they are


class _Explained(nn.Module):
    """What the graph computes; the argument's name is the input's."""

    def __init__(self, classifier: Classifier | Ensemble) -> None:
        super().__init__()
        self.classifier = classifier

    def forward(self, film: Tensor) -> tuple[Tensor, Tensor]:
        return self.classifier.explain(film)


def to_onnx(classifier: Classifier | Ensemble, size: tuple[int, int]) -> bytes:
    """A classifier, or several as one, as one ONNX file, weights within.

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


def in_half_precision(graph: bytes) -> bytes:
    """The same graph with its weights stored in 16 bits: half the size.

    They are widened again when the graph is loaded, so it computes in 32 bits and is as fast as before.
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
