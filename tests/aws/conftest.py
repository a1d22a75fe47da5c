"""Every request of the AWS verbs, in every test, is held against the lowest boto3 and against the deployer's policy."""

from __future__ import annotations

import functools
from collections.abc import Iterator

import botocore.handlers
import botocore.loaders
import botocore.session
import pytest

from request_checks import check_request


@pytest.fixture(autouse=True, scope="session")
def read_models_once() -> Iterator[None]:
    """Sessions of one process share the descriptions of the services, which each would parse anew (0.3 s a command)."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(botocore.session, "create_loader", functools.cache(botocore.loaders.create_loader))
        yield


@pytest.fixture(autouse=True, scope="session")
def floor() -> Iterator[None]:
    """Clients that are made from now on refuse to send what an old boto3 would not."""
    with pytest.MonkeyPatch.context() as patch:
        hook = ("before-parameter-build", check_request)
        patch.setattr(botocore.handlers, "BUILTIN_HANDLERS", [*botocore.handlers.BUILTIN_HANDLERS, hook])
        yield
