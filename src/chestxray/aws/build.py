"""The image of endpoints and transform jobs, built in AWS by a CodeBuild project, so that no user needs Docker.

The tag is a hash of the content, so that the same code is built once.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from chestxray.aws import stacks
from chestxray.aws.archives import package_files, zipped
from chestxray.aws.plan import CODEBUILD_MINUTE, Item
from chestxray.aws.session import Cloud, Names, cloud_errors, unless_missing
from chestxray.aws.storage import ensure_bucket, put_bytes
from chestxray.aws.waiting import last_state
from chestxray.errors import JobFailed
from chestxray.progress import Log
from chestxray.version import __version__

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


def plan_of_image(cloud: Cloud, names: Names, image: Image) -> tuple[Item, ...]:
    """Return what ``ensure_image`` does and costs. Raises: CloudError."""
    if image_is_there(cloud, names, image):
        return (Item("image", image.address, does="keep"),)
    once = BUILD_MINUTES * CODEBUILD_MINUTE
    return (
        Item("stack", names.build_stack, note="repository of images, build project, its role", does="ensure"),
        Item("image", image.address, once=once, note=f"built in AWS, about {BUILD_MINUTES} minutes", does="build"),
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
