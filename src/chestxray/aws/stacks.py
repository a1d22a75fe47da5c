"""CloudFormation stacks: created or updated with a log of each step, and removed with their content."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.resources import files
from typing import Any, Final

from chestxray.aws.session import POLL_S, Cloud, Names, cloud_errors, unless_missing
from chestxray.aws.storage import bucket_exists, empty_bucket
from chestxray.errors import CloudError
from chestxray.progress import Log

UNCHANGED: Final = "No updates are to be performed"
_DEAD: Final = frozenset(
    {"ROLLBACK_COMPLETE", "ROLLBACK_FAILED", "CREATE_FAILED", "DELETE_FAILED", "REVIEW_IN_PROGRESS"}
)
_GOOD: Final = frozenset({"CREATE_COMPLETE", "UPDATE_COMPLETE"})
CAPABILITY: Final = "CAPABILITY_IAM"  # the stack creates roles; CloudFormation chooses their names

TEMPLATES: Final = {"website": "website.yaml", "image": "build.template.json", "endpoint": "endpoint.yaml"}


@dataclass(frozen=True, slots=True)
class Stack:
    """A stack in its wanted state.

    Attributes:
        outputs: by name.
        did: "create", "update" or "keep".
    """

    name: str
    outputs: Mapping[str, str]
    did: str


def stack_template(name: str) -> str:
    """Return the text of a template as it is deployed; ``name`` is a key of TEMPLATES."""
    from chestxray.serving.static import SCRIPT_HASH, STYLE_HASHES

    text = files("chestxray.aws").joinpath(TEMPLATES[name]).read_text(encoding="utf-8")
    return text.replace("SCRIPT_HASH", SCRIPT_HASH).replace("STYLE_HASHES", STYLE_HASHES)


def describe_stack(cloud: Cloud, name: str) -> Mapping[str, Any] | None:
    """Return CloudFormation's description of a stack; None if there is none. Raises: CloudError."""
    with cloud_errors(f"looking for the stack {name}"):
        answer = unless_missing(cloud.client("cloudformation").describe_stacks, StackName=name)
    if answer is None:
        return None
    found: Mapping[str, Any] = answer["Stacks"][0]
    return None if found["StackStatus"] == "DELETE_COMPLETE" else found


def deploy_stack(
    cloud: Cloud, names: Names, name: str, template: str, parameters: Mapping[str, str], log: Log
) -> Stack:
    """Create or update a stack, and wait. A stack whose creation failed is removed and created again.

    Raises: CloudForeign: a stack of that name is not this deployment's; CloudError, with the first thing that failed
        and why.
    """
    there = describe_stack(cloud, name)
    if there is not None:
        names.refuse_foreign("stack", name, there.get("Tags", ()))
    found = _settled(cloud, name, log, _event_ids(cloud, name))
    if found is not None and found["StackStatus"] in _DEAD:
        log(f"{name}: an earlier attempt failed; it is removed first")
        remove(cloud, name, log)
        found = None
    given = {
        "StackName": name,
        "TemplateBody": template,
        "Parameters": [{"ParameterKey": key, "ParameterValue": value} for key, value in parameters.items()],
        "Capabilities": [CAPABILITY],
        "Tags": names.tag_list,
    }
    logged = _event_ids(cloud, name)
    did = _begin(cloud, given, exists=found is not None)
    ended = _settled(cloud, name, log, logged)
    if ended is None or ended["StackStatus"] not in _GOOD | ({"UPDATE_ROLLBACK_COMPLETE"} if did == "keep" else set()):
        raise CloudError(f"the stack {name} could not be made: {_first_failure(cloud, name)}")
    outputs = {output["OutputKey"]: output["OutputValue"] for output in ended.get("Outputs", ())}
    return Stack(name, outputs, did)


def remove(cloud: Cloud, name: str, log: Log) -> bool:
    """Empty a stack's buckets, delete it and wait. Returns: whether there was a stack. Raises: CloudError."""
    if describe_stack(cloud, name) is None:
        return False
    with cloud_errors(f"removing the stack {name}"):
        client, store = cloud.client("cloudformation"), cloud.client("s3")
        for page in client.get_paginator("list_stack_resources").paginate(StackName=name):
            for resource in page["StackResourceSummaries"]:
                bucket = resource.get("PhysicalResourceId", "")
                ours = resource["ResourceType"] == "AWS::S3::Bucket" and resource["ResourceStatus"] != "DELETE_COMPLETE"
                if ours and bucket and bucket_exists(store, bucket):
                    empty_bucket(store, bucket)
        logged = _event_ids(cloud, name)
        client.delete_stack(StackName=name)
    left = _settled(cloud, name, log, logged)
    if left is not None:
        raise CloudError(f"the stack {name} could not be removed: {_first_failure(cloud, name)}")
    return True


def _begin(cloud: Cloud, given: Mapping[str, Any], *, exists: bool) -> str:
    from botocore.exceptions import ClientError

    client = cloud.client("cloudformation")
    with cloud_errors(f"making the stack {given['StackName']}"):
        if not exists:
            client.create_stack(**given, OnFailure="ROLLBACK")
            return "create"
        try:
            client.update_stack(**given)
        except ClientError as error:
            if UNCHANGED in str(error):
                return "keep"
            raise
    return "update"


def _settled(cloud: Cloud, name: str, log: Log, logged: set[str]) -> Mapping[str, Any] | None:
    """Wait until no step is in progress, and log the steps of its resources, except those logged before."""
    while True:
        found = describe_stack(cloud, name)
        if found is None:
            return None
        for event in reversed(_events(cloud, name)):
            if event["EventId"] not in logged:
                logged.add(event["EventId"])
                log(_line(event))
        if not found["StackStatus"].endswith("_IN_PROGRESS") or found["StackStatus"] in _DEAD:
            return found
        time.sleep(POLL_S)


def _events(cloud: Cloud, name: str) -> list[dict[str, Any]]:
    """Return the latest events, newest first; none if the stack is gone meanwhile."""
    with cloud_errors(f"asking what happens to the stack {name}"):
        answer = unless_missing(cloud.client("cloudformation").describe_stack_events, StackName=name)
    return list(answer["StackEvents"]) if answer else []


def _event_ids(cloud: Cloud, name: str) -> set[str]:
    return {event["EventId"] for event in _events(cloud, name)}


def _line(event: Mapping[str, Any]) -> str:
    reason = f": {event['ResourceStatusReason']}" if event.get("ResourceStatusReason") else ""
    state = event["ResourceStatus"].lower().replace("_", " ")
    return f"  {event['LogicalResourceId']} ({event['ResourceType']}) {state}{reason}"


def _first_failure(cloud: Cloud, name: str) -> str:
    """Return the first failure of the latest attempt; later failures are its consequences."""
    latest: list[dict[str, Any]] = []
    for event in _events(cloud, name):
        latest.append(event)
        begins = event["ResourceStatus"] in {"CREATE_IN_PROGRESS", "UPDATE_IN_PROGRESS", "DELETE_IN_PROGRESS"}
        if begins and event["LogicalResourceId"] == name:
            break
    failed = [event for event in reversed(latest) if event["ResourceStatus"].endswith("_FAILED")]
    return _line(failed[0]).strip() if failed else "CloudFormation gives no reason"
