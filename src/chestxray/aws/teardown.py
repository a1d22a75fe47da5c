"""Teardown: everything of a deployment is found, removed in the right order, and searched again until nothing is left.

Resources are found through each service's own lists: the tagging service learns of some only after minutes and of
others never. A resource belongs to the deployment if its name and its tags say so. A resource with such a name but
without the tag is shown, and never removed.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Final

from chestxray.aws import session, stacks
from chestxray.aws.deploy import end_of, group_tags, log_tags
from chestxray.aws.plan import ECR_GB_MONTH, HOURS_A_MONTH, S3_GB_MONTH, Plan, PlanItem, instance_hours
from chestxray.aws.roles import EXECUTION, EXPIRY, delete_role
from chestxray.aws.session import Cloud, Names, cloud_errors, unless_missing
from chestxray.aws.storage import bucket_exists, bucket_tags, empty_bucket
from chestxray.errors import CloudError
from chestxray.progress import Log


@dataclass(frozen=True, slots=True)
class Found:
    """A resource of the deployment.

    Attributes:
        kind: row of RESOURCE_KINDS.
        name: its name in AWS.
        state: state in the words of its service, or "".
        hourly: dollars an hour while it exists; None if the price is not known here.
        note: further remarks.
        foreign: whether it has a name of ours but not our tag, so that it is not touched.
    """

    kind: str
    name: str
    state: str = ""
    hourly: float | None = 0.0
    note: str = ""
    foreign: bool = False


Find = Callable[[Cloud, Names], Iterator[Found]]
Remove = Callable[[Cloud, Names, str], None]  # the last argument is the resource's name


@dataclass(frozen=True, slots=True)
class ResourceKind:
    """A kind of resource that this package creates.

    Attributes:
        what: its name in words.
        find: function that yields the existing ones. Raises: botocore's errors.
        remove: function that removes one by name; the removal may still be in progress afterwards.
        is_data: whether a user may want to keep it.
        of_endpoint: whether it is removed with the endpoint alone.
    """

    what: str
    find: Find
    remove: Remove
    is_data: bool = False
    of_endpoint: bool = False


# --------------------------------------------------------------------------- what runs

RUNNING_JOB: Final = ("InProgress", "Stopping")
ENDED_JOB: Final = ("Completed", "Failed", "Stopped")


def _call(operation: str, parameter: str) -> Remove:
    """Return a function that calls one operation of SageMaker with the resource's name as the only parameter."""

    def remove(cloud: Cloud, _: Names, name: str) -> None:
        getattr(cloud.client("sagemaker"), operation)(**{parameter: name})

    return remove


def _running(kind: str) -> Find:
    """Return a function that finds running jobs; ``kind`` is "Training" or "Transform"."""
    resources = {"Training": "ResourceConfig", "Transform": "TransformResources"}[kind]

    def find(cloud: Cloud, names: Names) -> Iterator[Found]:
        client = cloud.client("sagemaker")
        describe = getattr(client, f"describe_{kind.lower()}_job")
        for name, status in _jobs(client, names, kind, RUNNING_JOB):
            used = describe(**{f"{kind}JobName": name})[resources]
            hourly = instance_hours(used["InstanceType"], used["InstanceCount"])
            yield Found(f"{kind.lower()} job", name, status, hourly)

    return find


def _training_records(cloud: Cloud, names: Names) -> Iterator[Found]:
    for name, status in _jobs(cloud.client("sagemaker"), names, "Training", ENDED_JOB):
        yield Found("training job record", name, status, note="names the bundle that deploy finds by it")


def _jobs(client: Any, names: Names, kind: str, statuses: Sequence[str]) -> Iterator[tuple[str, str]]:
    """Yield name and status of our jobs of a kind in one of these statuses."""
    for status in statuses:
        pages = client.get_paginator(f"list_{kind.lower()}_jobs")
        for page in pages.paginate(NameContains=names.deployment, StatusEquals=status):
            for item in page[f"{kind}JobSummaries"]:
                if _is_ours(client, names, item[f"{kind}JobName"], item[f"{kind}JobArn"]):
                    yield item[f"{kind}JobName"], status


def _endpoints(cloud: Cloud, names: Names) -> Iterator[Found]:
    client = cloud.client("sagemaker")
    for page in client.get_paginator("list_endpoints").paginate(NameContains=names.endpoint):
        for item in page["Endpoints"]:
            if item["EndpointName"] == names.endpoint and not _is_ours(
                client, names, names.endpoint, item["EndpointArn"]
            ):
                yield Found("endpoint", names.endpoint, item["EndpointStatus"], foreign=True)
    for item in _hosted(client, names, "Endpoint"):
        described = client.describe_endpoint(EndpointName=item["EndpointName"])
        hourly, note = _cost_of(client, described["EndpointConfigName"])
        end = end_of(cloud, names)
        note += f"; deleted by itself at {end}" if end else "; no schedule deletes it"
        yield Found("endpoint", item["EndpointName"], item["EndpointStatus"], hourly, note)


