"""The same ONNX graph behind Ray Serve: as many replicas as cores, films that wait together scored together."""

from __future__ import annotations

import asyncio
import os
import signal
from pathlib import Path

import numpy as np
import ray
from ray import serve
from starlette.requests import Request

from chestxray.inference.predictor import Predictor


@serve.deployment(num_replicas=len(os.sched_getaffinity(0)), max_ongoing_requests=32)
class Films:
    """Takes the raw body."""

    def __init__(self, bundle: str) -> None:
        self.predictor = Predictor.load(Path(bundle), threads=1)

    async def __call__(self, request: Request) -> dict:
        """One film in, one probability out."""
        data = await request.body()
        film = await asyncio.to_thread(self.predictor.prepare, data, "film")
        return {"probability": await self.score(film.plane)}

    @serve.batch(max_batch_size=8, batch_wait_timeout_s=0.0)
    async def score(self, planes):
        """One forward pass."""
        logits, _ = await asyncio.to_thread(self.predictor.logits, np.stack(planes))
        return [float(probability) for probability in self.predictor.probabilities(logits)]


if __name__ == "__main__":
    ray.init(include_dashboard=False, log_to_driver=False)
    serve.start(http_options={"host": "127.0.0.1", "port": int(os.environ["PEER_PORT"])})
    serve.run(Films.bind(os.environ["PEER_BUNDLE"]), route_prefix="/predict")
    signal.sigwait({signal.SIGTERM, signal.SIGINT})
    serve.shutdown()
