"""The process that decodes what callers send, and does nothing else: hostile bytes meet only the decoders.

    service -- control socket --> fork server: imports the readers once and forks a decoder when asked to
    service -- film socket -----> decoder: a film in, a plane out, until something goes wrong

A fork of a process that holds the readers and no threads takes milliseconds and shares its memory, so that a
decoder which dies is cheap to replace. ``multiprocessing``'s own forkserver would do the same, but runs the
caller's main module anew in each child and lets the two sides exchange pickles: what hostile bytes may have
taken over must not send anything that is executed.

Whatever goes wrong for good (a fault in a decoder in C, its time, its memory) ends in one way: the decoder dies, and
the service reads end-of-file from its socket. The service alone decides that a film has had its time, by the processor
time of its decoder: a busy machine, or a decoder that somebody stopped, is no fault of the film.

The first half of this file runs in those processes, as ``python -m chestxray.serving.decoders``. The second is the
service's side of them: it hands films out, takes planes back, and replaces decoders that died. The service executes
nothing that a decoder sends and checks its form: a head in JSON and the bytes of a plane.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import json
import os
import resource
import signal
import socket
import struct
import subprocess
import sys
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from io import BufferedRWPair
from pathlib import Path
from typing import Any, Final, Generic, Self, TypeVar

import numpy as np

from chestxray.data.parallel import ONE_THREAD, keep_memory
from chestxray.errors import ChestXrayError, FilmError, FilmTooLarge, TruncatedFilm, UnreadableFilm, UnsupportedFormat
from chestxray.inference.bundle import Bundle
from chestxray.inference.heatmap import film_png
from chestxray.inference.ood import Gatekeeper, Prepared, prepare
from chestxray.schema import BundleInfo, Gate
from chestxray.serving.telemetry import fault_of, log

LENGTH: Final = struct.Struct("<Q")  # precedes every message
HELLO: Final = b"+"  # accompanies the socket of a decoder that is to be forked
GREETING: Final = struct.Struct("<I")  # sent once by a new decoder: its process id

FilmReader = Callable[[bytes], Prepared]
T = TypeVar("T")

PREPARE: Final = b"p"  # before a film: asks for the plane that the network sees
DRAW: Final = b"d"  # before a film: asks for a picture for people
DRAWN_SIDE: Final = 2048  # pixels: the longest side of that picture
MAX_DRAWN: Final = 2 * DRAWN_SIDE**2  # bytes: a PNG of pure noise takes less


def main() -> None:
    """Run the fork server: read the bundle's description, then fork a decoder for each socket that arrives."""
    keep_memory()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the service decides when to end
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # the system reaps children that ended
    control = socket.socket(fileno=int(sys.argv[1]))
    with control.makefile("rb", buffering=0) as stream:
        order = json.loads(_message(stream.read) or b"null")
    if order is None:
        return
    read = _reader(BundleInfo.from_json(order["info"]), Path(order["folder"]), require_age=order["require_age"])
    gc.freeze()  # a collection in a decoder would touch, and so copy, what it shares with this process
    while True:
        _, descriptors, _, _ = socket.recv_fds(control, 1, 1)
        if not descriptors:
            return
        films = socket.socket(fileno=descriptors[0])
        if os.fork() == 0:
            control.close()
            _serve(films, read, order["seconds"], order["memory"])
            os._exit(0)
        films.close()


def _reader(info: BundleInfo, folder: Path, *, require_age: bool) -> FilmReader:
    """Return the function that decodes, checks and preprocesses one film for a bundle."""
    gatekeeper = Gatekeeper.of(Bundle(folder, info), require_age=require_age)
    return lambda data: prepare(data, "this film", info.preprocessing, gatekeeper)


def _serve(films: socket.socket, read: FilmReader, seconds: float, memory: int) -> None:
    """Decode films until the service closes the socket."""
    signal.signal(signal.SIGPROF, signal.SIG_DFL)  # ends the process, whatever a decoder in C is doing
    _limit(memory)
    with films.makefile("rwb") as stream:
        _send(stream, GREETING.pack(os.getpid()))
        while (data := _message(stream.read)) is not None:
            signal.setitimer(signal.ITIMER_PROF, seconds + GRACE_SECONDS)  # for the case that the service is gone
            reply = _reply(data, read)
            signal.setitimer(signal.ITIMER_PROF, 0)
            _send(stream, *reply)


