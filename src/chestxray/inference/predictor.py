"""From bundle and film to prediction: the one path that every interface uses.

bytes -> images.decode -> images.preprocess -> graph -> Prediction

A film may also be what Python programs hold: an array, a tensor, a PIL image, a pydicom data set. Its pixels are
packed as PNG without loss, so that an array gets the same answer as a PNG file of the same pixels.
"""

from __future__ import annotations

import base64
import html
import io
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any, Final, overload

import numpy as np
import onnxruntime as ort
from onnxruntime.capi import onnxruntime_pybind11_state as state
from PIL import Image

from chestxray.arrays import Float32Array, Float64Array, UInt8Array
from chestxray.data.parallel import cores
from chestxray.data.sources import open_film
from chestxray.errors import BundleInvalid, FilmTypeInvalid, FilmValueInvalid
from chestxray.images import Radiograph
from chestxray.inference.bundle import Bundle
from chestxray.inference.heatmap import overlay, overlay_png, strength_of, superimpose
from chestxray.inference.ood import Gatekeeper, Prepared, prepare
from chestxray.metrics.calibration import calibrated
from chestxray.schema import BundleInfo, Gate, Label, OperatingPoint, Prediction

_GRAPH_ERRORS: Final = (
    state.Fail,
    state.InvalidArgument,
    state.InvalidGraph,
    state.InvalidProtobuf,
    state.NotImplemented,
)

FILMS_A_PASS: Final = 4  # with more, what the layers pass on leaves the core's cache, and a film takes a fifth longer
MAX_THREADS: Final = 4  # of one forward pass: a film is too small for more threads to help

NAMELESS: Final = "film"  # the name of a film without a path
_TAKEN: Final = (
    "a path, bytes, an open file, a NumPy array or torch tensor (uint8, uint16, or float in 0 to 1; H x W, H x W x 3 "
    "or 1 x H x W), a PIL image, a pydicom data set, or a list of these"
)
_CHANNELS: Final = (1, 3, 4)
_PLANE, _COLOUR, _MANY = 2, 3, 4  # number of dimensions


