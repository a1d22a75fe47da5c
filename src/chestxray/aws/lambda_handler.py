"""The website's function: it turns API Gateway's events into calls of the endpoint. Also runs as a single file.

    POST /v1/predict        the bytes of one film as the body, or ?key= of one that was uploaded
    GET  /v1/model          the model and its limits
    GET  /v1/upload         a form with which a larger film goes to S3, for this function to read

Any stage, and any further prefix such as that of a REST API's own domain, may precede them. If an API sends one fixed
address of another name here ("/dev/classify"), a POST to it is a POST to /v1/predict.

Standard library and boto3 only. The function calls one endpoint and one bucket, which the environment names, and opens
no address that a caller sends. Every refusal is an RFC 9457 document, like those of the service.

    CHESTXRAY_ENDPOINT      the endpoint to call
    CHESTXRAY_BUCKET        for larger films; without it there is no /v1/upload
    CHESTXRAY_MAX_FILM      bytes of the largest film that may be put there
    CHESTXRAY_API_KEYS      "SHA-256 NAME" entries, joined by commas; without it, no key is asked for
    CHESTXRAY_PATH          a further path at which films are classified, with its slash
    CHESTXRAY_ORIGINS       pages of other origins that may ask, joined by commas; "*" for any
    CHESTXRAY_MODEL         the file with the answer of /v1/model; by default model.json beside this file

Sources: Amazon API Gateway developer guide, "Working with AWS Lambda proxy integrations for HTTP APIs" (payload
versions 1.0 and 2.0), "Lambda proxy integrations in API Gateway" and "Enable CORS" (REST APIs); Fetch standard, CORS
protocol; Amazon SageMaker API reference, InvokeEndpoint.
"""

from __future__ import annotations

import base64
import binascii
import functools
import hashlib
import hmac
import json
import os
import re
import time
import urllib.parse
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import boto3
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError, ConnectTimeoutError, ReadTimeoutError

# bytes of a film in a request: in base64 the film has to fit the 6 MB of a function's event
MAX_BODY: Final = 4_000_000
TIMEOUT: Final = 25  # seconds for the endpoint's answer; API Gateway itself gives up after 29 or 30
UPLOADS: Final = "uploads/"
KEY: Final = re.compile(rf"{UPLOADS}[0-9a-f]{{32}}")
FORM_SECONDS: Final = 300  # seconds for which an upload form is valid
MEDIA_TYPES: Final = (
    "image/jpeg",
    "image/jpg",
    "image/png",
    "image/tiff",
    "image/webp",
    "image/bmp",
    "image/gif",
    "image/jp2",
    "image/heic",
    "image/heif",
    "image/x-portable-graymap",
    "application/dicom",
    "application/x-image",
    "application/octet-stream",
    "binary/octet-stream",
)
NOTICE: Final = "Research use only. Not a medical device; not for clinical use."
PREDICT: Final = "/v1/predict"
SHARED: Final = {  # what a page of another origin may send and read
    "Access-Control-Allow-Methods": "GET, POST",
    "Access-Control-Allow-Headers": "Authorization, Content-Type, X-Api-Key, X-Amz-Date, X-Amz-Security-Token",
    "Access-Control-Expose-Headers": "Retry-After, X-Request-Id",
    "Access-Control-Max-Age": "600",  # seconds
}
HEADERS: Final = {"Cache-Control": "no-store", "X-Content-Type-Options": "nosniff"}

Event = Mapping[str, Any]
Answer = dict[str, Any]


@dataclass(frozen=True)
class ProblemType:
    """A row of the table of problems; ``name`` is its anchor on ``/docs``."""

    name: str
    status: int
    title: str


