"""Waiting for what AWS does in its own time, and showing its log meanwhile."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Final

from chestxray.aws.session import cloud_errors, is_missing
from chestxray.errors import CloudRefused, CloudThrottled, JobFailed
from chestxray.progress import Log

POLL_S: Final = 5.0  # seconds between two questions
ATTEMPTS: Final = 50  # jobs of one name; AWS keeps the names of those that failed


def states(describe: Callable[[], Mapping[str, Any]]) -> Iterator[Mapping[str, Any]]:
    """What a thing says of itself, again and again, without end. Raises: botocore's errors."""
    while True:
        yield describe()
        time.sleep(POLL_S)


def next_name(
    describe: Callable[[str], Mapping[str, Any] | None],
    stem: str,
    status_key: str,
    has_result: Callable[[Mapping[str, Any]], bool],
) -> tuple[str, str]:
    """The job of that stem which runs or is finished, and its status; else a name that is free, and "".

    The names of jobs that failed, were stopped, or whose result was deleted meanwhile are taken for good, so the next
    one gets a number.

    Raises: what ``describe`` and ``has_result`` raise.
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
    """The lines of a job that have not been told yet; of all its log streams."""

    def __init__(self, client: Any, group: str, prefix: str, log: Log) -> None:
        self._client = client
        self._group = group
        self._prefix = prefix
        self._log = log
        self._tokens: dict[str, str] = {}
        self._is_closed = False

    def tell(self) -> None:
        """Show what is new. A log that may not be read is named once, and ends nobody's waiting.

        Raises: CloudError.
        """
        if self._is_closed:
            return
        try:
            self._tell()
        except CloudThrottled:
            pass  # what is not told now is told the next time
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
            if page["nextForwardToken"] == token:  # which says that this was the last page
                return
