"""The commands around the pipeline: serve, key, run, doctor."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from chestxray.cli.data import distribution_text, splits_text
from chestxray.cli.evaluate import assessment_text, command_line
from chestxray.cli.model import bundle_text, epoch_printer
from chestxray.cli.options import (
    BUNDLE_VARIABLE,
    FOLDER,
    PATH,
    Console,
    Size,
    bundle_option,
    collect_options,
    columns,
    device_option,
    json_option,
    recipe_options,
    refuse_option,
    require_age_option,
    verify_key_option,
    workers_option,
)
from chestxray.errors import UsageError
from chestxray.inference.bundle import DEFAULT
from chestxray.schema import NOTICE

if TYPE_CHECKING:
    from chestxray.data.collect import CollectSettings
    from chestxray.pipeline import StageReporter
    from chestxray.serving.server import ServeOptions

HOST = "127.0.0.1"
PORT = 8000


def _bundle_of_a_container(ctx: click.Context, _param: click.Parameter, container: bool) -> bool:
    if container:
        from chestxray.serving.server import MODEL

        ctx.default_map = {"bundle": str(MODEL)}
    return container


def _work_of_a_container(ctx: click.Context, _param: click.Parameter, work: str) -> None:
    """Handle the word that SageMaker adds to an image's entry point: serve, or train, which needs no bundle."""
    if work and not (ctx.params.get("container") or os.environ.get("CHESTXRAY_CONTAINER")):
        raise UsageError(f"serve takes no argument {work!r}. Name a bundle with --bundle")
    if work == "train":
        from chestxray.aws import training_entry

        training_entry.main(training_entry.job_arguments(Path(training_entry.BASE)))
        ctx.exit()
    if work not in {"", "serve"}:
        raise UsageError(f"a container takes no argument {work!r}. It takes serve or train")


@click.command()
@bundle_option
@verify_key_option
@require_age_option
@click.option("--host", default=HOST, show_default=True, help="Address to listen on.")
@click.option(
    "--port",
    type=click.IntRange(0, 65535),
    default=PORT,
    show_default=True,
    help="Port to listen on; 0 for a free one.",
)
@click.option(
    "--api-keys",
    type=PATH,
    help='File of "SHA-256 NAME" lines; callers then need one of these keys. Default: those in CHESTXRAY_API_KEYS.',
)
@click.option("--name", "names", multiple=True, help="Another host name that callers use; repeatable.")
@click.option(
    "--cors-origin", "cors_origins", multiple=True, help="Another origin whose pages may call the service; repeatable."
)
@click.option(
    "--container",
    is_flag=True,
    is_eager=True,  # before the bundle, for which a container has its own default
    callback=_bundle_of_a_container,
    envvar="CHESTXRAY_CONTAINER",
    help="Inside a container such as SageMaker's: the bundle in /opt/ml/model, port 8080 of all addresses.",
)
@click.argument("work", metavar="", default="", is_eager=True, expose_value=False, callback=_work_of_a_container)
@json_option
def serve(
    console: Console,
    bundle: Path,
    verify_key: Path | None,
    require_age: bool,
    host: str,
    port: int,
    api_keys: Path | None,
    names: tuple[str, ...],
    cors_origins: tuple[str, ...],
    container: bool,
) -> None:
    """Serve the web page and the API on this machine.

    Runs until interrupted. With --json, one line of JSON has the address as soon as films can be classified.
    A --host other than loopback needs a key ("chestxray key").
    """
    from chestxray.serving.server import ServeOptions

    options = ServeOptions(host, port)
    if container:
        from chestxray.serving.server import container_options

        options = container_options(os.environ)
    options = dataclasses.replace(
        options,
        keys_file=api_keys,
        names=names,
        cors_origins=cors_origins,
        verify_key=verify_key,
        require_age=require_age,
    )
    serve_until_stopped(console, bundle, options)


def serve_until_stopped(console: Console, bundle: Path, options: ServeOptions) -> None:
    """Serve a bundle; print the address once it answers."""
    from chestxray.serving.server import serve as serve_bundle

    def ready(address: str) -> None:
        document = {"address": address, "bundle": bundle, "process": os.getpid(), "notice": NOTICE}
        console.result(document, f"The page: {address}  (stop with Ctrl-C)\n{NOTICE}")

    serve_bundle(bundle, options, ready=ready)


