"""IAM roles: each one allows what its one purpose needs, on named resources."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping, Sequence
from importlib.resources import files
from typing import Any, Final

from chestxray.aws.images import REGISTRIES, repository_arn
from chestxray.aws.session import Cloud, Names, Response, Rules, cloud_errors, short_hash, unless_missing

EXECUTION: Final = "sagemaker"
EXPIRY: Final = "expiry"

# Actions that cannot be limited to a resource. Source: AWS service authorization reference, Amazon ECR and CloudWatch.
WITHOUT_RESOURCE: Final[Mapping[str, str]] = {
    "ecr:GetAuthorizationToken": "a token is the registry's, not an image's; AWS lists no resource type for it",
    "cloudwatch:PutMetricData": "figures are no resource; a condition holds it to SageMaker's own namespaces",
    "ec2:DescribeNetworkInterfaces": "AWS lists no resource type for what describes a network",
    "ec2:DescribeVpcs": "the same",
    "ec2:DescribeDhcpOptions": "the same",
    "ec2:DescribeSubnets": "the same",
    "ec2:DescribeSecurityGroups": "the same",
}
NEW_ROLE_S: Final = 60.0  # seconds until a new role is known everywhere; usually under ten
RETRY_S: Final = 3.0
_OF_A_NEW_ROLE: Final = ("assume", "permission", "role provided", "could not access model", "no s3 objects")

Statement = Mapping[str, Any]


def arn(names: Names, service: str, resource: str) -> str:
    """Return the ARN of a resource, for policies."""
    return f"arn:aws:{service}:{names.region}:{names.account}:{resource}"


def allow(actions: Sequence[str], *resources: str, **condition: Any) -> Statement:
    """Return one statement of a policy."""
    statement: dict[str, Any] = {"Effect": "Allow", "Action": list(actions), "Resource": list(resources)}
    return statement | ({"Condition": condition} if condition else {})


def reading(bucket: str) -> list[Statement]:
    """Return the permissions for reading a bucket of films."""
    return [
        allow(("s3:ListBucket", "s3:GetBucketLocation"), f"arn:aws:s3:::{bucket}"),
        allow(("s3:GetObject",), f"arn:aws:s3:::{bucket}/*"),
    ]


def working(names: Names) -> list[Statement]:
    """Return the permissions of jobs and endpoints beside the films: our bucket, our images, log lines, metrics."""
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


def deployer_policy(names: Names | None = None, films: str = "FILMS", rules: Rules | None = None) -> str:
    """Return the policy, in JSON, of the user who runs these commands.

    Args:
        names: names of the deployment; None leaves the words DEPLOYMENT, ACCOUNT and REGION in the policy.
        films: the bucket of the films.
        rules: the role that may be passed on and the key that may be used, as well.
    """
    text = files("chestxray.aws").joinpath("deployer.policy.json").read_text(encoding="utf-8")
    if names is None:
        return text
    for word, value in (("DEPLOYMENT", names.deployment), ("ACCOUNT", names.account), ("REGION", names.region)):
        text = text.replace(word, value)
    text = text.replace("FILMS", films)
    if rules is None or not (rules.role or rules.kms_key):
        return text
    document = json.loads(text)
    if rules.role:
        services = ["sagemaker.amazonaws.com", "scheduler.amazonaws.com"]
        document["Statement"].append(
            allow(("iam:PassRole",), rules.role, StringEquals={"iam:PassedToService": services})
        )
    document["Statement"] += using_key(rules) if rules.kms_key else []
    return json.dumps(document, indent=2) + "\n"


def policy_of_own_role(names: Names, films: str, rules: Rules) -> str:
    """Return the policy, in JSON, that an account's own role needs: that of the roles which we would create.

    Args:
        films: the bucket that the films lie in.
    """
    statements = [*working(names), *reading(films)]
    if account := REGISTRIES.get(names.region):  # of Amazon's training images
        statements += pulling(f"arn:aws:ecr:{names.region}:{account}:repository/pytorch")
    kinds = (("Endpoint", "endpoint/"), ("EndpointConfig", "endpoint-config/"), ("Model", "model/"))
    statements += [
        allow((f"sagemaker:Delete{kind}",), arn(names, "sagemaker", f"{word}{names.deployment}*"))
        for kind, word in kinds
    ]
    statements += using_key(rules) if rules.kms_key else []
    statements += joining_network(names, rules) if rules.subnets else []
    return json.dumps({"Version": "2012-10-17", "Statement": statements}, indent=2) + "\n"


def ensure_execution_role(cloud: Cloud, names: Names, *buckets: str, image: str = "") -> str:
    """Create the role of jobs and endpoints, which may read these buckets as well. Returns: its ARN.

    Args:
        image: an image in another repository than the deployment's.

    Raises: UsageError: SageMaker could not pull that image; CloudError.
    """
    policies = {"work": working(names)}
    if image and (repository := repository_arn(image, names.region)) != own_repository(names):
        policies[f"pull-{short_hash(repository.encode())}"] = pulling(repository)
    policies |= {f"read-{bucket}": reading(bucket) for bucket in buckets if bucket != names.bucket}
    policies |= {"key": using_key(cloud.rules)} if cloud.rules.kms_key else {}
    policies |= {"network": joining_network(names, cloud.rules)} if cloud.rules.subnets else {}
    return ensure_role(cloud, names, EXECUTION, "sagemaker.amazonaws.com", policies)


def using_key(rules: Rules) -> list[Statement]:
    """Return the permissions for volumes, outputs and our bucket under a key. Source: SageMaker guide, "KMS"."""
    actions = ("kms:Decrypt", "kms:DescribeKey", "kms:GenerateDataKey")
    grant = allow(("kms:CreateGrant",), rules.kms_key, Bool={"kms:GrantIsForAWSResource": "true"})
    return [allow(actions, rules.kms_key), grant]


def joining_network(names: Names, rules: Rules) -> list[Statement]:
    """Return the permissions for a VPC. Source: SageMaker guide, "CreateTrainingJob API: permissions for VPC"."""
    interfaces = arn(names, "ec2", "network-interface/*")
    places = [arn(names, "ec2", f"subnet/{one}") for one in rules.subnets]
    places += [arn(names, "ec2", f"security-group/{one}") for one in rules.security_groups]
    changes = ("ec2:CreateNetworkInterface", "ec2:CreateNetworkInterfacePermission", "ec2:DeleteNetworkInterface")
    further = ("ec2:DeleteNetworkInterfacePermission",)
    looks = [action for action in WITHOUT_RESOURCE if action.startswith("ec2:")]
    return [allow((*changes, *further), interfaces, *places), *(allow((look,), "*") for look in looks)]


def own_repository(names: Names) -> str:
    """Return the ARN of the deployment's own image repository."""
    return arn(names, "ecr", f"repository/{names.deployment}")


