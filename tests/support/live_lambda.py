"""AWS Lambda's Runtime API on loopback, and the real runtime client as the process that asks it.

Source: AWS Lambda developer guide, "Using the Lambda runtime API for custom runtimes".
"""

from __future__ import annotations

import base64
import json
import os
import queue
import subprocess
import sys
import time
import urllib.parse
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

from stand_in import StandIn, serving

MAX_EVENT: Final = 6 * 2**20  # bytes of a synchronous event, and of its answer; Lambda takes no more
EVENTS: Final = Path(__file__).with_name("events")  # as AWS documents them, one a payload version and kind of API
PREFIX: Final = "/2018-06-01/runtime"


def event(
    version: str = "http_api_2",
    method: str = "POST",
    path: str = "/v1/predict",
    body: bytes = b"",
    query: Mapping[str, str] | None = None,
    **headers: str,
) -> dict[str, Any]:
    """A recorded event with another request in it."""
    found: dict[str, Any] = json.loads((EVENTS / f"{version}.json").read_text())
    if version == "http_api_2":
        found["rawPath"] = found["requestContext"]["http"]["path"] = path
        found["requestContext"]["http"]["method"] = method
        found["rawQueryString"] = urllib.parse.urlencode(query or {})
    else:
        found["path"], found["httpMethod"] = path, method
    if query:
        found["queryStringParameters"] = dict(query)
    found["headers"] |= {name.replace("_", "-"): value for name, value in headers.items()}
    if body:
        found |= {"body": base64.b64encode(body).decode(), "isBase64Encoded": True}
    return found


class Function:
    """A running function: ``function(event)`` gives its answer."""

    def __init__(self, log: Path) -> None:
        self.log = log
        self.process: subprocess.Popen[bytes] | None = None
        self.events: queue.Queue[tuple[str, bytes]] = queue.Queue()
        self.answers: queue.Queue[tuple[str, bytes]] = queue.Queue()

    def __call__(self, event: Mapping[str, Any]) -> dict[str, Any]:
        data = json.dumps(event).encode()
        assert len(data) <= MAX_EVENT, f"API Gateway would refuse an event of {len(data):,} bytes"
        self.events.put((str(uuid.uuid4()), data))
        kind, body = self._answer()
        assert kind == "response", f"{body.decode()}\n{self.log.read_text()}"
        assert len(body) <= MAX_EVENT
        return dict(json.loads(body))

    def _answer(self) -> tuple[str, bytes]:
        while True:
            try:
                return self.answers.get(timeout=0.5)
            except queue.Empty:
                assert self.process is None or self.process.poll() is None, self.log.read_text()


@contextmanager
def running(
    folder: Path, handler: str, environment: Mapping[str, str], log: Path, flags: Sequence[str] = ()
) -> Iterator[Function]:
    """Run a function's folder as Lambda does, until the block ends; ``flags`` are the interpreter's."""
    function = Function(log)
    inherited = {name: os.environ[name] for name in ("PATH", "HOME", "OMP_NUM_THREADS") if name in os.environ}
    variables = {
        "AWS_LAMBDA_FUNCTION_NAME": "chestxray-website",
        "AWS_LAMBDA_FUNCTION_MEMORY_SIZE": "512",
        "AWS_LAMBDA_FUNCTION_VERSION": "$LATEST",
        "LAMBDA_TASK_ROOT": str(folder),
    }
    with serving(_runtime_api(function)) as address:
        variables["AWS_LAMBDA_RUNTIME_API"] = address.removeprefix("http://")
        with log.open("w") as out:
            process = function.process = subprocess.Popen(
                [sys.executable, *flags, "-m", "awslambdaric", handler],
                cwd=folder,
                env={**inherited, **variables, **environment},
                stdout=out,
                stderr=out,
            )
        try:
            yield function
        finally:
            process.kill()
            process.wait()
            function.events.put(("", b""))  # lets go whoever waits for an event


def _runtime_api(function: Function) -> type[StandIn]:
    class RuntimeApi(StandIn):
        def do_GET(self) -> None:
            assert self.path == f"{PREFIX}/invocation/next"
            request_id, event = function.events.get()
            if not request_id:
                self.close_connection = True
                return
            headers = {
                "Lambda-Runtime-Aws-Request-Id": request_id,
                "Lambda-Runtime-Deadline-Ms": str(int(time.time() * 1000) + 29_000),
                "Lambda-Runtime-Invoked-Function-Arn": "arn:aws:lambda:us-east-1:123456789012:function:website",
                "Content-Type": "application/json",
                "Lambda-Runtime-Trace-Id": "Root=1-5e66d96f-7491f09xmpl79d18acf3d050",
            }
            self.reply(200, event, headers.items())

        def do_POST(self) -> None:
            function.answers.put((self.path.rpartition("/")[2], self.body()))
            self.reply(202, b'{"status": "OK"}')

    return RuntimeApi
