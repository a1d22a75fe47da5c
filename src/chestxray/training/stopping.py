"""Signals that ask a training to stop: noted, and obeyed when a step has ended."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType
from typing import Final

SIGNALS: Final = (signal.SIGTERM, signal.SIGINT)  # spot instances and schedulers send the first, Ctrl-C the second


@dataclass(slots=True)
class StopRequest:
    """What was asked for.

    Attributes:
        signal: its number; None as long as nobody asked.
    """

    signal: signal.Signals | None = None

    @property
    def wanted(self) -> bool:
        """Whether training is to stop."""
        return self.signal is not None


@contextmanager
def stop_requests() -> Iterator[StopRequest]:
    """Note the first of these signals; a second one acts as it did before, at once.

    Where this is not the main thread, which alone may receive signals, nobody can ask.
    """
    request = StopRequest()
    if threading.current_thread() is not threading.main_thread():
        yield request
        return
    earlier = {number: signal.getsignal(number) for number in SIGNALS}

    def restore() -> None:
        for number, handler in earlier.items():
            signal.signal(number, handler)

    def note(number: int, _frame: FrameType | None) -> None:
        request.signal = signal.Signals(number)
        restore()

    for number in SIGNALS:
        signal.signal(number, note)
    try:
        yield request
    finally:
        restore()
