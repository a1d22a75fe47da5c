"""The commands from a pack to predictions: train, export, predict, batch. Those that evaluate are in ``evaluate``."""

from __future__ import annotations

import base64
import hashlib
import itertools
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

from chestxray.cli.options import (
    FILE,
    FOLDER,
    Console,
    bundle_option,
    collect_options,
    complete_bundle,
    device_option,
    endpoint_option,
    engine_option,
    json_option,
    operating_point_option,
    out_option,
    recipe_options,
    refuse_option,
    require_age_option,
    table,
    verify_key_option,
    workers_option,
)
from chestxray.errors import FilmError
from chestxray.files import json_values
from chestxray.inference.bundle import folder_of
from chestxray.schema import NOTICE, BundleInfo

if TYPE_CHECKING:
    from chestxray.data.collect import CollectSettings
    from chestxray.training.train_state import EpochRecord


@click.command()
@click.argument("pack", type=FOLDER)
@out_option("The folder for weights, metrics and learning curves.", folder=True)
@recipe_options
@device_option
@click.option(
    "--teacher",
    "teachers",
    type=FOLDER,
    multiple=True,
    help="A finished run on this pack as teacher, for the recipes distilled and default-distilled; repeatable.",
)
@click.option(
    "--checkpoints", type=FOLDER, default=None, help="The folder for checkpoints. [default: checkpoints in --out]"
)
@click.option("--restart", is_flag=True, help="Train from the beginning, and replace the run in --out.")
@click.option(
    "--tracker", "trackers", multiple=True, help="Also log each epoch to tensorboard or mlflow (extras); repeatable."
)
@click.option("--compile", "compiled", is_flag=True, help="Compile the network with torch first, if possible.")
@json_option
def train(
    console: Console,
    pack: Path,
    out: Path,
    device: str,
    recipe: str,
    teachers: tuple[Path, ...],
    checkpoints: Path | None,
    restart: bool,
    trackers: tuple[str, ...],
    compiled: bool,
    **changes: Any,
) -> None:
    """Train a network on a pack.

    Keeps the weights of the best epoch by validation AUROC under shifts and exchanges, and of the last epoch. Writes
    one line for each epoch to metrics.jsonl, and a plot of the learning curves.

    After a kill, the same command resumes and ends with the same weights. On SIGTERM and Ctrl-C it finishes the
    current step, writes a checkpoint and exits with 143 or 130. On a finished run it trains nothing.

    Several processes: torchrun --nproc-per-node 2 --no-python chestxray train PACK --out RUN
    """
    from chestxray import api
    from chestxray.training.config import recipe_of
    from chestxray.training.distributed import is_main_process

    with console.progress("Training") as move:
        summary = api.train(
            pack,
            out,
            recipe_of(recipe, **changes),
            teachers=teachers,
            device=device,
            checkpoints=checkpoints,
            restart=restart,
            trackers=trackers,
            compiled=compiled,
            on_epoch=epoch_printer(console),
            on_progress=move,
            log=console.log,
        )
    if not is_main_process():  # of several processes under torchrun, only one prints
        return
    best = summary.info.best
    text = str(out)
    if best:
        text += f": best epoch {best.epoch}, AUROC {best.auroc:.4f}, under shifts {best.stress_auroc:.4f}"
        text += f", exchanged {best.exchange_auroc:.4f} (validation)"
    if summary.info.leak:
        text += f"\nWarning: {summary.info.leak}"
    console.result({"run": out, "info": summary.info, "epochs": summary.records}, text)


def epoch_printer(console: Console) -> Callable[[EpochRecord], None]:
    """Return a function that prints a header, then one line an epoch."""
    begun = False
    columns = (
        "epoch",
        "train loss",
        "val loss",
        "AUROC",
        "shifted",
        "exchanged",
        "sens.",
        "spec.",
        "films/s",
        "seconds",
    )
    width = 12

    def log(record: EpochRecord) -> None:
        nonlocal begun
        if not begun:
            console.log("".join(name.rjust(width) for name in columns))
            begun = True
        values = (
            f"{record.epoch}/{record.epochs}",
            f"{record.training_loss:.4f}",
            f"{record.validation_loss:.4f}",
            f"{record.auroc:.4f}",
            f"{record.stress_auroc:.4f}",
            f"{record.exchange_auroc:.4f}",
            f"{record.sensitivity:.3f}",
            f"{record.specificity:.3f}",
            f"{record.films_per_second:.0f}",
            f"{record.seconds:.1f}",
        )
        console.log("".join(value.rjust(width) for value in values) + ("  best so far" if record.is_best else ""))

    return log


