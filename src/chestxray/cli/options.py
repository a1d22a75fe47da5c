"""Options that several commands share, and their output: progress, text for people, one JSON document for machines.

The second half serves the commands of "chestxray aws": their options, and how they show a plan.
"""

from __future__ import annotations

import json
import os
import re
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property, wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click
from click.core import ParameterSource
from click.shell_completion import CompletionItem

from chestxray.aws.session import AWS_ENDPOINT_VARIABLE, DEFAULT_DEPLOYMENT, Rules, cloud_errors, connect
from chestxray.data.sources import S3_ENDPOINT_VARIABLE
from chestxray.errors import ChestXrayError, UsageError
from chestxray.files import json_values
from chestxray.inference.bundle import DEFAULT, folder_of, shipped_bundles
from chestxray.text import printable

if TYPE_CHECKING:
    from chestxray.aws.plan import Plan
    from chestxray.aws.session import Cloud, Names

CLEAR_LINE: Final = "\r\x1b[K"  # a logged line replaces the bar's line; the bar is drawn again below it
BAR_CELLS: Final = 30
BAR_EVERY_S: Final = 0.1  # seconds between two drawings of the bar
PLAIN_EVERY_S: Final = 5.0  # seconds between lines of progress without a terminal


class Console:
    """Output of one command: its result on standard output, everything else on standard error."""

    def __init__(self, *, as_json: bool) -> None:
        self.as_json = as_json
        self._bar_is_drawn = False

    def log(self, line: str) -> None:
        """Log what is going on, on a line of its own."""
        line = printable(line)
        click.echo(f"{CLEAR_LINE}{line}" if self._bar_is_drawn else line, err=True)

    def result(self, document: Any, text: str) -> None:
        """Print the result: the document for machines or the text for people, never both."""
        click.echo(json.dumps(json_values(document), indent=2) if self.as_json else printable(text))

    @contextmanager
    def progress(self, label: str) -> Iterator[Callable[[int, int], None]]:
        """Yield the callback that moves a bar on a terminal, or prints lines elsewhere, with the rate.

        The rate counts from the first call, so work that was done before does not make it look faster; it starts again
        when the count does, as with every epoch.
        """
        on_terminal = sys.stderr.isatty()
        every = BAR_EVERY_S if on_terminal else PLAIN_EVERY_S
        last = time.monotonic()
        began: tuple[float, int] | None = None
        before = 0

        def move(done: int, total: int) -> None:
            nonlocal last, began, before
            now = time.monotonic()
            if began is None or done < before:
                began = (now, done)
            before = done
            if now - last < every:
                return
            last = now
            rate = _rate(done - began[1], now - began[0])
            if on_terminal:
                self._bar_is_drawn = True
                filled = round(BAR_CELLS * done / max(total, 1))
                bar = "#" * filled + "-" * (BAR_CELLS - filled)
                click.echo(f"{CLEAR_LINE}{label} [{bar}] {done:,} of {total:,}{rate}", err=True, nl=False)
            else:
                self.log(f"{label}: {done:,} of {total:,}{rate}")

        try:
            yield move
        finally:
            if self._bar_is_drawn:
                click.echo(CLEAR_LINE, err=True, nl=False)
                self._bar_is_drawn = False


def _rate(count: int, seconds: float) -> str:
    if not count or seconds <= 0.0:
        return ""
    return f", {count / seconds:,.0f} a second" if count > seconds else f", {seconds / count:,.1f} s each"


def columns(rows: Sequence[tuple[str, ...]]) -> str:
    """Format rows of text as columns, all flush left."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join("  ".join(map(str.ljust, row, widths)).rstrip() for row in rows)


def table(rows: Sequence[tuple[str, ...]]) -> str:
    """Format rows as columns: the first flush left, the others flush right. The first row is the header."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = [
        "  ".join(
            [row[0].ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True))]
        )
        for row in rows
    ]
    return "\n".join(line.rstrip() for line in lines)


BUNDLE_VARIABLE: Final = "CHESTXRAY_BUNDLE"
REQUIRE_AGE_VARIABLE: Final = "CHESTXRAY_REQUIRE_AGE"


