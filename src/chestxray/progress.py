"""Progress reports of long work: a line of text, or the number of finished items.

A stage takes the callbacks ``ProgressCallback`` and ``Log``; a function that runs several stages takes a
``Reporter``, of which the console of the command line is one.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Final, Protocol

ProgressCallback = Callable[[int, int], None]  # (items done, items in all)
Log = Callable[[str], None]  # one line of text, without a line break


def no_progress(done: int, total: int) -> None:
    """Report nothing."""


def no_log(line: str) -> None:
    """Report nothing."""


def warn(line: str) -> None:
    """Report to Python's logging, which prints warnings by default, so that the line is not lost."""
    logging.getLogger("chestxray").warning("%s", line)


class Reporter(Protocol):
    """Reports the progress of several stages to the user."""

    def log(self, line: str) -> None:
        """Report one line."""

    def progress(self, label: str) -> AbstractContextManager[ProgressCallback]:
        """Yield the callback that moves a progress bar with this label, until the block ends."""


class SilentReporter:
    """A reporter that reports nothing."""

    def log(self, line: str) -> None:
        """Report nothing."""

    def progress(self, label: str) -> AbstractContextManager[ProgressCallback]:  # noqa: ARG002 - the protocol's
        """Yield a callback that does nothing."""
        return nullcontext(no_progress)


SILENT: Final = SilentReporter()


def counted(count: int, one: str, many: str) -> str:
    """Return a count with its words: ``counted(1, "file is no film", "files are no films")``."""
    return f"{count:,} {one if count == 1 else many}"