@click.command()
@click.argument("runs", type=FOLDER, nargs=-1, required=True)
@click.option("--pack", type=FOLDER, required=True, help="The pack that the runs were trained on.")
@out_option("The folder for the blended run.", folder=True)
@device_option
@json_option
def blend(console: Console, runs: tuple[Path, ...], pack: Path, out: Path, device: str) -> None:
    """Average the weights of runs that differ in their seed.

    Only for networks that start from pretrained weights (efficientnet_lite0). There the mean of several runs is more
    stable than each of them, and predicts as fast. The result is a new run, ready for export.
    """
    from chestxray.training.ensemble import blend_runs

    with console.progress("Blending") as move:
        summary = blend_runs(runs, pack, out, device=device, on_progress=move, log=console.log)
    best = summary.best
    console.result(
        {"run": out, "info": summary.info},
        f"{out}: {len(runs)} runs, AUROC {best.auroc:.4f}, under shifts {best.stress_auroc:.4f}, "
        f"exchanged {best.exchange_auroc:.4f} (validation)",
    )


@click.command()
@click.argument("runs", metavar="RUN...", type=FOLDER, nargs=-1, required=True)
@out_option("The bundle to write.", folder=True)
@click.option("--name", default="pneumonia", show_default=True, help="Name of the model in predictions.")
@click.option("--compact", is_flag=True, help="Store weights in 16 bits, and no second copy for further training.")
@refuse_option
@click.option("--pack", type=FOLDER, default=None, help="The pack that the runs were trained on; needed with --refuse.")
@click.option(
    "--note", "notes", multiple=True, help="A sentence for the model card, for example on external results; repeatable."
)
@json_option
def export(
    console: Console,
    runs: tuple[Path, ...],
    out: Path,
    name: str,
    compact: bool,
    refuse: tuple[str, ...],
    pack: Path | None,
    notes: tuple[str, ...],
) -> None:
    """Make a bundle from one or several training runs.

    Several runs on the same pack, of one network or of different ones, predict the mean of their log-odds.

    A bundle has the graph, the weights, the calibration, the operating points and the model card. With --refuse its
    gate also learns pictures that it must refuse, and reports how many of those held out by patient it refuses.
    """
    from chestxray import api

    info = api.export(runs, out, name, compact=compact, refuse=refuse, pack=pack, notes=notes)
    console.result({"bundle": out, **json_values(info)}, bundle_text(out, info))


def bundle_text(folder: Path, info: BundleInfo) -> str:
    """Format a bundle in a few lines."""
    from chestxray.inference.bundle import Bundle
    from chestxray.inference.ood import Gatekeeper

    points = [("operating point", "threshold", "sensitivity", "specificity", "of")]
    points += [
        (p.name, f"{p.threshold:.4f}", f"{p.sensitivity:.4f}", f"{p.specificity:.4f}", f"{p.positives} + {p.negatives}")
        for p in info.operating_points
    ]
    calibration = f"temperature {info.temperature:.3f}, bias {info.bias:+.3f}"
    head = f"{folder}: {info.network}, {info.parameters:,} parameters, {calibration}"
    gate = Gatekeeper.of(Bundle.open(folder)).in_words()
    return f"{head}\n{table(points)}\nGate: {gate}"


