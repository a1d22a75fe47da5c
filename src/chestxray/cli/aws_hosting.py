"""The verbs that serve a bundle on AWS, and measure it there: deploy, validate."""

from __future__ import annotations

import dataclasses
import os
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

import click

from chestxray.cli.aws_options import Order, aws_options
from chestxray.cli.evaluate import assessment_text, command_line
from chestxray.cli.options import out_option, workers_option
from chestxray.errors import UsageError

_DONE: Final = {
    "create": "answers",
    "update": "was changed and answers",
    "keep": "was there already and answers; nothing was created",
}


@click.command()
@click.argument("source", metavar="JOB|BUNDLE")
@click.option("--serverless", is_flag=True, help="Pay by the film, nothing while idle; the default.")
@click.option("--instance", metavar="TYPE", help="On an instance of its own, for instance ml.m5.large.")
@click.option(
    "--ttl", default="4h", show_default=True, help='After which AWS deletes it by itself: 90m, 4h, 2d, or "never".'
)
@click.option("--image", metavar="ADDRESS", help="An image in your registry. [default: built in AWS from this code]")
@aws_options
def deploy(
    order: Order,
    source: str,
    serverless: bool,  # noqa: FBT001 - click passes it by name
    instance: str | None,
    ttl: str,
    image: str | None,
) -> None:
    """Put a bundle behind an endpoint: that of a training job, or of a folder here.

    The first time, the image that serves it is built in AWS. The endpoint is deleted by a schedule of AWS's own
    after --ttl, with all that belongs to it, whatever becomes of this machine. The same command again sets that
    time anew.
    """
    from chestxray.aws import build, endpoint
    from chestxray.aws.expiry import parse_ttl
    from chestxray.aws.model import weights_of
    from chestxray.aws.plan import Plan

    if serverless and instance:
        raise UsageError("--serverless and --instance contradict each other. Give one of them")
    cloud, names, log = order.cloud, order.names, order.console.log
    lifetime = parse_ttl(ttl)
    hosting = endpoint.Hosting(instance or "")
    weights = weights_of(cloud, names, source)
    address = image or build.image_address(names, build.image_tag(build.context()))
    served = endpoint.served_as(names, weights, address, hosting)
    images = () if image else build.plan_of_image(cloud, names)
    if not order.go_ahead(Plan("deploy", (*images, *endpoint.plan_items(names, served, hosting, lifetime)))):
        return
    if not image:
        build.ensure_image(cloud, names, log)
    end = None if lifetime is None else datetime.now(UTC).replace(microsecond=0) + lifetime
    did = endpoint.deploy(cloud, names, weights, address, hosting, end, log)
    until = f"until {end:%Y-%m-%d %H:%M} UTC" if end else 'until "chestxray aws destroy"'
    order.console.result(
        {**dataclasses.asdict(served), "did": did, "image": address, "end": end.isoformat() if end else None},
        f"{served.endpoint}: {_DONE[did]}, {until}\n"
        "Validate it with: chestxray aws validate s3://bucket/prefix/test --out report",
    )


@click.command()
@click.argument("address", metavar="s3://BUCKET/PREFIX")
@out_option("The folder for the report (HTML, JSON, CSV, figures).", folder=True)
@click.option("--model", metavar="JOB|BUNDLE", help="What to validate. [default: what is deployed]")
@click.option("--image", metavar="ADDRESS", help="With --model: an image in your registry. [default: built in AWS]")
@click.option("--instance", default="ml.m5.large", show_default=True, help="Type of the one instance.")
@workers_option
@aws_options
def validate(
    order: Order,
    address: str,
    out: Path,
    model: str | None,
    image: str | None,
    instance: str,
    workers: int | None,
) -> None:
    """Measure the deployed model on films in S3, by a batch transform.

    The same report as "chestxray evaluate": films are cleaned here as there, labels are read from their keys, and
    each figure has its count and its interval.
    """
    from chestxray.aws import build, prices, transform
    from chestxray.aws.endpoint import deployed_model
    from chestxray.aws.model import ensure_model, model_name, weights_of
    from chestxray.aws.plan import Item, Plan
    from chestxray.aws.roles import ensure_execution_role
    from chestxray.aws.storage import ensure_bucket
    from chestxray.data.clean import clean
    from chestxray.data.collect import films_of
    from chestxray.data.sources import split_address
    from chestxray.evaluation.evaluate import EvaluationSettings, evaluate_table

    cloud, names, log = order.cloud, order.names, order.console.log
    weights = weights_of(cloud, names, model) if model else None
    image_address = image or build.image_address(names, build.image_tag(build.context()))
    name = model_name(names, weights, image_address) if weights else deployed_model(cloud, names)
    wanted = transform.prepare(cloud, names, address, name, instance)
    note = f"of {wanted.films:,} films on {instance}, while it runs"
    items = (
        Item("bucket", names.bucket, note="kept where it is there", does="ensure"),
        Item("role", names.role("sagemaker"), note="reads these films, works in that bucket", does="ensure"),
        *(build.plan_of_image(cloud, names) if weights and not image else ()),
        Item("model", name, does="ensure"),
        Item("transform job", wanted.stem, hourly=prices.instance_hours(instance), note=note),
    )
    if not order.go_ahead(Plan("validate", items)):
        return
    if weights:
        if not image:
            build.ensure_image(cloud, names, log)
        ensure_model(cloud, names, weights, image_address)
    ensure_bucket(cloud, names)
    ensure_execution_role(cloud, names, split_address(address)[0])
    transformed = transform.run(cloud, names, wanted, log)
    _use_the_same_profile()
    with order.console.progress("Cleaning") as move:
        films = clean([dataclasses.replace(film, split="") for film in films_of(address)], move, workers)
    out.mkdir(parents=True, exist_ok=True)
    table = out.with_name(f"{out.name}.scores.csv")
    threshold = transform.write_scores(films, transformed, table)
    assessment = evaluate_table(table, out, EvaluationSettings(threshold=threshold, command=command_line()))
    order.console.result(
        {
            "job": transformed.job,
            "did": transformed.did,
            "scores": table,
            "report": out / "index.html",
            "assessment": assessment.to_json(),
        },
        f"{assessment_text(assessment)}\nscores: {table}\nreport: {out / 'index.html'}",
    )


def _use_the_same_profile() -> None:
    """Films are read from S3 by processes of their own, which know the environment only."""
    given = click.get_current_context().params.get("profile")
    if given:
        os.environ["AWS_PROFILE"] = given
