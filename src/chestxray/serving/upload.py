"""The one thing that callers may send: the bytes of a film, as the body, within limits."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from starlette.requests import ClientDisconnect, Request

from chestxray.serving.problems import (
    EMPTY_BODY,
    INVALID_REQUEST,
    OVERLOADED,
    SLOW_BODY,
    TOO_LARGE,
    UNSUPPORTED_CONTENT,
    Refusal,
)

MEBIBYTE: Final = 2**20

# The bytes decide what a film is; its media type only has to say "these are the bytes of a picture".
MEDIA_TYPES: Final = ("image/jpeg", "image/png", "application/x-image", "application/octet-stream")


class Intake:
    """Bodies on their way in, each within a size and a time, all of them together within a size."""

    def __init__(self, limit: int, seconds: float, all_together: int) -> None:
        """Set the limits.

        Args:
            limit: bytes of a body; a longer one is refused by its announced length, or at the first byte too many.
            seconds: in which a whole body has to arrive.
            all_together: bytes of all the bodies that are held.
        """
        self.limit = limit
        self.seconds = seconds
        self.all_together = all_together
        self.held = 0  # touched on the event loop alone

    @contextmanager
    def body(self) -> Iterator[Body]:
        """One body; its bytes count until the block ends."""
        body = Body(self)
        try:
            yield body
        finally:
            self.held -= body.size


class Body:
    """The body of one request."""

    def __init__(self, intake: Intake) -> None:
        self._intake = intake
        self.size = 0

    async def read(self, request: Request) -> bytes:
        """All of it. Raises: Refusal."""
        intake = self._intake
        _check_headers(request, intake.limit)
        try:
            async with asyncio.timeout(intake.seconds):
                data = await self._read(request)
        except TimeoutError:
            raise Refusal(SLOW_BODY, f"the body did not arrive within {intake.seconds:g} seconds") from None
        except ClientDisconnect:  # nobody is left to read this
            raise Refusal(INVALID_REQUEST, "the connection ended before the body did") from None
        if not data:
            raise Refusal(EMPTY_BODY, "the body is empty; it has to be the bytes of one film")
        return data

    async def _read(self, request: Request) -> bytes:
        intake, data = self._intake, bytearray()
        async for chunk in request.stream():
            data += chunk
            self.size += len(chunk)
            intake.held += len(chunk)
            if len(data) > intake.limit:
                raise Refusal(TOO_LARGE, f"the body is longer than the limit of {intake.limit:,} bytes")
            if intake.held > intake.all_together:
                raise Refusal(OVERLOADED, "too many bytes of films are arriving already", {"Retry-After": "1"})
        return bytes(data)


def _check_headers(request: Request, limit: int) -> None:
    media_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if media_type not in MEDIA_TYPES:
        found = f"the body is announced as {media_type[:80]!r}" if media_type else "the body has no content type"
        raise Refusal(UNSUPPORTED_CONTENT, f"{found}; accepted are {', '.join(MEDIA_TYPES)}")
    if request.headers.get("content-encoding", "identity").lower() != "identity":
        raise Refusal(UNSUPPORTED_CONTENT, "the body is encoded; send it as it is")
    length = request.headers.get("content-length", "")
    if length.isdecimal() and int(length) > limit:
        raise Refusal(TOO_LARGE, f"the body has {int(length):,} bytes; the limit is {limit:,}")
