"""Deployment of a bundle: a model, an endpoint (serverless by default), and schedules that delete them.

The schedules delete endpoint, configuration and model without any program of ours running. They are created before the
endpoint, so that nothing runs for ever if a command is stopped half-way.

Source: Amazon SageMaker API reference, CreateModel, CreateEndpointConfig, CreateEndpoint, UpdateEndpoint; Amazon
EventBridge Scheduler user guide, "Using universal targets" and "Automatic deletion".
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Final

from chestxray.aws.images import compressed, takes_key, tarred
from chestxray.aws.plan import SERVERLESS_GB_SECOND, PlanItem, bucket_and_role, dollars, instance_hours
from chestxray.aws.roles import (
    EXPIRY,
    Statement,
    allow,
    arn,
    ensure_execution_role,
    ensure_role,
    once_the_role_is_known,
)
from chestxray.aws.session import Cloud, Names, cloud_errors, last_state, reason_in, short_hash, states, unless_missing
from chestxray.aws.storage import checksum_stored, ensure_bucket, holds, put_bytes
from chestxray.data.sources import S3_SCHEME
from chestxray.errors import CloudError, CloudMissing, JobFailed, UsageError
from chestxray.inference.bundle import Bundle, folder_of, shipped_bundles
from chestxray.progress import Log


@dataclass(frozen=True, slots=True)
class ModelArchive:
    """A ``model.tar.gz`` with a bundle.

    Attributes:
        address: its present or future address in S3.
        stamp: part of names: the same for the same weights.
        data: a ``.tar`` to compress and send to S3 first; empty if nothing has to be sent.
    """

    address: str
    stamp: str
    data: bytes = b""


def weights_of(cloud: Cloud, names: Names, given: str) -> ModelArchive:
    """Return the weights of a bundle (a folder, or a name in this package), or of a training job.

    Raises: BundleInvalid, CloudMissing, JobFailed.
    """
    weights = _weights_of(cloud, names, given)
    asked = " ".join(cloud.rules.stamp)
    return replace(weights, stamp=f"{weights.stamp} {asked}") if asked else weights


def _weights_of(cloud: Cloud, names: Names, given: str) -> ModelArchive:
    if Path(given).is_dir() or given in shipped_bundles():
        return _of_bundle(names, folder_of(given))
    with cloud_errors(f"looking for the training job {given}"):
        job = unless_missing(cloud.client("sagemaker").describe_training_job, TrainingJobName=given)
    if job is None:
        raise CloudMissing(f"{given}: neither a bundle here nor a training job in {names.region}")
    if job["TrainingJobStatus"] != "Completed":
        why = f": {reason_in(job)}" if job.get("FailureReason") else ""
        raise JobFailed(f"{given}: the job is {job['TrainingJobStatus']}{why}; it has no bundle")
    address = job["ModelArtifacts"]["S3ModelArtifacts"]
    with cloud_errors(f"looking for {address}"):
        if not holds(cloud.client("s3"), address):
            raise CloudMissing(f"{given}: its bundle {address} was deleted meanwhile. Train it again")
    return ModelArchive(address, short_hash(address.encode()))


def ensure_model(cloud: Cloud, names: Names, weights: ModelArchive, image: str) -> str:
    """Create the model unless it exists. Returns: its name. Raises: CloudError."""
    name = model_name(names, weights, image)
    role = ensure_execution_role(cloud, names, image=image)
    client = cloud.client("sagemaker")
    if weights.data:
        ensure_bucket(cloud, names)
        key = weights.address.removeprefix(f"{S3_SCHEME}{names.bucket}/")
        with cloud_errors(f"sending the bundle to {weights.address}"):
            store = cloud.client("s3")
            if not checksum_stored(store, names.bucket, key):
                put_bytes(store, names.bucket, key, compressed(weights.data))
    with cloud_errors(f"creating the model {name}"):
        if unless_missing(client.describe_model, ModelName=name) is None:
            request: dict[str, Any] = {
                "ModelName": name,
                "ExecutionRoleArn": role,
                "PrimaryContainer": {"Image": image, "ModelDataUrl": weights.address},
                "Tags": names.tag_list,
                **cloud.rules.network,
            }
            once_the_role_is_known(lambda: client.create_model(**request))
    return name


def model_name(names: Names, weights: ModelArchive, image: str) -> str:
    """Return the model's name: the same for the same weights in the same image."""
    return names.stamped("model", f"{weights.stamp} {image}")


