"""pynetdicom's associations, without the waits and copies that cost a node more than everything beside classifying.

Threads wait for events. An association has two threads: one reads and writes PDUs, the other serves messages. Each
sleeps for a millisecond whenever it finds nothing to do, which over a few open associations costs more processor time
than the films. Here the first one waits for bytes from the peer or for something to send, the second one for a message;
what the library does then is unchanged. Its timers, which it looks at between two events, are up to ``LONGEST_S`` late.
While another of our threads waits for an answer, the second thread takes no message. In the library it takes the
answer and drops it, if the system stops it at the wrong moment between two requests of ours.

C-STORE is read and written as bytes. pynetdicom builds a data set, a primitive and an event for each message, and
copies a film eight times on its way from the connection. Here the requests that arrive are read into one buffer, and
answered, where they arrive. All other messages, and C-STORE in any form but the usual one, are the library's.

This file leans on private parts of pynetdicom, whose version is bounded in ``pyproject.toml``.

Sources: DICOM PS3.7 sections 6.3 (command set), 9.3.1 (C-STORE), annex E (tags); PS3.8 sections 9.3.5 (P-DATA-TF) and
annex E (message control header).
"""

from __future__ import annotations

import contextlib
import math
import select
import socket
import ssl
import struct
import threading
import time
import weakref
from collections.abc import Callable, Mapping
from typing import Any, Final, NamedTuple

from pynetdicom import evt
from pynetdicom.pdu_primitives import P_DATA

from chestxray.files import MEBIBYTE

LONGEST_S: Final = 0.2  # seconds of one wait
CLOSING_S: Final = 0.001  # seconds between two looks at a connection that is being closed, as the library waits
CLOSING: Final = frozenset({"Sta1", "Sta13"})  # states without a connection to wait for (PS3.8 section 9.2.2)


SOP_CLASS: Final = 0x00000002
COMMAND: Final = 0x00000100
MESSAGE: Final = 0x00000110
ANSWERED_MESSAGE: Final = 0x00000120
PRIORITY: Final = 0x00000700
DATA_SET_TYPE: Final = 0x00000800
STATUS: Final = 0x00000900
SOP_INSTANCE: Final = 0x00001000

STORE: Final = 0x0001
STORE_ANSWER: Final = 0x8001
NO_DATA_SET: Final = 0x0101
SOME_DATA_SET: Final = 0x0001
LOW: Final = 0x0002

DATA_PDU: Final = 0x04
IS_COMMAND: Final = 0x01  # bits of the message control header
IS_LAST: Final = 0x02
HEADS: Final = 6  # bytes before the body of a PDU, and before the body of a fragment
LEAST_PDU: Final = 512  # bytes; into a shorter one an answer may not fit
LONGEST_UID: Final = 64
ESTABLISHED: Final = "Sta6"  # PS3.8 section 9.2
CONNECTION_ENDED: Final = "Evt17"
INVALID_PDU: Final = "Evt19"
LONGEST_PDU: Final = MEBIBYTE  # bytes of the longest PDU that is read: a request with every possible context
BYTES_AT_ONCE: Final = 65_536  # bytes; memory grows with what comes, not with what a header claims
KEPT: Final = 4 * MEBIBYTE  # bytes that an association keeps for its next film
SENT_AT_ONCE: Final = 65_536  # bytes between two looks at the time: a peer may take a byte now and then
PAUSING_S: Final = 0.0001  # seconds between two looks at the thread that has to pause, as the library waits


def wait_for_events(association: Any) -> None:
    """Make both threads of an association wait for events.

    Args:
        association: of pynetdicom; its connection is open, and its messages are not served yet.
    """
    connection = association.dul.socket.socket
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)  # a message is two writes: command and data set
    longest = math.ceil(association.network_timeout or 0)  # seconds that a write may wait; 0 is for ever
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, struct.pack("@ll", longest, 0))
    _pdus_by_events(association)
    _messages_by_events(association)


