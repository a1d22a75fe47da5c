"""Who may call: keys, exact origins, names of this service."""

from __future__ import annotations

import hashlib
import json
import socket
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from click.testing import CliRunner

import live_service
from chestxray.cli import chestxray_group
from chestxray.errors import UsageError
from chestxray.inference.predictor import Predictor
from chestxray.serving.security import VARIABLE, FailedAttempts, HostRule, KeyRing, new_key
from chestxray.serving.service import ServiceSettings
from live_service import running

JPEG = {"Content-Type": "image/jpeg"}
ORIGIN = "https://pacs.hospital.example"
OPEN = ["/", "/docs", "/main.js", "/healthz", "/readyz", "/ping", "/openapi.json"]
CLOSED = ["/v1/model", "/metrics", "/execution-parameters", "/nowhere", "/v1/model/", "//v1/model", "/V1/model"]

KEY, ENTRY = new_key("ward-7")
OTHER_KEY, OTHER_ENTRY = new_key("research")


@pytest.mark.parametrize(
    "text",
    [
        f"{ENTRY}  # Ward, seven\n{OTHER_ENTRY}\n",
        f"{ENTRY}, {OTHER_ENTRY} # a, b",
        f"\ufeff# a, b\r\n{ENTRY}\r\n{OTHER_ENTRY}",
    ],
)
def test_a_comma_in_a_comment_begins_no_entry(text: str) -> None:
    assert list(KeyRing.from_text(text, "keys").hashes) == ["ward-7", "research"]


@pytest.fixture(scope="module")
def client(bundle: Path) -> Iterator[httpx.Client]:
    keys = KeyRing.from_text(f"# callers\n{ENTRY}\n{OTHER_ENTRY}  # until June\n", "keys")
    settings = ServiceSettings(keys=keys, cors_origins=(ORIGIN,))
    with (
        pytest.MonkeyPatch.context() as patch,
        running(Predictor.load(bundle), settings) as address,
        httpx.Client(base_url=address, timeout=60) as opened,
    ):
        patch.setattr(FailedAttempts, "LONGEST_PAUSE", 0.0)  # how long they wait is tested with the edge
        yield opened


@pytest.mark.parametrize(
    "headers",
    [{"X-API-Key": KEY}, {"Authorization": f"Bearer {KEY}"}, {"Authorization": f"bearer {OTHER_KEY}"}],
)
def test_a_key_opens_the_service(client: httpx.Client, film: bytes, headers: dict[str, str]) -> None:
    assert client.post("/v1/predict", content=film, headers=JPEG | headers).status_code == 200
    assert client.get("/metrics", headers=headers).status_code == 200


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"X-API-Key": ""},
        {"X-API-Key": KEY[:-1]},
        {"X-API-Key": hashlib.sha256(KEY.encode()).hexdigest()},
        {"Authorization": f"Basic {KEY}"},
        {"Authorization": "Bearer"},
        {"Authorization": "AWS4-HMAC-SHA256 Credential=AKIA/20260101/x/sagemaker/aws4_request, Signature=00"},
        {"X-API-Key": "clé".encode("latin-1")},
    ],
)
@pytest.mark.parametrize("path", ["/v1/predict", "/invocations", "/endpoints/pneumonia/invocations"])
def test_without_a_key_nothing_is_classified(
    client: httpx.Client, film: bytes, path: str, headers: dict[str, str | bytes]
) -> None:
    answer = client.post(path, content=film, headers=JPEG | headers)
    assert answer.status_code == 401
    assert answer.headers["WWW-Authenticate"] == "Bearer"
    assert answer.headers["Content-Type"] == "application/problem+json"
    assert answer.json()["type"] == "/docs#key-needed"


def test_what_tells_that_the_service_runs_and_the_page_need_no_key(client: httpx.Client) -> None:
    assert {path: client.get(path).status_code for path in OPEN} == dict.fromkeys(OPEN, 200)


def test_everything_else_does_however_it_is_spelt(client: httpx.Client) -> None:
    assert {path: client.get(path).status_code for path in CLOSED} == dict.fromkeys(CLOSED, 401)


