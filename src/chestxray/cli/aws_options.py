"""Options of every command of "chestxray aws", and how a command shows its plan."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, wraps
from typing import TYPE_CHECKING, Any, Final

import click
from click.core import ParameterSource

from chestxray.aws.session import DEFAULT, ENDPOINT_VARIABLE, Rules, cloud_errors, connect
from chestxray.cli.console import Console
from chestxray.cli.options import json_option
from chestxray.errors import UsageError

if TYPE_CHECKING:
    from chestxray.aws.plan import Plan
    from chestxray.aws.session import Cloud, Names

DEPLOYMENT_VARIABLE: Final = "CHESTXRAY_DEPLOYMENT"
CANCELLED: Final = "Nothing was done (--dry-run)."

Command = Callable[..., Any]


@dataclass(frozen=True)
class AwsContext:
    """What a command of "chestxray aws" receives beside its own options.

    Attributes:
        console: where the command prints.
        reach: finds the account and region, when they are first needed.
        deployment: the word that all names are made of.
        dry_run: show the plan and do nothing.
    """

    console: Console
    reach: Callable[[], Cloud]
    deployment: str
    dry_run: bool

    @cached_property
    def cloud(self) -> Cloud:
        """The account and region. Raises: CloudError, UsageError."""
        return self.reach()

    @cached_property
    def names(self) -> Names:
        """What the deployment's resources are called there. Raises: UsageError."""
        return self.cloud.names(self.deployment)

    def close(self) -> None:
        """Close the connections, if there are any."""
        if "cloud" in vars(self):
            self.cloud.close()

    def go_ahead(self, plan: Plan) -> bool:
        """Show the plan; return False with --dry-run, after which the command ends."""
        if self.dry_run:
            self.console.result({"dry_run": True, "plan": plan.document()}, f"{plan.text()}\n{CANCELLED}")
        elif not self.console.as_json:
            self.console.log(plan.text())
        return not self.dry_run


def _use_endpoint(_ctx: click.Context, _param: click.Parameter, given: str | None) -> None:
    if given:
        os.environ[ENDPOINT_VARIABLE] = given


_SHARED: Final = (
    click.option("--region", metavar="NAME", help="AWS region. [default: AWS_REGION, or the profile's]"),
    click.option(
        "--profile", metavar="NAME", help="Profile of your AWS configuration. [default: AWS_PROFILE, or none]"
    ),
    click.option(
        "--deployment",
        metavar="NAME",
        default=DEFAULT,
        envvar=DEPLOYMENT_VARIABLE,
        show_default=True,
        help="The word that all names and tags are made of; another word is another deployment.",
    ),
    click.option(
        "--endpoint-url",
        metavar="URL",
        expose_value=False,
        callback=_use_endpoint,
        help="A server that speaks AWS's protocols, where it is not Amazon's.",
    ),
    click.option(
        "--bucket-owner",
        "bucket_owners",
        multiple=True,
        metavar="BUCKET=ACCOUNT",
        help="Whose a bucket is that is not this account's; S3 refuses every other. Repeat it for several.",
    ),
    click.option("--dry-run", is_flag=True, help="Show what would be created and what it would cost, and stop."),
)


def aws_options(command: Command) -> Command:
    """Add the shared options; the command's first argument is an AwsContext, and boto3's errors are translated."""

    @json_option
    @wraps(command)
    def with_context(
        console: Console,
        *args: Any,
        region: str | None,
        profile: str | None,
        deployment: str,
        dry_run: bool,
        bucket_owners: tuple[str, ...],
        **kwargs: Any,
    ) -> Any:
        given = {field: kwargs.pop(field) for field in RULES if field in kwargs}
        rules = Rules(**given, owners=_owners(bucket_owners))
        context = AwsContext(console, lambda: connect(region, profile, rules), deployment, dry_run)
        try:
            with cloud_errors(f"chestxray aws {click.get_current_context().info_name}"):
                return command(context, *args, **kwargs)
        finally:
            context.close()

    for option in reversed(_SHARED):
        with_context = option(with_context)
    return with_context


def is_typed(parameter: str) -> bool:
    """Check whether an option stands on the command line; its value may as well be a default or a variable's."""
    return click.get_current_context().get_parameter_source(parameter) is ParameterSource.COMMANDLINE


RULES: Final = ("role", "boundary", "kms_key", "subnets", "security_groups")  # options that are fields of Rules


def boundary_option(command: Command) -> Command:
    """Add --permissions-boundary."""
    return click.option(
        "--permissions-boundary",
        "boundary",
        metavar="ARN",
        default="",
        help="The policy that bounds the roles that are made. [default: none]",
    )(command)


def rules_options(command: Command) -> Command:
    """Add an account's rules for jobs and endpoints: an own role, a boundary, a key, a network."""
    for option in (
        click.option(
            "--role",
            metavar="ARN",
            default="",
            help='A role of your own to run as, or "caller": the notebook\'s. [default: one is made]',
        ),
        boundary_option,
        click.option(
            "--kms-key", metavar="ARN", default="", help="The key to encrypt volumes, outputs and our bucket with."
        ),
        click.option("--subnet", "subnets", multiple=True, metavar="ID", help="Of the VPC to run in; repeat it."),
        click.option(
            "--security-group", "security_groups", multiple=True, metavar="ID", help="For --subnet; repeat it."
        ),
    ):
        command = option(command)
    return command


def template_option(name: str) -> Callable[[Command], Command]:
    """Add --template, which prints one of ``stacks.TEMPLATES`` and ends, without an account."""

    def tell(ctx: click.Context, _param: click.Parameter, given: bool) -> None:  # noqa: FBT001 - click's signature
        if given:
            from chestxray.aws.stacks import template

            click.echo(template(name), nl=False)
            ctx.exit()

    what = f"Print the CloudFormation template of the {name} and do nothing: for CDK, SAM or Terraform."
    return click.option("--template", is_flag=True, is_eager=True, expose_value=False, callback=tell, help=what)


def _owners(given: tuple[str, ...]) -> dict[str, str]:
    """Return the owners of buckets. Raises: UsageError."""
    pairs = [one.rpartition("=")[::2] for one in given]
    for (bucket, account), text in zip(pairs, given, strict=True):
        if not bucket or not account:
            raise UsageError(f"--bucket-owner {text}: write it as hospital=123456789012, the account behind the bucket")
    return dict(pairs)
