"""What this machine offers to one process."""

from __future__ import annotations

import os


def cores() -> int:
    """Processor cores that this process may use; at least 1."""
    if hasattr(os, "sched_getaffinity"):  # Linux: respects containers' and schedulers' limits
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
