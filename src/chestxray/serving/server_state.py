"""What the connections of a service share: their limits, who is connected, and who makes room.

Where all places are taken, the connection that brings least makes room, so that callers which merely hold connections
lock nobody out.
"""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import IntEnum
from functools import lru_cache
from typing import TYPE_CHECKING, Final

from starlette.types import ASGIApp

from chestxray.serving.logs import log
from chestxray.serving.problems import OVERLOADED, ProblemType
from chestxray.serving.request import RequestCycle
from chestxray.serving.security import written_out

if TYPE_CHECKING:
    from chestxray.serving.connection import Connection

_SOME_ID: Final = bytes(str(uuid.UUID(int=0)), "ascii")


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
    places: int = 512
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
        full: returns True if a request with the given method and address would find no room.
        observe: counts an answer that did not come from the application: route, status, seconds.
        connections: open ones.
        tasks: of requests that are being answered.
        leaving: True once the service is about to stop.
        held: requests that found no room and wait for it, or else for their refusal; the oldest first.
        ranked: connections by rank, with the time of the last arrival when they came to it; the longest there first.
    """

    app: ASGIApp
    limits: ConnectionLimits
    full: Callable[[bytes, bytes], bool]
    observe: Callable[[str, int, float], None]
    connections: set[Connection] = field(default_factory=set)
    ranked: tuple[dict[Connection, float], ...] = field(default_factory=lambda: tuple({} for _ in Rank))
    tasks: set[asyncio.Task[None]] = field(default_factory=set)
    leaving: bool = False
    held: dict[RequestCycle, Connection] = field(default_factory=dict)
    _second: int = 0
    _refused: int = 0

    def problem(self, kind: ProblemType, detail: str, *, close: bool = True, retry: bool = False) -> bytes:
        """Build a refusal below the application: counted, logged, and as complete as any other."""
        request_id = str(uuid.uuid4())
        self.observe("-", kind.status, 0.0)
        if kind is not OVERLOADED:  # at ten times the capacity, one log line for each would cost as much as the films
            log.info("refused", extra={"request": request_id, "kind": kind.name, "status": kind.status})
        return _written_before(kind, detail, close=close, retry=retry).replace(_SOME_ID, request_id.encode())

    def must_hold(self) -> bool:
        """Check whether a refusal has to wait before it is sent.

        The first ``refusals`` of each second do not wait, nor do any while ``held`` of them wait already. A caller that
        asks again as soon as it is refused would otherwise take the processor from the films.
        """
        second = int(time.monotonic())
        if second != self._second:
            self._second, self._refused = second, 0
        self._refused += 1
        return self._refused > self.limits.refusals and len(self.held) < self.limits.held and not self.leaving

    def let_in(self) -> None:
        """Answer the request that has been held for longest: there is room, and nobody else has come to take it."""
        while self.held:
            cycle = next(iter(self.held))
            connection = self.held.pop(cycle)
            if not cycle.gone:
                connection.run(cycle)
                return

    def make_room(self) -> bool:
        """Close the connection that is worth least; return False if every connection waits for an answer."""
        for there in self.ranked[: Rank.WAITS]:
            while there:
                connection, last = next(iter(there.items()))
                if connection.rank_anew():
                    continue
                if connection.last_arrival != last:  # it has brought something since: behind the others
                    del there[connection]
                    there[connection] = connection.last_arrival
                    continue
                connection.give_place_back()
                connection.abort()
                return True
        return False


@lru_cache(64)
def _written_before(kind: ProblemType, detail: str, *, close: bool, retry: bool) -> bytes:
    """Return a refusal with a placeholder for the request id; cached, because at overload building each is costly."""
    return written_out(kind, detail, _SOME_ID.decode(), close=close, retry=retry)
