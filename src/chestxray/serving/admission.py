"""Admission: places for connections, room for requests, and what waits or is closed where there is none.

Connections share one ``ServerState``. Where all places are taken, the connection that brings least makes room, so that
callers which merely hold connections lock nobody out. A film request that finds no room is refused before the
application sees it, and not at once: a caller that asks again as soon as it is refused would take the processor from
the films.
"""

from __future__ import annotations

import asyncio
import random
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import IntEnum
from typing import TYPE_CHECKING, Final

from starlette.types import ASGIApp

from chestxray.serving.problems import OVERLOADED, ProblemType
from chestxray.serving.security import written_out
from chestxray.serving.telemetry import log

if TYPE_CHECKING:
    from chestxray.serving.connection import Connection
    from chestxray.serving.request import RequestCycle

RESERVED_SECONDS: Final = 0.05  # at most, from the arrival of a film until it is in the queue
DRAIN_TICK: Final = 0.01  # seconds between two looks at the connections of a service that is stopping


@dataclass(frozen=True, slots=True)
class ConnectionLimits:
    """Limits on what one connection may cost.

    Attributes:
        head_seconds: in which the head of a request has to arrive, from the first connection on.
        head_bytes: of a request's address and headers.
        framing_bytes: of chunk sizes, chunk extensions and trailers, beyond as many as the body has.
        idle_seconds: that a connection may be kept between two requests; longer than pooled clients keep theirs.
        answer_seconds: that a caller may leave an answer unfetched.
        skipped_bytes: of a body that nobody reads, for the sake of the next request on its connection.
        linger_seconds, linger_bytes: how long and how much is read and thrown away behind an early answer.
        places: connections at the same time.
        pipelined: requests that a connection may have sent beside the one that is being answered.
        held: refused requests that may wait for their refusal at the same time, or for room.
        hold_seconds: that they wait at most.
        refusals: a second, that are answered without waiting.
    """

    head_seconds: float = 10.0
    head_bytes: int = 16 * 1024
    framing_bytes: int = 64 * 1024
    idle_seconds: float = 75.0
    answer_seconds: float = 20.0
    skipped_bytes: int = 256 * 1024
    linger_seconds: float = 30.0
    linger_bytes: int = 128 * 2**20
    places: int = 4096
    pipelined: int = 8
    held: int = 300
    hold_seconds: float = 1.0
    refusals: int = 50


class Rank(IntEnum):
    """What a connection is worth when one has to make room; among equals, who brought something last is worth more."""

    ANSWERED = 0  # for good
    OPENED = 1  # nothing was asked yet
    ASKED_BEFORE = 2
    BEGUN = 3  # a part of a head is here, or the caller was answered early and still sends
    HAS_HEAD = 4
    HAS_BODY = 5
    WAITS = 6  # for the answer to a whole request, or held: never closed


@dataclass(slots=True)
class ServerState:
    """State that all connections of a service share.

    Attributes:
        app: the ASGI application that answers requests.
        room: for how many films there is room; None if a request with that method and address brings no film.
        observe: counts an answer that did not come from the application: route, status, seconds.
        connections: open ones.
        tasks: of requests that are being answered.
        reserved: requests with a place in the queue reserved until the given time, the oldest first.
        stopping: True once the service is about to stop.
        held: requests that found no room and wait for it, or else for their refusal; the oldest first.
        ranked: connections by rank, with the time of the last arrival when they came to it; the longest there first.
    """

    app: ASGIApp
    limits: ConnectionLimits
    room: Callable[[str, bytes], int | None]
    observe: Callable[[str, int, float], None]
    connections: set[Connection] = field(default_factory=set)
    ranked: tuple[dict[Connection, float], ...] = field(default_factory=lambda: tuple({} for _ in Rank))
    tasks: set[asyncio.Task[None]] = field(default_factory=set)
    stopping: bool = False
    held: dict[RequestCycle, Connection] = field(default_factory=dict)
    reserved: dict[RequestCycle, float] = field(default_factory=dict)
    _second: int = 0
    _refused: int = 0

    def problem(self, kind: ProblemType, detail: str, *, close: bool = True, retry: bool = False) -> bytes:
        """Build a refusal below the application: counted, logged, and as complete as any other."""
        # no secret, and asking the system for randomness would pass the interpreter to another thread
        request_id = str(uuid.UUID(int=random.getrandbits(128), version=4))
        self.observe("-", kind.status, 0.0)
        if kind is not OVERLOADED:  # at ten times the capacity, one log line for each would cost as much as the films
            log.info("refused", extra={"request": request_id, "kind": kind.name, "status": kind.status})
        return written_out(kind, detail, request_id, close=close, retry=retry)

    def admit(self, cycle: RequestCycle) -> bool:
        """Return whether there is room for a request, and reserve a place for a film that has arrived whole.

        Many requests may arrive in one turn of the event loop. Without reservations all of them find the same room, and
        the application refuses all but one later, at several times the cost. Who sends slowly reserves nothing.
        """
        room = self.room(cycle.scope["method"], cycle.scope["raw_path"])
        if room is None:
            return True
        now = time.monotonic()
        while self.reserved and next(iter(self.reserved.values())) <= now:
            self.release_place()
        if len(self.reserved) >= room:
            return False
        if cycle.arrived:
            self.reserved[cycle] = now + RESERVED_SECONDS
        return True

    def release_place(self) -> None:
        """Release the oldest reservation: a film has entered the queue, or its time is over."""
        if self.reserved:
            del self.reserved[next(iter(self.reserved))]

    def must_hold(self) -> bool:
        """Check whether a refusal has to wait before it is sent.

        The first ``refusals`` of each second do not wait, nor do any while ``held`` of them wait already. A caller that
        asks again as soon as it is refused would otherwise take the processor from the films.
        """
        second = int(time.monotonic())
        if second != self._second:
            self._second, self._refused = second, 0
        self._refused += 1
        return self._refused > self.limits.refusals and len(self.held) < self.limits.held and not self.stopping

    def answer_held(self) -> None:
        """Answer the request that has been held for longest: there is room, and nobody else has come to take it."""
        while self.held:
            cycle, connection = next(iter(self.held.items()))
            if cycle.gone:
                del self.held[cycle]
                continue
            if self.admit(cycle):
                del self.held[cycle]
                connection.run(cycle)
            return

    def make_room(self) -> bool:
        """Close the connection that is worth least; return False if every connection waits for an answer."""
        for there in self.ranked[: Rank.WAITS]:
            while there:
                connection, last = next(iter(there.items()))
                if connection.update_rank():
                    continue
                if connection.last_arrival != last:  # it has brought something since: behind the others
                    del there[connection]
                    there[connection] = connection.last_arrival
                    continue
                connection.give_up_place()
                connection.abort()
                return True
        return False

    async def drain(self, seconds: float) -> None:
        """Let every request that is under way end, then close what is still open after that many seconds."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + seconds
        while (self.connections or self.tasks) and loop.time() < deadline:
            for connection in tuple(self.connections):
                connection.leave()
            await asyncio.sleep(DRAIN_TICK)
        for connection in tuple(self.connections):
            connection.abort()
