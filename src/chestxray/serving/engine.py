"""uvicorn, set up for this service: limits below the application, and an end that loses nothing."""

from __future__ import annotations

import signal
import socket
import time
from collections.abc import Callable
from functools import partial
from types import FrameType
from typing import Any, Final

import uvicorn

from chestxray.inference.predictor import Predictor
from chestxray.serving.app import create_app
from chestxray.serving.connections import ConnectionLimits, FilmProtocol
from chestxray.serving.pool import DecoderPool
from chestxray.serving.service import DRAIN_SECONDS, Service
from chestxray.serving.settings import ServiceSettings
from chestxray.serving.shedding import Shedder

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