def _limit(memory: int) -> None:
    """Limit a decoder's resources: memory beyond what it starts with, no new files, no core dump."""
    status = Path("/proc/self/statm")
    if status.exists():
        total = int(status.read_text().split()[0]) * resource.getpagesize() + memory
        resource.setrlimit(resource.RLIMIT_AS, (total, total))
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    silence = os.open(os.devnull, os.O_RDWR)
    for stream in (0, 1, 2):  # decoders in C print parts of what they read
        os.dup2(silence, stream)
    os.close(silence)


def _reply(asked: bytes, read: FilmReader) -> tuple[bytes, bytes]:
    """Return the reply to one request: a head in JSON, and the bytes of a plane or of a PNG."""
    wanted, data = asked[:1], asked[1:]
    try:
        if wanted == DRAW:
            return _head(drawn=True), film_png(data, "this film", DRAWN_SIDE)
        film = read(data)
    except ChestXrayError as error:
        return _head(error=type(error).__name__, message=str(error)), b""
    except MemoryError:
        return _head(error="FilmTooLarge", message="this film: takes too much memory. Export a smaller copy"), b""
    except Exception as error:  # noqa: BLE001 - a fault in our own code, met by one film; the service logs its place
        message = "this film: its content is damaged in a way that no reader foresaw. Copy or export it again"
        return _head(error="UnreadableFilm", message=message, fault=fault_of(error)), b""
    plane = film.plane
    head = _head(sha256=film.sha256, gate=film.gate.to_dict(), size=film.size, notes=film.notes)
    return head, b"" if plane is None else plane.tobytes()


def _head(**fields: Any) -> bytes:
    return json.dumps(fields).encode()


def _message(read: Callable[[int], bytes | None]) -> bytes | None:
    """Read the next message; return None if the other process closed the connection."""
    head = read(LENGTH.size)
    if not head or len(head) < LENGTH.size:
        return None
    (length,) = LENGTH.unpack(head)
    data = bytearray()
    while len(data) < length:  # an unbuffered stream may return fewer bytes than asked for
        part = read(length - len(data))
        if not part:
            return None
        data += part
    return bytes(data)


def _send(stream: BufferedRWPair, *messages: bytes) -> None:
    """Send all messages in one write, because each write wakes the reader."""
    stream.write(b"".join(part for each in messages for part in (LENGTH.pack(len(each)), each)))
    stream.flush()


MOST_NOTES: Final = 16  # notes in one answer; a film has three or four at most
LONGEST_NOTE: Final = 300  # letters of one note
MAX_HEAD: Final = 2**16  # bytes of the JSON head before a plane
GRACE_SECONDS: Final = 1.0  # of processor time beyond a film's limit, after which its decoder ends by itself
PATIENCE: Final = 3  # times a film's limit, by the clock on the wall, that a decoder on a busy machine may take for it
STANDS_STILL: Final = 0.01  # share of a processor; a decoder that used less since it has its film is stopped or hangs
LEAST_WAIT: Final = 0.01  # seconds between two looks at a decoder's processor time
_HELLO_SECONDS: Final = 30  # seconds: a process that has not greeted by then never will

# Environment variables that a decoder needs; keys and credentials of the service are not among them.
_ENVIRONMENT: Final = ("PATH", "HOME", "LANG", "LC_ALL", "PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV", "LD_LIBRARY_PATH")

_ERRORS: Final[Mapping[str, type[FilmError]]] = {
    **{cls.__name__: cls for cls in (FilmTooLarge, TruncatedFilm, UnreadableFilm, UnsupportedFormat)},
    "MissingExtra": UnsupportedFormat,  # DICOM, where the decoders for it are not installed
}


class DecodersGone(ChestXrayError):
    """No decoder can be started, or the decoders died under one film without a known fault of the film."""


@dataclass(frozen=True, slots=True)
class DecoderLimits:
    """Limits on what decoding one film may cost, and whether the film has to state an age.

    Attributes:
        seconds: processor time of decoding; wall-clock time where the system does not tell the former.
        memory: bytes beyond what a decoder starts with; four times what the largest film that is read needs.
        require_age: refuse films whose file states no age.
    """

    seconds: float = 10.0
    memory: int = 2**30
    require_age: bool = False


class _DecoderDied(Exception):
    """A decoder ended while it decoded a film, and not because the film's time was up."""


