"""One ASGI application: the page, the API and SageMaker's hosting contract, over one predictor.

    /                       the page
    /v1/predict             one film in, one prediction out
    /v1/model               what judges, and how well it did
    /ping, /invocations, /execution-parameters      as SageMaker asks for them
    /healthz, /readyz       for whoever watches the process
    /docs, /openapi.json    how to call it

``create_app`` keeps all state in what it returns. No address that a caller sends is ever opened, and
nothing that a caller sends is stored.
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Annotated, Any, Final

from fastapi import FastAPI, Query, Request, Response
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel, ConfigDict
from starlette.exceptions import HTTPException

from chestxray import __version__
from chestxray.inference.predictor import Predictor
from chestxray.machine import cores
from chestxray.schema import NOTICE, BundleInfo, Prediction
from chestxray.serving import openapi
from chestxray.serving.problems import (
    INVALID_REQUEST,
    NOT_ACCEPTABLE,
    NOT_FOUND,
    NOT_READY,
    UNKNOWN_POINT,
    WRONG_METHOD,
    Refusal,
    problem_response,
)
from chestxray.serving.queue import PredictionQueue
from chestxray.serving.security import Edge, HostRule
from chestxray.serving.static import EXAMPLES, page_routes
from chestxray.serving.upload import MEDIA_TYPES, read_film

MEBIBYTE: Final = 2**20
MODEL_CARD: Final = "MODEL_CARD.md"


@dataclass(frozen=True, slots=True)
class ServiceSettings:
    """How much the service takes on, and the names that it answers to.

    Attributes:
        max_body: bytes of one film.
        body_seconds: in which a body has to arrive.
        workers: films judged at the same time.
        waiting: films that may wait beyond these; the next is refused with 503.
        hosts: what the Host header may say.
    """

    max_body: int = 20 * MEBIBYTE
    body_seconds: float = 30.0
    workers: int = field(default_factory=lambda: min(cores(), 4))
    waiting: int = 16
    hosts: HostRule = field(default_factory=HostRule)


@dataclass(frozen=True, slots=True)
class ModelDescription:
    """The answer of ``/v1/model``.

    Attributes:
        bundle: what ``bundle.json`` says: preprocessing, operating points, hashes, intended use.
        model_sha256: of the graph; every prediction names it, too.
        card: the model card, Markdown; "" where the bundle has none.
        max_body: bytes of one film that are accepted.
        media_types: content types that ``/v1/predict`` takes.
    """

    bundle: BundleInfo
    model_sha256: str
    card: str
    max_body: int
    media_types: tuple[str, ...] = MEDIA_TYPES
    notice: str = NOTICE


class PredictParameters(BaseModel):
    """Query of ``/v1/predict``. A misspelt parameter is refused: it would change the answer silently."""

    model_config = ConfigDict(extra="forbid")

    operating_point: str | None = None
    heatmap: bool = False


class Service:
    """What the routes share: the predictor behind its queue, the settings, and whether all is warm."""

    def __init__(self, predictor: Predictor, settings: ServiceSettings) -> None:
        self.predictor = predictor
        self.settings = settings
        self.queue = PredictionQueue(predictor, settings.workers, settings.waiting)
        self.ready = False

    @asynccontextmanager
    async def lifespan(self, _app: FastAPI) -> AsyncIterator[None]:
        """Warm up, be ready, and let the threads end."""
        for example in sorted(EXAMPLES.glob("*.jpg"))[:1]:
            await self.queue.predict(example.read_bytes(), heatmap=True)
        self.ready = True
        yield
        self.ready = False
        self.queue.close()

    async def judge(self, request: Request, parameters: PredictParameters) -> Response:
        """The film in the body, judged. Raises: Refusal."""
        points = [point.name for point in self.predictor.info.operating_points]
        wanted = parameters.operating_point
        if wanted is not None and wanted not in points:
            raise Refusal(UNKNOWN_POINT, f"there is no operating point {wanted[:80]!r}; there are {', '.join(points)}")
        self.queue.refuse_if_full()  # before the body is read
        data = await read_film(request, self.settings.max_body, self.settings.body_seconds)
        prediction = await self.queue.predict(data, wanted, heatmap=parameters.heatmap)
        return Response(prediction.to_json(), media_type="application/json")

    def check_ready(self) -> None:
        """Raises: Refusal (503), before the warm-up is done and after the shutdown began."""
        if not self.ready:
            raise Refusal(NOT_READY, "the model is being loaded, or the service is stopping", {"Retry-After": "1"})


def create_app(predictor: Predictor, settings: ServiceSettings | None = None) -> FastAPI:
    """The whole service over one loaded bundle."""
    service = Service(predictor, settings or ServiceSettings())
    app = FastAPI(
        title="chestxray",
        version=__version__,
        description=openapi.DESCRIPTION,
        docs_url=None,  # FastAPI's own pages load their scripts from another origin
        redoc_url=None,
        lifespan=service.lifespan,
    )
    app.add_middleware(Edge, hosts=service.settings.hosts)
    for cls, handler in _HANDLERS.items():
        app.add_exception_handler(cls, handler)
    _add_prediction_routes(app, service)
    _add_sagemaker_routes(app, service)
    _add_health_routes(app, service)
    app.router.routes.extend(page_routes())
    openapi.complete(app, [point.name for point in predictor.info.operating_points])
    return app


def _add_prediction_routes(app: FastAPI, service: Service) -> None:
    folder, info = service.predictor.folder, service.predictor.info
    card = folder / MODEL_CARD
    description = {
        "bundle": json.loads(info.to_json()),
        "model_sha256": info.model_sha256,
        "card": card.read_text(encoding="utf-8") if card.is_file() else "",
        "max_body": service.settings.max_body,
        "media_types": MEDIA_TYPES,
        "notice": NOTICE,
    }
    model = json.dumps(description)

    @app.post("/v1/predict", summary="Judge one film", tags=["films"], **openapi.film_in(Prediction))
    async def predict(request: Request, parameters: Annotated[PredictParameters, Query()]) -> Response:
        """Send the bytes of one JPEG or PNG film as the body.

        The answer is a prediction, also where the film can be read and must not be judged: then its gate is
        closed and says why. A body that is no readable film is answered with a problem document.
        """
        return await service.judge(request, parameters)

    @app.get("/v1/model", summary="What judges", tags=["films"], **openapi.json_out(ModelDescription))
    async def describe() -> Response:
        """The bundle's description, its model card, and the limits of this service."""
        return Response(model, media_type="application/json")


