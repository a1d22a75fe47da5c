"""Many callers at once: every answer is the one that its film gets alone, and nobody is left without one."""

from __future__ import annotations

import asyncio
import json
import random
import re
import signal
import socket
import threading
from collections import Counter
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

import httpx
import pytest
from test_decoders import full

from chestxray.inference.predictor import Predictor
from chestxray.serving.service import ServiceSettings
from drawing import encoded, textured
from http_load import Callers, Case, Tally
from live_service import awaited, process, running

JPEG = {"Content-Type": "image/jpeg"}


@pytest.fixture(scope="module")
def predictor(bundle: Path) -> Predictor:
    return Predictor.load(bundle)


@pytest.fixture(scope="module")
def cases(predictor: Predictor, film_paths: Sequence[Path]) -> list[Case]:
    """Films with what they get one by one: small and large, and one that the gate refuses."""
    colour = textured(1)[..., None].repeat(3, axis=2)
    colour[..., 0] = 255 - colour[..., 0]
    films = [path.read_bytes() for path in film_paths[:12]] + [encoded(textured(2, 900, 1200)), encoded(colour)]
    return [Case.of(data, predictor.predict(data, "film").probability) for data in films]


def ask(address: str, cases: Sequence[Case], count: int, at_once: int) -> Tally:
    return awaited(Callers(address).closed(cases, count, at_once))


def test_films_that_share_a_forward_pass_get_the_answers_that_they_get_alone(
    predictor: Predictor, cases: list[Case]
) -> None:
    with running(predictor, ServiceSettings(waiting=64)) as address:
        tally = ask(address, cases, 300, at_once=16)
    assert (tally.answered, tally.wrong, tally.refused, tally.lost, tally.other) == (300, 0, 0, [], {})


def test_beyond_its_capacity_the_service_refuses_at_once_and_errs_never(
    predictor: Predictor, cases: list[Case]
) -> None:
    with running(predictor, ServiceSettings(workers=1, waiting=2)) as address:
        tally = ask(address, cases, 600, at_once=30)
    assert (tally.wrong, tally.lost, tally.other) == (0, [], {})
    assert tally.answered + tally.refused == 600
    assert tally.refused > 0
    assert tally.refused_without_time == 0


def test_requests_that_begin_at_once_find_each_place_once(bundle: Path, cases: list[Case], tmp_path: Path) -> None:
    """Those that are too many are refused before the application sees them, which costs less."""
    request = b"POST /v1/predict HTTP/1.1\r\nHost: localhost\r\nContent-Type: image/jpeg\r\nContent-Length: %d\r\n\r\n"
    film = cases[0].data
    with process(bundle, tmp_path / "log") as (address, service), ExitStack() as closing_at_end:
        assert ask(address, cases[:1], 1, at_once=1).answered == 1
        host, port = address.removeprefix("http://").split(":")
        callers = [closing_at_end.enter_context(socket.create_connection((host, int(port)), 60)) for _ in range(60)]
        httpx.get(f"{address}/healthz", timeout=60)  # all of them are accepted by now
        service.send_signal(signal.SIGSTOP)
        for caller in callers:
            caller.sendall(request % len(film) + film)
        service.send_signal(signal.SIGCONT)
        statuses = Counter(caller.recv(12).split()[1] for caller in callers)
        counted = httpx.get(f"{address}/metrics", timeout=60).text
    assert set(statuses) == {b"200", b"503"}
    early = re.search(r'chestxray_requests_total{route="-",status="503"} (\d+)', counted)
    assert early is not None
    assert int(early[1]) > 0.7 * statuses[b"503"]  # all, unless the machine stands still for the time of a place


