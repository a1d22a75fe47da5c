"""What the service makes of requests that are odd, hostile or many: real sockets, a real process."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import threading
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import httpx
import pytest

from chestxray.inference.bundle import folder_of
from chestxray.inference.predictor import Predictor
from chestxray.serving.admission import ConnectionLimits
from chestxray.serving.request import Malformed, read_head
from chestxray.serving.security import ApiKeyMiddleware, FailedAttempts, HostRule, KeyRing, new_key
from chestxray.serving.service import ServiceSettings
from chestxray.serving.static import EXAMPLES
from http_load import Callers, Case, Tally, resident_mib
from live_service import PROGRAM, awaited, running

JPEG = {"Content-Type": "image/jpeg"}
GET = b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n"
CHUNKED = (
    b"POST /v1/predict HTTP/1.1\r\nHost: localhost\r\nContent-Type: image/jpeg\r\nTransfer-Encoding: chunked\r\n\r\n"
)
BUNDLE = "pneumonia"


@pytest.fixture(scope="module")
def predictor() -> Predictor:
    return Predictor.load(folder_of(BUNDLE), 1)


@pytest.fixture(scope="module")
def service(predictor: Predictor) -> Iterator[str]:
    with running(predictor) as address:
        yield address


@pytest.fixture(scope="module")
def film() -> bytes:
    return min(EXAMPLES.glob("*.jpg")).read_bytes()


def sent(address: str, data: bytes, *, and_no_more: bool = False) -> bytes:
    """What comes back until the service hangs up."""
    host, port = address.removeprefix("http://").split(":")
    answer = b""
    with socket.create_connection((host, int(port)), timeout=60) as connection:
        try:
            connection.sendall(data)
            if and_no_more:
                connection.shutdown(socket.SHUT_WR)
            while part := connection.recv(65536):
                answer += part
        except OSError:  # it hung up while we were sending
            pass
    return answer


# --------------------------------------------------------------------------- what is taken at all


@pytest.mark.parametrize(
    ("url", "headers"),
    [
        (b"/", []),
        (b"/", [(b"host", b"a"), (b"host", b"b")]),
        (b"/", [(b"host", b"[::1]evil")]),
        (b"/", [(b"host", b"a b")]),
        (b"/", [(b"host", b"a"), (b"transfer-encoding", b"gzip, chunked")]),
        (b"/", [(b"host", b"a"), (b"transfer-encoding", b"chunked"), (b"transfer-encoding", b"identity")]),
        (b"http://evil/", [(b"host", b"a")]),
        (b"https://a/", [(b"host", b"a")]),
        (b"evil:443", [(b"host", b"a")]),
        (b"/\xff", [(b"host", b"a")]),
    ],
)
def test_what_could_mean_two_things_is_refused(url: bytes, headers: list[tuple[bytes, bytes]]) -> None:
    with pytest.raises(Malformed):
        read_head(b"GET", url, "1.1", headers)


def test_an_absolute_address_of_the_same_authority_is_its_path() -> None:
    head = read_head(b"GET", b"http://LOCALHOST:80/ping?a=1", "1.1", [(b"host", b"localhost:80")])
    assert (head.scope["path"], head.scope["query_string"]) == ("/ping", b"a=1")


@pytest.mark.parametrize("host", ["[::1]evil", "[::1", "localhost:80:80", "localhost@evil", "localhost:port"])
def test_what_only_begins_like_our_name_is_not_ours(host: str) -> None:
    assert not HostRule().allows(host)


@pytest.mark.parametrize(
    ("data", "status", "kind"),
    [
        (b"this is no request\r\n\r\n", 400, "bad-request"),
        (b"GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n", 400, "bad-request"),
        (b"GET / HTTP/2.0\r\nHost: localhost\r\n\r\n", 400, "bad-request"),
        (b"GET / HTTP/1.1\r\nHost: localhost\r\nX: " + b"a" * 70_000 + b"\r\n\r\n", 431, "head-too-long"),
    ],
)
def test_a_refusal_from_below_the_application_is_a_problem_document_counted_and_protected(
    service: str, data: bytes, status: int, kind: str
) -> None:
    counter = f'chestxray_requests_total{{route="-",status="{status}"}} '

    def counted() -> float:
        text = httpx.get(f"{service}/metrics", timeout=60).text
        return float(text.partition(counter)[2].partition("\n")[0] or 0)

    before = counted()
    head, _, body = sent(service, data).partition(b"\r\n\r\n")
    document = json.loads(body)
    assert head.startswith(f"HTTP/1.1 {status} ".encode())
    assert b"application/problem+json" in head
    assert b"default-src 'none'" in head
    assert b"connection: close" in head.lower()
    assert document["type"] == f"/docs#{kind}"
    assert document["instance"].removeprefix("urn:uuid:").encode() in head
    assert counted() == before + 1


def test_trailers_are_never_headers(service: str, film: bytes) -> None:
    body = b"%x\r\n%b\r\n0\r\nHost: evil\r\nX-API-Key: none\r\nContent-Type: text/plain\r\n\r\n" % (len(film), film)
    answers = sent(service, CHUNKED + body + GET, and_no_more=True)
    assert answers.count(b"HTTP/1.1 200 ") == 2


@pytest.mark.parametrize("endless", [b"X-Trailer: a\r\n", b"0;extension\r\n"])
def test_what_frames_a_body_is_bounded(service: str, film: bytes, endless: bytes) -> None:
    """The memory of one connection whose trailers, or chunk extensions, never end."""
    start = b"%x\r\n%b\r\n0" % (len(film), film)
    begin = start + b"\r\n" if endless.startswith(b"X") else start + b";"
    before = resident_mib(os.getpid())
    answer = sent(service, CHUNKED + begin + endless.replace(b"\r\n", b"" if b";" in begin else b"\r\n") * 3_000_000)
    assert answer.startswith((b"HTTP/1.1 400 ", b"HTTP/1.1 200 ")) or answer == b""
    assert resident_mib(os.getpid()) - before < 100  # the test's own copies included


def test_who_hangs_up_half_way_gets_its_answer(service: str, film: bytes) -> None:
    head = b"POST /v1/predict HTTP/1.1\r\nHost: localhost\r\nContent-Type: image/jpeg\r\nContent-Length: %d\r\n\r\n"
    assert sent(service, head % len(film) + film, and_no_more=True).startswith(b"HTTP/1.1 200 ")


@pytest.mark.parametrize("path", ["/ping", "/healthz", "/readyz", "/", "/v1/model"])
def test_a_head_request_is_answered_like_get_without_its_body(service: str, path: str) -> None:
    with httpx.Client(base_url=service, timeout=60) as client:
        asked, whole = client.head(path), client.get(path, headers={"Accept-Encoding": "identity"})
    assert (asked.status_code, asked.content) == (200, b"")
    assert asked.headers["Content-Type"] == whole.headers["Content-Type"] if "Content-Type" in whole.headers else True


def test_people_at_an_unknown_address_get_a_page_and_programs_a_problem(service: str) -> None:
    page = httpx.get(f"{service}/nowhere", headers={"Accept": "text/html,application/xhtml+xml;q=0.9"}, timeout=60)
    assert (page.status_code, page.headers["Content-Type"]) == (404, "text/html; charset=utf-8")
    assert "nothing here</title>" in page.text
    assert "default-src 'none'" in page.headers["Content-Security-Policy"]
    assert httpx.get(f"{service}/nowhere", timeout=60).headers["Content-Type"] == "application/problem+json"


# --------------------------------------------------------------------------- several films


def test_several_films_are_answered_in_order_each_with_its_own_status(
    service: str, predictor: Predictor, film: bytes
) -> None:
    films = [path.read_bytes() for path in sorted(EXAMPLES.glob("*.jpg"))]
    bodies = [films[0], b"no film", films[1], b"", films[2][:300]] + films * 5
    parts = [("film", ("x", data, "image/jpeg")) for data in bodies]
    answer = httpx.post(f"{service}/v1/predict", files=parts, timeout=60)
    assert answer.headers["Content-Type"] == "application/x-ndjson"
    lines = [json.loads(line) for line in answer.text.splitlines()]
    assert [line["index"] for line in lines] == list(range(len(bodies)))
    assert [line["status"] for line in lines[:5]] == [200, 415, 200, 422, 422]
    for line, data in zip(lines, bodies, strict=True):
        if line["status"] == 200:
            expected = predictor.predict(data, "film")
            assert line["prediction"]["film_sha256"] == expected.film_sha256
            assert line["prediction"]["probability"] == pytest.approx(expected.probability, abs=1e-5)
        else:
            assert line["problem"]["status"] == line["status"]


def test_heat_maps_that_wait_to_be_sent_count_among_the_bytes_that_are_held(predictor: Predictor, film: bytes) -> None:
    drawn = len(predictor.predict(film, "film", heatmap=True).heatmap or "")
    with running(predictor, ServiceSettings(max_bodies=1_000_000)) as address:
        for films in (1_200_000 // drawn, 5):  # what is refused stays held no longer
            parts = [("film", ("x", film, "image/jpeg"))] * films
            answer = httpx.post(f"{address}/v1/predict?heatmap=true", files=parts, timeout=120)
            statuses = {json.loads(line)["status"] for line in answer.text.splitlines()}
            assert (503 in statuses) == (films > 5)
        assert statuses == {200}


def test_one_film_in_a_form_is_answered_like_a_body(service: str, film: bytes) -> None:
    answer = httpx.post(f"{service}/v1/predict", files={"film": film}, timeout=60)
    assert answer.headers["Content-Type"] == "application/json"
    assert answer.json() == httpx.post(f"{service}/v1/predict", content=film, headers=JPEG, timeout=60).json()
    assert httpx.post(f"{service}/v1/predict", files={"film": b"none"}, timeout=60).status_code == 415


def test_a_form_that_another_page_sends_is_refused(service: str, film: bytes) -> None:
    theirs = httpx.post(
        f"{service}/v1/predict", files={"film": film}, headers={"Origin": "https://evil.example"}, timeout=60
    )
    ours = httpx.post(f"{service}/v1/predict", files={"film": film}, headers={"Origin": service}, timeout=60)
    assert (theirs.status_code, theirs.json()["type"]) == (403, "/docs#cross-origin")
    assert ours.status_code == 200


def test_a_form_that_ends_early_is_refused(service: str, film: bytes) -> None:
    body = b'--x\r\nContent-Disposition: form-data; name="film"\r\n\r\n' + film
    headers = {"Content-Type": "multipart/form-data; boundary=x"}
    assert httpx.post(f"{service}/v1/predict", content=body, headers=headers, timeout=60).status_code == 422


# --------------------------------------------------------------------------- keys


def test_wrong_keys_wait_longer_each_time_and_are_told_of_once_a_minute(caplog: pytest.LogCaptureFixture) -> None:
    now = [1000.0]
    guesses = FailedAttempts(lambda: now[0])
    pauses = [guesses.pause_for("10.1.2.3") for _ in range(8)]
    assert pauses == sorted(pauses)
    assert pauses[0] < pauses[-1] <= FailedAttempts.LONGEST_PAUSE
    assert guesses.pause_for("10.9.9.9") == pauses[0]
    now[0] += 61
    guesses.pause_for("10.1.2.3")
    logged = [(vars(record)["caller"], vars(record)["since_last"]) for record in caplog.records]
    assert logged == [("10.1.2.3", 1), ("10.9.9.9", 1), ("10.1.2.3", 8)]


def test_ipv6_neighbours_are_one_caller(caplog: pytest.LogCaptureFixture) -> None:
    """Whoever has one address has the 2**64 beside it, and would otherwise never wait nor be counted."""

    async def send(_message: object) -> None: ...

    async def guess() -> None:
        keys = ApiKeyMiddleware(send, KeyRing.from_text(new_key("ward-7")[1], "a test"), frozenset())  # type: ignore[arg-type]
        for address in ("2001:db8::1", "2001:db8::abcd:2", "2001:db8:0:1::1", "::ffff:10.1.2.3", "10.1.2.3"):
            scope = {"type": "http", "path": "/", "headers": [(b"x-api-key", b"wrong")], "client": (address, 1)}
            await keys({**scope, "state": {"request_id": "1"}}, send, send)  # type: ignore[arg-type]

    awaited(guess())
    assert [vars(record)["caller"] for record in caplog.records] == ["2001:db8::/64", "2001:db8:0:1::/64", "10.1.2.3"]


def test_a_wrong_key_makes_no_other_caller_wait(predictor: Predictor, film: bytes) -> None:
    key, entry = new_key("ward-7")
    with running(predictor, ServiceSettings(keys=KeyRing.from_text(entry, "a test"))) as address:
        for guess in range(5):
            wrong = httpx.post(
                f"{address}/v1/predict", content=film, headers=JPEG | {"X-API-Key": str(guess)}, timeout=60
            )
            assert wrong.status_code == 401
        assert (
            httpx.post(f"{address}/v1/predict", content=film, headers=JPEG | {"X-API-Key": key}, timeout=60).status_code
            == 200
        )


# --------------------------------------------------------------------------- many


def test_new_idle_connections_reset_no_upload(predictor: Predictor, film: bytes) -> None:
    head = b"POST /v1/predict HTTP/1.1\r\nHost: localhost\r\nContent-Type: image/jpeg\r\nContent-Length: %d\r\n\r\n"
    with running(predictor, connections=ConnectionLimits(places=20)) as address:
        host, port = address.removeprefix("http://").split(":")
        idle = []
        with socket.create_connection((host, int(port)), timeout=60) as upload:
            upload.sendall(head % len(film) + film[:1000])
            for number in range(200):
                idle.append(socket.create_connection((host, int(port)), timeout=60))
                if number % 40 == 0:
                    upload.sendall(film[1000 + number : 1000 + number + 40])
                    httpx.get(f"{address}/healthz", timeout=60)
            upload.sendall(film[1200:])
            assert upload.recv(65536).startswith(b"HTTP/1.1 200 ")
        for each in idle:
            each.close()


def test_new_connections_cost_no_refused_caller_its_answer(predictor: Predictor) -> None:
    """Reset while it still sends, many a caller never reads what it was told."""
    size = 2**20
    head = b"POST /v1/predict HTTP/1.1\r\nHost: localhost\r\nContent-Type: text/plain\r\nContent-Length: %d\r\n\r\n"
    with running(predictor, connections=ConnectionLimits(places=20)) as address:
        host, port = address.removeprefix("http://").split(":")
        with socket.create_connection((host, int(port)), timeout=60) as upload, ExitStack() as idle:
            upload.sendall(head % size + bytes(size // 2))
            upload.recv(1, socket.MSG_PEEK)  # it has been answered
            for _ in range(60):
                idle.enter_context(socket.create_connection((host, int(port)), timeout=60))
            httpx.get(f"{address}/healthz", timeout=60)  # those before it have been accepted
            for _ in range(16):
                upload.sendall(bytes(size // 32))
            assert upload.recv(65536).startswith(b"HTTP/1.1 415 ")


def with_room_for_two(
    predictor: Predictor, film: bytes, limits: ConnectionLimits, *, requests: int, at_once: int
) -> Tally:
    """What callers get who ask again at once, from a service with room for one film at work and one that waits."""
    case = Case.of(film, predictor.predict(film, "film").probability)
    with running(predictor, ServiceSettings(workers=1, waiting=1), limits) as address:
        return awaited(Callers(address).closed([case], requests, at_once=at_once))


def test_callers_that_ignore_retry_after_take_no_films_time(predictor: Predictor, film: bytes) -> None:
    """With many times the callers that there is room for, refusals are few a second: they wait.

    A busy machine makes the run longer, never the refusals more frequent.
    """
    limits = ConnectionLimits(refusals=5, hold_seconds=0.5)
    tally = with_room_for_two(predictor, film, limits, requests=300, at_once=60)
    assert (tally.wrong, tally.lost, tally.other) == (0, [], {})
    assert tally.answered + tally.refused == 300
    at_once = limits.refusals * (int(tally.took) + 2)  # in as many seconds of the clock as the run can touch
    after_waiting = 60 * (tally.took / (0.9 * limits.hold_seconds))  # timers may be a little early
    assert tally.refused <= at_once + after_waiting


def test_a_request_that_waits_for_its_refusal_is_answered_once_there_is_room(predictor: Predictor, film: bytes) -> None:
    """Else, after a burst, the service would have nothing to do while its callers wait."""
    limits = ConnectionLimits(refusals=0, hold_seconds=3600.0)
    tally = with_room_for_two(predictor, film, limits, requests=12, at_once=12)
    assert (tally.wrong, tally.lost, tally.other) == (0, [], {})
    assert tally.answered == 12  # else two find room, and the others are lost


# --------------------------------------------------------------------------- the process


def started(stderr: int, *, limit: str = "") -> subprocess.Popen[str]:
    command = f"{limit} exec {PROGRAM} serve --bundle {BUNDLE} --port 0 --json"
    return subprocess.Popen(["bash", "-c", command], stdout=subprocess.PIPE, stderr=stderr, text=True)


def address_of(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    text = ""
    while not text.endswith("\n}\n"):
        line = process.stdout.readline()
        assert line, "the service did not start"
        text += line
    found: str = json.loads(text)["address"]
    return found


def test_a_log_that_nobody_reads_holds_nothing_up(film: bytes) -> None:
    reading, writing = os.pipe()
    process = started(writing)
    os.close(writing)
    try:
        address = address_of(process)
        with httpx.Client(base_url=address, timeout=60) as client:
            for _ in range(600):  # a pipe holds 64 KiB, some 400 lines
                assert client.get("/v1/model").status_code == 200
            assert client.post("/v1/predict", content=film, headers=JPEG).status_code == 200
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=60) == 0
    finally:
        process.kill()
        process.communicate()
        os.close(reading)


@pytest.mark.parametrize("closed", ["2>&-", "reader gone"])
def test_a_closed_log_ends_nothing(film: bytes, closed: str) -> None:
    reading, writing = os.pipe()
    command = f"exec {PROGRAM} serve --bundle {BUNDLE} --port 0 --json {closed if '>' in closed else ''}"
    process = subprocess.Popen(["bash", "-c", command], stdout=subprocess.PIPE, stderr=writing, text=True)
    os.close(writing)
    try:
        address = address_of(process)
        os.close(reading)
        for _ in range(20):
            assert httpx.post(f"{address}/v1/predict", content=film, headers=JPEG, timeout=60).status_code == 200
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=60) == 0
    finally:
        process.kill()
        process.communicate()


def test_as_many_places_as_files_may_be_open(film: bytes, tmp_path: Path) -> None:
    with (tmp_path / "log").open("w") as log:
        process = started(log.fileno(), limit="ulimit -n 64;")
        try:
            address = address_of(process)
            host, port = address.removeprefix("http://").split(":")
            held = [socket.create_connection((host, int(port)), timeout=60) for _ in range(200)]
            assert httpx.post(f"{address}/v1/predict", content=film, headers=JPEG, timeout=60).status_code == 200
            for each in held:
                each.close()
        finally:
            process.kill()
            process.communicate()
    assert (tmp_path / "log").stat().st_size < 200_000


def test_too_little_memory_is_a_sentence() -> None:
    process = started(subprocess.PIPE, limit="ulimit -v 600000;")
    out, errors = process.communicate(timeout=120)
    assert process.returncode in {1, 2}
    assert "Traceback" not in errors
    assert "memory" in json.loads(out)["error"]["message"]


def test_every_answer_after_the_order_to_end_ends_its_connection(film: bytes) -> None:
    process = started(subprocess.DEVNULL)
    statuses: list[tuple[int, str]] = []
    lost: list[str] = []

    def ask(address: str) -> None:
        with httpx.Client(base_url=address, timeout=60) as client:
            while True:
                try:
                    answer = client.post("/v1/predict", content=film, headers=JPEG)
                except httpx.ConnectError:
                    return
                except httpx.HTTPError as error:
                    lost.append(repr(error))
                    return
                statuses.append((answer.status_code, answer.headers.get("connection", "")))

    try:
        address = address_of(process)
        threads = [threading.Thread(target=ask, args=(address,)) for _ in range(12)]
        for thread in threads:
            thread.start()
        while len(statuses) < 50:
            threads[0].join(0.01)
        process.send_signal(signal.SIGTERM)
        for thread in threads:
            thread.join()
        assert process.wait(timeout=60) == 0
    finally:
        process.kill()
        process.communicate()
    assert lost == []
    assert {status for status, _ in statuses} <= {200, 503}
    assert "close" in {connection for _, connection in statuses}
