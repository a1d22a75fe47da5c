"""The way out of this process to AWS: what our own clients ask for is written down, and may be refused there.

boto3 asks the handlers of "before-send" first; what one of them answers is taken for the service's answer, and goes
through the same parsing and the same repetition. Clients of the tests and of the stand-ins are let through.
"""

from __future__ import annotations

import functools
import io
import json
import types
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Final

import botocore.endpoint
import botocore.handlers
import botocore.loaders
import botocore.session
import pytest
from botocore.awsrequest import AWSPreparedRequest, AWSResponse
from botocore.exceptions import ReadTimeoutError
from botocore.httpsession import URLLib3Session
from botocore.retries.bucket import TokenBucket
from urllib3.response import HTTPResponse

OURS: Final = "chestxray/"  # in the user agent
IN_XML: Final = ("s3", "cloudfront", "iam", "sts", "cloudformation")
READS: Final = ("Describe", "Get", "List", "Head", "BatchGet")

# What each service says when it is asked too often.
TOO_OFTEN: Final = {
    "s3": (503, "SlowDown"),
    "iam": (400, "Throttling"),
    "sts": (400, "Throttling"),
    "cloudformation": (400, "Throttling"),
    "cloudfront": (400, "Throttling"),
    "scheduler": (429, "TooManyRequestsException"),
}
THROTTLED: Final = (400, "ThrottlingException")  # the others
DENIED: Final = (403, "AccessDeniedException")
EXPIRED: Final = (403, "ExpiredToken")

Refusal = Callable[[str, int], tuple[int, str] | None]  # of the service, and how often the operation was asked


@dataclass
class CloudRequests:
    """What went through.

    Attributes:
        asked: "service.Operation", in order.
        refuse: status and code for a request, or None to let it through.
        waited: seconds between repetitions, none of which were waited for.
        faults: by "service.Operation": "denied", "throttled", "timeout" (it never arrived) or "lost" (it was carried
            out, and the answer never arrived).
        before: by "service.Operation", what to do before it is sent.
    """

    asked: list[str] = field(default_factory=list)
    waited: list[float] = field(default_factory=list)
    refuse: Refusal = lambda _, __: None
    faults: dict[str, str] = field(default_factory=dict)
    before: dict[str, Callable[[], None]] = field(default_factory=dict)
    times: Counter[str] = field(default_factory=Counter)
    _session: URLLib3Session = field(default_factory=URLLib3Session)

    def __call__(self, request: AWSPreparedRequest, event_name: str, **_: Any) -> AWSResponse | None:
        agent = request.headers.get("User-Agent", b"")
        if OURS not in (agent.decode() if isinstance(agent, bytes) else agent):
            return None
        asked = event_name.removeprefix("before-send.")
        service = asked.partition(".")[0]
        self.asked.append(asked)
        self.times[asked] += 1
        if asked in self.before:
            self.before[asked]()
        fault = self.faults.get(asked)
        if fault == "lost":
            self._session.send(request)
        if fault in {"timeout", "lost"}:
            raise ReadTimeoutError(endpoint_url=request.url)
        known = {"denied": DENIED, "throttled": throttled(service)}
        refused = known[fault] if fault else self.refuse(service, self.times[asked])
        return _answer(request, service, *refused) if refused else None

    def fail(self, asked: str, fault: str) -> None:
        """Let that operation fail until it is taken out of ``faults``."""
        self.faults[asked] = fault

    def begin(self) -> None:
        """Forget what was asked."""
        self.asked.clear()
        self.waited.clear()
        self.times.clear()

    @property
    def changes(self) -> list[str]:
        """What was asked that is no mere question."""
        return [asked for asked in self.asked if not asked.partition(".")[2].startswith(READS)]


def throttled(service: str) -> tuple[int, str]:
    return TOO_OFTEN.get(service, THROTTLED)


def at_first(times: int) -> Refusal:
    """Each operation is throttled so many times."""
    return lambda service, asked: throttled(service) if asked <= times else None


@contextmanager
def watched() -> Iterator[CloudRequests]:
    """Clients that are made inside the block go through it, and wait for nothing.

    Their services' models are read once, not once a command.
    """
    cloud = CloudRequests()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(botocore.session, "create_loader", functools.cache(botocore.loaders.create_loader))
        patch.setattr(
            botocore.handlers, "BUILTIN_HANDLERS", [*botocore.handlers.BUILTIN_HANDLERS, ("before-send", cloud)]
        )
        patch.setattr(botocore.endpoint, "time", types.SimpleNamespace(sleep=cloud.waited.append))
        patch.setattr(TokenBucket, "acquire", lambda *_, **__: True)
        yield cloud


def _answer(request: AWSPreparedRequest, service: str, status: int, code: str) -> AWSResponse:
    message = "told by AWS"
    if service in IN_XML:
        error = f"<Error><Code>{code}</Code><Message>{message}</Message></Error>"
        body = error if service == "s3" else f"<ErrorResponse>{error}</ErrorResponse>"
    else:
        body = json.dumps({"__type": code, "message": message})
    data = b"" if request.method == "HEAD" else body.encode()
    headers = {"x-amzn-ErrorType": code, "Content-Length": str(len(data))}
    return AWSResponse(request.url, status, headers, HTTPResponse(io.BytesIO(data), preload_content=False))
