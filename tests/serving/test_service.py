"""The service over HTTP: a real uvicorn, a real bundle, real bytes."""

from __future__ import annotations

import asyncio
import dataclasses
import hashlib
import itertools
import json
import logging
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from chestxray.errors import UsageError
from chestxray.files import MEBIBYTE
from chestxray.inference.predictor import Predictor
from chestxray.schema import NOTICE, Prediction
from chestxray.serving import static
from chestxray.serving.app import ServiceSettings, create_app
from chestxray.serving.intake import MEDIA_TYPES, MULTIPART
from chestxray.serving.problems import PROBLEM_TYPES
from chestxray.serving.security import VARIABLE, HostRule, is_loopback
from chestxray.serving.server import ServeOptions, serve
from chestxray.serving.service import NDJSON
from chestxray.serving.telemetry import BackgroundHandler, JsonLines, whole_lines
from dicoms import native
from drawing import coloured, encoded, gradient, textured
from live_service import awaited, running

JPEG = {"Content-Type": "image/jpeg"}
PROBLEM = "application/problem+json"


@pytest.fixture(scope="module")
def predictor(bundle: Path) -> Predictor:
    return Predictor.load(bundle)


@pytest.fixture(scope="module")
def service(predictor: Predictor) -> Iterator[str]:
    with running(predictor) as address:
        yield address


@pytest.fixture(scope="module")
def client(service: str) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=service, timeout=60) as opened:
        yield opened


def problem_of(response: httpx.Response, status: int, kind: str) -> dict[str, Any]:
    """The problem document, once it is found complete."""
    assert response.status_code == status
    assert response.headers["Content-Type"] == PROBLEM
    document: dict[str, Any] = response.json()
    assert set(document) == {"type", "title", "status", "detail", "instance", "notice"}
    assert document["type"] == f"/docs#{kind}"
    assert document["status"] == status
    assert document["detail"]
    assert document["instance"] == f"urn:uuid:{response.headers['X-Request-Id']}"
    assert document["notice"] == NOTICE
    return document


def host_and_port(address: str) -> tuple[str, int]:
    host, port = address.removeprefix("http://").split(":")
    return host, int(port)


# --------------------------------------------------------------------------- films


@pytest.mark.parametrize("media_type", MEDIA_TYPES)
def test_a_film_is_answered_as_the_predictor_answers_it(
    client: httpx.Client, predictor: Predictor, film: bytes, media_type: str
) -> None:
    response = client.post("/v1/predict", content=film, headers={"Content-Type": media_type})
    assert response.status_code == 200
    assert response.headers["Content-Type"] == "application/json"
    assert Prediction.from_json(response.text) == predictor.predict(film, "film")


def test_the_answer_names_the_film_the_model_and_the_notice(
    client: httpx.Client, predictor: Predictor, film: bytes
) -> None:
    answer = client.post("/v1/predict", content=film, headers=JPEG).json()
    assert answer["film_sha256"] == hashlib.sha256(film).hexdigest()
    assert answer["model_sha256"] == predictor.info.model_sha256
    assert answer["notice"] == NOTICE


def test_a_png_is_answered_too(client: httpx.Client) -> None:
    response = client.post("/v1/predict", content=encoded(gradient()), headers={"Content-Type": "image/png"})
    assert response.status_code == 200


def test_a_dicom_film_is_answered_as_its_pixels_are(client: httpx.Client, predictor: Predictor) -> None:
    data = native(textured(3, 200, 240))
    answer = client.post("/v1/predict", content=data, headers={"content-type": "application/octet-stream"})
    assert answer.status_code == 200, answer.text
    assert answer.json()["probability"] == pytest.approx(predictor.predict(data, "film").probability, abs=1e-5)


