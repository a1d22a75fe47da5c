"""The commands from a source to a pack: collect, clean, split, audit, pack."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

from chestxray.cli.options import (
    FILE,
    FOLDER,
    Console,
    Size,
    collect_options,
    device_option,
    endpoint_option,
    engine_option,
    json_option,
    out_option,
    recipe_options,
    table,
    workers_option,
)
from chestxray.data.sources import name_of
from chestxray.errors import UsageError
from chestxray.files import check_document_beside, json_values
from chestxray.progress import counted
from chestxray.schema import Label, Levels, Resize, Split, check_manifest, read_manifest, write_manifest

if TYPE_CHECKING:
    from chestxray.data.audit import Audit, LeftOut, Overlap
    from chestxray.data.clean import Distribution
    from chestxray.data.collect import CollectSettings
    from chestxray.metrics.scores import ScoreTable
    from chestxray.schema import Film
    from chestxray.training.cross_validation import CrossValidation


LISTED: Final = 10  # films or groups in the terminal; manifest and page have all


@click.command()
@click.argument("source")
@out_option("The manifest to write (CSV, one row for each film).", folder=False)
@collect_options
@endpoint_option
@json_option
def collect(console: Console, source: str, out: Path, settings: CollectSettings) -> None:
    """List the films of a folder, archive or table, with label, split and patient.

    SOURCE may be a folder or an archive (zip, tar, tar.gz, tar.xz, tar.zst; it is not unpacked) in the published layout
    (train|val|test/NORMAL|PNEUMONIA), with one folder a class, or flat with the published file names. It may be
    a table (CSV with any delimiter, TSV, JSON lines; Excel and Parquet with the extras excel and parquet) with a column
    for the path and optionally for label, patient_id, split and cause. The tables of RSNA, CheXpert, MIMIC-CXR, NIH
    ChestX-ray14, VinDr-CXR, PadChest and CoronaHack are supported, and other columns are kept. It may be
    s3://bucket/prefix (extra aws; credentials as for boto3) or kaggle:owner/dataset (extra kaggle).

    The meaning of each folder, and skipped or missing files, are printed to standard error.
    """
    from chestxray.data.collect import collect as collect_films

    check_manifest(out)
    films = collect_films(source, settings=settings, log=console.log)
    write_manifest(films, out)
    labels = Counter(film.label or "unlabelled" for film in films)
    summary = ", ".join(f"{count:,} {label}" for label, count in sorted(labels.items()))
    console.result(
        {"manifest": out, "films": len(films), "labels": labels},
        f"{out}: {counted(len(films), 'film', 'films')} ({summary})",
    )


@click.command()
@click.argument("manifest", type=FILE)
@out_option("The cleaned manifest to write; its distribution is saved next to it as JSON.", folder=False)
@click.option(
    "--quarantine", type=FOLDER, default=None, help="Copy the rejected films here, one folder for each verdict."
)
@click.option(
    "--report", type=FOLDER, default=None, help="Write a page about the films here: balance, duplicates, shortcuts."
)
@engine_option("Where films are opened")
@workers_option
@endpoint_option
@json_option
def clean(
    console: Console,
    manifest: Path,
    out: Path,
    quarantine: Path | None,
    report: Path | None,
    engine: str,
    workers: int | None,
) -> None:
    """Open every film and give it a verdict.

    Each row gets a verdict and a reason. No film is moved or deleted. The verdicts are also kept in a hidden file
    next to --out (its name ends in .seen), so that a second run opens only new or changed films.
    """
    from chestxray.data.clean import clean as clean_films
    from chestxray.data.clean import describe
    from chestxray.data.clean import quarantine as copy_rejected
    from chestxray.data.report import write_data_report
    from chestxray.files import write_atomically

    if report is not None:
        import jinja2  # noqa: F401 - the extra is checked before every film is opened, not after
        import sklearn  # noqa: F401

    films = read_manifest(manifest)
    check_manifest(out)
    document = check_document_beside(out, "accepted", "splits")
    with console.progress("Cleaning") as move:
        seen = out.with_name(f".{out.name}.seen")
        cleaned = clean_films(films, move, workers, seen=seen, engine=engine, log=console.log)
    write_manifest(cleaned, out)
    if quarantine is not None:
        with console.progress("Copying") as move:
            copy_rejected(cleaned, quarantine, move)
    if report is not None:
        with console.progress("Auditing") as move:
            risk = write_data_report(cleaned, report, f"Films of {manifest.name}", move, workers).risk
    distribution = describe(cleaned)
    write_atomically(document, json.dumps(json_values(distribution), indent=2).encode())
    text = distribution_text(distribution, cleaned)
    if report is not None:
        text += f"\nshortcut risk: {risk}" if risk else ""
        text += f"\nreport: {report / 'index.html'}"
    console.result({"manifest": out, **json_values(distribution)}, text)


def distribution_text(distribution: Distribution, films: tuple[Film, ...]) -> str:
    """Format the distribution for people, with the first films that have an objection."""
    labels = [label.value for label in Label]
    rows: list[tuple[str, ...]] = [("accepted films", *labels)]
    rows += [
        (split, *(f"{counts.get(label, 0):,}" for label in labels)) for split, counts in distribution.classes.items()
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
    lines += [f"  {film.verdict}: {name_of(film)}: {film.reason}" for film in rejected[:LISTED]]
    if len(rejected) > LISTED:
        lines.append(f"  and {len(rejected) - LISTED:,} more, each with its reason in the manifest")
    return "\n".join(lines)


@click.command()
@click.argument("manifest", type=FILE)
@out_option("The manifest to write, with the split of every accepted film.", folder=False)
@click.option(
    "--validation",
    type=click.FloatRange(0.0, 1.0, min_open=True, max_open=True),
    default=0.15,
    show_default=True,
    help="Share of the films outside the test split.",
)
@click.option(
    "--test",
    type=click.FloatRange(0.0, 1.0, max_open=True),
    default=0.15,
    show_default=True,
    help="Share of all films, if the source gives no test split; 0 for none.",
)
@click.option("--seed", type=int, default=0, show_default=True, help="Seed of the splits.")
@click.option(
    "--allow-leakage",
    metavar="REASON",
    default="",
    help="Accept splits that share patients or films; the reason is written into every report and model card.",
)
@json_option
def split(
    console: Console, manifest: Path, out: Path, validation: float, test: float, seed: int, allow_leakage: str
) -> None:
    """Draw or check the training, validation and test splits.

    Splits are drawn by patient and by class; duplicates and near-duplicates stay together. A patient or such a film
    in two splits is an error. A given test split is kept. A given validation split of under 5% of the films (the
    published set has 16) is drawn again.

    The published names count patients in several series. To draw splits, equal numbers are one patient. To check
    given splits, a patient is the number with the name of its series.
    """
    from chestxray.data.split import SplitSettings, leaks, shared_patients, write_allowance
    from chestxray.data.split import split as split_films

    given = read_manifest(manifest)
    check_manifest(out)
    check_document_beside(out, "accepted", "splits")
    films = split_films(
        given, SplitSettings(validation, test, seed), leakage_allowed=allow_leakage.strip(), log=console.log
    )
    shared = shared_patients(film for film in given if film.is_accepted)
    found = len(leaks(films)) if allow_leakage else 0
    document = {"splits": split_counts(films), "shared_patients": json_values(shared), "leaks": found}
    write_manifest(films, out)
    write_allowance(out, document, allow_leakage.strip())
    lines = [str(out), splits_text(films)]
    if shared is not None:
        lines.append(
            f"patients of the given test split on another split: {shared.by_number:,} by bare number, "
            f"{shared.by_full_key:,} by number and series (only these count as leakage)"
        )
    if found:
        lines.append(f"Warning: {found:,} patients or films are in two splits. Allowed: {allow_leakage.strip()}")
    console.result({"manifest": out, **document, "leakage_allowed": allow_leakage.strip()}, "\n".join(lines))


def split_counts(films: tuple[Film, ...]) -> dict[str, dict[str, int]]:
    """Count accepted films and their patients by split."""
    counts = {}
    for split in Split:
        rows = [film for film in films if film.split == split and film.is_accepted]
        of_label = {label.value: sum(film.label == label for film in rows) for label in Label}
        counts[split.value] = {**of_label, "patients": len({film.patient_id or film.path for film in rows})}
    return counts


def splits_text(films: tuple[Film, ...]) -> str:
    """Format the numbers of films and patients by split as a table."""
    counts = split_counts(films)
    columns = [*(label.value for label in Label), "patients"]
    return table(
        [("split", *columns), *((split, *(f"{row[name]:,}" for name in columns)) for split, row in counts.items())]
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
    help="How films of another shape are resized.",
)
@click.option(
    "--levels",
    type=click.Choice([policy.value for policy in Levels]),
    default=Levels.EQUALISED.value,
    show_default=True,
    help="How grey levels are normalised.",
)
@engine_option("Where films are decoded")
@workers_option
@endpoint_option
@json_option
def pack(
    console: Console,
    manifest: Path,
    out: Path,
    size: tuple[int, int],
    resize: str,
    levels: str,
    engine: str,
    workers: int | None,
) -> None:
    """Decode every film once, into one array.

    Training memory-maps the array. The mean and the standard deviation are exact, over all pixels of the
    training films.
    """
    from chestxray.data.pack import write_pack
    from chestxray.data.split import read_allowance

    films = read_manifest(manifest)
    with console.progress("Packing") as move:
        info = write_pack(
            films,
            out,
            size=size,
            resize=Resize(resize),
            levels=Levels(levels),
            on_progress=move,
            workers=workers,
            engine=engine,
            leakage_allowed=read_allowance(manifest),
        )
    preprocessing = info.preprocessing
    console.result(
        {"pack": out, **json_values(info)},
        f"{out}: {info.count:,} films of {size[0]} x {size[1]} pixels, training films' mean "
        f"{preprocessing.mean:.4f} and deviation {preprocessing.std:.4f} (black 0, white 1)",
    )


@click.command()
@click.argument("split", type=FILE)
@click.option("--out", type=FOLDER, default=None, help="Write a page with contact sheets here, and films.csv.")
@click.option(
    "--fail-above",
    metavar="AUROC",
    type=click.FloatRange(0.5, 1.0),
    default=None,
    help="Exit with status 1 if features outside the lungs separate the classes better than this. [default: never]",
)
@click.option(
    "--scores",
    type=FILE,
    default=None,
    help="Evaluate a model by its scores on these films (path, label, score), on all and where both classes were "
    "acquired alike. The model must not be trained on these films.",
)
@click.option(
    "--folds",
    type=click.IntRange(2, 20),
    default=None,
    help="Train this number of networks, each without a share of the patients; evaluate their scores as --scores does.",
)
@click.option(
    "--leave-out",
    metavar="GROUPS",
    type=click.IntRange(1),
    default=None,
    help="Train a network without each of the GROUPS largest groups of films acquired alike; evaluate it there.",
)
@click.option(
    "--runs", type=FOLDER, default=None, help="Keep these networks here; the same command resumes after a kill."
)
@recipe_options
@device_option
@workers_option
@endpoint_option
@json_option
def audit(
    console: Console,
    split: Path,
    out: Path | None,
    fail_above: float | None,
    scores: Path | None,
    folds: int | None,
    leave_out: int | None,
    runs: Path | None,
    recipe: str,
    device: str,
    workers: int | None,
    **changes: Any,
) -> int:
    """Find shortcuts: what a network could learn instead of the disease.

    SPLIT is a manifest with labels, best after "split". The audit measures how well pneumonia and normal, and the
    splits, are separated by the frame of a film, its marks, grey levels, sharpness, size, file, and each other column.
    It finds groups of films that were acquired alike, and groups with one class only. Needs the extra report.

    --folds and --leave-out also train networks, with the options of "train". They show how well a model does where
    both classes were acquired alike, and on films unlike all of its training films.

    The exit status is 0, whatever the finding, unless --fail-above is given.
    """
    from chestxray.data.audit import audit as audit_films
    from chestxray.data.audit import overlap
    from chestxray.data.report import write_audit
    from chestxray.metrics.scores import read_scores
    from chestxray.training.config import recipe_of

    # What can be wrong with the request is found before the films are opened, not after.
    _check_networks(folds, leave_out, runs, scores)
    how = recipe_of(recipe, **changes).without_teacher()
    scored = read_scores(scores) if scores is not None else None
    films = read_manifest(split)
    with console.progress("Auditing") as move:
        found = audit_films(films, move, workers)
    left_out: tuple[LeftOut, ...] = ()
    if runs is not None and (folds or leave_out):
        from chestxray.training.cross_validation import CrossValidation

        networks = CrossValidation(films, found, runs, how, device, workers, console)
        scored = _scored(networks, folds) if folds else scored
        left_out = networks.by_group(leave_out) if leave_out else ()
    measured = None
    if scored is not None:
        measured = overlap(found, dict(zip(scored.paths, scored.probabilities.tolist(), strict=True)))
    if out is not None:
        write_audit(found, out, f"Shortcuts in {split.name}", measured, left_out)
    above = found.exceeds(fail_above) if fail_above is not None else ()
    document = _document(found, measured, left_out) | {"above": [group.name for group in above]}
    lines = _lines(found, measured, left_out)
    if out is not None:
        lines.append(f"report: {out / 'index.html'}")
    if above:
        lines.append(f"above {fail_above}: {', '.join(group.title for group in above)}")
    console.result(document, "\n".join(lines))
    return 1 if above else 0


def _check_networks(folds: int | None, leave_out: int | None, runs: Path | None, scores: Path | None) -> None:
    """Check the options that train networks. Raises: UsageError; ModuleNotFoundError, where torch is missing."""
    if folds and scores is not None:
        raise UsageError("--folds makes the scores that it measures. Leave --scores out")
    if (folds or leave_out) and runs is None:
        raise UsageError("--folds and --leave-out train networks. Give --runs FOLDER, where they are kept")
    if folds or leave_out:
        import chestxray.training.cross_validation  # noqa: F401 - only whether it can be


def _scored(networks: CrossValidation, folds: int) -> ScoreTable:
    """Score every film by a network that did not see its patient, and keep the scores beside the networks."""
    from chestxray.metrics.scores import write_scores

    table = networks.by_patient(folds)
    write_scores(table, networks.runs / "scores.csv")
    return table


def _document(found: Audit, measured: Overlap | None, left_out: Sequence[LeftOut]) -> dict[str, Any]:
    document = found.to_json()
    if measured is not None:
        document["overlap"] = json_values(measured)
    if left_out:
        document["left_out"] = json_values(left_out)
    return document


def _lines(found: Audit, measured: Overlap | None, left_out: Sequence[LeftOut]) -> list[str]:
    lines = [audit_text(found)]
    if measured is not None:
        lines.append(overlap_text(measured))
    if left_out:
        lines += ["", *(f"trained without group {row.group} ({row.title}): {row.measure}" for row in left_out)]
    return lines


def audit_text(found: Audit) -> str:
    """Format the findings for people: sentences first, then the figures and the groups."""
    rows: list[tuple[str, ...]] = [("pneumonia separated from normal by", "AUROC", "95% by patient")]
    for group in found.separability:
        measure = group.measure
        if measure.value is None or measure.interval is None:
            rows.append((group.title, "-", measure.note))
        else:
            rows.append(
                (group.title, f"{measure.value:.3f}", f"{measure.interval.low:.3f} to {measure.interval.high:.3f}")
            )
    lines = [*found.words, "", table(rows)]
    lines += [f"{d.one} from {d.other}, within a class: {group}" for d in found.splits for group in d.separability]
    if found.groups:
        groups: list[tuple[str, ...]] = [("films acquired alike", "normal", "pneumonia", "risk")]
        groups += [
            (
                f"{group.number} {group.kind}: {group.title}",
                f"{group.normal:,}",
                f"{group.pneumonia:,}",
                "yes" if group.risk else "",
            )
            for group in found.groups[:LISTED]
        ]
        lines += ["", table(groups)]
        if len(found.groups) > LISTED:
            lines.append(f"and {len(found.groups) - LISTED:,} more groups; --out writes them all, with contact sheets")
    if found.skipped:
        lines.append(
            f"skipped {len(found.skipped):,} films that cannot be read; the first: {': '.join(found.skipped[0])}"
        )
    if found.unlabelled:
        lines.append(f"left out {found.unlabelled:,} films without a label")
    if found.columns_left_out:
        lines.append(f"columns that name films, not kinds of films, left out: {', '.join(found.columns_left_out)}")
    return "\n".join(lines)


def overlap_text(measured: Overlap) -> str:
    """Format a model's figures on films where both classes were acquired alike."""
    counts = " and ".join(f"{count:,.0f} {label}" for label, count in measured.effective.items())
    lines = [
        "",
        f"the model, on films as they are: {measured.plain}",
        f"where both classes were acquired alike: {measured.weighted}, as certain as on {counts} films of equal weight",
    ]
    lines += [f"group {number}: {measure}" for number, measure in measured.groups[:LISTED]]
    if measured.missing:
        lines.append(f"{measured.missing:,} audited films have no score")
    return "\n".join(lines)
