"""``chestxray serve``: the application on a listening socket, on loopback unless told otherwise.

``FilmServer`` accepts connections and stops in order, so that no answer is lost. The heavy libraries are imported
while the decoding process imports its own at the same time.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import errno
import resource
import signal
import socket
import struct
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final, Self

from chestxray.arguments import arguments_checked
from chestxray.errors import ChestXrayError, UsageError
from chestxray.inference.bundle import DEFAULT, Bundle, folder_of, open_bundle
from chestxray.serving.security import LOOPBACK_NAMES, VARIABLE, HostRule, KeyRing, is_loopback
from chestxray.serving.telemetry import log, logged_to_stderr, occupy_standard_streams

if TYPE_CHECKING:
    from fastapi import FastAPI

    from chestxray.inference.predictor import Predictor
    from chestxray.serving.admission import ConnectionLimits, ServerState
    from chestxray.serving.decoders import DecoderPool
    from chestxray.serving.service import Service, ServiceSettings

LEAST_MEMORY: Final = 3 * 2**29  # bytes of address space; at most a quarter of it is ever used
DEFAULT_PORT: Final = 8000
# After SIGTERM films are still accepted for this many seconds, while /readyz and each answer send callers elsewhere.
# Together with DRAIN_SECONDS this stays below the 25 seconds that a platform waits at least before it kills.
LEAVING_SECONDS: Final = 0.5
TAKES_FILMS: Final = (b"/v1/predict", b"/v1/film", b"/invocations", b"/endpoints/")
TICK: Final = 0.1  # seconds between two checks whether to stop
OWN_FILES: Final = 48  # file descriptors that a service needs beside its connections: decoders, the log, the event loop
FEWEST_PLACES: Final = 8


@dataclass(frozen=True, slots=True)
class ServeOptions:
    """Where the service listens, and which callers it serves.

    Attributes:
        host, port: port 0 takes a free one.
        threads: number of threads of one forward pass; by default as many as suit the machine.
        keys_file: lines of "SHA-256 NAME"; None takes those of the environment variable CHESTXRAY_API_KEYS.
        cors_origins: other origins whose pages may call, each exactly as browsers send it.
        names: further names by which callers address the service, such as that of a host or of a proxy's site.
        platform: the platform that runs this process decides who may call, as SageMaker does for its containers; only
            then does the service listen to other machines without a key, and accept any host name.
        transform: answer in the form of a SageMaker batch transform.
        verify_key: public key that must verify the bundle's signature; None takes the key that the environment variable
            CHESTXRAY_VERIFY_KEY names, and without either any bundle is served.
        require_age: refuse films whose file states no age; otherwise such films are answered with the note "age not
            stated".
    """

    host: str = "127.0.0.1"
    port: int = DEFAULT_PORT
    threads: int | None = None
    keys_file: Path | None = None
    cors_origins: tuple[str, ...] = ()
    names: tuple[str, ...] = ()
    platform: bool = False
    transform: bool = False
    verify_key: Path | None = None
    require_age: bool = False


@arguments_checked
def serve(
    bundle: Path | str = DEFAULT, options: ServeOptions | None = None, *, ready: Callable[[str], None] | None = None
) -> None:
    """Answer until SIGINT or SIGTERM, then finish the accepted films and return.

    Args:
        bundle: a folder, or the name of a bundle that comes with this package.
        options: where to listen and which callers to serve.
        ready: called once with the address, as soon as films can be classified.

    Raises:
        UsageError: the address cannot be used, or other machines can reach it and there is no key.
        BundleInvalid: from loading the bundle; SignatureInvalid, if the verify_key does not verify its signature.
    """
    occupy_standard_streams()
    with prepared(bundle, options or ServeOptions()) as (server, listener):
        server.on_start = ready
        with logged_to_stderr():
            server.run(listener)


@contextmanager
def prepared(bundle: Path | str, options: ServeOptions) -> Iterator[tuple[FilmServer, socket.socket]]:
    """Return a server ready to run, and its listening socket. Raises: as ``serve``."""
    keys = KeyRing.gather(options.keys_file)
    if not (keys or options.platform or is_loopback(options.host)):
        raise UsageError(
            f"--host {options.host} would let other machines in, and no key limits who may call. Make one "
            f'with "chestxray key NAME", and give its entry by --api-keys FILE or in {VARIABLE}'
        )
    _check_memory()
    opened = open_bundle(folder_of(bundle), options.verify_key)
    with closing(listening_socket(options.host, options.port)) as listener:
        yield _server(opened, options, keys), listener


def _server(bundle: Bundle, options: ServeOptions, keys: KeyRing) -> FilmServer:
    """Start the decoding processes, then build the server. Raises: BundleInvalid."""
    from chestxray.serving.decoders import DecoderLimits, DecoderPool
    from chestxray.serving.service import ServiceSettings

    names = LOOPBACK_NAMES | {name.lower().rstrip(".") for name in (options.host, *options.names)}
    settings = ServiceSettings(
        hosts=HostRule(names, any_address=not is_loopback(options.host), any_name=options.platform),
        keys=keys,
        cors_origins=options.cors_origins,
        transform=options.transform,
        decoding=DecoderLimits(require_age=options.require_age),
    )
    decoders = DecoderPool(bundle, settings.workers, settings.decoding)
    decoders.launch()
    try:
        from chestxray.inference.predictor import Predictor

        predictor = Predictor(bundle, options.threads, require_age=options.require_age)
        return make_server(predictor, settings, decoders)
    except BaseException:
        decoders.close()
        raise


def _check_memory() -> None:
    """Check that this process may reserve the address space that libraries and threads need. Raises: UsageError."""
    soft, _ = resource.getrlimit(resource.RLIMIT_AS)
    if soft != resource.RLIM_INFINITY and soft < LEAST_MEMORY:
        raise UsageError(
            f"this process may have {soft >> 20:,} MiB of memory, and serving reserves {LEAST_MEMORY >> 20:,}. "
            'Raise the limit ("ulimit -v"), or bound the memory that is used instead, as containers do'
        )


MODEL: Final = Path("/opt/ml/model")
_PORT: Final = "8080"
_HIGHEST_PORT: Final = 65535
_TRUE: Final = frozenset({"1", "true", "yes"})


def container_options(environment: Mapping[str, str]) -> ServeOptions:
    """Return a container's options, read from its environment variables. Raises: UsageError.

    The container listens to the network that its platform provides, and the platform decides who can reach it; keys are
    checked as well, if there are any.
    """
    port = environment.get("SAGEMAKER_BIND_TO_PORT") or _PORT
    if not (port.isdecimal() and 0 < int(port) <= _HIGHEST_PORT):
        raise UsageError(f"SAGEMAKER_BIND_TO_PORT is {port!r}; give a port, 1 to {_HIGHEST_PORT}")
    transform = environment.get("SAGEMAKER_BATCH", "").lower() in _TRUE
    return ServeOptions("0.0.0.0", int(port), platform=True, transform=transform)  # noqa: S104 - its own network


class BackgroundService:
    """A service that answers until ``stop``, or until the end of its ``with`` block.

    Attributes:
        address: web address of the page and the API.
    """

    def __init__(self, bundle: Path | str, options: ServeOptions) -> None:
        self._server: FilmServer | None = None
        started: Future[str] = Future()
        # A daemon thread: a script that forgets to stop the service can still end.
        self._thread = threading.Thread(target=self._run, args=(bundle, options, started), daemon=True)
        self._thread.start()
        self.address = started.result()

    def _run(self, bundle: Path | str, options: ServeOptions, started: Future[str]) -> None:
        try:
            with prepared(bundle, options) as (server, listener):
                self._server = server
                server.on_start = started.set_result
                server.run(listener)
        except BaseException as error:  # noqa: BLE001 - the thread that started the service raises it
            if not started.done():
                started.set_exception(error if isinstance(error, ChestXrayError) else _not_started(error))
        else:
            if not started.done():
                started.set_exception(_not_started(None))

    def stop(self) -> None:
        """Finish the accepted films, free the port, and return. Do nothing the second time."""
        if self._server is not None:
            self._server.should_exit = True
        self._thread.join()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.stop()


def _not_started(cause: BaseException | None) -> ChestXrayError:
    error = ChestXrayError('the service did not start. "chestxray serve" shows the cause')
    error.__cause__ = cause
    return error


@arguments_checked
def serve_in_background(bundle: Path | str = DEFAULT, options: ServeOptions | None = None) -> BackgroundService:
    """Serve the page and the API from a thread of this process, and return as soon as films can be classified.

        with chestxray.serve_in_background() as service:
            print(service.address)

    Args:
        bundle: a folder, or the name of a bundle that comes with this package.
        options: where to listen and which callers to serve; by default a free port, reachable from this machine only.

    Raises: as ``serve``.
    """
    return BackgroundService(bundle, options or ServeOptions(port=0))


def make_server(
    predictor: Predictor,
    settings: ServiceSettings | None = None,
    decoders: DecoderPool | None = None,
    connections: ConnectionLimits | None = None,
) -> FilmServer:
    """Return a server for the application of ``create_app``, ready to run on a listening socket."""
    from chestxray.serving.admission import ConnectionLimits
    from chestxray.serving.app import create_app

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

    def run(self, listener: socket.socket) -> None:
        """Answer on a listening socket until told to stop. Raises: what the warm-up raises."""
        import uvloop  # spends less processor time on a request than asyncio's own loop

        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(self._serve(listener))

    async def _serve(self, listener: socket.socket) -> None:
        from chestxray.serving.admission import ServerState
        from chestxray.serving.connection import Connection

        loop = asyncio.get_running_loop()
        loop.set_exception_handler(self._log_fault)
        state = ServerState(self._app, limits_within_files(self._limits), self._room, self._service.metrics.observe)
        self._service.queue.on_room, self._service.queue.on_film = state.answer_held, state.release_place
        async with self._app.router.lifespan_context(self._app):
            server = await loop.create_server(lambda: Connection(state), sock=listener, backlog=socket.SOMAXCONN)
            with self._signals(loop, state):
                if self.on_start is not None:
                    self.on_start(address_of(listener))
                while not self.should_exit:
                    await asyncio.sleep(TICK)
                    if self._leave_at is not None and loop.time() >= self._leave_at:
                        self.should_exit = True
                await self._end(state, server, listener)

    async def _end(self, state: ServerState, server: asyncio.Server, listener: socket.socket) -> None:
        """Accept no more connections; set a time limit for the requests that are under way, and wait for them."""
        from chestxray.serving.service import DRAIN_SECONDS

        state.stopping = True
        self._service.begin_to_stop()
        refuse_new_connections(listener)
        await asyncio.sleep(TICK)  # connections that were opened before are still accepted
        server.close()
        await state.drain(DRAIN_SECONDS + 2)

    def _room(self, method: str, path: bytes) -> int | None:
        return self._service.queue.free if method == "POST" and path.startswith(TAKES_FILMS) else None

    @contextmanager
    def _signals(self, loop: asyncio.AbstractEventLoop, state: ServerState) -> Iterator[None]:
        """Handle SIGTERM, or SIGHUP of a terminal that closes (not ready now, stopped after LEAVING_SECONDS).

        SIGINT or a second signal stops now. SIGHUP stays ignored where it is, as under nohup.
        """
        if threading.current_thread() is not threading.main_thread():
            yield
            return

        def terminate() -> None:
            self._service.ready = False
            state.stopping = True
            if self._leave_at is None:
                self._leave_at = loop.time() + LEAVING_SECONDS
            else:
                interrupt()

        def interrupt() -> None:
            self._service.ready = False
            self.should_exit = True

        handlers = {signal.SIGTERM: terminate, signal.SIGINT: interrupt}
        if signal.getsignal(signal.SIGHUP) is signal.SIG_DFL:
            handlers[signal.SIGHUP] = terminate
        for number, handler in handlers.items():
            loop.add_signal_handler(number, handler)
        try:
            yield
        finally:
            for number in handlers:
                loop.remove_signal_handler(number)

    def _log_fault(self, _loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        """Log one line for a fault below every request, and one line in a thousand for a lack of descriptors."""
        error = context.get("exception")
        if isinstance(error, OSError) and "socket" in context and not isinstance(error, ConnectionError):
            self._out_of_files += 1
            if self._out_of_files % 1000 != 1:
                return
        log.error("loop met a fault", extra={"fault": type(error).__name__})


def limits_within_files(limits: ConnectionLimits) -> ConnectionLimits:
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


def refuse_new_connections(listener: socket.socket) -> None:
    """Accept no new connection; closing the socket alone would reset those that wait to be accepted.

    Attaches a socket filter that passes nothing: a client that connects meanwhile tries again, and is refused once the
    socket is closed. Linux only.
    """
    if not sys.platform.startswith("linux"):
        return
    nothing = ctypes.create_string_buffer(struct.pack("HBBI", 0x06, 0, 0, 0))  # BPF_RET, 0 bytes
    with contextlib.suppress(OSError):
        listener.setsockopt(socket.SOL_SOCKET, 26, struct.pack("HP", 1, ctypes.addressof(nothing)))  # SO_ATTACH_FILTER


def address_of(listener: socket.socket) -> str:
    """Return the web address of a listening socket."""
    host, port = listener.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def listening_socket(host: str, port: int) -> socket.socket:
    """Open a listening socket. Raises: UsageError, if the address is taken, forbidden or not of this machine."""
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
                f"port {port} on {host} is taken. Stop what uses it, or give another one (0 takes a free one)"
            ) from error
        raise UsageError(f"{host}, port {port}: cannot be listened on ({error})") from error
    return listener