def _pdus_by_events(association: Any) -> None:
    service, waker = association.dul, _Waker()
    find_event = service._is_transport_event  # noqa: SLF001 - the library has no hook for this

    def wait_and_find_event() -> bool:
        connection = service.socket.socket if service.socket else None
        if connection is None or service.state_machine.current_state in CLOSING:
            time.sleep(CLOSING_S)
        elif not service.event_queue.queue and not _has_read_on(connection):
            waker.wait(connection)
            acknowledge(connection)
        if service.to_provider_queue.queue:  # sending goes first
            return False
        return bool(find_event())

    service._is_transport_event = wait_and_find_event  # noqa: SLF001
    service._run_loop_delay = 0  # noqa: SLF001
    _call_after(service.to_provider_queue, "put", waker.wake)
    association.bind(evt.EVT_CONN_CLOSE, lambda _: waker.close())
    weakref.finalize(service, waker.close)


def acknowledge(connection: Any) -> None:
    """Acknowledge what has come at once, where the system lets us; it goes back to waiting by itself.

    Peers built on dcmtk write a PDU's header and its body apart, and may hold the body back until the header is
    acknowledged, which the system puts off by 40 ms (Nagle's algorithm and delayed acknowledgements, RFC 1122, 4.2.3).
    """
    if hasattr(socket, "TCP_QUICKACK"):
        with contextlib.suppress(OSError):  # closed meanwhile
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_QUICKACK, 1)


def _has_read_on(connection: Any) -> bool:
    """Check whether TLS holds bytes that it has read beyond those asked for; the system then has none to tell of."""
    return isinstance(connection, ssl.SSLSocket) and connection.pending() > 0


def _messages_by_events(association: Any) -> None:
    service, messages = association.dul, association.dimse
    free = association._reactor_checkpoint  # noqa: SLF001 - not set while a thread of ours asks the peer for something
    happened = threading.Event()
    get = messages.get_msg

    def wait_and_get(block: bool = False) -> Any:  # noqa: FBT001, FBT002 - the library's signature
        if block:
            return get(block)
        happened.clear()
        if free.is_set() and not messages.msg_queue.queue and service.peek_next_pdu() is None:
            happened.wait(LONGEST_S)
        with messages.msg_queue.mutex:  # no answer comes between the look and the taking
            taken = free.is_set() and messages.msg_queue.queue
            return messages.msg_queue.queue.popleft() if taken else (None, None)

    messages.get_msg = wait_and_get
    _call_after(messages.msg_queue, "put", happened.set)
    _call_after(service.to_user_queue, "put", happened.set)
    _call_after(free, "clear", happened.set)


def _call_after(owner: Any, name: str, follow: Any) -> None:
    """Call ``follow`` after each call of a method of this object."""
    method = getattr(owner, name)

    def both(*values: Any, **named: Any) -> Any:
        result = method(*values, **named)
        follow()
        return result

    setattr(owner, name, both)


class _Waker:
    """Ends another thread's wait for a connection."""

    def __init__(self) -> None:
        self._reader, self._writer = socket.socketpair()
        self._reader.settimeout(0)
        self._writer.settimeout(0)

    def wake(self) -> None:
        """End the wait in progress, or the next one."""
        with contextlib.suppress(OSError):  # full: the wait ends already. Closed: nobody waits
            self._writer.send(b"\0")

    def wait(self, connection: socket.socket) -> None:
        """Wait until the connection can be read, or ``wake`` is called, or ``LONGEST_S`` is over."""
        with contextlib.suppress(OSError, ValueError):  # closed meanwhile: the library looks at it next
            ready, _, _ = select.select([connection, self._reader], [], [], LONGEST_S)
            if self._reader in ready:
                self._reader.recv(4096)

    def close(self) -> None:
        """Close both ends."""
        self._reader.close()
        self._writer.close()


class StoreRequest(NamedTuple):
    """What a C-STORE request says of its film."""

    context: int
    message: int
    sop_class: str
    sop_instance: str
    transfer_syntax: str


class StoreAnswer(NamedTuple):
    """The answer to a C-STORE request of ours."""

    message: int
    status: int


StoreHandler = Callable[[StoreRequest, bytes | memoryview], int]  # a request, its data set as it came -> status


def command_set(values: Mapping[int, int | str]) -> bytes:
    """Encode a command set: implicit little endian, elements by rising tag, their length first (PS3.7 section 6.3.1).

    Args:
        values: by tag: a number of 16 bits, or a UID.
    """
    body = b""
    for tag in sorted(values):
        value = values[tag]
        coded = struct.pack("<H", value) if isinstance(value, int) else value.encode() + b"\0" * (len(value) % 2)
        body += struct.pack("<HHL", tag >> 16, tag & 0xFFFF, len(coded)) + coded
    return struct.pack("<HHLL", 0, 0, 4, len(body)) + body


