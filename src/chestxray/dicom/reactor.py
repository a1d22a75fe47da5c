"""pynetdicom's threads wait for what happens, instead of looking a thousand times a second.

An association has two threads: one reads and writes PDUs, the other serves messages. Each sleeps for a millisecond
whenever it finds nothing to do, which over a few open associations costs more processor time than the films. Here the
first one waits for bytes from the peer or for something to send, the second one for a message; what the library does
then is unchanged. Its timers, which it looks at between two events, are up to ``LONGEST_S`` late.

While another of our threads waits for an answer, the second thread takes no message. In the library it takes the
answer and drops it, if the system stops it at the wrong moment between two requests of ours.
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
from typing import Any, Final

from pynetdicom import evt

LONGEST_S: Final = 0.2  # seconds of one wait
CLOSING_S: Final = 0.001  # seconds between two looks at a connection that is being closed, as the library waits
CLOSING: Final = frozenset({"Sta1", "Sta13"})  # states without a connection to wait for (PS3.8 section 9.2.2)


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
    service, bell = association.dul, _Bell()
    find_event = service._is_transport_event  # noqa: SLF001 - the library has no hook for this

    def wait_and_find_event() -> bool:
        connection = service.socket.socket if service.socket else None
        if connection is None or service.state_machine.current_state in CLOSING:
            time.sleep(CLOSING_S)
        elif not service.event_queue.queue and not _has_read_on(connection):
            bell.wait(connection)
            acknowledge(connection)
        if service.to_provider_queue.queue:  # sending goes first
            return False
        return bool(find_event())

    service._is_transport_event = wait_and_find_event  # noqa: SLF001
    service._run_loop_delay = 0  # noqa: SLF001
    _then(service.to_provider_queue, "put", bell.ring)
    association.bind(evt.EVT_CONN_CLOSE, lambda _: bell.close())
    weakref.finalize(service, bell.close)


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
    _then(messages.msg_queue, "put", happened.set)
    _then(service.to_user_queue, "put", happened.set)
    _then(free, "clear", happened.set)


def _then(owner: Any, name: str, follow: Any) -> None:
    """Call ``follow`` after each call of a method of this object."""
    method = getattr(owner, name)

    def both(*values: Any, **named: Any) -> Any:
        result = method(*values, **named)
        follow()
        return result

    setattr(owner, name, both)


class _Bell:
    """Ends another thread's wait for a connection."""

    def __init__(self) -> None:
        self._hears, self._rings = socket.socketpair()
        self._hears.settimeout(0)
        self._rings.settimeout(0)

    def ring(self) -> None:
        """End the wait in progress, or the next one."""
        with contextlib.suppress(OSError):  # full: it rings already. Closed: nobody waits
            self._rings.send(b"\0")

    def wait(self, connection: socket.socket) -> None:
        """Wait until the connection can be read, or the bell rings, or ``LONGEST_S`` is over."""
        with contextlib.suppress(OSError, ValueError):  # closed meanwhile: the library looks at it next
            ready, _, _ = select.select([connection, self._hears], [], [], LONGEST_S)
            if self._hears in ready:
                self._hears.recv(4096)

    def close(self) -> None:
        """Close both ends."""
        self._hears.close()
        self._rings.close()
