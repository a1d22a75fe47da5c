"""ministack as a process of its own: an AWS that runs the function's real code behind a real HTTP API."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import pytest

from chestxray.aws import stacks
from live_moto import ACCOUNT
from stand_in import StandIn, serving

PROGRAM: Final = os.environ.get("MINISTACK") or str(Path(sys.prefix) / "ministack" / "bin" / "ministack")
needed = pytest.mark.skipif(not shutil.which(PROGRAM), reason="ministack is not here: make test-soak installs it")


@contextmanager
def running(log: Path, **environment: str) -> Iterator[str]:
    """S3, IAM, CloudFormation, an HTTP API before real function code, a distribution's rules; gives the address.

    Args:
        environment: also that of the functions.
    """
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    variables = {"GATEWAY_PORT": str(port), "LAMBDA_EXECUTOR": "local", "IOT_MTLS_ENABLED": "0"}
    variables |= {"MINISTACK_ACCOUNT_ID": ACCOUNT, **environment}
    with log.open("w") as out:
        process = subprocess.Popen([PROGRAM], env={**os.environ, **variables}, stdout=out, stderr=out, cwd=log.parent)
    address = f"http://127.0.0.1:{port}"
    try:
        while True:
            assert process.poll() is None, log.read_text()
            try:
                urllib.request.urlopen(f"{address}/_ministack/health", timeout=5).close()  # noqa: S310 - on loopback
                break
            except urllib.error.HTTPError:
                break
            except urllib.error.URLError:
                time.sleep(0.2)
        yield address
    finally:
        process.terminate()
        process.wait()


@contextmanager
def edge(aws: str, made: Mapping[str, str]) -> Iterator[str]:
    """The way to the distribution, whose name no resolver knows here: the page by its rules, /v1/* from the API."""

    class Edge(StandIn):
        def do_GET(self) -> None:
            to_api = self.path.startswith("/v1/")
            host = made["api" if to_api else "address"].split("/")[2].partition(":")[0]
            headers = {"Host": host, "X-Forwarded-Proto": "https"}
            for name in ("Content-Type", "Origin", "Access-Control-Request-Method"):
                if name in self.headers:
                    headers[name] = self.headers[name]
            request = urllib.request.Request(f"{aws}{self.path}", self.body() or None, headers, method=self.command)  # noqa: S310
            try:
                answer = urllib.request.urlopen(request)  # noqa: S310 - on loopback
            except urllib.error.HTTPError as refusal:
                answer = refusal  # type: ignore[assignment]
            with answer:
                of_the_way = {"content-length", "transfer-encoding", "connection"}
                passed_on = [item for item in answer.headers.items() if item[0].lower() not in of_the_way]
                self.reply(answer.status, answer.read(), passed_on)

        do_POST = do_OPTIONS = do_GET

    with serving(Edge) as address:
        yield address


def template_without_budget() -> str:
    """The stand-in's CloudFormation knows no budgets; cfn-lint has read that resource."""
    template = stacks.stack_template("website")
    before, _, rest = template.partition("  Budget:\n")
    return f"{before}Outputs:{rest.partition('Outputs:')[2]}"
