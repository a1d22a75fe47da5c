"""Connections that cost little: deadlines, sizes and a bound on their number, below the application.

uvicorn times out idle connections between requests only. Here a request's head has to arrive in time and
within a size, a caller has to fetch its answer, and where all places are taken, the connection that has owed
the rest of its request for longest makes room: callers that merely hold connections lock nobody out.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

from uvicorn.config import Config
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol
from uvicorn.server import ServerState

_CLOSING: Final = b"Connection: close\r\nContent-Length: 0\r\n\r\n"
Shed = Callable[[bytes, bytes], bytes | None]  # method and address to a whole answer, or None to go on

_TOO_SLOW: Final = b"HTTP/1.1 408 Request Timeout\r\n" + _CLOSING
_TOO_LONG: Final = b"HTTP/1.1 431 Request Header Fields Too Large\r\n" + _CLOSING
_NO_PLACE: Final = b"HTTP/1.1 503 Service Unavailable\r\nRetry-After: 1\r\n" + _CLOSING


@dataclass(frozen=True, slots=True)
class ConnectionLimits:
    """What a connection may cost.

    Attributes:
        head_seconds: in which the head of a request has to arrive, from the first connection on.
        head_bytes: of a request's address and headers.
        answer_seconds: that a caller may leave an answer unfetched.
        places: connections at the same time.
        pipelined: requests that a connection may have sent beside the one that is being answered.
    """

    head_seconds: float = 10.0
    head_bytes: int = 16 * 1024
    answer_seconds: float = 20.0
    places: int = 512
    pipelined: int = 8


class _Refused:
    """Stands for a request that was answered before the application saw it; uvicorn passes over its body."""

    response_complete = True
    message_event = asyncio.Event()


class FilmProtocol(HttpToolsProtocol):
    """One connection of uvicorn's, within limits. Made by ``functools.partial(FilmProtocol, limits=..., shed=...)``."""

    def __init__(
        self,
        config: Config,
        server_state: ServerState,
        app_state: dict[str, Any],
        _loop: asyncio.AbstractEventLoop | None = None,
        *,
        limits: ConnectionLimits,
        shed: Shed,
    ) -> None:
        super().__init__(config, server_state, app_state, _loop)
        self._limits = limits
        self._shed = shed
        self._head_bytes = 0
        self._in_body = False  # the parser has seen a head and not the end of its body
        self.owing_since = self.loop.time()
        self._head_timer: asyncio.TimerHandle | None = None
        self._answer_timer: asyncio.TimerHandle | None = None

    @property
    def owes(self) -> bool:
        """Whether no whole request of the caller waits for its answer."""
        return self._answered or self._in_body

    @property
    def _answered(self) -> bool:
        return self.cycle is None or self.cycle.response_complete

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Take a place, or make room for it."""
        super().connection_made(transport)
        if len(self.connections) > self._limits.places and not self._make_room():
            self._end(_NO_PLACE)
            return
        self._watch_head()

    def connection_lost(self, exc: Exception | None) -> None:
        """Nothing is left to watch."""
        super().connection_lost(exc)
        for timer in (self._head_timer, self._answer_timer):
            if timer is not None:
                timer.cancel()

    def data_received(self, data: bytes) -> None:
        """Count what belongs to a head; start and stop its clock."""
        if not self._in_body:
            self._head_bytes += len(data)
        super().data_received(data)
        if self._in_body:
            self._head_bytes = 0
        if self._head_bytes > self._limits.head_bytes and self._answered:
            self._end(_TOO_LONG)
        elif not self._answered:
            self._unwatch_head()
        elif not self.transport.is_closing():
            self._watch_head()

    def on_headers_complete(self) -> None:
        """Refuse a head that arrived at once and is too long; note when the body became due."""
        size = len(self.url) + sum(len(name) + len(value) + 4 for name, value in self.headers)
        if size > self._limits.head_bytes:
            raise ValueError("the head is too long")  # httptools hands it to uvicorn, which answers 400
        if len(self.pipeline) >= self._limits.pipelined:
            self.transport.abort()
            raise ValueError("too many requests at once")
        self.owing_since = self.loop.time()
        self._in_body = True
        if self._answered and (answer := self._shed(self.parser.get_method(), self.url)):
            self._refuse(answer)
        else:
            super().on_headers_complete()

    def on_message_complete(self) -> None:
        """What comes now belongs to the next head."""
        self._in_body = False
        self._head_bytes = 0
        super().on_message_complete()

    def on_response_complete(self) -> None:
        """The next request's head has a clock of its own; so has the rest of a body that nobody waits for."""
        self.owing_since = self.loop.time()
        super().on_response_complete()
        if self._in_body:
            self._watch_head()

    def pause_writing(self) -> None:
        """The caller does not fetch what it asked for: not for ever."""
        super().pause_writing()
        self._answer_timer = self.loop.call_later(self._limits.answer_seconds, self.transport.abort)

    def resume_writing(self) -> None:
        """It does again."""
        super().resume_writing()
        if self._answer_timer is not None:
            self._answer_timer.cancel()
            self._answer_timer = None

    def timeout_keep_alive_handler(self) -> None:
        """Close an idle connection, and mean it, even if the last answer was never fetched."""
        super().timeout_keep_alive_handler()
        self.loop.call_later(self._limits.answer_seconds, self.transport.abort)

    def _refuse(self, answer: bytes) -> None:
        """Answer in place of the application. Who waits to be asked for the body will not send it: that is the end."""
        self.cycle = _Refused()  # type: ignore[assignment]
        self.transport.write(answer)
        if self.expect_100_continue or not self.parser.should_keep_alive():
            self.transport.close()
        self._unwatch_head()
        self._watch_head()

    def _watch_head(self) -> None:
        if self._head_timer is None:
            self._head_timer = self.loop.call_later(self._limits.head_seconds, self._end_late_head)

    def _end_late_head(self) -> None:
        self._end(_TOO_SLOW if self._head_bytes else b"")  # who has asked nothing gets no answer

    def _unwatch_head(self) -> None:
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None

    def _make_room(self) -> bool:
        """End the connection that has owed a request for longest; False where none owes any."""
        others = (each for each in self.connections if isinstance(each, FilmProtocol) and each is not self)
        owing = [each for each in others if each.owes]
        if not owing:
            return False
        oldest = min(owing, key=lambda each: each.owing_since)
        self.connections.discard(oldest)
        oldest.transport.abort()
        return True

    def _end(self, answer: bytes) -> None:
        """Say why, close, and leave no half-closed connection behind."""
        if not self.transport.is_closing():
            self.transport.write(answer)
            self.transport.close()
        self.loop.call_later(1.0, self.transport.abort)
