"""The verbs from a source to a pack: collect, clean, split, pack."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

import click

from chestxray.cli.console import Console, plain, table
from chestxray.cli.options import FILE, PATH, Size, json_option, out_option, workers_option
from chestxray.data.films import name_of
from chestxray.schema import Label, Resize, Split, read_manifest, write_manifest

if TYPE_CHECKING:
    from chestxray.data.clean import Distribution
    from chestxray.schema import Film


@click.command()
@click.argument("source", type=PATH)
@out_option("The manifest to write (CSV, one row a film).", folder=False)
@json_option
def collect(console: Console, source: Path, out: Path) -> None:
    """List the films of a folder, with label, split and patient.

    SOURCE may have the published layout (train|val|test/NORMAL|PNEUMONIA), one folder a class, or be flat with
    the published file names.
    """
    from chestxray.data.collect import collect as collect_films

    films = collect_films(source)
    write_manifest(films, out)
    labels = Counter(film.label or "unlabelled" for film in films)
    summary = ", ".join(f"{count:,} {label}" for label, count in sorted(labels.items()))
    console.result({"manifest": out, "films": len(films), "labels": labels}, f"{out}: {len(films):,} films ({summary})")


@click.command()
@click.argument("manifest", type=FILE)
@out_option("The cleaned manifest to write; its distribution is saved beside it as JSON.", folder=False)
@workers_option
@json_option
def clean(console: Console, manifest: Path, out: Path, workers: int | None) -> None:
    """Open every film and give it a verdict.

    Each row gets a verdict and a reason; nothing is ever deleted.
    """
    from chestxray.data.clean import clean as clean_films
    from chestxray.data.clean import describe
    from chestxray.files import write_atomically

    films = read_manifest(manifest)
    with console.progress("Cleaning") as move:
        cleaned = clean_films(films, move, workers)
    write_manifest(cleaned, out)
    distribution = describe(cleaned)
    write_atomically(out.with_suffix(".json"), json.dumps(plain(distribution), indent=2).encode())
    console.result({"manifest": out, **plain(distribution)}, distribution_text(distribution, cleaned))


def distribution_text(distribution: Distribution, films: tuple[Film, ...], listed: int = 10) -> str:
    """The distribution as a person reads it, and the first films with something against them."""
    labels = [label.value for label in Label]
    rows: list[tuple[str, ...]] = [("accepted films", *labels)]
    rows += [
        (side, *(f"{counts.get(label, 0):,}" for label in labels)) for side, counts in distribution.classes.items()
    ]
    rows.append(("patients", *(f"{distribution.patients.get(label, 0):,}" for label in labels)))
    for name, values in (
        ("width", distribution.widths),
        ("height", distribution.heights),
        ("aspect", distribution.aspects),
    ):
        cells = (" / ".join(str(value) for value in values[label]) if label in values else "-" for label in labels)
        rows.append((f"{name} (least / median / most)", *cells))
    verdicts = ", ".join(f"{count:,} {verdict}" for verdict, count in distribution.verdicts.items())
    channels = ", ".join(f"{count:,} with {number}" for number, count in distribution.channels.items())
    lines = [f"{distribution.films:,} films: {verdicts}", f"channels as stored: {channels or '-'}", table(rows)]
    rejected = [film for film in films if not film.is_accepted]
    lines += [f"  {film.verdict}: {name_of(film)}: {film.reason}" for film in rejected[:listed]]
    if len(rejected) > listed:
        lines.append(f"  and {len(rejected) - listed:,} more, each with its reason in the manifest")
    return "\n".join(lines)


@click.command()
@click.argument("manifest", type=FILE)
@out_option("The manifest to write, every accepted film with its side.", folder=False)
@click.option(
    "--validation", type=float, default=0.15, show_default=True, help="Share of the films outside the test side."
)
@click.option(
    "--test", type=float, default=0.15, show_default=True, help="Share of all films, where no test side is given."
)
@click.option("--seed", type=int, default=0, show_default=True, help="The same seed draws the same sides.")
@json_option
def split(console: Console, manifest: Path, out: Path, validation: float, test: float, seed: int) -> None:
    """Draw or check the training, validation and test sides.

    Sides are drawn by patient and by class. A patient or an identical film on two sides is an error. A given
    test side is respected; a given validation side of under 5% of the films (the published set has 16) is
    drawn anew.
    """
    from chestxray.data.split import SplitSettings
    from chestxray.data.split import split as split_films

    settings = SplitSettings(validation, test, seed)
    films = split_films(read_manifest(manifest), settings)
    write_manifest(films, out)
    console.result({"manifest": out, "sides": side_counts(films)}, f"{out}\n{sides_text(films)}")


def side_counts(films: tuple[Film, ...]) -> dict[str, dict[str, int]]:
    """Films and patients by side."""
    counts = {}
    for side in Split:
        rows = [film for film in films if film.split == side]
        of_label = {label.value: sum(film.label == label for film in rows) for label in Label}
        counts[side.value] = {**of_label, "patients": len({film.patient_id or film.path for film in rows})}
    return counts


def sides_text(films: tuple[Film, ...]) -> str:
    """Films and patients by side, as a table."""
    counts = side_counts(films)
    columns = [*(label.value for label in Label), "patients"]
    return table(
        [("side", *columns), *((side, *(f"{row[name]:,}" for name in columns)) for side, row in counts.items())]
    )


@click.command()
@click.argument("manifest", type=FILE)
@out_option("The folder to write.", folder=True)
@click.option("--size", type=Size(), default="112x160", show_default=True, help="Height and width in pixels.")
@click.option(
    "--resize",
    type=click.Choice([policy.value for policy in Resize]),
    default=Resize.SQUEEZE.value,
    show_default=True,
    help="How films of another shape get there.",
)
@workers_option
@json_option
def pack(console: Console, manifest: Path, out: Path, size: tuple[int, int], resize: str, workers: int | None) -> None:
    """Decode every film once, into one array.

    Training maps the array into memory. The mean and the standard deviation are exact, over all pixels of the
    training films.
    """
    from chestxray.data.pack import write_pack

    films = read_manifest(manifest)
    with console.progress("Packing") as move:
        info = write_pack(films, out, size=size, resize=Resize(resize), on_progress=move, workers=workers)
    preprocessing = info.preprocessing
    console.result(
        {"pack": out, **plain(info)},
        f"{out}: {info.count:,} films of {size[0]} x {size[1]} pixels, training films' mean "
        f"{preprocessing.mean:.4f} and deviation {preprocessing.std:.4f} (black 0, white 1)",
    )
