"""The one thing that callers may send: the bytes of a film, as the body, within limits."""

from __future__ import annotations

import asyncio
from typing import Final

from starlette.requests import Request

from chestxray.serving.problems import EMPTY_BODY, SLOW_BODY, TOO_LARGE, UNSUPPORTED_CONTENT, Refusal

# The bytes decide what a film is; its media type only has to say "these are the bytes of a picture".
MEDIA_TYPES: Final = ("image/jpeg", "image/png", "application/x-image", "application/octet-stream")


async def read_film(request: Request, limit: int, seconds: float) -> bytes:
    """The body of the request.

    Args:
        limit: in bytes; a longer body is refused by its announced length, or at the first byte too many.
        seconds: in which the whole body has to arrive.

    Raises: Refusal.
    """
    _check_headers(request, limit)
    try:
        async with asyncio.timeout(seconds):
            data = await _read(request, limit)
    except TimeoutError:
        raise Refusal(SLOW_BODY, f"the body did not arrive within {seconds:g} seconds") from None
    if not data:
        raise Refusal(EMPTY_BODY, "the body is empty; it has to be the bytes of one film")
    return data


async def _read(request: Request, limit: int) -> bytes:
    data = bytearray()
    async for chunk in request.stream():
        data += chunk
        if len(data) > limit:
            raise Refusal(TOO_LARGE, f"the body is longer than the limit of {limit:,} bytes")
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
