"""Whoever is told how far the work is."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Final, Protocol

from chestxray.data.parallel import Progress, no_progress


class Narrator(Protocol):
    """Whoever tells the user what is going on; the command line's console is one."""

    def say(self, line: str) -> None:
        """Tell one line."""

    def progress(self, label: str) -> AbstractContextManager[Progress]:
        """Give the callback that moves a progress bar."""


class Silence:
    """A narrator that tells nothing."""

    def say(self, line: str) -> None:
        """Tell nothing."""

    def progress(self, label: str) -> AbstractContextManager[Progress]:  # noqa: ARG002 - the protocol's
        """Give a callback that does nothing."""
        return nullcontext(no_progress)


SILENCE: Final = Silence()
