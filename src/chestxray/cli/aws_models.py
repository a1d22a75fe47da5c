"""The verbs of "chestxray aws" that train, serve and measure a model: train, deploy, validate."""

from __future__ import annotations

import dataclasses
import json
import os
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

from chestxray.cli.evaluate import assessment_text, command_line
from chestxray.cli.options import (
    PATH,
    AwsContext,
    Size,
    aws_options,
    out_option,
    recipe_options,
    rules_options,
    template_option,
    workers_option,
)
from chestxray.data.sources import OWNER_VARIABLE, split_address
from chestxray.errors import CloudUnreachable, UsageError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from chestxray.aws.jobs import StartedJob, TrainingOrder, Transformed

MACHINE: Final = ("instance", "instances", "processes", "image", "spot", "max_hours")  # fields of a TrainingOrder
OF_THE_JOB: Final = ("size", "split_seed", "checkpoint_every")  # hyperparameters of the job beside the recipe
_DONE: Final = {
    "create": "answers",
    "update": "was changed and answers",
    "keep": "was there already and answers; nothing was created",
}


@click.command()
@click.argument("training", metavar="s3://BUCKET/PREFIX")
@click.option("--validation", metavar="ADDRESS", help="Validation films. [default: drawn from the training films]")
@click.option("--test", metavar="ADDRESS", help="Test films, to check that no training film is among them.")
@recipe_options
@click.option("--size", type=Size(), default=None, help="Height and width in pixels. [default: the network's]")
@click.option("--split-seed", type=int, default=0, show_default=True, help="Seed of the splits.")
@click.option("--instance", default="ml.g4dn.xlarge", show_default=True, help="Instance type.")
@click.option("--instances", type=click.IntRange(1, 20), default=1, show_default=True, help="Number of instances.")
@click.option(
    "--processes", type=click.IntRange(1, 64), help="Processes on each instance. [default: one for each GPU, or one]"
)
@click.option(
    "--image", metavar="ADDRESS", default="", help="An image in Amazon ECR. [default: Amazon's PyTorch image]"
)
@click.option("--spot", is_flag=True, help="Use spare capacity: cheaper; the job resumes after interruptions.")
@click.option(
    "--max-hours",
    type=click.FloatRange(0.1, 120),
    default=24.0,
    show_default=True,
    help="Time limit; then AWS stops it.",
)
@click.option(
    "--checkpoint-every",
    type=click.FloatRange(1.0),
    default=60.0,
    show_default=True,
    help="Seconds between checkpoints.",
)
@click.option(
    "--source-only",
    type=PATH,
    metavar="FOLDER",
    help="Only write the source folder and hyperparameters for sagemaker.pytorch.PyTorch(...), without calling AWS.",
)
@click.option(
    "--pipeline-step", is_flag=True, help="Start no job; print it as a step of a SageMaker Pipeline, in JSON."
)
@click.option("--wait/--no-wait", default=True, show_default=True, help="Wait for the end and show the log.")
@rules_options
@aws_options
def train(
    context: AwsContext,
    training: str,
    validation: str | None,
    test: str | None,
    recipe: str,
    network: str | None,
    source_only: Path | None,
    pipeline_step: bool,
    wait: bool,
    **given: Any,
) -> None:
    """Train on films in S3, as a SageMaker training job.

    The job collects, cleans, splits, packs and trains like the local commands, and writes a bundle to the
    deployment's bucket. Repeat the command to follow a running job, or to print the result of a finished one. Ctrl-C
    does not stop the job.
    """
    from chestxray.aws import jobs

    if source_only is not None and pipeline_step:
        raise UsageError("--source-only and --pipeline-step contradict each other. Give one of them")
    channels = {"training": training, "validation": validation, "test": test}
    wanted = _training_order(channels, recipe, network, given)
    if source_only is not None:
        _write_source(context, wanted, source_only)
        return
    job = jobs.prepare_training(context.cloud, context.names, wanted)
    if not context.go_ahead(job.plan(context.names)):
        return
    if pipeline_step:
        click.echo(json.dumps(jobs.pipeline_step(context.cloud, context.names, job), indent=2))
        return
    begun = jobs.begin_training(context.cloud, context.names, job)
    if begun.did == "keep":
        context.console.log(f"{begun.name}: this very job was there already; nothing was created")
    if wait:
        _follow_training(context, begun)
    else:
        status = jobs.job_status_of(context.cloud, begun.name)
        document = {"job": begun.name, "did": begun.did, "status": status}
        context.console.result(document, f"{begun.name}: {status}. {_how_to_stop(begun.name)}")


