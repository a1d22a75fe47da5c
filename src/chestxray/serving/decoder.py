"""The process that reads what callers send, and nothing else: hostile bytes meet the decoders here.

    service -- control socket --> nursery: imports the readers once and forks a decoder when asked to
    service -- film socket -----> decoder: a film in, a plane out, until something goes wrong

A fork of a process that holds the readers and no threads takes milliseconds and shares its memory, so that a
decoder which dies is cheap to replace. ``multiprocessing``'s own fork server would do the same, but runs the
caller's main module anew in each child and lets the two sides exchange pickles: what hostile bytes may have
taken over must not send anything that is executed.

Whatever goes wrong for good (a fault in a decoder in C, its time, its memory) ends in one way: the decoder
dies and the service reads the end of its socket.

Run by ``chestxray.serving.pool`` as ``python -m chestxray.serving.decoder``.
"""

from __future__ import annotations

import dataclasses
import json
import os
import resource
import signal
import socket
import struct
import sys
import traceback
from collections.abc import Callable
from io import BufferedRWPair
from pathlib import Path
from typing import Any, Final

from chestxray.errors import ChestXrayError
from chestxray.inference.bundle import Bundle
from chestxray.inference.ood import Gatekeeper, Prepared, prepare
from chestxray.schema import BundleInfo

LENGTH: Final = struct.Struct("<Q")  # stands before every message
HELLO: Final = b"+"  # a decoder says once that it is there

Reader = Callable[[bytes], Prepared]


def main() -> None:
    """The nursery: take the bundle's description, then fork a decoder for each socket that arrives."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the service decides when to end
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # the system buries the dead
    control = socket.socket(fileno=int(sys.argv[1]))
    with control.makefile("rb", buffering=0) as stream:
        order = json.loads(_message(stream.read) or b"null")
    if order is None:
        return
    read = _reader(BundleInfo.from_json(order["info"]), Path(order["folder"]))
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


def _reader(info: BundleInfo, folder: Path) -> Reader:
    """The first half of the corridor for that bundle."""
    gatekeeper = Gatekeeper.of(Bundle(folder, info))
    return lambda data: prepare(data, "this film", info.preprocessing, gatekeeper)


def _serve(films: socket.socket, read: Reader, seconds: float, memory: int) -> None:
    """Read films until the service hangs up."""
    signal.signal(signal.SIGALRM, signal.SIG_DFL)  # ends the process, whatever a decoder in C is doing
    _limit(memory)
    with films.makefile("rwb") as stream:
        _send(stream, HELLO)
        while (data := _message(stream.read)) is not None:
            signal.setitimer(signal.ITIMER_REAL, seconds)
            reply = _reply(data, read)
            signal.setitimer(signal.ITIMER_REAL, 0)
            for part in reply:
                _send(stream, part)


def _limit(memory: int) -> None:
    """Bound what a decoder can take: memory beyond what it starts with, no files, no image of its memory on disk."""
    status = Path("/proc/self/statm")
    if status.exists():
        total = int(status.read_text().split()[0]) * resource.getpagesize() + memory
        resource.setrlimit(resource.RLIMIT_AS, (total, total))
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    silence = os.open(os.devnull, os.O_RDWR)
    for stream in (0, 1, 2):  # decoders in C quote what they read
        os.dup2(silence, stream)
    os.close(silence)


def _reply(data: bytes, read: Reader) -> tuple[bytes, bytes]:
    """A head in JSON and the plane's bytes."""
    try:
        film = read(data)
    except ChestXrayError as error:
        return _head(error=type(error).__name__, message=str(error)), b""
    except MemoryError:
        return _head(error="FilmTooLarge", message="this film: takes too much memory. Export a smaller copy"), b""
    except Exception as error:  # noqa: BLE001 - a fault of ours, met by one film; the service logs where
        message = "this film: its content is damaged in a way that no reader foresaw. Copy or export it again"
        return _head(error="UnreadableFilm", message=message, fault=fault_of(error)), b""
    plane = film.plane
    head = _head(sha256=film.sha256, gate=dataclasses.asdict(film.gate), size=film.size)
    return head, b"" if plane is None else plane.tobytes()


def fault_of(error: BaseException) -> list[str]:
    """The kind of an exception and where it arose. Not its message, which may quote what a caller sent."""
    frames = traceback.extract_tb(error.__traceback__)[-6:]
    return [type(error).__name__, *(f"{Path(frame.filename).name}:{frame.lineno} {frame.name}" for frame in frames)]


def _head(**fields: Any) -> bytes:
    return json.dumps(fields).encode()


def _message(read: Callable[[int], bytes | None]) -> bytes | None:
    """The next message; None where the other side hung up."""
    head = read(LENGTH.size)
    if not head or len(head) < LENGTH.size:
        return None
    (length,) = LENGTH.unpack(head)
    data = bytearray()
    while len(data) < length:  # an unbuffered stream may give less than was asked for
        part = read(length - len(data))
        if not part:
            return None
        data += part
    return bytes(data)


def _send(stream: BufferedRWPair, data: bytes) -> None:
    stream.write(LENGTH.pack(len(data)))
    stream.write(data)
    stream.flush()


if __name__ == "__main__":
    main()