def _cost_of(client: Any, config: str) -> tuple[float | None, str]:
    found = unless_missing(client.describe_endpoint_config, EndpointConfigName=config)
    if found is None:
        return 0.0, "its configuration is gone"
    variant = found["ProductionVariants"][0]
    if "ServerlessConfig" in variant:
        return 0.0, "serverless: nothing while idle"
    instance, count = variant["InstanceType"], variant["InitialInstanceCount"]
    return instance_hours(instance, count), f"on {instance}"


def _hosted(client: Any, names: Names, kind: str) -> Iterator[dict[str, Any]]:
    """Yield endpoints, endpoint configurations or models of the deployment, as their service lists them."""
    operation = {"Endpoint": "list_endpoints", "EndpointConfig": "list_endpoint_configs", "Model": "list_models"}[kind]
    for page in client.get_paginator(operation).paginate(NameContains=names.deployment):
        for item in page[f"{kind}s"]:
            if _is_ours(client, names, item[f"{kind}Name"], item[f"{kind}Arn"]):
                yield item


def _is_ours(client: Any, names: Names, name: str, arn: str) -> bool:
    """Check by name and tag whether a resource is ours: "chestxray-two" is another deployment than "chestxray"."""
    if name != names.deployment and not name.startswith(f"{names.deployment}-"):
        return False
    return names.owns(client.list_tags(ResourceArn=arn)["Tags"])


def _configs(cloud: Cloud, names: Names) -> Iterator[Found]:
    for item in _hosted(cloud.client("sagemaker"), names, "EndpointConfig"):
        yield Found("endpoint configuration", item["EndpointConfigName"])


def _models(cloud: Cloud, names: Names) -> Iterator[Found]:
    for item in _hosted(cloud.client("sagemaker"), names, "Model"):
        yield Found("model", item["ModelName"])


def _delete_endpoint(cloud: Cloud, _: Names, name: str) -> None:
    client = cloud.client("sagemaker")
    if client.describe_endpoint(EndpointName=name)["EndpointStatus"] != "Deleting":
        client.delete_endpoint(EndpointName=name)


# --------------------------------------------------------------------------- what endpoints and jobs need


def _schedules(cloud: Cloud, names: Names) -> Iterator[Found]:
    client = cloud.client("scheduler")
    for page in client.get_paginator("list_schedule_groups").paginate(NamePrefix=names.deployment):
        for group in page["ScheduleGroups"]:
            if group["Name"] == names.deployment and group.get("State", "ACTIVE") == "ACTIVE":
                yield Found("schedules", group["Name"], foreign=not names.owns(group_tags(client, group)))


def _delete_schedules(cloud: Cloud, _: Names, name: str) -> None:
    """Delete the schedules, then their group, which would delete them with a delay."""
    client = cloud.client("scheduler")
    for page in client.get_paginator("list_schedules").paginate(GroupName=name):
        for found in page["Schedules"]:
            client.delete_schedule(Name=found["Name"], GroupName=name)
    client.delete_schedule_group(Name=name)


def _stacks(cloud: Cloud, names: Names) -> Iterator[Found]:
    for stack in (names.website_stack, names.build_stack):
        found = stacks.describe_stack(cloud, stack)
        if found is not None:
            yield Found("stack", stack, found["StackStatus"], foreign=not names.owns(found.get("Tags", ())))


def _delete_stack(cloud: Cloud, _: Names, name: str) -> None:
    """Delete a stack, and wait until it is gone or CloudFormation states what prevents it."""
    stacks.remove(cloud, name, lambda _: None)


def _images(cloud: Cloud, names: Names) -> Iterator[Found]:
    """Yield the image repository, which exists without its stack if that is gone or the repository was made by hand."""
    client = cloud.client("ecr")
    found = unless_missing(client.describe_repositories, repositoryNames=[names.deployment])
    if found is None:
        return
    tags = client.list_tags_for_resource(resourceArn=found["repositories"][0]["repositoryArn"])["tags"]
    pages = client.get_paginator("describe_images").paginate(repositoryName=names.deployment)
    size = sum(image.get("imageSizeInBytes", 0) for page in pages for image in page["imageDetails"])
    hourly = size / 1e9 * ECR_GB_MONTH / HOURS_A_MONTH
    note = f"{size / 1e9:.2f} GB"
    yield Found("image repository", names.deployment, hourly=hourly, note=note, foreign=not names.owns(tags))


