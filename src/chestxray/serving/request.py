"""One request and its answer, as the ASGI specification has them, and the checks of a request's head.

Source: RFC 9110 and 9112; ASGI specification 3.0.
"""

from __future__ import annotations

import asyncio
import re
import time
from email.utils import formatdate
from functools import lru_cache
from http import HTTPStatus
from typing import TYPE_CHECKING, Final, NamedTuple
from urllib.parse import unquote

from starlette.types import Message, Scope

if TYPE_CHECKING:
    from chestxray.serving.connection import Connection

_AUTHORITY: Final = re.compile(rb"(\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._~-]+)(:\d{0,5})?")
_NO_BODY: Final = frozenset({204, 304})
_CONTINUE: Final = b"HTTP/1.1 100 Continue\r\n\r\n"

Headers = list[tuple[bytes, bytes]]


class Malformed(Exception):
    """The bytes that arrived are no request that this service accepts; the message says why."""


class Head(NamedTuple):
    """The head of a request that passed the checks.

    Attributes:
        scope: the ASGI scope, without the addresses of client and server.
        due: length of the body in bytes; None if the head does not state it.
        closes: whether the request is the last one of its connection.
        expects: whether the caller asks before it sends the body ("Expect: 100-continue").
    """

    scope: Scope
    due: int | None
    closes: bool
    expects: bool


def read_head(method: bytes, url: bytes, version: str, headers: Headers) -> Head:
    """Check the head of a request, and return it as an ASGI scope.

    Args:
        method, url, version: the parts of the request's first line.
        headers: their names in lower case.

    Raises: Malformed, if the head is ambiguous or names another service.
    """
    if version not in {"1.0", "1.1"}:
        raise Malformed("the request is not in HTTP/1.1")
    found: dict[bytes, list[bytes]] = {}
    for name, value in headers:
        found.setdefault(name, []).append(value)
    hosts = found.get(b"host", [])
    if len(hosts) > 1 or (not hosts and version != "1.0"):
        raise Malformed("one Host header is needed, and no more")
    if hosts and not _AUTHORITY.fullmatch(hosts[0]):
        raise Malformed("the Host header is no name or address with a port or without")
    codings = b",".join(found.get(b"transfer-encoding", [])).strip().lower()
    if codings not in {b"", b"chunked"}:
        raise Malformed("the only transfer coding that is taken is chunked")
    lengths = found.get(b"content-length", [])
    options = {part.strip().lower() for value in found.get(b"connection", []) for part in value.split(b",")}
    asked = {value.strip().lower() for value in found.get(b"expect", [])}
    raw, _, query = _target(url, hosts).partition(b"?")
    if not raw.isascii() or b"#" in raw:
        raise Malformed("the address holds what an address must not hold")
    scope = {
        "type": "http",
        "asgi": {"version": "3.0", "spec_version": "2.4"},
        "http_version": version,
        "method": method.decode("ascii"),
        "scheme": "http",
        "path": unquote(raw.decode("ascii")),
        "raw_path": raw,
        "query_string": query,
        "root_path": "",
        "headers": headers,
        "state": {},
    }
    return Head(
        scope,
        due=None if codings else int(lengths[0]) if lengths else 0,
        closes=b"close" in options or (version == "1.0" and b"keep-alive" not in options),
        expects=version != "1.0" and b"100-continue" in asked,
    )


def _target(url: bytes, hosts: list[bytes]) -> bytes:
    """Return the address without scheme and authority. Raises: Malformed, if these name another service."""
    if url.startswith(b"/") or url == b"*":
        return url
    scheme, found, rest = url.partition(b"://")
    if not found or scheme.lower() != b"http":
        raise Malformed("the address is none of this service's")
    authority, slash, path = rest.partition(b"/")
    if not hosts or authority.lower() != hosts[0].lower():
        raise Malformed("the address names another authority than the Host header")
    return slash + path or b"/"