def _of_bundle(names: Names, folder: Path) -> ModelArchive:
    bundle = Bundle.open(folder)
    bundle.verify()
    files = {path.name: path.read_bytes() for path in sorted(folder.iterdir()) if path.is_file()}
    data = tarred(files)
    stamp = short_hash(data)
    return ModelArchive(f"{S3_SCHEME}{names.bucket}/bundles/{stamp}/model.tar.gz", stamp, data)


NEVER: Final = "never"
TTL_UNITS: Final = {"m": "minutes", "h": "hours", "d": "days"}
SHORTEST: Final = timedelta(minutes=5)  # an endpoint that is still being created cannot be deleted
AFTER: Final = timedelta(minutes=10)  # between two deletions: by then the endpoint is gone
TARGET: Final = "arn:aws:scheduler:::aws-sdk:sagemaker:"

# In the order of deletion: operation, its parameter, policy action, word in the ARN.
_ENDS: Final = (
    ("deleteEndpoint", "EndpointName", "sagemaker:DeleteEndpoint", "endpoint"),
    ("deleteEndpointConfig", "EndpointConfigName", "sagemaker:DeleteEndpointConfig", "endpoint-config"),
    ("deleteModel", "ModelName", "sagemaker:DeleteModel", "model"),
)


@dataclass(frozen=True, slots=True)
class EndpointParts:
    """The parts of an endpoint, by name."""

    endpoint: str
    config: str
    model: str

    @property
    def in_order(self) -> tuple[str, str, str]:
        """Names in the order of deletion."""
        return self.endpoint, self.config, self.model


def parse_ttl(text: str) -> timedelta | None:
    """Read a lifetime: ``90m``, ``4h``, ``2d``; ``never`` is None. Raises: UsageError."""
    if text == NEVER:
        return None
    match = re.fullmatch(r"(\d{1,4})([mhd])", text)
    lifetime = timedelta(**{TTL_UNITS[match[2]]: int(match[1])}) if match else timedelta()
    if lifetime < SHORTEST:
        raise UsageError(f"--ttl {text}: give 5m or more, as minutes, hours or days (90m, 4h, 2d), or type {NEVER}")
    return lifetime


def set_expiry(cloud: Cloud, names: Names, parts: EndpointParts, end: datetime | None) -> None:
    """Create the schedules that delete an endpoint, or change existing ones; with ``end`` None remove them.

    Args:
        end: time of deletion, with a time zone.

    Raises: CloudError.
    """
    if end is None:
        remove_expiry(cloud, names)
        return
    role = ensure_role(cloud, names, EXPIRY, "scheduler.amazonaws.com", {"delete": ending(names, parts)})
    client = cloud.client("scheduler")
    with cloud_errors("making the schedules that end the endpoint"):
        _ensure_group(client, names)
        for place, ((operation, parameter, _, word), name) in enumerate(zip(_ENDS, parts.in_order, strict=True)):
            target = {"Arn": f"{TARGET}{operation}", "RoleArn": role, "Input": json.dumps({parameter: name})}
            request = _one_time_schedule(f"{names.deployment}-{word}", names.deployment, end + place * AFTER, target)
            once_the_role_is_known(lambda request=request: _put_schedule(client, request))  # type: ignore[misc]


def ending(names: Names, parts: EndpointParts) -> list[Statement]:
    """Return what the schedules may do: delete these three resources, by name."""
    return [
        allow([action], arn(names, "sagemaker", f"{word}/{name}"))
        for (_, _, action, word), name in zip(_ENDS, parts.in_order, strict=True)
    ]


def remove_expiry(cloud: Cloud, names: Names) -> None:
    """Delete the schedules of this deployment. Raises: CloudError."""
    client = cloud.client("scheduler")
    with cloud_errors("deleting earlier schedules"):
        for word in (word for _, _, _, word in _ENDS):
            name = f"{names.deployment}-{word}"
            unless_missing(client.delete_schedule, Name=name, GroupName=names.deployment)


def end_of(cloud: Cloud, names: Names) -> str:
    """Return the scheduled time of the endpoint's deletion; "" if there is none. Raises: botocore's errors."""
    client, name = cloud.client("scheduler"), f"{names.deployment}-endpoint"
    found = unless_missing(client.get_schedule, Name=name, GroupName=names.deployment)
    if found is None:
        return ""
    return f"{found['ScheduleExpression'].removeprefix('at(').removesuffix(')')} UTC"


def _ensure_group(client: Any, names: Names) -> None:
    """Create the tagged group of schedules (schedules themselves have no tags).

    Raises: CloudForeign, botocore's errors.
    """
    found = unless_missing(client.get_schedule_group, Name=names.deployment)
    if found is None:
        client.create_schedule_group(Name=names.deployment, Tags=names.tag_list)
    else:
        names.refuse_foreign("group of schedules", names.deployment, group_tags(client, found))


