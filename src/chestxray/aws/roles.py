"""IAM roles: each may do what its one purpose needs, on resources that are named."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final, TypeVar

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
    """What jobs and endpoints need beside the films: our bucket, the images, log lines and figures."""
    own = f"arn:aws:s3:::{names.bucket}"
    logs = [arn(names, "logs", f"log-group:/aws/sagemaker/{kind}*") for kind in ("TrainingJobs", "TransformJobs")]
    logs.append(arn(names, "logs", f"log-group:/aws/sagemaker/Endpoints/{names.endpoint}*"))
    images = (
        arn(names, "ecr", f"repository/{names.deployment}"),
        f"arn:aws:ecr:{names.region}:763104351884:repository/pytorch",
    )
    namespaces = {"cloudwatch:namespace": ["/aws/sagemaker/TrainingJobs", "/aws/sagemaker/TransformJobs"]}
    return [
        allow(("s3:ListBucket", "s3:GetBucketLocation"), own),
        allow(("s3:GetObject", "s3:PutObject", "s3:DeleteObject", "s3:AbortMultipartUpload"), f"{own}/*"),
        allow(
            ("logs:CreateLogGroup", "logs:CreateLogStream", "logs:PutLogEvents", "logs:DescribeLogStreams"),
            *logs,
        ),
        allow(("ecr:BatchCheckLayerAvailability", "ecr:GetDownloadUrlForLayer", "ecr:BatchGetImage"), *images),
        allow(("ecr:GetAuthorizationToken",), "*"),
        allow(("cloudwatch:PutMetricData",), "*", StringEquals=namespaces),
    ]


def ensure_execution_role(cloud: Cloud, names: Names, *buckets: str) -> str:
    """The role that jobs and endpoints run as, which may read these buckets as well. Returns: its ARN.

    Raises: CloudError.
    """
    policies = {"work": working(names)}
    policies |= {f"read-{bucket}": reading(bucket) for bucket in buckets if bucket != names.bucket}
    return ensure_role(cloud, names, EXECUTION, "sagemaker.amazonaws.com", policies)


def ensure_role(
    cloud: Cloud, names: Names, purpose: str, service: str, policies: Mapping[str, Sequence[Statement]]
) -> str:
    """Make a role that only that service in this account may take, with these policies. Returns: its ARN.

    Policies of other names that it has already stay: other jobs may be using them.

    Raises: CloudError.
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
    """Call again for as long as the service does not know a role that was just made. Raises: botocore's errors."""
    from botocore.exceptions import ClientError

    until = time.monotonic() + NEW_ROLE_S
    while True:
        try:
            return call()
        except ClientError as error:
            message = error.response["Error"].get("Message", "")
            if "assume" not in message.lower() or time.monotonic() > until:
                raise
            time.sleep(RETRY_S)


def _policy(statements: Sequence[Statement]) -> str:
    return json.dumps({"Version": "2012-10-17", "Statement": list(statements)})
