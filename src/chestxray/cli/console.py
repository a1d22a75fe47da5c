"""Output for people (progress, text) and for machines (one JSON document)."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Final

import click

from chestxray.files import json_values

CLEAR_LINE: Final = "\r\x1b[K"  # a logged line replaces the bar's line; the bar is drawn again below it
BAR_CELLS: Final = 30
BAR_EVERY_S: Final = 0.1  # seconds between two drawings of the bar
PLAIN_EVERY_S: Final = 5.0  # seconds between lines of progress without a terminal


class Console:
    """Output of one command: its result on standard output, everything else on standard error."""

    def __init__(self, *, as_json: bool) -> None:
        self.as_json = as_json
        self._bar_is_drawn = False

    def log(self, line: str) -> None:
        """Log what is going on, on a line of its own."""
        click.echo(f"{CLEAR_LINE}{line}" if self._bar_is_drawn else line, err=True)

    def result(self, document: Any, text: str) -> None:
        """Print the result: the document for machines or the text for people, never both."""
        click.echo(json.dumps(json_values(document), indent=2) if self.as_json else text)

    @contextmanager
    def progress(self, label: str) -> Iterator[Callable[[int, int], None]]:
        """Yield the callback that moves a bar on a terminal, or prints lines elsewhere, with the rate.

        The rate counts from the first call, so work that was done before does not make it look faster; it starts again
        when the count does, as with every epoch.
        """
        on_terminal = sys.stderr.isatty()
        every = BAR_EVERY_S if on_terminal else PLAIN_EVERY_S
        last = time.monotonic()
        began: tuple[float, int] | None = None
        before = 0

        def move(done: int, total: int) -> None:
            nonlocal last, began, before
            now = time.monotonic()
            if began is None or done < before:
                began = (now, done)
            before = done
            if now - last < every:
                return
            last = now
            rate = _rate(done - began[1], now - began[0])
            if on_terminal:
                self._bar_is_drawn = True
                filled = round(BAR_CELLS * done / max(total, 1))
                bar = "#" * filled + "-" * (BAR_CELLS - filled)
                click.echo(f"{CLEAR_LINE}{label} [{bar}] {done:,} of {total:,}{rate}", err=True, nl=False)
            else:
                self.log(f"{label}: {done:,} of {total:,}{rate}")

        try:
            yield move
        finally:
            if self._bar_is_drawn:
                click.echo(CLEAR_LINE, err=True, nl=False)
                self._bar_is_drawn = False


def _rate(count: int, seconds: float) -> str:
    if not count or seconds <= 0.0:
        return ""
    return f", {count / seconds:,.0f} a second" if count > seconds else f", {seconds / count:,.1f} s each"


def columns(rows: Sequence[tuple[str, ...]]) -> str:
    """Format rows of text as columns, all flush left."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join("  ".join(map(str.ljust, row, widths)).rstrip() for row in rows)


def table(rows: Sequence[tuple[str, ...]]) -> str:
    """Format rows as columns: the first flush left, the others flush right. The first row is the header."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = [
        "  ".join(
            [row[0].ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True))]
        )
        for row in rows
    ]
    return "\n".join(line.rstrip() for line in lines)
