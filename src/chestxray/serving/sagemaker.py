"""SageMaker's hosting and batch transform contract, and its runtime's address, so that boto3 can call a local service.

Source: Amazon SageMaker developer guide, "Use Your Own Inference Code" with hosting and with batch transform;
API reference, InvokeEndpoint.
"""

from __future__ import annotations

import urllib.parse
from http import HTTPStatus
from typing import Annotated, Any, Final

from fastapi import FastAPI, Path, Request, Response
from pydantic import ValidationError

from chestxray.schema import Prediction
from chestxray.serving import openapi
from chestxray.serving.problems import INVALID_REQUEST, NOT_ACCEPTABLE, PROBLEM_JSON, Refusal, problem_response
from chestxray.serving.service import MEBIBYTE, PredictParameters, Service

# the only header that InvokeEndpoint passes on beside the body
ATTRIBUTES: Final = "X-Amzn-SageMaker-Custom-Attributes"
ENDPOINT_NAME: Final = r"^[a-zA-Z0-9](-*[a-zA-Z0-9]){0,62}$"
_OF_A_FILM: Final = (413, 415, 422)  # statuses that concern the film and not the service

Options = dict[str, Any]


def add_sagemaker_routes(app: FastAPI, service: Service) -> None:
    """Add ``/ping``, ``/invocations``, ``/execution-parameters`` and ``/endpoints/{name}/invocations``."""
    settings = service.settings
    execution: dict[str, int | str] = {
        "MaxConcurrentTransforms": settings.workers,
        "BatchStrategy": "SINGLE_RECORD",
        "MaxPayloadInMB": settings.max_body // MEBIBYTE,
    }
    film_in: Options = openapi.film_in(Prediction, 406)

    @app.get("/ping", summary="Is it there?", tags=["sagemaker"], **openapi.empty_out(503))
    async def ping() -> Response:
        """Return 200 with an empty body once films can be classified."""
        service.check_ready()
        return Response()

    @app.post("/invocations", summary="Classify one film", tags=["sagemaker"], **film_in)
    async def invoke(request: Request) -> Response:
        """Predict as ``/v1/predict``, with its query parameters in the header X-Amzn-SageMaker-Custom-Attributes."""
        return await _invoke(service, request)

    @app.post("/endpoints/{name}/invocations", summary="Classify one film", tags=["sagemaker"], **film_in)
    async def invoke_endpoint(
        request: Request,
        name: Annotated[str, Path(pattern=ENDPOINT_NAME)],  # noqa: ARG001 - this server has one model
    ) -> Response:
        """Predict as ``/invocations``, at the address that boto3's ``sagemaker-runtime`` calls; any name will do."""
        try:
            return await _invoke(service, request)
        except Refusal as refusal:
            return _as_runtime_error(refusal, request)

    @app.get("/execution-parameters", summary="For batch transform", tags=["sagemaker"], **openapi.json_any())
    async def parameters() -> dict[str, int | str]:
        """Return the settings with which a batch transform should call."""
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
        answer = problem_response(refusal.kind, refusal.detail, request.state.request_id)
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
