"""The function of the website: run by the real runtime client, before the real service and a real S3 protocol."""

from __future__ import annotations

import ast
import base64
import hashlib
import json
import shutil
import socket
import sys
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import boto3
import httpx
import numpy as np
import pytest

import live_lambda
import live_moto
import live_service
from chestxray.aws import lambda_handler
from chestxray.images.decode import FORMATS
from chestxray.inference.predictor import Predictor
from chestxray.schema import NOTICE, Prediction
from chestxray.serving import intake, problems
from drawing import encoded, textured
from live_lambda import event
from stand_in import StandIn, serving

VERSIONS = sorted(path.stem for path in live_lambda.EVENTS.glob("*.json"))
HANDLER = Path(lambda_handler.__file__)
MAX_FILM = 8_000_000  # bytes
API_KEY = "cx_of_the_clinic"

Call = Callable[[Mapping[str, Any]], dict[str, Any]]


@pytest.fixture(scope="module")
def places(bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """The real service as endpoint, and a real S3 protocol."""
    folder = tmp_path_factory.mktemp("places")
    with (
        live_service.process(bundle, folder / "serve.log") as (service, _),
        live_moto.running() as moto,
    ):
        yield {"AWS_ENDPOINT_URL_SAGEMAKER_RUNTIME": service, "AWS_ENDPOINT_URL_S3": moto}


@pytest.fixture(scope="module")
def s3(places: dict[str, str]) -> Iterator[Any]:
    client = boto3.client(
        "s3",
        endpoint_url=places["AWS_ENDPOINT_URL_S3"],
        region_name="us-east-1",
        aws_access_key_id="test",
        aws_secret_access_key="test",  # noqa: S106
    )
    client.create_bucket(Bucket="inbox")
    yield client
    client.close()


@pytest.fixture(scope="module")
def folder(places: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What is uploaded as the function: one file of code, and the model and its limits."""
    made = tmp_path_factory.mktemp("function")
    shutil.copy(HANDLER, made)
    model = httpx.get(f"{places['AWS_ENDPOINT_URL_SAGEMAKER_RUNTIME']}/v1/model", timeout=60).text
    (made / "model.json").write_text(model)
    return made


@contextmanager
def started(folder: Path, log: Path, **environment: str) -> Iterator[live_lambda.Function]:
    variables = {**live_moto.CREDENTIALS, "CHESTXRAY_ENDPOINT": "chestxray", **environment}
    with live_lambda.running(folder, "lambda_handler.handler", variables, log) as function:
        yield function


@pytest.fixture(scope="module")
def function(folder: Path, places: dict[str, str], s3: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Call]:
    environment = {**places, "CHESTXRAY_BUCKET": "inbox", "CHESTXRAY_MAX_FILM": str(MAX_FILM)}
    with started(folder, tmp_path_factory.mktemp("log") / "log", **environment) as found:
        yield found


def problem(answer: Mapping[str, Any], status: int, name: str) -> str:
    """Check a refusal; gives its detail."""
    document = json.loads(answer["body"])
    assert (answer["statusCode"], document["status"], document["type"]) == (status, status, f"/docs#{name}"), document
    assert answer["headers"]["Content-Type"] == "application/problem+json"
    assert document["instance"] == f"urn:uuid:{answer['headers']['X-Request-Id']}"
    assert document["notice"] == NOTICE
    return str(document["detail"])


@pytest.mark.parametrize("version", VERSIONS)
def test_a_film_is_answered_as_the_service_answers_it(function: Call, bundle: Path, film: bytes, version: str) -> None:
    query = {"operating_point": "screening", "heatmap": "1"}
    answer = function(event(version, body=film, query=query))
    assert answer["statusCode"] == 200, answer
    found = Prediction.from_json(answer["body"])
    expected = Predictor.load(bundle).predict(film, "film", operating_point="screening", heatmap=True)
    assert (found.film_sha256, found.operating_point) == (expected.film_sha256, "screening")
    assert found.probability == pytest.approx(expected.probability, abs=1e-5)
    assert found.heatmap == expected.heatmap
    assert function(event(version, body=film))["body"].count('"heatmap": null') == 1


@pytest.mark.parametrize("version", VERSIONS)
def test_the_model_is_described_as_the_page_expects_it(function: Call, places: dict[str, str], version: str) -> None:
    service = httpx.get(f"{places['AWS_ENDPOINT_URL_SAGEMAKER_RUNTIME']}/v1/model", timeout=60).json()
    answer = json.loads(function(event(version, "GET", "/v1/model"))["body"])
    assert answer == service | {"max_body": lambda_handler.MAX_BODY, "max_upload": MAX_FILM}


def test_a_stage_in_the_path_of_an_http_api_is_no_part_of_the_address(function: Call) -> None:
    for version, path in {
        "http_api_2": "/prod/v1/model",
        "http_api_1": "/prod/v1/model",
        "rest_api": "/v1/model",
    }.items():
        asked = event(version, "GET", path)
        asked["requestContext"]["stage"] = "v1" if version == "rest_api" else "prod"
        assert function(asked)["statusCode"] == 200


@pytest.mark.parametrize(
    ("resource", "path", "stage"),
    [
        ("/{proxy+}", "/v1/predict", "prod"),
        (
            "/{proxy+}",
            "/films/v1/predict",
            "v1",
        ),  # the first word is an own domain's, which REST APIs leave in the path
        ("/v1/predict", "/v1/predict/", "a-stage_1"),
        ("/classify", "/classify", "dev"),
        ("/classify", "/xray/classify", "dev"),
        ("/a/b/pneumonia", "/a/b/pneumonia", "Prod"),
    ],
)
def test_a_rest_api_of_any_path_and_stage_classifies(
    function: Call, bundle: Path, film: bytes, resource: str, path: str, stage: str
) -> None:
    asked = event("rest_api", path=path, body=film)
    asked["resource"] = resource
    asked["requestContext"] |= {"resourcePath": resource, "path": f"/{stage}{path}", "stage": stage}
    found = Prediction.from_json(function(asked)["body"])
    assert found.probability == pytest.approx(Predictor.load(bundle).predict(film, "film").probability, abs=1e-5)
    asked |= {"httpMethod": "GET", "body": None, "isBase64Encoded": False}
    assert problem(function(asked), 405, "wrong-method")


def test_a_proxy_that_sends_everything_here_finds_nothing_at_unknown_addresses(function: Call, film: bytes) -> None:
    for version, word in (("rest_api", "resource"), ("http_api_1", "resource"), ("http_api_2", "routeKey")):
        for route in ("/{proxy+}", "ANY /{proxy+}", "$default"):
            asked = event(version, path="/v1/predictions", body=film) | {word: route}
            assert problem(function(asked), 404, "not-found")


ELSEWHERE = "https://ward.example.org"


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize(
    ("origins", "origin", "allowed"),
    [
        ("", ELSEWHERE, None),
        ("https://clinic.example.org,https://ward.example.org", ELSEWHERE, ELSEWHERE),
        ("https://ward.example.org", "https://ward.example.org.evil.example", None),
        ("*", ELSEWHERE, "*"),
    ],
)
def test_pages_of_other_origins_may_ask_where_they_are_named(
    monkeypatch: pytest.MonkeyPatch,
    folder: Path,
    film: bytes,
    version: str,
    origins: str,
    origin: str,
    allowed: str | None,
) -> None:
    monkeypatch.setenv("CHESTXRAY_ORIGINS", origins)
    monkeypatch.setenv("CHESTXRAY_API_KEYS", f"{hashlib.sha256(API_KEY.encode()).hexdigest()} clinic")
    monkeypatch.setenv("CHESTXRAY_PATH", "classify")
    monkeypatch.setenv("CHESTXRAY_MODEL", str(folder / "model.json"))

    def asked(method: str, path: str = "/classify", **headers: str) -> dict[str, Any]:
        given = event(version, method, path, body=film if method == "POST" else b"", origin=origin, **headers)
        return lambda_handler.answer(given, None, lambda _: "{}")

    before = asked("OPTIONS", access_control_request_method="POST")  # brings no key: browsers send none
    assert before["statusCode"] == (204 if origins else 405), before
    for answer in (
        before,
        asked("POST", x_api_key=API_KEY),
        asked("POST"),
        asked("GET", "/v1/model", x_api_key=API_KEY),
    ):
        assert answer["headers"].get("Access-Control-Allow-Origin") == allowed
        assert ("Access-Control-Allow-Headers" in answer["headers"]) == bool(allowed)
        assert answer["headers"].get("Vary") == ("Origin" if origins not in ("", "*") else None)
    assert asked("POST")["statusCode"] == 401


@pytest.mark.parametrize(
    ("changes", "status", "name", "detail"),
    [
        ({"body": b"Dear colleague"}, 415, "unsupported-format", "not a DICOM, JPEG"),
        ({"body": encoded(textured(1, 600, 600), "JPEG")[:-4000]}, 422, "truncated-film", "this film"),
        ({"body": b"x", "content_type": "text/plain"}, 415, "unsupported-content", "announced as 'text/plain'"),
        ({}, 422, "empty-body", "the bytes of one film"),
        ({"body": b"x", "query": {"operating_point": "sreening"}}, 422, "unknown-operating-point", "there are"),
        ({"body": b"x", "query": {"heatmap": "yes"}}, 422, "invalid-request", "1 or 0"),
        ({"body": b"x", "query": {"url": "http://example.org"}}, 422, "invalid-request", "unknown parameters: url"),
        ({"query": {"key": "uploads/../secret"}}, 422, "invalid-request", "32 hexadecimal digits"),
        ({"query": {"key": f"uploads/{'0' * 32}\n"}}, 422, "invalid-request", "32 hexadecimal digits"),
        ({"query": {"key": f"uploads/{'0' * 32}"}}, 404, "no-such-upload", "nothing lies under that key"),
        ({"body": b"x", "query": {"key": f"uploads/{'0' * 32}"}}, 422, "invalid-request", "not both"),
        ({"path": "/etc/passwd"}, 404, "not-found", "/docs lists"),
        ({"method": "GET"}, 405, "wrong-method", "another method"),
    ],
)
def test_what_cannot_be_answered_is_a_problem_document(
    function: Call, changes: dict[str, Any], status: int, name: str, detail: str
) -> None:
    for version in VERSIONS:
        assert detail in problem(function(event(version, **changes)), status, name)


def test_an_event_of_another_kind_and_a_damaged_body_are_refused(function: Call) -> None:
    assert "no event of API Gateway" in problem(function({"Records": []}), 422, "invalid-request")
    text = event() | {"body": "\ufffd\ufffd\x10JFIF", "isBase64Encoded": False}
    assert "binaryMediaTypes" in problem(function(text), 415, "unsupported-content")


def test_a_film_above_the_limit_is_sent_to_the_form_and_classified_from_there(function: Call, s3: Any) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (2000, 2100), dtype=np.uint8)
    large = encoded(noise)  # noise cannot be packed: 4.2 MB
    assert lambda_handler.MAX_BODY < len(large) < 4.5e6, "what fits an event of Lambda, and not the limit"
    assert "GET /v1/upload" in problem(function(event(body=large)), 413, "film-too-large")
    form = json.loads(function(event(method="GET", path="/v1/upload"))["body"])
    assert form["max_bytes"] == MAX_FILM
    sent = httpx.post(form["url"], data=form["fields"], files={"file": large}, timeout=60)
    assert sent.status_code == 204, sent.text
    path, _, query = form["then"].partition("?")
    answer = function(event(path=path, query=dict(urllib.parse.parse_qsl(query))))
    assert Prediction.from_json(answer["body"]).film_sha256 == hashlib.sha256(large).hexdigest()
    assert s3.list_objects_v2(Bucket="inbox").get("Contents", []) == [], "nothing that a caller sends is kept"
    assert problem(function(event(path=path, query={"key": form["key"]})), 404, "no-such-upload")


def test_the_form_bounds_the_size_and_names_the_key(function: Call) -> None:
    form = json.loads(function(event(method="GET", path="/v1/upload"))["body"])
    policy = json.loads(base64.b64decode(form["fields"]["policy"]))
    assert ["content-length-range", 1, MAX_FILM] in policy["conditions"]
    assert {"key": form["key"]} in policy["conditions"]
    assert lambda_handler.KEY.fullmatch(form["key"])
    assert form["key"] != json.loads(function(event(method="GET", path="/v1/upload"))["body"])["key"]


def test_where_keys_are_asked_for_only_they_open(folder: Path, places: dict[str, str], tmp_path: Path) -> None:
    keys = {"CHESTXRAY_API_KEYS": f"{hashlib.sha256(API_KEY.encode()).hexdigest()} clinic"}
    with started(folder, tmp_path / "log", **places, **keys) as function:
        model = {"method": "GET", "path": "/v1/model"}
        assert problem(function(event(**model)), 401, "key-needed")
        assert problem(function(event(**model, x_api_key="cx_another")), 401, "key-needed")
        assert function(event(**model, x_api_key=API_KEY))["statusCode"] == 200
        assert function(event(**model, authorization=f"Bearer {API_KEY}"))["statusCode"] == 200
        assert problem(function(event(method="GET", path="/v1/upload", x_api_key=API_KEY)), 404, "not-found")
        assert API_KEY not in (tmp_path / "log").read_text()


# As the real runtime answers; its own service model has the names and the members.
MODEL_ERROR = {
    "ErrorCode": "CLIENT_ERROR_FROM_MODEL",
    "LogStreamArn": "arn:aws:logs:us-east-1:123456789012:log-group:/aws/sagemaker/Endpoints/chestxray",
    "Message": 'Received client error (415) from primary with message "{}". See https://console.aws.amazon.com/',
    "OriginalMessage": json.dumps({"type": "/docs#unsupported-format", "title": "T", "detail": "this film: no film"}),
    "OriginalStatusCode": 415,
}
REFUSALS = [
    (400, "ValidationError", {"Message": "Endpoint chestxray of account 1 not found."}, 502, "no-endpoint"),
    (400, "ThrottlingException", {"Message": "Rate exceeded"}, 503, "overloaded"),
    (403, "AccessDeniedException", {"Message": "not authorized"}, 502, "endpoint-refuses"),
    (429, "ModelNotReadyException", {"Message": "starting"}, 503, "not-ready"),
    (424, "ModelError", MODEL_ERROR, 415, "unsupported-format"),
    (424, "ModelError", {"Message": "m", "OriginalStatusCode": 500, "OriginalMessage": "oops"}, 502, "model-failed"),
    (424, "ModelError", {"Message": "m", "OriginalStatusCode": 503}, 503, "overloaded"),
    (413, "413", {"Message": "too large"}, 413, "film-too-large"),
    (500, "InternalFailure", {"Message": "m"}, 502, "model-failed"),
    (530, "InternalDependencyException", {"Message": "m"}, 503, "overloaded"),
]


@contextmanager
def answering(asked: list[tuple[int, str, dict[str, Any]]]) -> Iterator[tuple[str, list[str]]]:
    """A server that refuses as the runtime does; gives its address and the paths that were asked."""
    paths: list[str] = []

    class Refusing(StandIn):
        def do_POST(self) -> None:
            self.body()
            paths.append(self.path)
            status, name, document = asked[0]
            headers = [("x-amzn-ErrorType", name), ("Content-Type", "application/json")]
            self.reply(status, json.dumps(document).encode(), headers)

    with serving(Refusing) as address:
        yield address, paths


def test_each_refusal_of_the_endpoint_has_its_status_and_is_tried_once(folder: Path, tmp_path: Path) -> None:
    current: list[tuple[int, str, dict[str, Any]]] = [(500, "", {})]
    with ExitStack() as stack:
        address, paths = stack.enter_context(answering(current))
        place = {"AWS_ENDPOINT_URL_SAGEMAKER_RUNTIME": address}
        function = stack.enter_context(started(folder, tmp_path / "log", **place))
        for *refusal, status, name in REFUSALS:
            current[0] = (refusal[0], refusal[1], refusal[2])
            answer = function(event(body=b"film"))
            detail = problem(answer, status, name)
            assert ("Retry-After" in answer["headers"]) == (status == 503)
            if refusal[2] is MODEL_ERROR:
                assert detail == "this film: no film"
    assert paths == ["/endpoints/chestxray/invocations"] * len(REFUSALS)


def test_an_endpoint_that_does_not_answer_ends_in_a_504_and_one_that_is_not_there_in_a_502(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(lambda_handler, "TIMEOUT", 1)
    for name, value in {**live_moto.CREDENTIALS, "CHESTXRAY_ENDPOINT": "x"}.items():
        monkeypatch.setenv(name, value)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        address = f"http://127.0.0.1:{silent.getsockname()[1]}"
        monkeypatch.setenv("AWS_ENDPOINT_URL_SAGEMAKER_RUNTIME", address)
        for status, name in ((504, "no-answer-in-time"), (502, "model-failed")):
            lambda_handler._client.cache_clear()  # noqa: SLF001 - a function's process has one address for its life
            with pytest.raises(lambda_handler.Refusal) as refused:
                lambda_handler.ask_endpoint(lambda_handler.PredictRequest(b"film", None, heatmap=False))
            assert (refused.value.kind.status, refused.value.kind.name) == (status, name)
            silent.close()
    lambda_handler._client.cache_clear()  # noqa: SLF001


def test_the_function_is_one_file_of_standard_library_and_boto3() -> None:
    names = set()
    for node in ast.walk(ast.parse(HANDLER.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names.add((node.module or "").split(".")[0])
    assert names - sys.stdlib_module_names == {"boto3", "botocore"}


def test_problems_and_limits_are_called_as_the_service_calls_them() -> None:
    of_service = {kind.name: (kind.status, kind.title) for kind in problems.PROBLEM_TYPES}
    ours = {kind.name: kind for kind in vars(lambda_handler).values() if isinstance(kind, lambda_handler.ProblemType)}
    shared = ours.keys() & of_service.keys()
    assert len(shared) >= 12
    differing = {name for name in shared if (ours[name].status, ours[name].title) != of_service[name]}
    assert differing == {"no-answer-in-time"}  # a gateway's own status: 504
    assert lambda_handler.MEDIA_TYPES == intake.MEDIA_TYPES
    assert {form.media_type for form in FORMATS} <= set(intake.MEDIA_TYPES)
    assert lambda_handler.NOTICE == NOTICE


@pytest.mark.parametrize("region", ["us-east-1", "eu-central-1"])
def test_the_form_is_for_the_buckets_own_address_in_its_region_and_signed_as_every_region_takes_it(
    folder: Path, tmp_path: Path, region: str
) -> None:
    variables = {"CHESTXRAY_BUCKET": "inbox", "CHESTXRAY_MAX_FILM": "8000000", "AWS_DEFAULT_REGION": region}
    with started(folder, tmp_path / "log", **variables) as function:
        form = json.loads(function(event(method="GET", path="/v1/upload"))["body"])
    assert form["url"] == f"https://inbox.s3.{region}.amazonaws.com/"
    assert form["fields"]["x-amz-algorithm"] == "AWS4-HMAC-SHA256"
    assert f"/{region}/s3/aws4_request" in form["fields"]["x-amz-credential"]
