"""The page's files, held in memory: an exact table of addresses, so no caller's path reaches the disk."""

from __future__ import annotations

import gzip
import hashlib
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from string import Template
from typing import Final

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

PAGE: Final = Path(__file__).with_name("page")
EXAMPLES: Final = PAGE / "examples"
FRAME: Final = PAGE / "frame.html"  # the common frame of the pages to read
# each of these files holds the rest of its head, then <main>
FRAMED: Final = frozenset({"404.html", "docs.html", "model.html"})
NOT_FOUND: Final = "404.html"

MEDIA_TYPES: Final = {  # a table of our own: the system's table differs between machines
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
    ".jpg": "image/jpeg",
    ".json": "application/json",
}
SHORT_NAMES: Final = {"/index.html": "/", "/docs.html": "/docs"}  # problem documents link to /docs
_PACKED: Final = frozenset({".jpg"})  # compressed already


def page_files() -> Iterator[tuple[str, bytes, str]]:
    """Return the page's files, as any server may hold them: path below the folder, content, media type."""
    for path in sorted(PAGE.rglob("*")):
        if path.suffix in MEDIA_TYPES and path != FRAME:
            content = _framed(path) if path.name in FRAMED else path.read_bytes()
            yield path.relative_to(PAGE).as_posix(), content, MEDIA_TYPES[path.suffix]


def _framed(path: Path) -> bytes:
    head, _, main = path.read_text(encoding="utf-8").partition("\n\n")
    root = "/" if path.name == NOT_FOUND else ""  # the page for unknown addresses is served at any depth
    return Template(FRAME.read_text(encoding="utf-8")).substitute(root=root, head=f"{head}\n", main=main).encode()


PAGE_NOT_FOUND: Final = _framed(PAGE / NOT_FOUND)  # for a person with a browser


def page_routes() -> Iterator[Route]:
    """Return the routes of the page's files: one a file, and a second one if the file has a short name."""
    for path, content, media_type in page_files():
        packed = content if PurePosixPath(path).suffix in _PACKED else gzip.compress(content, mtime=0)
        for name in {f"/{path}", SHORT_NAMES.get(f"/{path}", f"/{path}")}:
            yield _route(name, content, packed, media_type)


def _route(address: str, content: bytes, packed: bytes, media_type: str) -> Route:
    """Return the route of one file. ``packed`` is the content as gzip, or the content itself if gzip gains nothing."""
    tag = f'"{hashlib.sha256(content).hexdigest()[:32]}"'
    # Browsers keep the file, but ask whether it has changed.
    headers = {"Cache-Control": "no-cache", "ETag": tag, "Vary": "Accept-Encoding"}

    async def answer(request: Request) -> Response:
        if request.headers.get("if-none-match") == tag:
            return Response(status_code=304, headers=headers)
        if packed is not content and "gzip" in request.headers.get("accept-encoding", ""):
            return Response(packed, media_type=media_type, headers=headers | {"Content-Encoding": "gzip"})
        return Response(content, media_type=media_type, headers=headers)

    return Route(address, answer, methods=["GET"])