class _TimeLimit:
    """While its block runs, kills a decoder once its film has had its time, or once it makes no progress with it.

    Attributes:
        exceeded: the film has had its time.
        starved: the decoder has got too little of the processor for too long.
    """

    def __init__(self, decoder: _Decoder, seconds: float) -> None:
        self.exceeded = self.starved = False
        self._decoder = decoder
        self._seconds = seconds
        self._loop = asyncio.get_running_loop()

    def __enter__(self) -> Self:
        self._began, self._used_before = self._loop.time(), self._decoder.processor_seconds()
        self._timer = self._loop.call_later(self._seconds, self._check)
        return self

    def __exit__(self, *_: object) -> None:
        self._timer.cancel()

    def _check(self) -> None:
        waited, used = self._loop.time() - self._began, self._decoder.processor_seconds() - self._used_before
        self.exceeded = used >= self._seconds
        self.starved = not self.exceeded and waited >= PATIENCE * self._seconds
        if self.exceeded or self.starved or used < STANDS_STILL * waited:
            self._decoder.kill()
        else:
            self._timer = self._loop.call_later(max(self._seconds - used, LEAST_WAIT), self._check)


class FairSemaphore:
    """A limited number of places; each free place goes to the waiting caller that used them least of late.

    One caller's costly films wait for each other and not before another caller's cheap one. The use that a caller has
    made counts half after ``HALF_LIFE`` seconds.
    """

    HALF_LIFE: Final = 10.0
    MOST_CALLERS: Final = 4096  # callers that are remembered

    def __init__(self, places: int) -> None:
        self._free = places
        self._waiting: dict[str, deque[asyncio.Future[None]]] = {}
        self._used: dict[str, tuple[float, float]] = {}  # seconds used, and the time of that figure

    @asynccontextmanager
    async def one(self, caller: str) -> AsyncIterator[None]:
        """Hold a place until the block ends."""
        await self._take(caller)
        clock = asyncio.get_running_loop().time
        began = clock()
        try:
            yield
        finally:
            self._used[caller] = (self.used(caller) + clock() - began, clock())
            if len(self._used) > self.MOST_CALLERS:
                self._used.pop(min(self._used, key=self.used))
            self._free += 1
            self._give_places()

    def used(self, caller: str) -> float:
        """Return the seconds that a caller has used; older use counts less."""
        seconds, when = self._used.get(caller, (0.0, 0.0))
        return float(seconds * 0.5 ** ((asyncio.get_running_loop().time() - when) / self.HALF_LIFE))

    async def _take(self, caller: str) -> None:
        if self._free and not self._waiting:
            self._free -= 1
            return
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.setdefault(caller, deque()).append(turn)
        self._give_places()
        try:
            await turn
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled():  # the caller was given a place that it no longer wants
                self._free += 1
                self._give_places()
            raise

    def _give_places(self) -> None:
        while self._free and self._waiting:
            caller = min(self._waiting, key=self.used)
            turns = self._waiting[caller]
            turn = turns.popleft()
            if not turns:
                del self._waiting[caller]
            if not turn.done():
                self._free -= 1
                turn.set_result(None)


@dataclass(frozen=True, slots=True)
class _DecodeRequest(Generic[T]):
    """What a decoder is asked for, and how its answer is read.

    Attributes:
        wanted: PREPARE or DRAW.
        longest: largest size of an answer, in bytes.
        parse: turns head and bytes into the result; raises ValueError, KeyError or TypeError if they are invalid.
    """

    wanted: bytes
    longest: int
    parse: Callable[[Mapping[str, Any], bytes], T | FilmError]