def test_a_dicom_film_without_its_decoders_is_refused_with_the_remedy(
    predictor: Predictor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "pydicom.py").write_text("raise ModuleNotFoundError(name='pydicom')")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))  # which the decoding processes are started with
    data = native(textured(3, 200, 240))
    with running(predictor) as address:
        answer = httpx.post(
            f"{address}/v1/predict", content=data, headers={"content-type": "application/octet-stream"}, timeout=60
        )
    assert "chestxray[dicom]" in problem_of(answer, 415, "unsupported-format")["detail"]


def test_each_operating_point_applies_its_own_threshold(
    client: httpx.Client, predictor: Predictor, film: bytes
) -> None:
    for point in predictor.info.operating_points:
        answer = client.post(f"/v1/predict?operating_point={point.name}", content=film, headers=JPEG).json()
        assert (answer["operating_point"], answer["threshold"]) == (point.name, point.threshold)
        assert (answer["label"] == "pneumonia") == (answer["probability"] >= point.threshold)


def test_an_unknown_operating_point_is_refused_and_the_known_ones_named(
    client: httpx.Client, predictor: Predictor, film: bytes
) -> None:
    response = client.post("/v1/predict?operating_point=hopeful", content=film, headers=JPEG)
    detail = problem_of(response, 422, "unknown-operating-point")["detail"]
    assert "'hopeful'" in detail
    assert all(point.name in detail for point in predictor.info.operating_points)


def test_a_heat_map_comes_only_where_it_is_asked_for(client: httpx.Client, predictor: Predictor, film: bytes) -> None:
    assert client.post("/v1/predict", content=film, headers=JPEG).json()["heatmap"] is None
    drawn = client.post("/v1/predict?heatmap=1", content=film, headers=JPEG).json()["heatmap"]
    assert drawn == predictor.predict(film, "film", heatmap=True).heatmap
    assert drawn


def test_a_film_that_must_not_be_classified_is_an_answer_with_a_closed_gate(client: httpx.Client) -> None:
    answer = client.post("/v1/predict", content=encoded(coloured()), headers={"Content-Type": "image/png"}).json()
    assert answer["gate"]["accepted"] is False
    assert "coloured" in answer["gate"]["reason"]
    assert (answer["probability"], answer["label"]) == (None, None)


def test_an_age_that_is_required_and_not_stated_is_a_refusal_else_a_note(
    client: httpx.Client, bundle: Path, film: bytes
) -> None:
    assert client.post("/v1/predict", content=film, headers=JPEG).json()["notes"] == [
        "age not stated; the model is for 28 days to under 12 years"
    ]
    with running(Predictor.load(bundle, require_age=True)) as address:
        answer = httpx.post(f"{address}/v1/predict", content=film, headers=JPEG, timeout=30).json()
    assert not answer["gate"]["accepted"]
    assert answer["gate"]["reason"].startswith("its file states no age")


