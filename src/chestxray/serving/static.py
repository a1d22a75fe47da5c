"""The page's files, held in memory: an exact table of addresses, so no path of a caller ever meets the disk."""

from __future__ import annotations

import gzip
import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

PAGE: Final = Path(__file__).with_name("page")
EXAMPLES: Final = PAGE / "examples"
PAGE_NOT_FOUND: Final = (PAGE / "404.html").read_bytes()

MEDIA_TYPES: Final = {  # not from the system's table, which differs between machines
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
    ".jpg": "image/jpeg",
    ".json": "application/json",
}
SHORT_NAMES: Final = {"/index.html": "/", "/docs.html": "/docs"}  # problem documents lead to /docs
_PACKED: Final = frozenset({".jpg"})  # compressed already


def page_routes() -> Iterator[Route]:
    """The routes of the page's folder: one a file, and one more where a file has a short name."""
    for path in sorted(PAGE.rglob("*")):
        if path.suffix not in MEDIA_TYPES:
            continue
        content = path.read_bytes()
        packed = content if path.suffix in _PACKED else gzip.compress(content, mtime=0)
        address = f"/{path.relative_to(PAGE).as_posix()}"
        for name in {address, SHORT_NAMES.get(address, address)}:
            yield _route(name, content, packed, MEDIA_TYPES[path.suffix])


def _route(address: str, content: bytes, packed: bytes, media_type: str) -> Route:
    """``packed``: the content as gzip; the content itself where that gains nothing."""
    tag = f'"{hashlib.sha256(content).hexdigest()[:32]}"'
    # Keep it, but ask whether it is still the same.
    headers = {"Cache-Control": "no-cache", "ETag": tag, "Vary": "Accept-Encoding"}

    async def answer(request: Request) -> Response:
        if request.headers.get("if-none-match") == tag:
            return Response(status_code=304, headers=headers)
        if packed is not content and "gzip" in request.headers.get("accept-encoding", ""):
            return Response(packed, media_type=media_type, headers=headers | {"Content-Encoding": "gzip"})
        return Response(content, media_type=media_type, headers=headers)

    return Route(address, answer, methods=["GET"])
