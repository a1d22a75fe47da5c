"""The image of endpoints and transform jobs, built in AWS by a CodeBuild project, so that no user needs Docker.

The tag is a hash of the content, so that the same code is built once.
"""

from __future__ import annotations

import hashlib
from typing import Any, Final

from chestxray.aws import stacks
from chestxray.aws.archives import package_files, zipped
from chestxray.aws.plan import CODEBUILD_MINUTE, Item
from chestxray.aws.session import Cloud, Names, cloud_errors, is_missing
from chestxray.aws.storage import ensure_bucket, put_bytes
from chestxray.aws.waiting import states
from chestxray.errors import JobFailed
from chestxray.progress import Log
from chestxray.version import __version__

BUILD_MINUTES: Final = 6  # rough time, for the plan
_NOT_IN_THE_IMAGE: Final = frozenset({"bundles", "training"})


def context() -> dict[str, bytes]:
    """Return the files that the Dockerfile copies: the package, without the parts that need torch."""
    return package_files(without=_NOT_IN_THE_IMAGE)


def image_tag(files: dict[str, bytes]) -> str:
    """Return the tag: version and hash of the image's content."""
    digest = hashlib.sha256()
    for name in sorted(files):
        digest.update(f"{name} {hashlib.sha256(files[name]).hexdigest()}\n".encode())
    return f"{__version__}-{digest.hexdigest()[:12]}"


def image_address(names: Names, tag: str) -> str:
    """Return the address of the image with that tag, whether it exists or not."""
    return f"{names.account}.dkr.ecr.{names.region}.amazonaws.com/{names.deployment}:{tag}"


def image_is_there(cloud: Cloud, names: Names, tag: str) -> bool:
    """Check whether the image exists. Raises: CloudError."""
    from botocore.exceptions import ClientError

    with cloud_errors(f"looking for the image {names.deployment}:{tag}"):
        try:
            given = {"repositoryName": names.deployment, "imageIds": [{"imageTag": tag}]}
            return bool(cloud.client("ecr").describe_images(**given)["imageDetails"])
        except ClientError as error:
            if is_missing(error) or error.response["Error"]["Code"] == "ImageNotFoundException":
                return False
            raise


def plan_of_image(cloud: Cloud, names: Names) -> tuple[Item, ...]:
    """Return what ``ensure_image`` does and costs. Raises: CloudError."""
    tag = image_tag(context())
    address = image_address(names, tag)
    if image_is_there(cloud, names, tag):
        return (Item("image", address, does="keep"),)
    once = BUILD_MINUTES * CODEBUILD_MINUTE
    return (
        Item("stack", names.build_stack, note="repository of images, build project, its role", does="ensure"),
        Item("image", address, once=once, note=f"built in AWS, about {BUILD_MINUTES} minutes", does="build"),
    )


def ensure_image(cloud: Cloud, names: Names, log: Log) -> str:
    """Build the image of this code unless it exists. Returns: its address. Raises: JobFailed, CloudError."""
    files = context()
    tag = image_tag(files)
    if not image_is_there(cloud, names, tag):
        ensure_bucket(cloud, names)
        key = f"builds/{tag}.zip"
        with cloud_errors("sending what the image is built from"):
            put_bytes(cloud.client("s3"), names.bucket, key, zipped(files))
        values = {"Repository": names.deployment, "Project": names.build_stack, "Bucket": names.bucket}
        values["PermissionsBoundary"] = cloud.rules.boundary
        stacks.deploy(cloud, names, names.build_stack, stacks.template("image"), values, log)
        _build(cloud, names, key, tag, log)
        if not image_is_there(cloud, names, tag):
            raise JobFailed(f"the build of {tag} ended well, and there is no such image. Repeat the command")
    return image_address(names, tag)


def _build(cloud: Cloud, names: Names, key: str, tag: str, log: Log) -> None:
    client = cloud.client("codebuild")
    with cloud_errors(f"building the image {tag}"):
        begun = client.start_build(
            projectName=names.build_stack,
            sourceTypeOverride="S3",
            sourceLocationOverride=f"{names.bucket}/{key}",
            environmentVariablesOverride=[{"name": "TAG", "value": tag, "type": "PLAINTEXT"}],
        )["build"]["id"]
        said = ""
        for answer in states(lambda: client.batch_get_builds(ids=[begun])):
            build: dict[str, Any] = answer["builds"][0]
            phase = f"{build.get('currentPhase', '')}".lower()
            if phase != said:
                log(f"building the image: {phase}")
                said = phase
            if build["buildStatus"] != "IN_PROGRESS":
                break
    if build["buildStatus"] != "SUCCEEDED":
        raise JobFailed(
            f"the build {begun} ended with {build['buildStatus']} in {phase}. Its lines are in the log "
            f"/aws/codebuild/{names.build_stack}"
        )
