"""The group "chestxray aws", and its verbs upload, website, status and destroy."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from chestxray.aws.session import DEPLOYMENT_TAG
from chestxray.cli.aws_models import deploy, train, validate
from chestxray.cli.options import (
    BUNDLE_VARIABLE,
    PATH,
    AwsContext,
    InOrder,
    aws_options,
    boundary_option,
    columns,
    complete_bundle,
    is_typed,
    rules_options,
    table,
    template_option,
)
from chestxray.errors import UsageError
from chestxray.files import json_values
from chestxray.inference.bundle import DEFAULT, folder_of
from chestxray.schema import NOTICE

if TYPE_CHECKING:
    from collections.abc import Sequence

    from chestxray.aws.teardown import Found


@click.command()
@click.argument("data", type=PATH)
@click.argument("address", metavar="s3://BUCKET/PREFIX")
@aws_options
def upload(context: AwsContext, data: Path, address: str) -> None:
    """Upload new and changed films to S3, several at once.

    S3 checks the SHA-256 of every file; later runs compare it. After a stop, the same command resumes. Objects
    without a file in DATA are not changed.
    """
    from chestxray.aws import storage
    from chestxray.data.sources import split_address

    storage.check_order(data, address)
    creates = storage.check_bucket(context.cloud, context.names, address)
    with context.console.progress("Comparing") as move:
        comparison = (
            storage.without_bucket(data, address)
            if creates
            else storage.upload_diff(context.cloud, data, address, move)
        )
    if not context.go_ahead(storage.upload_plan(comparison, creates=creates)):
        return
    if split_address(address)[0] == context.names.bucket:
        # also completes a bucket that an earlier attempt left unfinished
        storage.ensure_bucket(context.cloud, context.names)
    with context.console.progress("Sending") as move:
        storage.send(context.cloud, comparison, move)
    sent, same = len(comparison.to_send), len(comparison.same)
    document = {"address": address, "sent": sent, "bytes": comparison.bytes_to_send, "same": same}
    others = f"; {comparison.others:,} further objects were left alone" if comparison.others else ""
    context.console.result(
        document | {"others": comparison.others},
        f"{address}: {sent:,} files sent ({comparison.bytes_to_send / 1e6:,.1f} MB), {same:,} were there{others}",
    )


@click.command()
@click.option(
    "--access",
    type=click.Choice(["key", "iam", "open"]),
    required=True,
    help="Who may call: holders of a key; signed requests (the page itself cannot sign); anybody.",
)
@click.option("--api-keys", type=PATH, help='File of "SHA-256 NAME" lines ("chestxray key NAME" makes one).')
@click.option(
    "--inline", is_flag=True, help="Put the model into the function, without an endpoint and without idle cost."
)
@click.option(
    "--bundle",
    metavar="FOLDER|NAME",
    envvar=BUNDLE_VARIABLE,
    default=DEFAULT,
    show_default=True,
    shell_complete=complete_bundle,
    help="With --inline: the bundle to use.",
)
@click.option(
    "--email", default="", help="Address for an alarm when the account's costs reach the budget. [default: none]"
)
@click.option("--budget", type=click.IntRange(1), default=20, show_default=True, help="Budget in dollars a month.")
@click.option("--rate", type=click.IntRange(1, 1000), default=10, show_default=True, help="Limit of requests a second.")
@click.option(
    "--origin",
    "origins",
    multiple=True,
    metavar="URL",
    help='Another origin whose page may call; repeatable; "*" for any.',
)
@click.option(
    "--rest-api",
    metavar="STAGE[/PATH]",
    default="",
    help="Also create a REST API (payload 1.0).",
)
@template_option("website")
@boundary_option
@aws_options
def website(
    context: AwsContext,
    bundle: str,
    access: str,
    api_keys: Path | None,
    inline: bool,
    email: str,
    budget: int,
    rate: int,
    origins: tuple[str, ...],
    rest_api: str,
) -> None:
    """Put the page and the API on AWS, in front of the endpoint of this deployment or with the model inside.

    Creates or updates one CloudFormation stack: a distribution that serves page and API under one domain, a private
    bucket, an HTTP API, a function, its role and logs, and with --email a budget alarm. The page
    describes the bundle of the endpoint.
    """
    from chestxray.aws import stacks
    from chestxray.aws.website import WebsiteSettings, publish, running_model, site_model, website_plan
    from chestxray.serving.security import KeyRing

    entries = ""
    if api_keys is not None:
        entries = ",".join(f"{digest} {name}" for name, digest in KeyRing.gather(api_keys).hashes.items())
    if is_typed("bundle") and not inline:
        raise UsageError("--bundle belongs to --inline: else the page is that of what the endpoint runs. Give both")
    if is_typed("budget") and not email:
        raise UsageError("--budget belongs to --email, which gets a message when it is reached. Give both")
    settings = WebsiteSettings(access, inline, entries, email, budget, rate, origins, rest_api)
    there = stacks.describe_stack(context.cloud, context.names.website_stack) is not None
    if not inline:
        running_model(context.cloud, context.names)  # raises without an endpoint: the plan could not be carried out
    if not context.go_ahead(website_plan(context.names, settings, there)):
        return
    with site_model(context.cloud, context.names, folder_of(bundle) if inline else None) as behind:
        made = publish(context.cloud, context.names, settings, behind, context.console.log)
    rest = f"REST API: {made.rest}\n" if made.rest else ""
    context.console.result(made, f"The page: {made.address}\nThe API:  {made.api}\n{rest}{NOTICE}")


@click.command()
@click.option("--films", metavar="BUCKET", default="FILMS", help="The bucket of your films. [default: a placeholder]")
@click.option("--of-role", is_flag=True, help="Print the policy of a role for --role instead.")
@rules_options
@aws_options
def policy(context: AwsContext, films: str, of_role: bool) -> None:
    """Print the policy, in JSON, that the user of these commands needs in this account.

    Give it to the administrator of the account: "chestxray aws policy --films hospital > deployer.json".
    """
    from chestxray.aws.roles import deployer_policy, policy_of_own_role

    rules = context.cloud.rules
    click.echo(
        policy_of_own_role(context.names, films, rules) if of_role else deployer_policy(context.names, films, rules),
        nl=False,
    )


@click.command()
@click.option(
    "--films", metavar="BUCKET", default="", help="The bucket of your films. [default: only that of the deployment]"
)
@click.option(
    "--training", metavar="TYPE", default="ml.g4dn.xlarge", show_default=True, help="Instance type for training."
)
@click.option("--spot", is_flag=True, help="Use spare capacity, which has its own quota.")
@click.option(
    "--transform", metavar="TYPE", default="ml.m5.large", show_default=True, help="Instance type for validation."
)
@click.option("--hosting", metavar="TYPE", default="", help="Instance type of the endpoint. [default: serverless]")
@rules_options
@aws_options
def doctor(
    context: AwsContext,
    films: str,
    training: str,
    spot: bool,
    transform: str,
    hosting: str,
) -> None:
    """Check whether the account is ready: credentials, region, quotas, permissions, images. Changes nothing.

    Permissions are simulated by IAM itself. The exit status is 1 if something would fail. Checks without a result are
    reported, and do not change the exit status.
    """
    from chestxray.aws.doctor import Wanted, check_account

    found = list(check_account(context.cloud, context.names, Wanted(training, transform, hosting, films, spot)))
    marks = {True: "ok", False: "no", None: "?"}
    rows = [(marks[item.ok], item.name, item.finding) for item in found]
    context.console.result({"checks": found}, columns(rows))
    if any(item.ok is False for item in found):
        sys.exit(1)


@click.command()
@click.option("--cost", is_flag=True, help="Also show what each resource costs an hour.")
@aws_options
def status(context: AwsContext, cost: bool) -> None:
    """List everything of this deployment that exists in the account and region.

    The exit status is 1 if a list could not be read.
    """
    from chestxray.aws.plan import PRICES_AS_OF, PRICES_NOTICE, dollars
    from chestxray.aws.teardown import survey_account

    found = survey_account(context.cloud, context.names)
    lines = [*_foreign_lines(found.foreign)]
    lines += [_table(found.found, cost=cost)] if found.found else [f"{context.names.deployment}: nothing exists"]
    if cost:
        more = f", and what {', '.join(found.unpriced)} costs" if found.unpriced else ""
        lines += [f"together about {dollars(found.hourly)} an hour, used or not{more}", PRICES_NOTICE]
    lines += [f"Warning: {why}" for why in found.unknown]
    document = {
        "found": found.found,
        "foreign": found.foreign,
        "unknown": list(found.unknown),
    }
    costs = {"hourly": found.hourly, "unpriced": list(found.unpriced), "prices_as_of": PRICES_AS_OF} if cost else {}
    context.console.result(document | costs, "\n".join(lines))
    if found.unknown:
        sys.exit(1)


@click.command()
@click.option("--endpoint", is_flag=True, help="Only the endpoint, with its configuration, model and schedules.")
@click.option("--yes", is_flag=True, help="Do not ask for the deployment's name first.")
@click.option(
    "--keep-data", is_flag=True, help="Keep the deployment's bucket (bundles, scores) and the records of jobs."
)
@aws_options
def destroy(context: AwsContext, endpoint: bool, yes: bool, keep_data: bool) -> None:
    """Delete everything of this deployment, and check again until nothing of it is left.

    Lists what it will delete, and asks for the deployment's name. A resource with a matching name but without the
    deployment's tag belongs to somebody else: it is listed too, and not changed.

    Continues after a failure and reports it at the end; the exit status is 1 if something is left. Films in your own
    buckets are never touched. Finished transform jobs stay in AWS's lists, because AWS cannot delete them; they cost
    nothing.
    """
    from chestxray.aws import teardown

    data = not keep_data
    before = teardown.survey_account(context.cloud, context.names, data=data, endpoint=endpoint)
    for why in before.unknown:  # so that an empty plan is not taken for an empty account
        context.console.log(f"Warning: {why}")
    for line in _foreign_lines(before.foreign):
        context.console.log(line)
    if not context.go_ahead(teardown.plan(before.found)):
        sys.exit(1 if before.unknown else 0)
    if before.found and not yes:
        _ask_for_the_name(context)
    result = teardown.destroy(context.cloud, context.names, before, context.console.log, data=data, endpoint=endpoint)
    lines = [f"{len(result.removed):,} things are gone" if before.found else "nothing was there to remove"]
    lines += ["still there:", _table(result.left, cost=True)] if result.left else []
    lines += [f"Warning: {problem}" for problem in result.problems]
    lines += ["Looked again: nothing is left."] if result.is_clean else ["Repeat the command once that is mended."]
    context.console.result(json_values(result) | {"foreign": before.foreign}, "\n".join(lines))
    if not result.is_clean:
        sys.exit(1)


def _foreign_lines(foreign: Sequence[Found]) -> list[str]:
    return [
        f"Not of this deployment, left alone: {item.kind} {item.name} (it lacks the tag {DEPLOYMENT_TAG})"
        for item in foreign
    ]


def _ask_for_the_name(context: AwsContext) -> None:
    """Ask for the deployment's name. Raises: UsageError: it was not typed, or there is no terminal."""
    name = context.names.deployment
    if not sys.stdin.isatty():
        raise UsageError(
            f"destroy asks for the deployment's name, and there is no terminal to type it. Give --yes ({name})"
        )
    typed = click.prompt(f"Type {name} to remove all of this", default="", show_default=False, err=True)
    if typed.strip() != name:
        raise UsageError(f"{typed.strip()!r} is not {name}; nothing was removed")


def _table(found: Sequence[Found], *, cost: bool) -> str:
    from chestxray.aws.plan import dollars

    rows = [("what", "name", "state", *(["an hour"] if cost else []), "note")]
    rows += [(item.kind, item.name, item.state, *([dollars(item.hourly)] if cost else []), item.note) for item in found]
    return table(rows)


@click.group(cls=InOrder)
def aws() -> None:
    """Train, deploy, validate and serve on AWS, and delete everything again.

    Each command first shows what it will create and its cost; --dry-run stops there. Repeat a command to resume
    it. Credentials are found as by the AWS tools.
    """


for command in (doctor, policy, upload, train, deploy, validate, website, status, destroy):
    aws.add_command(command)
