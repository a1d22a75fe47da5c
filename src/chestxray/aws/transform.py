"""Validation of the deployed model: a batch transform over films in S3, and its answers as a table.

Each film is one record, each key gives one ``.out``, and labels are read from keys. The table is that of ``chestxray
batch``, so the report is that of ``chestxray evaluate --scores``.

Source: Amazon SageMaker API reference, CreateTransformJob; developer guide, "Batch transform".
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Final

from chestxray.aws.images import takes_key
from chestxray.aws.plan import PlanItem, instance_hours
from chestxray.aws.roles import once_the_role_is_known
from chestxray.aws.session import Cloud, Names, Rules, cloud_errors, unless_missing
from chestxray.aws.storage import WORKERS, check_region, holds
from chestxray.aws.waiting import follow_job, next_name
from chestxray.data.sources import SCHEME, below, objects_below, split_address
from chestxray.errors import JobFailed, SourceInvalid, UsageError
from chestxray.inference.batch import row_of
from chestxray.metrics.scores import ScoreRow, write_table
from chestxray.progress import Log
from chestxray.schema import Film, Prediction

LOGS: Final = "/aws/sagemaker/TransformJobs"
PAYLOAD_MB: Final = 20  # the largest film that our service accepts
AT_ONCE: Final = 4  # films; times the payload at most 100 MB
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


def check_address(address: str) -> None:
    """Check that films are named by an address in S3, which takes no account. Raises: UsageError."""
    if not address.startswith(SCHEME):
        raise UsageError(f'{address}: not an address in S3. Bring the films there with "chestxray aws upload"')


def prepare(cloud: Cloud, names: Names, address: str, model: str, instance: str) -> TransformOrder:
    """List the films. Raises: SourceInvalid, if there are none or one is too large; CloudError."""
    check_region(cloud, address)
    with cloud_errors(f"listing {address}"):
        found = list(objects_below(cloud.client("s3"), address))
    if not found:
        raise SourceInvalid(f'{address}: holds no films. Bring them there with "chestxray aws upload"')
    large = [item["Key"] for item in found if item["Size"] > PAYLOAD_MB * 2**20]
    if large:
        raise SourceInvalid(
            f"{SCHEME}{split_address(address)[0]}/{large[0]}: larger than {PAYLOAD_MB} MB (as are {len(large) - 1:,} "
            "more), which would end the job. Move such films elsewhere"
        )
    listing = [[item["Key"], item["Size"], item["ETag"]] for item in found]
    digest = hashlib.sha256(json.dumps([address, model, instance, listing, *cloud.rules.stamp]).encode()).hexdigest()[
        :12
    ]
    return TransformOrder(address, model, instance, names.stamped(f"validate-{digest}"), len(found))


def plan_items(names: Names, order: TransformOrder, images: Sequence[PlanItem]) -> tuple[PlanItem, ...]:
    """Return the items of a plan; ``images`` are those of an image that is built first."""
    note = f"of {order.films:,} films on {order.instance}, while it runs"
    return (
        PlanItem("bucket", names.bucket, note="kept where it is there", does="ensure"),
        PlanItem("role", names.role("sagemaker"), note="reads these films, works in that bucket", does="ensure"),
        *images,
        PlanItem("model", order.model, does="ensure"),
        PlanItem("transform job", order.stem, hourly=instance_hours(order.instance), note=note),
    )


def run(cloud: Cloud, names: Names, order: TransformOrder, log: Log) -> Transformed:
    """Start the job or find an equal one; wait; collect its answers. Raises: JobFailed, CloudError."""
    client, store = cloud.client("sagemaker"), cloud.client("s3")

    def has_result(found: Mapping[str, Any]) -> bool:
        return holds(store, f"{found['TransformOutput']['S3OutputPath']}/")

    def described(name: str) -> Mapping[str, Any] | None:
        return unless_missing(client.describe_transform_job, TransformJobName=name)

    with cloud_errors(f"looking for the job {order.stem}"):
        name, status = next_name(described, order.stem, "TransformJobStatus", has_result)
    if not status:
        with cloud_errors(f"creating the transform job {name}"):
            once_the_role_is_known(
                lambda: client.create_transform_job(**transform_request(names, order, name, cloud.rules))
            )
    else:
        log(f"{name}: this very job was there already; nothing was created")
    describe = partial(client.describe_transform_job, TransformJobName=name)
    follow_job(cloud, name, describe, "TransformJobStatus", LOGS, log)
    return Transformed(_answers(cloud, names, order, name), name, "keep" if status else "create")


def transform_request(names: Names, order: TransformOrder, name: str, rules: Rules | None = None) -> dict[str, Any]:
    """Return the request for CreateTransformJob."""
    key = rules.kms_key if rules else ""
    bucket, prefix = split_address(order.address)
    films = {"S3DataType": "S3Prefix", "S3Uri": f"{SCHEME}{bucket}/{below(prefix)}"}
    return {
        "TransformJobName": name,
        "ModelName": order.model,
        "MaxConcurrentTransforms": AT_ONCE,
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


def write_scores(films: Sequence[Film], transformed: Transformed, path: Path) -> float:
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
            f"{transformed.job}: its answers are of {len(rules)} models or thresholds. Delete its folder below "
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
    return f"{SCHEME}{names.bucket}/transforms/{name}"
