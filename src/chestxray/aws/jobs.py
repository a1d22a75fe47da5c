"""The two kinds of job in SageMaker: a training on films in S3, and a batch transform of films by a deployed model.

A job's name is derived from its content, so that the same command finds the same job again: the command follows a
running job, and reports the result of a finished one.

A training runs this package, in script mode, on Amazon's PyTorch image. A transform validates what is deployed: each
film is one record, each key gives one ``.out``, and labels are read from keys; its table is that of ``chestxray
batch``, so its report is that of ``chestxray evaluate --scores``.

Source: Amazon SageMaker API reference, CreateTrainingJob and CreateTransformJob; developer guide, "Batch transform";
sagemaker-training-toolkit, params.py.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Final

from chestxray import __version__
from chestxray.aws.images import (
    compressed,
    has_gpu,
    repository_arn,
    source_files,
    takes_key,
    tarred,
    training_image,
)
from chestxray.aws.plan import Plan, PlanItem, bucket_and_role, instance_hours
from chestxray.aws.roles import ensure_execution_role, once_the_role_is_known
from chestxray.aws.session import Cloud, Names, Rules, cloud_errors, follow_job, next_name, unless_missing
from chestxray.aws.storage import WORKERS, check_region, checksum_stored, ensure_bucket, holds, put_bytes
from chestxray.aws.training_entry import ENTRY, metric_definitions
from chestxray.data.sources import S3_SCHEME, below, objects_below, split_address
from chestxray.errors import JobFailed, SourceInvalid, UsageError
from chestxray.files import write_atomically
from chestxray.inference.batch import row_of
from chestxray.metrics.scores import ScoreRow, write_table
from chestxray.progress import Log
from chestxray.schema import Film, Prediction
from chestxray.training.config import RECIPE_TOML

# --------------------------------------------------------------------------- both kinds


READS: Final = "reads these films, works in that bucket"  # what the role of a job does


@dataclass(frozen=True, slots=True)
class StartedJob:
    """A job that runs or has finished.

    Attributes:
        did: "create", or "keep" if the job existed already.
    """

    name: str
    did: str


def check_address(address: str) -> None:
    """Check that films are named by an address in S3; no request is made. Raises: UsageError."""
    if not address.startswith(S3_SCHEME):
        raise UsageError(f'{address}: not an address in S3. Bring the films there with "chestxray aws upload"')


def _objects_at(cloud: Cloud, address: str) -> Sequence[Mapping[str, Any]]:
    """List the objects below an address. Raises: SourceInvalid: there are none; CloudError."""
    with cloud_errors(f"listing {address}"):
        found = list(objects_below(cloud.client("s3"), address))
    if not found:
        raise SourceInvalid(f'{address}: holds no films. Bring them there with "chestxray aws upload"')
    return found


def _start(
    client: Any,
    kind: str,
    stem: str,
    has_result: Callable[[Mapping[str, Any]], bool],
    request_of: Callable[[str], Mapping[str, Any]],
) -> StartedJob:
    """Start a job unless an equal one runs or has finished.

    Args:
        client: of SageMaker.
        kind: "training" or "transform".
        stem: the job's name, without the number that is added after failed attempts.
        has_result: whether the result of a finished job, by its description, still exists.
        request_of: makes what the job needs; returns the request for a job of that name.

    Raises: CloudError.
    """
    describe, create = getattr(client, f"describe_{kind}_job"), getattr(client, f"create_{kind}_job")

    of_kind = f"{kind.title()}Job"

    def described(name: str) -> Mapping[str, Any] | None:
        return unless_missing(describe, **{f"{of_kind}Name": name})

    with cloud_errors(f"looking for the job {stem}"):
        name, status = next_name(described, stem, f"{of_kind}Status", has_result)
    if status:
        return StartedJob(name, "keep")
    request = request_of(name)
    with cloud_errors(f"creating the {kind} job {name}"):
        once_the_role_is_known(lambda: create(**request))
    return StartedJob(name, "create")


# --------------------------------------------------------------------------- training

TRAINING_LOGS: Final = "/aws/sagemaker/TrainingJobs"
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
            check_address(address)


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
                *bucket_and_role(names, READS),
                PlanItem(kind, self.stem, hourly=hourly, note=note),
            ),
        )


def prepare_training(cloud: Cloud, names: Names, order: TrainingOrder) -> PreparedJob:
    """List the films and pack the code. Raises: CloudError, SourceInvalid, UsageError."""
    repository_arn(training_image_of(names, order), names.region)
    check_region(cloud, *order.channels.values())
    listing = []
    for name, address in order.channels.items():
        found = _objects_at(cloud, address)
        listing += [(name, address, item["Key"], item["Size"], item["ETag"]) for item in found]
    source = tarred(source_files(order.recipe, order.network))
    what = [__version__, order.recipe, listing, dict(order.hyperparameters)]
    where = [order.instance, order.instances, order.processes, order.spot, *([order.image] if order.image else [])]
    where += cloud.rules.stamp
    key = f"sources/{hashlib.sha256(source).hexdigest()[:16]}/sourcedir.tar.gz"
    return PreparedJob(order, names.stamped("train", json.dumps([what, where])), source, key, len(listing))


def begin_training(cloud: Cloud, names: Names, job: PreparedJob) -> StartedJob:
    """Start the job unless an equal one runs or has finished. Raises: CloudError."""
    store = cloud.client("s3")
    return _start(
        cloud.client("sagemaker"),
        "training",
        job.stem,
        lambda found: holds(store, found["ModelArtifacts"]["S3ModelArtifacts"]),
        lambda name: training_request(names, job, name, _make_ready(cloud, names, job), cloud.rules),
    )


def _make_ready(cloud: Cloud, names: Names, job: PreparedJob) -> str:
    """Make the bucket and the role, and send the source. Returns: the role's ARN. Raises: CloudError."""
    ensure_bucket(cloud, names)
    buckets = {split_address(address)[0] for address in job.order.channels.values()}
    role = ensure_execution_role(cloud, names, *sorted(buckets), image=training_image_of(names, job.order))
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
    given = {"recipe": RECIPE_TOML, **order.hyperparameters}
    files["hyperparameters.json"] = f"{json.dumps(given, indent=2)}\n".encode()
    files["metric_definitions.json"] = f"{json.dumps(metric_definitions(), indent=2)}\n".encode()
    for name, data in files.items():
        write_atomically(folder / name, data)
    return sorted(files)


