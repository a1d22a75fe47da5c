"""The group "chestxray dicom": a node beside the PACS, its queue, what it would do with a film, and batches from it."""

from __future__ import annotations

import logging
import signal
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Final

import click

from chestxray.cli.options import FILE, FOLDER, Console, json_option, out_option, table, workers_option
from chestxray.errors import SourceInvalid
from chestxray.schema import NOTICE

if TYPE_CHECKING:
    from types import FrameType

    from chestxray.dicom.node import Node
    from chestxray.dicom.queue import Queue

CONFIG_VARIABLE: Final = "CHESTXRAY_NODE"


config_option: Final = click.option(
    "--config",
    type=FILE,
    envvar=CONFIG_VARIABLE,
    required=True,
    help=f"The settings of the node, TOML. [env var: {CONFIG_VARIABLE}]",
)


@click.command()
@config_option
@click.option(
    "--explain", type=FILE, default=None, help="Do not serve; show what would happen to this DICOM film, and why."
)
@click.option("--from", "ae_title", default="", help="With --explain: the AE title of the sender.")
@json_option
def serve(console: Console, config: Path, explain: Path | None, ae_title: str) -> None:
    """Receive films from a PACS, classify them, and send the results back into their studies.

    Runs until interrupted. With --json, one JSON document has the ports as soon as films are accepted. A film is on
    disk before its sender gets "success". After a kill, the next start resumes.
    """
    if explain is not None:
        _explain(console, config, explain, ae_title)
        return
    from chestxray.dicom.node import run_node
    from chestxray.dicom.settings import NodeSettings
    from chestxray.serving.telemetry import logged_to_stderr

    settings = NodeSettings.read(config)
    stop = threading.Event()

    def stopped(_number: int, _frame: FrameType | None) -> None:
        stop.set()

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, stopped)

    def ready(node: Node) -> None:
        scheme = "https" if settings.tls else "http"
        web = f"{scheme}://{settings.host}:{node.http_port}"
        document = {
            "ae_title": settings.ae_title,
            "host": settings.host,
            "port": node.port,
            "web": web,
            "notice": NOTICE,
        }
        where = f"AE {settings.ae_title} on {settings.host}, port {node.port}; status and STOW-RS: {web}"
        console.result(document, f"{where}  (stop with Ctrl-C)\n{NOTICE}")

    with logged_to_stderr():
        logging.getLogger("chestxray.dicom").setLevel(logging.INFO)
        run_node(settings, ready, stop)


def _explain(console: Console, config: Path, film: Path, ae_title: str) -> None:
    from chestxray.data.sources import open_film
    from chestxray.dicom.receive import not_taken
    from chestxray.dicom.rules import Decision, decide, facts_of
    from chestxray.dicom.settings import NodeSettings

    settings = NodeSettings.read(config)
    facts = facts_of(open_film(film), ae_title, str(film))
    why = not_taken(facts)
    refused = Decision(answered=False, rule=None, reasons=(f"the node refuses it: {why}",))
    decision = refused if why else decide(facts, settings.rules)
    document = {
        "answered": decision.answered,
        "rule": decision.rule.name if decision.rule else None,
        "send_to": list(decision.rule.send_to) if decision.rule and decision.answered else [],
        "reasons": list(decision.reasons),
    }
    verdict = "would be answered" if decision.answered else "would not be answered"
    console.result(document, "\n".join([f"{film}: {verdict}", *(f"  {reason}" for reason in decision.reasons)]))


# --------------------------------------------------------------------------- the queue


def _queue(config: Path) -> Queue:
    from chestxray.dicom.queue import DATABASE, Queue
    from chestxray.dicom.settings import NodeSettings

    settings = NodeSettings.read(config)
    try:
        (settings.folder / DATABASE).stat()  # looking into a folder must not create a queue there
    except PermissionError:
        raise SourceInvalid(f"{settings.folder}: not for this user. Run the command as the node's user") from None
    except OSError:
        raise SourceInvalid(f"{settings.folder}: no queue of a node. Start the node, or correct its folder") from None
    return Queue(settings.folder, "", settings.limits)


@click.group()
def queue() -> None:
    """List the queue, and retry or remove dead letters."""