def test_a_film_without_a_key_is_refused_before_it_is_sent(client: httpx.Client) -> None:
    with socket.create_connection((client.base_url.host, client.base_url.port or 80), timeout=30) as connection:
        head = "POST /v1/predict HTTP/1.1\r\nHost: localhost\r\nContent-Type: image/jpeg\r\nContent-Length: 1000000"
        connection.sendall(f"{head}\r\n\r\n".encode())
        assert connection.recv(64).startswith(b"HTTP/1.1 401 ")


def test_the_document_says_which_addresses_need_a_key(client: httpx.Client) -> None:
    document = client.get("/openapi.json").json()
    assert set(document["components"]["securitySchemes"]) == {"bearer", "header"}
    paths = document["paths"].items()
    open_to_all = {path for path, operations in paths if not any("security" in each for each in operations.values())}
    assert open_to_all == {"/healthz", "/readyz", "/ping"}


def test_other_origins_may_call_only_where_they_are_named_exactly(client: httpx.Client, film: bytes) -> None:
    asking = {"Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "content-type,x-api-key"}
    allowed = client.options("/v1/predict", headers={"Origin": ORIGIN} | asking)
    assert allowed.status_code == 200
    assert allowed.headers["Access-Control-Allow-Origin"] == ORIGIN
    answer = client.post("/v1/predict", content=film, headers=JPEG | {"Origin": ORIGIN, "X-API-Key": KEY})
    assert answer.headers["Access-Control-Allow-Origin"] == ORIGIN
    for other in (f"{ORIGIN}.attacker.example", ORIGIN.replace("https", "http"), f"{ORIGIN}:8443", "null"):
        refused = client.options("/v1/predict", headers={"Origin": other} | asking)
        assert refused.status_code == 400
        assert "Access-Control-Allow-Origin" not in refused.headers


@pytest.mark.parametrize("origin", ["*", "pacs.hospital.example", "https://pacs.example/", "https://*.example", "null"])
def test_an_origin_that_is_not_exact_is_refused_at_the_start(origin: str) -> None:
    with pytest.raises(UsageError, match="https://pacs.example"):
        ServiceSettings(cors_origins=(origin,))


@pytest.mark.parametrize(
    "text", ["secret ward-7", f"{'0' * 63} ward-7", f"{'0' * 64}", f"{'0' * 64} ward 7", f"{ENTRY}\n{ENTRY}"]
)
def test_an_entry_that_makes_no_sense_is_an_error_that_does_not_quote_it(text: str) -> None:
    with pytest.raises(UsageError, match="keys, entry") as caught:
        KeyRing.from_text(text, "keys")
    assert "secret" not in str(caught.value)


def test_a_file_without_a_key_locks_instead_of_opening(tmp_path: Path) -> None:
    (tmp_path / "keys").write_text("# nobody yet\n")
    with pytest.raises(UsageError, match="holds no key"):
        KeyRing.gather(tmp_path / "keys")


def test_keys_may_come_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, f"{ENTRY},{OTHER_ENTRY}")
    assert KeyRing.gather(None).holder_of(OTHER_KEY) == "research"


def test_the_command_makes_a_key_that_its_entry_knows() -> None:
    done = CliRunner().invoke(chestxray_group, ["key", "ward-7", "--json"])
    made = json.loads(done.output)
    assert KeyRing.from_text(made["entry"], "keys").holder_of(made["key"]) == "ward-7"
    assert made["key"] not in made["entry"]
    assert len({new_key("x")[0] for _ in range(100)}) == 100


def test_a_ring_keeps_its_hashes_to_itself() -> None:
    ring = KeyRing.from_text(ENTRY, "keys")
    assert ENTRY.split()[0] not in repr(ServiceSettings(keys=ring, hosts=HostRule()))


def test_a_name_that_the_operator_gives_is_answered_and_no_other(bundle: Path, tmp_path: Path) -> None:
    with live_service.process(bundle, tmp_path / "log", "--name", "Films.Ward.example.") as (address, _):
        for host, status in (("films.ward.example", 200), ("films.ward.example:8080", 200), ("ward.example", 421)):
            assert httpx.get(f"{address}/healthz", headers={"Host": host}, timeout=60).status_code == status