def pipeline_step(cloud: Cloud, names: Names, job: PreparedJob) -> dict[str, Any]:
    """Create what the job needs, but not the job. Returns: a Training step for the definition of a SageMaker Pipeline.

    Each execution of the pipeline has checkpoints of its own: those of an earlier one may be of other films.

    Source: SageMaker Model Building Pipeline definition JSON schema, 2020-12-01, TrainingStep. Raises: CloudError.
    """
    request = training_request(names, job, job.stem, _make_ready(cloud, names, job), cloud.rules)
    del request["TrainingJobName"]  # a pipeline names the jobs of its executions itself
    places = [request["CheckpointConfig"]["S3Uri"], {"Get": "Execution.PipelineExecutionId"}]
    request["CheckpointConfig"]["S3Uri"] = {"Std:Join": {"On": "/", "Values": places}}
    return {"Name": "Train", "Type": "Training", "Arguments": request}


def training_image_of(names: Names, order: TrainingOrder) -> str:
    """Return the image in which a job runs. Raises: UsageError: none fits the instance or the region."""
    return order.image or training_image(names.region, order.instance)


def job_status_of(cloud: Cloud, name: str) -> str:
    """Return the status in AWS's words: "InProgress", "Completed", ... Raises: CloudError."""
    with cloud_errors(f"asking for the job {name}"):
        return str(cloud.client("sagemaker").describe_training_job(TrainingJobName=name)["TrainingJobStatus"])


def training_request(names: Names, job: PreparedJob, name: str, role: str, rules: Rules) -> dict[str, Any]:
    """Return the request for CreateTrainingJob."""
    key = {"KmsKeyId": rules.kms_key} if rules.kms_key else {}
    order = job.order
    own = f"{S3_SCHEME}{names.bucket}"
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
            "TrainingImage": training_image_of(names, order),
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


def follow_training(cloud: Cloud, name: str, log: Log) -> Mapping[str, Any]:
    """Wait for the job's end and log its states and lines. Returns: its description.

    Raises: JobFailed, CloudError.
    """
    describe = partial(cloud.client("sagemaker").describe_training_job, TrainingJobName=name)
    return follow_job(cloud, name, describe, "TrainingJobStatus", TRAINING_LOGS, log)