@queue.command("ls")
@config_option
@click.option(
    "--state",
    type=click.Choice(["waiting", "answered", "done", "dead"]),
    default=None,
    help="Only films in this state. [default: all that are not done]",
)
@json_option
def list_queue(console: Console, config: Path, state: str | None) -> None:
    """List the films of the queue, the oldest first.

    Films are shown as hashes with a salt of this queue, without patient names or numbers.
    """
    entries = _queue(config).entries(state)
    rows = [("film", "state", "tries", "bytes", "from", "deliveries", "reason")]
    rows += [
        (
            f"{entry.id} {entry.key[:12]}",
            entry.state,
            str(entry.tries),
            f"{entry.bytes:,}",
            entry.peer,
            "; ".join(f"{name} {said}" for name, said in entry.deliveries.items()) or "-",
            entry.reason or "-",
        )
        for entry in entries
    ]
    console.result({"films": entries}, table(rows) if entries else "nothing waits")


@queue.command()
@config_option
@click.argument("film", type=click.IntRange(1), required=False)
@json_option
def retry(console: Console, config: Path, film: int | None) -> None:
    """Retry the dead letter FILM; without FILM, all of them."""
    count = _queue(config).retry(film)
    console.result({"retried": count}, f"{count:,} dead letters try again")


@queue.command()
@config_option
@click.argument("film", type=click.IntRange(1))
@json_option
def drop(console: Console, config: Path, film: int) -> None:
    """Remove FILM and its files, whatever its state. If it is sent again, it is a new film."""
    _queue(config).drop(film)
    console.result({"dropped": film}, f"film {film} is forgotten")


# --------------------------------------------------------------------------- from the PACS


@click.command()
@config_option
@click.option("--from", "source", required=True, help="Name of the destination in the settings to fetch from.")
@click.option("--study-date", required=True, metavar="DAY[-DAY]", help="A day or a range, as 20260101-20260131.")
@click.option("--modality", "modalities", multiple=True, default=("CR", "DX"), show_default=True, help="Repeatable.")
@click.option("--films", type=FOLDER, default=None, help="Folder for the films. [default: next to --out]")
@out_option("The table: .csv, .jsonl or .parquet.", folder=False)
@workers_option
@json_option
def batch(
    console: Console,
    config: Path,
    source: str,
    study_date: str,
    modalities: tuple[str, ...],
    films: Path | None,
    out: Path,
    workers: int | None,
) -> None:
    """Fetch the films of some days from the PACS, and classify them into one table.

    Fetched films are kept in --films and not fetched again, so a killed run resumes. The table is that of
    "chestxray batch".
    """
    from chestxray.dicom.pull import Search, pull_batch
    from chestxray.dicom.settings import NodeSettings

    folder = films or out.with_name(f"{out.name}.films")
    with console.progress("Fetching") as fetched, console.progress("Classifying") as classified:
        result = pull_batch(
            NodeSettings.read(config),
            source,
            Search(study_date, modalities),
            out,
            folder,
            on_fetched=fetched,
            on_classified=classified,
            workers=workers,
        )
    summary = ", ".join(f"{count:,} {call}" for call, count in result.calls.items())
    console.result(result, f"{out}: {result.films:,} films ({summary}); the films are in {folder}")


@click.command()
@click.argument("film", type=FILE)
@click.option("--salt", required=True, help="Salt of your site; the same salt gives the same new UIDs.")
@out_option("The copy.", folder=False)
@json_option
def deidentify(console: Console, film: Path, salt: str, out: Path) -> None:
    """Write a de-identified copy of a DICOM film (Basic Application Level Confidentiality Profile)."""
    from chestxray.data.sources import open_film
    from chestxray.dicom.deidentify import deidentified, is_deidentified
    from chestxray.files import refuse_to_replace, write_atomically

    refuse_to_replace(out, is_deidentified, "a de-identified copy")
    write_atomically(out, deidentified(open_film(film), salt, str(film)))
    console.result({"out": out}, f"{out}: written; look at the pixels yourself, the profile does not")


@click.group()
def dicom() -> None:
    """Run a DICOM node for a PACS: films in, results back into their studies (extra "hospital")."""


for verb in (serve, queue, batch, deidentify):
    dicom.add_command(verb)
