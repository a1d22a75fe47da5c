"""Bundle and film to prediction: the one corridor behind every door.

bytes -> images.decode -> images.preprocess -> graph -> Prediction
"""

from __future__ import annotations

import base64
import io
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt
import onnxruntime as ort
from onnxruntime.capi import onnxruntime_pybind11_state as state
from PIL import Image

from chestxray.data.parallel import cores
from chestxray.errors import BundleInvalid
from chestxray.images.decode import decode
from chestxray.images.preprocess import Plane, onto_film, resample
from chestxray.inference.bundle import Bundle
from chestxray.inference.ood import Gatekeeper, Prepared, prepare
from chestxray.metrics.calibration import calibrated
from chestxray.schema import BundleInfo, Gate, Label, OperatingPoint, Prediction, Preprocessing, Resize

LONG_SIDE: Final = 512  # pixels of the overlay; the map behind it has some ten cells a side
FULL_COLOUR: Final = 0.5  # log-odds of one cell that are drawn at full strength at the latest

# Transparent, amber, red, pale yellow: lightness rises all the way, so that it also reads without hue.
_STOPS: Final = np.array([0.0, 0.35, 0.7, 1.0])
_COLOURS: Final = np.array([[120, 28, 109, 0], [203, 65, 73, 150], [246, 140, 30, 200], [252, 235, 120, 225]])


def overlay_png(activation: npt.NDArray[np.float32], film_size: tuple[int, int], preprocessing: Preprocessing) -> bytes:
    """Draw where the evidence for pneumonia lies, in the film's own proportions.

    Args:
        activation: shape (rows, columns), log-odds that each place adds; negative places stay clear.
        film_size: (height, width) of the film.
        preprocessing: how the film became the network's input, so that the map can go the way back.

    Returns: a PNG with an alpha channel, its long side LONG_SIDE pixels.
    """
    height, width = film_size
    scale = LONG_SIDE / max(height, width)
    size = (max(1, round(height * scale)), max(1, round(width * scale)))
    strength = np.clip(activation, 0.0, None) / max(float(activation.max()), FULL_COLOUR)
    spread = onto_film(strength, size, preprocessing).clip(0.0, 1.0)
    channels = [np.interp(spread, _STOPS, _COLOURS[:, channel]) for channel in range(4)]
    out = io.BytesIO()
    Image.fromarray(np.stack(channels, axis=-1).round().astype(np.uint8)).save(out, "PNG")
    return out.getvalue()


def over_film(data: bytes, source: str, overlay: bytes) -> bytes:
    """Blend an overlay of ``overlay_png`` with its film.

    Args:
        data: the film's bytes.
        source: what to call it in errors.
        overlay: a PNG with an alpha channel.

    Returns: a PNG of the overlay's size.
    Raises: FilmError.
    """
    with Image.open(io.BytesIO(overlay), formats=["PNG"]) as colours:
        width, height = colours.size
        film = decode(data, source, at_least=(height, width))
        plane = resample(film.pixels, height, width, Resize.SQUEEZE, film.frame)
        blended = Image.alpha_composite(Image.fromarray(plane).convert("RGBA"), colours)
    out = io.BytesIO()
    blended.convert("RGB").save(out, "PNG")
    return out.getvalue()


Float32Array = npt.NDArray[np.float32]

_GRAPH_ERRORS: Final = (
    state.Fail,
    state.InvalidArgument,
    state.InvalidGraph,
    state.InvalidProtobuf,
    state.NotImplemented,
)

MAX_THREADS: Final = 4  # of one forward pass: a film is too small for more to pay


