"""Options that several commands share."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable
from functools import wraps
from pathlib import Path
from typing import Any, Final

import click
from click.shell_completion import CompletionItem

from chestxray.cli.console import Console
from chestxray.data.sources import ENDPOINT_VARIABLE
from chestxray.errors import ChestXrayError
from chestxray.inference.bundle import DEFAULT, folder_of, shipped_bundles

BUNDLE_VARIABLE: Final = "CHESTXRAY_BUNDLE"
REQUIRE_AGE_VARIABLE: Final = "CHESTXRAY_REQUIRE_AGE"

FILE: Final = click.Path(path_type=Path, dir_okay=False)
FOLDER: Final = click.Path(path_type=Path, file_okay=False)
PATH: Final = click.Path(path_type=Path)

Command = Callable[..., Any]
Completer = Callable[[click.Context, click.Parameter, str], list[CompletionItem]]

# --------------------------------------------------------------------------- what a shell is offered


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


def bundle_option(command: Command) -> Command:
    """Add --bundle; the command receives the folder that was found."""
    return click.option(
        "--bundle",
        metavar="FOLDER|NAME",
        default=DEFAULT,
        envvar=BUNDLE_VARIABLE,
        show_default=f"${BUNDLE_VARIABLE}, else {DEFAULT}",
        callback=_found_bundle,
        shell_complete=complete_bundle,
        help="The bundle to use: a folder, or the name of one that comes with this package.",
    )(command)


def _found_bundle(ctx: click.Context, _param: click.Parameter, given: str) -> Path:
    return Path(given) if ctx.resilient_parsing else folder_of(given)


def verify_key_option(command: Command) -> Command:
    """Add --verify-key."""
    return click.option(
        "--verify-key",
        type=FILE,
        help='Classify only with a bundle that this key signed ("chestxray sign"). Default: CHESTXRAY_VERIFY_KEY.',
    )(command)


def operating_point_option(command: Command) -> Command:
    """Add --operating-point."""
    return click.option(
        "--operating-point",
        default=None,
        shell_complete=complete_point,
        help="One of the bundle's, by name. [default: the bundle's]",
    )(command)


def require_age_option(command: Command) -> Command:
    """Add --require-age."""
    return click.option(
        "--require-age",
        is_flag=True,
        envvar=REQUIRE_AGE_VARIABLE,
        help='Refuse films whose file states no age, as JPEG and PNG never do. By default the answer has the note "age '
        f'not stated". [env var: {REQUIRE_AGE_VARIABLE}]',
    )(command)


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
        help='What a folder\'s name or a word of a table means: "sick=pneumonia", "well=normal", "other=none"; '
        "repeatable.",
    )
    @click.option(
        "--columns",
        metavar="ROLE=COLUMN,...",
        multiple=True,
        help="The columns of a table that are path, label, patient_id, split and cause; an empty one is none.",
    )
    @click.option(
        "--root", type=FOLDER, default=None, help="The folder that a table's paths begin in. [default: its own]"
    )
    @click.option(
        "--patient-pattern",
        metavar="REGEX",
        default="",
        help='Reads the patient from a film\'s path in its source: "patient(\\d+)", for instance.',
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


def workers_option(command: Command) -> Command:
    """Add --workers."""
    return click.option(
        "--workers", type=click.IntRange(1, 1024), default=None, help="Processes that read films. [default: one a core]"
    )(command)


def engine_option(what: str) -> Callable[[Command], Command]:
    """Add --engine; ``what`` it does, as in "classifies"."""
    return click.option(
        "--engine",
        type=click.Choice(["local", "ray"]),
        default="local",
        show_default=True,
        help=f"Who {what}: processes of this machine, or Ray (extra ray), on the cluster of $RAY_ADDRESS if any.",
    )


def refuse_option(command: Command) -> Command:
    """Add --refuse."""
    return click.option(
        "--refuse",
        metavar="[WORDS=]SOURCE",
        multiple=True,
        help="Pictures that the bundle must not answer (a folder, an archive or a table), and what refusals call them, "
        'as in "an adult\'s film=archive/adults.csv". May be given several times.',
    )(command)


_RECIPE_FIELDS: Final[tuple[tuple[str, type, str], ...]] = (
    ("--epochs", int, "Passes over the training films."),
    ("--batch-size", int, "Films a step."),
    ("--learning-rate", float, "The highest."),
    ("--seed", int, "Of weights, order, augmentation and dropout."),
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
        "--network", default=None, shell_complete=complete_network, help="A network by name. [default: the recipe's]"
    )(command)


def device_option(command: Command) -> Command:
    """Add --device."""
    return click.option(
        "--device",
        default="auto",
        show_default=True,
        shell_complete=complete_device,
        help="auto, cpu or cuda: where to compute.",
    )(command)


def endpoint_option(command: Command) -> Command:
    """Add --endpoint-url, which is passed on in the environment: worker processes inherit it."""
    return click.option(
        "--endpoint-url",
        metavar="URL",
        default=None,
        expose_value=False,
        callback=_use_endpoint,
        help="The S3 store that s3:// films lie in, where it is not Amazon's.",
    )(command)


def _use_endpoint(_ctx: click.Context, _param: click.Parameter, given: str | None) -> None:
    if given:
        os.environ[ENDPOINT_VARIABLE] = given