def group_tags(client: Any, group: Mapping[str, Any]) -> list[dict[str, str]]:
    """Return the tags of a group of schedules, as its service lists or describes it. Raises: botocore's errors."""
    return list(client.list_tags_for_resource(ResourceArn=group["Arn"]).get("Tags", ()))


def _put_schedule(client: Any, request: Mapping[str, Any]) -> None:
    """Update a schedule, or create it if there is none, so that the endpoint is never without one."""
    if unless_missing(client.update_schedule, **request) is None:
        client.create_schedule(**request)


def _one_time_schedule(name: str, group: str, when: datetime, target: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "Name": name,
        "GroupName": group,
        "ScheduleExpression": f"at({when.astimezone(UTC):%Y-%m-%dT%H:%M:%S})",
        "ScheduleExpressionTimezone": "UTC",
        "FlexibleTimeWindow": {"Mode": "OFF"},
        "ActionAfterCompletion": "DELETE",
        "Target": {**target, "RetryPolicy": {"MaximumRetryAttempts": 20, "MaximumEventAgeInSeconds": 86_400}},
    }


VARIANT: Final = "AllTraffic"
SERVERLESS_MB: Final = 3072
SERVERLESS_AT_ONCE: Final = 5  # films at once; more have to wait or are throttled
SECONDS_OF_A_FILM: Final = 0.5  # rough time, for the plan
LOGS: Final = "/aws/sagemaker/Endpoints/"
SETTLED: Final = ("InService", "Failed", "OutOfService", "UpdateRollbackFailed")
LOG_DAYS: Final = 30  # for which the endpoint's log is kept


@dataclass(frozen=True, slots=True)
class Hosting:
    """The machine or service on which a model runs.

    Attributes:
        instance: type of the instance; "" for serverless.
    """

    instance: str = ""

    @property
    def variant(self) -> dict[str, Any]:
        """The variant in the form of CreateEndpointConfig, without the model."""
        if not self.instance:
            return {"ServerlessConfig": {"MemorySizeInMB": SERVERLESS_MB, "MaxConcurrency": SERVERLESS_AT_ONCE}}
        return {"InstanceType": self.instance, "InitialInstanceCount": 1, "InitialVariantWeight": 1.0}

    def item(self, names: Names, note: str) -> PlanItem:
        """Return the item of a plan: what hosting costs."""
        if self.instance:
            kind = f"endpoint on one {self.instance}"
            return PlanItem(kind, names.endpoint, hourly=instance_hours(self.instance), note=note, does="ensure")
        thousand = 1000 * SECONDS_OF_A_FILM * SERVERLESS_MB / 1024 * SERVERLESS_GB_SECOND
        cost = f"nothing while idle, about {dollars(thousand)} a thousand films"
        return PlanItem("serverless endpoint", names.endpoint, note=f"{cost}; {note}", does="ensure")


def endpoint_parts(names: Names, weights: ModelArchive, image: str, hosting: Hosting) -> EndpointParts:
    """Return the names that a deployment gives: the same for the same content."""
    model = model_name(names, weights, image)
    config = names.stamped("hosting", json.dumps([model, hosting.variant]))
    return EndpointParts(names.endpoint, config, model)


def plan_items(names: Names, parts: EndpointParts, hosting: Hosting, ttl: timedelta | None) -> tuple[PlanItem, ...]:
    """Return the items of a plan: what deploying does and costs, without the image."""
    end = "runs until it is deleted" if ttl is None else f"deleted by itself after {_in_words(ttl)}"
    items = [
        *bucket_and_role(names),
        PlanItem("model", parts.model, does="ensure"),
        PlanItem("endpoint configuration", parts.config, does="ensure"),
        hosting.item(names, end),
    ]
    if ttl is not None:
        items.append(
            PlanItem("schedules", names.deployment, note="delete endpoint, configuration, model", does="ensure")
        )
    return tuple(items)


