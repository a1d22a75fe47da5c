"""The container images of jobs and endpoints: the registry that holds them, and images that a user may give instead."""

from __future__ import annotations

import re
from typing import Final

from chestxray.errors import UsageError

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