class RequestCycle:
    """One request and its answer: the two channels of the ASGI specification."""

    __slots__ = (
        "_chunked",
        "_event",
        "_head",
        "_sent_continue",
        "arrived",
        "body",
        "buffered",
        "closes",
        "connection",
        "due",
        "expects",
        "finished",
        "gone",
        "scope",
        "started",
    )

    def __init__(self, connection: Connection, head: Head) -> None:
        self.connection = connection
        self.scope = head.scope
        self.due = head.due  # bytes of the body that are still to come; None if the head does not state the length
        self.closes = head.closes
        self.expects = head.expects
        self.body: list[bytes] = []
        self.buffered = 0
        self.arrived = False  # the whole body has arrived
        self.started = False
        self.finished = False
        self.gone = False
        self._event = asyncio.Event()
        self._head = b""
        self._chunked = False
        self._sent_continue = False

    @property
    def waits_for_consent(self) -> bool:
        """True while the caller waits for permission ("100 Continue") to send its body."""
        return self.expects and not self._sent_continue and not self.arrived

    @property
    def skips(self) -> bool:
        """True if the rest of an unread body is small enough to be skipped, so that the connection is kept."""
        return (
            not self.waits_for_consent
            and self.due is not None
            and self.due <= self.connection.state.limits.skipped_bytes
        )

    def take(self, data: bytes) -> None:
        """Add a part of the body that has arrived."""
        if self.due is not None:
            self.due -= len(data)
        if not self.finished:
            self.body.append(data)
            self.buffered += len(data)
            self._event.set()

    def end_of_body(self) -> None:
        """Note that the whole body has arrived."""
        self.arrived = True
        self._event.set()

    def abandon(self) -> None:
        """Note that the caller has gone."""
        self.gone = True
        self._event.set()

    async def run(self) -> None:
        """Run the application on this request."""
        try:
            await self.connection.state.app(self.scope, self.receive, self.send)
        except Exception:  # noqa: BLE001 - the application has logged it
            self.fail()
        else:
            if not self.finished:
                self.fail()

    def fail(self) -> None:
        """Replace an answer that the application did not give; close the connection if half of it was sent."""
        if self.gone or self.finished:
            return
        if self.started:
            self.connection.abort()
        else:
            self.closes = True
            self.answer(self.connection.failure())

    async def receive(self) -> Message:
        """Wait for the next part of the body, or for the caller's disconnection, and return it as an ASGI message."""
        if not (self.body or self.arrived or self.gone or self.finished):
            if self.waits_for_consent:
                self._sent_continue = True
                self.connection.write(_CONTINUE)
            self._event.clear()
            self.connection.resume()
            await self._event.wait()
        if self.gone or self.finished:
            return {"type": "http.disconnect"}
        data = self.body[0] if len(self.body) == 1 else b"".join(self.body)
        self.body = []
        self.buffered = 0
        self.connection.resume()
        return {"type": "http.request", "body": data, "more_body": not self.arrived}

    async def send(self, message: Message) -> None:
        """Write a part of the application's answer."""
        if self.gone or self.finished:
            return
        if message["type"] == "http.response.start":
            self.started = True
            self._head = self._head_of(message["status"], list(message.get("headers", ())))
            return
        silent = self.scope["method"] == "HEAD"
        data = b"" if silent else message.get("body", b"")
        more = message.get("more_body", False)
        if self._chunked and not silent:
            data = (b"%x\r\n%b\r\n" % (len(data), data) if data else b"") + (b"" if more else b"0\r\n\r\n")
        self.connection.write(self._head + data)
        self._head = b""
        if more:
            await self.connection.drained()
        else:
            self.finish()

    def answer(self, whole: bytes) -> None:
        """Answer in place of the application; ``closes`` has to agree with the headers in these bytes."""
        self.started = True
        self.connection.write(whole)
        self.finish()

    def finish(self) -> None:
        """Mark the answer as complete, and let the connection continue."""
        self.finished = True
        self.body = []
        self.buffered = 0
        self._event.set()
        self.connection.answered(self)

    def settle(self) -> None:
        """Decide whether this answer ends its connection, as its head will announce."""
        if self.connection.state.stopping or not (self.arrived or self.skips):
            self.closes = True

    def _head_of(self, status: int, headers: Headers) -> bytes:
        self.settle()
        names = {name.lower() for name, _ in headers}
        if b"content-length" not in names and status not in _NO_BODY and self.scope["method"] != "HEAD":
            if self.scope["http_version"] == "1.0":
                self.closes = True
            else:
                self._chunked = True
                headers.append((b"transfer-encoding", b"chunked"))
        if self.closes:
            headers.append((b"connection", b"close"))
        elif self.scope["http_version"] == "1.0":
            headers.append((b"connection", b"keep-alive"))
        lines = [_status_line(status), b"date: " + _date(int(time.time()))]
        lines += [name + b": " + value for name, value in headers]
        return b"\r\n".join(lines) + b"\r\n\r\n"


@lru_cache(64)
def _status_line(status: int) -> bytes:
    return f"HTTP/1.1 {status} {HTTPStatus(status).phrase}".encode()


@lru_cache(2)
def _date(second: int) -> bytes:
    return formatdate(second, usegmt=True).encode()
