"""The verb that puts page and API on AWS: website."""

from __future__ import annotations

from pathlib import Path

import click

from chestxray.cli.aws_options import Order, aws_options
from chestxray.cli.options import BUNDLE_VARIABLE, PATH
from chestxray.inference.bundle import DEFAULT, folder_of
from chestxray.schema import NOTICE


@click.command()
@click.option(
    "--access",
    type=click.Choice(["key", "iam", "open"]),
    required=True,
    help="Who may ask: holders of a key; signed requests (the page itself cannot sign); anybody.",
)
@click.option("--api-keys", type=PATH, help='File of "SHA-256 NAME" lines ("chestxray key NAME" makes one).')
@click.option("--inline", is_flag=True, help="Put the model into the function: no endpoint, no idle cost.")
@click.option(
    "--bundle",
    metavar="FOLDER|NAME",
    envvar=BUNDLE_VARIABLE,
    default=DEFAULT,
    show_default=True,
    help="With --inline: the bundle to judge with.",
)
@click.option("--email", default="", help="Who is told when the account's costs reach the budget. [default: nobody]")
@click.option("--budget", type=click.IntRange(1), default=20, show_default=True, help="Dollars a month.")
@click.option("--rate", type=click.IntRange(1, 1000), default=10, show_default=True, help="Requests a second.")
@aws_options
def website(
    order: Order,
    bundle: str,
    access: str,
    api_keys: Path | None,
    inline: bool,  # noqa: FBT001 - click passes it by name
    email: str,
    budget: int,
    rate: int,
) -> None:
    """Put the page and the API on AWS, before the endpoint of this deployment or with the model inside.

    Makes or updates one CloudFormation stack: a distribution that serves page and API under one address, a private
    bucket, an HTTP API, a function, its role and logs, a budget alarm with --email. The page
    describes the bundle that the endpoint runs.
    """
    from chestxray.aws import stacks
    from chestxray.aws.website import WebsiteSettings, judge_of, publish, website_plan
    from chestxray.serving.security import KeyRing

    entries = ""
    if api_keys is not None:
        entries = ",".join(f"{digest} {name}" for name, digest in KeyRing.gather(api_keys).hashes.items())
    settings = WebsiteSettings(access, inline, entries, email, budget, rate)
    there = stacks.describe(order.cloud, order.names.website_stack) is not None
    if not order.go_ahead(website_plan(order.names, settings, there)):
        return
    with judge_of(order.cloud, order.names, folder_of(bundle) if inline else None) as judge:
        made = publish(order.cloud, order.names, settings, judge, order.console.log)
    order.console.result(made, f"The page: {made.address}\nThe API:  {made.api}\n{NOTICE}")
