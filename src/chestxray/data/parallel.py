"""A function applied to many items on every core, or on Ray's workers: results in order, memory limited.

Ray runs on this machine, or on the cluster that ``RAY_ADDRESS`` names; without an address it is started here and
stopped in the end. The films must lie where each worker can read them, on a shared disk or in S3.
"""

from __future__ import annotations

import ctypes
import gc
import logging
import multiprocessing
import os
import signal
import sys
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager, suppress
from functools import partial
from itertools import islice
from multiprocessing.context import BaseContext, SpawnContext, SpawnProcess
from typing import Any, Final, Protocol, TypeVar

from chestxray.errors import DataError, MissingExtra, UsageError
from chestxray.progress import ProgressCallback, no_progress


def cores() -> int:
    """Return the number of processor cores that this process may use; at least 1."""
    if hasattr(os, "sched_getaffinity"):  # Linux: respects the limits of containers and schedulers
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


Item = TypeVar("Item")
Outcome = TypeVar("Outcome")

CHUNK: Final = 16  # items sent together; a film takes a millisecond, a message a tenth of one
AHEAD: Final = 8  # chunks in flight for each worker: enough to keep it busy, few enough to hold in memory
# For processes that stand beside each other, one a core: threads of a small matrix product wait for each other by
# spinning, which takes processor time from the other processes. Read by numpy's libraries as they are loaded.
ONE_THREAD: Final = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
# glibc's M_TRIM_THRESHOLD and M_MMAP_THRESHOLD: bytes up to which it keeps freed memory
_KEEP_MEMORY: Final = ((-1, 16 * 2**20), (-3, 8 * 2**20))
WORTH_A_POOL: Final = 96  # items; starting the workers takes as long as decoding this many small films


def map_in_order(
    function: Callable[[Item], Outcome],
    items: Sequence[Item],
    on_progress: ProgressCallback = no_progress,
    workers: int | None = None,
) -> Iterator[Outcome]:
    """Apply a function to items on several processes, like ``map(function, items)``.

    Args:
        function: importable by its name; an exception that it raises ends the iteration.
        items: all of them, so that progress can be shown.
        on_progress: called with (done, total) as results are taken.
        workers: number of processes; by default one a core, and none for a few items.
    """
    total = len(items)
    workers = workers or cores()
    on_progress(0, total)
    if workers == 1 or total < WORTH_A_POOL:
        for done, item in enumerate(items, start=1):
            yield function(item)
            on_progress(done, total)
        return
    chunks = (items[start : start + CHUNK] for start in range(0, total, CHUNK))
    done = 0
    for results in pooled(partial(each, function), chunks, workers):
        yield from results
        done += len(results)
        on_progress(done, total)


def pooled(
    function: Callable[[Item], Outcome],
    items: Iterable[Item],
    workers: int,
    lost: Callable[[Item], Outcome] | None = None,
) -> Iterator[Outcome]:
    """Apply a function to items on worker processes, like ``map``, whatever their number; read them as needed.

    Args:
        function: importable by its name; an exception that it raises ends the iteration.
        items: read as the work proceeds, at most ``AHEAD`` chunks for each worker ahead of the results.
        workers: number of processes.
        lost: the result of an item that ends its process (a fault of a decoder, too little memory), even if it is alone
            in the process. Without ``lost``, a process that ends is an error.

    Raises: BrokenProcessPool, if a process ends and ``lost`` is not given.
    """
    source = iter(items)
    waiting: deque[tuple[Item, Future[Outcome] | None]] = deque()
    while True:
        with _pool(workers) as pool:
            try:
                _submit(pool, function, islice(source, workers * AHEAD), waiting)
                while waiting:
                    result = _result(waiting[0][1])
                    waiting.popleft()
                    _submit(pool, function, islice(source, 1), waiting)
                    yield result
            except BrokenProcessPool:
                if lost is None:
                    raise
            finally:
                for _, future in waiting:
                    if future is not None:
                        future.cancel()
        if not waiting:
            return
        yield from _alone(function, [item for item, _ in waiting], lost)
        waiting.clear()


def _submit(
    pool: ProcessPoolExecutor,
    function: Callable[[Item], Outcome],
    items: Iterable[Item],
    waiting: deque[tuple[Item, Future[Outcome] | None]],
) -> None:
    """Submit items to a pool and record them, including one that a broken pool refuses."""
    for item in items:
        try:
            waiting.append((item, pool.submit(function, item)))
        except BrokenProcessPool:
            waiting.append((item, None))


