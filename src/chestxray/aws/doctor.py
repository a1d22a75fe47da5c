"""Checks of an account before anything is created in it: credentials, region, quotas, permissions, images.

Nothing here changes anything.

Source: Service Quotas API reference, ListServiceQuotas; IAM API reference, SimulatePrincipalPolicy.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

from chestxray.aws.images import REGISTRIES, image_is_there, image_of, training_image
from chestxray.aws.roles import deployer_policy
from chestxray.aws.session import Cloud, Names, cloud_errors, error_code, principal_of
from chestxray.diagnosis import Check
from chestxray.errors import ChestXrayError, CloudError

QUOTA_REMEDY: Final = "Ask for more under Service Quotas, Amazon SageMaker, or choose another type of instance"
ACTIONS_A_CALL: Final = 60  # actions in one simulation, so that its answer is one page
ACTIONS_SHOWN: Final = 6  # of what is missing; the rest is counted


@dataclass(frozen=True, slots=True)
class Wanted:
    """The planned jobs and endpoint, as far as they need quotas and images.

    Attributes:
        training, transform, hosting: types of instances; ``hosting`` is "" for a serverless endpoint.
        films: the bucket that the films lie in; "" where it is not known.
    """

    training: str = "ml.g4dn.xlarge"
    transform: str = "ml.m5.large"
    hosting: str = ""
    films: str = ""
    spot: bool = False

    @property
    def quotas(self) -> tuple[str, ...]:
        """Names of the quotas, as AWS has them."""
        kind = "spot training job" if self.spot else "training job"
        hosting = (f"{self.hosting} for endpoint usage",) if self.hosting else ()
        return (f"{self.training} for {kind} usage", f"{self.transform} for transform job usage", *hosting)


def check_account(cloud: Cloud, names: Names, wanted: Wanted) -> Iterator[Check]:
    """Look at credentials, region, quotas, permissions and images, in that order; one failure hides no other."""
    yield Check("credentials", f"account {cloud.account}, as {cloud.caller}")
    yield _region(cloud)
    for name, look in (("quotas", _quotas), ("permissions", _permissions), ("images", _images)):
        try:
            with cloud_errors(f"looking at {name}"):
                yield from look(cloud, names, wanted)
        except CloudError as error:
            yield Check(name, f"not known: {error}", ok=None)


def _region(cloud: Cloud) -> Check:
    if cloud.region not in REGISTRIES:
        return Check("region", f"{cloud.region}: no registry of Amazon's training images is known there", ok=False)
    return Check("region", f"{cloud.region}; films have to be there too")


def _quotas(cloud: Cloud, _: Names, wanted: Wanted) -> Iterator[Check]:
    """Return the applied quotas, and AWS's defaults where the account has none of its own."""
    client = cloud.client("service-quotas")
    found: dict[str, float] = {}
    for operation in ("list_aws_default_service_quotas", "list_service_quotas"):
        for page in client.get_paginator(operation).paginate(ServiceCode="sagemaker"):
            found |= {quota["QuotaName"]: quota["Value"] for quota in page["Quotas"]}
    for name in wanted.quotas:
        if name not in found:
            yield Check("quota", f"{name}: AWS lists no such quota; is the type of instance right?", ok=None)
        elif found[name] < 1:
            yield Check("quota", f"{name}: {found[name]:g}. {QUOTA_REMEDY}", ok=False)
        else:
            yield Check("quota", f"{name}: {found[name]:g}")


def _permissions(cloud: Cloud, names: Names, wanted: Wanted) -> Iterator[Check]:
    """Simulate every statement of the deployer's policy for the caller."""
    principal = principal_of(cloud.caller)
    if not principal:
        yield Check("permissions", f"{cloud.caller} may do everything: use a role instead for daily work", ok=True)
        return
    statements = json.loads(deployer_policy(names, wanted.films or names.bucket, cloud.rules))["Statement"]
    denied = sorted({action for statement in statements for action in _denied(cloud, principal, statement)})
    count = sum(len(statement["Action"]) for statement in statements)
    if denied:
        more = f" and {len(denied) - ACTIONS_SHOWN} more" if len(denied) > ACTIONS_SHOWN else ""
        remedy = 'Give the policy that "chestxray aws policy" prints'
        yield Check(
            "permissions", f"denied: {', '.join(denied[:ACTIONS_SHOWN])}{more}. {remedy} to {principal}", ok=False
        )
    else:
        yield Check("permissions", f"all {count} that these commands take")


def _denied(cloud: Cloud, principal: str, statement: Mapping[str, Any]) -> Iterator[str]:
    """Return the actions of one statement that the principal may not do on its resources."""
    resources = statement["Resource"] if isinstance(statement["Resource"], list) else [statement["Resource"]]
    entries = [
        {
            "ContextKeyName": key,
            "ContextKeyValues": [value if isinstance(value, str) else value[0]],
            "ContextKeyType": "string",
        }
        for condition in statement.get("Condition", {}).values()
        for key, value in condition.items()
    ]
    actions = [action for action in statement["Action"] if "*" not in action]
    for start in range(0, len(actions), ACTIONS_A_CALL):
        given = {"PolicySourceArn": principal, "ActionNames": actions[start : start + ACTIONS_A_CALL]}
        given |= {"ContextEntries": entries} if entries else {}
        denied_everywhere: set[str] = set(given["ActionNames"])
        for resource in resources:  # an action takes some of a statement's resources, not all: a bucket or its objects
            answer = cloud.client("iam").simulate_principal_policy(**given, ResourceArns=[_example(resource)])
            results = answer["EvaluationResults"]
            denied_everywhere -= {item["EvalActionName"] for item in results if item["EvalDecision"] == "allowed"}
        yield from denied_everywhere


def _example(resource: str) -> str:
    """Return an example of a resource that matches a pattern."""
    return resource if resource == "*" else resource.replace("*", "example")


def _images(cloud: Cloud, names: Names, wanted: Wanted) -> Iterator[Check]:
    try:
        address = training_image(cloud.region, wanted.training)
    except ChestXrayError as error:
        yield Check("image for training", str(error), ok=False)
    else:
        yield _image_of_amazon(cloud, address)
    image = image_of(names)
    there = image_is_there(cloud, names, image)
    state = "built" if there else "the first deploy builds it, in some minutes"
    yield Check("image for serving", f"{image.tag}: {state}")


def _image_of_amazon(cloud: Cloud, address: str) -> Check:
    from botocore.exceptions import ClientError

    repository, _, tag = address.partition("/")[2].partition(":")
    try:
        found = cloud.client("ecr").batch_get_image(
            registryId=REGISTRIES[cloud.region], repositoryName=repository, imageIds=[{"imageTag": tag}]
        )
    except ClientError as error:
        return Check("image for training", f"{address}: not known ({error_code(error)})", ok=None)
    if found.get("images"):
        return Check("image for training", address)
    return Check("image for training", f"{address}: is not there. Give train an --image", ok=False)
