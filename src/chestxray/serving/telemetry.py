"""What the service reports to its operator: a log of one JSON document a line, and counters for Prometheus.

Nothing that a caller wrote reaches either: no address, header, file name or value of a DICOM element. An exception is
logged with its kind and place, never with its message. The labels of the counters are routes and statuses.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import queue
import select
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import Final

MOST_LINES: Final = 10_000  # lines that may wait to be written
FLUSH_SECONDS: Final = 1.0
AT_ONCE: Final = 64  # lines that are written together

log: Final = logging.getLogger("chestxray.serving")

_OF_EVERY_RECORD: Final = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}


class JsonLines(logging.Formatter):
    """Formats a record as ``{"time": ..., "level": ..., "event": ...}`` plus the fields given in ``extra``."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the record as one line without line breaks."""
        document = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "event": record.getMessage(),
        }
        document |= {name: value for name, value in vars(record).items() if name not in _OF_EVERY_RECORD}
        return json.dumps(document, default=str)


class BackgroundHandler(logging.Handler):
    """Hands lines to a thread that writes them, so that logging never waits for the reader of the log.

    If nobody reads the log, lines are dropped once ``MOST_LINES`` wait, and a later line says how many; if the log is
    closed or missing, all lines are dropped. Neither stops the service.
    """

    def __init__(self, descriptor: int) -> None:
        super().__init__()
        self.setFormatter(JsonLines())
        self._descriptor = descriptor
        self._lines: queue.Queue[bytes] = queue.Queue(MOST_LINES)
        self._dropped = 0
        threading.Thread(target=self._write, name="log", daemon=True).start()

    def emit(self, record: logging.LogRecord) -> None:
        """Put a line into the queue, or count it as dropped."""
        try:
            self._lines.put_nowait(f"{self.format(record)}\n".encode())
        except queue.Full:
            self._dropped += 1

    def flush(self) -> None:
        """Wait until all lines so far are written, but do not wait for a reader that has gone."""
        deadline = time.monotonic() + FLUSH_SECONDS
        while self._lines.unfinished_tasks and time.monotonic() < deadline:
            time.sleep(0.005)

    def close(self) -> None:
        """Write the remaining lines, and stop the thread."""
        self.flush()
        super().close()

    def _write(self) -> None:
        while True:
            lines = [self._lines.get()]
            while not self._lines.empty() and len(lines) < AT_ONCE:
                lines.append(self._lines.get())
            taken = len(lines)
            if self._dropped:
                dropped, self._dropped = self._dropped, 0
                line = {"level": "warning", "event": "log lines dropped", "lines": dropped}
                lines.append(f"{json.dumps(line)}\n".encode())
            with contextlib.suppress(OSError):  # the log is closed, or its reader has gone
                for block in whole_lines(lines):
                    rest = block
                    while rest:
                        rest = rest[os.write(self._descriptor, rest) :]
            for _ in range(taken):
                self._lines.task_done()


def whole_lines(lines: Iterable[bytes], most: int = select.PIPE_BUF) -> Iterator[bytes]:
    """Yield the lines joined to blocks of at most ``most`` bytes; a longer line is a block of its own.

    A pipe takes a block of that size whole, so that lines of several processes do not mix. Source: POSIX, write().
    """
    block = b""
    for line in lines:
        if block and len(block) + len(line) > most:
            yield block
            block = b""
        block += line
    if block:
        yield block


def occupy_standard_streams() -> None:
    """Open the null device for closed standard streams, so that no socket gets one of their numbers."""
    for descriptor in (0, 1, 2):
        try:
            os.fstat(descriptor)
        except OSError:
            lowest = os.open(os.devnull, os.O_RDWR)
            os.set_inheritable(lowest, True)  # noqa: FBT003 - the standard library takes it by position only


@contextmanager
def logged_to_stderr() -> Iterator[None]:
    """Send the service's log, and other loggers' warnings, to standard error until the block ends."""
    handler: logging.Handler = logging.NullHandler()
    if sys.stderr is not None:  # if it is None, the parent process closed it, and another file has its number by now
        with contextlib.suppress(OSError):  # the stream has no file, as in a notebook
            handler = BackgroundHandler(sys.stderr.fileno())
    logging.basicConfig(level=logging.WARNING, handlers=[handler], force=True)
    log.setLevel(logging.INFO)
    logging.getLogger("python_multipart").setLevel(logging.CRITICAL)  # it quotes what callers sent
    try:
        yield
    finally:
        handler.flush()


def fault_of(error: BaseException) -> list[str]:
    """Return the kind of an exception and its place. The message is left out: it may quote what a caller sent."""
    frames = traceback.extract_tb(error.__traceback__)[-6:]
    return [type(error).__name__, *(f"{Path(frame.filename).name}:{frame.lineno} {frame.name}" for frame in frames)]


_SECONDS: Final = (0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0)


class Metrics:
    """One service's counters, in its own registry, so that two services in one process do not share them.

    Attributes:
        registry: holds all the counters.
        requests: by route and status.
        seconds: of requests, by route.
        batch: number of films in each forward pass.
        content_type: media type of ``text``.
    """

    def __init__(self) -> None:
        # imported here: the decoding processes import this file for its log, and need no counters
        from prometheus_client import CollectorRegistry, Counter, Histogram
        from prometheus_client.exposition import CONTENT_TYPE_LATEST

        self.content_type = CONTENT_TYPE_LATEST
        self.registry = CollectorRegistry()
        self.requests = Counter("chestxray_requests", "Requests answered.", ("route", "status"), registry=self.registry)
        self.seconds = Histogram(
            "chestxray_request_seconds",
            "From the headers of a request to the end of its answer.",
            ("route",),
            buckets=_SECONDS,
            registry=self.registry,
        )
        self._bound = cache(self._bind)  # looking labels up takes as long as counting
        self.batch = Histogram(
            "chestxray_batch_films", "Films of one forward pass.", buckets=(1, 2, 3, 4), registry=self.registry
        )

    def watch(self, name: str, what: str, read: Callable[[], float]) -> None:
        """Add a gauge whose value is read on demand."""
        from prometheus_client import Gauge

        Gauge(f"chestxray_{name}", what, registry=self.registry).set_function(read)

    def observe(self, route: str, status: int, seconds: float) -> None:
        """Count a request and its seconds."""
        count, note = self._bound(route, status)
        count()
        note(seconds)

    def _bind(self, route: str, status: int) -> tuple[Callable[[], None], Callable[[float], None]]:
        return self.requests.labels(route, str(status)).inc, self.seconds.labels(route).observe

    def text(self) -> bytes:
        """Return all counters as text."""
        from prometheus_client import generate_latest

        return generate_latest(self.registry)
