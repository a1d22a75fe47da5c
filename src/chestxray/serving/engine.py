"""The loop that a service runs on: it accepts connections, and stops in order, so that no answer is lost."""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import resource
import signal
import socket
import struct
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, Final

from fastapi import FastAPI

from chestxray.inference.predictor import Predictor
from chestxray.serving.app import create_app
from chestxray.serving.connection import Connection
from chestxray.serving.decoders import DecoderPool
from chestxray.serving.logs import log
from chestxray.serving.server_state import ConnectionLimits, ServerState
from chestxray.serving.service import DRAIN_SECONDS, Service, ServiceSettings

# After SIGTERM films are still accepted for this many seconds, while /readyz and each answer send callers elsewhere.
# Together with DRAIN_SECONDS this stays below the 25 seconds that a platform waits at least before it kills.
LEAVING_SECONDS: Final = 0.5
TAKES_FILMS: Final = (b"/v1/predict", b"/v1/film", b"/invocations", b"/endpoints/")
TICK: Final = 0.1  # seconds between two checks whether to stop
OWN_FILES: Final = 48  # file descriptors that a service needs beside its connections: decoders, the log, the event loop
FEWEST_PLACES: Final = 8


def make_server(
    predictor: Predictor,
    settings: ServiceSettings | None = None,
    decoders: DecoderPool | None = None,
    connections: ConnectionLimits | None = None,
) -> FilmServer:
    """Return a server for the application of ``create_app``, ready to run on a listening socket."""
    app = create_app(predictor, settings, decoders)
    return FilmServer(app, app.state.service, connections or ConnectionLimits())


class FilmServer:
    """Serves an application on sockets, until it is told to stop.

    Attributes:
        on_start: called once with the address, as soon as films can be classified.
        should_exit: set it, from any thread, to let the service finish the films that were accepted, and return.
    """

    def __init__(self, app: FastAPI, service: Service, limits: ConnectionLimits) -> None:
        self.on_start: Callable[[str], None] | None = None
        self.should_exit = False
        self._app = app
        self._service = service
        self._limits = limits
        self._leave_at: float | None = None  # time on the clock of the loop; None until SIGTERM
        self._out_of_files = 0

    def run(self, sockets: list[socket.socket]) -> None:
        """Answer on these listening sockets until told to stop. Raises: what the warm-up raises."""
        with asyncio.Runner(loop_factory=_loop_factory()) as runner:
            runner.run(self._serve(sockets))

    async def _serve(self, sockets: list[socket.socket]) -> None:
        loop = asyncio.get_running_loop()
        loop.set_exception_handler(self._log_fault)
        state = ServerState(self._app, within_files(self._limits), self._full, self._service.metrics.observe)
        self._service.queue.on_room = state.let_in
        async with self._app.router.lifespan_context(self._app):
            servers = [
                await loop.create_server(lambda: Connection(state), sock=each, backlog=socket.SOMAXCONN)
                for each in sockets
            ]
            with self._signals(loop, state):
                if self.on_start is not None:
                    self.on_start(address_of(sockets[0]))
                while not self.should_exit:
                    await asyncio.sleep(TICK)
                    if self._leave_at is not None and loop.time() >= self._leave_at:
                        self.should_exit = True
                await self._end(state, servers, sockets)

    async def _end(self, state: ServerState, servers: list[asyncio.Server], sockets: list[socket.socket]) -> None:
        """Accept no more connections; set a time limit for the requests that are under way, and wait for them."""
        state.leaving = True
        self._service.begin_to_stop()
        for each in sockets:
            turn_away(each)
        await asyncio.sleep(TICK)  # connections that were opened before are still accepted
        for server in servers:
            server.close()
        loop = asyncio.get_running_loop()
        deadline = loop.time() + DRAIN_SECONDS + 2
        while (state.connections or state.tasks) and loop.time() < deadline:
            for connection in tuple(state.connections):
                connection.leave()
            await asyncio.sleep(TICK / 10)
        for connection in tuple(state.connections):
            connection.abort()

    def _full(self, method: bytes, path: bytes) -> bool:
        return self._service.queue.full and method == b"POST" and path.startswith(TAKES_FILMS)

    @contextmanager
    def _signals(self, loop: asyncio.AbstractEventLoop, state: ServerState) -> Iterator[None]:
        """Handle SIGTERM (not ready now, stopped after LEAVING_SECONDS) and SIGINT or a second signal (stopped now)."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return

        def terminate() -> None:
            self._service.ready = False
            state.leaving = True
            if self._leave_at is None:
                self._leave_at = loop.time() + LEAVING_SECONDS
            else:
                interrupt()

        def interrupt() -> None:
            self._service.ready = False
            self.should_exit = True

        loop.add_signal_handler(signal.SIGTERM, terminate)
        loop.add_signal_handler(signal.SIGINT, interrupt)
        try:
            yield
        finally:
            for number in (signal.SIGTERM, signal.SIGINT):
                loop.remove_signal_handler(number)

    def _log_fault(self, _loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        """Log one line for a fault below every request, and one line in a thousand for a lack of descriptors."""
        error = context.get("exception")
        if isinstance(error, OSError) and "socket" in context and not isinstance(error, ConnectionError):
            self._out_of_files += 1
            if self._out_of_files % 1000 != 1:
                return
        log.error("loop met a fault", extra={"fault": type(error).__name__})


def within_files(limits: ConnectionLimits) -> ConnectionLimits:
    """Limit the places to the files that this process may open, less its own.

    Raises that system limit where allowed.
    """
    wanted = limits.places + OWN_FILES
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        soft = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        with contextlib.suppress(ValueError, OSError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
        return replace(limits, places=max(FEWEST_PLACES, min(limits.places, soft - OWN_FILES)))
    return limits


def turn_away(listener: socket.socket) -> None:
    """Accept no new connection; closing the socket alone would reset those that wait to be accepted.

    Attaches a socket filter that passes nothing: a client that connects meanwhile tries again, and is refused once the
    socket is closed. Linux only.
    """
    if not sys.platform.startswith("linux"):
        return
    nothing = ctypes.create_string_buffer(struct.pack("HBBI", 0x06, 0, 0, 0))  # BPF_RET, 0 bytes
    with contextlib.suppress(OSError):
        listener.setsockopt(socket.SOL_SOCKET, 26, struct.pack("HP", 1, ctypes.addressof(nothing)))  # SO_ATTACH_FILTER


def _loop_factory() -> Callable[[], asyncio.AbstractEventLoop] | None:
    """Return uvloop's loop factory, or None if it is not installed: uvloop spends less work on a request."""
    try:
        import uvloop
    except ImportError:
        return None
    factory: Callable[[], asyncio.AbstractEventLoop] = uvloop.new_event_loop
    return factory


def address_of(listener: socket.socket) -> str:
    """Return the web address of a listening socket."""
    host, port = listener.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
