"""From bytes to a radiograph: one table of formats; limits are checked before anything is decoded.

``decode`` is pure: bytes in, pixels out, and errors of known types only. It never opens a path or an address.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import threading
import warnings
from collections.abc import Callable
from functools import cache
from pathlib import Path
from types import TracebackType
from typing import Any, Final, NamedTuple

from chestxray import __version__
from chestxray.errors import FilmTooLarge, UnsupportedFormat
from chestxray.images import MAX_BYTES, Radiograph, dicom, raster


class Format(NamedTuple):
    """One row of the table of formats.

    Attributes:
        recognises: function of the file's first bytes: True if they are of this format.
        read: function of the whole file, its name in errors, and the least size that the caller needs.
    """

    name: str
    media_type: str
    recognises: Callable[[bytes], bool]
    read: Callable[[bytes, str, tuple[int, int] | None], Radiograph]


# DICOM comes first: its preamble may make the same file a TIFF as well (PS3.10 section 7.1).
FORMATS: Final = (
    Format("DICOM", "application/dicom", dicom.is_dicom, dicom.read_dicom),
    Format("JPEG", "image/jpeg", lambda data: data.startswith(b"\xff\xd8\xff"), raster.read_jpeg),
    Format("PNG", "image/png", lambda data: data.startswith(b"\x89PNG\r\n\x1a\n"), raster.read_png),
    Format("TIFF", "image/tiff", lambda data: data[:4] in raster.TIFF_MAGIC, raster.read_tiff),
    Format("WebP", "image/webp", raster.is_webp, raster.read_webp),
    Format("BMP", "image/bmp", lambda data: data.startswith(b"BM"), raster.read_bmp),
    Format("GIF", "image/gif", lambda data: data.startswith((b"GIF87a", b"GIF89a")), raster.read_gif),
    Format("JPEG 2000", "image/jp2", raster.is_jpeg2000, raster.read_jpeg2000),
    Format("HEIC", "image/heic", raster.is_heic, raster.read_heic),
    Format("PGM", "image/x-portable-graymap", raster.is_portable_map, raster.read_portable_map),
)

# Other files that people mistake for films: name, first bytes (and their place), and remedy.
_KINDS: Final = (
    ("a Git LFS pointer", 0, (b"version https://git-lfs",), 'Fetch the film itself: "git lfs pull"'),
    ("a PDF", 0, (b"%PDF",), "Export the picture itself"),
    ("AVIF", 4, (b"ftypavif", b"ftypavis"), "Export it as JPEG or PNG"),
    ("a sequence of HEIC", 4, (b"ftyphevc", b"ftyphevx", b"ftypmif1", b"ftypmsf1"), "Export one picture"),
    ("JPEG XL", 0, (b"\xff\x0a", b"\0\0\0\x0cJXL "), "Export it as JPEG or PNG"),
    ("a video", 4, (b"ftyp", b"moov", b"mdat"), "Export one frame"),
    ("a video", 8, (b"AVI ",), "Export one frame"),
    ("an archive", 0, (b"PK\3\4", b"PK\5\6", b"\x1f\x8b", b"Rar!", b"7z\xbc\xaf", b"BZh", b"\xfd7zXZ"), "Unpack it"),
    ("a NumPy array", 0, (b"\x93NUMPY",), "Hand the array to chestxray.predict in Python"),
    ("NIfTI", 344, (b"n+1\0", b"ni1\0"), "Export it as DICOM or PNG"),
    ("NRRD", 0, (b"NRRD0",), "Export it as DICOM or PNG"),
    ("HDF5", 0, (b"\x89HDF",), "Export the picture itself"),
    ("a Photoshop file", 0, (b"8BPS",), "Export it as PNG"),
    ("an icon", 0, (b"\0\0\1\0",), "Export it as PNG"),
    ("a program", 0, (b"MZ", b"\x7fELF"), "Give a film"),
)  # fmt: skip
_TEXT_HEAD: Final = 512  # bytes that are enough to tell text from other files
# Libraries that produce a film's pixels: another version may produce other pixels.
_LIBRARIES: Final = (
    "numpy", "pillow", "simplejpeg", "pydicom", "imagecodecs", "pyjpegls", "pylibjpeg", "pylibjpeg-libjpeg",
    "pylibjpeg-openjpeg", "pylibjpeg-rle", "python-gdcm",
)  # fmt: skip


def decode(data: bytes, source: str, at_least: tuple[int, int] | None = None) -> Radiograph:
    """Decode the bytes of one film.

    Args:
        data: the whole file.
        source: the film's name in errors.
        at_least: (height, width) that the caller will shrink the film to. A large JPEG is then decoded at
            1/2, 1/4 or 1/8 of its size, the smallest that still has twice that many pixels on each axis.
            On 120 published films shrunk to 112 x 160 the result differs from that of the full decode by
            0.18 grey levels of 255 on average, and by at most 17 (beside burnt-in letters).

    Raises: UnsupportedFormat, FilmTooLarge, TruncatedFilm, UnreadableFilm; MissingExtra for a DICOM file if pydicom is
    not installed.
    """
    if len(data) > MAX_BYTES:
        raise FilmTooLarge(f"{source}: {len(data):,} bytes; the limit is {MAX_BYTES:,}. Export a smaller copy")
    form = format_of(data, source)
    with quietly:
        return form.read(data, source, at_least)


@cache
def decoder_hash() -> str:
    """Return the SHA-256 of the code that turns bytes into pixels: this package's code, and the libraries' versions."""
    from importlib import metadata  # takes as long as a film to import; the service never asks

    digest = hashlib.sha256(__version__.encode())
    for path in sorted(Path(__file__).parent.glob("*.py")):
        digest.update(path.read_bytes())
    for library in _LIBRARIES:
        with contextlib.suppress(metadata.PackageNotFoundError):
            digest.update(f"{library} {metadata.version(library)}".encode())
    return digest.hexdigest()


def format_of(data: bytes, source: str) -> Format:
    """Return the row of the table that recognises these bytes. Raises: UnsupportedFormat."""
    for form in FORMATS:
        if form.recognises(data):
            return form
    names = ", ".join(form.name for form in FORMATS[:-1])
    raise UnsupportedFormat(f"{source}: not a {names} or {FORMATS[-1].name} file ({kind_of(data)})")


def kind_of(data: bytes) -> str:
    """Describe in words what a file that is no film is, and what to do about it."""
    if not data:
        return "the file is empty"
    for name, at, beginnings, remedy in _KINDS:
        if data.startswith(beginnings, at):
            return f"it is {name}. {remedy}"
    head = data[:_TEXT_HEAD]
    if not head.strip(b"\0"):
        return "it holds zeros: its download was cut. Copy it again"
    return _kind_of_text(head) if _is_text(head) else "it is of no format that is known"


def _kind_of_text(head: bytes) -> str:
    text = head.decode("utf-8", "ignore").lstrip("\ufeff \t\r\n").lower()
    if text.startswith(("<!doctype html", "<html", "<head", "<body")):
        return "it is a web page, as a server sends it in place of a file. Download it again"
    if text.startswith(("<?xml", "<svg", "<!--", "<!doctype")):
        return "it is an XML or SVG document. Export the picture itself"
    return "it is text"


def _is_text(head: bytes) -> bool:
    """Check whether these bytes are UTF-8 without control characters; the last character may be incomplete."""
    text = head.decode("utf-8", "replace").rstrip("\ufffd")
    return bool(text) and all(letter.isprintable() or letter in "\t\n\r\f" for letter in text)


class Quiet:
    """Suppresses warnings, and pydicom's log, while any thread is inside.

    ``warnings.catch_warnings`` alone saves and restores one list for the whole process, so two overlapping threads
    could leave warnings off for good. Here the first thread to enter saves the list and the last thread to leave
    restores it.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._inside = 0
        self._saved: Any = None
        self._log = logging.getLogger("pydicom")

    def __enter__(self) -> None:
        with self._lock:
            self._inside += 1
            if self._inside == 1:
                self._saved = warnings.catch_warnings(action="ignore")
                self._saved.__enter__()
                self._log.disabled = True

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._lock:
            self._inside -= 1
            if self._inside == 0:
                self._log.disabled = False
                self._saved.__exit__(kind, error, trace)


quietly = Quiet()
