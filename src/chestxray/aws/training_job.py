"""A training job: this package, in script mode, on Amazon's PyTorch image.

Its name is derived from its content, so that the same command finds the same job again: the command follows a running
job, and reports the result of a finished one.

Source: Amazon SageMaker API reference, CreateTrainingJob; sagemaker-training-toolkit, params.py.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Final

from chestxray.aws.archives import ENTRY, RECIPE, compressed, source_archive, source_files
from chestxray.aws.images import has_gpu, repository_arn, takes_key, training_image
from chestxray.aws.plan import Plan, PlanItem, instance_hours
from chestxray.aws.roles import ensure_execution_role, once_the_role_is_known
from chestxray.aws.session import Cloud, Names, Rules, cloud_errors, unless_missing
from chestxray.aws.storage import check_region, checksum_stored, ensure_bucket, holds, put_bytes
from chestxray.aws.training_entry import metric_definitions
from chestxray.aws.waiting import follow_job, next_name
from chestxray.data.sources import SCHEME, below, objects_below, split_address
from chestxray.errors import SourceInvalid, UsageError
from chestxray.files import write_atomically
from chestxray.progress import Log
from chestxray.version import __version__

LOGS: Final = "/aws/sagemaker/TrainingJobs"
VOLUME_GB: Final = 30
LOCAL_CHECKPOINTS: Final = "/opt/ml/checkpoints"
SPOT_WAIT: Final = 2  # times the running time: limit for waiting and running of a spot job together
LONGEST_WAIT_S: Final = 5 * 24 * 3600  # the longest time that accounts may request by default
TOOLKIT: Final = "sagemaker_pytorch_container.training:main"  # starts torchrun if asked for


@dataclass(frozen=True, slots=True)
class TrainingOrder:
    """What to train, and where.

    Attributes:
        channels: address of each channel's films, by name ("training", "validation", "test").
        recipe: in TOML.
        network: name of the recipe's network.
        hyperparameters: changes of the recipe, and further options of ``training_entry``.
        instance, instances: type and number.
        processes: number on each instance; 0 for one on each GPU, or a single one.
        spot: on spare capacity, which AWS may reclaim at any time.
        max_hours: hours after which AWS stops the job.
        image: container image; by default Amazon's PyTorch image.
    """

    channels: Mapping[str, str]
    recipe: str
    network: str
    hyperparameters: Mapping[str, str] = field(default_factory=dict)
    instance: str = "ml.g4dn.xlarge"
    instances: int = 1
    processes: int = 0
    spot: bool = False
    max_hours: float = 24.0
    image: str = ""

    def __post_init__(self) -> None:
        """Check the order. Raises: UsageError."""
        if "training" not in self.channels:
            raise UsageError("a training job needs films to train on")
        for address in self.channels.values():
            if not address.startswith(SCHEME):
                raise UsageError(f'{address}: not an address in S3. Bring the films there with "chestxray aws upload"')


@dataclass(frozen=True, slots=True)
class StartedJob:
    """A job that runs or has finished.

    Attributes:
        did: "create", or "keep" if the job existed already.
    """

    name: str
    did: str


@dataclass(frozen=True, slots=True)
class PreparedJob:
    """A job before its request.

    Attributes:
        stem: its name, without the number that is added after failed attempts.
        source: the code, as a ``.tar``.
        source_key: key of its ``sourcedir.tar.gz`` in our bucket.
        films: number of objects below the addresses.
    """

    order: TrainingOrder
    stem: str
    source: bytes
    source_key: str
    films: int

    def plan(self, names: Names) -> Plan:
        """Return what starting the job does and costs."""
        order = self.order
        hourly = instance_hours(order.instance, order.instances)
        kind = "spot training job, usually at half the price or less" if order.spot else "training job"
        note = f"on {order.instances} x {order.instance} for {self.films:,} films, while it runs; "
        note += f"at most {order.max_hours:g} hours"
        return Plan(
            "train",
            (
                PlanItem("bucket", names.bucket, note="kept where it is there", does="ensure"),
                PlanItem(
                    "role", names.role("sagemaker"), note="reads these films, works in that bucket", does="ensure"
                ),
                PlanItem(kind, self.stem, hourly=hourly, note=note),
            ),
        )


def prepare(cloud: Cloud, names: Names, order: TrainingOrder) -> PreparedJob:
    """List the films and pack the code. Raises: CloudError, SourceInvalid, UsageError."""
    repository_arn(image_of(names, order), names.region)
    check_region(cloud, *order.channels.values())
    listing = []
    for name, address in order.channels.items():
        with cloud_errors(f"listing {address}"):
            found = list(objects_below(cloud.client("s3"), address))
        if not found:
            raise SourceInvalid(f'{address}: holds no films. Bring them there with "chestxray aws upload"')
        listing += [(name, address, item["Key"], item["Size"], item["ETag"]) for item in found]
    source = source_archive(order.recipe, order.network)
    what = [__version__, order.recipe, listing, dict(order.hyperparameters)]
    where = [order.instance, order.instances, order.processes, order.spot, *([order.image] if order.image else [])]
    where += cloud.rules.stamp
    digest = hashlib.sha256(json.dumps([what, where]).encode())
    key = f"sources/{hashlib.sha256(source).hexdigest()[:16]}/sourcedir.tar.gz"
    return PreparedJob(order, names.stamped(f"train-{digest.hexdigest()[:12]}"), source, key, len(listing))


def begin(cloud: Cloud, names: Names, job: PreparedJob) -> StartedJob:
    """Start the job unless an equal one runs or has finished. Raises: CloudError."""
    client, store = cloud.client("sagemaker"), cloud.client("s3")

    def has_result(found: Mapping[str, Any]) -> bool:
        return holds(store, found["ModelArtifacts"]["S3ModelArtifacts"])

    def described(name: str) -> Mapping[str, Any] | None:
        return unless_missing(client.describe_training_job, TrainingJobName=name)

    with cloud_errors(f"looking for the job {job.stem}"):
        name, status = next_name(described, job.stem, "TrainingJobStatus", has_result)
    if status:
        return StartedJob(name, "keep")
    request = training_request(names, job, name, _provide(cloud, names, job), cloud.rules)
    with cloud_errors(f"creating the training job {name}"):
        once_the_role_is_known(lambda: client.create_training_job(**request))
    return StartedJob(name, "create")


def _provide(cloud: Cloud, names: Names, job: PreparedJob) -> str:
    """Make the bucket and the role, and send the source. Returns: the role's ARN. Raises: CloudError."""
    ensure_bucket(cloud, names)
    buckets = {split_address(address)[0] for address in job.order.channels.values()}
    role = ensure_execution_role(cloud, names, *sorted(buckets), image=image_of(names, job.order))
    store = cloud.client("s3")
    with cloud_errors("sending the source archive"):
        if not checksum_stored(store, names.bucket, job.source_key):
            put_bytes(store, names.bucket, job.source_key, compressed(job.source))
    return role


