"""The container images of Amazon's own that jobs run in."""

from __future__ import annotations

from typing import Final

REGISTRY: Final = "763104351884"  # the account of the AWS Deep Learning Containers, in most regions

# Source: AWS Deep Learning Containers, release notes of PyTorch 2.13 (2026-07-20).
TRAINING: Final = {
    "cpu": "pytorch:2.13-cpu-amzn2023-sagemaker",
    "gpu": "pytorch:2.13-cu133-amzn2023-sagemaker",
}
GPU_FAMILIES: Final = ("ml.g", "ml.p")


def has_gpu(instance: str) -> bool:
    """Whether instances of that type have one."""
    return instance.startswith(GPU_FAMILIES)


def training_image(region: str, instance: str) -> str:
    """The image that a training job on such an instance runs in."""
    return f"{REGISTRY}.dkr.ecr.{region}.amazonaws.com/{TRAINING['gpu' if has_gpu(instance) else 'cpu']}"
