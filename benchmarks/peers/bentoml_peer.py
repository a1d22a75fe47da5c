"""The same ONNX graph behind BentoML: as many workers as cores. ``bentoml serve bentoml_peer:Films``."""

from __future__ import annotations

import os
from pathlib import Path

import bentoml

from chestxray.inference.predictor import Predictor


@bentoml.service(workers=len(os.sched_getaffinity(0)))
class Films:
    """One film a call; BentoML batches arrays, not files."""

    def __init__(self) -> None:
        self.predictor = Predictor.load(Path(os.environ["PEER_BUNDLE"]), threads=1)

    @bentoml.api(route="/predict")
    def predict(self, film: Path) -> dict:
        """One film in, one probability out."""
        return {"probability": self.predictor.predict(film.read_bytes(), "film").probability}