def write_source(order: TrainingOrder, folder: Path) -> list[str]:
    """Write what ``sagemaker.pytorch.PyTorch(entry_point="train.py", source_dir=...)`` takes. Returns: the names.

    Beside the code: ``hyperparameters.json`` and ``metric_definitions.json``, for the arguments of those names.
    """
    files = source_files(order.recipe, order.network)
    given = {"recipe": RECIPE, **order.hyperparameters}
    files["hyperparameters.json"] = f"{json.dumps(given, indent=2)}\n".encode()
    files["metric_definitions.json"] = f"{json.dumps(metric_definitions(), indent=2)}\n".encode()
    for name, data in files.items():
        write_atomically(folder / name, data)
    return sorted(files)


def pipeline_step(cloud: Cloud, names: Names, job: PreparedJob) -> dict[str, Any]:
    """Make what the job needs, and no job. Returns: a Training step for the definition of a SageMaker Pipeline.

    Each execution of the pipeline has checkpoints of its own: those of an earlier one may be of other films.

    Source: SageMaker Model Building Pipeline definition JSON schema, 2020-12-01, TrainingStep. Raises: CloudError.
    """
    request = training_request(names, job, job.stem, _provide(cloud, names, job), cloud.rules)
    del request["TrainingJobName"]  # a pipeline names the jobs of its executions itself
    places = [request["CheckpointConfig"]["S3Uri"], {"Get": "Execution.PipelineExecutionId"}]
    request["CheckpointConfig"]["S3Uri"] = {"Std:Join": {"On": "/", "Values": places}}
    return {"Name": "Train", "Type": "Training", "Arguments": request}


