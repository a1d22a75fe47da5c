"""Callers of an HTTP service, as many and as fast as one process can be; every answer is looked at.

A client of its own, since the usual ones take longer for a request than the service does for a refusal.
"""

from __future__ import annotations

import asyncio
import hashlib
import itertools
import json
import os
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

TOLERANCE = 1e-5  # of a probability: sums in another order, when films share a forward pass
MINUTE = 60.0  # without an answer in this time a request counts as lost


@dataclass(frozen=True)
class Case:
    """A film and the answer that it must get, from a serial reference."""

    data: bytes
    sha256: str
    probability: float | None

    @classmethod
    def of(cls, data: bytes, probability: float | None) -> Case:
        """A film with what it gets alone; None where the gate refuses it."""
        return cls(data, hashlib.sha256(data).hexdigest(), probability)


Check = Callable[[Case, bytes], bool]
Wrap = Callable[[bytes], tuple[str, bytes]]  # a film to a content type and a body


def as_it_is(data: bytes) -> tuple[str, bytes]:
    """The film's bytes are the body."""
    return "application/octet-stream", data


def as_form(data: bytes) -> tuple[str, bytes]:
    """A form whose field "film" is the file, as a browser sends it."""
    head = b'--film\r\nContent-Disposition: form-data; name="film"; filename="film"\r\nContent-Type: image/jpeg\r\n\r\n'
    return "multipart/form-data; boundary=film", head + data + b"\r\n--film--\r\n"


def right(case: Case, body: bytes) -> bool:
    """Whether that answer of our own service is the case's."""
    answer = json.loads(body)
    if answer["film_sha256"] != case.sha256 or answer["gate"]["accepted"] != (case.probability is not None):
        return False
    if case.probability is None:
        return answer["probability"] is None
    label = "pneumonia" if answer["probability"] >= answer["threshold"] else "normal"
    return abs(answer["probability"] - case.probability) <= TOLERANCE and answer["label"] == label


@dataclass
class Tally:
    """What became of the requests. ``seconds`` are those of right answers; ``lost`` had no whole answer.

    ``served`` and ``called`` are seconds of processor time: of the service and all below it, and of its callers.
    """

    seconds: list[float] = field(default_factory=list)
    refused: int = 0
    refused_without_time: int = 0
    wrong: int = 0
    other: dict[int, int] = field(default_factory=dict)
    lost: list[str] = field(default_factory=list)
    took: float = 0.0
    served: float = 0.0
    called: float = 0.0

    @property
    def answered(self) -> int:
        """Right answers."""
        return len(self.seconds)

    @property
    def goodput(self) -> float:
        """Right answers a second."""
        return self.answered / self.took

    @property
    def each(self) -> float:
        """Processor seconds of the service for a right answer, all its refusals included."""
        return self.served / max(self.answered, 1)

    def quantile(self, share: float) -> float:
        """Of the seconds of right answers."""
        ordered = sorted(self.seconds)
        return ordered[min(len(ordered) - 1, int(share * len(ordered)))] if ordered else float("nan")

    def __str__(self) -> str:
        return (
            f"{self.answered:,} right, {self.wrong} wrong, {self.refused:,} refused, {len(self.lost)} lost, "
            f"{sum(self.other.values())} other; {self.goodput:.1f} a second, "
            f"p50 {1e3 * self.quantile(0.5):.1f} ms, p99 {1e3 * self.quantile(0.99):.1f} ms; processor time: "
            f"service {1e3 * self.each:.2f} ms a right answer, callers {self.called / self.took:.2f} of a core"
        )