class _Path(click.Path):
    """A path that is not empty: ``Path("")`` is the current folder, which nobody means by an unset variable."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if value == "":
            self.fail("the path is empty. Give a name, or . for the current folder", param, ctx)
        return super().convert(value, param, ctx)


FILE: Final = _Path(path_type=Path, dir_okay=False)
FOLDER: Final = _Path(path_type=Path, file_okay=False)
PATH: Final = _Path(path_type=Path)

Command = Callable[..., Any]
Completer = Callable[[click.Context, click.Parameter, str], list[CompletionItem]]

# --------------------------------------------------------------------------- completion


def _completer(names: Callable[[click.Context], Iterable[str]], beside: str = "") -> Completer:
    """Return a completer of names, and of files ("file") or folders ("dir") if an option accepts these too."""

    def complete(ctx: click.Context, _param: click.Parameter, begun: str) -> list[CompletionItem]:
        paths = [CompletionItem(begun, type=beside)] if beside else []
        return paths + [CompletionItem(name) for name in names(ctx) if name.startswith(begun)]

    return complete


def _recipes(_ctx: click.Context) -> Iterable[str]:
    from chestxray.training.config import shipped_recipes

    return shipped_recipes()


def _networks(_ctx: click.Context) -> Iterable[str]:
    from chestxray.training.config import NETWORK_NAMES

    return NETWORK_NAMES


def _points(ctx: click.Context) -> Iterable[str]:
    """Return the operating points of the bundle on the command line, or of the default bundle."""
    from chestxray.inference.bundle import Bundle

    try:
        return [
            point.name for point in Bundle.open(folder_of(ctx.params.get("bundle") or DEFAULT)).info.operating_points
        ]
    except ChestXrayError:  # the bundle's name is not complete yet
        return []


complete_bundle: Final = _completer(lambda _ctx: shipped_bundles(), "dir")
complete_recipe: Final = _completer(_recipes, "file")
complete_network: Final = _completer(_networks)
complete_device: Final = _completer(lambda _ctx: ("auto", "cpu", "cuda"))
complete_point: Final = _completer(_points)

# --------------------------------------------------------------------------- options


def json_option(command: Command) -> Command:
    """Add --json; the command receives a Console as its first argument."""

    @click.option("--json", "as_json", is_flag=True, help="Print one JSON document instead of text.")
    @wraps(command)
    def with_console(*args: Any, as_json: bool, **kwargs: Any) -> Any:
        return command(Console(as_json=as_json), *args, **kwargs)

    return with_console


def out_option(what: str, *, folder: bool) -> Callable[[Command], Command]:
    """Add a required --out."""
    return click.option("--out", required=True, type=FOLDER if folder else FILE, help=what)


def _found_bundle(ctx: click.Context, _param: click.Parameter, given: str) -> Path:
    return Path(given) if ctx.resilient_parsing else folder_of(given)


# The command receives the folder that was found.
bundle_option: Final = click.option(
    "--bundle",
    metavar="FOLDER|NAME",
    default=DEFAULT,
    envvar=BUNDLE_VARIABLE,
    show_default=f"${BUNDLE_VARIABLE}, else {DEFAULT}",
    callback=_found_bundle,
    shell_complete=complete_bundle,
    help="The bundle to use: a folder, or the name of a bundle of this package.",
)


verify_key_option: Final = click.option(
    "--verify-key",
    type=FILE,
    help='Public key that must have signed the bundle ("chestxray sign"). Default: CHESTXRAY_VERIFY_KEY.',
)


operating_point_option: Final = click.option(
    "--operating-point",
    default=None,
    shell_complete=complete_point,
    help="Name of an operating point of the bundle. [default: the bundle's]",
)


require_age_option: Final = click.option(
    "--require-age",
    is_flag=True,
    envvar=REQUIRE_AGE_VARIABLE,
    help='Refuse films whose file states no age (JPEG and PNG never do). By default the result has the note "age '
    f'not stated". [env var: {REQUIRE_AGE_VARIABLE}]',
)


class Size(click.ParamType[tuple[int, int]]):
    """HEIGHTxWIDTH in pixels."""

    name = "HEIGHTxWIDTH"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[int, int]:
        """Read what the user typed."""
        if isinstance(value, tuple):
            return value
        match = re.fullmatch(r"(\d{2,4})x(\d{2,4})", str(value))
        if match is None:
            self.fail(f"{value!r} is not a size; write it as 112x160 (height x width)", param, ctx)
        return int(match[1]), int(match[2])


class InOrder(click.Group):
    """A group that lists its commands in the order in which they were added: the pipeline's."""

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002 - click's signature
        """Return the names of the commands."""
        return list(self.commands)


