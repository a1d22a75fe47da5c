"""SageMaker's contract: a container started as it starts them, and the real boto3 against a local service."""

from __future__ import annotations

import io
import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import boto3
import httpx
import pytest
from botocore.config import Config

from chestxray.errors import UsageError
from chestxray.inference.predictor import Predictor
from chestxray.schema import Prediction
from chestxray.serving.server import MODEL, container_options
from chestxray.serving.service import ServiceSettings
from live_service import running

JPEG = {"Content-Type": "image/jpeg"}


@pytest.fixture(scope="module")
def predictor(bundle: Path) -> Predictor:
    return Predictor.load(bundle)


@pytest.fixture(scope="module")
def address(predictor: Predictor) -> Iterator[str]:
    with running(predictor) as found:
        yield found


def runtime(address: str) -> Any:
    """boto3's client as users have it, signing and all, at a local address."""
    return boto3.client(
        "sagemaker-runtime",
        endpoint_url=address,
        region_name="eu-central-1",
        aws_access_key_id="AKIAEXAMPLE",
        aws_secret_access_key="not-a-secret",  # noqa: S106
        config=Config(retries={"total_max_attempts": 1}, parameter_validation=True),
    )


def test_boto3_gets_the_answer_that_the_predictor_gives(address: str, predictor: Predictor, film: bytes) -> None:
    answer = runtime(address).invoke_endpoint(
        EndpointName="pneumonia", ContentType="application/x-image", Accept="application/json", Body=film
    )
    assert answer["ContentType"] == "application/json"
    found, expected = Prediction.from_json(answer["Body"].read().decode()), predictor.predict(film, "film")
    assert found.film_sha256 == expected.film_sha256
    assert found.probability == pytest.approx(expected.probability, abs=1e-5)


def test_boto3_may_stream_a_film(address: str, film: bytes) -> None:
    answer = runtime(address).invoke_endpoint(EndpointName="any-2", ContentType="image/jpeg", Body=io.BytesIO(film))
    assert answer["ResponseMetadata"]["HTTPStatusCode"] == 200


def test_boto3_sees_a_refusal_as_its_own_kind_of_error_with_the_reason(address: str) -> None:
    client = runtime(address)
    with pytest.raises(client.exceptions.ModelError, match="not a DICOM, JPEG") as caught:
        client.invoke_endpoint(EndpointName="pneumonia", ContentType="image/jpeg", Body=b"Dear colleague")
    assert caught.value.response["ResponseMetadata"]["HTTPStatusCode"] == 415


def test_a_name_that_no_endpoint_can_have_is_refused(address: str, film: bytes) -> None:
    answer = httpx.post(f"{address}/endpoints/-x/invocations", content=film, headers=JPEG, timeout=60)
    assert answer.status_code == 422


def test_a_batch_transform_gets_one_line_a_film_and_goes_on_after_an_unreadable_one(
    predictor: Predictor, film: bytes
) -> None:
    with running(predictor, ServiceSettings(transform=True)) as address:
        answers = [
            httpx.post(f"{address}/invocations", content=data, headers=JPEG, timeout=60)
            for data in (film, film[:999], b"x", film)
        ]
    assert [answer.status_code for answer in answers] == [200] * 4
    lines = "".join(answer.text for answer in answers).splitlines()
    assert [json.loads(line).get("status") for line in lines] == [None, 422, 415, None]
    assert Prediction.from_json(lines[3]).film_sha256 == predictor.predict(film, "film").film_sha256


@pytest.mark.parametrize(
    ("environment", "port", "transform"),
    [
        ({}, 8080, False),
        ({"SAGEMAKER_BIND_TO_PORT": "9000"}, 9000, False),
        ({"SAGEMAKER_BATCH": "true"}, 8080, True),
        ({"SAGEMAKER_BATCH": "false", "SAGEMAKER_BIND_TO_PORT": ""}, 8080, False),
    ],
)
def test_a_container_is_told_by_its_environment(environment: dict[str, str], port: int, transform: bool) -> None:
    options = container_options(environment)
    assert (options.host, options.port, options.transform, options.platform) == ("0.0.0.0", port, transform, True)


@pytest.mark.parametrize("port", ["http", "0", "65536", "-1", "80.5"])
def test_a_port_that_is_none_is_one_clear_error(port: str) -> None:
    with pytest.raises(UsageError, match="SAGEMAKER_BIND_TO_PORT"):
        container_options({"SAGEMAKER_BIND_TO_PORT": port})


def test_a_container_serves_as_sagemaker_starts_it_and_ends_when_told(bundle: Path, film: bytes) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    command = [Path(sys.executable).with_name("chestxray"), "serve", "--container", "--json", "serve"]
    settings = {"CHESTXRAY_BUNDLE": str(bundle), "SAGEMAKER_BIND_TO_PORT": str(port)}
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=os.environ | settings
    )
    assert process.stdout is not None
    while '"address"' not in (line := process.stdout.readline()):
        assert line or process.poll() is None, process.communicate()[1]
    assert json.loads(f"{{{line.strip().rstrip(',')}}}")["address"] == f"http://0.0.0.0:{port}"
    address = f"http://127.0.0.1:{port}"
    for host in ("model.aws.local:8080", "container-0.local:8080", "169.254.255.131:8080"):
        assert httpx.get(f"{address}/ping", headers={"Host": host}, timeout=60).status_code == 200
    assert httpx.post(f"{address}/invocations", content=film, headers=JPEG, timeout=30).status_code == 200
    process.send_signal(signal.SIGTERM)
    errors = process.communicate(timeout=30)[1]
    assert process.returncode == 0, errors
    assert {json.loads(line)["event"] for line in errors.splitlines()} == {"request"}


def test_a_word_that_is_no_work_is_refused_and_outside_a_container_all_are() -> None:
    for words in (["serve", "--container", "sing"], ["serve", "serve"]):
        command = [Path(sys.executable).with_name("chestxray"), *words]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert (done.returncode, f"takes no argument {words[-1]!r}" in done.stderr) == (2, True), done.stderr


def test_without_a_bundle_a_container_names_the_folder_where_it_belongs(tmp_path: Path) -> None:
    done = subprocess.run(
        [Path(sys.executable).with_name("chestxray"), "serve", "--container"],
        capture_output=True,
        text=True,
        check=False,
        cwd=tmp_path,
        env={name: value for name, value in os.environ.items() if name != "CHESTXRAY_BUNDLE"},
    )
    assert done.returncode == 1
    assert str(MODEL) in done.stderr
