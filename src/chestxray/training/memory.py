"""Memory that a step of training frees is kept for the next one.

The C library gives large blocks back to the system as soon as they are freed, and the system hands them out again
page by page, each cleared: a step that asks for the same hundreds of megabytes every time spends a tenth or more of
its time there.
"""

from __future__ import annotations

import ctypes
import platform
from typing import Final

# Parameters of mallopt(3).
_M_TRIM_THRESHOLD: Final = -1
_M_MMAP_MAX: Final = -4
KEPT: Final = 2**31 - 1  # bytes free at the end of the heap before any are given back; the largest that is taken


def keep_freed_memory() -> None:
    """Ask the C library, where it is glibc, to keep what this process frees; elsewhere nothing happens."""
    if platform.libc_ver()[0] == "glibc":
        library = ctypes.CDLL(None)
        library.mallopt(_M_MMAP_MAX, 0)
        library.mallopt(_M_TRIM_THRESHOLD, KEPT)