def pulling(repository: str) -> list[Statement]:
    """Return the permissions for pulling images from one repository."""
    return [allow(("ecr:BatchCheckLayerAvailability", "ecr:GetDownloadUrlForLayer", "ecr:BatchGetImage"), repository)]


def ensure_role(
    cloud: Cloud, names: Names, purpose: str, service: str, policies: Mapping[str, Sequence[Statement]]
) -> str:
    """Create a role that only one service in this account may assume, with these policies. Returns: its ARN.

    With a role of the account's own, nothing is created or changed. Existing policies of other names stay: other jobs
    may be using them.

    Raises: CloudForeign: a role of that name exists and belongs to no or another deployment; CloudError.
    """
    if cloud.rules.role:
        return cloud.rules.role
    client, role = cloud.client("iam"), names.role(purpose)
    bound = {"PermissionsBoundary": cloud.rules.boundary} if cloud.rules.boundary else {}
    with cloud_errors(f"making the role {role}"):
        there = unless_missing(client.get_role, RoleName=role)
        if there is None:
            given = {"AssumeRolePolicyDocument": _policy([_trust(names, service)]), "Description": purpose, **bound}
            found = client.create_role(RoleName=role, Tags=names.tag_list, **given)["Role"]
        else:
            found = there["Role"]
            names.refuse_foreign("role", role, found.get("Tags", ()))
            if bound and found.get("PermissionsBoundary", {}).get("PermissionsBoundaryArn") != cloud.rules.boundary:
                client.put_role_permissions_boundary(RoleName=role, **bound)
        for name, statements in policies.items():
            client.put_role_policy(RoleName=role, PolicyName=name, PolicyDocument=_policy(statements))
    return str(found["Arn"])


def _trust(names: Names, service: str) -> Statement:
    """Return who may assume a role: one service, on behalf of this account."""
    return {
        "Effect": "Allow",
        "Principal": {"Service": service},
        "Action": "sts:AssumeRole",
        "Condition": {"StringEquals": {"aws:SourceAccount": names.account}},
    }


def delete_role(client: Any, role: str) -> None:
    """Delete a role with its policies. Raises: botocore's errors."""
    for name in client.list_role_policies(RoleName=role)["PolicyNames"]:
        client.delete_role_policy(RoleName=role, PolicyName=name)
    client.delete_role(RoleName=role)


def once_the_role_is_known(call: Callable[[], Response]) -> Response:
    """Repeat a call while a service does not yet know a role, or its policies, that IAM has just created.

    SageMaker then says that it cannot assume the role, or that the role may not do what its policy allows
    ("No S3 objects found under S3 URL ... has "s3:ListBucket" permissions"); IAM says neither how long that lasts.
    If the role really lacks a permission, the error comes after a minute.

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
    """Check whether an error concerns a new role, not the caller (whose errors say "is not authorized to perform")."""
    message = str(error.response["Error"].get("Message", "")).lower()
    if "is not authorized to perform" in message and "assume" not in message:
        return False
    return any(word in message for word in _OF_A_NEW_ROLE)


def _policy(statements: Sequence[Statement]) -> str:
    return json.dumps({"Version": "2012-10-17", "Statement": list(statements)})
