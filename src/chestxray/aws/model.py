"""A model in SageMaker: an image, and the bundle of a folder here or of a training job."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from chestxray.aws.archives import tarred
from chestxray.aws.names import Names
from chestxray.aws.roles import ensure_execution_role, once_the_role_is_known
from chestxray.aws.session import Cloud, cloud_errors, is_missing
from chestxray.aws.storage import checksum_stored, ensure_bucket, holds, put_bytes
from chestxray.data.sources import SCHEME
from chestxray.errors import CloudMissing, JobFailed
from chestxray.inference.bundle import Bundle, folder_of, shipped_bundles

SHORT: Final = 12  # digits of a hash in a name


@dataclass(frozen=True, slots=True)
class Weights:
    """A ``model.tar.gz``.

    Attributes:
        address: where it is, or goes, in S3.
        stamp: for names: the same for the same weights.
        data: what is sent there first; empty where it is there already.
    """

    address: str
    stamp: str
    data: bytes = b""


def weights_of(cloud: Cloud, names: Names, given: str) -> Weights:
    """The weights of a bundle, by its folder or its name in this package, or of a training job.

    Raises: BundleInvalid, CloudMissing, JobFailed.
    """
    if Path(given).is_dir() or given in shipped_bundles():
        return _of_bundle(names, folder_of(given))
    client = cloud.client("sagemaker")
    from botocore.exceptions import ClientError

    with cloud_errors(f"looking for the training job {given}"):
        try:
            job = client.describe_training_job(TrainingJobName=given)
        except ClientError as error:
            if is_missing(error):
                raise CloudMissing(f"{given}: neither a bundle here nor a training job in {names.region}") from error
            raise
    if job["TrainingJobStatus"] != "Completed":
        why = job.get("FailureReason", "")
        raise JobFailed(f"{given}: the job is {job['TrainingJobStatus']}{f': {why}' if why else ''}; it has no bundle")
    address = job["ModelArtifacts"]["S3ModelArtifacts"]
    with cloud_errors(f"looking for {address}"):
        if not holds(cloud.client("s3"), address):
            raise CloudMissing(f"{given}: its bundle {address} was deleted meanwhile. Train it again")
    return Weights(address, hashlib.sha256(address.encode()).hexdigest()[:SHORT])


def ensure_model(cloud: Cloud, names: Names, weights: Weights, image: str) -> str:
    """Make the model unless it is there. Returns: its name. Raises: CloudError."""
    from botocore.exceptions import ClientError

    name = model_name(names, weights, image)
    role = ensure_execution_role(cloud, names)
    client = cloud.client("sagemaker")
    if weights.data:
        ensure_bucket(cloud, names)
        key = weights.address.removeprefix(f"{SCHEME}{names.bucket}/")
        with cloud_errors(f"sending the bundle to {weights.address}"):
            store = cloud.client("s3")
            if not checksum_stored(store, names.bucket, key):
                put_bytes(store, names.bucket, key, weights.data)
    with cloud_errors(f"creating the model {name}"):
        try:
            client.describe_model(ModelName=name)
        except ClientError as error:
            if not is_missing(error):
                raise
            request: dict[str, Any] = {
                "ModelName": name,
                "ExecutionRoleArn": role,
                "PrimaryContainer": {"Image": image, "ModelDataUrl": weights.address},
                "Tags": names.tag_list,
            }
            once_the_role_is_known(lambda: client.create_model(**request))
    return name


def model_name(names: Names, weights: Weights, image: str) -> str:
    """The same for the same weights in the same image."""
    digest = hashlib.sha256(f"{weights.stamp} {image}".encode()).hexdigest()[:SHORT]
    return names.stamped(f"model-{digest}")


def _of_bundle(names: Names, folder: Path) -> Weights:
    bundle = Bundle.open(folder)
    bundle.verify()
    files = {path.name: path.read_bytes() for path in sorted(folder.iterdir()) if path.is_file()}
    data = tarred(files)
    stamp = hashlib.sha256(data).hexdigest()[:SHORT]
    return Weights(f"{SCHEME}{names.bucket}/bundles/{stamp}/model.tar.gz", stamp, data)
