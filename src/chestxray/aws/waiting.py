"""Waiting for AWS, with its log shown meanwhile."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Final

from chestxray.aws.session import cloud_errors, is_missing
from chestxray.errors import CloudRefused, CloudThrottled, JobFailed
from chestxray.progress import Log

POLL_S: Final = 5.0  # seconds between two requests
ATTEMPTS: Final = 50  # jobs of one name; those of failed jobs stay taken


def states(describe: Callable[[], Mapping[str, Any]]) -> Iterator[Mapping[str, Any]]:
    """Yield the description of a resource again and again, without end. Raises: botocore's errors."""
    while True:
        yield describe()
        time.sleep(POLL_S)


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
    raise JobFailed(f"{stem}: {ATTEMPTS - 1} jobs of this name left nothing. Change something about it")


class LogTail:
    """The lines of a job, from all its log streams, that have not been shown yet."""

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
        except CloudThrottled:
            pass  # lines that fail now are shown the next time
        except CloudRefused as error:
            self._log(f"{error}. Its lines are not told meanwhile")
            self._is_closed = True

    def _tell(self) -> None:
        from botocore.exceptions import ClientError

        with cloud_errors(f"reading the log {self._group}"):
            try:
                named = {"logGroupName": self._group, "logStreamNamePrefix": self._prefix}
                streams = [found["logStreamName"] for found in self._client.describe_log_streams(**named)["logStreams"]]
                for stream in streams:
                    self._tell_stream(stream)
            except ClientError as error:
                if not is_missing(error):  # no line was written yet
                    raise

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
