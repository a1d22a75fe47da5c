"""The layers between network and application: host names, keys, headers, request ids, one log line a request.

``Edge`` wraps the whole application, so that every answer carries its headers: the page, a refusal, and also an
unexpected failure. ``ApiKeyMiddleware`` comes next, and refuses callers without a key before any work is done.
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import ipaddress
import os
import re
import secrets
import time
import uuid
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from http import HTTPStatus
from pathlib import Path
from typing import Final

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from chestxray.errors import UsageError
from chestxray.serving.problems import INTERNAL, KEY_NEEDED, UNKNOWN_HOST, ProblemType, Refusal, problem_response
from chestxray.serving.static import SCRIPT_HASH, STYLE_HASHES
from chestxray.serving.telemetry import fault_of, log

VARIABLE: Final = "CHESTXRAY_API_KEYS"  # environment variable: the lines of a key file, or the same joined by commas

_LINE: Final = re.compile(r"(?P<hash>[0-9a-f]{64})\s+(?P<name>[A-Za-z0-9_.-]{1,40})")


@dataclass(frozen=True, slots=True)
class KeyRing:
    """The hashes of the keys that open this service, by the name of their holder; without any key the service is open.

    Attributes:
        hashes: SHA-256 in hexadecimal, lower case; kept out of ``repr``.
    """

    hashes: Mapping[str, str] = field(default_factory=dict, repr=False)

    def __bool__(self) -> bool:
        return bool(self.hashes)

    @classmethod
    def from_text(cls, text: str, source: str) -> KeyRing:
        """Read lines of ``HASH NAME``; "#" begins a comment. Raises: UsageError, which never quotes the line."""
        hashes = {}
        lines = [line.partition("#")[0] for line in text.removeprefix("\ufeff").splitlines()]
        for number, entry in enumerate((part.strip() for line in lines for part in line.split(",")), start=1):
            if not entry:
                continue
            match = _LINE.fullmatch(entry)
            if match is None:
                raise UsageError(
                    f'{source}, entry {number}: not "SHA-256 NAME". Make a key and its entry with "chestxray key NAME"'
                )
            if match["name"] in hashes:
                raise UsageError(f"{source}, entry {number}: the name {match['name']} occurs twice. Give each its own")
            hashes[match["name"]] = match["hash"]
        return cls(hashes)

    @classmethod
    def gather(cls, file: Path | None) -> KeyRing:
        """Read the keys from a file, or else from the environment variable. Raises: UsageError."""
        if file is None:
            return cls.from_text(os.environ.get(VARIABLE, ""), VARIABLE)
        try:
            ring = cls.from_text(file.read_text(encoding="utf-8"), str(file))
        except (OSError, UnicodeDecodeError) as error:
            raise UsageError(f"{file}: the file of keys cannot be read ({error})") from error
        if not ring:
            raise UsageError(f'{file}: holds no key. Make one and its entry with "chestxray key NAME"')
        return ring

    def holder_of(self, key: str) -> str | None:
        """Return the holder of a key, or None. The time taken is the same for every wrong key."""
        found = None
        digest = _hash(key)
        for name, known in self.hashes.items():
            if hmac.compare_digest(digest, known):
                found = name
        return found

    def holder(self, headers: Headers) -> str | None:
        """Return the holder of a request's key: ``Authorization: Bearer KEY`` or ``X-API-Key: KEY``."""
        key = carries_key(headers)
        return self.holder_of(key) if key else None


def carries_key(headers: Headers) -> str:
    """Return the key that a request carries, valid or not; empty if it carries none."""
    scheme, _, bearer = headers.get("authorization", "").partition(" ")
    return headers.get("x-api-key") or (bearer.strip() if scheme.lower() == "bearer" else "")


def new_key(name: str) -> tuple[str, str]:
    """Create a key, and the entry by which a service knows the key. Raises: UsageError."""
    key = f"cx_{secrets.token_urlsafe(32)}"
    entry = f"{_hash(key)} {name}"
    if not _LINE.fullmatch(entry):
        raise UsageError(f"{name!r}: a name has 1 to 40 letters, digits, dots, dashes and underscores")
    return key, entry


def _hash(key: str) -> str:
    return hashlib.sha256(key.encode("utf-8", "surrogateescape")).hexdigest()


LOOPBACK_NAMES: Final = frozenset({"localhost", "127.0.0.1", "::1"})

# The page sets text, never markup: it needs no other origin, no framing, and no inline code but the files that its
# first answer holds, which are allowed by their hashes.
_POLICY: Final = {
    "default-src": "'none'",
    "script-src": f"'self' {SCRIPT_HASH}",
    "style-src": f"'self' {STYLE_HASHES}",
    "img-src": "'self' blob: data:",  # blob: the film that was chosen; data: the heat map in the answer
    "connect-src": "'self'",
    "base-uri": "'none'",
    "form-action": "'none'",
    "frame-ancestors": "'none'",
    "require-trusted-types-for": "'script'",
}

