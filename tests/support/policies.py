"""IAM's documents, looked through."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any


def statements(found: Any) -> Iterator[Mapping[str, Any]]:
    """Every statement of every policy in a document, whatever it hangs on."""
    if isinstance(found, Mapping):
        if "Effect" in found:
            yield found
        for value in found.values():
            yield from statements(value)
    elif isinstance(found, list):
        for value in found:
            yield from statements(value)


def as_list(value: Any) -> list[Any]:
    """One thing or several, as IAM lets people write."""
    return value if isinstance(value, list) else [value]