def _training_order(
    channels: Mapping[str, str | None], recipe: str, network: str | None, given: Mapping[str, Any]
) -> TrainingOrder:
    """Return what the command line orders. Raises: UsageError, RecipeInvalid.

    Args:
        given: the values of MACHINE, of OF_THE_JOB, and changes of the recipe, by option.
    """
    from chestxray.aws.jobs import TrainingOrder
    from chestxray.training.config import recipe_of

    changes = {name: value for name, value in given.items() if name not in (*MACHINE, *OF_THE_JOB)}
    base = recipe_of(recipe, network=network)
    base.with_changes(**changes).without_teacher()  # refused here, not after a quarter of an hour
    size = given["size"]
    parameters = {**changes, **{name: given[name] for name in OF_THE_JOB}, "size": size and f"{size[0]}x{size[1]}"}
    return TrainingOrder(
        channels={name: address for name, address in channels.items() if address},
        recipe=base.to_toml(),
        network=base.network,
        # with the names of the original work
        hyperparameters={name.replace("_", "-"): f"{value}" for name, value in parameters.items() if value is not None},
        **{name: given[name] for name in MACHINE if given[name] is not None},
    )


def _write_source(context: AwsContext, wanted: TrainingOrder, folder: Path) -> None:
    """Write the source folder of --source-only, and tell how to use it."""
    from chestxray.aws.jobs import write_source
    from chestxray.aws.training_entry import ENTRY

    names = write_source(wanted, folder)
    document = {"source": folder, "entry": ENTRY, "hyperparameters": wanted.hyperparameters, "files": len(names)}
    use = f"PyTorch(entry_point='{ENTRY}', source_dir='{folder}', ...)"
    context.console.result(document, f"{folder}: {len(names)} files, for {use}")


def _follow_training(context: AwsContext, begun: StartedJob) -> None:
    """Wait for a job's end, and tell its result; Ctrl-C leaves it running."""
    from chestxray.aws import jobs

    name = begun.name
    try:
        found = jobs.follow_training(context.cloud, name, context.console.log)
    except KeyboardInterrupt:
        context.console.log(f"\n{name} keeps running in AWS. {_how_to_stop(name)}")
        raise
    metrics = {item["MetricName"]: item["Value"] for item in found.get("FinalMetricDataList", ())}
    artifacts = found["ModelArtifacts"]["S3ModelArtifacts"]
    document = {"job": name, "did": begun.did, "status": found["TrainingJobStatus"], "artifacts": artifacts}
    context.console.result(
        document | {"metrics": metrics, "billable_seconds": found.get("BillableTimeInSeconds")},
        f"{name}: finished; the bundle is {artifacts}\n"
        + "".join(f"  {metric} {value:.4f}\n" for metric, value in metrics.items())
        + f"Serve it with: chestxray aws deploy {name}",
    )


def _how_to_stop(name: str) -> str:
    return (
        f'The same command follows it; "chestxray aws status" lists it; "aws sagemaker stop-training-job '
        f'--training-job-name {name}" stops it.'
    )


@click.command()
@click.argument("source", metavar="JOB|BUNDLE")
@click.option("--serverless", is_flag=True, help="Pay for each film, nothing while idle; the default.")
@click.option("--instance", metavar="TYPE", help="Use an instance of this type, for example ml.m5.large.")
@click.option(
    "--ttl", default="4h", show_default=True, help='AWS deletes the endpoint after this time: 90m, 4h, 2d, or "never".'
)
@click.option("--image", metavar="ADDRESS", help="An image in your registry. [default: built in AWS from this code]")
@template_option("endpoint")
@rules_options
@aws_options
def deploy(
    context: AwsContext,
    source: str,
    serverless: bool,
    instance: str | None,
    ttl: str,
    image: str | None,
) -> None:
    """Deploy a bundle to an endpoint: that of a training job, or a local folder.

    The first time, the serving image is built in AWS. A schedule in AWS deletes the endpoint after --ttl with
    everything that belongs to it, even if this machine is off. Repeat the command to set that time again.
    """
    from chestxray.aws import deploy as endpoints
    from chestxray.aws.deploy import parse_ttl, weights_of
    from chestxray.aws.images import ensure_image, image_for, plan_of_image
    from chestxray.aws.plan import Plan

    if serverless and instance:
        raise UsageError("--serverless and --instance contradict each other. Give one of them")
    lifetime = parse_ttl(ttl)
    if context.cloud.rules.subnets and not instance:
        raise UsageError("a serverless endpoint cannot join a network. Give --instance too, or leave out --subnet")
    cloud, names, log = context.cloud, context.names, context.console.log
    hosting = endpoints.Hosting(instance or "")
    serving = image_for(names, image)
    weights = weights_of(cloud, names, source)
    parts = endpoints.endpoint_parts(names, weights, serving.address, hosting)
    items = (*plan_of_image(cloud, names, serving), *endpoints.plan_items(names, parts, hosting, lifetime))
    if not context.go_ahead(Plan("deploy", items)):
        return
    ensure_image(cloud, names, serving, log)
    end = None if lifetime is None else datetime.now(UTC).replace(microsecond=0) + lifetime
    did = endpoints.deploy(cloud, names, weights, serving.address, hosting, end, log)
    until = f"until {end:%Y-%m-%d %H:%M} UTC" if end else 'until "chestxray aws destroy"'
    context.console.result(
        {**dataclasses.asdict(parts), "did": did, "image": serving.address, "end": end.isoformat() if end else None},
        f"{parts.endpoint}: {_DONE[did]}, {until}\n"
        "Validate it with: chestxray aws validate s3://bucket/prefix/test --out report",
    )