def deploy(
    cloud: Cloud, names: Names, weights: ModelArchive, image: str, hosting: Hosting, end: datetime | None, log: Log
) -> str:
    """Create the endpoint, or change the existing one; wait until it answers.

    If it does not start, everything that was created is removed again. The schedules of its deletion are created before
    it.

    Returns: what was done: "create", "update" or "keep".
    Raises: JobFailed, CloudError.
    """
    parts = endpoint_parts(names, weights, image, hosting)
    client = cloud.client("sagemaker")
    before = _endpoint_if_any(client, names.endpoint)
    if before is not None:
        with cloud_errors(f"looking whose endpoint {names.endpoint} is"):
            names.refuse_foreign(
                "endpoint", names.endpoint, client.list_tags(ResourceArn=before["EndpointArn"])["Tags"]
            )
    ensure_model(cloud, names, weights, image)
    _ensure_log(cloud, names)
    anew = before is None or _must_be_recreated(client, before, hosting)
    try:
        _ensure_config(cloud, names, parts, hosting)
        set_expiry(cloud, names, parts, end)
        _begin_endpoint(client, names, parts, before, anew=anew, log=log)
        _wait(client, parts, log)
    except BaseException:
        try:
            if anew:  # the endpoint is new, so its removal affects no user
                _remove_endpoint(cloud, names, parts, log)
            elif before is not None and before["EndpointConfigName"] != parts.config:
                _roll_back(cloud, names, parts, before["EndpointConfigName"], end, log)
        except CloudError as error:  # only logged: the user has to see what failed first
            log(f'{error}. "chestxray aws destroy" removes what is left')
        raise
    earlier = before["EndpointConfigName"] if before else parts.config
    if earlier != parts.config:
        _remove_config(client, earlier, keep=parts.model)
    return "create" if anew else "keep" if earlier == parts.config else "update"


def _ensure_log(cloud: Cloud, names: Names) -> None:
    """Create the endpoint's log before SageMaker does, which would give it neither tags nor an expiry.

    Steps that an interrupted attempt left out are done now.
    """
    client, group = cloud.client("logs"), f"{LOGS}{names.endpoint}"
    with cloud_errors(f"making the log {group}"):
        found = client.describe_log_groups(logGroupNamePrefix=group)["logGroups"]
        there = next((log for log in found if log["logGroupName"] == group), None)
        if there is None:
            client.create_log_group(logGroupName=group, tags=names.tags)
        elif "retentionInDays" in there or not names.owns(log_tags(client, there)):
            return
        client.put_retention_policy(logGroupName=group, retentionInDays=LOG_DAYS)


def log_tags(client: Any, group: Mapping[str, Any]) -> dict[str, str]:
    """Return the tags of a log, as its service lists it."""
    return dict(client.list_tags_for_resource(resourceArn=group["arn"].removesuffix(":*")).get("tags", {}))


def _roll_back(cloud: Cloud, names: Names, parts: EndpointParts, config: str, end: datetime | None, log: Log) -> None:
    """Clean up after a failed change: keep the schedules of what still runs, and remove what was new.

    If the endpoint's own rollback failed, part of it runs as changed: then everything stays, for the next attempt.

    Raises: CloudError.
    """
    client = cloud.client("sagemaker")
    now = _endpoint_if_any(client, names.endpoint)
    if now is None or now["EndpointStatus"] != "InService" or now["EndpointConfigName"] != config:
        log(f'{names.endpoint}: is as the failed change left it. Repeat the command, or "chestxray aws destroy"')
        return
    model = _variants(client, config)[0]["ModelName"]
    set_expiry(cloud, names, EndpointParts(names.endpoint, config, model), end)
    _remove_config(client, parts.config, keep=model)
    log(f"{names.endpoint}: answers as before the change")


def _remove_endpoint(cloud: Cloud, names: Names, parts: EndpointParts, log: Log) -> None:
    """Remove endpoint, configuration, model and schedules; a missing resource is no error.

    Raises: CloudError.
    """
    client = cloud.client("sagemaker")
    log(f"{parts.endpoint}: is removed again, since it was not finished")
    with cloud_errors(f"removing {parts.endpoint}"):
        for found in states(lambda: _endpoint_if_any(client, parts.endpoint) or {}):
            if found.get("EndpointStatus") not in {"Creating", "Updating", "SystemUpdating"}:
                break
        unless_missing(client.delete_endpoint, EndpointName=parts.endpoint)
        unless_missing(client.delete_endpoint_config, EndpointConfigName=parts.config)
        unless_missing(client.delete_model, ModelName=parts.model)
    remove_expiry(cloud, names)


def deployed_model(cloud: Cloud, names: Names) -> str:
    """Return the model behind the endpoint. Raises: UsageError, if nothing is deployed; CloudError."""
    variant = running_variant(cloud, names)
    if variant is None:
        raise UsageError(
            f'{names.endpoint}: nothing is deployed under this name. Run "chestxray aws deploy", or name with --model '
            "which bundle or training job to validate"
        )
    return str(variant["ModelName"])