UNSUPPORTED_FORMAT: Final = ProblemType("unsupported-format", 415, "Not a film format that is read here")
UNSUPPORTED_CONTENT: Final = ProblemType("unsupported-content", 415, "Content type not accepted")
TOO_LARGE: Final = ProblemType("film-too-large", 413, "The film is too large")
UNREADABLE: Final = ProblemType("unreadable-film", 422, "The film is damaged")
EMPTY_BODY: Final = ProblemType("empty-body", 422, "The request has no body")
UNKNOWN_POINT: Final = ProblemType("unknown-operating-point", 422, "No such operating point")
INVALID: Final = ProblemType("invalid-request", 422, "The request makes no sense")
KEY_NEEDED: Final = ProblemType("key-needed", 401, "A key is needed")
NOT_FOUND: Final = ProblemType("not-found", 404, "Nothing here")
WRONG_METHOD: Final = ProblemType("wrong-method", 405, "Wrong method for this address")
INTERNAL: Final = ProblemType("internal-error", 500, "The service failed")
OVERLOADED: Final = ProblemType("overloaded", 503, "Too many films at once")
NOT_READY: Final = ProblemType("not-ready", 503, "The model is not ready")
NO_UPLOAD: Final = ProblemType("no-such-upload", 404, "No film was uploaded under that key")
NO_ENDPOINT: Final = ProblemType("no-endpoint", 502, "The endpoint is not there")
NOT_ALLOWED: Final = ProblemType("endpoint-refuses", 502, "The endpoint may not be called")
MODEL_FAILED: Final = ProblemType("model-failed", 502, "The model failed")
TOO_LONG: Final = ProblemType("no-answer-in-time", 504, "No answer in time")

OF_A_FILM: Final = {413: TOO_LARGE, 415: UNSUPPORTED_FORMAT, 422: UNREADABLE}  # the container's refusals
BUSY: Final = {"Retry-After": "2"}
REFUSED_BY_AWS: Final[Mapping[str, tuple[ProblemType, str, Mapping[str, str]]]] = {
    "AccessDeniedException": (NOT_ALLOWED, "this function's role may not call its endpoint", {}),
    "ThrottlingException": (OVERLOADED, "the endpoint answers as many requests as it may", BUSY),
    "ModelNotReadyException": (NOT_READY, "the endpoint is starting", {"Retry-After": "10"}),
    "ServiceUnavailable": (OVERLOADED, "the endpoint has no free capacity", BUSY),
    "InternalDependencyException": (OVERLOADED, "a service that the endpoint needs did not answer", BUSY),
    "InternalFailure": (MODEL_FAILED, "the endpoint failed within itself", {}),
}


