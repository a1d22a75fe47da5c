"""The real service on a free port, in a thread of the test's own process."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from chestxray.inference.predictor import Predictor
from chestxray.serving.app import ServiceSettings
from chestxray.serving.connections import ConnectionLimits
from chestxray.serving.engine import make_server


@contextmanager
def running(
    predictor: Predictor, settings: ServiceSettings | None = None, connections: ConnectionLimits | None = None
) -> Iterator[str]:
    """Serve until the block ends; gives the address."""
    server = make_server(predictor, settings, connections=connections)
    with socket.create_server(("127.0.0.1", 0)) as listener:  # it listens already: early callers wait, none is refused
        thread = threading.Thread(target=server.run, args=([listener],))
        thread.start()
        try:
            yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        finally:
            server.should_exit = True
            thread.join()
