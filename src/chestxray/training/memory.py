"""Memory that a step of training frees is kept for the next one, as long as the epoch lasts.

The C library gives large blocks back to the system as soon as they are freed, and the system hands them out again
page by page, each cleared: a step that asks for the same hundreds of megabytes every time spends a tenth or more of
its time there.
"""

from __future__ import annotations

import ctypes
import platform
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

# Parameters of mallopt(3), and what they are by default.
_M_TRIM_THRESHOLD: Final = -1
_M_MMAP_MAX: Final = -4
_USUAL: Final = {_M_MMAP_MAX: 65_536, _M_TRIM_THRESHOLD: 128 * 1024}
_KEEPING: Final = {_M_MMAP_MAX: 0, _M_TRIM_THRESHOLD: 2**31 - 1}  # no blocks of their own; the largest that is taken


@contextmanager
def freed_memory_kept() -> Iterator[None]:
    """Within it the C library, where it is glibc, keeps what this process frees; behind it, all of that goes back."""
    if platform.libc_ver()[0] != "glibc":
        yield
        return
    library = ctypes.CDLL(None)
    for parameter, value in _KEEPING.items():
        library.mallopt(parameter, value)
    try:
        yield
    finally:
        for parameter, value in _USUAL.items():
            library.mallopt(parameter, value)
        library.malloc_trim(0)
