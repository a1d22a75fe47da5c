"""One ASGI application: the page, the API and SageMaker's hosting contract, over one predictor.

    /                       the page
    /v1/predict             one film in, one prediction out
    /v1/film                one film in, the picture that was decoded out
    /v1/model               the model, and how well it did
    /ping, /invocations, /execution-parameters, /endpoints/{name}/invocations      as SageMaker asks for them
    /healthz, /readyz, /metrics      for monitoring
    /docs, /openapi.json    how to call it

``create_app`` keeps all state in what it returns. No address that a caller sends is ever opened, and
nothing that a caller sends is stored.
"""

from __future__ import annotations

import gzip
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Final

from fastapi import FastAPI, Query, Request, Response
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from chestxray import __version__
from chestxray.inference.predictor import Predictor
from chestxray.schema import NOTICE, BundleInfo, Prediction
from chestxray.serving import metrics, openapi
from chestxray.serving.decoders import DecoderPool
from chestxray.serving.intake import MEDIA_TYPES
from chestxray.serving.problems import INVALID_REQUEST, NOT_FOUND, WRONG_METHOD, Refusal, problem_response
from chestxray.serving.sagemaker import add_sagemaker_routes
from chestxray.serving.security import ApiKeyMiddleware, Edge
from chestxray.serving.service import MEBIBYTE, PredictParameters, Service, ServiceSettings
from chestxray.serving.static import PAGE_NOT_FOUND, packed_or_plain, page_routes

__all__ = ["MEBIBYTE", "ServiceSettings", "create_app"]

MODEL_CARD: Final = "MODEL_CARD.md"
PREDICT: Final = "/v1/predict"

# These paths need no key: they report that the service runs, document it, and load the page that asks for the key.
_OPEN: Final = frozenset({"/healthz", "/readyz", "/ping", "/openapi.json"})


@dataclass(frozen=True, slots=True)
class ModelDescription:
    """The answer of ``/v1/model``.

    Attributes:
        bundle: the content of ``bundle.json``: preprocessing, operating points, hashes, intended use.
        model_sha256: SHA-256 of the model's graph; every prediction carries it, too.
        card: the model card, Markdown; "" where the bundle has none.
        max_body: largest accepted size of one film, in bytes.
        media_types: content types that ``/v1/predict`` accepts.
    """

    bundle: BundleInfo
    model_sha256: str
    card: str
    max_body: int
    media_types: tuple[str, ...] = MEDIA_TYPES
    notice: str = NOTICE


def create_app(
    predictor: Predictor, settings: ServiceSettings | None = None, decoders: DecoderPool | None = None
) -> FastAPI:
    """Build the whole service for one loaded bundle.

    Args:
        predictor: the loaded bundle, which classifies the films.
        settings: limits, names, keys.
        decoders: a pool already started for this bundle; by default a new pool starts with the first film.

    Returns: the application; ``app.state.service`` is the object that the routes share.
    """
    service = Service(predictor, settings or ServiceSettings(), decoders)
    app = FastAPI(
        title="chestxray",
        version=__version__,
        description=openapi.DESCRIPTION,
        docs_url=None,  # FastAPI's own pages load their scripts from another origin
        redoc_url=None,
        redirect_slashes=False,
        lifespan=service.lifespan,
    )
    app.state.service = service
    for cls, handler in _HANDLERS.items():
        app.add_exception_handler(cls, handler)
    _add_film_routes(app, service)
    add_sagemaker_routes(app, service)
    _add_health_routes(app, service)
    pages = list(page_routes())
    app.router.routes.extend(pages)
    _surround(app, service, _OPEN | {route.path for route in pages})
    openapi.complete(
        app, [point.name for point in predictor.info.operating_points], _OPEN, locked=bool(service.settings.keys)
    )
    return app


def describe_model(folder: Path, info: BundleInfo, max_body: int) -> str:
    """Return a ModelDescription as JSON; a website on AWS serves the same document."""
    card = folder / MODEL_CARD
    description = {
        "bundle": json.loads(info.to_json()),
        "model_sha256": info.model_sha256,
        "card": card.read_text(encoding="utf-8") if card.is_file() else "",
        "max_body": max_body,
        "media_types": MEDIA_TYPES,
        "notice": NOTICE,
    }
    return json.dumps(description)