def _channel(name: str, address: str) -> dict[str, Any]:
    bucket, prefix = split_address(address)
    films = {"S3DataType": "S3Prefix", "S3DataDistributionType": "FullyReplicated"}
    return {
        "ChannelName": name,
        "DataSource": {"S3DataSource": films | {"S3Uri": f"{S3_SCHEME}{bucket}/{below(prefix)}"}},
    }


def _hyperparameters(names: Names, job: PreparedJob, name: str) -> dict[str, str]:
    """Return our hyperparameters and those of the toolkit; each value as JSON, which the toolkit expects."""
    order = job.order
    toolkit: dict[str, Any] = {
        "sagemaker_program": ENTRY,
        "sagemaker_submit_directory": f"{S3_SCHEME}{names.bucket}/{job.source_key}",
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
    return {key: json.dumps(value) for key, value in (toolkit | {"recipe": RECIPE_TOML}).items()} | dict(
        order.hyperparameters
    )


# --------------------------------------------------------------------------- transform

TRANSFORM_LOGS: Final = "/aws/sagemaker/TransformJobs"
PAYLOAD_MB: Final = 20  # the largest film that our service accepts
FILMS_AT_ONCE: Final = 4  # films; times the payload at most 100 MB
ENDING: Final = ".out"
NO_ANSWER: Final = "the transform job gave no answer for it"


@dataclass(frozen=True, slots=True)
class TransformOrder:
    """What to classify, and with which model.

    Attributes:
        address: the films, ``s3://bucket/prefix``.
        model: name of the model in SageMaker.
        instance: type of the instance.
        stem: the job's name, without the number that is added after failed attempts.
        films: number of objects below the address.
    """

    address: str
    model: str
    instance: str
    stem: str
    films: int


@dataclass(frozen=True, slots=True)
class Transformed:
    """The result of a transform job.

    Attributes:
        answers: the line of output by the film's key in its bucket.
        job: its name.
        did: "create", or "keep" if the job existed already.
    """

    answers: Mapping[str, str]
    job: str
    did: str


def prepare_transform(cloud: Cloud, names: Names, address: str, model: str, instance: str) -> TransformOrder:
    """List the films. Raises: SourceInvalid, if there are none or one is too large; CloudError."""
    check_region(cloud, address)
    found = _objects_at(cloud, address)
    large = [item["Key"] for item in found if item["Size"] > PAYLOAD_MB * 2**20]
    if large:
        raise SourceInvalid(
            f"{S3_SCHEME}{split_address(address)[0]}/{large[0]}: larger than {PAYLOAD_MB} MB (as are "
            f"{len(large) - 1:,} more), which would end the job. Move such films elsewhere"
        )
    listing = [[item["Key"], item["Size"], item["ETag"]] for item in found]
    stem = names.stamped("validate", json.dumps([address, model, instance, listing, *cloud.rules.stamp]))
    return TransformOrder(address, model, instance, stem, len(found))


def transform_plan_items(names: Names, order: TransformOrder, images: Sequence[PlanItem]) -> tuple[PlanItem, ...]:
    """Return the items of a plan; ``images`` are those of an image that is built first."""
    note = f"of {order.films:,} films on {order.instance}, while it runs"
    return (
        *bucket_and_role(names, READS),
        *images,
        PlanItem("model", order.model, does="ensure"),
        PlanItem("transform job", order.stem, hourly=instance_hours(order.instance), note=note),
    )


def run_transform(cloud: Cloud, names: Names, order: TransformOrder, log: Log) -> Transformed:
    """Start the job or find an equal one; wait; collect its answers. Raises: JobFailed, CloudError."""
    client, store = cloud.client("sagemaker"), cloud.client("s3")
    job = _start(
        client,
        "transform",
        order.stem,
        lambda found: holds(store, f"{found['TransformOutput']['S3OutputPath']}/"),
        lambda name: transform_request(names, order, name, cloud.rules),
    )
    if job.did == "keep":
        log(f"{job.name}: this very job was there already; nothing was created")
    describe = partial(client.describe_transform_job, TransformJobName=job.name)
    follow_job(cloud, job.name, describe, "TransformJobStatus", TRANSFORM_LOGS, log)
    return Transformed(_answers(cloud, names, order, job.name), job.name, job.did)


def transform_request(names: Names, order: TransformOrder, name: str, rules: Rules) -> dict[str, Any]:
    """Return the request for CreateTransformJob."""
    key = rules.kms_key
    bucket, prefix = split_address(order.address)
    films = {"S3DataType": "S3Prefix", "S3Uri": f"{S3_SCHEME}{bucket}/{below(prefix)}"}
    return {
        "TransformJobName": name,
        "ModelName": order.model,
        "MaxConcurrentTransforms": FILMS_AT_ONCE,
        "MaxPayloadInMB": PAYLOAD_MB,
        "BatchStrategy": "SingleRecord",
        "TransformInput": {
            "DataSource": {"S3DataSource": films},
            "ContentType": "application/x-image",
            "SplitType": "None",
            "CompressionType": "None",
        },
        "TransformOutput": {
            "S3OutputPath": _output(names, name),
            "Accept": "application/json",
            "AssembleWith": "None",
            **({"KmsKeyId": key} if key else {}),
        },
        "TransformResources": {
            "InstanceType": order.instance,
            "InstanceCount": 1,
            **({"VolumeKmsKeyId": key} if key and takes_key(order.instance) else {}),
        },
        "Tags": names.tag_list,
    }


def write_transform_scores(films: Sequence[Film], transformed: Transformed, path: Path) -> float:
    """Write the answers as a table, one row a film; films without a prediction have the reason.

    Args:
        films: cleaned; their paths are addresses in S3.

    Returns: the answers' threshold for pneumonia.
    Raises: SourceInvalid, if no film was classified; JobFailed, if the answers are of several models.
    """
    predictions = {film.path: _prediction(transformed.answers, film) for film in films}
    classified = [found for found in predictions.values() if isinstance(found, Prediction)]
    if not classified:
        raise SourceInvalid(
            f"{transformed.job}: classified none of the {len(films):,} films: {_first_reason(predictions)}"
        )
    rules = {(found.model_sha256, found.threshold) for found in classified}
    if len(rules) > 1:
        raise JobFailed(
            f"{transformed.job}: its results are from {len(rules)} models or thresholds. Delete its folder below "
            "transforms/ in our bucket and repeat the command"
        )
    write_table((_row(film, predictions[film.path]) for film in films), path)
    return classified[0].threshold


def _row(film: Film, found: Prediction | str) -> ScoreRow:
    """Return one row of the table."""
    if not film.is_accepted:
        return row_of(film, film.sha256, None, None, f"{film.verdict.replace('_', ' ')}: {film.reason}", ())
    if isinstance(found, str):
        return row_of(film, film.sha256, None, None, found, ())
    return row_of(film, found.film_sha256, found.probability, found.label, found.gate.reason, found.notes)


def _prediction(answers: Mapping[str, str], film: Film) -> Prediction | str:
    """Return the answer to a film, or why there is none."""
    line = answers.get(split_address(film.path)[1])
    if line is None:
        return NO_ANSWER
    try:
        return Prediction.from_json(line)
    except (ValueError, KeyError, TypeError):
        pass
    try:
        return str(json.loads(line)["detail"])  # the line is a problem document
    except (ValueError, KeyError, TypeError):
        return f"answered with {line[:80]!r}"


def _first_reason(predictions: Mapping[str, Prediction | str]) -> str:
    path, found = next(iter(predictions.items()))
    return f"{path}: {found if isinstance(found, str) else found.gate.reason}"


def _answers(cloud: Cloud, names: Names, order: TransformOrder, name: str) -> dict[str, str]:
    """Return the lines of output by key. AWS stores them by the key below the prefix; the whole key works as well."""
    client, output = cloud.client("s3"), _output(names, name)
    bucket, prefix = split_address(output)
    _, films = split_address(order.address)

    def lines() -> Iterator[tuple[str, str]]:
        def fetch(key: str) -> tuple[str, str]:
            with client.get_object(Bucket=bucket, Key=key)["Body"] as body:
                return key, body.read().decode().strip()

        keys = [found["Key"] for found in objects_below(client, output) if found["Key"].endswith(ENDING)]
        with ThreadPoolExecutor(WORKERS) as pool:
            yield from pool.map(fetch, keys)

    with cloud_errors(f"collecting the answers of {name}"):
        found = {key.removeprefix(below(prefix)).removesuffix(ENDING): line for key, line in lines()}
    whole = below(films)
    return {(key if key.startswith(whole) else f"{whole}{key}"): line for key, line in found.items()}


def _output(names: Names, name: str) -> str:
    return f"{S3_SCHEME}{names.bucket}/transforms/{name}"
