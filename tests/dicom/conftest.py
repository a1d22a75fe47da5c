"""What the tests of the node share."""

from __future__ import annotations

from pathlib import Path

import pytest

HERE = Path(__file__).parent

# pynetdicom leaves the socket of a connection that failed to be closed when it is collected, which is at once.
UNCLOSED = "ignore:Exception ignored in. <s:pytest.PytestUnraisableExceptionWarning"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if HERE in item.path.parents:
            item.add_marker(pytest.mark.filterwarnings(UNCLOSED))
