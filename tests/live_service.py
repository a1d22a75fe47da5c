"""The real service on a free port, in a thread of the test's own process."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import uvicorn

from chestxray.inference.predictor import Predictor
from chestxray.serving.app import ServiceSettings, create_app


@contextmanager
def running(predictor: Predictor, settings: ServiceSettings | None = None) -> Iterator[str]:
    """Serve until the block ends; gives the address."""
    config = uvicorn.Config(create_app(predictor, settings), log_config=None, server_header=False, ws="none")
    server = uvicorn.Server(config)
    with socket.create_server(("127.0.0.1", 0)) as listener:  # it listens already: early callers wait, none is refused
        thread = threading.Thread(target=server.run, args=([listener],))
        thread.start()
        try:
            yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        finally:
            server.should_exit = True
            thread.join()
