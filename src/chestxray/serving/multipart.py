"""The films of a multipart body, one at a time, as they arrive: python-multipart parses, this file bounds.

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
    """A part of the body, whole.

    Attributes:
        data: its bytes; empty where it is too long.
        too_long: whether it was longer than a film may be.
    """

    data: bytes
    too_long: bool = False


def boundary_of(content_type: str) -> str | None:
    """The boundary of a ``multipart/form-data`` body; None where the header names another kind or no boundary."""
    header = Message()
    header["content-type"] = content_type
    boundary = header.get_param("boundary")
    if header.get_content_type() != "multipart/form-data" or not isinstance(boundary, str) or not boundary.isascii():
        return None
    return boundary


async def parts_of(chunks: AsyncIterator[bytes], boundary: str, longest: int) -> AsyncIterator[Part]:
    """The parts, in order; every one counts as a film, whatever its name: the bytes decide what it is.

    Args:
        chunks: of the body.
        boundary: as the content type says it.
        longest: bytes of a part that are kept; a longer one is read to its end and given without its bytes.

    Raises: Refusal, where the body is no such body, ends early, or has more than ``MOST_FILMS`` parts.
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
    """What the parser tells, put together."""

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