class Predictor:
    """A bundle, loaded and ready. Safe to share between threads.

    Attributes:
        info: the bundle's description.
        folder: the bundle's folder.
    """

    def __init__(self, bundle: Bundle, threads: int | None = None, *, require_age: bool = False) -> None:
        """Load the graph.

        The graph runs once, on a black film: this warms up everything for the first real film, and finds a graph that
        does not fit its description.

        Args:
            bundle: the bundle; its hash is checked while loading.
            threads: number of threads of one forward pass; by default one a core, at most MAX_THREADS.
            require_age: refuse films whose file states no age, as JPEG and PNG never do; otherwise they are answered
                with the note "age not stated".

        Raises: BundleInvalid.
        """
        self.folder = bundle.folder
        self.info: BundleInfo = bundle.info
        self._gatekeeper = Gatekeeper.of(bundle, require_age=require_age)
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
    def load(cls, bundle: Path | str, threads: int | None = None, *, require_age: bool = False) -> Predictor:
        """Open and load the bundle in a folder. Raises: BundleInvalid."""
        return cls(Bundle.open(bundle), threads, require_age=require_age)

    @property
    def require_age(self) -> bool:
        """True if films whose file states no age are refused."""
        return self._gatekeeper.require_age

    def on_one_thread(self) -> Predictor:
        """Return the same bundle with forward passes on one thread, for films that are classified in parallel.

        Threads of one pass wait for each other by spinning, which is fastest on an idle machine, but takes processor
        time from everything else.
        """
        if self._threads == 1:
            return self
        return Predictor(Bundle(self.folder, self.info), threads=1, require_age=self.require_age)

    @overload
    def __call__(
        self, film: list[Any] | tuple[Any, ...], *, operating_point: str | None = None, heatmap: bool = False
    ) -> list[Prediction]: ...

    @overload
    def __call__(self, film: Any, *, operating_point: str | None = None, heatmap: bool = False) -> Prediction: ...

    def __call__(
        self, film: Any, *, operating_point: str | None = None, heatmap: bool = False
    ) -> Prediction | list[Prediction]:
        """Classify a film, or a list of films.

        Args:
            film: a path, bytes, an open file, an array or tensor (uint8, uint16, or float in 0 to 1; H x W, H x W x 3
                or 1 x H x W), a PIL image, a pydicom data set; or a list of these, or an array of several.
            operating_point: name of one of the bundle's operating points; None takes the default.
            heatmap: whether to draw a heat map of the evidence.

        Raises: FilmUnopened; FilmTypeInvalid (a TypeError), FilmValueInvalid (a ValueError); what ``predict`` raises.
        """
        if are_many(film):
            return list(self._several(film, operating_point, heatmap=heatmap))
        return self.predict(*bytes_of(film), operating_point=operating_point, heatmap=heatmap)

    def _several(self, films: Any, operating_point: str | None, *, heatmap: bool) -> Iterator[Prediction]:
        self.info.operating_point(operating_point)  # an unknown name is refused before the first film is read
        opened = map(bytes_of, films)
        while group := list(islice(opened, FILMS_A_PASS)):
            prepared = [self.prepare(data, source) for data, source in group]
            found = self.predict_prepared(prepared, operating_point=operating_point)
            for film, (prediction, activation) in zip(prepared, found, strict=True):
                if heatmap and activation is not None:
                    yield self._with_heat_map(prediction, activation, film.size)
                else:
                    yield prediction

    @property
    def classes_(self) -> tuple[str, ...]:
        """Names of the columns of ``predict_proba``, as scikit-learn calls them."""
        return tuple(label.value for label in Label)

    def predict_proba(self, films: Any) -> Float64Array:
        """Return probabilities in the form of scikit-learn's classifiers.

        Args:
            films: a list of films in any form that ``__call__`` takes.

        Returns: shape (n, 2), in the order of ``classes_``; NaN for films that must not be classified.
        Raises: as ``__call__``.
        """
        found = [answer.probability for answer in self._several(films, None, heatmap=False)]
        positive = np.array([np.nan if value is None else value for value in found], dtype=np.float64)
        return np.stack([1.0 - positive, positive], axis=1)

    def __repr__(self) -> str:
        points = ", ".join(point.name for point in self.info.operating_points)
        size = f"{self.info.preprocessing.height} x {self.info.preprocessing.width}"
        return f"Predictor({self.info.name!r}: {self.info.network}, films of {size} pixels, operating points {points})"

    def _repr_html_(self) -> str:
        return f"<code>{html.escape(repr(self))}</code><br><small>{html.escape(self.info.notice)}</small>"

    def predict(
        self,
        data: bytes,
        source: str,
        *,
        operating_point: str | None = None,
        heatmap: bool = False,
        contours: bool = False,
    ) -> Prediction:
        """Classify the bytes of one film.

        Args:
            data: the whole file.
            source: the film's name in errors.
            operating_point: name of one of the bundle's operating points; None takes the default.
            heatmap: whether to draw a heat map of the evidence; it needs no second forward pass.
            contours: whether the map is drawn as lines instead of areas.

        Raises:
            FilmError: if the bytes cannot be read as a film. (A film that can be read and must not be
                classified is a prediction whose gate is closed.)
            BundleInvalid: no operating point of that name.
        """
        prepared = self.prepare(data, source)
        ((prediction, activation),) = self.predict_prepared([prepared], operating_point=operating_point)
        if activation is None or not heatmap:
            return prediction
        return self._with_heat_map(prediction, activation, prepared.size, contours=contours)

    def predict_prepared(
        self, films: Sequence[Prepared], *, operating_point: str | None = None
    ) -> list[tuple[Prediction, Float32Array | None]]:
        """Classify prepared films, several in a pass.

        Args:
            films: films that ``prepare`` returned.
            operating_point: as of ``predict``.

        Returns: for each film the prediction, and its class-activation map, shape (rows, columns); None in place of the
            map where the gate refuses the film.
        Raises: BundleInvalid: no operating point of that name.
        """
        point = self.info.operating_point(operating_point)
        planes = [film.plane for film in films if film.plane is not None]
        passed = zip(*self.logits(np.stack(planes)), strict=True) if planes else iter(())
        found: list[tuple[Prediction, Float32Array | None]] = []
        for film in films:
            if film.plane is None:
                found.append((self.answer(film.sha256, point, film.gate, notes=film.notes), None))
                continue
            logit, activation = next(passed)
            probability = float(self.probabilities(logit))
            found.append((self.answer(film.sha256, point, film.gate, probability, notes=film.notes), activation))
        return found

    def draw(self, plane: UInt8Array, activation: Float32Array) -> Image.Image:
        """Draw a film's heat map over the film.

        Args:
            plane: the film as ``heatmap.averaged`` returns it, shape (height, width).
            activation: its map, as ``predict_prepared`` returns it.

        Returns: a picture in RGB, of the size of ``plane``.
        """
        return superimpose(plane, overlay(strength_of(activation, self.info), plane.shape, self.info.preprocessing))

    def _with_heat_map(
        self, prediction: Prediction, activation: Float32Array, size: tuple[int, int], *, contours: bool = False
    ) -> Prediction:
        picture = self.overlay(activation, size, contours=contours)
        return replace(prediction, heatmap=base64.b64encode(picture).decode())

    def prepare(self, data: bytes, source: str, film: Radiograph | None = None) -> Prepared:
        """Decode, check and preprocess one film, as the first half of ``predict``. Raises: FilmError."""
        return prepare(data, source, self.info.preprocessing, self._gatekeeper, film)

    def logits(self, planes: UInt8Array) -> tuple[Float32Array, Float32Array]:
        """Run the network, in passes of ``FILMS_A_PASS``.

        Args:
            planes: shape (n, height, width), uint8, as ``images.preprocess`` returns them; at least one.

        Returns: the log-odds of pneumonia before calibration, shape (n,), and the class-activation maps,
            shape (n, rows, columns).
        """
        if len(planes) <= FILMS_A_PASS:
            return self._pass(planes)
        starts = range(0, len(planes), FILMS_A_PASS)
        passes = [self._pass(planes[start : start + FILMS_A_PASS]) for start in starts]
        logits, activations = zip(*passes, strict=True)
        return np.concatenate(logits), np.concatenate(activations)

    def _pass(self, planes: UInt8Array) -> tuple[Float32Array, Float32Array]:
        logit, activation = self._session.run(["logit", "activation"], {"film": planes[:, None]})
        return logit, activation

    def overlay(self, activation: Float32Array, film_size: tuple[int, int], *, contours: bool = False) -> bytes:
        """Draw one film's map as a PNG with an alpha channel, which lies over the film.

        Args:
            activation: shape (rows, columns), as ``logits`` returns it for that film.
            film_size: (height, width) of the film in pixels.
            contours: whether to draw lines instead of areas.
        """
        return overlay_png(strength_of(activation, self.info), film_size, self.info.preprocessing, contours=contours)

    def probabilities(self, logits: Float32Array) -> Float64Array:
        """Return the calibrated probability of pneumonia for logits of any shape."""
        return calibrated(logits, self.info.temperature, self.info.bias)

    def answer(
        self,
        film_sha256: str,
        point: OperatingPoint,
        gate: Gate,
        probability: float | None = None,
        heatmap: bytes | None = None,
        notes: Sequence[str] = (),
    ) -> Prediction:
        """Return the prediction document for a probability, or for the absence of one.

        Args:
            film_sha256: SHA-256 of the bytes that were classified.
            point: the operating point, which decides the label: pneumonia where ``probability >= threshold``.
            gate: accepted if and only if there is a probability.
            probability: calibrated, 0 to 1.
            heatmap: a PNG.
            notes: remarks beside the answer, each a short clause.
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
            notes=tuple(notes),
        )


def label_at(point: OperatingPoint, probability: float) -> str:
    """Return the label of a film with that probability."""
    return (Label.PNEUMONIA if probability >= point.threshold else Label.NORMAL).value


def session_options(threads: int) -> ort.SessionOptions:
    """Return the onnxruntime options with which every graph of this package runs.

    Args:
        threads: number of threads of one forward pass. They share the work within a step; the steps of these networks
            follow each other, so threads between steps would wait.
    """
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_ALL
    options.execution_mode = ort.ExecutionMode.ORT_SEQUENTIAL
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    return options


def are_many(film: object) -> bool:
    """Check whether the argument is a list of films, or an array of several films."""
    return isinstance(film, list | tuple) or getattr(film, "ndim", None) == _MANY


def bytes_of(film: object) -> tuple[bytes, str]:
    """Return the bytes of a film's file, and its name in errors.

    Raises: FilmUnopened, which is an OSError; FilmTypeInvalid, which is a TypeError, for anything that is no film;
        FilmValueInvalid, which is a ValueError, for pixels out of range.
    """
    if isinstance(film, str | os.PathLike):
        path = Path(film)
        return open_film(path), str(path)
    if isinstance(film, bytes | bytearray | memoryview):
        return bytes(film), NAMELESS
    if isinstance(film, Image.Image):
        return _of_open_image(film), NAMELESS
    if _is_data_set(film):
        return _of_data_set(film), NAMELESS
    if callable(read := getattr(film, "read", None)):
        return _of_open_file(read), str(getattr(film, "name", NAMELESS))
    if hasattr(film, "__array__") and not isinstance(film, type):
        return _of_array(_as_array(film)), NAMELESS
    raise FilmTypeInvalid(f"a film cannot be a {type(film).__name__}; it may be {_TAKEN}")


def _of_open_file(read: Callable[[], object]) -> bytes:
    try:
        data = read()
    except ValueError as error:  # closed, or opened for writing
        raise FilmValueInvalid(f"the file cannot be read ({error}). Open it with mode 'rb'") from error
    if not isinstance(data, bytes):
        raise FilmTypeInvalid("the file is open for text; open it with mode 'rb'")
    if not data:
        raise FilmValueInvalid("the file holds nothing from its position on. Go to its beginning: file.seek(0)")
    return data


def _of_open_image(image: Image.Image) -> bytes:
    try:
        image.load()
    except (ValueError, AttributeError, AssertionError) as error:  # closed before its pixels were read
        raise FilmValueInvalid("the image cannot be read: it was closed. Open it again") from error
    return _of_image(image)


def _as_array(film: Any) -> np.ndarray[Any, Any]:
    torch = sys.modules.get("torch")  # a caller with a tensor has imported torch already
    if torch is not None and isinstance(film, torch.Tensor):
        if film.layout != torch.strided or film.is_meta:
            raise FilmTypeInvalid("a film cannot be a sparse tensor or one without values; give film.to_dense()")
        film = film.detach().cpu()
        film = film.float() if film.dtype in {torch.bfloat16, torch.float16} else film
    array = np.asarray(film)
    if array.dtype.byteorder not in "=|":  # as a file of another kind of computer holds it
        array = array.astype(array.dtype.newbyteorder("="))
    if array.ndim == _COLOUR and array.shape[-1] not in _CHANNELS and array.shape[0] in _CHANNELS:
        array = np.moveaxis(array, 0, -1)  # channels first, as in torch
    if array.ndim == _COLOUR and array.shape[-1] == 1:
        array = array[..., 0]
    return array


def _of_array(array: np.ndarray[Any, Any]) -> bytes:
    if (
        array.ndim not in {_PLANE, _COLOUR}
        or not array.size
        or (array.ndim == _COLOUR and array.shape[-1] not in _CHANNELS)
    ):
        raise FilmTypeInvalid(f"a film cannot be an array of shape {array.shape}; it may be {_TAKEN}")
    if array.dtype.kind == "f":
        low, high = float(array.min()), float(array.max())
        if not 0.0 <= low <= high <= 1.0:  # written so that NaN fails as well
            raise FilmValueInvalid(
                f"the film's values lie in {low:g} to {high:g}; black is 0.0 and white 1.0. Divide by the white level"
            )
        array = np.rint(array.astype(np.float64) * np.iinfo(np.uint16).max).astype(np.uint16)
    if array.dtype not in (np.uint8, np.uint16):
        raise FilmTypeInvalid(
            f"a film cannot be an array of {array.dtype}, whose white is nowhere defined; it may be {_TAKEN}"
        )
    if array.ndim == _COLOUR and array.dtype == np.uint16:
        grey = (array[..., :3] == array[..., :1]).all()
        array = np.ascontiguousarray(array[..., 0]) if grey else (array >> 8).astype(np.uint8)
    return _of_image(Image.fromarray(np.ascontiguousarray(array)))


def _of_image(image: Image.Image) -> bytes:
    """Encode an image as PNG, with its orientation; modes that PNG lacks are converted to colour."""
    if image.mode not in {"1", "L", "LA", "P", "RGB", "RGBA", "I;16"}:
        if image.mode in {"I", "F"}:
            raise FilmTypeInvalid(
                f"a film cannot be an image of mode {image.mode}, whose white is nowhere defined; convert it to I;16"
            )
        image = image.convert("I;16" if image.mode.startswith("I;16") else "RGB")
    out = io.BytesIO()
    image.save(out, "PNG", compress_level=1, exif=image.getexif())
    return out.getvalue()


def _is_data_set(film: object) -> bool:
    pydicom = sys.modules.get("pydicom")
    return pydicom is not None and isinstance(film, pydicom.Dataset)


def _of_data_set(film: Any) -> bytes:
    out = io.BytesIO()
    try:
        film.save_as(out, enforce_file_format=hasattr(film, "file_meta"))
    except (ValueError, AttributeError, TypeError) as error:
        raise FilmValueInvalid(f"the data set cannot be written as DICOM ({error}). Give its file instead") from error
    return out.getvalue()