def test_a_refusal_for_want_of_room_is_a_problem_document_like_any_other(
    predictor: Predictor, cases: list[Case]
) -> None:
    head = f"POST /v1/predict HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(cases[0].data)}\r\n".encode()
    with full(predictor, cases[0].data) as (address, waiting):
        asked = [httpx.post(f"{address}/v1/predict", content=case.data, headers=JPEG, timeout=60) for case in cases[:3]]
        host, port = address.removeprefix("http://").split(":")
        with socket.create_connection((host, int(port)), timeout=30) as hesitating:
            hesitating.sendall(head + b"Expect: 100-continue\r\n\r\n")
            answer = b""
            while part := hesitating.recv(65536):  # the service hangs up, since the body will not come
                answer += part
        with socket.create_connection((host, int(port)), timeout=30) as twice:
            twice.sendall(head + b"\r\n" + cases[0].data + b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n")
            both = b""
            while b'{"status":"alive"}' not in both:
                both += twice.recv(65536)
    assert waiting[0].status_code == 200
    assert answer.startswith(b"HTTP/1.1 503 ")
    assert both.count(b"HTTP/1.1 503 ") == both.count(b"HTTP/1.1 200 ") == 1
    for refused in asked:
        assert refused.status_code == 503
        assert refused.headers["Retry-After"] == "1"
        assert refused.headers["Content-Type"] == "application/problem+json"
        assert "default-src 'none'" in refused.headers["Content-Security-Policy"]
        document = refused.json()
        assert document["type"] == "/docs#overloaded"
        assert document["instance"] == f"urn:uuid:{refused.headers['X-Request-Id']}"
    assert len({refused.headers["X-Request-Id"] for refused in asked}) == 3


def films_scored_together(predictor: Predictor, cases: list[Case], at_once: int) -> float:
    """Films of a forward pass on average, as the service counts them."""
    with running(predictor, ServiceSettings(waiting=64)) as address:
        ask(address, cases, 200, at_once)
        lines = dict(
            line.split()
            for line in httpx.get(f"{address}/metrics", timeout=60).text.splitlines()
            if line.startswith("chestxray_batch")
        )
    return float(lines["chestxray_batch_films_sum"]) / float(lines["chestxray_batch_films_count"])


def test_films_are_scored_together_only_where_they_wait_together(predictor: Predictor, cases: list[Case]) -> None:
    assert films_scored_together(predictor, cases[:4], at_once=1) == 1.0
    assert films_scored_together(predictor, cases[:4], at_once=16) > 1.0


def one_end_under_load(bundle: Path, cases: Sequence[Case], log: Path, seconds: float) -> None:
    """Ask without pause, end the service with SIGTERM, and compare what it classified with what was received."""
    with process(bundle, log) as (address, server):
        callers = Callers(address)
        timer = threading.Timer(seconds, server.send_signal, [signal.SIGTERM])
        timer.start()

        async def until_it_is_gone() -> None:
            async def caller(number: int) -> None:
                turn = number
                while len(callers.tally.lost) < 8:  # each caller meets the closed door once
                    await callers.ask(cases[turn % len(cases)])
                    turn += 1

            await asyncio.gather(*(caller(number) for number in range(8)))

        awaited(until_it_is_gone())
        server.wait(timeout=60)
        timer.join()
    tally = callers.tally
    assert server.returncode == 0
    requests = [json.loads(line) for line in log.read_text().splitlines()]
    assert {line["event"] for line in requests} == {"request"}
    classified = Counter(line["status"] for line in requests)
    # Whatever the service took on, the callers have: each 200 and 503 that it logged was received, whole and right.
    assert classified == Counter({200: tally.answered, 503: tally.refused}) - Counter()
    assert (tally.wrong, tally.other) == (0, {})
    assert set(tally.lost) <= {
        "ConnectionRefusedError",
        "ConnectionResetError",
        "IncompleteReadError",
        "BrokenPipeError",
    }


def ends_under_load(bundle: Path, cases: Sequence[Case], folder: Path, times: int) -> None:
    chance = random.Random(6)  # noqa: S311 - moments, not secrets
    for number in range(times):
        one_end_under_load(bundle, cases, folder / f"{number}.log", chance.uniform(0.0, 0.6))


@pytest.mark.slow
def test_no_film_that_was_taken_on_is_lost_when_the_service_is_ended(
    bundle: Path, cases: list[Case], tmp_path: Path
) -> None:
    ends_under_load(bundle, cases, tmp_path, 5)


@pytest.mark.soak
@pytest.mark.timeout(900)
def test_no_film_is_lost_in_two_hundred_ends(bundle: Path, cases: list[Case], tmp_path: Path) -> None:
    ends_under_load(bundle, cases, tmp_path, 200)


@pytest.mark.parametrize("blow", [signal.SIGTERM, signal.SIGHUP])
def test_readiness_ends_at_once_while_answers_still_come(
    bundle: Path, cases: list[Case], tmp_path: Path, blow: signal.Signals
) -> None:
    with process(bundle, tmp_path / "log") as (address, server):
        host, port = address.removeprefix("http://").split(":")
        with (
            socket.create_connection((host, int(port)), timeout=30) as watching,
            socket.create_connection((host, int(port)), timeout=30) as asking,
        ):
            case = cases[0]
            head = "POST /v1/predict HTTP/1.1\r\nHost: localhost\r\nContent-Type: image/jpeg\r\nExpect: 100-continue"
            asking.sendall(f"{head}\r\nContent-Length: {len(case.data)}\r\n\r\n".encode())
            assert asking.recv(1000).startswith(b"HTTP/1.1 100 ")  # the service is reading the body by now
            begun, rest = b"GET /readyz HTTP/1.1\r\n", b"Host: localhost\r\n\r\n"
            watching.sendall(begun)  # who has begun to ask is not sent away, however late it ends its question
            server.send_signal(blow)
            status = b"200"
            while status == b"200":  # the signal takes its moment to arrive
                watching.sendall(rest + begun)
                answer = watching.recv(65536)
                status = answer.split()[1] if answer else b""
            asking.sendall(case.data)
            assert asking.recv(64).startswith(b"HTTP/1.1 200 ")
        assert server.wait(timeout=60) == 0
    assert status == b"503"


def test_a_caller_who_never_ends_its_film_cannot_keep_the_service_from_ending(
    predictor: Predictor, cases: list[Case], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("chestxray.serving.service.DRAIN_SECONDS", 0.3)
    with running(predictor) as address:
        host, port = address.removeprefix("http://").split(":")
        connection = socket.create_connection((host, int(port)), timeout=30)
        connection.sendall(
            b"POST /v1/predict HTTP/1.1\r\nHost: localhost\r\nContent-Type: image/jpeg\r\nContent-Length: 9\r\n\r\n\xff"
        )
        assert ask(address, cases[:1], 1, at_once=1).answered == 1
    with connection:
        answer = connection.recv(65536)
    assert answer.startswith(b"HTTP/1.1 503 ")
    assert b"no-answer-in-time" in answer
