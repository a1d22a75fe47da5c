"""The log of the service: one JSON document a line, made of our own words and numbers.

Nothing that a caller wrote reaches it: no address, header, file name or value of a DICOM element, and of an
exception its kind and place, never its message.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import queue
import sys
import threading
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

MOST_LINES: Final = 10_000  # that wait to be written
FLUSH_SECONDS: Final = 1.0
AT_ONCE: Final = 64  # lines that are written together

log: Final = logging.getLogger("chestxray.serving")

_OF_EVERY_RECORD: Final = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}


class JsonLines(logging.Formatter):
    """``{"time": ..., "level": ..., "event": ...}`` and whatever ``extra`` names."""

    def format(self, record: logging.LogRecord) -> str:
        """One line without line breaks."""
        document = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "event": record.getMessage(),
        }
        document |= {name: value for name, value in vars(record).items() if name not in _OF_EVERY_RECORD}
        return json.dumps(document, default=str)


class Patient(logging.Handler):
    """Hands lines to a thread that writes them: whoever logs never waits for whoever reads the log.

    Where nobody reads, lines are dropped once ``MOST_LINES`` wait, and a later line says how many; where the log is
    closed, or there is none, all of them are. Neither ends the service.
    """

    def __init__(self, descriptor: int) -> None:
        super().__init__()
        self.setFormatter(JsonLines())
        self._descriptor = descriptor
        self._lines: queue.Queue[bytes] = queue.Queue(MOST_LINES)
        self._dropped = 0
        threading.Thread(target=self._write, name="log", daemon=True).start()

    def emit(self, record: logging.LogRecord) -> None:
        """Put a line into the queue, or count it."""
        try:
            self._lines.put_nowait(f"{self.format(record)}\n".encode())
        except queue.Full:
            self._dropped += 1

    def flush(self) -> None:
        """Wait until what was logged so far is written, but not for a reader that is not there."""
        deadline = time.monotonic() + FLUSH_SECONDS
        while self._lines.unfinished_tasks and time.monotonic() < deadline:
            time.sleep(0.005)

    def close(self) -> None:
        """Write what is there still."""
        self.flush()
        super().close()

    def _write(self) -> None:
        while True:
            lines = [self._lines.get()]
            while not self._lines.empty() and len(lines) < AT_ONCE:
                lines.append(self._lines.get())
            line = b"".join(lines)
            if self._dropped:
                dropped, self._dropped = self._dropped, 0
                line += (
                    json.dumps({"level": "warning", "event": "log lines dropped", "lines": dropped}).encode() + b"\n"
                )
            with contextlib.suppress(OSError):  # closed, or its reader is gone
                while line:
                    line = line[os.write(self._descriptor, line) :]
            for _ in lines:
                self._lines.task_done()


def occupy_standard_streams() -> None:
    """Open nothing where standard input, output or error are closed: no socket must get one of their numbers."""
    for descriptor in (0, 1, 2):
        try:
            os.fstat(descriptor)
        except OSError:
            lowest = os.open(os.devnull, os.O_RDWR)
            os.set_inheritable(lowest, True)  # noqa: FBT003 - the system has no other way


@contextmanager
def logged_to_stderr() -> Iterator[None]:
    """Send the service's own log, and nobody else's below a warning, to standard error, until the block ends."""
    handler: logging.Handler = logging.NullHandler()
    if sys.stderr is not None:  # else it was closed by whoever started this, and its number is another file's by now
        with contextlib.suppress(OSError):  # no file: a notebook's
            handler = Patient(sys.stderr.fileno())
    logging.basicConfig(level=logging.WARNING, handlers=[handler], force=True)
    log.setLevel(logging.INFO)
    try:
        yield
    finally:
        handler.flush()


def fault_of(error: BaseException) -> list[str]:
    """The kind of an exception and where it arose. Not its message, which may quote what a caller sent."""
    frames = traceback.extract_tb(error.__traceback__)[-6:]
    return [type(error).__name__, *(f"{Path(frame.filename).name}:{frame.lineno} {frame.name}" for frame in frames)]
