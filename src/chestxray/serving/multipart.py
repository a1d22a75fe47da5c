"""The films of a multipart body, one at a time, as they arrive: python-multipart parses, this file enforces the limits.

Source: RFC 7578.
"""

from __future__ import annotations

from collections import deque
from collections.abc import AsyncIterator
from dataclasses import dataclass
from email.message import Message
from typing import Final

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser

from chestxray.serving.problems import INVALID_REQUEST, TOO_LARGE, Refusal

MOST_FILMS: Final = 1000  # of one request


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


async def parts_of(chunks: AsyncIterator[bytes], boundary: str, longest: int) -> AsyncIterator[Part]:
    """Yield the parts in order; each counts as a film, whatever its name, because the bytes decide its format.

    Args:
        chunks: the body as it arrives.
        boundary: as the content type states it.
        longest: largest size of a part in bytes; a longer part is read to its end and yielded without its bytes.

    Raises: Refusal, if the body is not multipart, ends early, or has more than ``MOST_FILMS`` parts.
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
            while collector.whole:
                given += 1
                if given > MOST_FILMS:
                    raise Refusal(TOO_LARGE, f"the body has more than {MOST_FILMS:,} parts; send the others apart")
                yield collector.whole.popleft()
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