class Callers:
    """Connections to one service, opened when they are needed and kept.

    A caller sends ``lag`` seconds after it has its connection, as one does that is far away or busy.
    """

    def __init__(
        self,
        address: str,
        path: str = "/v1/predict",
        check: Check = right,
        wrap: Wrap = as_it_is,
        lag: float = 0.0,
    ) -> None:
        host, port = address.removeprefix("http://").split(":")
        self._where = host, int(port)
        self._head = f"POST {path} HTTP/1.1\r\nHost: {host}:{port}\r\nContent-Type: "
        self._right = check
        self._wrap = wrap
        self._lag = lag
        self._idle: list[tuple[asyncio.StreamReader, asyncio.StreamWriter]] = []
        self.tally = Tally()

    async def ask(self, case: Case) -> None:
        """One request; its outcome goes to the tally."""
        began = time.perf_counter()
        try:
            async with asyncio.timeout(MINUTE), self._connection() as (reader, writer):
                if self._lag:
                    await asyncio.sleep(self._lag)
                media_type, body = self._wrap(case.data)
                head = f"{self._head}{media_type}\r\nContent-Length: {len(body)}\r\n\r\n"
                writer.write(head.encode() + body)
                status, headers, body = await _answer(reader)
                keep = b"connection: close" not in headers
                if keep:
                    self._idle.append((reader, writer))
                else:
                    writer.close()
        except (OSError, EOFError, ValueError) as error:
            self.tally.lost.append(type(error).__name__)
            return
        self._count(case, status, headers, body, time.perf_counter() - began)

    def _count(self, case: Case, status: int, headers: bytes, body: bytes, seconds: float) -> None:
        tally = self.tally
        if status == 200:
            if self._right(case, body):
                tally.seconds.append(seconds)
            else:
                tally.wrong += 1
        elif status == 503:
            tally.refused += 1
            tally.refused_without_time += b"retry-after" not in headers
        else:
            tally.other[status] = tally.other.get(status, 0) + 1

    @asynccontextmanager
    async def _connection(self) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
        while self._idle:
            reader, writer = self._idle.pop()
            if not reader.at_eof():
                break
            writer.close()
        else:
            reader, writer = await asyncio.open_connection(*self._where, limit=2**20)
        try:
            yield reader, writer
        except BaseException:
            writer.close()
            raise

    async def closed(self, cases: Sequence[Case], count: int, at_once: int) -> Tally:
        """So many callers, each of whom asks again as soon as it is answered."""
        turns = itertools.islice(itertools.cycle(cases), count)

        async def caller() -> None:
            for case in turns:
                await self.ask(case)

        return await self._timed([caller() for _ in range(at_once)])

    async def open(self, cases: Sequence[Case], count: int, rate: float) -> Tally:
        """Requests at a rate, in even steps, whether or not earlier ones are answered."""
        loop = asyncio.get_running_loop()
        begin = loop.time()

        async def arrivals() -> None:
            async with asyncio.TaskGroup() as under_way:  # made one by one: all at once would be a burst of its own
                for number, case in zip(range(count), itertools.cycle(cases), strict=False):
                    if (early := begin + number / rate - loop.time()) > 0:
                        await asyncio.sleep(early)
                    under_way.create_task(self.ask(case))

        return await self._timed([arrivals()])

    async def _timed(self, work: list) -> Tally:
        self.tally = Tally()
        began = time.perf_counter()
        await asyncio.gather(*work)
        self.tally.took = time.perf_counter() - began
        for _, writer in self._idle:
            writer.close()
        self._idle.clear()
        return self.tally


async def _answer(reader: asyncio.StreamReader) -> tuple[int, bytes, bytes]:
    """Status, headers in lower case, body."""
    head = (await reader.readuntil(b"\r\n\r\n")).lower()
    status = int(head.split(None, 2)[1])
    _, found, rest = head.partition(b"content-length:")
    if found:
        return status, head, await reader.readexactly(int(rest.partition(b"\r\n")[0]))
    if b"transfer-encoding: chunked" not in head:
        raise ValueError("an answer without a length")
    body = b""
    while size := int(await reader.readuntil(b"\r\n"), 16):
        body += (await reader.readexactly(size + 2))[:-2]
    await reader.readuntil(b"\r\n")
    return status, head, body


def resident_mib(process: int) -> float:
    """Memory of a process and all that it started, each shared page counted in part. Linux only."""
    total = 0
    for each in [process, *descendants(process)]:
        try:
            text = Path(f"/proc/{each}/smaps_rollup").read_text()
        except OSError:  # it has ended
            continue
        total += int(text.partition("\nPss:")[2].split()[0])
    return total / 1024


def processor_seconds(process: int) -> float:
    """Processor time that a process and all below it have taken so far; of those that are still there. Linux only."""
    seconds = 0.0
    for each in (process, *descendants(process)):
        try:
            fields = Path(f"/proc/{each}/stat").read_text().rpartition(")")[2].split()
        except OSError:  # it has ended
            continue
        seconds += (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")  # utime and stime, man 5 proc
    return seconds


def children(process: int) -> list[int]:
    """Processes that it started. Linux only: each of its threads lists those that it started itself."""
    found: list[int] = []
    with suppress(OSError):  # the process has ended
        for thread in Path(f"/proc/{process}/task").iterdir():
            with suppress(OSError):  # the thread has
                found += [int(child) for child in (thread / "children").read_text().split()]
    return found


def descendants(process: int) -> list[int]:
    """Processes that it started, and those that they did. Linux only."""
    own = children(process)
    return own + [further for child in own for further in descendants(child)]
