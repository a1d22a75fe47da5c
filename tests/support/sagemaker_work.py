"""What the emulator's jobs and endpoints really do: the real training toolkit, the real service, films from real S3."""

from __future__ import annotations

import contextlib
import io
import json
import os
import re
import signal
import socket
import subprocess
import sys
import tarfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final

import boto3

from chestxray.aws import images
from chestxray.aws.jobs import TOOLKIT
from chestxray.errors import FilmError
from chestxray.inference.predictor import Predictor

BIN: Final = Path(sys.executable).parent
READY_S: Final = 120.0  # in which a container has to answer /ping
HOST: Final = {"Host": "model.aws.local:8080"}  # what SageMaker calls a container, whatever port it answers on
GRACE_S: Final = 10.0  # between SIGTERM and SIGKILL; AWS gives two minutes
LOGS: Final = {"training": "/aws/sagemaker/TrainingJobs", "transform": "/aws/sagemaker/TransformJobs"}


def split_address(address: str) -> tuple[str, str]:
    bucket, _, key = address.removeprefix("s3://").partition("/")
    return bucket, key


def download(address: str, folder: Path) -> int:
    """What lies below a prefix goes into the folder, under its names behind the prefix. Returns: how much."""
    bucket, prefix = split_address(address)
    s3, count = boto3.client("s3"), 0
    for page in s3.get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=prefix):
        for found in page.get("Contents", ()):
            name = found["Key"].removeprefix(prefix).lstrip("/")
            path = folder / name if name else folder / Path(found["Key"]).name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(s3.get_object(Bucket=bucket, Key=found["Key"])["Body"].read())
            count += 1
    return count


def upload(folder: Path, address: str) -> None:
    bucket, prefix = split_address(address)
    s3 = boto3.client("s3")
    for path in sorted(folder.rglob("*")):
        if path.is_file() and not path.name.endswith(".part"):
            s3.put_object(Bucket=bucket, Key=f"{prefix}/{path.relative_to(folder).as_posix()}", Body=path.read_bytes())


def put_archive(folder: Path, address: str) -> None:
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w:gz") as tar:
        for path in sorted(folder.rglob("*")):
            tar.add(path, path.relative_to(folder).as_posix())
    bucket, key = split_address(address)
    boto3.client("s3").put_object(Bucket=bucket, Key=key, Body=packed.getvalue())


def unpacked(address: str, folder: Path) -> Path:
    bucket, key = split_address(address)
    data = boto3.client("s3").get_object(Bucket=bucket, Key=key)["Body"].read()
    with tarfile.open(fileobj=io.BytesIO(data)) as tar:
        tar.extractall(folder, filter="data")
    return folder


class Log:
    """A stream of CloudWatch's logs."""

    def __init__(self, group: str, stream: str) -> None:
        self._client = boto3.client("logs")
        self._named = {"logGroupName": group, "logStreamName": stream}
        self.lines: list[str] = []
        for create in (
            lambda: self._client.create_log_group(logGroupName=group),
            lambda: self._client.create_log_stream(**self._named),
        ):
            with contextlib.suppress(self._client.exceptions.ResourceAlreadyExistsException):
                create()

    def add(self, line: str) -> None:
        self.lines.append(line)
        event = {"timestamp": round(time.time() * 1000), "message": line or " "}
        self._client.put_log_events(**self._named, logEvents=[event])


# --------------------------------------------------------------------------- training


