"""Options that every verb of "chestxray aws" has, and how a verb tells its plan."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import wraps
from typing import TYPE_CHECKING, Any, Final

import click

from chestxray.aws.session import DEFAULT, ENDPOINT_VARIABLE, cloud_errors, connect
from chestxray.cli.console import Console
from chestxray.cli.options import json_option

if TYPE_CHECKING:
    from chestxray.aws.plan import Plan
    from chestxray.aws.session import Cloud, Names

DEPLOYMENT_VARIABLE: Final = "CHESTXRAY_DEPLOYMENT"
CANCELLED: Final = "Nothing was done (--dry-run)."

Command = Callable[..., Any]


@dataclass(frozen=True)
class Order:
    """What a verb of "chestxray aws" is given beside its own options.

    Attributes:
        console: where it prints.
        cloud: the account and region.
        names: what the deployment's resources are called there.
        dry_run: tell the plan and do nothing.
    """

    console: Console
    cloud: Cloud
    names: Names
    dry_run: bool

    def go_ahead(self, plan: Plan) -> bool:
        """Tell the plan; False with --dry-run, after which the verb has nothing more to say."""
        if self.dry_run:
            self.console.result({"dry_run": True, "plan": plan.document()}, f"{plan.text()}\n{CANCELLED}")
        elif not self.console.as_json:
            self.console.log(plan.text())
        return not self.dry_run


def aws_options(command: Command) -> Command:
    """Add the shared options; the command's first argument is an Order, and what boto3 raises is translated."""

    @click.option("--region", metavar="NAME", help="AWS region. [default: AWS_REGION, or the profile's]")
    @click.option(
        "--profile", metavar="NAME", help="Profile of your AWS configuration. [default: AWS_PROFILE, or none]"
    )
    @click.option(
        "--deployment",
        metavar="NAME",
        default=DEFAULT,
        envvar=DEPLOYMENT_VARIABLE,
        show_default=True,
        help="The word that all names and tags are made of; another word is another deployment.",
    )
    @click.option(
        "--endpoint-url",
        metavar="URL",
        expose_value=False,
        callback=_use_endpoint,
        help="A server that speaks AWS's protocols, where it is not Amazon's.",
    )
    @click.option("--dry-run", is_flag=True, help="Show what would be created and what it would cost, and stop.")
    @json_option
    @wraps(command)
    def with_order(
        console: Console,
        *args: Any,
        region: str | None,
        profile: str | None,
        deployment: str,
        dry_run: bool,
        **kwargs: Any,
    ) -> Any:
        cloud = connect(region, profile)
        try:
            with cloud_errors(f"chestxray aws {click.get_current_context().info_name}"):
                return command(Order(console, cloud, cloud.names(deployment), dry_run), *args, **kwargs)
        finally:
            cloud.close()

    return with_order


def _use_endpoint(_ctx: click.Context, _param: click.Parameter, given: str | None) -> None:
    if given:
        os.environ[ENDPOINT_VARIABLE] = given
