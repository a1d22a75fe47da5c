"""Random damage to films of each format, in bulk, on every core. Prints outcomes, keeps the bytes of what escapes.

python tests/images/fuzz/mutate.py [NAME ...] [--count 1000000] [--minutes 60] [--jobs 2] [--seed 7] [--keep FOLDER]

The formats take turns of some thousand damages until each has had ``--count``, or the time is up. A turn is a process
of its own. Noticed are: an error that is not a film's, a process that dies, a film that takes more than ``SECONDS`` of
processor time, and one that wants more memory than ``MEMORY``. Most films are small, so that decoders are called often;
some are larger, or of 12 bits, because small films do not reach every table and every loop.
"""

from __future__ import annotations

import os

os.environ.update(OPENBLAS_NUM_THREADS="1", OMP_NUM_THREADS="1")  # read as numpy is loaded

import argparse
import faulthandler
import json
import mmap
import resource
import signal
import struct
import sys
import tempfile
import time
import traceback
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[2] / "support"))
sys.path.insert(0, str(Path(__file__).parents[1]))

from test_fuzz_decode import films_of, outcome

TURN = 5_000  # damages of one format by one process
SECONDS = 2.0  # of processor time for one film
MEMORY = 2**30  # bytes beyond what a process starts with; the service gives its decoders as much
ASLEEP = 1_800  # seconds by the clock for a turn, which takes one or two: a process that waits for ever
MOST_CHANGES = 8
LENGTH = struct.Struct("<Q")
EDGES = np.array([0, 1, 0x7F, 0x80, 0xFF], np.uint8)  # values at which counts and signs turn over
PNG = b"\x89PNG\r\n\x1a\n"
SMALL, DEEP, MEDIUM, LARGE = range(4)
Look = Callable[[bytes], str]


