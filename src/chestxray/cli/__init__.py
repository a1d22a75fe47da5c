"""The command line: the group of commands, in the order of the pipeline, and where errors become exit statuses.

Each command parses, calls one stage and prints. Heavy imports stay inside the commands.
"""

from __future__ import annotations

import atexit
import gc
import json
import sys
from collections.abc import Sequence
from typing import Any

import click
from click.shell_completion import get_completion_class

from chestxray import __version__
from chestxray.cli.aws import aws
from chestxray.cli.data import audit, clean, collect, pack, split
from chestxray.cli.dicom import dicom
from chestxray.cli.evaluate import calibrate, evaluate
from chestxray.cli.model import batch, blend, export, predict, sign, train, verify
from chestxray.cli.options import InOrder
from chestxray.cli.service import doctor, key, run, serve
from chestxray.errors import ChestXrayError, MissingExtra
from chestxray.schema import NOTICE
from chestxray.text import printable

COMMANDS = (
    *(collect, clean, split, audit, pack, train, blend, evaluate, export),
    *(calibrate, sign, verify, predict, batch, serve, dicom, key, run, doctor, aws),
)


def _print_completion(ctx: click.Context, _param: click.Parameter, shell: str | None) -> None:
    if shell is None or ctx.resilient_parsing:
        return
    completion = get_completion_class(shell)
    if completion is None:
        raise click.BadParameter(f"no completion for {shell}")
    click.echo(completion(ctx.command, {}, "chestxray", "_CHESTXRAY_COMPLETE").source())
    ctx.exit()


@click.group(
    cls=InOrder,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110},
    epilog=f"{NOTICE} Each command has --help and --json. "
    "Exit status: 0 success, 1 a problem in the data, 2 wrong usage.",
)
@click.version_option(__version__, "-V", "--version", prog_name="chestxray")
@click.option(
    "--completion",
    type=click.Choice(["bash", "zsh", "fish"]),
    callback=_print_completion,
    expose_value=False,
    is_eager=True,
    help="Print the completion script for your shell, and exit.",
)
def chestxray_group() -> None:
    """Train, evaluate, calibrate and serve a pneumonia classifier for chest X-rays.

    \b
    One film, with the model of the package:   chestxray predict film.jpg
    The page, with that model:                 chestxray serve
    All steps, on synthetic films:             chestxray run --out run
    All steps, on your films:                  chestxray run FOLDER --out run
    One film, with the new model:              chestxray predict film.jpg --bundle run/bundle
    """  # noqa: D301 - click reads the backspace as "do not rewrap"


for command in COMMANDS:
    chestxray_group.add_command(command)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line and exit with its status."""
    # The process ends: looking through what the libraries left for cycles would take a tenth of a short command.
    atexit.register(gc.freeze)
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    try:
        status = chestxray_group.main(arguments, prog_name="chestxray", standalone_mode=False)
    except click.exceptions.Abort:
        click.echo("Interrupted.", err=True)
        status = 130  # as a shell reports it: 128 + SIGINT
    except click.ClickException as error:
        status = _fail(error.exit_code, "UsageError", error.format_message(), arguments, error)
    except ChestXrayError as error:
        status = _fail(error.exit_status, type(error).__name__, str(error), arguments)
    except ModuleNotFoundError as error:
        status = _fail_for_want_of(error, arguments)
    except BrokenPipeError:  # the reader of our output has closed it
        sys.stderr.close()
        status = 1
    except OSError as error:
        about = f"{error.filename}: {error.strerror}" if error.filename else str(error)
        status = _fail(1, type(error).__name__, about, arguments)
    sys.exit(status if isinstance(status, int) else 0)


def _fail_for_want_of(error: ModuleNotFoundError, arguments: Sequence[str]) -> int:
    """Report a missing library that an extra installs. Raises: the error itself, if no extra installs it."""
    from chestxray.diagnosis import extra_that_brings

    extra = extra_that_brings(error.name)
    if extra is None:
        raise error
    missing = MissingExtra("This command", extra)
    return _fail(missing.exit_status, type(missing).__name__, str(missing), arguments)


def _fail(
    status: int, kind: str, message: str, arguments: Sequence[str], shown: click.ClickException | None = None
) -> int:
    if "--json" in arguments:
        document: dict[str, Any] = {"error": {"type": kind, "message": message, "exit_status": status}}
        click.echo(json.dumps(document, indent=2))
    elif shown is not None:
        shown.show()
    else:
        click.echo(printable(f"{kind}: {message}"), err=True)
    return status
