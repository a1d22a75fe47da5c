"""Connections over real sockets: callers that are slow, long-winded or many lock nobody out."""

from __future__ import annotations

import resource
import socket
import time
from contextlib import ExitStack, suppress
from pathlib import Path

import httpx
import pytest
from test_decoders import full

from chestxray.inference.predictor import Predictor
from chestxray.schema import Prediction
from chestxray.serving.admission import ConnectionLimits
from chestxray.serving.service import ServiceSettings
from live_service import running

JPEG = {"Content-Type": "image/jpeg"}
HEAD = b"POST /v1/predict HTTP/1.1\r\nHost: localhost\r\nContent-Type: image/jpeg\r\n"
WHOLE_GET = b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n"


@pytest.fixture(scope="module")
def predictor(bundle: Path) -> Predictor:
    return Predictor.load(bundle)


def connected(address: str) -> socket.socket:
    host, port = address.removeprefix("http://").split(":")
    return socket.create_connection((host, int(port)), timeout=30)


def all_of(connection: socket.socket) -> bytes:
    """Everything until the service hangs up."""
    data = b""
    try:
        while part := connection.recv(65536):
            data += part
    except ConnectionResetError:
        pass
    return data


def until(connection: socket.socket, marker: bytes) -> None:
    """Read up to that marker."""
    data = b""
    while marker not in data:
        part = connection.recv(65536)
        assert part, data
        data += part


@pytest.mark.parametrize("sent", [b"", b"P", HEAD, WHOLE_GET + b"GET /he"])
def test_a_head_that_never_ends_runs_out_of_time(predictor: Predictor, sent: bytes) -> None:
    opened: list[socket.socket] = []

    def ask(address: str) -> None:
        opened.append(connected(address))
        opened[0].sendall(sent)

    with running(predictor, connections=ConnectionLimits(head_seconds=0.2), first=ask), opened[0] as connection:
        answer = all_of(connection)
    expected = b"" if not sent else b"HTTP/1.1 200 " if sent.startswith(WHOLE_GET) else b"HTTP/1.1 408 "
    assert answer[: len(expected) or None] == expected


def test_a_head_that_comes_byte_by_byte_runs_out_of_the_same_time(predictor: Predictor) -> None:
    with (
        running(predictor, connections=ConnectionLimits(head_seconds=0.3)) as address,
        connected(address) as connection,
    ):
        began = time.monotonic()
        try:
            for byte in HEAD * 100:
                connection.sendall(bytes([byte]))
                time.sleep(0.01)
        except OSError:
            return  # the service has hung up
        pytest.fail(f"the service listened for {time.monotonic() - began:.1f} seconds")


@pytest.mark.parametrize("padding", ["many headers", "one header", "long address"])
@pytest.mark.parametrize("whole", [True, False])
def test_a_head_that_is_too_long_is_refused(predictor: Predictor, padding: str, whole: bool) -> None:
    filler = {
        "many headers": b"GET / HTTP/1.1\r\nHost: localhost\r\n" + b"X-Filler: 0123456789\r\n" * 2000,
        "one header": b"GET / HTTP/1.1\r\nHost: localhost\r\nX-Filler: " + b"0" * 40_000,
        "long address": b"GET /" + b"0" * 40_000,
    }[padding]
    with running(predictor) as address, connected(address) as connection:
        connection.sendall(filler + (b" HTTP/1.1\r\n\r\n" if padding == "long address" else b"\r\n\r\n") * whole)
        status = connection.recv(64).split()[1]
        after = httpx.get(f"{address}/healthz", timeout=60).status_code
    assert status in {b"400", b"431"}
    assert after == 200


def test_an_answer_that_nobody_fetches_is_given_up(predictor: Predictor) -> None:
    limits = ConnectionLimits(answer_seconds=0.2, pipelined=10_000)
    with running(predictor, connections=limits) as address, connected(address) as connection:
        try:
            for _ in range(2000):
                connection.sendall(b"GET /openapi.json HTTP/1.1\r\nHost: localhost\r\n\r\n")
                time.sleep(0.001)
            for _ in range(10_000):  # of one more head, which tell whether anybody listens
                connection.sendall(b"G")
                time.sleep(0.01)
        except OSError:
            return  # reset, while the service was writing to a caller that did not read
        pytest.fail("the service went on for ever")


def test_requests_that_pile_up_on_a_connection_end_it(predictor: Predictor) -> None:
    with running(predictor) as address, connected(address) as connection:
        with suppress(OSError):
            for _ in range(100):
                connection.sendall(WHOLE_GET * 100)
        answers = all_of(connection).count(b"HTTP/1.1 200 ")
        assert httpx.get(f"{address}/healthz", timeout=60).status_code == 200
    assert answers < 100


def test_the_last_of_too_many_requests_at_once_that_is_answered_says_so(predictor: Predictor) -> None:
    opened: list[socket.socket] = []

    def ask(address: str) -> None:
        opened.append(connected(address))
        opened[0].sendall(WHOLE_GET * 100)

    with running(predictor, first=ask), opened[0] as connection:
        *before, last = all_of(connection).split(b"HTTP/1.1 ")[1:]
    assert len(before) == ConnectionLimits().pipelined
    assert all(each.startswith(b"200 ") and b"connection: close" not in each for each in before)
    assert last.startswith(b"200 ")
    assert b"connection: close" in last


