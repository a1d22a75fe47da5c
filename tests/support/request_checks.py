"""What each request of ours is held against: the lowest boto3 that the package allows, and the deployer's policy."""

from __future__ import annotations

import fnmatch
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

from botocore.model import OperationModel

from chestxray.aws.roles import deployer_policy
from cloud_requests import OURS

POLICY: Final = json.loads(deployer_policy())["Statement"]
FLOOR: Final = json.loads((Path(__file__).with_name("botocore_floor.json")).read_text())["operations"]


def check_request(params: dict[str, Any], model: OperationModel, context: dict[str, Any], **_: Any) -> None:
    config = context.get("client_config")
    if config is None or OURS not in (config.user_agent_extra or ""):
        return  # the test's own client
    name = f"{model.service_model.service_name}.{model.name}"
    assert name in FLOOR, f"{name} is not in botocore_floor.json: run tools/botocore_floor.py"
    unknown = sorted(set(unknown_to(FLOOR[name], params, name)))
    missing = sorted(action for action in actions_of(name) if not is_allowed(action))
    assert missing == [], f"deployer.policy.json does not allow {missing}, which {name} takes"
    assert unknown == [], f"the lowest boto3 that pyproject.toml allows does not know {unknown}"


# What S3 calls the permission for an operation, where it is not the operation's name.
# Source: AWS service authorization reference, Amazon S3.
OF_S3: Final = {
    "CompleteMultipartUpload": ("PutObject",),
    "CreateMultipartUpload": ("PutObject",),
    "DeleteObjects": ("DeleteObject", "DeleteObjectVersion"),
    "GetBucketEncryption": ("GetEncryptionConfiguration",),
    "PutBucketEncryption": ("PutEncryptionConfiguration",),
    "GetBucketLifecycleConfiguration": ("GetLifecycleConfiguration",),
    "GetPublicAccessBlock": ("GetBucketPublicAccessBlock",),
    "HeadBucket": ("ListBucket",),
    "HeadObject": ("GetObject",),
    "ListMultipartUploads": ("ListBucketMultipartUploads",),
    "ListObjectVersions": ("ListBucketVersions",),
    "ListObjectsV2": ("ListBucket",),
    "ListParts": ("ListMultipartUploadParts",),
    "PutBucketLifecycleConfiguration": ("PutLifecycleConfiguration",),
    "PutPublicAccessBlock": ("PutBucketPublicAccessBlock",),
    "UploadPart": ("PutObject",),
}
# What an operation takes beside its own permission, as these requests are made: roles are handed over, tags put on.
BESIDE: Final = {
    "cloudformation.CreateStack": ("cloudformation:TagResource",),
    "iam.CreateRole": ("iam:TagRole",),
    "logs.CreateLogGroup": ("logs:TagResource",),
    "sagemaker.CreateEndpoint": ("sagemaker:AddTags",),
    "sagemaker.CreateEndpointConfig": ("sagemaker:AddTags",),
    "sagemaker.CreateModel": ("iam:PassRole", "sagemaker:AddTags"),
    "sagemaker.CreateTrainingJob": ("iam:PassRole", "sagemaker:AddTags"),
    "sagemaker.CreateTransformJob": ("sagemaker:AddTags",),
    "scheduler.CreateSchedule": ("iam:PassRole",),
    "scheduler.CreateScheduleGroup": ("scheduler:TagResource",),
}


def actions_of(name: str) -> set[str]:
    """The permissions that an operation takes: "s3.HeadBucket" takes s3:ListBucket."""
    service, _, operation = name.partition(".")
    if service == "sts":
        return set()  # whose credentials these are may be asked by all
    own = OF_S3.get(operation, (operation,)) if service == "s3" else (operation,)
    service = {"service-quotas": "servicequotas"}.get(service, service)
    return {f"{service}:{action}" for action in own} | set(BESIDE.get(name, ()))


def is_allowed(action: str) -> bool:
    return any(fnmatch.fnmatchcase(action, known) for statement in POLICY for known in statement["Action"])


def unknown_to(shape: Any, value: Any, path: str) -> Iterator[str]:
    """Names that are not there in the older model."""
    if isinstance(value, dict) and isinstance(shape, dict):
        for key, item in value.items():
            if key not in shape:
                yield f"{path}.{key}"
            else:
                yield from unknown_to(shape[key], item, f"{path}.{key}")
    elif isinstance(shape, list):
        for item in value.values() if isinstance(value, dict) else value:
            yield from unknown_to(shape[0], item, path)