class Refusal(Exception):
    """Ends a request with a problem document."""

    def __init__(
        self,
        kind: ProblemType,
        detail: str,
        headers: Mapping[str, str] | None = None,
        given: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(detail)
        self.kind = kind
        self.detail = detail
        self.headers = dict(headers or {})
        self.given = dict(given or {})  # the container's own document: its type and title are kept


@dataclass(frozen=True)
class Request:
    """The facts of a request that both payload versions hold.

    Attributes:
        route: the API's route that led here: "/v1/predict", "/{proxy+}", "$default"; "" if the event does not state it.
        headers: by name in lower case.
        text: the body as API Gateway passed it; in base64 if ``encoded``.
    """

    method: str
    path: str
    route: str
    query: Mapping[str, str]
    headers: Mapping[str, str] = field(repr=False)
    text: str = field(repr=False)
    encoded: bool


@dataclass(frozen=True)
class PredictRequest:
    """One film, and how to classify it."""

    film: bytes = field(repr=False)
    operating_point: str | None
    heatmap: bool


Classify = Callable[[PredictRequest], str]  # returns the prediction as JSON; raises Refusal


def handler(event: Event, context: Any) -> Answer:
    """Answer one event by calling the endpoint."""
    return answer(event, context, ask_endpoint)


def answer(event: Event, context: Any, classify: Classify) -> Answer:
    """Answer one event; after any error the caller gets a problem document."""
    began = time.monotonic()
    request_id = str(getattr(context, "aws_request_id", None) or uuid.uuid4())
    route, origin = "-", ""
    try:
        request = request_of(event)
        origin = request.headers.get("origin", "")
        if request.method == "OPTIONS" and os.environ.get("CHESTXRAY_ORIGINS"):
            reply, route = _preflight(request_id), "OPTIONS"
        else:
            act, route = route_of(request)
            check_key(request.headers)
            reply = _reply(200, act(request, classify), "application/json", request_id)
    except Refusal as refusal:
        reply = _problem(refusal, request_id)
    except Exception as error:  # noqa: BLE001 - the last resort: the caller learns the request id and nothing else
        _log(request=request_id, fault=type(error).__name__)
        reply = _problem(Refusal(INTERNAL, "see the log of the function"), request_id)
    reply["headers"] |= sharing(origin)
    seconds = time.monotonic() - began
    _log(request=request_id, route=route, status=reply["statusCode"], ms=round(1000 * seconds, 1))
    return reply


def request_of(event: Event) -> Request:
    """Read the request from an event of either payload version. Raises: Refusal.

    A REST API sends version 1.0 without stating it.
    """
    try:
        if event.get("version") == "2.0":
            route = str(event.get("routeKey") or "").rpartition(" ")[2]
            return _request(event, event["requestContext"]["http"]["method"], event["rawPath"], route)
        return _request(event, event["httpMethod"], event["path"], str(event.get("resource") or ""))
    except (KeyError, TypeError, AttributeError):
        raise Refusal(INVALID, "this is no event of API Gateway, payload version 1.0 or 2.0") from None


def _request(event: Event, method: str, path: str, route: str) -> Request:
    return Request(
        method,
        path,
        route,
        query=event.get("queryStringParameters") or {},
        headers={name.lower(): value for name, value in (event.get("headers") or {}).items()},
        text=event.get("body") or "",
        encoded=bool(event.get("isBase64Encoded")),
    )


def route_of(request: Request) -> tuple[Callable[[Request, Classify], str], str]:
    """Return the function that answers a request, and the pattern for the log. Raises: Refusal."""
    known = _known_path(request)
    methods = {method: act for (method, path), act in ROUTES.items() if path == known}
    if not methods:
        raise Refusal(NOT_FOUND, "there is nothing at this address; /docs lists the addresses")
    if request.method not in methods:
        raise Refusal(WRONG_METHOD, "this address takes another method", {"Allow": ", ".join(methods)})
    return methods[request.method], known


def _known_path(request: Request) -> str:
    """Return the known address that a path means; a stage, or a prefix of the API's own domain, may precede it.

    An API that sends one fixed address here classifies films at that address.
    """
    path = f"/{request.path.strip('/')}"
    for known in dict.fromkeys(known for _, known in ROUTES):
        if path.endswith(known):
            return known
    own = f"/{os.environ.get('CHESTXRAY_PATH', '').strip('/')}"
    is_fixed = "{" not in request.route and "$" not in request.route
    route = f"/{request.route.strip('/')}" if is_fixed else "/"
    return PREDICT if any(len(one) > 1 and path.endswith(one) for one in (own, route)) else path


def sharing(origin: str) -> dict[str, str]:
    """Return headers that let a page of another origin read an answer; none if its origin is not allowed."""
    allowed = [one.strip() for one in os.environ.get("CHESTXRAY_ORIGINS", "").split(",") if one.strip()]
    if "*" in allowed:
        return {"Access-Control-Allow-Origin": "*", **SHARED}
    if not allowed:
        return {}
    return {"Vary": "Origin"} | ({"Access-Control-Allow-Origin": origin, **SHARED} if origin in allowed else {})


def _preflight(request_id: str) -> Answer:
    """Answer a browser's preflight request, which precedes a film from another origin and carries no key."""
    reply = _reply(204, "", "application/json", request_id)
    del reply["headers"]["Content-Type"]
    return reply


def check_key(headers: Mapping[str, str]) -> None:
    """Check the key. Raises: Refusal (401), if keys are required and the request carries none of them."""
    known = [entry.split()[0] for entry in os.environ.get("CHESTXRAY_API_KEYS", "").split(",") if entry.strip()]
    scheme, _, bearer = headers.get("authorization", "").partition(" ")
    key = headers.get("x-api-key") or (bearer.strip() if scheme.lower() == "bearer" else "")
    digest = hashlib.sha256(key.encode("utf-8", "surrogateescape")).hexdigest()
    # compare with all of them, so that the time does not depend on the caller
    fits = [hmac.compare_digest(digest, one) for one in known]
    if known and not any(fits):
        raise Refusal(KEY_NEEDED, "the request carries no key that this service knows", {"WWW-Authenticate": "Bearer"})


def predict(request: Request, classify: Classify) -> str:
    """Classify one film. Raises: Refusal."""
    unknown = request.query.keys() - {"operating_point", "heatmap", "key"}
    if unknown:
        raise Refusal(INVALID, f"unknown parameters: {', '.join(sorted(name[:40] for name in unknown))}")
    point = request.query.get("operating_point")
    points = [known["name"] for known in _model()["bundle"]["operating_points"]]
    if point is not None and point not in points:
        raise Refusal(UNKNOWN_POINT, f"there is no operating point {point[:80]!r}; there are {', '.join(points)}")
    heatmap = {"1": True, "true": True, "0": False, "false": False}.get(request.query.get("heatmap", "0").lower())
    if heatmap is None:
        raise Refusal(INVALID, "heatmap is 1 or 0")
    film = film_uploaded(request) if "key" in request.query else film_in_body(request)
    return classify(PredictRequest(film, point, heatmap))


def describe(_request: Request, _classify: Classify) -> str:
    """Return the bundle's description and the limits of this API; max_upload if larger films use the form."""
    further = {"max_upload": int(os.environ["CHESTXRAY_MAX_FILM"])} if _takes_larger() else {}
    return json.dumps(_model() | {"max_body": MAX_BODY, "media_types": MEDIA_TYPES} | further)


def offer_upload(_request: Request, _classify: Classify) -> str:
    """Return a form for one film of limited size, under a name that cannot be guessed. Raises: Refusal."""
    bucket, limit = _bucket(), int(os.environ["CHESTXRAY_MAX_FILM"])
    key = f"{UPLOADS}{uuid.uuid4().hex}"
    form = _client("s3").generate_presigned_post(
        bucket, key, Conditions=[["content-length-range", 1, limit]], ExpiresIn=FORM_SECONDS
    )
    further = {"key": key, "max_bytes": limit, "seconds": FORM_SECONDS, "then": f"/v1/predict?key={key}"}
    return json.dumps(form | further)


ROUTES: Final[Mapping[tuple[str, str], Callable[[Request, Classify], str]]] = {
    ("POST", PREDICT): predict,
    ("GET", "/v1/model"): describe,
    ("GET", "/v1/upload"): offer_upload,
}


def film_in_body(request: Request) -> bytes:
    """Return the bytes of the film in a request. Raises: Refusal."""
    media_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if media_type not in MEDIA_TYPES:
        found = f"the body is announced as {media_type[:80]!r}" if media_type else "the body has no content type"
        raise Refusal(UNSUPPORTED_CONTENT, f"{found}; accepted are {', '.join(MEDIA_TYPES)}")
    if not request.text:
        raise Refusal(EMPTY_BODY, "the body is empty; it has to be the bytes of one film")
    film = _decoded(request)
    if len(film) > MAX_BODY:
        remedy = "ask GET /v1/upload for a form to send it with" if _takes_larger() else "export a smaller copy"
        raise Refusal(TOO_LARGE, f"the body has {len(film):,} bytes; the limit here is {MAX_BODY:,}: {remedy}")
    return film


def _decoded(request: Request) -> bytes:
    try:
        return base64.b64decode(request.text, validate=True)  # also if a caller, not API Gateway, encoded it
    except (binascii.Error, ValueError):
        how = "the body is no valid base64" if request.encoded else "the bytes arrived as text, which damages them"
        raise Refusal(
            UNSUPPORTED_CONTENT, f"{how}; API Gateway must pass binary bodies (binaryMediaTypes */* of a REST API)"
        ) from None


def film_uploaded(request: Request) -> bytes:
    """Return the bytes that a caller uploaded under one of our keys, and delete them. Raises: Refusal."""
    bucket, key, limit = _bucket(), request.query["key"], int(os.environ["CHESTXRAY_MAX_FILM"])
    if not KEY.fullmatch(key):
        raise Refusal(INVALID, f"key is one that /v1/upload gave: {UPLOADS} and 32 hexadecimal digits")
    if request.text:
        raise Refusal(INVALID, "a film comes as the body or under a key, not both")
    store = _client("s3")
    try:
        with store.get_object(Bucket=bucket, Key=key)["Body"] as body:
            film: bytes = body.read(limit + 1)
        store.delete_object(Bucket=bucket, Key=key)
    except ClientError as error:
        # without permission to list, S3 reports a missing key as AccessDenied
        if error.response["Error"]["Code"] in {"NoSuchKey", "AccessDenied"}:
            raise Refusal(NO_UPLOAD, "nothing lies under that key; each upload is classified once") from None
        raise
    if len(film) > limit:
        raise Refusal(TOO_LARGE, f"the film has more than the limit of {limit:,} bytes; export a smaller copy")
    return film


def ask_endpoint(wanted: PredictRequest) -> str:
    """Call the endpoint once. Raises: Refusal."""
    attributes = {"heatmap": "1" if wanted.heatmap else "0"}
    if wanted.operating_point is not None:
        attributes["operating_point"] = wanted.operating_point
    try:
        found = _client("sagemaker-runtime").invoke_endpoint(
            EndpointName=os.environ["CHESTXRAY_ENDPOINT"],
            ContentType="application/x-image",
            Accept="application/json",
            CustomAttributes=urllib.parse.urlencode(attributes),
            Body=wanted.film,
        )
        return str(found["Body"].read().decode())
    except ClientError as error:
        raise _refusal_of(error) from None
    except (ReadTimeoutError, ConnectTimeoutError):
        raise Refusal(TOO_LONG, f"the endpoint did not answer within {TIMEOUT} seconds; try again") from None
    except BotoCoreError as error:
        raise Refusal(MODEL_FAILED, f"the endpoint cannot be reached ({type(error).__name__})") from None


def _refusal_of(error: ClientError) -> Refusal:
    """Return the refusal that an error of the endpoint means for the caller."""
    code, message = error.response["Error"]["Code"], error.response["Error"].get("Message", "")
    status = int(error.response["ResponseMetadata"]["HTTPStatusCode"])
    if code == "ModelError":
        return _refusal_of_model(error, status, message)
    if code in REFUSED_BY_AWS:
        return Refusal(*REFUSED_BY_AWS[code])
    if code in {"ValidationError", "ValidationException"} and "not found" in message:
        return Refusal(NO_ENDPOINT, 'it was deleted or never made; "chestxray aws deploy" makes it')
    if code in {"ValidationError", "ValidationException"} or status == TOO_LARGE.status:
        return Refusal(TOO_LARGE, "the film is larger than the endpoint takes; export a smaller copy")
    return Refusal(MODEL_FAILED, f"the endpoint answered {code}")


def _refusal_of_model(error: ClientError, status: int, message: str) -> Refusal:
    """Return the container's own refusal, whose document SageMaker passes on as text."""
    status = int(error.response.get("OriginalStatusCode") or status)
    try:
        given = json.loads(str(error.response.get("OriginalMessage") or "{}"))
    except ValueError:
        given = {}
    given = given if isinstance(given, dict) else {}
    if status in OF_A_FILM:
        return Refusal(OF_A_FILM[status], str(given.get("detail") or message), given=given)
    if status == OVERLOADED.status:
        return Refusal(OVERLOADED, "the model has as many films under way as it can", BUSY)
    return Refusal(MODEL_FAILED, f"the container answered with status {status}; its log has the reason")


def _takes_larger() -> bool:
    return bool(os.environ.get("CHESTXRAY_BUCKET")) and int(os.environ["CHESTXRAY_MAX_FILM"]) > MAX_BODY


def _bucket() -> str:
    bucket = os.environ.get("CHESTXRAY_BUCKET", "")
    if not bucket:
        raise Refusal(NOT_FOUND, "this service takes films as bodies only")
    return bucket


@functools.cache
def _model() -> dict[str, Any]:
    beside = Path(os.environ.get("LAMBDA_TASK_ROOT") or Path(__file__).parent) / "model.json"
    found: dict[str, Any] = json.loads(Path(os.environ.get("CHESTXRAY_MODEL") or beside).read_text(encoding="utf-8"))
    return found


@functools.cache
def _client(service: str) -> Any:
    """Return this process's client, kept between events; it never retries: the caller decides about that."""
    more: dict[str, Any] = {}
    # a form for the bucket's own address in this region, signed in the way that every region accepts
    if service == "s3":
        more = {
            "signature_version": "s3v4",
            "s3": {"addressing_style": "virtual", "us_east_1_regional_endpoint": "regional"},
        }
    config = Config(retries={"total_max_attempts": 1}, connect_timeout=3, read_timeout=TIMEOUT, **more)
    return boto3.client(service, config=config)


def _problem(refusal: Refusal, request_id: str) -> Answer:
    kind = refusal.kind
    document = {
        "type": refusal.given.get("type", f"/docs#{kind.name}"),
        "title": refusal.given.get("title", kind.title),
        "status": kind.status,
        "detail": refusal.detail,
        "instance": f"urn:uuid:{request_id}",
        "notice": NOTICE,
    }
    reply = _reply(kind.status, json.dumps(document), "application/problem+json", request_id)
    reply["headers"] |= refusal.headers
    return reply


def _reply(status: int, body: str, media_type: str, request_id: str) -> Answer:
    headers = {**HEADERS, "Content-Type": media_type, "X-Request-Id": request_id}
    return {"statusCode": status, "headers": headers, "body": body, "isBase64Encoded": False}


def _log(**facts: Any) -> None:
    """Log one line of JSON, with nothing that a caller sent."""
    print(json.dumps(facts), flush=True)