class DecoderPool:
    """At most ``size`` decoders, each busy with one film. Use a pool on one event loop only.

    Attributes:
        replaced: decoders that died, so far.
    """

    def __init__(self, bundle: Bundle, size: int, limits: DecoderLimits | None = None) -> None:
        self.replaced = 0
        self._bundle = bundle
        self._limits = limits or DecoderLimits()
        self._semaphore = FairSemaphore(size)
        self._idle: list[_Decoder] = []
        self._fork_server: _ForkServer | None = None
        self._closed = False
        self._plane_bytes = bundle.info.preprocessing.height * bundle.info.preprocessing.width

    def launch(self) -> _ForkServer:
        """Start the fork server; its imports run beside the caller's own. Raises: OSError, if it dies at once."""
        self._fork_server = _ForkServer(self._bundle, self._limits)
        return self._fork_server

    async def prepare(self, data: bytes, caller: str = "") -> Prepared:
        """Decode the bytes of one film.

        If a decoder ends before the film's time is up, the film is not to blame yet: a new decoder reads it once more.

        Args:
            data: the whole file.
            caller: name of the caller, which takes turns with others.

        Raises: FilmError; DecodersGone, if decoders end under a film that is within its limits, or none starts.
        """
        return await self._ask(_DecodeRequest(PREPARE, self._plane_bytes, self._parse_film), data, caller)

    async def draw(self, data: bytes, caller: str = "") -> bytes:
        """Decode the bytes of one film and draw it for people, as a grey PNG.

        Arguments and errors as of ``prepare``.
        """
        return await self._ask(_DecodeRequest(DRAW, MAX_DRAWN, _parse_picture), data, caller)

    async def _ask(self, request: _DecodeRequest[T], data: bytes, caller: str) -> T:
        async with self._semaphore.one(caller):
            try:
                answer = await self._exchange(self._idle_decoder() or await self._new(), request, data)
            except _DecoderDied:  # not by the film's time limit
                answer = await self._once_more(request, data)
        if isinstance(answer, FilmError):
            raise answer
        return answer

    async def _once_more(self, request: _DecodeRequest[T], data: bytes) -> T | FilmError:
        try:
            return await self._exchange(await self._new(), request, data)
        except _DecoderDied:
            raise DecodersGone("the processes that read this film ended before they had read it") from None

    async def _exchange(self, decoder: _Decoder, request: _DecodeRequest[T], data: bytes) -> T | FilmError:
        """Send one request about a film to one decoder and return its answer.

        Raises: UnreadableFilm, if its time is up; _DecoderDied.
        """
        try:
            with _TimeLimit(decoder, self._limits.seconds) as time_limit:
                answer = request.parse(*await decoder.exchange(request.wanted, data, request.longest))
        # the decoder is dead, was killed, or sends nonsense
        except (EOFError, OSError, ValueError, KeyError, TypeError) as error:
            decoder.kill()
            self.replaced += 1
            facts = {"exceeded": time_limit.exceeded, "starved": time_limit.starved}
            log.warning("decoder died", extra={"bytes": len(data), **facts})
            if time_limit.exceeded:
                raise UnreadableFilm(
                    f"this film: reading it took more than {self._limits.seconds:g} seconds of processor time. "
                    "Copy or export it again"
                ) from None
            if time_limit.starved:
                raise DecodersGone("the machine was too busy to read this film") from None
            raise _DecoderDied from error
        except BaseException:  # the exchange was cancelled half-way: the rest of its answer would reach the wrong film
            decoder.kill()
            raise
        self._idle.append(decoder)
        return answer

    def _idle_decoder(self) -> _Decoder | None:
        """Return an idle decoder that is still alive, or None."""
        while self._idle:
            decoder = self._idle.pop()
            if not decoder.ended:
                return decoder
            decoder.kill()
            self.replaced += 1
        return None

    def close(self) -> None:
        """Close all connections for good; decoders end when they notice."""
        self._closed = True
        for decoder in self._idle:
            decoder.kill()
        self._idle.clear()
        if self._fork_server is not None:
            self._fork_server.close()
            self._fork_server = None

    async def _new(self) -> _Decoder:
        """Start and return a new decoder; replace a fork server that died, once."""
        if self._closed:
            raise RuntimeError("the decoders are closed")
        for _ in range(2):
            try:
                fork_server = self._fork_server or self.launch()
            except OSError:  # it ended before it read its first request
                continue
            try:
                return await _Decoder.fork(fork_server)
            except (EOFError, OSError, TimeoutError):
                fork_server.close()
                if self._fork_server is fork_server:  # else another film has replaced it meanwhile
                    self._fork_server = None
        raise DecodersGone("no decoding process starts; standard error has its last words")

    def _parse_film(self, head: Mapping[str, Any], plane: bytes) -> Prepared | FilmError:
        """Return the film, or its error, that a decoder's answer describes. Raises: ValueError, KeyError, TypeError."""
        if "error" in head:
            return _error_in(head)
        height, width = head["size"]
        pixels = None
        if plane:
            preprocessing = self._bundle.info.preprocessing
            pixels = np.frombuffer(plane, np.uint8).reshape(preprocessing.height, preprocessing.width)
        notes = tuple(str(note)[:LONGEST_NOTE] for note in head["notes"][:MOST_NOTES])
        return Prepared(str(head["sha256"]), Gate(**head["gate"]), (int(height), int(width)), pixels, notes)


def _parse_picture(head: Mapping[str, Any], picture: bytes) -> bytes | FilmError:
    """Return the PNG, or the error, that a decoder's answer holds. Raises: ValueError, KeyError."""
    if "error" in head:
        return _error_in(head)
    if not picture.startswith(b"\x89PNG\r\n\x1a\n"):
        raise ValueError("a picture that is no PNG")
    return picture


