"""What the routes share: the queue behind them, the intake before it, and whether the service is ready."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Final

from fastapi import FastAPI, Request, Response
from pydantic import BaseModel, ConfigDict

from chestxray.inference.bundle import Bundle
from chestxray.inference.predictor import Predictor
from chestxray.serving.metrics import Metrics
from chestxray.serving.pool import DecoderPool
from chestxray.serving.problems import NOT_READY, UNKNOWN_POINT, Refusal
from chestxray.serving.queue import PredictionQueue
from chestxray.serving.settings import ServiceSettings
from chestxray.serving.static import EXAMPLES
from chestxray.serving.upload import Intake

DRAIN_SECONDS: Final = 20.0  # for films that are under way when the service is told to stop


class PredictParameters(BaseModel):
    """Query of ``/v1/predict``. A misspelt parameter is refused: it would change the answer silently."""

    model_config = ConfigDict(extra="forbid")

    operating_point: str | None = None
    heatmap: bool = False


class Service:
    """One loaded bundle behind its queue."""

    def __init__(self, predictor: Predictor, settings: ServiceSettings, decoders: DecoderPool | None = None) -> None:
        self.predictor = predictor
        self.settings = settings
        self.metrics = Metrics()
        if decoders is None:
            bundle = Bundle(predictor.folder, predictor.info)
            decoders = DecoderPool(bundle, settings.workers, settings.decoding)
        self.queue = PredictionQueue(predictor, decoders, settings.workers + settings.waiting, self.metrics)
        self.intake = Intake(settings.max_body, settings.body_seconds, settings.max_bodies)
        self.ready = False
        self.metrics.watch("films_inside", "Films admitted and not yet answered.", lambda: self.queue.inside)
        self.metrics.watch("decoders_replaced", "Decoding processes that died.", lambda: decoders.replaced)
        self.metrics.watch("ready", "1 while films are judged, else 0.", lambda: self.ready)

    @asynccontextmanager
    async def lifespan(self, _app: FastAPI) -> AsyncIterator[None]:
        """Warm up, be ready, and let threads and processes end."""
        for example in sorted(EXAMPLES.glob("*.jpg"))[:1]:
            await self.queue.predict(example.read_bytes(), heatmap=True)
        self.ready = True
        yield
        self.ready = False
        self.queue.close()

    def begin_to_stop(self) -> None:
        """Not ready from now on; what is under way has ``DRAIN_SECONDS``."""
        self.ready = False
        self.queue.end_within(DRAIN_SECONDS)

    async def judge(self, request: Request, parameters: PredictParameters) -> Response:
        """The film in the body, judged. Raises: Refusal."""
        points = [point.name for point in self.predictor.info.operating_points]
        wanted = parameters.operating_point
        if wanted is not None and wanted not in points:
            raise Refusal(UNKNOWN_POINT, f"there is no operating point {wanted[:80]!r}; there are {', '.join(points)}")
        self.queue.refuse_if_full()  # before the body is read
        async with self.queue.in_time():
            with self.intake.body() as body:
                data = await body.read(request)
                prediction = await self.queue.predict(data, wanted, heatmap=parameters.heatmap)
        return Response(prediction.to_json(), media_type="application/json")

    def check_ready(self) -> None:
        """Raises: Refusal (503), before the warm-up is done and after the shutdown began."""
        if not self.ready:
            raise Refusal(NOT_READY, "the model is being loaded, or the service is stopping", {"Retry-After": "1"})
