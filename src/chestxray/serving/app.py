"""One ASGI application: the page, the API and SageMaker's hosting contract, over one predictor.

    /                               the page
    /v1/predict                     one film in, one prediction out
    /v1/film                        one film in, the picture that was decoded out
    /v1/model                       the model, and how well it did
    /ping, /invocations, /execution-parameters   SageMaker's contract for hosting and batch transform
    /endpoints/{name}/invocations   the address of SageMaker's runtime: boto3 can call a local service
    /healthz, /readyz, /metrics     for monitoring
    /docs, /openapi.json            how to call it

``create_app`` keeps all state in what it returns. No address that a caller sends is ever opened, and
nothing that a caller sends is stored.

Source: Amazon SageMaker developer guide, "Use Your Own Inference Code" with hosting and with batch transform;
API reference, InvokeEndpoint.
"""

from __future__ import annotations

import dataclasses
import gzip
import json
import urllib.parse
from dataclasses import dataclass
from http import HTTPStatus
from pathlib import Path
from types import SimpleNamespace
from typing import Annotated, Any, Final

import fastapi
from fastapi import FastAPI, Query, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import PlainTextResponse
from pydantic import TypeAdapter, ValidationError
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.types import ASGIApp, Receive, Scope, Send

from chestxray import __version__
from chestxray.files import MEBIBYTE
from chestxray.inference.predictor import Predictor
from chestxray.schema import NOTICE, BundleInfo, Prediction
from chestxray.serving.decoders import DecoderPool
from chestxray.serving.intake import MEDIA_TYPES, MULTIPART
from chestxray.serving.problems import (
    INVALID_REQUEST,
    NOT_ACCEPTABLE,
    NOT_FOUND,
    PROBLEM_JSON,
    PROBLEM_TYPES,
    WRONG_METHOD,
    Problem,
    Refusal,
    problem_response,
)
from chestxray.serving.security import ApiKeyMiddleware, Edge
from chestxray.serving.service import NDJSON, PredictParameters, Service, ServiceSettings
from chestxray.serving.static import PAGE_NOT_FOUND, packed_or_plain, page_routes

__all__ = ["ServiceSettings", "create_app"]

MODEL_CARD: Final = "MODEL_CARD.md"
PREDICT: Final = "/v1/predict"

# These paths need no key: they report that the service runs, document it, and load the page that asks for the key.
_OPEN: Final = frozenset({"/healthz", "/readyz", "/ping", "/openapi.json"})

# the only header that InvokeEndpoint passes on beside the body
ATTRIBUTES: Final = "X-Amzn-SageMaker-Custom-Attributes"
ENDPOINT_NAME: Final = r"^[a-zA-Z0-9](-*[a-zA-Z0-9]){0,62}$"
_OF_A_FILM: Final = (413, 415, 422)  # statuses that concern the film and not the service

API_DESCRIPTION: Final = f"Classifies frontal chest films for signs of pneumonia. Films are not stored. {NOTICE}"

_FILM_BODY: Final = {
    "required": True,
    "description": "The bytes of one film. They decide its format; URLs are never fetched.",
    "content": {name: {"schema": {"type": "string", "format": "binary"}} for name in MEDIA_TYPES}
    | {MULTIPART: {"schema": {"type": "object", "description": "One film in each part, with any name."}}},
}
_LINES: Final = (
    'Where the body holds several films: a line of JSON each, in their order, with "index", "status" and '
    '"prediction" or "problem".'
)
_FILM_STATUSES: Final = (403, 408, 413, 415, 422, 503)
_ALWAYS: Final = (421, 500)  # statuses with which the outer layer of the service may answer any request
_KEYS: Final = {
    "bearer": {"type": "http", "scheme": "bearer"},
    "header": {"type": "apiKey", "in": "header", "name": "X-API-Key"},
}


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
        description=API_DESCRIPTION,
        docs_url=None,  # FastAPI's own pages load their scripts from another origin
        redoc_url=None,
        redirect_slashes=False,
        lifespan=service.lifespan,
    )
    app.state.service = service
    _add_problem_handlers(app)
    _add_film_routes(app, service)
    _add_sagemaker_routes(app, service)
    _add_health_routes(app, service)
    pages = list(page_routes())
    app.router.routes.extend(pages)
    _surround(app, service, _OPEN | {route.path for route in pages})
    _complete_document(app, service)
    return app


def describe_model(folder: Path, info: BundleInfo, max_body: int) -> str:
    """Return a ModelDescription as JSON; a website on AWS serves the same document."""
    path = folder / MODEL_CARD
    card = path.read_text(encoding="utf-8") if path.is_file() else ""
    return json.dumps(dataclasses.asdict(ModelDescription(info, info.model_sha256, card, max_body)))


