"""The page's files, held in memory: an exact table of addresses, so no path of a caller ever meets the disk."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

PAGE: Final = Path(__file__).with_name("page")
EXAMPLES: Final = PAGE / "examples"

_MEDIA_TYPES: Final = {  # not from the system's table, which differs between machines
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
    ".jpg": "image/jpeg",
    ".json": "application/json",
}
_SHORT_NAMES: Final = {"/index.html": "/", "/docs.html": "/docs"}


def page_routes() -> Iterator[Route]:
    """One route a file of the page's folder."""
    for path in sorted(PAGE.rglob("*")):
        if path.suffix in _MEDIA_TYPES:
            address = f"/{path.relative_to(PAGE).as_posix()}"
            yield _route(_SHORT_NAMES.get(address, address), path.read_bytes(), _MEDIA_TYPES[path.suffix])


def _route(address: str, content: bytes, media_type: str) -> Route:
    tag = f'"{hashlib.sha256(content).hexdigest()[:32]}"'
    headers = {"Cache-Control": "no-cache", "ETag": tag}  # keep it, but ask whether it is still the same

    async def answer(request: Request) -> Response:
        if request.headers.get("if-none-match") == tag:
            return Response(status_code=304, headers=headers)
        return Response(content, media_type=media_type, headers=headers)

    return Route(address, answer, methods=["GET"])
