"""The function with the model in it: no endpoint, no cost while idle. The bundle is in the same archive."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, Final

from chestxray.aws import lambda_handler
from chestxray.aws.lambda_handler import OF_A_FILM, UNREADABLE, Answer, Event, PredictRequest, Refusal
from chestxray.errors import FilmError, MissingExtra
from chestxray.inference.predictor import Predictor

_ROOT: Final = Path(os.environ.get("LAMBDA_TASK_ROOT", "."))
_predictor: Final = Predictor.load(_ROOT / "bundle")  # loaded while the function starts, not with its first film


def handler(event: Event, context: Any) -> Answer:
    """Answer one event by classifying in this function."""
    return lambda_handler.answer(event, context, classify)


def classify(wanted: PredictRequest) -> str:
    """Return the prediction as JSON. Raises: Refusal."""
    try:
        return _predictor.predict(
            wanted.film, "this film", operating_point=wanted.operating_point, heatmap=wanted.heatmap
        ).to_json()
    except MissingExtra as error:
        raise Refusal(lambda_handler.UNSUPPORTED_FORMAT, str(error)) from None
    except FilmError as error:
        raise Refusal(OF_A_FILM.get(error.http_status, UNREADABLE), str(error)) from None