class TrainingRun:
    """One start of a training container: a made tree, and the toolkit's own ``train`` in it."""

    def __init__(self, request: Mapping[str, Any], tree: Path) -> None:
        self.request, self.tree = request, tree
        self.process: subprocess.Popen[str] | None = None

    def prepare(self) -> None:
        """Films, checkpoints and the three files of configuration. Raises: ValueError, which fails the job."""
        channels = {}
        for channel in self.request["InputDataConfig"]:
            source = channel["DataSource"]["S3DataSource"]["S3Uri"]
            folder = self.tree / "input/data" / channel["ChannelName"]
            if not download(source, folder):
                raise ValueError(f"ClientError: Data download failed: no objects below {source}")
            channels[channel["ChannelName"]] = {"TrainingInputMode": "File", "S3DistributionType": "FullyReplicated"}
        host = {"current_host": "localhost", "hosts": ["localhost"], "network_interface_name": "lo"}
        group = {"instance_group_name": "homogeneousCluster", "instance_type": "local", "hosts": ["localhost"]}
        resources = host | {"current_group_name": "homogeneousCluster", "instance_groups": [group]}
        for name, content in {
            "hyperparameters": self.request["HyperParameters"],
            "inputdataconfig": channels,
            "resourceconfig": resources,
        }.items():
            path = self.tree / "input/config" / f"{name}.json"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(json.dumps(content))
        for name in ("model", "output/data", "checkpoints"):
            (self.tree / name).mkdir(parents=True, exist_ok=True)
        download(self.request["CheckpointConfig"]["S3Uri"], self.tree / "checkpoints")

    def run(self, log: Log) -> int:
        """The toolkit's exit status."""
        environment = {
            **os.environ,
            "PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}",
            "SAGEMAKER_BASE_DIR": str(self.tree),
            "SAGEMAKER_TRAINING_MODULE": TOOLKIT,  # as Amazon's image has it
            **self.request.get("Environment", {}),
            "TRAINING_JOB_NAME": self.request["TrainingJobName"],
            "PIP_NO_INDEX": "1",  # what the source archive needs has to be here
            "PIP_DISABLE_PIP_VERSION_CHECK": "1",
            "PIP_ROOT_USER_ACTION": "ignore",
            "OMP_NUM_THREADS": "1",
            "PYTHONWARNINGS": "ignore",
        }
        self.process = subprocess.Popen(
            [BIN / "train"],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
        assert self.process.stdout is not None
        with self.process.stdout as lines:
            for line in lines:
                log.add(line.rstrip("\n"))
        return self.process.wait()

    def end(self) -> None:
        """As when an instance is taken away: SIGTERM to the first process, then SIGKILL to all of them."""
        if self.process is None or self.process.poll() is not None:
            return
        self.process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(GRACE_S)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)

    def keep_checkpoints(self) -> None:
        upload(self.tree / "checkpoints", self.request["CheckpointConfig"]["S3Uri"])

    @property
    def failure(self) -> str:
        path = self.tree / "output/failure"
        return path.read_text()[:1024] if path.is_file() else ""


def final_metrics(definitions: list[dict[str, str]], lines: list[str]) -> list[dict[str, Any]]:
    """As CloudWatch reads them off the lines."""
    found = {}
    for line in lines:
        for definition in definitions:
            if match := re.search(definition["Regex"], line):
                found[definition["Name"]] = float(match[1])
    now = time.time()
    return [{"MetricName": name, "Value": value, "Timestamp": now} for name, value in found.items()]


# --------------------------------------------------------------------------- hosting


def program(folder: Path) -> Path:
    """What the Dockerfile copies into the image, copied here."""
    for name, data in images.context().items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    return folder


def entry_point() -> list[str]:
    """What the image starts, by this Python."""
    text = (Path(images.__file__).parent / "Dockerfile").read_text()
    assert not re.search(r"^USER (?!root)", text, re.MULTILINE), "SageMaker mounts /opt/ml for root"
    words = [json.loads(re.search(rf"^{word} (.*)$", text, re.MULTILINE)[1]) for word in ("ENTRYPOINT", "CMD")]  # type: ignore[index]
    return [sys.executable, *words[0][1:], *words[1]]


