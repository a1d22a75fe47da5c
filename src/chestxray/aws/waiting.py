"""Waiting for AWS, with its log shown meanwhile."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Final

from chestxray.aws.session import Cloud, cloud_errors, unless_missing
from chestxray.errors import CloudRefused, CloudThrottled, CloudUnreachable, JobFailed
from chestxray.progress import Log

JOB_ENDS: Final = ("Completed", "Failed", "Stopped")
POLL_S: Final = 5.0  # seconds between two requests
ATTEMPTS: Final = 50  # jobs of one name; those of failed jobs stay taken


def states(describe: Callable[[], Mapping[str, Any]]) -> Iterator[Mapping[str, Any]]:
    """Yield the description of a resource again and again, without end. Raises: botocore's errors."""
    while True:
        yield describe()
        time.sleep(POLL_S)


def last_state(
    describe: Callable[[], Mapping[str, Any]],
    state: Callable[[Mapping[str, Any]], str],
    is_last: Callable[[Mapping[str, Any]], bool],
    tell: Callable[[str], None],
    meanwhile: Callable[[], None] = lambda: None,
) -> Mapping[str, Any]:
    """Wait for the last state of a resource, and tell each new one once. Returns: the description of the last.

    Args:
        meanwhile: called after each description.

    Raises: errors of ``describe``.
    """
    last = ""
    for found in states(describe):
        now = state(found)
        if now != last:
            tell(now)
            last = now
        meanwhile()
        if is_last(found):
            return found
    raise AssertionError("states() has no end")


def follow_job(
    cloud: Cloud, name: str, describe: Callable[[], Mapping[str, Any]], status_key: str, group: str, log: Log
) -> Mapping[str, Any]:
    """Wait for the end of a job, and log its states and its lines. Returns: its description.

    Args:
        describe: asks for the job's description.
        status_key: where that has the status.
        group: the log group that holds the job's lines.

    Raises: JobFailed: it failed or was stopped; CloudError.
    """
    tail = LogTail(cloud.client("logs"), group, f"{name}/", log)
    with cloud_errors(f"waiting for the job {name}"):
        found = last_state(
            describe,
            lambda found: str(found.get("SecondaryStatus", found[status_key])),
            lambda found: found[status_key] in JOB_ENDS,
            lambda state: log(f"{name}: {state}"),
            tail.tell,
        )
    if found[status_key] != "Completed":
        where = f"Its lines are in the log {group}, streams {name}/..."
        raise JobFailed(f"{name}: {str(found[status_key]).lower()}: {reason_in(found)}. {where}")
    return found


def reason_in(found: Mapping[str, Any]) -> str:
    """Return why something failed, in AWS's words, without a full stop."""
    return str(found.get("FailureReason") or "").strip().rstrip(".") or "AWS gives no reason"


def next_name(
    describe: Callable[[str], Mapping[str, Any] | None],
    stem: str,
    status_key: str,
    has_result: Callable[[Mapping[str, Any]], bool],
) -> tuple[str, str]:
    """Return the running or finished job of a stem and its status, else a free name and "".

    The names of jobs that failed, were stopped, or whose result was deleted meanwhile are free again only once their
    records are deleted, so the next job gets a number.

    Raises: errors of ``describe`` and ``has_result``.
    """
    for number in range(1, ATTEMPTS):
        name = stem if number == 1 else f"{stem}-{number}"
        described = describe(name)
        if described is None:
            return name, ""
        status = str(described[status_key])
        if status not in {"Failed", "Stopped"} and (status != "Completed" or has_result(described)):
            return name, status
    raise JobFailed(
        f"{stem}: {ATTEMPTS - 1} jobs of this order failed, were stopped or lost their results. Mend what their logs "
        "say; with any option changed it is another order, with another name"
    )


class LogTail:
    """Lines of a job, from all its log streams, that have not been shown yet."""

    def __init__(self, client: Any, group: str, prefix: str, log: Log) -> None:
        self._client = client
        self._group = group
        self._prefix = prefix
        self._log = log
        self._tokens: dict[str, str] = {}
        self._is_closed = False

    def tell(self) -> None:
        """Show new lines. A log that may not be read is mentioned once, and does not end the waiting.

        Raises: CloudError.
        """
        if self._is_closed:
            return
        try:
            self._tell()
        except (CloudThrottled, CloudUnreachable):
            pass  # lines that cannot be read now are shown the next time
        except CloudRefused as error:
            self._log(f"{error}. Its lines are not shown meanwhile")
            self._is_closed = True

    def _tell(self) -> None:
        named = {"logGroupName": self._group, "logStreamNamePrefix": self._prefix}
        with cloud_errors(f"reading the log {self._group}"):
            found = unless_missing(self._client.describe_log_streams, **named)
            for stream in found["logStreams"] if found else ():  # there is no log until a line is written
                self._tell_stream(stream["logStreamName"])

    def _tell_stream(self, stream: str) -> None:
        while True:
            token = self._tokens.get(stream)
            given = {"nextToken": token} if token else {}
            page = self._client.get_log_events(
                logGroupName=self._group, logStreamName=stream, startFromHead=True, **given
            )
            for event in page["events"]:
                self._log(event["message"])
            self._tokens[stream] = page["nextForwardToken"]
            if page["nextForwardToken"] == token:  # the same token again means that this was the last page
                return