@click.command()
@click.argument("address", metavar="s3://BUCKET/PREFIX")
@out_option("The folder for the report (HTML, JSON, CSV, figures).", folder=True)
@click.option("--model", metavar="JOB|BUNDLE", help="Model to validate. [default: the deployed one]")
@click.option("--image", metavar="ADDRESS", help="With --model: an image in your registry. [default: built in AWS]")
@click.option("--instance", default="ml.m5.large", show_default=True, help="Instance type.")
@workers_option
@rules_options
@aws_options
def validate(
    context: AwsContext,
    address: str,
    out: Path,
    model: str | None,
    image: str | None,
    instance: str,
    workers: int | None,
) -> None:
    """Evaluate the deployed model on films in S3, by a batch transform.

    The report is that of "chestxray evaluate". Films are cleaned on this machine, labels are read from their keys, and
    each figure has its count and its interval.
    """
    from chestxray.aws import jobs
    from chestxray.aws.deploy import deployed_model, ensure_model, model_name, weights_of
    from chestxray.aws.images import ensure_image, image_for, plan_of_image
    from chestxray.aws.plan import Plan
    from chestxray.aws.roles import ensure_execution_role
    from chestxray.aws.storage import ensure_bucket

    jobs.check_address(address)
    if image and not model:
        raise UsageError("--image belongs to --model: what is deployed has its image. Give both, or leave it out")
    cloud, names, log = context.cloud, context.names, context.console.log
    serving = image_for(names, image) if model else None
    weights = weights_of(cloud, names, model) if model else None
    name = model_name(names, weights, serving.address) if weights and serving else deployed_model(cloud, names)
    wanted = jobs.prepare_transform(cloud, names, address, name, instance)
    images = plan_of_image(cloud, names, serving) if serving else ()
    if not context.go_ahead(Plan("validate", jobs.transform_plan_items(names, wanted, images))):
        return
    if weights and serving:
        ensure_image(cloud, names, serving, log)
        ensure_model(cloud, names, weights, serving.address)
    ensure_bucket(cloud, names)
    ensure_execution_role(cloud, names, split_address(address)[0], image=image or "")
    _evaluate(context, jobs.run_transform(cloud, names, wanted, log), address, out, workers)


def _evaluate(context: AwsContext, transformed: Transformed, address: str, out: Path, workers: int | None) -> None:
    """Evaluate the answers to the films at an address, write the report, and tell it."""
    from chestxray.aws.jobs import write_transform_scores
    from chestxray.data.clean import clean
    from chestxray.data.collect import films_of
    from chestxray.evaluation.evaluate import EvaluationSettings, evaluate_table

    with _environment_for_reading(context, address), context.console.progress("Cleaning") as move:
        films = clean([dataclasses.replace(film, split="") for film in films_of(address)], move, workers)
    unread = [film for film in films if not film.sha256]
    if unread:
        more = f" (and {len(unread) - 1:,} more)" if len(unread) > 1 else ""
        raise CloudUnreachable(
            f"{unread[0].path}: {unread[0].reason}{more}. A report without such films would mislead, so none was "
            "written. Repeat the command; the job's answers are kept"
        )
    out.mkdir(parents=True, exist_ok=True)
    table, page = out.with_name(f"{out.name}.scores.csv"), out / "index.html"
    threshold = write_transform_scores(films, transformed, table)
    assessment = evaluate_table(table, out, EvaluationSettings(threshold=threshold, command=command_line()))
    document = {"job": transformed.job, "did": transformed.did, "scores": table, "report": page}
    context.console.result(
        document | {"assessment": assessment.to_json()},
        f"{assessment_text(assessment)}\nscores: {table}\nreport: {page}",
    )


@contextmanager
def _environment_for_reading(context: AwsContext, address: str) -> Iterator[None]:
    """Let films be read with the verb's profile and region, from the bucket of the account that it names.

    The processes that read them inherit the environment.
    """
    bucket, _ = split_address(address)
    given = {OWNER_VARIABLE: f"{bucket}={context.cloud.owner_of(bucket)}", "AWS_DEFAULT_REGION": context.cloud.region}
    if profile := click.get_current_context().params.get("profile"):
        given["AWS_PROFILE"] = profile
    before = {name: os.environ.get(name) for name in given}
    os.environ.update(given)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