@pytest.mark.parametrize(
    "framing", [b"Content-Length: %d\r\n\r\n%b", b"Transfer-Encoding: chunked\r\n\r\n%x\r\n%b\r\n0\r\n\r\n"]
)
def test_a_request_that_asks_for_another_protocol_is_answered(
    predictor: Predictor, film: bytes, framing: bytes
) -> None:
    """Java's HttpClient asks for HTTP/2 with the first request of each connection, and so does curl with --http2."""
    upgrade = HEAD + b"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABkAAQ\r\n"
    body = framing % (len(film), film)
    with running(predictor) as address, connected(address) as connection:
        connection.sendall(upgrade + body)
        until(connection, b'"probability"')
        connection.sendall(WHOLE_GET.replace(b"\r\n\r\n", b"\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n"))
        until(connection, b'{"status":"alive"}')
        connection.sendall(WHOLE_GET)
        until(connection, b'{"status":"alive"}')


def test_a_few_requests_at_once_are_answered_in_turn(predictor: Predictor) -> None:
    with running(predictor) as address, connected(address) as connection:
        connection.sendall(WHOLE_GET * 5 + WHOLE_GET.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n"))
        assert all_of(connection).count(b"HTTP/1.1 200 ") == 6


def test_the_rest_of_a_body_that_was_refused_is_passed_over_but_not_for_ever(predictor: Predictor) -> None:
    refused = HEAD.replace(b"image/jpeg", b"text/plain") + b"Content-Length: 100000\r\n\r\n"
    with running(predictor) as address, connected(address) as connection:
        connection.sendall(refused)
        until(connection, b"HTTP/1.1 415 ")
        connection.sendall(bytes(100_000) + WHOLE_GET)
        until(connection, b'{"status":"alive"}')
    opened: list[socket.socket] = []

    def ask(address: str) -> None:
        opened.append(connected(address))
        opened[0].sendall(refused + bytes(1000))

    with running(predictor, connections=ConnectionLimits(head_seconds=0.3), first=ask), opened[0] as connection:
        assert b"HTTP/1.1 415 " in all_of(connection)


def allow_files() -> None:
    """Let this process open many: both ends of each connection lie in it."""
    _, allowed = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(allowed, 4096), allowed))


def test_callers_that_send_late_are_answered_however_many_connect_meanwhile(predictor: Predictor) -> None:
    allow_files()
    with running(predictor) as address, ExitStack() as held:
        connections = [held.enter_context(connected(address)) for _ in range(1000)]
        for connection in connections:
            connection.sendall(WHOLE_GET)
        for connection in connections:
            until(connection, b"alive")


def test_a_thousand_slow_connections_lock_nobody_out(predictor: Predictor, film: bytes) -> None:
    allow_files()
    expected = predictor.predict(film, "film")
    limits = ConnectionLimits(places=200, head_seconds=60.0)
    with running(predictor, ServiceSettings(body_seconds=60.0), limits) as address, ExitStack() as held:
        for number in range(1000):
            connection = held.enter_context(connected(address))
            connection.sendall((HEAD, HEAD + b"Content-Length: 1000\r\n\r\n\xff\xd8\xff", b"")[number % 3])
            if number % 100 == 99:
                answer = httpx.post(f"{address}/v1/predict", content=film, headers=JPEG, timeout=60)
                assert Prediction.from_json(answer.text).film_sha256 == expected.film_sha256


def test_a_caller_whose_film_is_being_classified_is_not_the_one_who_makes_room(
    predictor: Predictor, film: bytes
) -> None:
    with full(predictor, film, ConnectionLimits(places=3)) as (address, answers), ExitStack() as held:
        for _ in range(20):
            held.enter_context(connected(address)).sendall(HEAD)
        assert httpx.get(f"{address}/healthz", timeout=60).status_code == 200  # those before it have been accepted
    assert answers[0].status_code == 200


FORM = HEAD.replace(b"image/jpeg", b"multipart/form-data; boundary=x")
PART = b'--x\r\nContent-Disposition: form-data; name="film"\r\n\r\n'


@pytest.mark.parametrize(("head", "begun"), [(HEAD, b""), (FORM, PART)], ids=["a film", "a form"])
def test_bodies_are_bounded_all_together(predictor: Predictor, film: bytes, head: bytes, begun: bytes) -> None:
    settings = ServiceSettings(max_bodies=3 * len(film))
    with running(predictor, settings) as address, ExitStack() as held:
        for _ in range(3):  # each holds almost a film's worth
            slow = held.enter_context(connected(address))
            slow.sendall(head + b"Content-Length: %d\r\n\r\n" % (len(begun) + len(film)) + begun + film[:-100])

        def ask() -> int:
            return httpx.post(f"{address}/v1/predict", content=film, headers=JPEG, timeout=60).status_code

        while ask() != 503:  # until the three have arrived
            time.sleep(0.01)
        held.close()
        while (after := ask()) == 503:
            time.sleep(0.01)
    assert after == 200
