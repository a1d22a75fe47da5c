"""Every client sees its answer, also one that comes before its request has arrived: real clients, a real proxy."""

from __future__ import annotations

import gc
import io
import json
import os
import shutil
import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import aiohttp
import boto3
import botocore.exceptions
import httpx
import pytest
import requests
from botocore.config import Config
from playwright.sync_api import sync_playwright

from chestxray.inference.bundle import folder_of
from chestxray.inference.predictor import Predictor
from chestxray.serving.security import KeyRing, new_key
from chestxray.serving.service import ServiceSettings
from chestxray.serving.static import EXAMPLES
from driving import CHROMIUM, FLAGS
from live_service import awaited, running

pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # see by_aiohttp

MIB = 2**20
LIMIT = MIB  # of a film, so that bodies which are too long are quick to send

Sent = Callable[[str, str, bytes, dict[str, str]], int]  # method, address, body, headers to the status that came back


def by_urllib(method: str, address: str, body: bytes, headers: dict[str, str]) -> int:
    request = urllib.request.Request(address, body, headers, method=method)  # noqa: S310
    try:
        with urllib.request.urlopen(request, timeout=60) as answer:  # noqa: S310
            return int(answer.status)
    except urllib.error.HTTPError as error:
        error.read()
        return error.code


def by_requests(method: str, address: str, body: bytes, headers: dict[str, str]) -> int:
    return requests.request(method, address, data=body, headers=headers, timeout=60).status_code


def by_httpx(method: str, address: str, body: bytes, headers: dict[str, str]) -> int:
    return httpx.request(method, address, content=body, headers=headers, timeout=60).status_code


def by_aiohttp(method: str, address: str, body: bytes, headers: dict[str, str]) -> int:
    async def ask() -> int:
        async with (
            aiohttp.ClientSession() as session,
            session.request(method, address, data=io.BytesIO(body), headers=headers) as answer,
        ):
            await answer.read()
            return answer.status

    status = awaited(ask())
    gc.collect()  # aiohttp leaves what it had not sent to the collector, which is better done with it here
    return status


def by_curl(method: str, address: str, body: bytes, headers: dict[str, str]) -> int:
    words = ["curl", "-sS", "-o", "/dev/null", "-w", "%{http_code}", "-X", method, "--data-binary", "@-", address]
    for name, value in headers.items():
        words += ["-H", f"{name}: {value}"]
    done = subprocess.run(words, input=body, capture_output=True, check=False)
    assert done.returncode == 0, done.stderr
    return int(done.stdout)


CLIENTS: dict[str, Sent] = {
    "urllib": by_urllib,
    "requests": by_requests,
    "httpx": by_httpx,
    "aiohttp": by_aiohttp,
    "curl": by_curl,
}

# What is answered before the body has arrived: address, headers, status.
EARLY = {
    "too large": ("/v1/predict", {"Content-Type": "image/jpeg"}, 413),
    "wrong type": ("/v1/predict", {"Content-Type": "text/plain"}, 415),
    "encoded": ("/v1/predict", {"Content-Type": "image/jpeg", "Content-Encoding": "gzip"}, 415),
    "no such point": ("/v1/predict?operating_point=none", {"Content-Type": "image/jpeg"}, 422),
    "no such address": ("/v2/predict", {"Content-Type": "image/jpeg"}, 404),
    "wrong method": ("/healthz", {"Content-Type": "image/jpeg"}, 405),
    "other host": ("/v1/predict", {"Content-Type": "image/jpeg", "Host": "elsewhere.example"}, 421),
}


@pytest.fixture(scope="module")
def predictor() -> Predictor:
    return Predictor.load(folder_of("pneumonia"), 1)


@pytest.fixture(scope="module")
def service(predictor: Predictor) -> Iterator[str]:
    with running(predictor, ServiceSettings(max_body=LIMIT)) as address:
        yield address


@pytest.fixture(scope="module")
def film() -> bytes:
    return min(EXAMPLES.glob("*.jpg")).read_bytes()


@pytest.mark.parametrize("client", CLIENTS)
@pytest.mark.parametrize("case", EARLY)
def test_an_answer_that_comes_before_the_body_has_arrived_is_seen(service: str, client: str, case: str) -> None:
    if client == "curl" and shutil.which("curl") is None:
        pytest.skip("curl is not here")
    path, headers, status = EARLY[case]
    for size in (LIMIT + 1, 8 * MIB):
        assert CLIENTS[client]("POST", f"{service}{path}", bytes(size), headers) == status


@pytest.mark.parametrize("client", CLIENTS)
def test_a_refusal_for_want_of_a_key_is_seen(predictor: Predictor, client: str) -> None:
    if client == "curl" and shutil.which("curl") is None:
        pytest.skip("curl is not here")
    _, entry = new_key("ward-7")
    settings = ServiceSettings(max_body=16 * MIB, keys=KeyRing.from_text(entry, "a test"))
    with running(predictor, settings) as address:
        for headers in ({}, {"X-API-Key": "a-guess"}):
            sent = CLIENTS[client]
            assert (
                sent("POST", f"{address}/v1/predict", bytes(8 * MIB), headers | {"Content-Type": "image/jpeg"}) == 401
            )


def test_boto3_sees_what_its_endpoint_says(service: str, film: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "none")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "none")
    runtime = boto3.client(
        "sagemaker-runtime",
        region_name="eu-west-1",
        endpoint_url=service,
        config=Config(retries={"total_max_attempts": 1}),
    )
    answer = runtime.invoke_endpoint(EndpointName="films", ContentType="image/jpeg", Body=film)
    assert json.load(answer["Body"])["gate"]["accepted"]
    for content_type, size, status in (("image/jpeg", 8 * MIB, 413), ("text/plain", 8 * MIB, 415)):
        with pytest.raises(botocore.exceptions.ClientError) as caught:
            runtime.invoke_endpoint(EndpointName="films", ContentType=content_type, Body=bytes(size))
        assert caught.value.response["OriginalStatusCode"] == status