def image_of(names: Names, order: TrainingOrder) -> str:
    """Return the image in which a job runs. Raises: UsageError: none fits the instance or the region."""
    return order.image or training_image(names.region, order.instance)


def status_of(cloud: Cloud, name: str) -> str:
    """Return the status in AWS's words: "InProgress", "Completed", ... Raises: CloudError."""
    with cloud_errors(f"asking for the job {name}"):
        return str(cloud.client("sagemaker").describe_training_job(TrainingJobName=name)["TrainingJobStatus"])


def training_request(
    names: Names, job: PreparedJob, name: str, role: str, rules: Rules | None = None
) -> dict[str, Any]:
    """Return the request for CreateTrainingJob."""
    rules = rules or Rules()
    key = {"KmsKeyId": rules.kms_key} if rules.kms_key else {}
    order = job.order
    own = f"{SCHEME}{names.bucket}"
    seconds = round(order.max_hours * 3600)
    resources: dict[str, Any] = {
        "InstanceType": order.instance,
        "InstanceCount": order.instances,
        "VolumeSizeInGB": VOLUME_GB,
    }
    if rules.kms_key and takes_key(order.instance):
        resources["VolumeKmsKeyId"] = rules.kms_key
    stopping = {"MaxRuntimeInSeconds": seconds}
    wait = max(seconds, min(seconds * SPOT_WAIT, LONGEST_WAIT_S))
    return {
        "TrainingJobName": name,
        "AlgorithmSpecification": {
            "TrainingImage": image_of(names, order),
            "TrainingInputMode": "File",
            "MetricDefinitions": metric_definitions(),
        },
        "RoleArn": role,
        "HyperParameters": _hyperparameters(names, job, name),
        "Environment": {"SAGEMAKER_TRAINING_MODULE": TOOLKIT},
        "InputDataConfig": [_channel(channel, address) for channel, address in order.channels.items()],
        "OutputDataConfig": {"S3OutputPath": f"{own}/jobs", **key},
        "ResourceConfig": resources,
        "StoppingCondition": stopping | ({"MaxWaitTimeInSeconds": wait} if order.spot else {}),
        "EnableManagedSpotTraining": order.spot,
        "CheckpointConfig": {"S3Uri": f"{own}/checkpoints/{name}", "LocalPath": LOCAL_CHECKPOINTS},
        "Tags": names.tag_list,
        **rules.network,
    }


def follow(cloud: Cloud, name: str, log: Log) -> Mapping[str, Any]:
    """Wait for the job's end and log its states and lines. Returns: its description.

    Raises: JobFailed, CloudError.
    """
    describe = partial(cloud.client("sagemaker").describe_training_job, TrainingJobName=name)
    return follow_job(cloud, name, describe, "TrainingJobStatus", LOGS, log)


def _channel(name: str, address: str) -> dict[str, Any]:
    bucket, prefix = split_address(address)
    films = {"S3DataType": "S3Prefix", "S3DataDistributionType": "FullyReplicated"}
    return {"ChannelName": name, "DataSource": {"S3DataSource": films | {"S3Uri": f"{SCHEME}{bucket}/{below(prefix)}"}}}


def _hyperparameters(names: Names, job: PreparedJob, name: str) -> dict[str, str]:
    """Return our hyperparameters and those of the toolkit; each value as JSON, which the toolkit expects."""
    order = job.order
    toolkit: dict[str, Any] = {
        "sagemaker_program": ENTRY,
        "sagemaker_submit_directory": f"{SCHEME}{names.bucket}/{job.source_key}",
        "sagemaker_region": names.region,
        "sagemaker_job_name": name,
        "sagemaker_container_log_level": 20,
    }
    if order.instances > 1 or order.processes > 1 or has_gpu(order.instance):
        toolkit |= {
            "sagemaker_torch_distributed_enabled": True,
            "sagemaker_instance_type": order.instance,
            "sagemaker_distribution_instance_groups": ["homogeneousCluster"],
        }
    if order.processes:
        toolkit["sagemaker_mpi_num_of_processes_per_host"] = order.processes  # read for torchrun as well
    return {key: json.dumps(value) for key, value in (toolkit | {"recipe": RECIPE}).items()} | dict(
        order.hyperparameters
    )
