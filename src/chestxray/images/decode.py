"""Bytes to a radiograph: one table of formats, limits checked before anything is decoded.

``decode`` is pure: bytes in, pixels out, typed errors only. It never opens a path or an address.
"""

from __future__ import annotations

import logging
import threading
import warnings
from collections.abc import Callable
from types import TracebackType
from typing import Any, Final, NamedTuple

from chestxray.errors import FilmTooLarge, UnsupportedFormat
from chestxray.images import dicom, raster
from chestxray.images.radiograph import COLOUR_SPREAD, MAX_BYTES, MAX_PIXELS, Pixels, Radiograph

__all__ = [
    "COLOUR_SPREAD",
    "FORMATS",
    "MAX_BYTES",
    "MAX_PIXELS",
    "Format",
    "Pixels",
    "Radiograph",
    "decode",
    "format_of",
]


class Format(NamedTuple):
    """One row of the table of formats.

    Attributes:
        recognises: whether a file that begins like these bytes is of this format.
        read: the whole file, its name in errors, and the size that the caller needs at least.
    """

    name: str
    media_type: str
    recognises: Callable[[bytes], bool]
    read: Callable[[bytes, str, tuple[int, int] | None], Radiograph]


# DICOM stands first: its preamble may make the same file a TIFF as well (PS3.10 section 7.1).
FORMATS: Final = (
    Format("DICOM", "application/dicom", dicom.is_dicom, dicom.read_dicom),
    Format("JPEG", "image/jpeg", lambda data: data.startswith(b"\xff\xd8\xff"), raster.read_jpeg),
    Format("PNG", "image/png", lambda data: data.startswith(b"\x89PNG\r\n\x1a\n"), raster.read_png),
    Format("TIFF", "image/tiff", lambda data: data[:4] in raster.TIFF_MAGIC, raster.read_tiff),
)


def decode(data: bytes, source: str, at_least: tuple[int, int] | None = None) -> Radiograph:
    """Decode the bytes of one film.

    Args:
        data: the whole file.
        source: what to call it in errors.
        at_least: (height, width) that the caller will shrink the film to. A large JPEG is then decoded at
            1/2, 1/4 or 1/8 of its size, the smallest that still has twice that many pixels on each axis.
            On 120 published films shrunk to 112 x 160 the result differs from that of the full decode by
            0.18 grey levels of 255 on average, and by at most 17 (beside burnt-in letters).

    Raises: UnsupportedFormat, FilmTooLarge, TruncatedFilm, UnreadableFilm; MissingExtra for a DICOM file
        where pydicom is not installed.
    """
    if len(data) > MAX_BYTES:
        raise FilmTooLarge(f"{source}: {len(data):,} bytes; the limit is {MAX_BYTES:,}. Export a smaller copy")
    form = format_of(data, source)
    with quietly:
        return form.read(data, source, at_least)


def format_of(data: bytes, source: str) -> Format:
    """The row of the table that recognises these bytes. Raises: UnsupportedFormat."""
    for form in FORMATS:
        if form.recognises(data):
            return form
    found = "the file is empty" if not data else f"it begins with {data[:8].hex(' ')}"
    names = ", ".join(form.name for form in FORMATS[:-1])
    raise UnsupportedFormat(f"{source}: not a {names} or {FORMATS[-1].name} file ({found})")


class Quiet:
    """Ignore warnings, and pydicom's log, while any thread is inside.

    ``warnings.catch_warnings`` alone saves and restores one list for the whole process, so two threads that
    leave in the order in which they came would keep it silent for good. Here the first one in saves the list
    and the last one out restores it.
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
