"""The four functions of SageMaker's toolkits, called in the order in which a toolkit calls them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from chestxray.errors import UnsupportedFormat
from chestxray.inference.predictor import Predictor
from chestxray.serving.inference import input_fn, model_fn, output_fn, predict_fn


def test_they_answer_what_the_predictor_answers(bundle: Path, film: bytes) -> None:
    model = model_fn(str(bundle))
    text, kind = output_fn(predict_fn(input_fn(bytearray(film), "application/x-image"), model), "application/json")
    expected = Predictor.load(bundle).predict(film, "film")
    assert kind == "application/json"
    assert json.loads(text)["probability"] == pytest.approx(expected.probability, abs=1e-6)
    assert json.loads(text)["film_sha256"] == expected.film_sha256


@pytest.mark.parametrize("kind", ["text/csv", "application/json", ""])
def test_what_is_said_to_be_no_film_is_refused(kind: str) -> None:
    with pytest.raises(UnsupportedFormat, match="application/x-image"):
        input_fn(b"1,2", kind)


def test_an_answer_that_is_no_json_cannot_be_had(bundle: Path, film: bytes) -> None:
    answer = predict_fn(film, model_fn(str(bundle)))
    assert output_fn(answer, "text/plain, */*")[1] == "application/json"
    with pytest.raises(UnsupportedFormat, match="the answer is application/json"):
        output_fn(answer, "text/csv")
