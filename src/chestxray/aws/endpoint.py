"""An endpoint: the bundle behind HTTP in AWS, serverless unless told otherwise, and with an end.

Source: Amazon SageMaker API reference, CreateEndpointConfig, CreateEndpoint, UpdateEndpoint.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Final

from chestxray.aws import prices
from chestxray.aws.expiry import Served, remove_expiry, set_expiry
from chestxray.aws.model import Weights, ensure_model, model_name
from chestxray.aws.names import Names
from chestxray.aws.plan import Item
from chestxray.aws.session import Cloud, cloud_errors, is_missing
from chestxray.aws.waiting import states
from chestxray.errors import CloudError, JobFailed, UsageError
from chestxray.progress import Log

VARIANT: Final = "AllTraffic"
SERVERLESS_MB: Final = 3072
SERVERLESS_AT_ONCE: Final = 5  # films; more wait or are throttled
SECONDS_A_FILM: Final = 0.5  # about, for the plan
LOGS: Final = "/aws/sagemaker/Endpoints/"
SETTLED: Final = ("InService", "Failed", "OutOfService")


@dataclass(frozen=True, slots=True)
class Hosting:
    """Where a model runs.

    Attributes:
        instance: its type; "" for serverless.
    """

    instance: str = ""

    @property
    def variant(self) -> dict[str, Any]:
        """As CreateEndpointConfig takes it, but for the model."""
        if not self.instance:
            return {"ServerlessConfig": {"MemorySizeInMB": SERVERLESS_MB, "MaxConcurrency": SERVERLESS_AT_ONCE}}
        return {"InstanceType": self.instance, "InitialInstanceCount": 1, "InitialVariantWeight": 1.0}

    def item(self, names: Names, note: str) -> Item:
        """What it costs."""
        if self.instance:
            kind = f"endpoint on one {self.instance}"
            return Item(kind, names.endpoint, hourly=prices.instance_hours(self.instance), note=note, does="ensure")
        thousand = 1000 * SECONDS_A_FILM * SERVERLESS_MB / 1024 * prices.SERVERLESS_GB_SECOND
        cost = f"nothing while idle, about {prices.dollars(thousand)} a thousand films"
        return Item("serverless endpoint", names.endpoint, note=f"{cost}; {note}", does="ensure")


def served_as(names: Names, weights: Weights, image: str, hosting: Hosting) -> Served:
    """The names that deploying it gives: the same for the same."""
    model = model_name(names, weights, image)
    digest = hashlib.sha256(json.dumps([model, hosting.variant]).encode()).hexdigest()[:12]
    return Served(names.endpoint, names.stamped(f"hosting-{digest}"), model)


def plan_items(names: Names, served: Served, hosting: Hosting, ttl: timedelta | None) -> tuple[Item, ...]:
    """What deploying does and costs, but for the image."""
    end = "runs until it is deleted" if ttl is None else f"deleted by itself after {_in_words(ttl)}"
    items = [
        Item("bucket", names.bucket, note="kept where it is there", does="ensure"),
        Item("role", names.role("sagemaker"), does="ensure"),
        Item("model", served.model, does="ensure"),
        Item("endpoint configuration", served.config, does="ensure"),
        hosting.item(names, end),
    ]
    if ttl is not None:
        items.append(Item("schedules", names.deployment, note="delete endpoint, configuration, model", does="ensure"))
    return tuple(items)


def deploy(
    cloud: Cloud, names: Names, weights: Weights, image: str, hosting: Hosting, end: datetime | None, log: Log
) -> str:
    """Make the endpoint, or change the one that is there; wait until it answers.

    Where it does not come up, what was made is removed again. The schedules of its end are made before it is.

    Returns: what it did: "create", "update" or "keep".
    Raises: JobFailed, CloudError.
    """
    served = served_as(names, weights, image, hosting)
    client = cloud.client("sagemaker")
    ensure_model(cloud, names, weights, image)
    before = _there(client, names.endpoint)
    anew = before is None or _has_to_be_made_anew(client, before, hosting)
    try:
        _ensure_config(client, names, served, hosting)
        set_expiry(cloud, names, served, end)
        _begin(client, names, served, before, anew=anew, log=log)
        _wait(client, served, log)
    except BaseException:
        if anew:  # nothing answered before, so nothing that anybody uses is taken away
            _take_away(cloud, names, served, log)
        raise
    earlier = before["EndpointConfigName"] if before else served.config
    if earlier != served.config:
        _remove_config(client, earlier, keep=served.model)
    return "create" if anew else "keep" if earlier == served.config else "update"


def _take_away(cloud: Cloud, names: Names, served: Served, log: Log) -> None:
    """After a failure, whose reason stays the one that the user is told."""
    try:
        remove(cloud, names, served, log)
    except CloudError as error:
        log(f'{error}. "chestxray aws destroy" removes what is left')


def remove(cloud: Cloud, names: Names, served: Served, log: Log) -> None:
    """Take away endpoint, configuration, model and schedules; what is not there is no error.

    Raises: CloudError.
    """
    from botocore.exceptions import ClientError

    client = cloud.client("sagemaker")
    log(f"{served.endpoint}: taken away again")
    with cloud_errors(f"removing {served.endpoint}"):
        for found in states(lambda: _there(client, served.endpoint) or {}):
            if found.get("EndpointStatus") not in {"Creating", "Updating", "SystemUpdating"}:
                break
        for operation, parameter, name in (
            ("delete_endpoint", "EndpointName", served.endpoint),
            ("delete_endpoint_config", "EndpointConfigName", served.config),
            ("delete_model", "ModelName", served.model),
        ):
            try:
                getattr(client, operation)(**{parameter: name})
            except ClientError as error:
                if not is_missing(error):
                    raise
    remove_expiry(cloud, names)


def deployed_model(cloud: Cloud, names: Names) -> str:
    """The model behind the endpoint. Raises: UsageError, where nothing is deployed; CloudError."""
    client = cloud.client("sagemaker")
    with cloud_errors(f"looking for the endpoint {names.endpoint}"):
        endpoint = _there(client, names.endpoint)
        if endpoint is None:
            raise UsageError(
                f'{names.endpoint}: nothing is deployed under this name. Run "chestxray aws deploy", or say with '
                "--model which bundle or training job to validate"
            )
        config = client.describe_endpoint_config(EndpointConfigName=endpoint["EndpointConfigName"])
    return str(config["ProductionVariants"][0]["ModelName"])


def _there(client: Any, name: str) -> Mapping[str, Any] | None:
    from botocore.exceptions import ClientError

    try:
        found: Mapping[str, Any] = client.describe_endpoint(EndpointName=name)
    except ClientError as error:
        if is_missing(error):
            return None
        raise
    return found


def _ensure_config(client: Any, names: Names, served: Served, hosting: Hosting) -> None:
    from botocore.exceptions import ClientError

    with cloud_errors(f"creating the endpoint configuration {served.config}"):
        try:
            client.describe_endpoint_config(EndpointConfigName=served.config)
        except ClientError as error:
            if not is_missing(error):
                raise
            variant = {"VariantName": VARIANT, "ModelName": served.model, **hosting.variant}
            client.create_endpoint_config(
                EndpointConfigName=served.config, ProductionVariants=[variant], Tags=names.tag_list
            )


def _has_to_be_made_anew(client: Any, before: Mapping[str, Any], hosting: Hosting) -> bool:
    """What failed, lost its configuration, or would change between serverless and instances, cannot be updated."""
    if before["EndpointStatus"] in {"Failed", "OutOfService"}:
        return True
    variants = _variants(client, before["EndpointConfigName"])
    return not variants or ("ServerlessConfig" in variants[0]) != ("ServerlessConfig" in hosting.variant)


def _begin(
    client: Any, names: Names, served: Served, before: Mapping[str, Any] | None, *, anew: bool, log: Log
) -> None:
    request = {"EndpointName": served.endpoint, "EndpointConfigName": served.config}
    with cloud_errors(f"creating the endpoint {served.endpoint}"):
        if before is not None and anew:
            log(f"{served.endpoint}: is made anew, and answers nothing meanwhile")
            client.delete_endpoint(EndpointName=served.endpoint)
            for found in states(lambda: {"there": _there(client, served.endpoint)}):
                if found["there"] is None:
                    break
        if anew:
            client.create_endpoint(**request, Tags=names.tag_list)
        elif before is not None and before["EndpointConfigName"] != served.config:
            client.update_endpoint(**request)


def _wait(client: Any, served: Served, log: Log) -> None:
    told = ""
    with cloud_errors(f"waiting for the endpoint {served.endpoint}"):
        for found in states(lambda: client.describe_endpoint(EndpointName=served.endpoint)):
            status = found["EndpointStatus"]
            if status != told:
                log(f"{served.endpoint}: {status}")
                told = status
            if status in SETTLED:
                break
    if status != "InService" or found["EndpointConfigName"] != served.config:
        why = found.get("FailureReason") or "AWS gives no reason"
        raise JobFailed(f"{served.endpoint}: does not come up: {why} Its lines are in the log {LOGS}{served.endpoint}")


def _remove_config(client: Any, config: str, *, keep: str) -> None:
    """What an endpoint was made of before, once it is made of something else."""
    with cloud_errors(f"removing the earlier configuration {config}"):
        variants = _variants(client, config)
        if variants:
            client.delete_endpoint_config(EndpointConfigName=config)
        for model in {variant["ModelName"] for variant in variants} - {keep}:
            client.delete_model(ModelName=model)


def _variants(client: Any, config: str) -> Sequence[Mapping[str, Any]]:
    """Of an endpoint configuration; none where it is gone."""
    from botocore.exceptions import ClientError

    try:
        found: Sequence[Mapping[str, Any]] = client.describe_endpoint_config(EndpointConfigName=config)[
            "ProductionVariants"
        ]
    except ClientError as error:
        if is_missing(error):
            return ()
        raise
    return found


def _in_words(ttl: timedelta) -> str:
    minutes = round(ttl.total_seconds() / 60)
    return f"{minutes / 60:g} hours" if minutes >= 60 else f"{minutes} minutes"  # noqa: PLR2004 - minutes an hour
