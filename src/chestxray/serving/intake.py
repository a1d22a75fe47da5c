"""How the service reads what callers send: bodies within a size and a time, and the films of a multipart body.

python-multipart parses a form; this file enforces the limits.

Source: RFC 7578.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from email.message import Message
from typing import Final

from fastapi import Request
from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser
from starlette.requests import ClientDisconnect

from chestxray.serving.problems import (
    EMPTY_BODY,
    INVALID_REQUEST,
    OVERLOADED,
    SLOW_BODY,
    TOO_LARGE,
    UNSUPPORTED_CONTENT,
    Refusal,
)

# The bytes decide what a film is; its media type only has to say "these are the bytes of a picture".
MEDIA_TYPES: Final = (
    "image/jpeg",
    "image/jpg",
    "image/png",
    "image/tiff",
    "image/webp",
    "image/bmp",
    "image/gif",
    "image/jp2",
    "image/heic",
    "image/heif",
    "image/x-portable-graymap",
    "application/dicom",
    "application/x-image",
    "application/octet-stream",
    "binary/octet-stream",
)
MULTIPART: Final = "multipart/form-data"  # each part is one film
MOST_FILMS: Final = 1000  # of one request


class Intake:
    """Reads bodies, each within a size and a time, and all of them together within a size."""

    def __init__(self, limit: int, seconds: float, all_together: int) -> None:
        """Set the limits.

        Args:
            limit: largest size of a film in bytes; a longer one is refused by its announced length, or at the first
                byte too many.
            seconds: seconds within which a whole film has to arrive.
            all_together: bytes of all the films that are held.
        """
        self.limit = limit
        self.seconds = seconds
        self.all_together = all_together
        self.held = 0  # changed on the event loop only

    @asynccontextmanager
    async def body(self, request: Request) -> AsyncIterator[bytes]:
        """Read the whole body of a request; its bytes count until the block ends. Raises: Refusal."""
        _check_headers(request, self.limit)
        parts: list[bytes] = []
        size = 0
        with self._counted() as hold:
            async with self._in_time("the body"):
                async for chunk in request.stream():
                    parts.append(chunk)
                    size += len(chunk)
                    if size > self.limit:
                        raise Refusal(TOO_LARGE, f"the body is longer than the limit of {self.limit:,} bytes")
                    hold(size)
            if not size:
                raise Refusal(EMPTY_BODY, "the body is empty; it has to be the bytes of one film")
            yield b"".join(parts)

    @contextmanager
    def holding(self, size: int) -> Iterator[None]:
        """Count ``size`` bytes until the block ends. Raises: Refusal, if all held bytes exceed the limit."""
        with self._counted() as hold:
            hold(size)
            yield

    @contextmanager
    def _counted(self) -> Iterator[Callable[[int], None]]:
        """Yield a function that sets how many bytes count from then on; none of them counts after the block.

        The function raises Refusal, if all held bytes exceed the limit.
        """
        counted = 0

        def hold(size: int) -> None:
            nonlocal counted
            self.held += size - counted
            counted = size
            if self.held > self.all_together:
                raise Refusal(OVERLOADED, "too many bytes of films are arriving already", {"Retry-After": "1"})

        try:
            yield hold
        finally:
            self.held -= counted

    def check_part(self, part: Part) -> None:
        """Check a part of a form. Raises: Refusal, if it cannot be a film."""
        if part.too_long:
            raise Refusal(TOO_LARGE, f"the film is longer than the limit of {self.limit:,} bytes")
        if not part.data:
            raise Refusal(EMPTY_BODY, "the part is empty; it has to be the bytes of one film")

    async def films(self, request: Request, boundary: str) -> AsyncIterator[Part]:
        """Yield the films of a multipart body, each within the time and the size of one film. Raises: Refusal."""
        with self._counted() as hold:
            parts = parts_of(request.stream(), boundary, self.limit, hold=hold)
            while True:
                async with self._in_time("a film"):
                    part = await anext(parts, None)
                if part is None:
                    return
                yield part

    @asynccontextmanager
    async def _in_time(self, what: str) -> AsyncIterator[None]:
        """Limit the time of reading. Raises: Refusal, if it runs out or the caller has gone."""
        try:
            async with asyncio.timeout(self.seconds):
                yield
        except TimeoutError:
            raise Refusal(SLOW_BODY, f"{what} did not arrive within {self.seconds:g} seconds") from None
        except ClientDisconnect:  # the caller has gone: nobody reads this answer
            raise Refusal(INVALID_REQUEST, "the connection ended before the body did") from None


def _check_headers(request: Request, limit: int) -> None:
    media_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if media_type not in MEDIA_TYPES:
        found = f"the body is announced as {media_type[:80]!r}" if media_type else "the body has no content type"
        accepted = ", ".join((*MEDIA_TYPES, MULTIPART))
        raise Refusal(UNSUPPORTED_CONTENT, f"{found}; accepted are {accepted}")
    check_encoding(request)
    length = request.headers.get("content-length", "")
    if length.isdecimal() and int(length) > limit:
        raise Refusal(TOO_LARGE, f"the body has {int(length):,} bytes; the limit is {limit:,}")


def check_encoding(request: Request) -> None:
    """Check that the body is sent as it is. Raises: Refusal, if it is compressed."""
    if request.headers.get("content-encoding", "identity").lower() != "identity":
        raise Refusal(UNSUPPORTED_CONTENT, "the body is encoded; send it as it is")


@dataclass(slots=True)
class Part:
    """One complete part of the body.

    Attributes:
        data: its bytes; empty if the part is too long.
        too_long: whether the part was longer than the limit of a film.
    """

    data: bytes
    too_long: bool = False


def boundary_of(content_type: str) -> str | None:
    """Return the boundary of a ``multipart/form-data`` body; None if the header names another type or no boundary."""
    header = Message()
    header["content-type"] = content_type
    boundary = header.get_param("boundary")
    if header.get_content_type() != "multipart/form-data" or not isinstance(boundary, str) or not boundary.isascii():
        return None
    return boundary


async def parts_of(
    chunks: AsyncIterator[bytes],
    boundary: str,
    longest: int,
    most: int = MOST_FILMS,
    hold: Callable[[int], object] = lambda _: None,
) -> AsyncIterator[Part]:
    """Yield the parts in order; each counts as a film, whatever its name, because the bytes decide its format.

    Args:
        chunks: the body as it arrives.
        boundary: as the content type states it.
        longest: largest size of a part in bytes; a longer part is read to its end and yielded without its bytes.
        most: largest number of parts.
        hold: called with the bytes of the parts that have arrived in whole or part, and were not yielded.

    Raises: Refusal, if the body is not multipart, ends early, or has more parts.
    """
    collector = _Collector(longest)
    try:
        parser = MultipartParser(
            boundary,
            {
                "on_part_begin": collector.begin,
                "on_part_data": collector.take,
                "on_part_end": collector.end,
                "on_end": collector.close,
            },
        )
        given = 0
        async for chunk in chunks:
            if chunk:
                parser.write(chunk)
                hold(collector.size)
            while collector.whole:
                given += 1
                if given > most:
                    raise Refusal(TOO_LARGE, f"the body has more than {most:,} parts; send the others apart")
                yield collector.whole.popleft()
            hold(collector.size)
    except FormParserError as error:
        raise Refusal(INVALID_REQUEST, "the body is no multipart/form-data as its content type says") from error
    if not collector.closed:
        raise Refusal(INVALID_REQUEST, "the multipart body ends before its last boundary")


class _Collector:
    """Collects the parts that the parser reports."""

    def __init__(self, longest: int) -> None:
        self.whole: deque[Part] = deque()
        self.closed = False
        self._longest = longest
        self._data = bytearray()
        self._too_long = False

    @property
    def size(self) -> int:
        """Bytes of all parts that are here."""
        return len(self._data) + sum(len(part.data) for part in self.whole)

    def begin(self) -> None:
        self._data = bytearray()
        self._too_long = False

    def take(self, data: bytes, start: int, end: int) -> None:
        if len(self._data) + end - start > self._longest:
            self._too_long = True
            self._data.clear()
        if not self._too_long:
            self._data += memoryview(data)[start:end]

    def end(self) -> None:
        self.whole.append(Part(bytes(self._data), self._too_long))
        self._data = bytearray()

    def close(self) -> None:
        self.closed = True
