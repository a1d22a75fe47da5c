"""IAM roles: each may do what its one purpose needs, on resources that are named."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Mapping, Sequence
from importlib.resources import files
from typing import Any, Final, TypeVar

from chestxray.aws.images import repository_arn
from chestxray.aws.session import Cloud, Names, cloud_errors, is_missing

EXECUTION: Final = "sagemaker"
EXPIRY: Final = "expiry"

# The actions that get no resource, and why. Source: AWS service authorization reference, Amazon ECR and CloudWatch.
WITHOUT_RESOURCE: Final[Mapping[str, str]] = {
    "ecr:GetAuthorizationToken": "a token is the registry's, not an image's; AWS lists no resource type for it",
    "cloudwatch:PutMetricData": "figures are no resource; a condition holds it to SageMaker's own namespaces",
}
NEW_ROLE_S: Final = 60.0  # seconds until a new role is known everywhere; usually under ten
RETRY_S: Final = 3.0
_OF_A_NEW_ROLE: Final = ("assume", "permission", "role provided", "could not access model", "no s3 objects")

Statement = Mapping[str, Any]
Answer = TypeVar("Answer")


def arn(names: Names, service: str, resource: str, *, region: str | None = None) -> str:
    """The name of a resource as policies have it."""
    return f"arn:aws:{service}:{names.region if region is None else region}:{names.account}:{resource}"


def allow(actions: Sequence[str], *resources: str, **condition: Any) -> Statement:
    """One statement of a policy."""
    statement: dict[str, Any] = {"Effect": "Allow", "Action": list(actions), "Resource": list(resources)}
    return statement | ({"Condition": condition} if condition else {})


def reading(bucket: str) -> list[Statement]:
    """What reading a bucket of films takes."""
    return [
        allow(("s3:ListBucket", "s3:GetBucketLocation"), f"arn:aws:s3:::{bucket}"),
        allow(("s3:GetObject",), f"arn:aws:s3:::{bucket}/*"),
    ]


def working(names: Names) -> list[Statement]:
    """What jobs and endpoints need beside the films: our bucket, our images, log lines and figures."""
    own = f"arn:aws:s3:::{names.bucket}"
    logs = [arn(names, "logs", f"log-group:/aws/sagemaker/{kind}*") for kind in ("TrainingJobs", "TransformJobs")]
    logs.append(arn(names, "logs", f"log-group:/aws/sagemaker/Endpoints/{names.endpoint}*"))
    kinds = ("TrainingJobs", "TransformJobs", "Endpoints")
    namespaces = {"cloudwatch:namespace": [f"/aws/sagemaker/{kind}" for kind in kinds]}
    return [
        allow(("s3:ListBucket", "s3:GetBucketLocation"), own),
        allow(("s3:GetObject", "s3:PutObject", "s3:DeleteObject", "s3:AbortMultipartUpload"), f"{own}/*"),
        allow(
            ("logs:CreateLogGroup", "logs:CreateLogStream", "logs:PutLogEvents", "logs:DescribeLogStreams"),
            *logs,
        ),
        *pulling(own_repository(names)),
        allow(("ecr:GetAuthorizationToken",), "*"),
        allow(("cloudwatch:PutMetricData",), "*", StringEquals=namespaces),
    ]


def deployer_policy(names: Names | None = None, films: str = "FILMS") -> str:
    """The policy, in JSON, of whoever types these commands.

    Args:
        names: of the deployment that it is for; None leaves the words DEPLOYMENT, ACCOUNT and REGION in it.
        films: the bucket that the films lie in.
    """
    text = files("chestxray.aws").joinpath("deployer.policy.json").read_text(encoding="utf-8")
    if names is None:
        return text
    for word, value in (("DEPLOYMENT", names.deployment), ("ACCOUNT", names.account), ("REGION", names.region)):
        text = text.replace(word, value)
    return text.replace("FILMS", films)


def ensure_execution_role(cloud: Cloud, names: Names, *buckets: str, image: str = "") -> str:
    """The role that jobs and endpoints run as, which may read these buckets as well. Returns: its ARN.

    Args:
        image: one that is pulled from a repository other than our own.

    Raises: UsageError: SageMaker could not pull that image; CloudError.
    """
    policies = {"work": working(names)}
    if image and (repository := repository_arn(image, names.region)) != own_repository(names):
        policies[f"pull-{hashlib.sha256(repository.encode()).hexdigest()[:12]}"] = pulling(repository)
    policies |= {f"read-{bucket}": reading(bucket) for bucket in buckets if bucket != names.bucket}
    return ensure_role(cloud, names, EXECUTION, "sagemaker.amazonaws.com", policies)


def own_repository(names: Names) -> str:
    """ARN of the deployment's own image repository."""
    return arn(names, "ecr", f"repository/{names.deployment}")


