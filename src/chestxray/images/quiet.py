"""What other libraries say of a damaged film becomes silence: the outcome, pixels or error, says it all.

pydicom's log lines quote values of the file, and a value may name a patient.
"""

from __future__ import annotations

import logging
import threading
import warnings
from types import TracebackType
from typing import Any


class Quiet:
    """Ignore warnings, and pydicom's log, while any thread is inside.

    ``warnings.catch_warnings`` alone saves and restores one list for the whole process, so two threads that
    leave in the order in which they came would keep it silent for good. Here the first one in saves the list
    and the last one out restores it.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._inside = 0
        self._saved: Any = None
        self._log = logging.getLogger("pydicom")

    def __enter__(self) -> None:
        with self._lock:
            self._inside += 1
            if self._inside == 1:
                self._saved = warnings.catch_warnings(action="ignore")
                self._saved.__enter__()
                self._log.disabled = True

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._lock:
            self._inside -= 1
            if self._inside == 0:
                self._log.disabled = False
                self._saved.__exit__(kind, error, trace)


quietly = Quiet()
