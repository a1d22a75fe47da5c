"""The page's files, held in memory: an exact table of addresses, so no caller's path reaches the disk."""

from __future__ import annotations

import base64
import gzip
import hashlib
import re
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from string import Template
from typing import Final

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

PAGE_FOLDER: Final = Path(__file__).with_name("page")
EXAMPLES: Final = PAGE_FOLDER / "examples"
FRAME: Final = PAGE_FOLDER / "frame.html"  # the common frame of the pages to read
# each of these files holds the rest of its head, then <main>
FRAMED: Final = frozenset({"404.html", "docs.html", "model.html"})
NOT_FOUND_HTML: Final = "404.html"
START: Final = PAGE_FOLDER / "index.html"
_STYLES: Final = ("shell.css", "style.css")
# What the first page holds itself: the tag in its file, and what stands there as it is served.
_INSIDE: Final = {
    **{f'<link rel="stylesheet" href="{name}">': ("<style>", "</style>", name) for name in _STYLES},
    '<script src="theme.js" data-then="./main.js">': ('<script data-then="./main.js">', "", "theme.js"),
}

ASSET_MEDIA_TYPES: Final = {  # a table of our own: the system's table differs between machines
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
    ".jpg": "image/jpeg",
    ".webp": "image/webp",
    ".json": "application/json",
}
SHORT_NAMES: Final = {"/index.html": "/", "/docs.html": "/docs"}  # problem documents link to /docs
_PACKED: Final = frozenset({".jpg", ".webp"})  # compressed already

# Lines that hold nothing but a comment: a fifth of the scripts, which no browser needs. Comments beside code are kept,
# so that no text of the code can be taken for one.
_COMMENTS: Final = {
    ".js": re.compile(r"^[ \t]*(//[^\n]*|/\*\*.*?\*/[ \t]*)\n", re.MULTILINE | re.DOTALL),
    ".css": re.compile(r"^/\*.*?\*/[ \t]*\n", re.MULTILINE | re.DOTALL),
}


def page_files() -> Iterator[tuple[str, bytes, str]]:
    """Return the page's files, as any server may hold them: path below the folder, content, media type."""
    for path in sorted(PAGE_FOLDER.rglob("*")):
        if path.suffix in ASSET_MEDIA_TYPES and path != FRAME:
            content = _framed(path) if path.name in FRAMED else _whole() if path == START else _lean(path)
            yield path.relative_to(PAGE_FOLDER).as_posix(), content, ASSET_MEDIA_TYPES[path.suffix]


def _whole() -> bytes:
    """Return the first page with its styles and its first script inside, so that one answer of the server is enough."""
    text = START.read_text(encoding="utf-8")
    for tag, (opening, closing, name) in _INSIDE.items():
        text = text.replace(tag, f"{opening}{_lean(PAGE_FOLDER / name).decode()}{closing}")
    return text.encode()


def _hash_of(name: str) -> str:
    """Return the source expression by which a Content-Security-Policy allows one file inside the first page."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(_lean(PAGE_FOLDER / name)).digest()).decode()}'"


def _lean(path: Path) -> bytes:
    """Return a file without the lines that are comments alone, and without indentation of its scripts and styles."""
    if (comments := _COMMENTS.get(path.suffix)) is None:
        return path.read_bytes()
    lines = comments.sub("", path.read_text(encoding="utf-8")).splitlines()
    return "".join(f"{line.strip()}\n" for line in lines if line.strip()).encode()


def _framed(path: Path) -> bytes:
    head, _, main = path.read_text(encoding="utf-8").partition("\n\n")
    root = "/" if path.name == NOT_FOUND_HTML else ""  # the page for unknown addresses is served at any depth
    return Template(FRAME.read_text(encoding="utf-8")).substitute(root=root, head=f"{head}\n", main=main).encode()


STYLE_HASHES: Final = " ".join(map(_hash_of, _STYLES))
SCRIPT_HASH: Final = _hash_of("theme.js")
PAGE_NOT_FOUND: Final = _framed(PAGE_FOLDER / NOT_FOUND_HTML)  # for a person with a browser


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
        known = {each.strip().removeprefix("W/") for each in request.headers.get("if-none-match", "").split(",")}
        if not known.isdisjoint({tag, "*"}):
            return Response(status_code=304, headers=headers)
        return packed_or_plain(request, content, packed, media_type, headers)

    return Route(address, answer, methods=["GET"])


def packed_or_plain(
    request: Request, content: bytes, packed: bytes, media_type: str, headers: dict[str, str]
) -> Response:
    """Answer with the packed content where the caller takes gzip and packing gains something, else with the content."""
    if packed is not content and _takes_gzip(request.headers.get("accept-encoding", "")):
        return Response(packed, media_type=media_type, headers=headers | {"Content-Encoding": "gzip"})
    return Response(content, media_type=media_type, headers=headers)


def _takes_gzip(header: str) -> bool:
    """Check whether an Accept-Encoding header names gzip, and not with a weight of zero (RFC 9110, 12.5.3)."""
    weights = {}
    for part in header.lower().split(","):
        coding, _, weight = part.replace(" ", "").partition(";q=")
        weights[coding] = not re.fullmatch(r"0(\.0*)?", weight)
    return weights.get("gzip", weights.get("*", False))
