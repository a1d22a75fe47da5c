"""The four functions that SageMaker's inference toolkits look for, to host a bundle under such a toolkit.

Put beside the bundle in ``model.tar.gz`` as ``code/inference.py`` a file that says::

    from chestxray.serving.inference import input_fn, model_fn, output_fn, predict_fn

with ``chestxray`` in ``code/requirements.txt``. Our own container needs none of this.

Source: sagemaker-inference-toolkit, README, "Implement handlers"; the content type is that of the original work.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

from chestxray.errors import UnsupportedFormat
from chestxray.inference.predictor import Predictor
from chestxray.schema import Prediction

CONTENT_TYPES: Final = ("application/x-image", "application/dicom", "application/octet-stream")
JSON: Final = "application/json"


def model_fn(model_dir: str, _context: Any = None) -> Predictor:
    """Load the bundle of a folder. Raises: BundleInvalid."""
    return Predictor.load(Path(model_dir))


def input_fn(request_body: bytes | bytearray, content_type: str, _context: Any = None) -> bytes:
    """Return the bytes of one film; their format is detected from the bytes.

    Raises: UnsupportedFormat, if the content type is not that of a film.
    """
    kind = content_type.partition(";")[0].strip().lower()
    if kind not in CONTENT_TYPES and not kind.startswith("image/"):
        raise UnsupportedFormat(f"content type {content_type}: send the film's bytes as {CONTENT_TYPES[0]}")
    return bytes(request_body)


def predict_fn(film: bytes, predictor: Predictor, _context: Any = None) -> Prediction:
    """Classify one film and return its prediction. Raises: FilmError."""
    return predictor.predict(film, "film")


def output_fn(prediction: Prediction, accept: str, _context: Any = None) -> tuple[str, str]:
    """Return the prediction as JSON, with its content type. Raises: UnsupportedFormat."""
    accepted = {part.partition(";")[0].strip().lower() for part in accept.split(",")} - {""}
    if accepted and not accepted & {"*/*", "application/*", JSON}:
        raise UnsupportedFormat(f"accept {accept}: the answer is {JSON}")
    return prediction.to_json(), JSON