@click.command()
@click.argument("name")
@json_option
def key(console: Console, name: str) -> None:
    """Make an API key for the caller NAME.

    Give the key to the caller; it is not stored. Put the entry into the file of "serve --api-keys".
    """
    from chestxray.serving.security import new_key

    made, entry = new_key(name)
    console.result({"key": made, "entry": entry}, f"key, for {name}:  {made}\nentry, for the service:  {entry}")


@click.command()
@click.argument("source", required=False)
@click.option("--out", type=FOLDER, default="run", show_default=True, help="The folder for all outputs.")
@recipe_options
@device_option
@click.option("--size", type=Size(), default=None, help="Height and width in pixels. [default: the network's]")
@click.option("--split-seed", type=int, default=0, show_default=True, help="Seed of the splits.")
@click.option(
    "--synthetic-patients",
    type=click.IntRange(40, 20_000),
    default=300,
    show_default=True,
    help="Number of synthetic patients, if there is no SOURCE.",
)
@click.option("--serve/--no-serve", "serving", default=False, show_default=True, help="Serve the page at the end.")
@click.option("--host", default=HOST, show_default=True, help="Address to serve on.")
@click.option(
    "--port",
    type=click.IntRange(0, 65535),
    default=PORT,
    show_default=True,
    help="Port to listen on; 0 for a free one.",
)
@collect_options
@refuse_option
@workers_option
@json_option
def run(
    console: Console,
    source: str | None,
    out: Path,
    device: str,
    recipe: str,
    size: tuple[int, int] | None,
    split_seed: int,
    synthetic_patients: int,
    serving: bool,
    host: str,
    port: int,
    refuse: tuple[str, ...],
    workers: int | None,
    settings: CollectSettings,
    **changes: Any,
) -> None:
    """Run all steps, from films to an evaluated bundle.

    Collects, cleans, splits, audits, packs, trains, exports and evaluates on the test split. Serves with --serve.

    SOURCE is a folder of films, a table, an archive or a prefix in S3, as for "collect". Without SOURCE, synthetic
    films are drawn first.
    """
    from chestxray import pipeline
    from chestxray.training.config import recipe_of

    run_settings = pipeline.RunSettings(
        recipe=recipe_of(recipe, **changes),
        device=device,
        size=size,
        split_seed=split_seed,
        synthetic_patients=synthetic_patients,
        refuse=refuse,
        workers=workers,
        command=command_line(),
        collecting=settings,
    )
    result = pipeline.run(source, out, run_settings, console, _stage_reporter(console))
    document = {
        "out": out,
        "bundle": result.bundle,
        "report": result.report,
        "validation": result.validation,
        "assessment": result.assessment.to_json(),
        "seconds": result.seconds,
    }
    if not serving:
        console.result(document, _run_text(result))
        return
    if not console.as_json:
        console.result(document, _run_text(result))
    from chestxray.serving.server import ServeOptions

    serve_until_stopped(console, result.bundle, ServeOptions(host, port))


def _run_text(result: Any) -> str:
    stages = ", ".join(f"{name} {seconds:.0f} s" for name, seconds in result.seconds.items())
    return f"\nbundle: {result.bundle}\nreport: {result.report}\ntime:   {stages}\n{NOTICE}"


def _stage_reporter(console: Console) -> StageReporter:
    """Report each stage's result in the form of its own command."""
    from chestxray.pipeline import StageReporter

    return StageReporter(
        cleaned=lambda distribution, films: console.log(distribution_text(distribution, films)),
        split=lambda films: console.log(splits_text(films)),
        audited=lambda found: console.log("\n".join(found.words)),  # its groups are on the page
        epoch=epoch_printer(console),
        exported=lambda folder, info: console.log(bundle_text(folder, info)),
        assessed=lambda assessment: console.log(assessment_text(assessment)),
    )


@click.command()
@json_option
def doctor(console: Console) -> None:
    """List what is installed and what is missing."""
    from chestxray.diagnosis import diagnose

    diagnosis = diagnose(os.environ.get(BUNDLE_VARIABLE) or DEFAULT)
    console.result(diagnosis, columns([(check.name, check.finding) for check in diagnosis.checks]))
