"""The parts of the OpenAPI document that FastAPI cannot know: raw bodies, problem documents, operating points."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

from fastapi import FastAPI, Response
from fastapi.responses import PlainTextResponse
from pydantic import TypeAdapter

from chestxray.schema import NOTICE
from chestxray.serving.intake import MEDIA_TYPES, MULTIPART
from chestxray.serving.problems import PROBLEM_JSON, PROBLEM_TYPES, Problem
from chestxray.serving.service import NDJSON

DESCRIPTION: Final = f"Classifies frontal chest films for signs of pneumonia. Films are not stored. {NOTICE}"

_FILM_BODY: Final = {
    "required": True,
    "description": "The bytes of one film. The bytes decide what it is; addresses are never opened.",
    "content": {name: {"schema": {"type": "string", "format": "binary"}} for name in MEDIA_TYPES}
    | {MULTIPART: {"schema": {"type": "object", "description": "A film a part, whatever the parts are called."}}},
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

Options = dict[str, Any]  # keyword options of FastAPI's route decorators


def film_in(answer: type, *statuses: int) -> Options:
    """Return the options of a route that takes one film or several, and answers JSON of that type or a problem."""
    lines = {NDJSON: {"schema": {"type": "string", "description": _LINES}}}
    return {
        "openapi_extra": {"requestBody": _FILM_BODY},
        "responses": {200: {"model": answer, "content": lines}, **problems(*_FILM_STATUSES, *statuses)},
    }


def picture_out(*statuses: int) -> Options:
    """Return the options of a route that takes a film and answers with a PNG or a problem."""
    return {
        "openapi_extra": {"requestBody": _FILM_BODY},
        "response_class": Response,
        "responses": {
            200: {"description": "The film", "content": {"image/png": {}}},
            **problems(*_FILM_STATUSES, *statuses),
        },
    }


def json_out(answer: type, *statuses: int) -> Options:
    """Return the options of a route that answers with JSON of that type."""
    return {"responses": {200: {"model": answer}, **problems(*statuses)}}


def empty_out(*statuses: int) -> Options:
    """Return the options of a route that answers with an empty body."""
    return {"response_class": Response, "responses": {200: {"description": "Empty"}, **problems(*statuses)}}


def json_any(*statuses: int) -> Options:
    """Return the options of a route whose return type declares its answer."""
    return {"responses": problems(*statuses)}


def text_out(what: str, *statuses: int) -> Options:
    """Return the options of a route that answers with plain text."""
    return {"response_class": PlainTextResponse, "responses": {200: {"description": what}, **problems(*statuses)}}


def problems(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """Return the responses for refusals with these statuses, each with the titles that it may have."""
    schema = {"$ref": "#/components/schemas/Problem"}
    return {
        status: {
            "description": "; ".join(kind.title for kind in PROBLEM_TYPES if kind.status == status),
            "content": {PROBLEM_JSON: {"schema": schema}},
        }
        for status in sorted({*statuses, *_ALWAYS})
    }


def complete(app: FastAPI, operating_points: Sequence[str], open_paths: frozenset[str], *, locked: bool) -> None:
    """Build the document once and add what the routes cannot declare.

    Args:
        app: the application with all its routes.
        operating_points: names of the bundle's operating points.
        open_paths: addresses that need no key.
        locked: whether the other addresses need a key.
    """
    document = app.openapi()
    components = document.setdefault("components", {})
    components.setdefault("schemas", {})["Problem"] = TypeAdapter(Problem).json_schema(mode="serialization")
    if locked:
        components["securitySchemes"] = _KEYS
    for path, operations in document["paths"].items():
        for operation in operations.values():
            needs_key = locked and path not in open_paths
            if needs_key:
                operation["security"] = [{name: []} for name in _KEYS]
            rows = problems(401) if needs_key else problems()
            operation["responses"] |= {str(status): row for status, row in rows.items()}
            for parameter in operation.get("parameters", ()):
                if parameter["name"] == "operating_point":
                    parameter["description"] = "A named threshold of this bundle; its default one where left out."
                    parameter["schema"] = {"type": "string", "enum": list(operating_points)}
                elif parameter["name"] == "heatmap":
                    parameter["description"] = "Whether the answer holds the heat map as well: a PNG in base64."
    document["x-problems"] = [kind._asdict() for kind in PROBLEM_TYPES]