def _result(future: Future[Outcome] | None) -> Outcome:
    if future is None:
        raise BrokenProcessPool("the pool was broken before it could take this")
    return future.result()


def _alone(
    function: Callable[[Item], Outcome], items: Sequence[Item], lost: Callable[[Item], Outcome] | None
) -> Iterator[Outcome]:
    """Apply the function to one item at a time, to find the item that ends its process and finish the others."""
    left = deque(items)
    while left:
        with _pool(1) as pool:
            try:
                while left:
                    result = pool.submit(function, left[0]).result()
                    left.popleft()
                    yield result
            except BrokenProcessPool:
                if lost is None:
                    raise
                yield lost(left.popleft())


def _pool(workers: int) -> ProcessPoolExecutor:
    context: BaseContext = multiprocessing.get_context("fork") if is_single_threaded() else CleanContext()
    return ProcessPoolExecutor(workers, mp_context=context, initializer=begin_as_worker)


def is_single_threaded() -> bool:
    """Return True if this process surely runs one thread, those of libraries included: then a fork of it is safe.

    A fork has the libraries at once, which a process that starts anew has to import.
    """
    try:
        return len(os.listdir("/proc/self/task")) == 1  # noqa: PTH208 - the number only, as fast as can be
    except OSError:  # not Linux
        return False


def stay_single_threaded() -> None:
    """Tell NumPy's libraries to start no threads; call it before they are imported."""
    for name, value in ONE_THREAD.items():
        os.environ.setdefault(name, value)


def begin_as_worker() -> None:
    """Prepare a worker process: it ends with its parent, and keeps the memory of one item for the next."""
    gc.freeze()  # a collection would touch, and so copy, what a fork shares with its parent
    depend_on_the_parent()
    stay_single_threaded()
    keep_memory()


def keep_memory() -> None:
    """Let glibc keep freed memory up to a few megabytes.

    Left to itself it gives each film's buffers back to the system and takes zeroed ones, or not, by what happened to
    come before; they take a tenth of the time of a film of 224 pixels.
    """
    with suppress(AttributeError, OSError):  # another C library
        change = ctypes.CDLL(None).mallopt
        for parameter, value in _KEEP_MEMORY:
            change(parameter, value)


class CleanProcess(SpawnProcess):
    """A process that starts without inherited state: a fork of a process that runs threads may deadlock.

    The caller's script is not run again either, as ``multiprocessing`` would do in each process: the work is found by
    its own module, and a script without ``if __name__ == "__main__"`` would start all over. Matrix products run on one
    thread, unless the caller's environment says otherwise.
    """

    _starting = threading.Lock()

    @staticmethod
    def _Popen(process_obj: Any) -> Any:  # noqa: N802 - multiprocessing's name
        with CleanProcess._starting:  # what follows changes this process for a moment
            main = vars(sys.modules["__main__"])
            kept: dict[str, Any] = {name: main.pop(name) for name in ("__file__", "__spec__") if name in main}
            main["__spec__"] = None
            added = ONE_THREAD.keys() - os.environ.keys()
            os.environ.update({name: ONE_THREAD[name] for name in added})
            try:
                return SpawnProcess._Popen(process_obj)  # noqa: SLF001
            finally:
                main.update(kept)
                for name in added:
                    del os.environ[name]


class CleanContext(SpawnContext):
    """Starts processes without inherited state."""

    Process = CleanProcess


def depend_on_the_parent() -> None:
    """End this process when its parent ends, even by SIGKILL, and leave a keyboard interruption to the parent."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_the_parent, daemon=True).start()


def _end_with_the_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def each(function: Callable[[Item], Outcome], items: Sequence[Item]) -> list[Outcome]:
    """Return the results of the items of one chunk."""
    return [function(item) for item in items]


TRIES: Final = 3  # Ray gives its own processes 30 seconds to start, which a busy machine may not have
ADDRESS_VARIABLE: Final = "RAY_ADDRESS"

Engine = TypeVar("Engine")


class Mapper(Protocol):
    """A way to apply a function to items, with results in order: see ``parallel.map_in_order``."""

    def __call__(
        self,
        function: Callable[[Item], Outcome],
        items: Sequence[Item],
        on_progress: ProgressCallback = no_progress,
        workers: int | None = None,
    ) -> Iterator[Outcome]:
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
    function: Callable[[Item], Outcome],
    items: Sequence[Item],
    on_progress: ProgressCallback = no_progress,
    workers: int | None = None,
) -> Iterator[Outcome]:
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
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
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