HEADERS: Final = {
    "Content-Security-Policy": "; ".join(f"{name} {value}" for name, value in _POLICY.items()),
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "camera=(), geolocation=(), microphone=()",
}

_RAW_HEADERS: Final = [(name.lower().encode(), value.encode()) for name, value in HEADERS.items()]
_OURS: Final = frozenset({b"x-request-id", *(name for name, _ in _RAW_HEADERS)})

_HOST: Final = re.compile(r"(?P<name>\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._~-]*)(:\d{0,5})?")

Observer = Callable[[str, int, float], None]  # route, status, seconds


@dataclass(frozen=True, slots=True)
class HostRule:
    """The names under which the service may be addressed.

    A page of another origin can point a name of its own at this machine (DNS rebinding) and would then
    count as our own page; it cannot choose which name the browser sends as Host.

    Attributes:
        names: in lower case, without port.
        any_address: whether a bare IP address is accepted, too. Rebinding needs a name, so this is safe.
        any_name: whether every name is accepted: behind a platform no browser reaches the service, and the platform
            chooses the name (SageMaker has used ``model.aws.local:8080`` and ``container-0.local:8080``).
    """

    names: frozenset[str] = LOOPBACK_NAMES
    any_address: bool = False
    any_name: bool = False

    def allows(self, header: str) -> bool:
        """Check whether a ``Host`` header names this service."""
        if self.any_name:
            return True
        match = _HOST.fullmatch(header)
        name = match["name"].strip("[]").lower().rstrip(".") if match else ""
        return name in self.names or (self.any_address and _is_address(name))


