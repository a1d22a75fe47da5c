"""The container images of jobs and endpoints: Amazon's for training, a user's own, and the one of this package.

The latter serves endpoints and transform jobs. A CodeBuild project builds it in AWS, so that no user needs Docker; its
tag is a hash of the content, so that the same code is built once.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from chestxray import __version__
from chestxray.aws import stacks
from chestxray.aws.archives import package_files, zipped
from chestxray.aws.plan import CODEBUILD_MINUTE, PlanItem
from chestxray.aws.session import Cloud, Names, cloud_errors, unless_missing
from chestxray.aws.storage import ensure_bucket, put_bytes
from chestxray.aws.waiting import last_state
from chestxray.errors import JobFailed, UsageError
from chestxray.progress import Log

# Source: AWS Deep Learning Containers, "Available images", region table (July 2026); the SageMaker Python SDK's
# image_uri_config has the same accounts.
_USUAL: Final = "763104351884"
_USUAL_REGIONS: Final = (
    *("ap-northeast-1", "ap-northeast-2", "ap-south-1", "ap-southeast-1", "ap-southeast-2", "ca-central-1"),
    *("eu-central-1", "eu-north-1", "eu-west-1", "eu-west-2", "eu-west-3", "sa-east-1"),
    *("us-east-1", "us-east-2", "us-west-1", "us-west-2"),
)
REGISTRIES: Final = dict.fromkeys(_USUAL_REGIONS, _USUAL) | {
    "af-south-1": "626614931356",
    "ap-east-1": "871362719292",
    "ap-east-2": "975050140332",
    "ap-northeast-3": "364406365360",
    "ap-south-2": "772153158452",
    "ap-southeast-3": "907027046896",
    "ap-southeast-4": "457447274322",
    "ap-southeast-5": "550225433462",
    "ap-southeast-6": "633930458069",
    "ap-southeast-7": "590183813437",
    "ca-west-1": "204538143572",
    "eu-central-2": "380420809688",
    "eu-south-1": "692866216735",
    "eu-south-2": "503227376785",
    "il-central-1": "780543022126",
    "me-central-1": "914824155844",
    "me-south-1": "217643126080",
    "mx-central-1": "637423239942",
}

# Source: AWS Deep Learning Containers, release notes of PyTorch 2.13 (2026-07-20).
TRAINING: Final = {
    "cpu": "pytorch:2.13-cpu-amzn2023-sagemaker",
    "gpu": "pytorch:2.13-cu133-amzn2023-sagemaker",
}
GPU_FAMILIES: Final = ("ml.g", "ml.p")
# GPUs older than Turing, the first generation that CUDA 13 supports
TOO_OLD: Final = ("ml.g3.", "ml.g3s.", "ml.p2.", "ml.p3.", "ml.p3dn.")

_ADDRESS: Final = re.compile(
    r"(?P<account>\d{12})\.dkr\.ecr\.(?P<region>[a-z0-9-]+)\.amazonaws\.com/(?P<repository>[a-z0-9._/-]+)"
    r"(:[\w.-]+|@sha256:[0-9a-f]{64})"
)


# Their own disks are encrypted by their hardware, and SageMaker refuses a key for them.
OWN_DISKS: Final = re.compile(r"ml\.(g4dn|g5|g6|g6e|p4d|p4de|p5|p5e|p5en|\w+d|\w+dn)\.")


def takes_key(instance: str) -> bool:
    """Check whether a key of the account encrypts such instances' volumes. Source: API reference, ResourceConfig."""
    return not OWN_DISKS.match(instance)


def has_gpu(instance: str) -> bool:
    """Check whether instances of that type have a GPU."""
    return instance.startswith(GPU_FAMILIES)


def training_image(region: str, instance: str) -> str:
    """Return the image in which a training job on such an instance runs.

    Raises: UsageError: none is known for that region, or the image's CUDA does not support such old GPUs.
    """
    if instance.startswith(TOO_OLD):
        raise UsageError(
            f"--instance {instance}: its GPU is older than what the image's CUDA 13 supports. Choose ml.g4dn, ml.g5 or "
            "ml.g6, or give an --image that supports it"
        )
    if region not in REGISTRIES:
        raise UsageError(f"no registry of Amazon's training images is known in {region}. Give an --image there")
    return f"{REGISTRIES[region]}.dkr.ecr.{region}.amazonaws.com/{TRAINING['gpu' if has_gpu(instance) else 'cpu']}"