def values_of(command: bytes) -> dict[int, bytes]:
    """Return the elements of a command set by tag; none at all, if it is damaged."""
    found, position = {}, 0
    while position < len(command):
        if position + 8 > len(command):
            return {}
        group, number, length = struct.unpack_from("<HHL", command, position)
        position += 8 + length
        if group or position > len(command):
            return {}
        found[number] = command[position - length : position]
    return found


def _number(values: Mapping[int, bytes], tag: int) -> int | None:
    value = values.get(tag, b"")
    return int.from_bytes(value, "little") if len(value) == struct.calcsize("<H") else None


def _uid(values: Mapping[int, bytes], tag: int) -> str:
    """Return a UID; empty if it is missing or no UID."""
    text = values.get(tag, b"").rstrip(b"\0 ").decode("ascii", "replace")
    return text if len(text) <= LONGEST_UID and text.replace(".", "0").isdigit() else ""


def file_meta(sop_class: str, sop_instance: str, transfer_syntax: str, implementation: tuple[str, str]) -> bytes:
    """Encode what stands before the data set in a file (PS3.10 section 7.1): preamble and file meta information.

    Args:
        sop_class, sop_instance, transfer_syntax: UIDs of the data set.
        implementation: UID and name of the writer.
    """
    words = {0x02: (b"UI", sop_class), 0x03: (b"UI", sop_instance), 0x10: (b"UI", transfer_syntax)}
    words |= {0x12: (b"UI", implementation[0]), 0x13: (b"SH", implementation[1])}
    meta = struct.pack("<HH2sxxL2s", 2, 1, b"OB", 2, b"\0\1")
    for number, (vr, word) in sorted(words.items()):
        value = word.encode() + (b"\0" if vr == b"UI" else b" ") * (len(word) % 2)
        meta += struct.pack("<HH2sH", 2, number, vr, len(value)) + value
    return b"\0" * 128 + b"DICM" + struct.pack("<HH2sHL", 2, 0, b"UL", 4, len(meta)) + meta


def fragment_pdu(context: int, control: int, body: bytes) -> bytes:
    """Encode a P-DATA-TF PDU of one fragment."""
    return _pdu_head(context, control, len(body)) + body


def _pdu_head(context: int, control: int, length: int) -> bytes:
    return struct.pack(">BxLLBB", DATA_PDU, HEADS + length, 2 + length, context, control)


def _fragment(context: int, control: int, body: bytes | bytearray) -> P_DATA:
    """Return a fragment as the library passes it on."""
    fragment = P_DATA()
    fragment.presentation_data_value_list.append((context, bytes([control]) + body))
    return fragment


def _check_length(pdu: int) -> None:
    if pdu > LONGEST_PDU:
        raise OSError("a PDU of more bytes than any that was agreed on")