def running_variant(cloud: Cloud, names: Names) -> Mapping[str, Any] | None:
    """Return the variant that the endpoint runs, as its configuration states it; None without an endpoint.

    Raises: CloudError.
    """
    client = cloud.client("sagemaker")
    endpoint = _endpoint_if_any(client, names.endpoint)
    if endpoint is None:
        return None
    with cloud_errors(f"asking what the endpoint {names.endpoint} runs"):
        config = client.describe_endpoint_config(EndpointConfigName=endpoint["EndpointConfigName"])
    variant: Mapping[str, Any] = config["ProductionVariants"][0]
    return variant


def _endpoint_if_any(client: Any, name: str) -> Mapping[str, Any] | None:
    """Return the endpoint as SageMaker describes it; None if there is none. Raises: CloudError."""
    with cloud_errors(f"looking for the endpoint {name}"):
        found: Mapping[str, Any] | None = unless_missing(client.describe_endpoint, EndpointName=name)
    return found


def _ensure_config(cloud: Cloud, names: Names, parts: EndpointParts, hosting: Hosting) -> None:
    client, key = cloud.client("sagemaker"), cloud.rules.kms_key
    encrypted = {"KmsKeyId": key} if key and hosting.instance and takes_key(hosting.instance) else {}
    with cloud_errors(f"creating the endpoint configuration {parts.config}"):
        if unless_missing(client.describe_endpoint_config, EndpointConfigName=parts.config) is None:
            variant = {"VariantName": VARIANT, "ModelName": parts.model, **hosting.variant}
            client.create_endpoint_config(
                EndpointConfigName=parts.config, ProductionVariants=[variant], Tags=names.tag_list, **encrypted
            )


def _must_be_recreated(client: Any, before: Mapping[str, Any], hosting: Hosting) -> bool:
    """Check whether an endpoint cannot be updated: it failed, has no configuration, or changes its kind of hosting."""
    if before["EndpointStatus"] in {"Failed", "OutOfService"}:
        return True
    variants = _variants(client, before["EndpointConfigName"])
    return not variants or ("ServerlessConfig" in variants[0]) != ("ServerlessConfig" in hosting.variant)


def _begin_endpoint(
    client: Any, names: Names, parts: EndpointParts, before: Mapping[str, Any] | None, *, anew: bool, log: Log
) -> None:
    request = {"EndpointName": parts.endpoint, "EndpointConfigName": parts.config}
    with cloud_errors(f"creating the endpoint {parts.endpoint}"):
        if before is not None and anew:
            log(f"{parts.endpoint}: is replaced, and does not answer in the meantime")
            client.delete_endpoint(EndpointName=parts.endpoint)
            for found in states(lambda: {"there": _endpoint_if_any(client, parts.endpoint)}):
                if found["there"] is None:
                    break
        if anew:
            client.create_endpoint(**request, Tags=names.tag_list)
        elif before is not None and before["EndpointConfigName"] != parts.config:
            client.update_endpoint(**request)


def _wait(client: Any, parts: EndpointParts, log: Log) -> None:
    with cloud_errors(f"waiting for the endpoint {parts.endpoint}"):
        found = last_state(
            lambda: client.describe_endpoint(EndpointName=parts.endpoint),
            lambda found: str(found["EndpointStatus"]),
            lambda found: found["EndpointStatus"] in SETTLED,
            lambda state: log(f"{parts.endpoint}: {state}"),
        )
    if found["EndpointStatus"] != "InService" or found["EndpointConfigName"] != parts.config:
        where = f"Its lines are in the log {LOGS}{parts.endpoint}"
        raise JobFailed(f"{parts.endpoint}: does not come up: {reason_in(found)}. {where}")


def _remove_config(client: Any, config: str, *, keep: str) -> None:
    """Remove the endpoint's earlier configuration and its models, after a change to another."""
    with cloud_errors(f"removing the earlier configuration {config}"):
        variants = _variants(client, config)
        if variants:
            client.delete_endpoint_config(EndpointConfigName=config)
        for model in {variant["ModelName"] for variant in variants} - {keep}:
            client.delete_model(ModelName=model)


def _variants(client: Any, config: str) -> Sequence[Mapping[str, Any]]:
    """Return the variants of an endpoint configuration; none if it does not exist. Raises: CloudError."""
    with cloud_errors(f"looking at the endpoint configuration {config}"):
        found = unless_missing(client.describe_endpoint_config, EndpointConfigName=config) or {}
    return list(found.get("ProductionVariants", ()))


def _in_words(ttl: timedelta) -> str:
    minutes = round(ttl.total_seconds() / 60)
    return f"{minutes / 60:g} hours" if minutes >= 60 else f"{minutes} minutes"  # noqa: PLR2004 - minutes an hour
