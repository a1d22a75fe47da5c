"""Every request of the AWS verbs, in every test, is held against the lowest boto3 and against the deployer's policy."""

from __future__ import annotations

from collections.abc import Iterator

import botocore.handlers
import pytest

from request_checks import check_request


@pytest.fixture(autouse=True, scope="session")
def floor() -> Iterator[None]:
    """Clients that are made from now on refuse to send what an old boto3 would not."""
    with pytest.MonkeyPatch.context() as patch:
        hook = ("before-parameter-build", check_request)
        patch.setattr(botocore.handlers, "BUILTIN_HANDLERS", [*botocore.handlers.BUILTIN_HANDLERS, hook])
        yield
