"""The same ONNX graph behind LitServe: as many workers as cores, films that wait together scored together."""

from __future__ import annotations

import os
from pathlib import Path

import litserve
import numpy as np

from chestxray.inference.predictor import Predictor


class FilmAPI(litserve.LitAPI):
    """LitServe takes JSON or forms; a form with a file is the cheaper of the two for a film."""

    def setup(self, device):  # noqa: ARG002 - LitServe passes it
        """Load the bundle in each worker."""
        self.predictor = Predictor.load(Path(os.environ["PEER_BUNDLE"]), threads=1)

    def decode_request(self, request):
        """Bytes to plane."""
        return self.predictor.prepare(request["film"].file.read(), "film").plane

    def batch(self, inputs):
        """Planes to one array."""
        return np.stack(inputs)

    def predict(self, planes):
        """One forward pass."""
        planes = planes if planes.ndim == 3 else planes[None]
        return self.predictor.probabilities(self.predictor.logits(planes)[0])

    def unbatch(self, output):
        """An answer a film."""
        return list(output)

    def encode_response(self, output):
        """As JSON."""
        return {"probability": float(np.ravel(output)[0])}


if __name__ == "__main__":
    api = FilmAPI(max_batch_size=8, batch_timeout=0.0)
    server = litserve.LitServer(api, accelerator="cpu", workers_per_device=len(os.sched_getaffinity(0)))
    server.run(host="127.0.0.1", port=int(os.environ["PEER_PORT"]), generate_client_file=False, log_level="warning")
