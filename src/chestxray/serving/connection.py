"""HTTP/1.1 for an ASGI application: httptools (Node's llhttp) parses, this file decides.

A caller that misbehaves costs little, and one that does not sees its answer:

- the head of a request has to arrive in time and within a size, and so has what frames a body (chunk extensions and
  trailers, which are never merged into the headers);
- an answer that comes before its request has arrived whole is followed by a half-close, and what still comes is read
  and thrown away for a while: closing at once would make the system reset the connection, and many clients then lose
  the answer that they were sent (nginx calls this lingering close);
- requests that were sent at once are answered in turn, one that is half-closed is answered, and while the service is
  stopping every answer says "Connection: close";
- what is ambiguous is refused: two Host headers, other codings than chunked, another authority in the address.

Source: RFC 9110 and 9112; ASGI specification 3.0.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from typing import Any, Final

import httptools

from chestxray.serving.admission import Rank, ServerState
from chestxray.serving.problems import (
    BAD_REQUEST,
    HEAD_TOO_LONG,
    INTERNAL,
    NO_PLACE,
    OVERLOADED,
    SLOW_HEAD,
    ProblemType,
)
from chestxray.serving.request import Headers, Malformed, RequestCycle, read_head

SHORT_LINGER: Final = 2.0  # seconds
# seconds: a new connection may still send its first request, even while the service is stopping
GREETED_SECONDS: Final = 1.0
BUFFERED: Final = 64 * 1024  # bytes of a body that may wait for the application before reading pauses


class Connection(asyncio.Protocol):
    """One caller's connection.

    Attributes:
        last_arrival: time of the last arrival of bytes, on the clock of the loop.
    """

    def __init__(self, state: ServerState) -> None:
        self.state = state
        self.loop = asyncio.get_running_loop()
        self._transport: asyncio.Transport | None = None
        self._parser = httptools.HttpRequestParser(self)
        # the first request is being answered, the last one may still be arriving
        self._queue: deque[RequestCycle] = deque()
        self._arriving: RequestCycle | None = None
        self._next: RequestCycle | None = None  # to be started once all received bytes are parsed
        self._in_head = True
        self._begun = False  # the first byte of a head has arrived
        self._url = b""
        self._headers: Headers = []
        self._head_bytes = 0  # bytes of the head that is arriving
        self._framing = 0  # bytes of the message that are neither head nor body
        self._since_body = 0  # bytes received since the last part of the body
        self._body_bytes = 0
        self._fault: tuple[ProblemType, str] | None = None
        self._ignores_input = False  # ignore further bytes: they belong to no request
        self._fault_in_body = False  # a fault was found inside a body
        self._caller_finished = False  # the caller announced that it will send nothing more
        self._lingered: int | None = None  # bytes received after the last answer; None before the last answer
        self._still_sends = False  # the last answer was given before its request had arrived whole
        self._eof = False
        self._paused = False
        self._writable: asyncio.Event | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._answer_timer: asyncio.TimerHandle | None = None
        self.last_arrival = self.loop.time()
        self._rank: Rank | None = None  # under which the state has it
        self._asked = False
        self._asked_to_leave = False
        self._client: tuple[str, int] | None = None
        self._server: tuple[str, int] | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Take a place, or make room for it."""
        assert isinstance(transport, asyncio.Transport) or hasattr(transport, "write_eof")  # noqa: S101 - or uvloop's
        self._transport = transport  # type: ignore[assignment]
        self._client, self._server = _address(transport, "peername"), _address(transport, "sockname")
        state = self.state
        state.connections.add(self)
        if len(state.connections) > state.limits.places and not state.make_room():
            self._end_with(state.problem(NO_PLACE, "as many connections are open as may be", retry=True))
            return
        self.update_rank()
        self._arm(state.limits.head_seconds)

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002 - why does not matter
        """Stop the timers, abandon the requests that have no answer, and give the place back."""
        self.give_up_place()
        for timer in (self._timer, self._answer_timer):
            if timer is not None:
                timer.cancel()
        for cycle in self._queue:
            cycle.abandon()
        if self._writable is not None:
            self._writable.set()
        self._transport = None

    def data_received(self, data: bytes) -> None:
        """Count and parse received bytes, and refuse what exceeds a limit."""
        self.last_arrival = self.loop.time()
        if self._lingered is not None:
            self._lingered += len(data)
            if self._lingered > self.state.limits.linger_bytes:
                self.abort()
            elif self._still_sends and self._sent_whole():
                self._still_sends = False
                self.update_rank()
                self._arm(SHORT_LINGER, self.abort)
            return
        if self._ignores_input:
            return
        if self._in_head:
            self._head_bytes += len(data)
        else:
            self._framing += len(data)
            self._since_body += len(data)
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserUpgrade as upgrade:
            self._continue_without_upgrade(data[upgrade.args[0] :])
            return
        except httptools.HttpParserError:
            self._start_next()
            self._refuse(*(self._fault or (BAD_REQUEST, "what arrived is not HTTP/1.1")))
            return
        self._start_next()
        limits = self.state.limits
        if self._in_head and self._head_bytes > limits.head_bytes:
            self._refuse(HEAD_TOO_LONG, f"address and headers are longer than {limits.head_bytes:,} bytes")
        elif self._arriving is not None and (
            self._since_body > limits.head_bytes or self._framing > limits.framing_bytes + self._body_bytes
        ):
            self._refuse(BAD_REQUEST, "chunk extensions and trailers are longer than the body that they frame")
        self._pause_where_due()
        self.update_rank()

    def _continue_without_upgrade(self, rest: bytes) -> None:
        """Read on after a head that asks for another protocol, as Java's HttpClient does, and answer in this one."""
        self._parser = httptools.HttpRequestParser(self)
        due = None if self._arriving is None else self._arriving.due
        length = b"Transfer-Encoding: chunked" if due is None else b"Content-Length: %d" % due
        self._parser.feed_data(b"POST / HTTP/1.1\r\n%b\r\n\r\n" % length)
        self.data_received(rest)

    def eof_received(self) -> bool:
        """Return True to keep the connection open: a caller that has finished sending may still want its answer."""
        if self._lingered is not None or not self._queue:
            return False
        self._eof = True
        if self._arriving is not None:
            self._arriving.abandon()
            return False
        return True

    def pause_writing(self) -> None:
        """Pause the answer, and abort after ``answer_seconds`` if the caller has not fetched it."""
        self._writable = asyncio.Event()
        self._answer_timer = self.loop.call_later(self.state.limits.answer_seconds, self.abort)
        self._pause_where_due()

    def resume_writing(self) -> None:
        """Continue the answer, because the caller fetches it again."""
        if self._writable is not None and self._answer_timer is not None:
            self._writable.set()
            self._answer_timer.cancel()
        self._writable = self._answer_timer = None
        self.resume()

    def on_message_begin(self) -> None:
        """Note that the first byte of a head has arrived."""
        self._begun = True

    def on_url(self, url: bytes) -> None:
        """Add a part of the address."""
        self._url += url

    def on_header(self, name: bytes, value: bytes) -> None:
        """Add a header; ignore trailers, which come after the body."""
        if self._in_head:
            self._headers.append((name.lower(), value))

    def on_headers_complete(self) -> None:
        """Check a complete head and start its request cycle.

        Raises: Malformed, which the parser turns into its own error.
        """
        if not self._in_head:  # of a request that was checked before: see _continue_without_upgrade
            return
        self._in_head = False
        size = len(self._url) + sum(len(name) + len(value) + 4 for name, value in self._headers)
        if size > self.state.limits.head_bytes:
            self._fault = (HEAD_TOO_LONG, f"address and headers are longer than {self.state.limits.head_bytes:,} bytes")
            raise Malformed
        if len(self._queue) > self.state.limits.pipelined:
            self._queue[-1].closes = True  # its answer says so, and the client sends the others again
            raise Malformed
        method, version = self._parser.get_method(), self._parser.get_http_version()
        try:
            head = read_head(method, self._url, version, self._headers)
        except Malformed as error:
            self._fault = (BAD_REQUEST, str(error))
            raise
        head.scope.update(client=self._client, server=self._server)
        cycle = RequestCycle(self, head)
        self._asked = True
        self._framing = self._body_bytes = self._since_body = 0
        self._arriving = cycle
        self._queue.append(cycle)
        if len(self._queue) == 1:
            self._next = cycle

    def on_body(self, data: bytes) -> None:
        """Pass a part of the body to the request that is arriving."""
        self._since_body = 0
        if self._arriving is not None:
            self._framing -= len(data)
            self._body_bytes += len(data)
            self._arriving.take(data)

    def on_message_complete(self) -> None:
        """End the request that has arrived; further bytes belong to the next one."""
        if self._parser.should_upgrade():  # its body is still to come
            return
        cycle, self._arriving = self._arriving, None
        if cycle is None:
            return
        cycle.end_of_body()
        if cycle.closes:
            self._ignores_input = self._caller_finished = True
        self._in_head, self._begun = True, False
        self._url, self._headers, self._head_bytes = b"", [], 0
        if cycle.finished:
            self._await_next()
        elif self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _start_next(self) -> None:
        """Start the request whose head has arrived; most have arrived whole by now, and only those reserve a place."""
        if self._next is not None:
            cycle, self._next = self._next, None
            self._start(cycle)

    def _start(self, cycle: RequestCycle) -> None:
        """Start answering a request, now that all earlier ones are answered."""
        if self._timer is not None:  # the timer bounds the head only; the application bounds the time of the body
            self._timer.cancel()
            self._timer = None
        if self.state.admit(cycle):
            self.run(cycle)
        elif self.state.must_hold():
            self.state.held[cycle] = self
            self._pause()
            self.loop.call_later(self.state.limits.hold_seconds, self._end_of_hold, cycle)
        else:
            self._refuse_overload(cycle)

    def _end_of_hold(self, cycle: RequestCycle) -> None:
        if self.state.held.pop(cycle, None) is None or cycle.gone:  # it was let in before, or the caller has left
            return
        if self.state.admit(cycle):
            self.run(cycle)
        else:
            self._refuse_overload(cycle)

    def _refuse_overload(self, cycle: RequestCycle) -> None:
        cycle.settle()
        detail = "as many films are waiting as may wait"
        cycle.answer(self.state.problem(OVERLOADED, detail, close=cycle.closes, retry=True))

    def run(self, cycle: RequestCycle) -> None:
        """Let the application answer a request."""
        self.update_rank()  # it may have been held
        task = self.loop.create_task(cycle.run())
        self.state.tasks.add(task)
        task.add_done_callback(self.state.tasks.discard)

    def answered(self, cycle: RequestCycle) -> None:
        """Continue after an answer: with the next request, the rest of this one's body, or the end."""
        self.state.reserved.pop(cycle, None)
        if self._queue and self._queue[0] is cycle:
            self._queue.popleft()
        if cycle.closes:
            self._close_after_answer()
        elif self._queue:
            self._start(self._queue[0])
            self.resume()
        elif self._eof:
            self._close_after_answer()
        elif self._fault is not None:
            self._refuse(*self._fault)
        else:
            self._await_next()
            self.resume()
        self.update_rank()

    def _await_next(self) -> None:
        """Set the time limit between two requests, or for the rest of a body that nobody reads."""
        if self._queue:
            return
        limits = self.state.limits
        begun = self._arriving is not None or self._begun
        if self.state.stopping and not begun:
            self._close_after_answer()
        else:
            self._arm(limits.head_seconds if begun else limits.idle_seconds)

    def _refuse(self, kind: ProblemType, detail: str) -> None:
        """End the connection with a problem document, once all earlier requests are answered."""
        self._ignores_input = True
        # the answer has started, so its status can no longer change
        if self._arriving is not None and self._arriving.started:
            self.abort()
            return
        if self._arriving is not None:
            self._fault_in_body = True
            self._arriving.abandon()
            self._queue.remove(self._arriving)
            self._arriving = None
        self._fault = (kind, detail)
        if not self._queue:
            self._end_with(self.state.problem(kind, detail))

    def _end_with(self, answer: bytes) -> None:
        self.write(answer)
        self._close_after_answer()

    def _close_after_answer(self) -> None:
        """Close the connection after its last answer, or half-close it and read on while the caller sends."""
        transport = self._transport
        if transport is None or self._lingered is not None or transport.is_closing():
            return
        self._ignores_input = True
        limits = self.state.limits
        if self._arriving is None and (self._eof or self._caller_finished):
            transport.close()
            self._arm(limits.answer_seconds, self.abort)
            return
        self._lingered = 0
        if not transport.can_write_eof():  # by TLS, which has no half-close here
            transport.close()
            self._arm(limits.answer_seconds, self.abort)
            return
        transport.write_eof()
        self.resume()
        # A caller that has sent everything it announced needs only the time in which its next request would arrive.
        self._still_sends = self._arriving is not None or self._fault_in_body
        self.update_rank()
        self._arm(limits.linger_seconds if self._still_sends and not self.state.stopping else SHORT_LINGER, self.abort)

    def _sent_whole(self) -> bool:
        """Check whether a body that was answered early has come to its announced end since."""
        due = None if self._arriving is None else self._arriving.due
        return due is not None and self._lingered is not None and self._lingered >= due

    def failure(self) -> bytes:
        """Return the answer that replaces one that the application could not give."""
        return self.state.problem(INTERNAL, "see the log of the service")

    def write(self, data: bytes) -> None:
        """Send data; do nothing if the connection has closed."""
        if self._transport is not None and not self._transport.is_closing():
            self._transport.write(data)

    async def drained(self) -> None:
        """Wait until the caller has fetched most of what was written."""
        if self._writable is not None:
            await self._writable.wait()

    def resume(self) -> None:
        """Continue reading, unless too much data waits already."""
        if self._paused and self._transport is not None and not self._too_much():
            self._paused = False
            self._transport.resume_reading()

    def abort(self) -> None:
        """Close the connection at once, without sending what is left."""
        if self._transport is not None:
            self._transport.abort()

    def leave(self) -> None:
        """Prepare for the end of the service: close if idle, else announce the end in the last answer."""
        if self._lingered is not None:
            if not self._asked_to_leave:
                self._asked_to_leave = True
                self._arm(SHORT_LINGER, self.abort)
        elif not self._asked and self.loop.time() - self.last_arrival < GREETED_SECONDS:
            return  # the connection has just opened, and its first request is on its way
        elif not self._queue and self._arriving is None and not self._begun:
            self._close_after_answer()

    def update_rank(self) -> bool:
        """Note this connection's rank, after what may have changed it; return whether it has changed."""
        rank = self._rank_now()
        if rank is self._rank or self not in self.state.connections:
            return False
        if self._rank is not None:
            self.state.ranked[self._rank].pop(self, None)
        self.state.ranked[rank][self] = self.last_arrival
        self._rank = rank
        return True

    def _rank_now(self) -> Rank:
        if self._queue and (len(self._queue) > 1 or self._arriving is None or self._arriving in self.state.held):
            return Rank.WAITS
        if self._lingered is not None:
            return Rank.BEGUN if self._still_sends else Rank.ANSWERED
        if self._arriving is not None:
            return Rank.HAS_BODY if self._body_bytes else Rank.HAS_HEAD
        if self._begun:
            return Rank.BEGUN
        return Rank.ASKED_BEFORE if self._asked else Rank.OPENED

    def give_up_place(self) -> None:
        """Remove this connection from the state, so that another one may take its place."""
        self.state.connections.discard(self)
        if self._rank is not None:
            self.state.ranked[self._rank].pop(self, None)
            self._rank = None

    def _pause_where_due(self) -> None:
        if self._too_much():
            self._pause()

    def _pause(self) -> None:
        if self._transport is not None and not self._paused and not self._transport.is_closing():
            self._paused = True
            self._transport.pause_reading()

    def _too_much(self) -> bool:
        if self._lingered is not None:
            return False
        unfetched = self._writable is not None  # answers wait for the caller
        waiting = len(self._queue) > 1 and any(each.body for each in self._queue)
        return unfetched or waiting or (bool(self._queue) and self._queue[-1].buffered > BUFFERED)

    def _arm(self, seconds: float, then: Callable[[], None] | None = None) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer = self.loop.call_later(seconds, then or self._time_out)

    def _time_out(self) -> None:
        """Close a connection whose head or unread body took too long; answer only if part of a head had arrived."""
        self._timer = None
        if self._arriving is None and self._begun:
            self._refuse(SLOW_HEAD, f"the head did not arrive within {self.state.limits.head_seconds:g} seconds")
        elif self._transport is not None:
            self._transport.close()
            self._arm(1.0, self.abort)


def _address(transport: asyncio.BaseTransport, name: str) -> tuple[str, int] | None:
    found: Any = transport.get_extra_info(name)
    return (str(found[0]), int(found[1])) if isinstance(found, tuple) else None