def pulling(repository: str) -> list[Statement]:
    """What pulling images from one repository takes."""
    return [allow(("ecr:BatchCheckLayerAvailability", "ecr:GetDownloadUrlForLayer", "ecr:BatchGetImage"), repository)]


def ensure_role(
    cloud: Cloud, names: Names, purpose: str, service: str, policies: Mapping[str, Sequence[Statement]]
) -> str:
    """Make a role that only that service in this account may take, with these policies. Returns: its ARN.

    Policies of other names that it has already stay: other jobs may be using them.

    Raises: CloudForeign: there is such a role and it is not this deployment's; CloudError.
    """
    from botocore.exceptions import ClientError

    client, role = cloud.client("iam"), names.role(purpose)
    trust = {
        "Effect": "Allow",
        "Principal": {"Service": service},
        "Action": "sts:AssumeRole",
        "Condition": {"StringEquals": {"aws:SourceAccount": names.account}},
    }
    with cloud_errors(f"making the role {role}"):
        try:
            found = client.get_role(RoleName=role)["Role"]
            names.refuse_foreign("role", role, found.get("Tags", ()))
        except ClientError as error:
            if not is_missing(error):
                raise
            found = client.create_role(
                RoleName=role, AssumeRolePolicyDocument=_policy([trust]), Tags=names.tag_list, Description=purpose
            )["Role"]
        for name, statements in policies.items():
            client.put_role_policy(RoleName=role, PolicyName=name, PolicyDocument=_policy(statements))
    return str(found["Arn"])


def delete_role(client: Any, role: str) -> None:
    """Delete a role with its policies. Raises: botocore's errors."""
    for name in client.list_role_policies(RoleName=role)["PolicyNames"]:
        client.delete_role_policy(RoleName=role, PolicyName=name)
    client.delete_role(RoleName=role)


def once_the_role_is_known(call: Callable[[], Answer]) -> Answer:
    """Call again for as long as a service does not know a role, or what it may do, that IAM was just told.

    SageMaker then says that it cannot assume the role, or that the role may not do what its policy allows
    ("No S3 objects found under S3 URL ... has "s3:ListBucket" permissions"); IAM says neither how long that lasts.
    Somebody whose role really lacks a permission waits a minute for the answer.

    Raises: botocore's errors.
    """
    from botocore.exceptions import ClientError

    until = time.monotonic() + NEW_ROLE_S
    while True:
        try:
            return call()
        except ClientError as error:
            if not _is_about_a_role(error) or time.monotonic() > until:
                raise
            time.sleep(RETRY_S)


def _is_about_a_role(error: Any) -> bool:
    """Not where the caller may not do something: that says "is not authorized to perform"."""
    message = str(error.response["Error"].get("Message", "")).lower()
    if "is not authorized to perform" in message and "assume" not in message:
        return False
    return any(word in message for word in _OF_A_NEW_ROLE)


def _policy(statements: Sequence[Statement]) -> str:
    return json.dumps({"Version": "2012-10-17", "Statement": list(statements)})