class PlainPredictions:
    """ASGI middleware, innermost: a film for ``/v1/predict`` without parameters goes past routing and validation.

    Both have nothing to decide there, and take as long as reading a small film.
    """

    def __init__(self, app: ASGIApp, service: Service) -> None:
        self.app = app
        self._service = service
        self._plain = PredictParameters()
        self._route = SimpleNamespace(path=PREDICT)  # the name of the route in log and metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer the request, or pass it to the next layer."""
        if scope["type"] != "http" or scope["path"] != PREDICT or scope["method"] != "POST" or scope["query_string"]:
            await self.app(scope, receive, send)
            return
        scope["route"] = self._route
        request = Request(scope, receive)
        try:
            answer = await self._service.predict(request, self._plain)
        except Refusal as refusal:
            answer = refusal.response(request.state.request_id)
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

    @app.post(PREDICT, summary="Classify one film", tags=["films"], **_film_in())
    async def predict(request: Request, parameters: Annotated[PredictParameters, Query()]) -> Response:
        """Send the bytes of one JPEG, PNG, TIFF or DICOM film as the body, or up to a thousand as parts of a form.

        Several films are answered with one line of JSON for each, in order, each with its own status.

        The answer is a prediction, also if the film can be read but must not be classified: then the gate is closed
        and gives the reason. A body that is not a readable film is answered with a problem document.
        """
        return await service.predict(request, parameters)

    @app.post(
        "/v1/film",
        summary="Draw one film",
        tags=["films"],
        response_class=Response,
        responses={200: {"description": "The film", "content": {"image/png": {}}}, **_problems(*_FILM_STATUSES)},
        openapi_extra={"requestBody": _FILM_BODY},
    )
    async def draw(request: Request) -> Response:
        """Send the bytes of one film as the body, and get the decoded film: a PNG of 8 grey bits.

        It is for formats that a browser cannot draw: TIFF, and most compressed DICOM. The long side has at most 2,048
        pixels.
        """
        return await service.draw(request)

    @app.get(
        "/v1/model",
        summary="The model",
        tags=["films"],
        responses={200: {"model": ModelDescription}, **_problems()},
    )
    async def describe(request: Request) -> Response:
        """Return the bundle's description, its model card, and the limits of this service."""
        return packed_or_plain(request, model, model_packed, "application/json", {"Vary": "Accept-Encoding"})


def _add_health_routes(app: FastAPI, service: Service) -> None:
    @app.get("/healthz", summary="Liveness", tags=["health"], responses=_problems())
    async def alive() -> dict[str, str]:
        return {"status": "alive"}

    @app.get("/readyz", summary="Readiness", tags=["health"], responses=_problems(503))
    async def ready() -> dict[str, str]:
        service.check_ready()
        return {"status": "ready"}

    @app.get(
        "/metrics",
        summary="Metrics",
        tags=["health"],
        response_class=PlainTextResponse,
        responses={200: {"description": "Prometheus' text format"}, **_problems()},
    )
    async def counted() -> Response:
        return Response(service.metrics.text(), headers={"Content-Type": service.metrics.content_type})


def _add_sagemaker_routes(app: FastAPI, service: Service) -> None:
    """Add ``/ping``, ``/invocations``, ``/execution-parameters`` and ``/endpoints/{name}/invocations``."""
    settings = service.settings
    execution: dict[str, int | str] = {
        "MaxConcurrentTransforms": settings.workers,
        "BatchStrategy": "SINGLE_RECORD",
        "MaxPayloadInMB": settings.max_body // MEBIBYTE,
    }
    film = _film_in(406)

    @app.get(
        "/ping",
        summary="Readiness, for SageMaker",
        tags=["sagemaker"],
        response_class=Response,
        responses={200: {"description": "Empty"}, **_problems(503)},
    )
    async def ping() -> Response:
        """Return 200 with an empty body once films can be classified."""
        service.check_ready()
        return Response()

    @app.post("/invocations", summary="Classify one film", tags=["sagemaker"], **film)
    async def invoke(request: Request) -> Response:
        """Predict as ``/v1/predict``, with its query parameters in the header X-Amzn-SageMaker-Custom-Attributes."""
        return await _invoke(service, request)

    @app.post("/endpoints/{name}/invocations", summary="Classify one film", tags=["sagemaker"], **film)
    async def invoke_endpoint(
        request: Request,
        name: Annotated[str, fastapi.Path(pattern=ENDPOINT_NAME)],  # noqa: ARG001 - this server has one model
    ) -> Response:
        """Predict as ``/invocations``, at the URL that boto3's ``sagemaker-runtime`` calls; any name works."""
        try:
            return await _invoke(service, request)
        except Refusal as refusal:
            return _as_runtime_error(refusal, request)

    @app.get("/execution-parameters", summary="For batch transform", tags=["sagemaker"], responses=_problems())
    async def parameters() -> dict[str, int | str]:
        """Return the settings for a batch transform."""
        return execution


async def _invoke(service: Service, request: Request) -> Response:
    _check_accept(request.headers.get("accept", ""))
    if not service.settings.transform:
        return await service.predict(request, _parameters_of(request))
    return await _line_of_transform(service, request)


