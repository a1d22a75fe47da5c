"""The verb that trains on AWS: train."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from chestxray.cli.aws_options import Order, aws_options
from chestxray.cli.model import RECIPE_OPTIONS
from chestxray.cli.options import Command, Size

if TYPE_CHECKING:
    from collections.abc import Mapping


def _recipe_changes(command: Command) -> Command:
    for name, kind, what in reversed(RECIPE_OPTIONS):
        command = click.option(name, type=kind, default=None, help=f"{what} [default: the recipe's]")(command)
    return command


@click.command()
@click.argument("training", metavar="s3://BUCKET/PREFIX")
@click.option("--validation", metavar="ADDRESS", help="Films to validate on. [default: drawn from the others]")
@click.option("--test", metavar="ADDRESS", help="Test films, so that none of them is trained on unnoticed.")
@click.option("--recipe", default="default", show_default=True, help="A recipe of this package, or a TOML file.")
@click.option("--network", default=None, help="A network by name. [default: the recipe's]")
@_recipe_changes
@click.option("--size", type=Size(), default=None, help="Height and width in pixels. [default: the network's]")
@click.option("--split-seed", type=int, default=0, show_default=True, help="The same seed draws the same splits.")
@click.option("--instance", default="ml.g4dn.xlarge", show_default=True, help="Type of the instances.")
@click.option("--instances", type=click.IntRange(1, 20), default=1, show_default=True, help="How many.")
@click.option("--processes", type=click.IntRange(1, 64), help="On each instance. [default: one a GPU, or one]")
@click.option("--spot", is_flag=True, help="On spare capacity: cheaper, and it goes on after interruptions.")
@click.option(
    "--max-hours", type=click.FloatRange(0.1, 120), default=24.0, show_default=True, help="After which AWS stops it."
)
@click.option("--checkpoint-every", type=click.FloatRange(1.0), default=60.0, show_default=True, help="Seconds.")
@click.option("--wait/--no-wait", default=True, show_default=True, help="Wait for its end, telling what it says.")
@aws_options
def train(
    order: Order,
    training: str,
    validation: str | None,
    test: str | None,
    recipe: str,
    network: str | None,
    size: tuple[int, int] | None,
    split_seed: int,
    instance: str,
    instances: int,
    processes: int | None,
    spot: bool,  # noqa: FBT001 - click passes it by name
    max_hours: float,
    checkpoint_every: float,
    wait: bool,  # noqa: FBT001 - the same
    **changes: Any,
) -> None:
    """Train on films in S3, as a SageMaker training job.

    The job collects, cleans, splits, packs and trains as the verbs here do, and leaves a bundle in our bucket. The
    same command again follows the job while it runs, and tells its result once it is finished. Ctrl-C leaves it
    running.
    """
    from chestxray.aws import training_job
    from chestxray.training.config import recipe_of

    channels = {"training": training, "validation": validation, "test": test}
    base = recipe_of(recipe, network=network)
    base.with_changes(**changes).without_teacher()  # refused here, not in a quarter of an hour
    wanted = training_job.TrainingOrder(
        channels={name: address for name, address in channels.items() if address},
        recipe=base.to_toml(),
        network=base.network,
        hyperparameters=_hyperparameters(changes, size, split_seed, checkpoint_every),
        instance=instance,
        instances=instances,
        processes=processes or 0,
        spot=spot,
        max_hours=max_hours,
    )
    job = training_job.prepare(order.cloud, order.names, wanted)
    if not order.go_ahead(job.plan(order.names)):
        return
    begun = training_job.begin(order.cloud, order.names, job)
    name = begun.name
    if begun.did == "keep":
        order.console.log(f"{name}: this very job was there already; nothing was created")
    if not wait:
        status = training_job.status_of(order.cloud, name)
        document = {"job": name, "did": begun.did, "status": status}
        order.console.result(document, f"{name}: {status}. {_farewell(name)}")
        return
    try:
        found = training_job.follow(order.cloud, name, order.console.log)
    except KeyboardInterrupt:
        order.console.log(f"\n{name} goes on in AWS. {_farewell(name)}")
        raise
    metrics = {item["MetricName"]: item["Value"] for item in found.get("FinalMetricDataList", ())}
    artifacts = found["ModelArtifacts"]["S3ModelArtifacts"]
    order.console.result(
        {
            "job": name,
            "did": begun.did,
            "status": found["TrainingJobStatus"],
            "artifacts": artifacts,
            "metrics": metrics,
            "billable_seconds": found.get("BillableTimeInSeconds"),
        },
        f"{name}: finished; the bundle is {artifacts}\n"
        + "".join(f"  {metric} {value:.4f}\n" for metric, value in metrics.items())
        + f"Serve it with: chestxray aws deploy {name}",
    )


def _hyperparameters(
    changes: Mapping[str, Any], size: tuple[int, int] | None, split_seed: int, checkpoint_every: float
) -> dict[str, str]:
    """What the job is told, by the names that the original work used."""
    given = {name.replace("_", "-"): f"{value}" for name, value in changes.items() if value is not None}
    shape = {"size": f"{size[0]}x{size[1]}"} if size else {}
    return given | shape | {"split-seed": f"{split_seed}", "checkpoint-every": f"{checkpoint_every}"}


def _farewell(name: str) -> str:
    return (
        f'The same command follows it; "chestxray aws status" lists it; "aws sagemaker stop-training-job '
        f'--training-job-name {name}" stops it.'
    )