class Container:
    """Our container as SageMaker starts it, but not in /opt/ml/model and /opt/program, which are not ours to write."""

    def __init__(self, model: Path, code: Path, log: Path, environment: Mapping[str, str]) -> None:
        with socket.create_server(("127.0.0.1", 0)) as free:
            port = free.getsockname()[1]
        self.address = f"http://127.0.0.1:{port}"
        given = {"CHESTXRAY_BUNDLE": str(model), "SAGEMAKER_BIND_TO_PORT": str(port)}
        given |= {"PYTHONPATH": str(code)}
        with log.open("wb") as out:
            self.process = subprocess.Popen(
                entry_point(), env={**os.environ, **given, **environment}, cwd=code, stdout=out, stderr=out
            )

    def becomes_ready(self) -> bool:
        """Whether /ping says 200 in time."""
        until = time.monotonic() + READY_S
        while time.monotonic() < until and self.process.poll() is None:
            try:
                ping = urllib.request.Request(f"{self.address}/ping", headers=HOST)  # noqa: S310 - loopback
                with urllib.request.urlopen(ping, timeout=2) as answer:  # noqa: S310
                    return bool(answer.status == 200)
            except OSError:
                time.sleep(0.1)
        return False

    def must_become_ready(self) -> None:
        """Raises: ValueError, which fails the job."""
        if not self.becomes_ready():
            raise ValueError("ClientError: the container did not pass the ping health check")

    def call(self, body: bytes, headers: Mapping[str, str], timeout: float) -> tuple[int, bytes, str]:
        """Status, body and content type of /invocations."""
        request = urllib.request.Request(f"{self.address}/invocations", body, {**headers, **HOST})  # noqa: S310
        try:
            with urllib.request.urlopen(request, timeout=timeout) as answer:  # noqa: S310
                return answer.status, answer.read(), answer.headers["Content-Type"]
        except urllib.error.HTTPError as error:
            with error:
                return error.code, error.read(), error.headers["Content-Type"]

    def close(self) -> None:
        self.process.terminate()
        self.process.wait(30)


class Within:
    """A container's answers, given in this process: the films are classified, and no server is started."""

    def __init__(self, model: Path, *, is_transform: bool) -> None:
        self._predictor = Predictor.load(model)
        self._is_transform = is_transform  # then what cannot be classified is a line of the output as well

    def becomes_ready(self) -> bool:
        return True

    def must_become_ready(self) -> None: ...

    def call(self, body: bytes, _headers: Mapping[str, str], _timeout: float) -> tuple[int, bytes, str]:
        try:
            return 200, self._predictor.predict(body, "film").to_json().encode(), "application/json"
        except FilmError as error:
            status = 200 if self._is_transform else error.http_status
            return status, json.dumps({"detail": str(error)}).encode(), "application/problem+json"

    def close(self) -> None: ...


def transform(request: Mapping[str, Any], container: Container | Within, stopped: Callable[[], bool]) -> None:
    """Every object to the container, every answer to ``.out``. Raises: ValueError, which fails the job."""
    source, target = request["TransformInput"], request["TransformOutput"]["S3OutputPath"]
    bucket, prefix = split_address(source["DataSource"]["S3DataSource"]["S3Uri"])
    out_bucket, out_prefix = split_address(target)
    s3 = boto3.client("s3")
    limit = request.get("MaxPayloadInMB", 6) * 2**20
    headers = {"Content-Type": source["ContentType"], "Accept": request["TransformOutput"].get("Accept", "*/*")}
    for page in s3.get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=prefix):
        for found in page.get("Contents", ()):
            if stopped():
                return
            if found["Size"] > limit:
                raise ValueError(f"ClientError: {found['Key']} is larger than MaxPayloadInMB")
            body = s3.get_object(Bucket=bucket, Key=found["Key"])["Body"].read()
            status, answer, _ = container.call(body, headers, 600)
            if status != 200:
                raise ValueError(f"AlgorithmError: {found['Key']}: the container answered {status}")
            key = f"{out_prefix.rstrip('/')}/{found['Key'].removeprefix(prefix).lstrip('/')}.out"
            s3.put_object(Bucket=out_bucket, Key=key, Body=answer)
