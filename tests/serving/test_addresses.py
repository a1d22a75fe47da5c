"""No address that a caller sends is ever opened: as a body, as a parameter, as a header, inside a film."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from drawing import encoded, gradient
from live_service import process

JPEG = {"Content-Type": "image/jpeg"}

# What servers that fetch for their callers have been talked into opening. {port} is one that a test listens to.
ADDRESSES = (
    "http://127.0.0.1:{port}/film.jpg",
    "https://localhost:{port}/film.jpg",
    "http://[::1]:{port}/film.jpg",
    "http://2130706433:{port}/",
    "//127.0.0.1:{port}/film.jpg",
    "http://169.254.169.254/latest/meta-data/iam/security-credentials/",
    "http://169.254.170.2/v2/credentials",
    "http://[fd00:ec2::254]/latest/meta-data/",
    "http://metadata.google.internal/computeMetadata/v1/",
    "http://100.100.100.200/latest/meta-data/",
    "file:///etc/passwd",
    "file://localhost/etc/hostname",
    "/etc/passwd",
    "../../etc/passwd",
    "s3://bucket/film.jpg",
    "ftp://127.0.0.1:{port}/film.jpg",
    "gopher://127.0.0.1:{port}/_GET",
    "data:image/jpeg;base64,/9j/4AAQ",
    "\\\\127.0.0.1\\share\\film.jpg",
)

# Every Python process of the service imports this at its start, those that decode as well. Whoever then looks up a
# name, connects, or opens one of these files dies on the spot.
TRIPWIRE = """
import os, signal, sys
def watch(event, arguments):
    connects = event in ("socket.connect", "socket.sendto", "socket.gethostbyname", "urllib.Request")
    looks_up = event == "socket.getaddrinfo" and arguments[0] != "127.0.0.1"  # the address that the service listens to
    reads = event == "open" and str(arguments[0]) in ("/etc/passwd", "../../etc/passwd", "/etc/hostname")
    if connects or looks_up or reads:
        os.kill(os.getpid(), signal.SIGKILL)
sys.addaudithook(watch)
"""


@pytest.fixture
def tripwire(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "sitecustomize.py").write_text(TRIPWIRE)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))


def requests_with(address: str) -> Iterator[tuple[str, str, dict[str, str], bytes]]:
    """Method, path, headers, body: every place where a caller can put an address."""
    text = address.encode()
    film = encoded(gradient())
    for path in ("/v1/predict", "/invocations", "/endpoints/pneumonia/invocations"):
        yield "POST", path, JPEG, text
        yield "POST", path, JPEG, json.dumps({"url": address, "instances": [address]}).encode()
    yield "POST", "/v1/predict", {"Content-Type": "text/uri-list"}, text
    yield "POST", "/v1/predict", JPEG, b"HTTP/1.1 302 Found\r\nLocation: " + text
    yield "POST", "/v1/predict", JPEG, b'<?xml version="1.0"?><svg><image href="' + text + b'"/></svg>'
    yield "POST", "/v1/predict", JPEG, film + text
    query = str(httpx.QueryParams({"url": address, "heatmap": address, "operating_point": address}))
    yield "POST", f"/v1/predict?{query}", JPEG, film
    headers = ("Location", "Referer", "Content-Location", "Forwarded", "X-Forwarded-Host", "X-Original-URL", "Link")
    yield "POST", "/v1/predict", JPEG | dict.fromkeys(headers, address), film
    yield "GET", "/v1/model", dict.fromkeys(headers, address), b""


@pytest.mark.parametrize(
    "code",
    [
        "import socket; socket.create_connection(('127.0.0.1', 9))",
        "import urllib.request; urllib.request.urlopen('file:///etc/passwd')",
        "import socket; socket.getaddrinfo('metadata.google.internal', 80)",
        "open('/etc/passwd')",
    ],
)
def test_the_tripwire_works(tripwire: None, code: str) -> None:
    done = subprocess.run([sys.executable, "-c", code], check=False)
    assert done.returncode == -signal.SIGKILL


def test_no_address_of_a_caller_is_opened(tripwire: None, bundle: Path, film: bytes, tmp_path: Path) -> None:
    with process(bundle, tmp_path / "log") as (address, server), httpx.Client(base_url=address, timeout=60) as client:
        for each in ADDRESSES:
            for method, path, headers, body in requests_with(each.format(port=9)):
                answer = client.request(method, path, headers=headers, content=body)
                assert answer.status_code in {200, 415, 422}, (each, path, body[:60])
                assert "Location" not in answer.headers
                assert "root:" not in answer.text
        assert client.post("/v1/predict", content=film, headers=JPEG).status_code == 200
        assert "chestxray_decoders_replaced 0.0" in client.get("/metrics").text
        assert server.poll() is None