@click.command()
@click.argument("films", nargs=-1, required=True)
@bundle_option
@verify_key_option
@require_age_option
@operating_point_option
@click.option("--page", type=click.IntRange(1), default=None, help="Page of a multi-page TIFF to classify.")
@click.option("--heatmap", type=FOLDER, default=None, help="Write each film with its heat map here, as PNG.")
@click.option("--contours", is_flag=True, help="Draw heat maps as lines instead of areas.")
@click.option("--layer", is_flag=True, help="Write only the heat maps, transparent, without the films.")
@json_option
def predict(
    console: Console,
    films: tuple[str, ...],
    bundle: Path,
    verify_key: Path | None,
    require_age: bool,
    operating_point: str | None,
    page: int | None,
    heatmap: Path | None,
    contours: bool,
    layer: bool,
) -> None:
    """Classify films: normal or pneumonia.

    FILMS may be files, folders, patterns in quotes ("ward*/*.dcm"), and - for one film from standard input.

    Prints the calibrated probability and the operating point. The exit status is 1 if a film cannot be read or
    must not be classified; the other films are still classified.
    """
    from chestxray import api
    from chestxray.data.sources import open_film
    from chestxray.images.raster import page_of

    if heatmap is None and (contours or layer):
        raise click.UsageError("--contours and --layer say how heat maps are drawn: give --heatmap FOLDER too")
    paths = _paths_of(films)
    predictor = api.load(bundle, verify_key=verify_key, require_age=require_age)
    answers = []
    failed = False
    maps = None if heatmap is None else HeatmapFolder(heatmap, alone=layer)
    for path in paths:
        try:
            data = sys.stdin.buffer.read() if path == STDIN else open_film(path)
            data = data if page is None else page_of(data, page, str(path))
            answer = predictor.predict(
                data, str(path), operating_point=operating_point, heatmap=maps is not None, contours=contours
            )
        except FilmError as error:
            failed = True
            answers.append({"file": path, "error": {"type": type(error).__name__, "message": str(error)}})
            continue
        failed = failed or not answer.gate.accepted
        answers.append({"file": path, **json_values(answer)})
        if maps is not None and answer.heatmap is not None:
            answers[-1]["heatmap"] = maps.write(path, data, base64.b64decode(answer.heatmap))
    text = "\n".join(_answer_line(answer) for answer in answers)
    console.result({"predictions": answers, "notice": NOTICE}, f"{text}\n{NOTICE}")
    if failed:
        sys.exit(1)


STDIN: Final = Path("-")


def _paths_of(given: Sequence[str]) -> list[Path]:
    """Return files, films in folders, and matches of patterns, each once. Raises: SourceInvalid, before any work."""
    from glob import glob

    from chestxray.data.sources import list_folder
    from chestxray.errors import SourceInvalid

    paths: dict[Path, None] = {}
    for text in given:
        path = Path(text)
        if path == STDIN or path.is_file():
            found = [path]
        elif path.is_dir():
            found = [path / Path(*parts) for _, parts in list_folder(path).films]
        elif not path.exists():
            found = [Path(match) for match in sorted(glob(text, recursive=True)) if Path(match).is_file()]  # noqa: PTH207
        else:
            found = [path]
        if not found:
            what = "holds no film" if path.is_dir() else "does not exist, and no file is named like it"
            raise SourceInvalid(f"{text}: {what}")
        paths |= dict.fromkeys(found)
    return list(paths)


class HeatmapFolder:
    """Heat maps as files, one file for each film.

    A file is named after its film; if another film has that name, also after the film's folder; then by number. Each
    file holds a hash of its film's path, so that the next run recognises it.
    """

    def __init__(self, folder: Path, *, alone: bool) -> None:
        """Write to that folder: the map over its film, or only the map if ``alone``."""
        self._folder = folder
        self._alone = alone
        self._taken: set[str] = set()  # without regard to case, which some file systems ignore

    def write(self, film: Path, data: bytes, overlay: bytes) -> Path:
        """Write one film's map; return its path. Raises: FilmError, OutputUnwritable."""
        from chestxray.files import write_atomically
        from chestxray.inference.heatmap import over_film, with_film_name

        path = self._free(film)
        self._taken.add(path.name.casefold())
        picture = overlay if self._alone else over_film(data, str(film), overlay)
        write_atomically(path, with_film_name(picture, _identity(film)))
        return path

    def _free(self, film: Path) -> Path:
        from chestxray.inference.heatmap import film_name_of

        parts = film.resolve().with_suffix("").parts[1:]
        names = ["-".join(parts[-count:]) for count in range(1, len(parts) + 1)]
        numbered = (f"{names[0]}-{number}" for number in itertools.count(2))
        for name in itertools.chain(names[:2], numbered):
            path = self._folder / f"{name}.heatmap.png"
            if path.name.casefold() in self._taken:
                continue
            if not path.exists() or film_name_of(path) in (None, _identity(film)):
                return path
        raise AssertionError("numbers do not end")