def _add_sagemaker_routes(app: FastAPI, service: Service) -> None:
    """Source: Amazon SageMaker developer guide, "Use Your Own Inference Code" with hosting and batch transform."""
    execution: dict[str, int | str] = {
        "MaxConcurrentTransforms": service.settings.workers,
        "BatchStrategy": "SINGLE_RECORD",
        "MaxPayloadInMB": service.settings.max_body // MEBIBYTE,
    }

    @app.get("/ping", summary="Is it there?", tags=["sagemaker"], **openapi.empty_out(503))
    async def ping() -> Response:
        """200 with an empty body once films can be judged."""
        service.check_ready()
        return Response()

    @app.post("/invocations", summary="Judge one film", tags=["sagemaker"], **openapi.film_in(Prediction, 406))
    async def invoke(request: Request) -> Response:
        """As ``/v1/predict``, at the default operating point and without heat map."""
        _check_accept(request.headers.get("accept", ""))
        return await service.judge(request, PredictParameters())

    @app.get("/execution-parameters", summary="For batch transform", tags=["sagemaker"])
    async def parameters() -> dict[str, int | str]:
        """How a batch transform should call."""
        return execution


def _add_health_routes(app: FastAPI, service: Service) -> None:
    @app.get("/healthz", summary="Does the process answer?", tags=["health"])
    async def alive() -> dict[str, str]:
        return {"status": "alive"}

    @app.get("/readyz", summary="Can it judge films?", tags=["health"], responses=openapi.problems(503))
    async def ready() -> dict[str, str]:
        service.check_ready()
        return {"status": "ready"}


def _check_accept(header: str) -> None:
    accepted = {part.partition(";")[0].strip().lower() for part in header.split(",")} - {""}
    if accepted and not accepted & {"*/*", "application/*", "application/json"}:
        raise Refusal(NOT_ACCEPTABLE, "the answer is application/json, which the Accept header rules out")


async def _refused(request: Request, error: Exception) -> Response:
    assert isinstance(error, Refusal)  # noqa: S101 - the table below sends nothing else here
    return problem_response(error.kind, error.detail, request.state.request_id, error.headers)


async def _invalid(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)  # noqa: S101
    faults = (f"{'.'.join(str(part) for part in fault['loc'])}: {fault['msg']}" for fault in error.errors())
    return problem_response(INVALID_REQUEST, "; ".join(faults), request.state.request_id)


async def _http(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)  # noqa: S101
    kind = {404: NOT_FOUND, 405: WRONG_METHOD}.get(error.status_code, INVALID_REQUEST)
    detail = f"{error.detail}; /docs lists the addresses and their methods"
    return problem_response(kind, detail, request.state.request_id, error.headers, error.status_code)


_HANDLERS: Final[Mapping[type[Exception], Any]] = {
    Refusal: _refused,
    RequestValidationError: _invalid,
    HTTPException: _http,
}
