"""Refusals as RFC 9457 problem documents: one table, so that the page, the docs and the tests agree on them."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, NamedTuple

from starlette.responses import Response

from chestxray.errors import (
    FilmError,
    FilmTooLarge,
    MissingExtra,
    TruncatedFilm,
    UnreadableFilm,
    UnsupportedFormat,
)
from chestxray.schema import NOTICE

PROBLEM_JSON: Final = "application/problem+json"


class ProblemType(NamedTuple):
    """One row of the table of problems. ``name`` is the last part of its type and its anchor on ``/docs``."""

    name: str
    status: int
    title: str
    remedy: str


UNSUPPORTED_FORMAT: Final = ProblemType(
    "unsupported-format", 415, "Not a film format that is read here", "Send a JPEG, PNG, TIFF or DICOM file."
)
UNSUPPORTED_CONTENT: Final = ProblemType(
    "unsupported-content", 415, "Content type not accepted", "Send the bytes of one film, unencoded, as the body."
)
TOO_LARGE: Final = ProblemType("film-too-large", 413, "The film is too large", "Export a smaller copy.")
UNREADABLE: Final = ProblemType("unreadable-film", 422, "The film is damaged", "Copy or export it again.")
TRUNCATED: Final = ProblemType("truncated-film", 422, "The film is cut short", "Copy it again; the file is incomplete.")
EMPTY_BODY: Final = ProblemType("empty-body", 422, "The request has no body", "Send the bytes of one film as the body.")
UNKNOWN_POINT: Final = ProblemType(
    "unknown-operating-point", 422, "No such operating point", "Use one of those that /v1/model lists."
)
INVALID_REQUEST: Final = ProblemType(
    "invalid-request", 422, "The request makes no sense", "Compare its parameters with the description above."
)
SLOW_BODY: Final = ProblemType(
    "slow-body", 408, "The body took too long", "Send the film again over a better connection."
)
OVERLOADED: Final = ProblemType(
    "overloaded", 503, "Too many films at once", "Wait as Retry-After says, then send it again."
)
TOO_LONG: Final = ProblemType(
    "no-answer-in-time", 503, "No answer in time", "Wait as Retry-After says, then send it again."
)
KEY_NEEDED: Final = ProblemType(
    "key-needed", 401, "A key is needed", "Send one as X-API-Key or as Authorization: Bearer; the operator has it."
)
NOT_READY: Final = ProblemType("not-ready", 503, "The model is not ready", "Ask again in a moment.")
UNKNOWN_HOST: Final = ProblemType(
    "unknown-host", 421, "Not a name of this service", "Use one of the names that the service accepts."
)
NOT_ACCEPTABLE: Final = ProblemType("not-acceptable", 406, "Answers are JSON", "Accept application/json.")
NOT_FOUND: Final = ProblemType("not-found", 404, "Nothing here", "Compare the address with the description above.")
WRONG_METHOD: Final = ProblemType(
    "wrong-method", 405, "Wrong method for this address", "Use the method that Allow names."
)
BAD_REQUEST: Final = ProblemType("bad-request", 400, "Not a request", "Send HTTP/1.1 as its standard has it.")
CROSS_ORIGIN: Final = ProblemType(
    "cross-origin", 403, "A page of another origin asks", "Let the operator name its origin by --cors-origin."
)
SLOW_HEAD: Final = ProblemType("slow-head", 408, "The request took too long", "Send it again over a better connection.")
HEAD_TOO_LONG: Final = ProblemType(
    "head-too-long", 431, "Address and headers are too long", "Send fewer and shorter headers."
)
NO_PLACE: Final = ProblemType("no-place", 503, "Too many connections", "Wait as Retry-After says, then connect again.")
DECODER_LOST: Final = ProblemType(
    "decoder-lost", 503, "The service lost a process", "Wait as Retry-After says, then send the film again."
)
INTERNAL: Final = ProblemType(
    "internal-error", 500, "The service failed", "Report the request id; the log of the service has the reason."
)

# the table: every row above, in order
PROBLEM_TYPES: Final = tuple(kind for kind in tuple(globals().values()) if isinstance(kind, ProblemType))

# a narrower class stands before a wider one
_OF_ERROR: Final[tuple[tuple[type[FilmError | MissingExtra], ProblemType], ...]] = (
    (UnsupportedFormat, UNSUPPORTED_FORMAT),
    (FilmTooLarge, TOO_LARGE),
    (TruncatedFilm, TRUNCATED),
    (UnreadableFilm, UNREADABLE),
    (FilmError, UNREADABLE),
    (MissingExtra, UNSUPPORTED_FORMAT),  # DICOM, where the decoders for it are not installed
)


@dataclass(frozen=True, slots=True)
class Problem:
    """The body of every refusal: RFC 9457, with the notice that every answer carries.

    Attributes:
        type: address of the problem's description.
        instance: ``urn:uuid:`` and the request id, which is also the header X-Request-Id.
    """

    type: str
    title: str
    status: int
    detail: str
    instance: str
    notice: str = NOTICE


class Refusal(Exception):
    """Ends a request with a problem document."""

    def __init__(self, kind: ProblemType, detail: str, headers: Mapping[str, str] | None = None) -> None:
        super().__init__(detail)
        self.kind = kind
        self.detail = detail
        self.headers = headers

    def response(self, request_id: str) -> Response:
        """Return the refusal as an HTTP response."""
        return problem_response(self.kind, self.detail, request_id, self.headers)


def refusal_of(error: FilmError | MissingExtra) -> Refusal:
    """Return the refusal for a film that cannot be classified."""
    kind = next(kind for cls, kind in _OF_ERROR if isinstance(error, cls))
    return Refusal(kind, str(error))


def problem_response(
    kind: ProblemType,
    detail: str,
    request_id: str,
    headers: Mapping[str, str] | None = None,
    status: int | None = None,
    further: Mapping[str, object] | None = None,
) -> Response:
    """Return a problem as an HTTP response.

    Args:
        kind, detail, request_id: as ``problem_of`` takes them.
        headers: of the response.
        status: in place of the kind's own.
        further: members that follow those of the standard.
    """
    code = status or kind.status
    body = json.dumps(problem_of(kind, detail, request_id, code) | dict(further or {}))
    return Response(body, code, headers, media_type=PROBLEM_JSON)


def problem_of(kind: ProblemType, detail: str, request_id: str, status: int | None = None) -> dict[str, object]:
    """Return the members of a problem document."""
    problem = Problem(f"/docs#{kind.name}", kind.title, status or kind.status, detail, f"urn:uuid:{request_id}")
    return dataclasses.asdict(problem)