class Predictor:
    """A bundle, loaded and ready. Safe to share between threads.

    Attributes:
        info: the bundle's description.
        folder: where the bundle lies.
    """

    def __init__(self, bundle: Bundle, threads: int | None = None) -> None:
        """Load the graph.

        The graph is run once, on a black film: the first film that somebody waits for finds everything warm, and a
        graph that does not fit its description is found here.

        Args:
            bundle: checked by its hash while loading.
            threads: of one forward pass; by default one a core, at most MAX_THREADS.

        Raises: BundleInvalid.
        """
        self.folder = bundle.folder
        self.info: BundleInfo = bundle.info
        self._gatekeeper = Gatekeeper.of(bundle)
        self._threads = threads or min(cores(), MAX_THREADS)
        black = np.zeros((1, self.info.preprocessing.height, self.info.preprocessing.width), np.uint8)
        try:
            self._session = ort.InferenceSession(
                bundle.graph(), session_options(self._threads), providers=["CPUExecutionProvider"]
            )
            self.logits(black)
        except (*_GRAPH_ERRORS, RuntimeError, ValueError) as error:
            raise BundleInvalid(f"{bundle.folder}: onnxruntime refuses the graph ({error})") from error

    @classmethod
    def load(cls, bundle: Path | str, threads: int | None = None) -> Predictor:
        """Open and load the bundle in that folder. Raises: BundleInvalid."""
        return cls(Bundle.open(bundle), threads)

    def on_one_thread(self) -> Predictor:
        """The same bundle for films that share the processor with others: its forward passes take one core each.

        Threads of one pass wait for each other by spinning, which is the fastest where nothing else runs, and takes
        the processor from whatever does.
        """
        return self if self._threads == 1 else Predictor(Bundle(self.folder, self.info), threads=1)

    def __call__(
        self, film: str | Path | bytes, *, operating_point: str | None = None, heatmap: bool = False
    ) -> Prediction:
        """Judge a film, given by its path or its bytes. Raises: OSError, and what ``predict`` raises."""
        data = film if isinstance(film, bytes) else Path(film).read_bytes()
        source = "film" if isinstance(film, bytes) else str(film)
        return self.predict(data, source, operating_point=operating_point, heatmap=heatmap)

    def predict(
        self, data: bytes, source: str, *, operating_point: str | None = None, heatmap: bool = False
    ) -> Prediction:
        """Judge the bytes of one film.

        Args:
            data: the whole file.
            source: what to call it in errors.
            operating_point: name of one of the bundle's; the bundle's default where None.
            heatmap: whether to draw where the evidence lies; costs no second forward pass.

        Raises:
            FilmError: where the bytes cannot be read as a film. (A film that can be read and must not be
                judged is a prediction whose gate is closed.)
            BundleInvalid: no operating point of that name.
        """
        point = self.info.operating_point(operating_point)
        film = self.prepare(data, source)
        if film.plane is None:
            return self.answer(film.sha256, point, film.gate)
        logits, activations = self.logits(film.plane[None])
        picture = overlay_png(activations[0], film.size, self.info.preprocessing) if heatmap else None
        return self.answer(film.sha256, point, film.gate, float(self.probabilities(logits)[0]), picture)

    def prepare(self, data: bytes, source: str) -> Prepared:
        """The first half of ``predict``: bytes to the network's input, or to a reason why not. Raises: FilmError."""
        return prepare(data, source, self.info.preprocessing, self._gatekeeper)

    def logits(self, planes: Plane) -> tuple[Float32Array, Float32Array]:
        """One forward pass.

        Args:
            planes: shape (n, height, width), uint8, as ``images.preprocess`` makes them.

        Returns: the log-odds of pneumonia before calibration, shape (n,), and the class-activation maps,
            shape (n, rows, columns).
        """
        logit, activation = self._session.run(["logit", "activation"], {"film": planes[:, None]})
        return logit, activation

    def probabilities(self, logits: Float32Array) -> npt.NDArray[np.float64]:
        """Probability of pneumonia by the bundle's calibration; any shape."""
        return calibrated(logits, self.info.temperature, self.info.bias)

    def answer(
        self,
        film_sha256: str,
        point: OperatingPoint,
        gate: Gate,
        probability: float | None = None,
        heatmap: bytes | None = None,
    ) -> Prediction:
        """Put a probability, or its absence, into the words of the contract.

        Args:
            film_sha256: of the bytes that were judged.
            point: decides the label: pneumonia where ``probability >= threshold``.
            gate: accepted if and only if there is a probability.
            probability: calibrated, 0 to 1.
            heatmap: a PNG.
        """
        label = None if probability is None else label_at(point, probability)
        return Prediction(
            film_sha256=film_sha256,
            gate=gate,
            probability=probability,
            label=label,
            operating_point=point.name,
            threshold=point.threshold,
            model=self.info.name,
            model_sha256=self.info.model_sha256,
            heatmap=base64.b64encode(heatmap).decode() if heatmap else None,
        )


def label_at(point: OperatingPoint, probability: float) -> str:
    """What a film of that probability is called."""
    return (Label.PNEUMONIA if probability >= point.threshold else Label.NORMAL).value


def session_options(threads: int) -> ort.SessionOptions:
    """How every graph of this package is run.

    Args:
        threads: of one forward pass. They share the work within a step; the steps of these networks follow each other,
            so threads between steps would wait.
    """
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_ALL
    options.execution_mode = ort.ExecutionMode.ORT_SEQUENTIAL
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    return options
