"""The log of the service: one JSON document a line, made of our own words and numbers.

Nothing that a caller wrote reaches it: no address, header, file name or value of a DICOM element, and of an
exception its kind and place, never its message.
"""

from __future__ import annotations

import json
import logging
import sys
import traceback
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

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


def log_to_stderr() -> None:
    """Send the service's own log, and nobody else's below a warning, to standard error."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonLines())
    logging.basicConfig(level=logging.WARNING, handlers=[handler], force=True)
    log.setLevel(logging.INFO)
    # uvicorn prints the traceback of what the application raises, with its message; the application logs its own.
    logging.getLogger("uvicorn.error").setLevel(logging.CRITICAL)


def fault_of(error: BaseException) -> list[str]:
    """The kind of an exception and where it arose. Not its message, which may quote what a caller sent."""
    frames = traceback.extract_tb(error.__traceback__)[-6:]
    return [type(error).__name__, *(f"{Path(frame.filename).name}:{frame.lineno} {frame.name}" for frame in frames)]