def _delete_images(cloud: Cloud, _: Names, name: str) -> None:
    cloud.client("ecr").delete_repository(repositoryName=name, force=True)


def _logs(cloud: Cloud, names: Names) -> Iterator[Found]:
    """Yield the logs of endpoints and builds. Jobs log into groups of the whole account, which are not deleted."""
    client = cloud.client("logs")
    for prefix in (f"/aws/sagemaker/Endpoints/{names.endpoint}", f"/aws/codebuild/{names.build_stack}"):
        for page in client.get_paginator("describe_log_groups").paginate(logGroupNamePrefix=prefix):
            for group in page["logGroups"]:
                if group["logGroupName"] == prefix:
                    note = f"{group.get('storedBytes', 0) / 1e6:.1f} MB"
                    yield Found("log", prefix, note=note, foreign=not names.owns(log_tags(client, group)))


def _delete_log(cloud: Cloud, _: Names, name: str) -> None:
    cloud.client("logs").delete_log_group(logGroupName=name)


def _roles(cloud: Cloud, names: Names) -> Iterator[Found]:
    for name in map(names.role, (EXECUTION, EXPIRY)):
        found = unless_missing(cloud.client("iam").get_role, RoleName=name)
        if found is not None:
            yield Found("role", name, foreign=not names.owns(found["Role"].get("Tags", ())))


def _delete_role(cloud: Cloud, _: Names, name: str) -> None:
    delete_role(cloud.client("iam"), name)


def _bucket(cloud: Cloud, names: Names) -> Iterator[Found]:
    client = cloud.client("s3")
    if not bucket_exists(client, names.bucket):
        return
    sizes = [
        found["Size"]
        for page in client.get_paginator("list_objects_v2").paginate(Bucket=names.bucket)
        for found in page.get("Contents", ())
    ]
    hourly = sum(sizes) / 1e9 * S3_GB_MONTH / HOURS_A_MONTH
    foreign = not names.owns(bucket_tags(client, names.bucket))
    note = f"{len(sizes):,} objects, {sum(sizes) / 1e6:,.1f} MB"
    yield Found("bucket", names.bucket, hourly=hourly, note=note, foreign=foreign)


def _delete_bucket(cloud: Cloud, _: Names, name: str) -> None:
    client = cloud.client("s3")
    empty_bucket(client, name)
    client.delete_bucket(Bucket=name)


# In the order of deletion: running resources, then what they were made of, then what they needed.
RESOURCE_KINDS: Final[tuple[ResourceKind, ...]] = (
    ResourceKind("training job", _running("Training"), _call("stop_training_job", "TrainingJobName")),
    ResourceKind("transform job", _running("Transform"), _call("stop_transform_job", "TransformJobName")),
    ResourceKind("endpoint", _endpoints, _delete_endpoint, of_endpoint=True),
    ResourceKind(
        "endpoint configuration", _configs, _call("delete_endpoint_config", "EndpointConfigName"), of_endpoint=True
    ),
    ResourceKind("model", _models, _call("delete_model", "ModelName"), of_endpoint=True),
    ResourceKind("schedules", _schedules, _delete_schedules, of_endpoint=True),
    ResourceKind("stack", _stacks, _delete_stack),
    ResourceKind("image repository", _images, _delete_images),
    ResourceKind("log", _logs, _delete_log),
    ResourceKind("role", _roles, _delete_role),
    ResourceKind(
        "training job record", _training_records, _call("delete_training_job", "TrainingJobName"), is_data=True
    ),
    ResourceKind("bucket", _bucket, _delete_bucket, is_data=True),
)


PATIENCE_S: Final = 1800.0  # a distribution takes AWS a quarter of an hour to delete
UNDER_WAY: Final = frozenset(
    {"Stopping", "Deleting", "Creating", "Updating", "SystemUpdating", "RollingBack", "DELETE_IN_PROGRESS"}
)


@dataclass(frozen=True, slots=True)
class Survey:
    """The resources that were found.

    Attributes:
        found: everything of the deployment, in the order of deletion.
        foreign: resources with a name of ours that are not ours; they are not touched.
        unknown: kinds that could not be searched, and why.
    """

    found: tuple[Found, ...]
    unknown: tuple[str, ...]
    foreign: tuple[Found, ...] = ()

    @property
    def hourly(self) -> float:
        """Dollars an hour for everything, as far as the prices are known."""
        return sum(item.hourly or 0.0 for item in self.found)

    @property
    def unpriced(self) -> tuple[str, ...]:
        """Names of resources whose further cost is not known here."""
        return tuple(item.name for item in self.found if item.hourly is None)


