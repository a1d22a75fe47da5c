"""Films handed round by Ray: on this machine, or on the cluster that ``RAY_ADDRESS`` names.

Without an address Ray is started here and stopped in the end. The films must lie where each worker can read them, on a
shared disk or in S3. What comes back is what processes of this machine give, in the same order.
"""

from __future__ import annotations

import logging
import os
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import islice
from typing import Any, Final, Protocol, TypeVar

from chestxray.data.parallel import AHEAD, CHUNK, cores, each, map_in_order
from chestxray.errors import DataError, MissingExtra, UsageError
from chestxray.progress import ProgressCallback, no_progress

TRIES: Final = 3  # Ray gives its own processes 30 seconds to start, which a busy machine may not have
ADDRESS_VARIABLE: Final = "RAY_ADDRESS"
_QUIET: Final = {"RAY_USAGE_STATS_ENABLED": "0", "RAY_BACKEND_LOG_LEVEL": "fatal"}

Item = TypeVar("Item")
Result = TypeVar("Result")
Engine = TypeVar("Engine")


class Mapper(Protocol):
    """A way to apply a function to items, with results in order: see ``parallel.map_in_order``."""

    def __call__(
        self,
        function: Callable[[Item], Result],
        items: Sequence[Item],
        on_progress: ProgressCallback = no_progress,
        workers: int | None = None,
    ) -> Iterator[Result]:
        """Yield the results in the order of the items."""


def mapper_of(engine: str) -> Mapper:
    """Return the mapper of an engine: "local" (processes of this machine) or "ray". Raises: UsageError."""
    engines: dict[str, Mapper] = {"local": map_in_order, "ray": map_in_order_on_ray}
    return engine_of(engine, engines)


def engine_of(name: str, engines: Mapping[str, Engine]) -> Engine:
    """Return the engine of that name. Raises: UsageError, which lists the names."""
    if name not in engines:
        raise UsageError(f"there is no engine {name!r}; there are {', '.join(engines)}")
    return engines[name]


def map_in_order_on_ray(
    function: Callable[[Item], Result],
    items: Sequence[Item],
    on_progress: ProgressCallback = no_progress,
    workers: int | None = None,
) -> Iterator[Result]:
    """Apply a function to items on the workers of Ray, like ``map(function, items)``.

    Items are sent in chunks, with just enough chunks in flight to keep every worker busy: what waits in Ray's store
    does not grow with the number of items.

    Args:
        function: importable by its name; an exception that it raises ends the iteration.
        items: all of them, so that progress can be shown.
        on_progress: called with (done, total) as results are taken.
        workers: number of workers, of one core each; by default as many as Ray has cores.

    Raises: MissingExtra.
    """
    total, done = len(items), 0
    on_progress(0, total)
    if not items:
        return
    with started(workers) as ray:
        has = int(ray.cluster_resources().get("CPU", 1))
        size = workers or has
        ahead = AHEAD if size >= has else 1  # a larger cluster would work on whatever is in flight
        task = ray.remote(num_cpus=1)(each)
        chunks = iter(items[start : start + CHUNK] for start in range(0, total, CHUNK))
        waiting = deque(task.remote(function, chunk) for chunk in islice(chunks, size * ahead))
        while waiting:
            try:
                results = ray.get(waiting.popleft())
            except ray.exceptions.RayTaskError as error:
                raise error.cause from None
            waiting.extend(task.remote(function, chunk) for chunk in islice(chunks, 1))
            yield from results
            done += len(results)
            on_progress(done, total)


@contextmanager
def started(workers: int | None = None) -> Iterator[Any]:
    """Start or join Ray, without usage reports and log output; its errors are raised here.

    Args:
        workers: number of cores for a Ray that is started here; by default all of this machine.

    Raises: MissingExtra; DataError, if Ray does not start.
    """
    for name, value in _QUIET.items():
        os.environ.setdefault(name, value)
    try:
        import ray
        import ray.data
    except ImportError as error:
        raise MissingExtra("The engine ray", "ray") from error
    address = os.environ.get(ADDRESS_VARIABLE)
    where: dict[str, Any] = {"address": address} if address else {"address": "local", "num_cpus": workers or cores()}
    _join(ray, where)
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    try:
        context = ray.data.DataContext.get_current()
        context.enable_progress_bars = False
        context.execution_options.preserve_order = True
        yield ray
    finally:
        ray.shutdown()


def _join(ray: Any, where: dict[str, Any]) -> None:
    """Connect to Ray, with several attempts on this machine. Raises: DataError."""
    for last in (False,) * (TRIES - 1) + (True,):
        try:
            ray.init(**where, include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR)
        except Exception as error:
            ray.shutdown()
            if last or where["address"] != "local":
                raise DataError(
                    f"Ray does not start ({str(error).splitlines()[0]}). Use --engine local, or free the machine"
                ) from error
        else:
            return
