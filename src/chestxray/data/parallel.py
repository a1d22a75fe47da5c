"""One function over many items on every core, results in order, memory bounded."""

from __future__ import annotations

import multiprocessing
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from itertools import islice
from typing import Final, TypeVar

from chestxray.machine import cores

Item = TypeVar("Item")
Result = TypeVar("Result")

Progress = Callable[[int, int], None]  # (done, of how many)

CHUNK: Final = 16  # items that travel together; a film takes a millisecond, a message a tenth of one
AHEAD: Final = 8  # chunks in flight a worker: enough to keep it busy, few enough to hold in memory
WORTH_A_POOL: Final = 96  # items; starting the workers takes as long as decoding that many small films


def no_progress(done: int, total: int) -> None:
    """Report nothing."""


def map_in_order(
    function: Callable[[Item], Result],
    items: Sequence[Item],
    on_progress: Progress = no_progress,
    workers: int | None = None,
) -> Iterator[Result]:
    """``map(function, items)`` on several processes.

    Args:
        function: importable by its name; an exception that it raises ends the iteration.
        items: all of them, so that progress can be told.
        on_progress: called with (done, total) as results are taken.
        workers: processes; by default one a core, and none for a handful of items.
    """
    total = len(items)
    workers = workers or cores()
    on_progress(0, total)
    if workers == 1 or total < WORTH_A_POOL:
        for done, item in enumerate(items, start=1):
            yield function(item)
            on_progress(done, total)
        return
    # "spawn" starts clean processes: a fork of a process that runs threads may deadlock.
    with ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("spawn")) as pool:
        waiting: deque[Future[list[Result]]] = deque()
        chunks = (items[start : start + CHUNK] for start in range(0, total, CHUNK))
        done = 0
        try:
            waiting.extend(pool.submit(_each, function, chunk) for chunk in islice(chunks, workers * AHEAD))
            while waiting:
                results = waiting.popleft().result()
                waiting.extend(pool.submit(_each, function, chunk) for chunk in islice(chunks, 1))
                yield from results
                done += len(results)
                on_progress(done, total)
        finally:
            for future in waiting:
                future.cancel()


def _each(function: Callable[[Item], Result], items: Sequence[Item]) -> list[Result]:
    return [function(item) for item in items]