def is_loopback(host: str) -> bool:
    """Check whether only this machine can reach a name or address. Names other than localhost count as reachable."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def caller_at(address: str) -> str:
    """Return the name under which a network address is counted: of IPv6 its first 64 bits, which one customer has."""
    try:
        found = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return address
    if isinstance(found, ipaddress.IPv4Address):
        return str(found)
    return str(found.ipv4_mapped or ipaddress.ip_network((found, 64), strict=False))


class Edge:
    """ASGI middleware, outermost: adds a request id to every answer, and a problem document to every failure."""

    def __init__(self, app: ASGIApp, hosts: HostRule, observe: Observer) -> None:
        self.app = app
        self.hosts = hosts
        self.observe = observe

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request; pass lifespan messages through."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        began = time.perf_counter()
        request_id = str(uuid.uuid4())
        scope.setdefault("state", {})["request_id"] = request_id
        reply = _Reply(send, request_id)
        method = scope["method"]
        if method == "HEAD":  # HEAD is allowed wherever GET is; the connection leaves the body out
            scope = {**scope, "method": "GET"}
        try:
            if self.hosts.allows(Headers(scope=scope).get("host", "")):
                await self.app(scope, receive, reply)
            else:
                refusal = problem_response(UNKNOWN_HOST, "the Host header names another service", request_id)
                await refusal(scope, receive, reply)
        # the last resort: whatever failed, the caller learns the request id and nothing else
        except Exception as error:
            log.error("failed", extra={"request": request_id, "fault": fault_of(error)})
            if reply.status:
                raise  # half an answer was sent; only closing the connection tells the caller
            await problem_response(INTERNAL, "see the log of the service", request_id)(scope, receive, reply)
        finally:
            self._log_request(scope, method, reply.status, time.perf_counter() - began)

    def _log_request(self, scope: Scope, method: str, status: int, seconds: float) -> None:
        """Log one line. A route is named by its pattern: what a caller writes into an address stays out of the log."""
        route = getattr(scope.get("route"), "path", "-")
        self.observe(route, status, seconds)
        facts = {"request": scope["state"]["request_id"], "method": method, "route": route, "status": status}
        if scope["state"].get("unlogged"):
            return
        if holder := scope["state"].get("holder"):
            facts["key"] = holder
        log.info("request", extra=facts | {"ms": round(seconds * 1000, 1)})


class FailedAttempts:
    """Wrong keys by caller: each one makes the next answer wait longer, and one log line a minute reports them."""

    FIRST_PAUSE: Final = 0.1  # seconds; doubled by each further wrong key
    LONGEST_PAUSE: Final = 5.0
    FORGOTTEN_AFTER: Final = 600.0  # seconds without a wrong key
    A_MINUTE: Final = 60.0
    MOST_CALLERS: Final = 1024  # callers that are remembered
    MOST_WAITING: Final = 128  # answers that may wait at the same time; beyond this number none waits

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._callers: OrderedDict[str, _Caller] = OrderedDict()
        self._waiting = 0

    def pause_for(self, caller: str) -> float:
        """Return the seconds by which to delay the answer to a wrong key; log at most one line a minute."""
        now = self._clock()
        known = self._callers.pop(caller, None)
        if known is None or now - known.last > self.FORGOTTEN_AFTER:
            known = _Caller(last=now)
        self._callers[caller] = known
        if len(self._callers) > self.MOST_CALLERS:
            self._callers.popitem(last=False)
        known.last = now
        known.count += 1
        known.unlogged += 1
        if known.logged is None or now - known.logged >= self.A_MINUTE:
            log.warning("wrong keys", extra={"caller": caller, "since_last": known.unlogged, "in_all": known.count})
            known.logged, known.unlogged = now, 0
        return float(min(self.FIRST_PAUSE * 2 ** min(known.count - 1, 10), self.LONGEST_PAUSE))

    async def wait(self, caller: str) -> None:
        """Delay the answer to a wrong key."""
        pause = self.pause_for(caller)
        if self._waiting >= self.MOST_WAITING:
            return
        self._waiting += 1
        try:
            await asyncio.sleep(pause)
        finally:
            self._waiting -= 1


@dataclass(slots=True)
class _Caller:
    """Times on the clock of ``FailedAttempts``, and counts of wrong keys: in all, and since the last log line."""

    last: float
    logged: float | None = None
    count: int = 0
    unlogged: int = 0


class ApiKeyMiddleware:
    """ASGI middleware: refuses a caller without a key, before a body is read.

    Attributes:
        keys: without any, all addresses are open.
        open_paths: exact addresses that need no key; every other address needs one.
    """

    def __init__(self, app: ASGIApp, keys: KeyRing, open_paths: frozenset[str]) -> None:
        self.app = app
        self.keys = keys
        self.open_paths = open_paths
        self._failed_attempts = FailedAttempts()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Refuse the request, or pass it on."""
        try:
            if scope["type"] == "http":
                self._check_key(scope)
        except Refusal as refusal:
            if carries_key(Headers(scope=scope)):
                scope["state"]["unlogged"] = True  # wrong keys have their own log line, one a minute
                await self._failed_attempts.wait(caller_at(scope["client"][0]) if scope["client"] else "")
            await refusal.response(scope["state"]["request_id"])(scope, receive, send)
        else:
            await self.app(scope, receive, send)

    def _check_key(self, scope: Scope) -> None:
        """Check the key of a request. Raises: Refusal (401)."""
        if not self.keys or scope["path"] in self.open_paths:
            return
        holder = self.keys.holder(Headers(scope=scope))
        if holder is None:
            raise Refusal(
                KEY_NEEDED, "the request carries no key that this service knows", {"WWW-Authenticate": "Bearer"}
            )
        scope["state"]["holder"] = holder


class _Reply:
    """Wraps ``send``: adds the service's headers and remembers the status."""

    def __init__(self, send: Send, request_id: str) -> None:
        self.send = send
        self.request_id = request_id
        self.status = 0  # 0 until the response starts

    async def __call__(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
            headers = [pair for pair in message.get("headers", ()) if pair[0] not in _OURS]
            headers.append((b"x-request-id", self.request_id.encode()))
            if all(name != b"cache-control" for name, _ in headers):
                headers.append((b"cache-control", b"no-store"))
            message = {**message, "headers": headers + _RAW_HEADERS}
        await self.send(message)


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


def written_out(kind: ProblemType, detail: str, request_id: str, *, close: bool, retry: bool = False) -> bytes:
    """Return a whole refusal as bytes for the connection, for code that refuses without the application.

    Args:
        close: whether the answer ends its connection.
        retry: whether the caller may try again in a second.
    """
    return _written_out(kind, detail, close=close, retry=retry).replace(_SOME_ID.encode(), request_id.encode())


_SOME_ID: Final = str(uuid.UUID(int=0))  # a placeholder


@lru_cache(64)  # at overload, building each refusal would be costly
def _written_out(kind: ProblemType, detail: str, *, close: bool, retry: bool) -> bytes:
    headers = {"X-Request-Id": _SOME_ID, "Cache-Control": "no-store", **HEADERS}
    if retry:
        headers["Retry-After"] = "1"
    if close:
        headers["Connection"] = "close"
    response = problem_response(kind, detail, _SOME_ID, headers)
    status = f"HTTP/1.1 {kind.status} {HTTPStatus(kind.status).phrase}".encode()
    lines = [status, *(name + b": " + value for name, value in response.raw_headers)]
    return b"\r\n".join(lines) + b"\r\n\r\n" + bytes(response.body)