def test_many_films_at_once_each_get_their_own_answer(
    client: httpx.Client, predictor: Predictor, film_paths: tuple[Path, ...]
) -> None:
    films = [path.read_bytes() for path in film_paths[:6]]
    answers: dict[int, Prediction] = {}

    def ask(index: int) -> None:
        body = client.post("/v1/predict", content=films[index], headers=JPEG).text
        answers[index] = Prediction.from_json(body)

    threads = [threading.Thread(target=ask, args=(index,)) for index in range(len(films))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for index, data in enumerate(films):
        expected = predictor.predict(data, "film")
        assert expected.probability is not None
        # Films that share a forward pass are summed in another order.
        assert answers[index].probability == pytest.approx(expected.probability, abs=1e-5)
        assert answers[index].gate.score == pytest.approx(expected.gate.score, abs=1e-5)
        assert dataclasses.replace(answers[index], probability=expected.probability, gate=expected.gate) == expected


# --------------------------------------------------------------------------- refusals


def test_text_is_not_a_film(client: httpx.Client) -> None:
    response = client.post("/v1/predict", content=b"Dear colleague,", headers=JPEG)
    assert "JPEG" in problem_of(response, 415, "unsupported-format")["detail"]


def test_a_film_that_is_cut_short_says_so(client: httpx.Client, film: bytes) -> None:
    problem_of(client.post("/v1/predict", content=film[: len(film) // 2], headers=JPEG), 422, "truncated-film")


def test_an_empty_body_is_refused(client: httpx.Client) -> None:
    problem_of(client.post("/v1/predict", content=b"", headers=JPEG), 422, "empty-body")


@pytest.mark.parametrize("media_type", ["text/plain", "application/json", "multipart/form-data", ""])
def test_other_content_types_are_refused(client: httpx.Client, film: bytes, media_type: str) -> None:
    headers = {"Content-Type": media_type} if media_type else {}
    problem_of(client.post("/v1/predict", content=film, headers=headers), 415, "unsupported-content")


def test_an_encoded_body_is_refused(client: httpx.Client, film: bytes) -> None:
    response = client.post("/v1/predict", content=film, headers=JPEG | {"Content-Encoding": "gzip"})
    problem_of(response, 415, "unsupported-content")


def test_a_body_over_the_limit_is_refused_by_its_announced_length(client: httpx.Client, film: bytes) -> None:
    body = film + bytes(20 * MEBIBYTE + 1 - len(film))
    response = client.post("/v1/predict", content=body, headers=JPEG)
    assert f"{len(body):,} bytes" in problem_of(response, 413, "film-too-large")["detail"]


def test_a_body_of_no_announced_length_is_refused_at_the_first_byte_too_many(client: httpx.Client) -> None:
    def endless() -> Iterator[bytes]:
        yield from (bytes(MEBIBYTE) for _ in range(22))

    problem_of(client.post("/v1/predict", content=endless(), headers=JPEG), 413, "film-too-large")


def test_a_body_of_exactly_the_limit_is_classified(predictor: Predictor, film: bytes) -> None:
    with running(predictor, ServiceSettings(max_body=len(film))) as address:
        assert httpx.post(f"{address}/v1/predict", content=film, headers=JPEG, timeout=60).status_code == 200
        response = httpx.post(f"{address}/v1/predict", content=film + b"\0", headers=JPEG, timeout=60)
        problem_of(response, 413, "film-too-large")


def test_a_body_that_never_ends_runs_out_of_time(predictor: Predictor) -> None:
    with (
        running(predictor, ServiceSettings(body_seconds=0.2)) as address,
        socket.create_connection(host_and_port(address), timeout=30) as connection,
    ):
        connection.sendall(
            b"POST /v1/predict HTTP/1.1\r\nHost: localhost\r\nContent-Type: image/jpeg\r\n"
            b"Content-Length: 1000\r\n\r\n\xff\xd8\xff"
        )
        assert connection.recv(64).startswith(b"HTTP/1.1 408 ")


def test_a_misspelt_parameter_is_refused_instead_of_ignored(client: httpx.Client, film: bytes) -> None:
    response = client.post("/v1/predict?operating-point=screening", content=film, headers=JPEG)
    assert "operating-point" in problem_of(response, 422, "invalid-request")["detail"]


def test_a_parameter_of_the_wrong_type_is_refused(client: httpx.Client, film: bytes) -> None:
    problem_of(client.post("/v1/predict?heatmap=perhaps", content=film, headers=JPEG), 422, "invalid-request")


def test_unknown_addresses_and_methods_are_problems_too(client: httpx.Client) -> None:
    problem_of(client.get("/v2/predict"), 404, "not-found")
    response = client.get("/v1/predict")
    problem_of(response, 405, "wrong-method")
    assert response.headers["Allow"] == "POST"


def test_an_address_in_the_body_is_refused_and_never_opened(client: httpx.Client) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(0.3)
        port = listener.getsockname()[1]
        address = f"http://127.0.0.1:{port}/film.jpg"
        bodies = [json.dumps({"url": address, "instances": [address]}), address, f'<img src="{address}">']
        for content_type in ("application/json", "text/uri-list", *MEDIA_TYPES):
            for body in bodies:
                headers = {"Content-Type": content_type, "Location": address, "Referer": address}
                response = client.post("/v1/predict", content=body, headers=headers)
                assert response.status_code == 415
        with pytest.raises(TimeoutError):
            listener.accept()


@given(data=st.binary(min_size=1, max_size=300), head=st.sampled_from([b"", b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n"]))
@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_no_bytes_whatever_make_the_service_fail(client: httpx.Client, data: bytes, head: bytes) -> None:
    response = client.post("/v1/predict", content=head + data, headers=JPEG)
    assert response.status_code in {200, 413, 415, 422}
    assert "Traceback" not in response.text


def test_beyond_its_queue_the_service_says_so_at_once(predictor: Predictor) -> None:
    app = create_app(predictor, ServiceSettings(workers=1, waiting=1))
    large = encoded(gradient(5000, 4900))  # decoding it takes much longer than answering "full"

    async def ask_all_at_once() -> list[httpx.Response]:
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://localhost") as asking:
            questions = (asking.post("/v1/predict", content=large, headers=JPEG) for _ in range(4))
            return await asyncio.gather(*questions)

    answers = awaited(ask_all_at_once())
    assert sorted(answer.status_code for answer in answers) == [200, 200, 503, 503]
    for refused in (answer for answer in answers if answer.status_code == 503):
        problem_of(refused, 503, "overloaded")
        assert refused.headers["Retry-After"] == "1"


# --------------------------------------------------------------------------- the other doors


def test_sagemaker_gets_the_same_answer(client: httpx.Client, film: bytes) -> None:
    assert client.get("/ping").content == b""
    asked = client.post("/invocations", content=film, headers={"Content-Type": "application/x-image"})
    assert asked.text == client.post("/v1/predict", content=film, headers=JPEG).text


@pytest.mark.parametrize(
    ("accept", "status"),
    [("application/json", 200), ("text/csv, application/json;q=0.5", 200), ("*/*", 200), ("", 200), ("text/csv", 406)],
)
def test_sagemaker_may_say_what_it_accepts(client: httpx.Client, film: bytes, accept: str, status: int) -> None:
    response = client.post("/invocations", content=film, headers=JPEG | {"Accept": accept})
    assert response.status_code == status


def test_a_batch_transform_learns_how_to_call(client: httpx.Client) -> None:
    assert client.get("/execution-parameters").json() == {
        "MaxConcurrentTransforms": ServiceSettings().workers,
        "BatchStrategy": "SINGLE_RECORD",
        "MaxPayloadInMB": 20,
    }


def test_health_and_readiness_are_told(client: httpx.Client) -> None:
    assert client.get("/healthz").json() == {"status": "alive"}
    assert client.get("/readyz").json() == {"status": "ready"}


def test_the_model_describes_itself(client: httpx.Client, predictor: Predictor) -> None:
    described = client.get("/v1/model").json()
    assert described["bundle"] == json.loads(predictor.info.to_json())
    assert described["card"] == (predictor.folder / "MODEL_CARD.md").read_text()
    assert described["max_body"] == 20 * MEBIBYTE


# --------------------------------------------------------------------------- the OpenAPI document


def test_the_document_describes_a_binary_body_and_its_refusals(client: httpx.Client, predictor: Predictor) -> None:
    document = client.get("/openapi.json").json()
    operation = document["paths"]["/v1/predict"]["post"]
    assert set(operation["requestBody"]["content"]) == {*MEDIA_TYPES, MULTIPART}
    assert {"408", "413", "415", "422", "503"} <= set(operation["responses"])
    for status, response in operation["responses"].items():
        assert set(response["content"]) == ({"application/json", NDJSON} if status == "200" else {PROBLEM})
    (point,) = (entry for entry in operation["parameters"] if entry["name"] == "operating_point")
    assert point["schema"]["enum"] == [entry.name for entry in predictor.info.operating_points]


def test_every_reference_in_the_document_leads_somewhere(client: httpx.Client) -> None:
    text = client.get("/openapi.json").text
    schemas = set(json.loads(text)["components"]["schemas"])
    wanted = set(re.findall(r'"#/components/schemas/(\w+)"', text))
    assert {"Problem", "Prediction", "ModelDescription"} <= wanted <= schemas


def test_the_document_lists_every_problem_once(client: httpx.Client) -> None:
    names = [row["name"] for row in client.get("/openapi.json").json()["x-problems"]]
    assert names == [kind.name for kind in PROBLEM_TYPES]
    assert len(set(names)) == len(names)


def test_the_keys_of_an_answer_are_those_of_the_document(client: httpx.Client, film: bytes) -> None:
    schemas = client.get("/openapi.json").json()["components"]["schemas"]
    answer = client.post("/v1/predict", content=film, headers=JPEG).json()
    assert set(answer) == set(schemas["Prediction"]["properties"])
    assert set(client.get("/v1/model").json()) == set(schemas["ModelDescription"]["properties"])
    assert set(client.get("/nowhere").json()) == set(schemas["Problem"]["properties"])


# --------------------------------------------------------------------------- the edge


@pytest.mark.parametrize("path", ["/", "/docs", "/main.js", "/v1/model", "/ping", "/nowhere"])
def test_every_answer_carries_the_protective_headers(client: httpx.Client, path: str) -> None:
    headers = client.get(path).headers
    assert "default-src 'none'" in headers["Content-Security-Policy"]
    assert "unsafe" not in headers["Content-Security-Policy"]
    assert headers["X-Content-Type-Options"] == "nosniff"
    assert headers["Referrer-Policy"] == "no-referrer"
    assert uuid.UUID(headers["X-Request-Id"]).version == 4
    assert "Server" not in headers


def test_answers_are_not_kept_by_caches(client: httpx.Client, film: bytes) -> None:
    response = client.post("/v1/predict", content=film, headers=JPEG)
    assert response.headers["Cache-Control"] == "no-store"


def test_no_two_requests_share_an_id(client: httpx.Client) -> None:
    assert len({client.get("/ping").headers["X-Request-Id"] for _ in range(20)}) == 20


def test_a_request_id_of_the_caller_is_not_believed(client: httpx.Client) -> None:
    assert client.get("/ping", headers={"X-Request-Id": "Miller, Ann"}).headers["X-Request-Id"] != "Miller, Ann"


@pytest.mark.parametrize("host", ["attacker.example", "127.0.0.1.attacker.example", "localhost.attacker.example:80"])
def test_a_name_that_is_not_ours_is_refused(client: httpx.Client, host: str) -> None:
    problem_of(client.get("/v1/model", headers={"Host": host}), 421, "unknown-host")


@pytest.mark.parametrize("host", ["localhost", "LOCALHOST:8000", "127.0.0.1:1", "[::1]:8000", "[::1]", "localhost."])
def test_the_names_of_this_machine_are_ours(host: str) -> None:
    assert HostRule().allows(host)


def test_a_service_that_others_reach_answers_to_addresses_and_its_own_name_only() -> None:
    rule = HostRule(frozenset({"xray.hospital.example"}), any_address=True)
    assert rule.allows("10.1.2.3:8000")
    assert rule.allows("[fe80::1]:8000")
    assert rule.allows("xray.hospital.example")
    assert not rule.allows("attacker.example")
    assert not rule.allows("")


def test_a_failure_that_nobody_foresaw_tells_the_caller_nothing_but_the_request_id(
    predictor: Predictor, film: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    app = create_app(predictor)

    async def ask_after_the_end() -> httpx.Response:
        async with app.router.lifespan_context(app):
            pass
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://localhost") as asking:
            return await asking.post("/v1/predict", content=film, headers=JPEG)

    response = awaited(ask_after_the_end())
    document = problem_of(response, 500, "internal-error")
    assert "Traceback" not in response.text
    assert response.headers["X-Content-Type-Options"] == "nosniff"
    lines = [json.loads(JsonLines().format(record)) for record in caplog.records]
    (failed,) = [line for line in lines if line["event"] == "failed"]
    assert document["instance"] == f"urn:uuid:{failed['request']}"
    assert failed["fault"][0] == "RuntimeError"


def test_the_log_has_one_line_a_request_and_nothing_that_a_caller_wrote(
    client: httpx.Client, film: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO, logger="chestxray.serving"):
        client.post("/v1/predict?operating_point=AnnMiller", content=film, headers=JPEG)
        client.get("/AnnMiller.jpg")
        response = client.post("/v1/predict", content=b"AnnMiller", headers=JPEG | {"X-Request-Id": "AnnMiller"})
        client.get("/healthz")  # a request is logged behind its answer, but before the next one is looked at
    lines = [JsonLines().format(record) for record in caplog.records if record.name == "chestxray.serving"]
    del lines[3:]
    assert len(lines) == 3
    assert "AnnMiller" not in "".join(lines)
    last = json.loads(lines[2])
    assert (last["event"], last["route"], last["status"]) == ("request", "/v1/predict", 415)
    assert last["request"] == response.headers["X-Request-Id"]


@given(st.lists(st.integers(1, 60), max_size=30))
def test_lines_of_the_log_are_written_in_blocks_that_a_pipe_takes_whole(lengths: list[int]) -> None:
    lines = [b"x" * (length - 1) + b"\n" for length in lengths]
    blocks = list(whole_lines(lines, 40))
    assert b"".join(blocks) == b"".join(lines)
    assert all(block.endswith(b"\n") and (len(block) <= 40 or block.count(b"\n") == 1) for block in blocks)
    for block, after in itertools.pairwise(blocks):
        assert len(block) + after.index(b"\n") + 1 > 40, "as few blocks as there can be"


def test_two_logs_that_share_a_pipe_do_not_mix_their_lines() -> None:
    """As those of several processes do; the reader is slow, so that the pipe is full most of the time."""
    ours, theirs = os.pipe()
    logs = [BackgroundHandler(theirs) for _ in range(2)]
    record = logging.makeLogRecord({"msg": "x" * 700, "levelname": "INFO"})

    def write() -> None:
        for _ in range(600):
            for one in logs:
                one.emit(record)
        for one in logs:
            while one._lines.unfinished_tasks:  # noqa: SLF001 - flush() gives up on slow readers
                threading.Event().wait(0.005)
        os.close(theirs)

    writer = threading.Thread(target=write)
    writer.start()
    with os.fdopen(ours, "rb", buffering=0) as reader:
        found = b"".join(iter(lambda: reader.read(3000), b""))
    writer.join()
    assert [json.loads(line)["event"] for line in found.splitlines()] == ["x" * 700] * 1200


# --------------------------------------------------------------------------- the page's files


def test_every_file_of_the_page_is_served_and_nothing_else(client: httpx.Client) -> None:
    files = {name: content for name, content, _ in static.page_files()}
    assert {"index.html", "main.js", "style.css"} <= set(files)
    for name, content in files.items():
        address = {"index.html": "", "docs.html": "docs"}.get(name, name)
        response = client.get(f"/{address}")
        assert (response.status_code, response.content) == (200, content)
    for outside in ("/frame.html", "/../app.py", "/%2e%2e/app.py", "/examples/", "/..%2fapp.py", "//etc/passwd"):
        assert client.get(outside).status_code == 404


def test_a_file_that_did_not_change_is_not_sent_again(client: httpx.Client) -> None:
    tag = client.get("/main.js").headers["ETag"]
    for known in (tag, f"W/{tag}", f'"other", {tag}', "*"):
        again = client.get("/main.js", headers={"If-None-Match": known})
        assert (again.status_code, again.content) == (304, b"")
    assert client.get("/main.js", headers={"If-None-Match": '"other"'}).status_code == 200


@pytest.mark.parametrize(
    ("accepted", "packed"),
    [
        ("gzip", True),
        ("br, gzip;q=0.5", True),
        ("*", True),
        ("gzip;q=0", False),
        ("gzip; q=0.000, *", False),
        ("x-gzip", False),
    ],
)
def test_a_file_is_packed_for_whoever_takes_gzip(client: httpx.Client, accepted: str, packed: bool) -> None:
    answer = client.get("/main.js", headers={"Accept-Encoding": accepted})
    assert (answer.headers.get("Content-Encoding") == "gzip") is packed


def test_the_page_names_no_other_origin() -> None:
    for path in (path for path in static.PAGE_FOLDER.iterdir() if path.is_file()):
        others = set(re.findall(r"(?:https?:)?//[\w.-]+\.\w+", path.read_text())) - {"http://www.w3.org"}
        assert others == set(), path.name


def test_the_examples_are_small_films_that_the_service_accepts(client: httpx.Client) -> None:
    examples = sorted(static.EXAMPLES.glob("*.jpg"))
    assert len(examples) == 3
    for path in examples:
        assert path.stat().st_size < 25_000
        answer = client.post("/v1/predict", content=path.read_bytes(), headers=JPEG).json()
        assert answer["gate"]["accepted"]


# --------------------------------------------------------------------------- the process


SERVE = """
import sys
from pathlib import Path
from chestxray.serving.server import ServeOptions, serve
serve(Path(sys.argv[1]), ServeOptions(port=0), ready=lambda address: print(address, flush=True))
print("ended")
"""


def test_a_termination_signal_lets_the_film_at_hand_finish(bundle: Path, film: bytes) -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", SERVE, str(bundle)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    address = process.stdout.readline().strip()
    with socket.create_connection(host_and_port(address), timeout=30) as connection:
        head = (
            f"POST /v1/predict HTTP/1.1\r\nHost: localhost\r\nContent-Type: image/jpeg\r\nContent-Length: {len(film)}"
        )
        connection.sendall(f"{head}\r\nExpect: 100-continue\r\n\r\n".encode())
        assert connection.recv(1000).startswith(b"HTTP/1.1 100 ")  # the service is reading the body by now
        process.send_signal(signal.SIGTERM)
        connection.sendall(film)
        assert connection.recv(64).startswith(b"HTTP/1.1 200 ")
    out, errors = process.communicate(timeout=30)
    assert (process.returncode, out) == (0, "ended\n")
    assert "Traceback" not in errors


def test_a_port_that_is_taken_is_one_clear_error(bundle: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(UsageError, match=rf"port {port} on 127\.0\.0\.1 is taken"):
            serve(bundle, ServeOptions(port=port))


def test_an_address_that_is_not_ours_is_one_clear_error(bundle: Path) -> None:
    with pytest.raises(UsageError, match=r"192\.0\.2\.1, port 8000: cannot be listened on"):
        serve(bundle, ServeOptions("192.0.2.1", platform=True))


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.0.2.1", "xray.hospital.example"])
def test_other_machines_are_let_in_only_with_a_key(bundle: Path, host: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(VARIABLE, raising=False)
    with pytest.raises(UsageError, match="chestxray key NAME"):
        serve(bundle, ServeOptions(host))


@pytest.mark.parametrize("host", ["127.0.0.1", "127.0.0.53", "::1", "localhost"])
def test_loopback_needs_no_permission(host: str) -> None:
    assert is_loopback(host)


def test_serving_never_loads_torch(bundle: Path) -> None:
    code = "import sys, chestxray.serving.server; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=os.environ)
    assert done.stdout.strip() == "False"
