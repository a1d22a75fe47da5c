"""The real service on a free port, in a thread of the test's own process or in one of its own."""

from __future__ import annotations

import asyncio
import json
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Coroutine, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

from chestxray.inference.predictor import Predictor
from chestxray.serving.admission import ConnectionLimits
from chestxray.serving.app import ServiceSettings
from chestxray.serving.server import make_server

Answer = TypeVar("Answer")

PROGRAM = Path(sys.executable).with_name("chestxray")


def awaited(work: Coroutine[Any, Any, Answer]) -> Answer:
    """Run a coroutine to its end, in a thread of its own: the browser's driver leaves a loop in this one."""
    with ThreadPoolExecutor(1) as thread:
        return thread.submit(asyncio.run, work).result()


@contextmanager
def running(
    predictor: Predictor,
    settings: ServiceSettings | None = None,
    connections: ConnectionLimits | None = None,
    *,
    first: Callable[[str], object] = str,
) -> Iterator[str]:
    """Serve until the block ends; gives the address.

    ``first`` is called with it before the service runs: what callers send then has arrived when it accepts them.
    """
    server = make_server(predictor, settings, connections=connections)
    with socket.create_server(("127.0.0.1", 0)) as listener:  # it listens already: early callers wait, none is refused
        address = f"http://127.0.0.1:{listener.getsockname()[1]}"
        first(address)
        thread = threading.Thread(target=server.run, args=(listener,))
        thread.start()
        try:
            yield address
        finally:
            server.should_exit = True
            thread.join()


@contextmanager
def process(
    bundle: Path, log: Path, *options: str, program: Path = PROGRAM
) -> Iterator[tuple[str, subprocess.Popen[str]]]:
    """``chestxray serve`` as a process of its own, its standard error in a file; gives address and process."""
    command = [program, "serve", "--bundle", bundle, "--port", "0", "--json"]
    with log.open("w") as errors:
        started = subprocess.Popen([*command, *options], stdout=subprocess.PIPE, stderr=errors, text=True)
    try:
        assert started.stdout is not None
        text = ""
        while not text.endswith("\n}\n"):
            line = started.stdout.readline()
            assert line, log.read_text()
            text += line
        yield json.loads(text)["address"], started
    finally:
        started.kill()
        started.communicate()