def damages(film: bytes, rng: np.random.Generator, count: int) -> Iterator[bytes]:
    """Yield damaged copies: bytes replaced, a stretch removed, repeated or copied to another place.

    Headers, tables and pixels are hit: a quarter of the copies anywhere, others in the first kilobyte, in the second
    half or in the last eighth, where small films have their pixels.
    """
    size = len(film)
    starts = np.array([0, 0, size // 2, size * 7 // 8])
    regions = rng.integers(0, len(starts), count)
    first, end = starts[regions], np.where(regions == 1, min(1024, size), size)
    places = first[:, None] + (rng.random((count, MOST_CHANGES)) * (end - first)[:, None]).astype(np.int64)
    values = rng.integers(0, 256, places.shape, np.uint8)
    values = np.where(rng.random(places.shape) < 2 / 3, EDGES[values % len(EDGES)], values)
    numbers = rng.integers(1, MOST_CHANGES + 1, count)
    stretches = np.where(rng.random(count) < 0.3, rng.integers(1, 64, count), 0)
    kinds = rng.integers(0, 4, count)
    rows = (array.tolist() for array in (places, values, numbers, stretches, kinds))
    for where, what, number, stretch, kind in zip(*rows, strict=True):
        data = bytearray(film)
        for place, value in zip(where[:number], what[:number], strict=True):
            data[place] = value
        if stretch:
            at, other = where[0], where[-1]
            piece = data[other : other + stretch] if kind == 3 else data[at : at + stretch] * kind
            data[at : at + stretch] = piece
        yield true_checksums(bytes(data)) if film.startswith(PNG) and number % 2 else bytes(data)


def true_checksums(data: bytes) -> bytes:
    """The same PNG with the checksum of each chunk as its damaged content has it: else few damages pass the first."""
    mended, at = bytearray(data), len(PNG)
    while at + 12 <= len(mended):
        length = int.from_bytes(mended[at : at + 4])
        end = at + 8 + length
        if end + 4 > len(mended):
            break
        mended[end : end + 4] = zlib.crc32(mended[at + 4 : end]).to_bytes(4)
        at = end + 4
    return bytes(mended)


@dataclass
class Tally:
    """What became of a format's damages.

    Attributes:
        outcomes: how many gave pixels, and how many each error.
        seconds: processor time.
        memory: kibibytes, the largest of any process.
        escapes: what was wrong, one line each.
    """

    outcomes: Counter[str] = field(default_factory=Counter)
    seconds: float = 0.0
    memory: int = 0
    escapes: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Turn:
    """Damages of one format that a child process looks at.

    Attributes:
        shared: memory that the child shares with its parent: the film that it looks at, in the end its counts.
        words: file that takes what decoders print.
    """

    name: str
    number: int
    count: int
    shared: mmap.mmap
    words: Path


def put(shared: mmap.mmap, data: bytes) -> None:
    """Write bytes where the parent finds them even after the child has died."""
    shared[: LENGTH.size] = LENGTH.pack(len(data))
    shared[LENGTH.size : LENGTH.size + len(data)] = data


def taken(shared: mmap.mmap) -> bytes:
    """The bytes that were put last."""
    (length,) = LENGTH.unpack(shared[: LENGTH.size])
    return shared[LENGTH.size : LENGTH.size + length]


def child(turn: Turn, films: Iterable[bytes], look: Look) -> None:
    """Look at damaged films; ends the process: by 0 if nothing escaped."""
    words = os.open(turn.words, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(words, 1)
    os.dup2(words, 2)
    faulthandler.enable()
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + MEMORY, used + MEMORY))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    signal.alarm(ASLEEP)
    outcomes: Counter[str] = Counter()
    for data in films:
        put(turn.shared, data)
        signal.setitimer(signal.ITIMER_PROF, SECONDS)  # its signal ends the process, whatever a decoder in C is doing
        outcomes[look(data)] += 1
    signal.setitimer(signal.ITIMER_PROF, 0)
    put(turn.shared, json.dumps(outcomes).encode())


def forked(turn: Turn, films: Iterable[bytes], look: Look) -> int:
    """Start a child for one turn; return its number."""
    sys.stdout.flush()
    process = os.fork()
    if process:
        return process
    try:
        child(turn, films, look)
    except BaseException:  # noqa: BLE001 - a child that went on would do the parent's work once more
        traceback.print_exc()
        os._exit(1)
    os._exit(0)


def is_fast_alone(turn: Turn, data: bytes, look: Look) -> bool:
    """True if a film that took too long is fast by itself: a virtual machine that stood still charges whoever ran."""
    _, status = os.waitpid(forked(turn, [data], look), 0)
    return status == 0


def size_of_turn(number: int) -> int:
    """The size of the film that a turn damages: of 40 turns 31 small, 4 small of 12 bits, 4 medium, 1 large."""
    return LARGE if number % 40 == 11 else {3: DEEP, 6: MEDIUM}.get(number % 10, SMALL)


def looked_at(data: bytes) -> str:
    """What becomes of a film's bytes; JPEGs of medium size and above are decoded at a part of their size."""
    return outcome(data, at_least=(12, 16))


def hunt(
    sizes: list[dict[str, bytes]],
    names: list[str],
    count: int,
    jobs: int,
    seed: int,
    look: Look,
    keep: Path,
    end: float,
) -> dict[str, Tally]:
    """Damage films on several processes.

    Args:
        sizes: films by format; the first of them are damaged most.
        names: formats that take turns.
        count: damages of each.
        jobs: processes at a time.
        look: says what becomes of a film, or raises.
        keep: folder for the bytes of what escapes.
        end: the time by ``time.monotonic`` after which no turn begins but the first of each format.
    """
    tallies = {name: Tally() for name in names}
    largest = max(len(film) for films in sizes for film in films.values())
    room = LENGTH.size + 2 * largest + 2**16
    free = [mmap.mmap(-1, room) for _ in range(jobs)]
    queue = ((name, number, min(TURN, count - number * TURN)) for number in range(-(-count // TURN)) for name in names)
    running: dict[int, Turn] = {}
    with tempfile.TemporaryDirectory() as folder:
        more = True
        while more or running:
            while more and free:
                name, number, part = next(queue, ("", 0, 0))
                more = part > 0 and (number == 0 or time.monotonic() < end)
                if not more:
                    break
                shared = free.pop()
                turn = Turn(name, number, part, shared, Path(folder, f"{names.index(name)}-{number}"))
                film = sizes[size_of_turn(number)][name]
                rng = np.random.default_rng([seed, names.index(name), number])
                running[forked(turn, damages(film, rng, part), look)] = turn
            if running:
                process, status, usage = os.wait4(-1, 0)
                turn = running.pop(process)
                recorded(tallies[turn.name], turn, status, usage, keep, look)
                turn.words.unlink(missing_ok=True)
                free.append(turn.shared)
    return tallies


def recorded(tally: Tally, turn: Turn, status: int, usage: resource.struct_rusage, keep: Path, look: Look) -> None:
    """Add a turn that has ended to a format's tally; keep the last bytes of one that ended badly."""
    tally.seconds += usage.ru_utime + usage.ru_stime
    tally.memory = max(tally.memory, usage.ru_maxrss)
    data = taken(turn.shared)
    if status == 0:
        tally.outcomes.update(json.loads(data))
        return
    code = os.waitstatus_to_exitcode(status)
    if code == -signal.SIGPROF and is_fast_alone(turn, data, look):
        return  # the turn does not count
    why = "raised" if code > 0 else signal.Signals(-code).name
    keep.mkdir(parents=True, exist_ok=True)
    escaped = keep / f"{turn.name.replace(' ', '-')}-{turn.number}.bin"
    escaped.write_bytes(data)
    tally.escapes.append(f"{turn.name}: {why}; the bytes are in {escaped}")
    print(tally.escapes[-1], turn.words.read_text(errors="replace")[-3000:], sep="\n", flush=True)


def main() -> int:
    """Damage, decode, count."""
    sizes = [films_of(32, 40, deep=False), films_of(32, 40), films_of(96, 128), films_of(288, 384)]
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(sizes[0])}; by default all")
    parser.add_argument("--count", type=int, default=1000, help="damages of each format")
    parser.add_argument("--minutes", type=float, default=1e6, help="the time after which no turn begins")
    parser.add_argument("--jobs", type=int, default=len(os.sched_getaffinity(0)), help="processes at a time")
    parser.add_argument("--seed", type=int, default=7)
    parser.add_argument("--keep", type=Path, default=Path("escaped"), help="folder for the bytes of what escapes")
    arguments = parser.parse_args()
    names = arguments.names or list(sizes[0])
    for films in sizes:
        for name in names:
            assert looked_at(films[name]) == "pixels", name  # and the decoders are imported before any fork
    began = time.monotonic()
    tallies = hunt(
        sizes, names, arguments.count, arguments.jobs, arguments.seed, looked_at, arguments.keep,
        began + 60 * arguments.minutes,
    )  # fmt: skip
    for name, tally in tallies.items():
        each = 1e3 * tally.seconds / max(1, tally.outcomes.total())
        print(
            f"{name}: {tally.outcomes.total():,}, {each:.3f} ms of processor time each, {tally.memory >> 10} MiB; "
            + ", ".join(f"{count:,} {what}" for what, count in tally.outcomes.most_common())
        )
    total = sum(tally.outcomes.total() for tally in tallies.values())
    escapes = [escape for tally in tallies.values() for escape in tally.escapes]
    print(f"{total:,} in all, in {(time.monotonic() - began) / 60:.1f} minutes; {len(escapes)} turns ended badly")
    return 1 if escapes else 0


if __name__ == "__main__":
    sys.exit(main())