def test_a_slow_upload_is_answered_and_not_reset(service: str) -> None:
    """The answer is read only once everything is sent, as many clients do."""
    host, port = service.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=30) as connection:
        head = b"POST /v1/predict HTTP/1.1\r\nHost: localhost\r\nContent-Type: text/plain\r\n"
        connection.sendall(head + b"Content-Length: 4000000\r\n\r\n")
        for _ in range(40):
            connection.sendall(bytes(100_000))
            time.sleep(0.01)
        assert connection.recv(65536).startswith(b"HTTP/1.1 415 ")


def test_who_asks_before_sending_is_refused_before_sending(service: str) -> None:
    host, port = service.removeprefix("http://").split(":")
    head = b"POST /v1/predict HTTP/1.1\r\nHost: localhost\r\nContent-Type: image/jpeg\r\nExpect: 100-continue\r\n"
    with socket.create_connection((host, int(port)), timeout=30) as connection:
        connection.sendall(head + b"Content-Length: %d\r\n\r\n" % (LIMIT + 1))
        answer = b""
        while part := connection.recv(65536):
            answer += part
    assert answer.startswith(b"HTTP/1.1 413 ")
    assert b"100 Continue" not in answer
    assert b"connection: close" in answer.lower()


def test_who_asks_before_sending_is_told_to_send(service: str, film: bytes) -> None:
    host, port = service.removeprefix("http://").split(":")
    head = b"POST /v1/predict HTTP/1.1\r\nHost: localhost\r\nContent-Type: image/jpeg\r\nExpect: 100-continue\r\n"
    with socket.create_connection((host, int(port)), timeout=30) as connection:
        connection.sendall(head + b"Content-Length: %d\r\n\r\n" % len(film))
        assert connection.recv(65536) == b"HTTP/1.1 100 Continue\r\n\r\n"
        connection.sendall(film)
        assert connection.recv(65536).startswith(b"HTTP/1.1 200 ")


GUIDE = Path(__file__).parents[2] / "docs" / "how-to" / "serve.md"


@contextmanager
def nginx(folder: Path, location: str) -> Iterator[str]:
    """A proxy with that location, on a free port."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    settings = f"""
        {"user root;" if os.geteuid() == 0 else ""}
        daemon off; pid {folder}/pid; error_log {folder}/errors; worker_processes 1;
        events {{ worker_connections 256; }}
        http {{
            access_log off; client_body_temp_path {folder}/bodies; proxy_temp_path {folder}/answers;
            fastcgi_temp_path {folder}/f; uwsgi_temp_path {folder}/u; scgi_temp_path {folder}/s;
            server {{ listen 127.0.0.1:{port}; {location} }}
        }}"""
    (folder / "nginx.conf").write_text(settings)
    started = subprocess.Popen(["nginx", "-e", f"{folder}/errors", "-c", f"{folder}/nginx.conf"])
    try:
        deadline = time.monotonic() + 30
        while True:
            try:
                socket.create_connection(("127.0.0.1", port), timeout=1).close()
                break
            except OSError:
                assert time.monotonic() < deadline, (folder / "errors").read_text()
                time.sleep(0.02)
        yield f"http://127.0.0.1:{port}"
    finally:
        started.terminate()
        started.wait()


def location_of_the_guide(service: str) -> str:
    """The lines that the guide gives, with the service's address of this test."""
    text = GUIDE.read_text(encoding="utf-8")
    block = text.partition("```nginx\n")[2].partition("```")[0]
    assert "proxy_pass http://127.0.0.1:8000;" in block
    return block.replace("127.0.0.1:8000", service.removeprefix("http://"))


@pytest.mark.skipif(shutil.which("nginx") is None, reason="nginx is not here")
@pytest.mark.parametrize("lines", ["default", "guide"])
def test_behind_nginx_every_answer_comes_through(service: str, film: bytes, tmp_path: Path, lines: str) -> None:
    plain = f"location / {{ client_max_body_size 0; proxy_pass {service}; }}"
    with nginx(tmp_path, plain if lines == "default" else location_of_the_guide(service)) as proxy:
        found = [
            (by_requests("POST", f"{proxy}{path}", bytes(size), headers), status)
            for path, headers, status in EARLY.values()
            for size in (LIMIT + 1, 8 * MIB)
            if "Host" not in headers  # the proxy puts its own
        ]
        good = [by_requests("POST", f"{proxy}/v1/predict", film, {"Content-Type": "image/jpeg"}) for _ in range(20)]
    assert [answer for answer, _ in found] == [status for _, status in found]
    assert good == [200] * 20


@pytest.mark.browser
@pytest.mark.skipif(CHROMIUM is None, reason="no chromium on this machine")
def test_a_browser_sees_an_answer_that_comes_before_its_body_has_gone(service: str) -> None:
    ask = """async (size) => {
        const answer = await fetch('/v1/predict', {method: 'POST', body: new Uint8Array(size),
                                                   headers: {'Content-Type': 'image/jpeg'}});
        return [answer.status, (await answer.json()).type];
    }"""

    def look() -> list[object]:
        with sync_playwright() as playwright:
            browser = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
            page = browser.new_page()
            page.goto(service)
            return [page.evaluate(ask, size) for size in (LIMIT + 1, 8 * MIB)]

    with ThreadPoolExecutor(1) as thread:  # other tests' driver has a loop in this one
        assert thread.submit(look).result() == [[413, "/docs#film-too-large"]] * 2
