"""Connections that cost little: deadlines, sizes and a bound on their number, below the application.

uvicorn times out idle connections between requests only. Here a request's head has to arrive in time and
within a size, a caller has to fetch its answer, and where all places are taken, the connection that has owed
the rest of its request for longest makes room: callers that merely hold connections lock nobody out.
"""

from __future__ import annotations

import asyncio
import signal
import socket
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from types import FrameType
from typing import Any, Final

import uvicorn
from uvicorn.config import Config
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol
from uvicorn.server import ServerState

from chestxray.inference.predictor import Predictor
from chestxray.serving.app import create_app
from chestxray.serving.decoders import DecoderPool
from chestxray.serving.metrics import Metrics
from chestxray.serving.problems import OVERLOADED, problem_response
from chestxray.serving.security import HEADERS
from chestxray.serving.service import DRAIN_SECONDS, PredictionQueue, Service, ServiceSettings

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


TAKES_FILMS: Final = (b"/v1/predict", b"/invocations", b"/endpoints/")
_ROUTE: Final = "refused for want of room"
_ID: Final = str(uuid.UUID(int=0))  # stands in the template where each refusal has an id of its own


class Shedder:
    """Answers films while the queue is full."""

    def __init__(self, queue: PredictionQueue, metrics: Metrics) -> None:
        self._queue = queue
        self._counter = metrics.requests.labels(_ROUTE, str(OVERLOADED.status))
        self._template = _written_out()

    def __call__(self, method: bytes, url: bytes) -> bytes | None:
        """The whole answer to a request with that line; None where it goes on to the application."""
        if not self._queue.full or method != b"POST" or not url.startswith(TAKES_FILMS):
            return None
        self._counter.inc()
        return self._template.replace(_ID.encode(), str(uuid.uuid4()).encode())


def _written_out() -> bytes:
    detail = "as many films are waiting as may wait"
    headers = {"Retry-After": "1", "X-Request-Id": _ID, "Cache-Control": "no-store", **HEADERS}
    response = problem_response(OVERLOADED, detail, _ID, headers)
    lines = [b"HTTP/1.1 503 Service Unavailable", *(name + b": " + value for name, value in response.raw_headers)]
    return b"\r\n".join(lines) + b"\r\n\r\n" + bytes(response.body)


# After SIGTERM films are still taken for so long, while /readyz and each answer tell callers to go elsewhere. With
# DRAIN_SECONDS behind it that leaves some of the 25 seconds that a platform waits at least before it kills.
LEAVING_SECONDS: Final = 0.5


def make_server(
    predictor: Predictor,
    settings: ServiceSettings | None = None,
    decoders: DecoderPool | None = None,
    connections: ConnectionLimits | None = None,
) -> FilmServer:
    """The application of ``create_app`` under uvicorn, to be run on a listening socket."""
    app = create_app(predictor, settings, decoders)
    service: Service = app.state.service
    shed = Shedder(service.queue, service.metrics)
    protocol: Any = partial(FilmProtocol, limits=connections or ConnectionLimits(), shed=shed)  # uvicorn only calls it
    config = uvicorn.Config(
        app,
        http=protocol,
        loop="asyncio",
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,
        ws="none",
        lifespan="on",
        timeout_graceful_shutdown=int(DRAIN_SECONDS) + 2,  # by then the service has answered all that is under way
    )
    return FilmServer(config, service)


class FilmServer(uvicorn.Server):
    """uvicorn's server, which says when it answers, and leaves in order.

    Attributes:
        on_start: called once with the address, as soon as films can be judged.
    """

    def __init__(self, config: uvicorn.Config, service: Service) -> None:
        super().__init__(config)
        self.on_start: Callable[[str], None] | None = None
        self._service = service
        self._leave_at: float | None = None  # on the monotonic clock; None until SIGTERM

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Listen, then say so."""
        await super().startup(sockets)
        if self.on_start is not None and sockets:
            self.on_start(address_of(sockets[0]))

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """SIGTERM: not ready at once, gone after LEAVING_SECONDS. SIGINT, or a second signal: gone now."""
        self._service.ready = False
        if sig == signal.SIGTERM and self._leave_at is None:
            self._leave_at = time.monotonic() + LEAVING_SECONDS
        else:
            super().handle_exit(sig, frame)

    async def on_tick(self, counter: int) -> bool:
        """Ten times a second. While leaving, each answer ends its connection, so that none is cut between two."""
        if self._leave_at is not None and time.monotonic() >= self._leave_at:
            self.should_exit = True
        ends = await super().on_tick(counter)
        if self._leave_at is not None:
            self.server_state.default_headers = [*self.config.encoded_headers, (b"connection", b"close")]
        return ends

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Take no more connections; bound what is under way, then wait for it."""
        self._service.begin_to_stop()
        await super().shutdown(sockets)


def address_of(listener: socket.socket) -> str:
    """Where it listens, as an address of the web."""
    host, port = listener.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