class Stores:
    """The C-STORE messages of one association, in both directions."""

    def __init__(
        self,
        association: Any,
        serve: StoreHandler | None = None,
        longest: int | None = None,
        too_long: Callable[[], object] = lambda: None,
    ) -> None:
        """Take over the reading.

        Args:
            association: of pynetdicom; its connection is open.
            serve: keeps a film and returns a status; None leaves all requests to the library.
            longest: number of bytes of the longest message that is read, of whatever kind.
            too_long: called when a message is longer; it is expected to close the connection.
        """
        self._awaits_answer = False
        self._number = 0  # of the last request of ours
        self._association = association
        self._service = association.dul
        self._serve = serve
        self._longest = longest
        self._too_long = too_long
        self._request: StoreRequest | None = None
        self._film = bytearray()  # is used for film after film, as memory that is new to the process costs time
        self._filled = 0  # bytes of the film
        self._read = 0  # bytes of the message
        self._ahead = bytearray()
        self._library = self._service._read_pdu_data  # noqa: SLF001 - the library has no hook for this
        self._service.socket.recv = self._receive
        self._service._read_pdu_data = self.read  # noqa: SLF001

    def send(self, context: int, sop_class: str, sop_instance: str, data: bytes | memoryview) -> int | None:
        """Send a data set and wait for the answer, as the library does with its own requests.

        Args:
            context: number of an accepted presentation context, in whose transfer syntax the data set is encoded.
            sop_class, sop_instance: UIDs of the data set.
            data: the encoded data set, without file meta information.

        Returns: the status; None, if the association ended, or no answer came in time.
        """
        peer = self._association
        if not peer.is_established:
            return None
        self._number = self._number % 0xFFFF + 1
        command = command_set(
            {
                SOP_CLASS: sop_class,
                COMMAND: STORE,
                MESSAGE: self._number,
                PRIORITY: LOW,
                DATA_SET_TYPE: SOME_DATA_SET,
                SOP_INSTANCE: sop_instance,
            }
        )
        peer._reactor_checkpoint.clear()  # noqa: SLF001 - the association's own thread takes no message meanwhile
        try:
            while not peer._is_paused:  # noqa: SLF001
                time.sleep(PAUSING_S)
            self._awaits_answer = True
            self._write(self._pdus(context, (IS_COMMAND, command), (0, data)))
            _, answer = peer.dimse.get_msg(block=True)
        except OSError:
            self._service.event_queue.put(CONNECTION_ENDED)
            return None
        finally:
            self._awaits_answer = False
            peer._reactor_checkpoint.set()  # noqa: SLF001
        if isinstance(answer, StoreAnswer) and answer.message == self._number:
            return answer.status
        if peer.is_established and not peer.acse.is_aborted():
            peer.abort()
        return None

    def _pdus(self, context: int, *parts: tuple[int, bytes | memoryview]) -> bytearray:
        """Encode the command and the data set in fragments as long as the peer takes (0: of any length)."""
        written = bytearray()
        for kind, data in parts:
            longest = (self._association.acceptor.maximum_length or HEADS + len(data)) - HEADS
            for start in range(0, len(data), longest):
                end = min(start + longest, len(data))
                last = IS_LAST if end == len(data) else 0
                written += _pdu_head(context, kind | last, end - start)
                written += data[start:end]
        return written

    def _write(self, pdus: bytearray) -> None:
        """Write to the connection, to which no other thread writes meanwhile. Raises: OSError, as if it had ended."""
        end = time.monotonic() + (self._association.network_timeout or math.inf)
        with memoryview(pdus) as left:
            done = 0
            while done < len(left):
                done += self._service.socket.socket.send(left[done : done + SENT_AT_ONCE])
                if time.monotonic() > end:
                    raise TimeoutError

    def read(self) -> None:
        """Read a PDU, and, where it is a part of a film, all others up to the film's end."""
        while self._read_pdu() and self._request is not None:
            pass

    def _read_pdu(self) -> bool:
        """Read a PDU; return False, if nothing more can be read."""
        try:
            head = self._exactly(HEADS)
            if self._service.state_machine.current_state != ESTABLISHED or len(head) < HEADS or head[0] != DATA_PDU:
                self._ahead = head  # which is what the library asks for first
                self._library()
                return False
            (left,) = struct.unpack_from(">L", head, 2)
            self._service._idle_timer.restart()  # noqa: SLF001 - as the library does after each PDU
            self._read += left
            if self._longest is not None and self._read > self._longest:
                self._too_long()
            _check_length(left)
            while left:
                left -= self._read_fragment(left)
        except OSError:
            self._service.event_queue.put(CONNECTION_ENDED)
            return False
        except ValueError:
            self._service.event_queue.put(INVALID_PDU)
            return False
        return True

    def _read_fragment(self, left: int) -> int:
        """Read one fragment of a PDU that has that many bytes left; return how many it takes."""
        head = self._exactly(HEADS)
        if len(head) < HEADS:
            raise OSError("the connection ended")
        length, context, control = struct.unpack(">LBB", head)
        size = int(length) - 2
        if size < 0 or HEADS + size > left:
            raise ValueError("a fragment that is longer than its PDU")
        if self._request is None:
            self._fragment_between_films(context, control, self._all(size))
        elif context != self._request.context or control & IS_COMMAND:
            raise ValueError("another message within a message")
        else:
            self._read_into_film(size)
            if control & IS_LAST:
                self._finish_film()
        return HEADS + size

    def _fragment_between_films(self, context: int, control: int, body: bytearray) -> None:
        dimse = self._association.dimse
        if dimse.message is None and control == IS_COMMAND | IS_LAST:
            values = values_of(bytes(body))
            self._request = self._store_request(context, values)
            if self._request is not None:
                self._filled = 0
                return
            if (answer := self._store_answer(values)) is not None:
                self._read = 0
                dimse.msg_queue.put((context, answer))
                return
        try:
            dimse.receive_primitive(_fragment(context, control, body))
        except Exception as error:  # of whatever kind: it would end this thread, and leave the connection behind
            raise ValueError("a message that the library cannot read") from error
        if dimse.message is None:
            self._read = 0

    def _store_request(self, context: int, values: Mapping[int, bytes]) -> StoreRequest | None:
        """Return the request, if it is one of C-STORE for the class of its context, and nothing is odd about it."""
        if self._serve is None or _number(values, COMMAND) != STORE:
            return None
        agreed = self._association._accepted_cx.get(context)  # noqa: SLF001
        number, instance = _number(values, MESSAGE), _uid(values, SOP_INSTANCE)
        longest = self._association.requestor.maximum_length or LEAST_PDU
        odd = number is None or not instance or longest < LEAST_PDU or not self._association.is_established
        if odd or agreed is None or _number(values, DATA_SET_TYPE) in {None, NO_DATA_SET}:
            return None
        if agreed.abstract_syntax != _uid(values, SOP_CLASS):
            return None
        assert number is not None  # noqa: S101 - it would be odd
        return StoreRequest(context, number, str(agreed.abstract_syntax), instance, str(agreed.transfer_syntax[0]))

    def _store_answer(self, values: Mapping[int, bytes]) -> StoreAnswer | None:
        """Return the answer that a thread of ours waits for."""
        if not self._awaits_answer or _number(values, COMMAND) != STORE_ANSWER:
            return None
        message, status = _number(values, ANSWERED_MESSAGE), _number(values, STATUS)
        if message is None or status is None or _number(values, DATA_SET_TYPE) != NO_DATA_SET:
            return None
        return StoreAnswer(message, status)

    def _finish_film(self) -> None:
        """Have the film kept, and answer its request."""
        request = self._request
        assert request is not None and self._serve is not None  # noqa: S101, PT018 - its data came
        self._request, self._read = None, 0
        with memoryview(self._film) as film:
            status = self._serve(request, film[: self._filled])
        if len(self._film) > KEPT:
            self._film = bytearray()
        self._service._idle_timer.restart()  # noqa: SLF001 - the peer waited for us
        if self._association.is_established:
            answer = command_set(
                {
                    SOP_CLASS: request.sop_class,
                    COMMAND: STORE_ANSWER,
                    ANSWERED_MESSAGE: request.message,
                    DATA_SET_TYPE: NO_DATA_SET,
                    STATUS: status,
                    SOP_INSTANCE: request.sop_instance,
                }
            )
            self._service.socket.send(fragment_pdu(request.context, IS_COMMAND | IS_LAST, answer))

    def _receive(self, wanted: int) -> bytearray:
        """Read ``wanted`` bytes for the library, or fewer if the connection ends. Raises: OSError."""
        if self._ahead:
            ahead, self._ahead = self._ahead, bytearray()
            return ahead
        _check_length(wanted)
        return self._exactly(wanted)

    def _exactly(self, wanted: int) -> bytearray:
        read = bytearray()
        while len(read) < wanted:
            piece = self._service.socket.socket.recv(min(BYTES_AT_ONCE, wanted - len(read)))
            if not piece:
                break
            read += piece
        return read

    def _all(self, wanted: int) -> bytearray:
        read = self._exactly(wanted)
        if len(read) < wanted:
            raise OSError("the connection ended")
        return read

    def _read_into_film(self, size: int) -> None:
        """Read bytes to the end of the film."""
        end = self._filled + size
        if end > len(self._film):
            self._film.extend(bytes(max(end - len(self._film), min(len(self._film), KEPT))))
        connection = self._service.socket.socket
        acknowledge(connection)  # the head, for which the sender may hold the body back
        with memoryview(self._film) as film:
            while self._filled < end:
                read = connection.recv_into(film[self._filled : end])
                if not read:
                    raise OSError("the connection ended")
                self._filled += read
        acknowledge(connection)
