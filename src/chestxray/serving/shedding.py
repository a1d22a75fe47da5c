"""The refusal of films for which there is no room, written beforehand: it must cost far less than a film.

At ten times its capacity a service refuses nine films for each that it judges, and what a refusal costs is taken
from the films. Through the application it costs several times what it costs here, on the connection itself; it is
counted and, unlike all other requests, not logged.
"""

from __future__ import annotations

import uuid
from typing import Final

from chestxray.serving.metrics import Metrics
from chestxray.serving.problems import OVERLOADED, problem_response
from chestxray.serving.queue import PredictionQueue
from chestxray.serving.security import HEADERS

TAKES_FILMS: Final = (b"/v1/predict", b"/invocations", b"/endpoints/")
_ROUTE: Final = "refused for want of room"
_ID: Final = str(uuid.UUID(int=0))  # stands in the template where each refusal has an id of its own


class Shedder:
    """Answers films while the queue is full."""

    def __init__(self, queue: PredictionQueue, metrics: Metrics) -> None:
        self._queue = queue
        self._counter = metrics.requests.labels(_ROUTE, str(OVERLOADED.status))
        self._template = _written_out()

    def __call__(self, method: bytes, url: bytes) -> bytes | None:
        """The whole answer to a request with that line; None where it goes on to the application."""
        if not self._queue.full or method != b"POST" or not url.startswith(TAKES_FILMS):
            return None
        self._counter.inc()
        return self._template.replace(_ID.encode(), str(uuid.uuid4()).encode())


def _written_out() -> bytes:
    detail = "as many films are waiting as may wait"
    headers = {"Retry-After": "1", "X-Request-Id": _ID, "Cache-Control": "no-store", **HEADERS}
    response = problem_response(OVERLOADED, detail, _ID, headers)
    lines = [b"HTTP/1.1 503 Service Unavailable", *(name + b": " + value for name, value in response.raw_headers)]
    return b"\r\n".join(lines) + b"\r\n\r\n" + bytes(response.body)