def repository_arn(image: str, region: str) -> str:
    """Return the ARN of an image's repository, for policies.

    Args:
        image: ``ACCOUNT.dkr.ecr.REGION.amazonaws.com/REPOSITORY:TAG``, or ``@sha256:...``.
        region: region in which the image is pulled.

    Raises: UsageError: SageMaker could not pull it.
    """
    match = _ADDRESS.fullmatch(image)
    if match is None:
        raise UsageError(
            f"--image {image}: SageMaker pulls images from Amazon ECR only. Push it there, and write it as "
            f"123456789012.dkr.ecr.{region}.amazonaws.com/name:tag"
        )
    if match["region"] != region:
        raise UsageError(f"--image {image}: lies in {match['region']}; SageMaker in {region} pulls from there only")
    return f"arn:aws:ecr:{region}:{match['account']}:repository/{match['repository']}"


BUILD_MINUTES: Final = 6  # rough time, for the plan
_NOT_IN_THE_IMAGE: Final = frozenset({"bundles", "training"})


def context() -> dict[str, bytes]:
    """Return the files that the Dockerfile copies: the package, without the parts that need torch."""
    return package_files(without=_NOT_IN_THE_IMAGE)


@dataclass(frozen=True, slots=True)
class Image:
    """The image of this code, whether it is built or not.

    Attributes:
        address: in the deployment's own repository.
        tag: version and hash of the content.
        files: what it is built from, by name.
    """

    address: str
    tag: str
    files: Mapping[str, bytes] = field(repr=False)


def image_of(names: Names) -> Image:
    """Read the files of this package, and return the image that holds them."""
    files = context()
    digest = hashlib.sha256()
    for name in sorted(files):
        digest.update(f"{name} {hashlib.sha256(files[name]).hexdigest()}\n".encode())
    tag = f"{__version__}-{digest.hexdigest()[:12]}"
    address = f"{names.account}.dkr.ecr.{names.region}.amazonaws.com/{names.deployment}:{tag}"
    return Image(address, tag, files)


def image_is_there(cloud: Cloud, names: Names, image: Image) -> bool:
    """Check whether the image is built. Raises: CloudError."""
    given = {"repositoryName": names.deployment, "imageIds": [{"imageTag": image.tag}]}
    with cloud_errors(f"looking for the image {names.deployment}:{image.tag}"):
        found = unless_missing(cloud.client("ecr").describe_images, **given)
    return bool(found and found["imageDetails"])


def plan_of_image(cloud: Cloud, names: Names, image: Image) -> tuple[PlanItem, ...]:
    """Return what ``ensure_image`` does and costs. Raises: CloudError."""
    if image_is_there(cloud, names, image):
        return (PlanItem("image", image.address, does="keep"),)
    once = BUILD_MINUTES * CODEBUILD_MINUTE
    return (
        PlanItem("stack", names.build_stack, note="repository of images, build project, its role", does="ensure"),
        PlanItem("image", image.address, once=once, note=f"built in AWS, about {BUILD_MINUTES} minutes", does="build"),
    )


def ensure_image(cloud: Cloud, names: Names, image: Image, log: Log) -> None:
    """Build the image unless it exists. Raises: JobFailed, CloudError."""
    if image_is_there(cloud, names, image):
        return
    ensure_bucket(cloud, names)
    key = f"builds/{image.tag}.zip"
    with cloud_errors("sending what the image is built from"):
        put_bytes(cloud.client("s3"), names.bucket, key, zipped(image.files))
    values = {"Repository": names.deployment, "Project": names.build_stack, "Bucket": names.bucket}
    values["PermissionsBoundary"] = cloud.rules.boundary
    stacks.deploy(cloud, names, names.build_stack, stacks.template("image"), values, log)
    _build(cloud, names, key, image.tag, log)
    if not image_is_there(cloud, names, image):
        raise JobFailed(f"the build of {image.tag} ended well, and there is no such image. Repeat the command")


def _build(cloud: Cloud, names: Names, key: str, tag: str, log: Log) -> None:
    client = cloud.client("codebuild")
    with cloud_errors(f"building the image {tag}"):
        begun = client.start_build(
            projectName=names.build_stack,
            sourceTypeOverride="S3",
            sourceLocationOverride=f"{names.bucket}/{key}",
            environmentVariablesOverride=[{"name": "TAG", "value": tag, "type": "PLAINTEXT"}],
        )["build"]["id"]
        build = last_state(
            lambda: client.batch_get_builds(ids=[begun])["builds"][0],
            _phase,
            lambda build: build["buildStatus"] != "IN_PROGRESS",
            lambda phase: log(f"building the image: {phase}"),
        )
    if build["buildStatus"] != "SUCCEEDED":
        raise JobFailed(
            f"the build {begun} ended with {build['buildStatus']} in {_phase(build)}. Its lines are in the log "
            f"/aws/codebuild/{names.build_stack}"
        )


def _phase(build: Mapping[str, Any]) -> str:
    return str(build.get("currentPhase", "")).lower()