def _error_in(head: Mapping[str, Any]) -> FilmError:
    """Return the error that a decoder reported, and log a fault of our own. Raises: KeyError, if it is unknown."""
    if fault := head.get("fault"):
        log.error("decoder met a fault", extra={"fault": fault})
    return _ERRORS[head["error"]](str(head["message"]))


class _ForkServer:
    """The process that forks decoders."""

    def __init__(self, bundle: Bundle, limits: DecoderLimits) -> None:
        self._control, theirs = socket.socketpair()
        with theirs:
            self._process = subprocess.Popen(  # noqa: S603 - our own module
                [sys.executable, "-P", "-m", "chestxray.serving.decoders", str(theirs.fileno())],
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                process_group=0,  # Ctrl-C of a terminal does not reach it, not even while it begins
                env={name: os.environ[name] for name in _ENVIRONMENT if name in os.environ} | ONE_THREAD,
            )
        order = {
            "info": bundle.info.to_json(),
            "folder": str(bundle.folder),
            "seconds": limits.seconds,
            "memory": limits.memory,
            "require_age": limits.require_age,
        }
        text = json.dumps(order).encode()
        try:
            self._control.sendall(LENGTH.pack(len(text)) + text)
        except OSError:
            self.close()
            raise

    def fork(self, films: socket.socket) -> None:
        """Ask the process to fork a decoder that reads films from a socket.

        Raises: OSError, if the process has ended.
        """
        socket.send_fds(self._control, [HELLO], [films.fileno()])

    def close(self) -> None:
        """Close the connection, which ends the process, and reap it."""
        self._control.close()
        self._process.kill()
        self._process.wait()


class _Decoder:
    """The connection to one decoder."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer
        self._handle = -1  # a handle of the process: a kill can never hit another process with the same number
        self._clock = time.CLOCK_MONOTONIC

    @classmethod
    async def fork(cls, fork_server: _ForkServer) -> _Decoder:
        """Fork a decoder and connect to it. Raises: EOFError, OSError, TimeoutError, if no decoder starts."""
        ours, theirs = socket.socketpair()
        with theirs:
            try:
                fork_server.fork(theirs)
            except OSError:
                ours.close()
                raise
        decoder = cls(*await asyncio.open_connection(sock=ours, limit=2**20))
        try:
            async with asyncio.timeout(_HELLO_SECONDS):
                (process,) = GREETING.unpack(await decoder._message(GREETING.size))
            # the process has ended already, or this system has no process handles
            with contextlib.suppress(OSError, AttributeError):
                decoder._handle = os.pidfd_open(process)
                decoder._clock = ~process << 3 | 2  # of its processor time: clock_getcpuclockid(3) on Linux
        except BaseException:
            decoder.kill()
            raise
        return decoder

    @property
    def ended(self) -> bool:
        """True once the decoder has closed the connection."""
        return self._reader.at_eof() or self._writer.is_closing()

    def processor_seconds(self) -> float:
        """Return the processor time used so far, or wall-clock time where the system does not tell; 0 after its end."""
        try:
            return time.clock_gettime(self._clock)
        except OSError:  # the process has ended
            return 0.0

    async def exchange(self, wanted: bytes, data: bytes, longest: int) -> tuple[dict[str, Any], bytes]:
        """Send a film; return a head and at most ``longest`` bytes. Raises: EOFError, OSError, ValueError."""
        self._writer.writelines((LENGTH.pack(len(wanted) + len(data)) + wanted, data))
        await self._writer.drain()
        head: dict[str, Any] = json.loads(await self._message(MAX_HEAD))
        return head, await self._message(longest)

    async def _message(self, longest: int) -> bytes:
        (length,) = LENGTH.unpack(await self._reader.readexactly(LENGTH.size))
        if length > longest:
            raise ValueError(f"a message of {length} bytes where at most {longest} make sense")
        return await self._reader.readexactly(length)

    def kill(self) -> None:
        """Kill the process, even one that hangs, and close the connection."""
        if self._handle >= 0:
            with contextlib.suppress(OSError):  # the process has ended
                signal.pidfd_send_signal(self._handle, signal.SIGKILL)
            os.close(self._handle)
            self._handle = -1
        with contextlib.suppress(RuntimeError):  # the event loop has ended already, and closed the socket
            self._writer.close()


if __name__ == "__main__":
    main()
