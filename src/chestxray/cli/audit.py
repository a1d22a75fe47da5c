"""The verb that asks what a network could learn in place of the disease: audit."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from chestxray.cli.console import Console, plain, table
from chestxray.cli.options import (
    FILE,
    FOLDER,
    device_option,
    endpoint_option,
    json_option,
    recipe_options,
    workers_option,
)
from chestxray.errors import UsageError
from chestxray.schema import read_manifest

if TYPE_CHECKING:
    from chestxray.data.audit import Audit
    from chestxray.data.overlap import LeftOut, Overlap
    from chestxray.metrics.scores import ScoreTable
    from chestxray.training.cross_validation import CrossValidation

LISTED = 10  # groups in the terminal; the page has all


@click.command()
@click.argument("split", type=FILE)
@click.option("--out", type=FOLDER, default=None, help="Write a page with contact sheets here, and films.csv.")
@click.option(
    "--fail-above",
    metavar="AUROC",
    type=click.FloatRange(0.5, 1.0),
    default=None,
    help="Exit with status 1 where anything outside the lungs tells the classes apart better. [default: never]",
)
@click.option(
    "--scores",
    type=FILE,
    default=None,
    help="Measure a model by its scores of these films (path, label, score), as they are and where both classes were "
    "taken alike; of networks that did not see them, as --folds gives.",
)
@click.option(
    "--folds",
    type=click.IntRange(2, 20),
    default=None,
    help="Train so many networks, each without a share of the patients, and measure their scores as --scores does.",
)
@click.option(
    "--leave-out",
    metavar="GROUPS",
    type=click.IntRange(1),
    default=None,
    help="Train a network without each of so many groups of films taken alike, the largest first; measure it there.",
)
@click.option("--runs", type=FOLDER, default=None, help="Keep these networks here; killed, the same command goes on.")
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
    """Ask what a network could learn in place of the disease.

    SPLIT is a manifest with labels, best after "split". How well are pneumonia and normal told apart by the frame
    of a film, its marks, grey levels, sharpness, size, file, and each further column? How well are the splits? Which
    films were taken alike, and which of these groups hold one class only? Needs the extra report.

    With --folds and --leave-out networks are trained as well, by the options of "train", which takes as many times as
    long. They tell how well a model does where both classes were taken alike, and on films unlike all that it saw.

    The exit status is 0 whatever is found, unless --fail-above says otherwise.
    """
    from chestxray.data.audit import audit as audit_films
    from chestxray.data.overlap import overlap
    from chestxray.data.report import write_audit
    from chestxray.metrics.scores import read_scores
    from chestxray.training.config import recipe_of

    # What can be wrong with the request is found before the films are opened, not after.
    if folds and scores is not None:
        raise UsageError("--folds makes the scores that it measures. Leave --scores out")
    if (folds or leave_out) and runs is None:
        raise UsageError("--folds and --leave-out train networks. Give --runs FOLDER, where they are kept")
    if folds or leave_out:
        from chestxray.training.cross_validation import CrossValidation
    how = recipe_of(recipe, **changes).without_teacher()
    scored = read_scores(scores) if scores is not None else None
    films = read_manifest(split)
    with console.progress("Auditing") as move:
        found = audit_films(films, move, workers)
    left_out: tuple[LeftOut, ...] = ()
    if runs is not None and (folds or leave_out):
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


def _scored(networks: CrossValidation, folds: int) -> ScoreTable:
    """Score every film by a network that did not see its patient, and keep the scores beside the networks."""
    from chestxray.metrics.scores import write_scores

    table = networks.by_patient(folds)
    write_scores(table, networks.runs / "scores.csv")
    return table


def _document(found: Audit, measured: Overlap | None, left_out: Sequence[LeftOut]) -> dict[str, Any]:
    document = found.to_json()
    if measured is not None:
        document["overlap"] = plain(measured)
    if left_out:
        document["left_out"] = plain(left_out)
    return document


def _lines(found: Audit, measured: Overlap | None, left_out: Sequence[LeftOut]) -> list[str]:
    lines = [audit_text(found)]
    if measured is not None:
        lines.append(overlap_text(measured))
    if left_out:
        lines += ["", *(f"trained without group {row.group} ({row.title}): {row.measure}" for row in left_out)]
    return lines


def audit_text(found: Audit, listed: int = LISTED) -> str:
    """Format the findings for people: sentences first, then the figures and the groups."""
    rows: list[tuple[str, ...]] = [("pneumonia told from normal by", "AUROC", "95% by patient")]
    for group in found.separability:
        measure = group.measure
        if measure.value is None or measure.interval is None:
            rows.append((group.title, "-", measure.note))
        else:
            rows.append(
                (group.title, f"{measure.value:.3f}", f"{measure.interval.low:.3f} to {measure.interval.high:.3f}")
            )
    lines = [*found.words, "", table(rows)]
    lines += [f"{d.one} told from {d.other}, within a class: {group}" for d in found.splits for group in d.separability]
    if found.groups:
        groups: list[tuple[str, ...]] = [("films taken alike", "normal", "pneumonia", "risk")]
        groups += [
            (
                f"{group.number} {group.kind}: {group.title}",
                f"{group.normal:,}",
                f"{group.pneumonia:,}",
                "yes" if group.risk else "",
            )
            for group in found.groups[:listed]
        ]
        lines += ["", table(groups)]
        if len(found.groups) > listed:
            lines.append(f"and {len(found.groups) - listed:,} more groups; --out writes them all, with contact sheets")
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
        f"where both classes were taken alike: {measured.weighted}, as sure as {counts} films of equal weight",
    ]
    lines += [f"group {number}: {measure}" for number, measure in measured.groups[:LISTED]]
    if measured.missing:
        lines.append(f"{measured.missing:,} audited films have no score")
    return "\n".join(lines)
