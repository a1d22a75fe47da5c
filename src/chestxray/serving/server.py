"""``chestxray serve``: the application under uvicorn, on loopback unless told otherwise."""

from __future__ import annotations

import errno
import logging
import os
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Final

import uvicorn

from chestxray.errors import UsageError
from chestxray.inference.predictor import Predictor
from chestxray.serving.app import ServiceSettings, create_app
from chestxray.serving.security import LOOPBACK_NAMES, HostRule, is_loopback

DEFAULT_PORT: Final = 8000
ALLOW_REMOTE: Final = "CHESTXRAY_ALLOW_REMOTE"  # environment variable, "1": as ``allow_remote``
DRAIN_SECONDS: Final = 20  # for films that are being judged when the service is told to stop


def serve(
    bundle: Path,
    host: str = "127.0.0.1",
    port: int = DEFAULT_PORT,
    *,
    threads: int | None = None,
    allow_remote: bool = False,
    ready: Callable[[str], None] | None = None,
) -> None:
    """Answer until SIGINT or SIGTERM, then finish the films at hand and return.

    Args:
        port: 0 takes a free one.
        threads: of one forward pass.
        allow_remote: bind to an address that other machines reach. The service checks no keys: whoever
            sets this has put something in front of it that does.
        ready: called once with the address, as soon as films can be judged.

    Raises:
        UsageError: the address cannot be had, or reaches beyond this machine without ``allow_remote``.
        BundleInvalid: from loading the bundle.
    """
    local = is_loopback(host)
    if not (local or allow_remote or os.environ.get(ALLOW_REMOTE) == "1"):
        raise UsageError(
            f"--host {host} would let other machines in, and this service checks no keys. Leave --host out, or set "
            f"{ALLOW_REMOTE}=1 where something in front of it decides who may call"
        )
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(name)s %(message)s")
    logging.getLogger("uvicorn").setLevel(logging.WARNING)
    with closing(_listener(host, port)) as listener:
        hosts = HostRule(LOOPBACK_NAMES | {host.lower()}, any_address=not local)
        app = create_app(Predictor.load(bundle, threads), ServiceSettings(hosts=hosts))
        config = uvicorn.Config(
            app,
            log_config=None,
            access_log=False,
            server_header=False,
            proxy_headers=False,
            ws="none",
            timeout_graceful_shutdown=DRAIN_SECONDS,
        )
        with _stop_signals_end_quietly():
            _Server(config, ready).run([listener])


class _Server(uvicorn.Server):
    """uvicorn, which says when it answers."""

    def __init__(self, config: uvicorn.Config, ready: Callable[[str], None] | None) -> None:
        super().__init__(config)
        self._ready = ready

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        if self._ready is not None and sockets:
            self._ready(_address_of(sockets[0]))


def _listener(host: str, port: int) -> socket.socket:
    """A listening socket. Raises: UsageError, where the address is taken, forbidden or not ours."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        listener = socket.socket(family, kind, protocol)
        try:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind(address)
            listener.listen(socket.SOMAXCONN)
        except OSError:
            listener.close()
            raise
    except (OSError, OverflowError) as error:
        if isinstance(error, OSError) and error.errno == errno.EADDRINUSE:
            raise UsageError(
                f"port {port} on {host} is taken. Stop what uses it, or give another --port (0 takes a free one)"
            ) from error
        raise UsageError(f"{host}, port {port}: cannot be listened on ({error})") from error
    return listener


def _address_of(listener: socket.socket) -> str:
    host, port = listener.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


@contextmanager
def _stop_signals_end_quietly() -> Iterator[None]:
    """Keep quiet when uvicorn drains on SIGINT and SIGTERM and then raises the signal again: by then all is done."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, lambda *_: None) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