class PlainPredictions:
    """ASGI middleware, innermost: a film for ``/v1/predict`` without parameters goes past routing and validation.

    Both have nothing to decide there, and take as long as reading a small film.
    """

    def __init__(self, app: ASGIApp, service: Service) -> None:
        self.app = app
        self._service = service
        self._plain = PredictParameters()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer, or pass on."""
        if scope["type"] != "http" or scope["path"] != PREDICT or scope["method"] != "POST" or scope["query_string"]:
            await self.app(scope, receive, send)
            return
        scope["route"] = _PREDICT_ROUTE
        request = Request(scope, receive)
        try:
            answer = await self._service.predict(request, self._plain)
        except Refusal as refusal:
            answer = await _refused(request, refusal)
        await answer(scope, receive, send)


def _surround(app: FastAPI, service: Service, open_paths: frozenset[str]) -> None:
    """Add the middleware layers round the routes, from the innermost to the outermost."""
    settings = service.settings
    app.add_middleware(PlainPredictions, service=service)
    app.add_middleware(ApiKeyMiddleware, keys=settings.keys, open_paths=open_paths)
    if settings.cors_origins:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=settings.cors_origins,
            allow_methods=["GET", "POST"],
            allow_headers=["Authorization", "Content-Type", "X-API-Key"],
            expose_headers=["Retry-After", "X-Request-Id"],
        )
    app.add_middleware(Edge, hosts=settings.hosts, observe=service.metrics.observe)


def _add_film_routes(app: FastAPI, service: Service) -> None:
    model = describe_model(service.predictor.folder, service.predictor.info, service.settings.max_body).encode()
    model_packed = gzip.compress(model, mtime=0)

    @app.post(PREDICT, summary="Classify one film", tags=["films"], **openapi.film_in(Prediction))
    async def predict(request: Request, parameters: Annotated[PredictParameters, Query()]) -> Response:
        """Send the bytes of one JPEG, PNG, TIFF or DICOM film as the body, or up to a thousand as parts of a form.

        Several films are answered with one line of JSON each, in their order, each with a status of its own.

        The answer is a prediction, also where the film can be read and must not be classified: then its gate is
        closed and says why. A body that is no readable film is answered with a problem document.
        """
        return await service.predict(request, parameters)

    @app.post("/v1/film", summary="Draw one film", tags=["films"], **openapi.picture_out())
    async def draw(request: Request) -> Response:
        """Send the bytes of one film as the body, and get what was decoded: a PNG of 8 grey bits.

        For formats that a browser cannot draw: TIFF, and DICOM in most of its compressions. Its long side has at most
        2,048 pixels.
        """
        return await service.draw(request)

    @app.get("/v1/model", summary="The model", tags=["films"], **openapi.json_out(ModelDescription))
    async def describe(request: Request) -> Response:
        """Return the bundle's description, its model card, and the limits of this service."""
        return packed_or_plain(request, model, model_packed, "application/json", {"Vary": "Accept-Encoding"})


def _add_health_routes(app: FastAPI, service: Service) -> None:
    @app.get("/healthz", summary="Does the process answer?", tags=["health"], **openapi.json_any())
    async def alive() -> dict[str, str]:
        return {"status": "alive"}

    @app.get("/readyz", summary="Can it answer?", tags=["health"], **openapi.json_any(503))
    async def ready() -> dict[str, str]:
        service.check_ready()
        return {"status": "ready"}

    @app.get("/metrics", summary="What it counts", tags=["health"], **openapi.text_out("Prometheus' text format"))
    async def counted() -> Response:
        return Response(service.metrics.text(), headers={"Content-Type": metrics.CONTENT_TYPE})


async def _refused(request: Request, error: Exception) -> Response:
    assert isinstance(error, Refusal)  # noqa: S101 - the exception handlers below pass only a Refusal to this function
    return problem_response(error.kind, error.detail, request.state.request_id, error.headers)


async def _invalid(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)  # noqa: S101
    faults = (f"{'.'.join(str(part) for part in fault['loc'])}: {fault['msg']}" for fault in error.errors())
    return problem_response(INVALID_REQUEST, "; ".join(faults), request.state.request_id)


async def _http(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)  # noqa: S101
    kind = {404: NOT_FOUND, 405: WRONG_METHOD}.get(error.status_code, INVALID_REQUEST)
    if kind is NOT_FOUND and "text/html" in request.headers.get("accept", ""):  # a person with a browser asked
        return Response(PAGE_NOT_FOUND, status_code=404, media_type="text/html")
    detail = f"{error.detail}; /docs lists the addresses and their methods"
    return problem_response(kind, detail, request.state.request_id, error.headers, error.status_code)


_PREDICT_ROUTE: Final = Route(PREDICT, _refused)  # only for its name in log and metrics
_HANDLERS: Final[Mapping[type[Exception], Any]] = {
    Refusal: _refused,
    RequestValidationError: _invalid,
    HTTPException: _http,
}