@dataclass(frozen=True, slots=True)
class Teardown:
    """The result of a teardown.

    Attributes:
        removed: resources that are gone.
        left: resources that still exist, or may.
        problems: errors on the way, in sentences.
    """

    removed: tuple[Found, ...]
    left: tuple[Found, ...]
    problems: tuple[str, ...]

    @property
    def is_clean(self) -> bool:
        """True if everything is gone for certain."""
        return not self.left and not self.problems


def survey_account(cloud: Cloud, names: Names, *, data: bool = True, endpoint: bool = False) -> Survey:
    """Search for all resources; a kind that may not be listed does not hide the others.

    Args:
        data: whether to include our bucket, and the records of training jobs.
        endpoint: only the endpoint, and its parts.
    """
    found: list[Found] = []
    unknown: list[str] = []
    for kind in _kinds(data=data, endpoint=endpoint):
        try:
            with cloud_errors(f"looking for {kind.what}"):
                found += kind.find(cloud, names)
        except CloudError as error:
            unknown.append(str(error))
    ours = tuple(item for item in found if not item.foreign)
    return Survey(ours, tuple(unknown), tuple(item for item in found if item.foreign))


def plan(found: Sequence[Found]) -> Plan:
    """Return what ``destroy`` would do."""
    items = [PlanItem(item.kind, item.name, hourly=item.hourly, note=item.note, does="delete") for item in found]
    return Plan("destroy", tuple(items))


def destroy(
    cloud: Cloud,
    names: Names,
    before: Survey,
    log: Log,
    *,
    data: bool = True,
    endpoint: bool = False,
) -> Teardown:
    """Remove everything, continue after errors, and search again until nothing is left, or for half an hour.

    Args:
        before: the result of ``survey`` with the same ``data`` and ``endpoint``.
        data: also our bucket, with the bundles and the reports' scores, and the records of training jobs, by which
            bundles are found. The films' own bucket is never touched.
        endpoint: only the endpoint, and what goes with it.
    """
    if not before.found:
        return Teardown((), (), before.unknown)
    until = time.monotonic() + PATIENCE_S
    logged: set[tuple[str, str]] = set()
    while True:
        problems: dict[tuple[str, str], str] = {}
        for kind in _kinds(data=data, endpoint=endpoint):
            if _remove_all(cloud, names, kind, logged, problems, log):
                break  # later kinds may still be needed by what is being deleted
        now = survey_account(cloud, names, data=data, endpoint=endpoint)
        stuck = bool(problems) and all((item.kind, item.name) in problems for item in now.found)
        if not now.found or stuck or time.monotonic() > until:
            break
        time.sleep(session.POLL_S)
    left = {(item.kind, item.name) for item in now.found}
    removed = tuple(item for item in before.found if (item.kind, item.name) not in left)
    kept = [reason for thing, reason in problems.items() if thing in left]
    return Teardown(removed, now.found, (*now.unknown, *kept))


def _kinds(*, data: bool, endpoint: bool) -> list[ResourceKind]:
    if endpoint:
        return [kind for kind in RESOURCE_KINDS if kind.of_endpoint]
    return [kind for kind in RESOURCE_KINDS if data or not kind.is_data]


def _remove_all(
    cloud: Cloud,
    names: Names,
    kind: ResourceKind,
    logged: set[tuple[str, str]],
    problems: dict[tuple[str, str], str],
    log: Log,
) -> bool:
    """Remove all resources of a kind. Returns: whether some are still being deleted, without a problem."""
    found = _found(cloud, names, kind)
    for item in found:
        thing = (item.kind, item.name)
        if item.state in UNDER_WAY:
            continue
        if thing not in logged:
            log(f"removing {item.kind} {item.name}")
            logged.add(thing)
        try:
            with cloud_errors(f"removing {item.kind} {item.name}"):
                unless_missing(partial(kind.remove, cloud, names, item.name))  # may be gone meanwhile
        except CloudError as error:
            problems[thing] = str(error)
    return bool(found) and any(item.state in UNDER_WAY for item in _found(cloud, names, kind))


def _found(cloud: Cloud, names: Names, kind: ResourceKind) -> tuple[Found, ...]:
    try:
        with cloud_errors(f"looking for {kind.what}"):
            return tuple(item for item in kind.find(cloud, names) if not item.foreign)
    except CloudError:
        return ()  # the survey at the end shows what is left