def collect_options(command: Command) -> Command:
    """Add --label, --columns, --root and --patient-pattern; the command receives ``settings``."""

    @click.option(
        "--label",
        "labels",
        metavar="WORD=LABEL",
        multiple=True,
        help='Meaning of a folder name or of a word in a table: "sick=pneumonia", "well=normal", "other=none"; '
        "repeatable.",
    )
    @click.option(
        "--columns",
        metavar="ROLE=COLUMN,...",
        multiple=True,
        help="Columns of a table for path, label, patient_id, split and cause; an empty name ignores that role.",
    )
    @click.option(
        "--root",
        type=FOLDER,
        default=None,
        help="Folder that the paths of a table are relative to. [default: that of the table]",
    )
    @click.option(
        "--patient-pattern",
        metavar="REGEX",
        default="",
        help='Pattern that finds the patient in a film\'s path, for example "patient(\\d+)".',
    )
    @wraps(command)
    def with_settings(
        *args: Any,
        labels: tuple[str, ...],
        columns: tuple[str, ...],
        root: Path | None,
        patient_pattern: str,
        **kwargs: Any,
    ) -> Any:
        from chestxray.data.collect import CollectSettings

        return command(*args, settings=CollectSettings(labels, columns, root, patient_pattern), **kwargs)

    return with_settings


workers_option: Final = click.option(
    "--workers",
    type=click.IntRange(1, 1024),
    default=None,
    help="Worker processes that read films. [default: one for each core]",
)


def engine_option(what: str) -> Callable[[Command], Command]:
    """Add --engine; ``what`` starts its help, as in "Where films are classified"."""
    return click.option(
        "--engine",
        type=click.Choice(["local", "ray"]),
        default="local",
        show_default=True,
        help=f"{what}: processes of this machine, or Ray (extra ray), on the cluster of $RAY_ADDRESS if set.",
    )


refuse_option: Final = click.option(
    "--refuse",
    metavar="[WORDS=]SOURCE",
    multiple=True,
    help="Pictures that the bundle must refuse (a folder, an archive or a table), and their name in refusals, "
    'as in "an adult\'s film=archive/adults.csv"; repeatable.',
)


_RECIPE_FIELDS: Final[tuple[tuple[str, type, str], ...]] = (
    ("--epochs", int, "Passes over the training films."),
    ("--batch-size", int, "Films in each step."),
    ("--learning-rate", float, "The highest learning rate."),
    ("--seed", int, "Random seed of weights, order, augmentation and dropout."),
)


def recipe_options(command: Command) -> Command:
    """Add --network, --recipe and the fields of a recipe that people change most."""
    for name, kind, what in reversed(_RECIPE_FIELDS):
        command = click.option(name, type=kind, default=None, help=f"{what} [default: the recipe's]")(command)
    command = click.option(
        "--recipe",
        default="default",
        show_default=True,
        shell_complete=complete_recipe,
        help="default, default-distilled, small, distilled, transfer, original, or a TOML file.",
    )(command)
    return click.option(
        "--network", default=None, shell_complete=complete_network, help="Name of a network. [default: the recipe's]"
    )(command)


device_option: Final = click.option(
    "--device",
    default="auto",
    show_default=True,
    shell_complete=complete_device,
    help="Device to compute on: auto, cpu or cuda.",
)


def _sets(variable: str) -> Callable[[click.Context, click.Parameter, str | None], None]:
    """Return a callback that sets an environment variable to the option's value, if one is given."""

    def callback(_ctx: click.Context, _param: click.Parameter, given: str | None) -> None:
        if given:
            os.environ[variable] = given

    return callback


