"""The group "chestxray aws": the pipeline's verbs on AWS, in its order."""

from __future__ import annotations

from typing import Final

import click

from chestxray.cli.aws_account import destroy, status
from chestxray.cli.aws_hosting import deploy, validate
from chestxray.cli.aws_storage import upload
from chestxray.cli.aws_training import train
from chestxray.cli.aws_website import website

# A verb is written in a file beside this one (cli/aws_*.py) and takes its place in this row.
VERBS: Final[tuple[click.Command, ...]] = (upload, train, deploy, validate, website, status, destroy)


class _InOrder(click.Group):
    """Lists the verbs in the order in which they were added."""

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002 - click's signature
        """Names of the verbs."""
        return list(self.commands)


@click.group(cls=_InOrder)
def aws() -> None:
    """Train, deploy, validate and serve on AWS, and remove it all again.

    Each verb says what it will create and what that costs before it does; --dry-run stops there. Each may be
    repeated: it goes on where it stood. Credentials are found as the AWS tools find them.
    """


for verb in VERBS:
    aws.add_command(verb)