def _identity(film: Path) -> str:
    return hashlib.sha256(os.fsencode(film.resolve())).hexdigest()


def _answer_line(answer: dict[str, Any]) -> str:
    if "error" in answer:
        return str(answer["error"]["message"])
    noted = "".join(f"\n  note: {note}" for note in answer["notes"])
    if not answer["gate"]["accepted"]:
        return f"{answer['file']}: cannot classify: {answer['gate']['reason']}{noted}"
    drawn = f"\n  heat map: {answer['heatmap']}" if answer["heatmap"] else ""
    return (
        f"{answer['file']}: {answer['label']} (probability {answer['probability']:.3f}; "
        f"{answer['operating_point']}: pneumonia from {answer['threshold']:.3f}){noted}{drawn}"
    )


@click.command()
@click.argument("source")
@out_option("The table to write, one row for each film: .csv, .jsonl or .parquet (extra parquet).", folder=False)
@bundle_option
@verify_key_option
@require_age_option
@operating_point_option
@engine_option("Where films are classified")
@collect_options
@workers_option
@endpoint_option
@json_option
def batch(
    console: Console,
    source: str,
    out: Path,
    bundle: Path,
    verify_key: Path | None,
    require_age: bool,
    operating_point: str | None,
    engine: str,
    workers: int | None,
    settings: CollectSettings,
) -> None:
    """Classify every film of a source into a table, one row for each film.

    SOURCE is a manifest, or any source of "collect": a folder, an archive, a table, s3://bucket/prefix. A film
    that cannot be read or must not be classified is a row with a reason; the run continues.

    Results are also kept in a hidden file next to --out (its name ends in .journal). A killed run resumes, and a
    second run opens only new or changed films.
    """
    from chestxray.data.parallel import stay_single_threaded

    stay_single_threaded()
    from chestxray import api

    with console.progress("Classifying") as move:
        result = api.batch(
            source,
            out,
            bundle,
            operating_point=operating_point,
            engine=engine,
            on_progress=move,
            workers=workers,
            verify_key=verify_key,
            require_age=require_age,
            settings=settings,
        )
    summary = ", ".join(f"{count:,} {call}" for call, count in result.calls.items())
    known = result.films - result.predicted
    text = f"{out}: {result.films:,} films ({summary})" + (f"; {known:,} of them known before" if known else "")
    console.result(result, text)


@click.command()
@click.argument("bundle", metavar="FOLDER|NAME", shell_complete=complete_bundle)
@click.option("--private-key", type=FILE, required=True, help="An elliptic-curve key in PEM, as openssl makes it.")
@json_option
def sign(console: Console, bundle: str, private_key: Path) -> None:
    """Sign every file of a bundle with a private key.

    Writes model.sig into the bundle, in the format of OpenSSF's Model Signing. The password of an encrypted key is
    taken from CHESTXRAY_SIGNING_PASSWORD. Needs the extra "sign", and no network.
    """
    from chestxray.api import sign as sign_bundle
    from chestxray.inference.bundle import PASSWORD_VARIABLE

    signature = sign_bundle(bundle, private_key, os.environ.get(PASSWORD_VARIABLE))
    folder = signature.parent
    console.result({"bundle": folder, "signature": signature}, f"{signature}: {folder} is signed")


@click.command()
@click.argument("bundle", metavar="FOLDER|NAME", shell_complete=complete_bundle)
@click.option("--public-key", type=FILE, required=True, help="The public key of the signer, in PEM.")
@json_option
def verify(console: Console, bundle: str, public_key: Path) -> None:
    """Check that the holder of a key signed a bundle, and that no file was changed, added or lost since.

    "serve", "predict" and "batch" do the same before they classify, with --verify-key or CHESTXRAY_VERIFY_KEY. The
    exit status is 1 if the bundle differs from the signed one. Needs the extra "sign", and no network.
    """
    from chestxray.api import verify as verify_bundle

    folder, info = folder_of(bundle), verify_bundle(bundle, public_key)
    document = {"bundle": folder, "model": info.name, "public_key": public_key}
    console.result(document, f"{folder}: as {public_key} signed it ({info.name})")