# Passed on in the environment, which worker processes inherit.
endpoint_option: Final = click.option(
    "--endpoint-url",
    metavar="URL",
    default=None,
    expose_value=False,
    callback=_sets(S3_ENDPOINT_VARIABLE),
    help="URL of the S3 store for s3:// films, if it is not Amazon S3.",
)


# --------------------------------------------------------------------------- "chestxray aws"

DEPLOYMENT_VARIABLE: Final = "CHESTXRAY_DEPLOYMENT"
CANCELLED: Final = "Nothing was done (--dry-run)."


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


_SHARED: Final = (
    click.option("--region", metavar="NAME", help="AWS region. [default: AWS_REGION, or the profile's]"),
    click.option(
        "--profile", metavar="NAME", help="Profile of your AWS configuration. [default: AWS_PROFILE, or none]"
    ),
    click.option(
        "--deployment",
        metavar="NAME",
        default=DEFAULT_DEPLOYMENT,
        envvar=DEPLOYMENT_VARIABLE,
        show_default=True,
        help="Name of the deployment, part of all resource names and tags.",
    ),
    click.option(
        "--endpoint-url",
        metavar="URL",
        expose_value=False,
        callback=_sets(AWS_ENDPOINT_VARIABLE),
        help="URL of a server with AWS's protocols, if it is not Amazon's.",
    ),
    click.option(
        "--bucket-owner",
        "bucket_owners",
        multiple=True,
        metavar="BUCKET=ACCOUNT",
        help="Owner of a bucket of another account; S3 refuses any other owner; repeatable.",
    ),
    click.option("--dry-run", is_flag=True, help="Show what would be created and its cost, and stop."),
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
    """Check whether the user typed an option; otherwise its value is a default or an environment variable's."""
    return click.get_current_context().get_parameter_source(parameter) is ParameterSource.COMMANDLINE


RULES: Final = ("role", "boundary", "kms_key", "subnets", "security_groups")  # options that are fields of Rules


boundary_option: Final = click.option(
    "--permissions-boundary",
    "boundary",
    metavar="ARN",
    default="",
    help="Permissions boundary for all created roles. [default: none]",
)


def rules_options(command: Command) -> Command:
    """Add an account's rules for jobs and endpoints: an own role, a boundary, a key, a network."""
    for option in (
        click.option(
            "--role",
            metavar="ARN",
            default="",
            help='Existing role to use, or "caller" for the role of the notebook. [default: a new role]',
        ),
        boundary_option,
        click.option(
            "--kms-key",
            metavar="ARN",
            default="",
            help="Key that encrypts volumes, outputs and the deployment's bucket.",
        ),
        click.option(
            "--subnet", "subnets", multiple=True, metavar="ID", help="Subnet of the VPC to run in; repeatable."
        ),
        click.option(
            "--security-group",
            "security_groups",
            multiple=True,
            metavar="ID",
            help="Security group for --subnet; repeatable.",
        ),
    ):
        command = option(command)
    return command


def template_option(name: str) -> Callable[[Command], Command]:
    """Add --template, which prints one of ``stacks.TEMPLATES`` and ends, without an account."""

    def print_template(ctx: click.Context, _param: click.Parameter, given: bool) -> None:
        if given:
            from chestxray.aws.stacks import stack_template

            click.echo(stack_template(name), nl=False)
            ctx.exit()

    what = f"Print the CloudFormation template of the {name} for CDK, SAM or Terraform, and stop."
    return click.option(
        "--template", is_flag=True, is_eager=True, expose_value=False, callback=print_template, help=what
    )


def _owners(given: tuple[str, ...]) -> dict[str, str]:
    """Return the owners of buckets. Raises: UsageError."""
    pairs = [one.rpartition("=")[::2] for one in given]
    for (bucket, account), text in zip(pairs, given, strict=True):
        if not bucket or not account:
            raise UsageError(f"--bucket-owner {text}: write it as hospital=123456789012, the account behind the bucket")
    return dict(pairs)