def _parameters_of(request: Request) -> PredictParameters:
    """Read ``operating_point=screening&heatmap=1``; ignore attributes of other names. Raises: Refusal."""
    given = dict(urllib.parse.parse_qsl(request.headers.get(ATTRIBUTES, "")))
    ours = {name: value for name, value in given.items() if name in PredictParameters.model_fields}
    try:
        return PredictParameters.model_validate(ours)
    except ValidationError:
        raise Refusal(INVALID_REQUEST, f"{ATTRIBUTES}: heatmap is 1 or 0") from None


async def _line_of_transform(service: Service, request: Request) -> Response:
    """Return one line of a batch transform's output, also for an unreadable film: an error would end the job."""
    try:
        answer = await service.predict(request, PredictParameters())
    except Refusal as refusal:
        if refusal.kind.status not in _OF_A_FILM:
            raise
        answer = refusal.response(request.state.request_id)
    media_type = answer.media_type or PROBLEM_JSON
    return Response(bytes(answer.body) + b"\n", media_type=media_type)


def _as_runtime_error(refusal: Refusal, request: Request) -> Response:
    """Return the problem as boto3 expects its exceptions: with a known error kind and the model's answer."""
    known = "ServiceUnavailable" if refusal.kind.status == HTTPStatus.SERVICE_UNAVAILABLE else "ModelError"
    headers = {**(refusal.headers or {}), "x-amzn-ErrorType": known}
    problem = refusal.kind, refusal.detail, request.state.request_id
    original = bytes(problem_response(*problem).body).decode()
    further = {
        "Message": refusal.detail,
        "OriginalStatusCode": refusal.kind.status,
        "OriginalMessage": original,
    }
    return problem_response(*problem, headers, further=further)


def _check_accept(header: str) -> None:
    accepted = {part.partition(";")[0].strip().lower() for part in header.split(",")} - {""}
    if accepted and not accepted & {"*/*", "application/*", "application/json"}:
        raise Refusal(NOT_ACCEPTABLE, "the answer is application/json, which the Accept header rules out")


def _add_problem_handlers(app: FastAPI) -> None:
    """Answer refusals, and the errors of FastAPI and Starlette, with problem documents."""

    @app.exception_handler(Refusal)
    async def refused(request: Request, refusal: Refusal) -> Response:
        return refusal.response(request.state.request_id)

    @app.exception_handler(RequestValidationError)
    async def invalid(request: Request, error: RequestValidationError) -> Response:
        faults = (f"{'.'.join(str(part) for part in fault['loc'])}: {fault['msg']}" for fault in error.errors())
        return problem_response(INVALID_REQUEST, "; ".join(faults), request.state.request_id)

    @app.exception_handler(HTTPException)
    async def failed(request: Request, error: HTTPException) -> Response:
        kind = {404: NOT_FOUND, 405: WRONG_METHOD}.get(error.status_code, INVALID_REQUEST)
        if kind is NOT_FOUND and "text/html" in request.headers.get("accept", ""):  # a person with a browser asked
            return Response(PAGE_NOT_FOUND, status_code=404, media_type="text/html")
        detail = f"{error.detail}; /docs lists the addresses and their methods"
        return problem_response(kind, detail, request.state.request_id, error.headers, error.status_code)


def _film_in(*statuses: int) -> dict[str, Any]:
    """Return the options of a route that takes one film or several, and answers with predictions or a problem."""
    lines = {NDJSON: {"schema": {"type": "string", "description": _LINES}}}
    return {
        "openapi_extra": {"requestBody": _FILM_BODY},
        "responses": {200: {"model": Prediction, "content": lines}, **_problems(*_FILM_STATUSES, *statuses)},
    }


def _problems(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """Return the responses for refusals with these statuses, each with the titles that it may have."""
    schema = {"$ref": "#/components/schemas/Problem"}
    return {
        status: {
            "description": "; ".join(kind.title for kind in PROBLEM_TYPES if kind.status == status),
            "content": {PROBLEM_JSON: {"schema": schema}},
        }
        for status in sorted({*statuses, *_ALWAYS})
    }


def _complete_document(app: FastAPI, service: Service) -> None:
    """Build the OpenAPI document once, and add what the routes cannot declare: problems, keys, operating points."""
    operating_points = [point.name for point in service.predictor.info.operating_points]
    locked = bool(service.settings.keys)
    document = app.openapi()
    components = document.setdefault("components", {})
    components.setdefault("schemas", {})["Problem"] = TypeAdapter(Problem).json_schema(mode="serialization")
    if locked:
        components["securitySchemes"] = _KEYS
    for path, operations in document["paths"].items():
        for operation in operations.values():
            needs_key = locked and path not in _OPEN
            if needs_key:
                operation["security"] = [{name: []} for name in _KEYS]
            rows = _problems(401) if needs_key else _problems()
            operation["responses"] |= {str(status): row for status, row in rows.items()}
            for parameter in operation.get("parameters", ()):
                if parameter["name"] == "operating_point":
                    parameter["description"] = "Name of an operating point of this bundle. It has a default."
                    parameter["schema"] = {"type": "string", "enum": operating_points}
                elif parameter["name"] == "heatmap":
                    parameter["description"] = "Whether to return the heat map, a PNG in base64."
    document["x-problems"] = [kind._asdict() for kind in PROBLEM_TYPES]
