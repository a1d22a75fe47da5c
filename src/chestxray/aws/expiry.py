"""An endpoint's end: schedules that delete it, its configuration and its model, without anything of ours running.

They are made before the endpoint is, so that nothing is left to run for ever when a command is stopped in between.

Source: Amazon EventBridge Scheduler user guide, "Using universal targets" and "Automatic deletion".
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, Final

from chestxray.aws.names import Names
from chestxray.aws.roles import EXPIRY, Statement, allow, arn, ensure_role, once_the_role_is_known
from chestxray.aws.session import Cloud, cloud_errors, is_missing
from chestxray.errors import UsageError

NEVER: Final = "never"
UNITS: Final = {"m": "minutes", "h": "hours", "d": "days"}
SHORTEST: Final = timedelta(minutes=5)  # an endpoint that is still being made cannot be deleted
AFTER: Final = timedelta(minutes=10)  # between one and the next: the endpoint is gone by then
TARGET: Final = "arn:aws:scheduler:::aws-sdk:sagemaker:"

# In the order in which they go: operation, its parameter, policy action, word in the ARN.
_ENDS: Final = (
    ("deleteEndpoint", "EndpointName", "sagemaker:DeleteEndpoint", "endpoint"),
    ("deleteEndpointConfig", "EndpointConfigName", "sagemaker:DeleteEndpointConfig", "endpoint-config"),
    ("deleteModel", "ModelName", "sagemaker:DeleteModel", "model"),
)


@dataclass(frozen=True, slots=True)
class Served:
    """What makes up an endpoint, by name."""

    endpoint: str
    config: str
    model: str

    @property
    def in_order(self) -> tuple[str, str, str]:
        """As they have to go."""
        return self.endpoint, self.config, self.model


def parse_ttl(text: str) -> timedelta | None:
    """``90m``, ``4h``, ``2d``; ``never`` is None. Raises: UsageError."""
    if text == NEVER:
        return None
    match = re.fullmatch(r"(\d{1,4})([mhd])", text)
    lifetime = timedelta(**{UNITS[match[2]]: int(match[1])}) if match else timedelta()
    if lifetime < SHORTEST:
        raise UsageError(f"--ttl {text}: give 5m or more, as minutes, hours or days (90m, 4h, 2d), or type {NEVER}")
    return lifetime


def set_expiry(cloud: Cloud, names: Names, served: Served, end: datetime | None) -> None:
    """Make the schedules that delete it, or move those that are there; with None there are none.

    Args:
        end: with a time zone.

    Raises: CloudError.
    """
    if end is None:
        remove_expiry(cloud, names)
        return
    role = ensure_role(cloud, names, EXPIRY, "scheduler.amazonaws.com", {"delete": ending(names, served)})
    client = cloud.client("scheduler")
    with cloud_errors("making the schedules that end the endpoint"):
        _ensure_group(client, names)
        for place, ((operation, parameter, _, word), name) in enumerate(zip(_ENDS, served.in_order, strict=True)):
            target = {"Arn": f"{TARGET}{operation}", "RoleArn": role, "Input": json.dumps({parameter: name})}
            request = _once(f"{names.deployment}-{word}", names.deployment, end + place * AFTER, target)
            once_the_role_is_known(lambda request=request: _set(client, request))  # type: ignore[misc]


def ending(names: Names, served: Served) -> list[Statement]:
    """What the schedules may do: delete these three, by name."""
    return [
        allow([action], arn(names, "sagemaker", f"{word}/{name}"))
        for (_, _, action, word), name in zip(_ENDS, served.in_order, strict=True)
    ]


def remove_expiry(cloud: Cloud, names: Names) -> None:
    """Delete the schedules of this deployment. Raises: CloudError."""
    from botocore.exceptions import ClientError

    client = cloud.client("scheduler")
    with cloud_errors("deleting earlier schedules"):
        for word in (word for _, _, _, word in _ENDS):
            try:
                client.delete_schedule(Name=f"{names.deployment}-{word}", GroupName=names.deployment)
            except ClientError as error:
                if not is_missing(error):
                    raise


def end_of(cloud: Cloud, names: Names) -> str:
    """When the endpoint goes, as the schedule says it; "" where none does. Raises: botocore's errors."""
    from botocore.exceptions import ClientError

    try:
        found = cloud.client("scheduler").get_schedule(Name=f"{names.deployment}-endpoint", GroupName=names.deployment)
    except ClientError as error:
        if is_missing(error):
            return ""
        raise
    return f"{found['ScheduleExpression'].removeprefix('at(').removesuffix(')')} UTC"


def _ensure_group(client: Any, names: Names) -> None:
    """Schedules have no tags; their group has."""
    from botocore.exceptions import ClientError

    try:
        client.get_schedule_group(Name=names.deployment)
    except ClientError as error:
        if not is_missing(error):
            raise
        client.create_schedule_group(Name=names.deployment, Tags=names.tag_list)


def _set(client: Any, request: Mapping[str, Any]) -> None:
    """Moved and not made anew, so that there is no moment without it."""
    from botocore.exceptions import ClientError

    try:
        client.update_schedule(**request)
    except ClientError as error:
        if not is_missing(error):
            raise
        client.create_schedule(**request)


def _once(name: str, group: str, when: datetime, target: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "Name": name,
        "GroupName": group,
        "ScheduleExpression": f"at({when.astimezone(UTC):%Y-%m-%dT%H:%M:%S})",
        "ScheduleExpressionTimezone": "UTC",
        "FlexibleTimeWindow": {"Mode": "OFF"},
        "ActionAfterCompletion": "DELETE",
        "Target": {**target, "RetryPolicy": {"MaximumRetryAttempts": 20, "MaximumEventAgeInSeconds": 86_400}},
    }
