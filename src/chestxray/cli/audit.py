"""The verb that asks what a network could learn in place of the disease: audit."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from chestxray.cli.console import Console, plain, table
from chestxray.cli.options import FILE, FOLDER, endpoint_option, json_option, workers_option
from chestxray.schema import read_manifest

if TYPE_CHECKING:
    from chestxray.data.audit import Audit, Overlap

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
    "taken alike; of networks that did not see them, as five folds give.",
)
@workers_option
@endpoint_option
@json_option
def audit(
    console: Console,
    split: Path,
    out: Path | None,
    fail_above: float | None,
    scores: Path | None,
    workers: int | None,
) -> int:
    """Ask what a network could learn in place of the disease.

    SPLIT is a manifest with labels, best after "split". How well are pneumonia and normal told apart by the frame
    of a film, its marks, grey levels, sharpness, size, file, and each further column? How well are the splits? Which
    films were taken alike, and which of these groups hold one class only? Needs the extra report.

    The exit status is 0 whatever is found, unless --fail-above says otherwise.
    """
    from chestxray.data.audit import audit as audit_films
    from chestxray.data.audit import overlap
    from chestxray.data.report import write_audit

    films = read_manifest(split)
    with console.progress("Auditing") as move:
        found = audit_films(films, move, workers)
    measured = None
    if scores is not None:
        from chestxray.metrics.scores import read_scores

        of_films = read_scores(scores)
        measured = overlap(found, dict(zip(of_films.paths, of_films.probabilities.tolist(), strict=True)))
    if out is not None:
        write_audit(found, out, f"Shortcuts in {split.name}")
    above = found.exceeds(fail_above) if fail_above is not None else ()
    document = {**found.to_json(), "above": [told.name for told in above]}
    if measured is not None:
        document["overlap"] = plain(measured)
    lines = [audit_text(found)]
    if measured is not None:
        lines.append(overlap_text(measured))
    if out is not None:
        lines.append(f"report: {out / 'index.html'}")
    if above:
        lines.append(f"above {fail_above}: {', '.join(told.title for told in above)}")
    console.result(document, "\n".join(lines))
    return 1 if above else 0


def audit_text(found: Audit, listed: int = LISTED) -> str:
    """The findings as a person reads them: sentences first, then the figures and the groups."""
    rows: list[tuple[str, ...]] = [("pneumonia told from normal by", "AUROC", "95% by patient")]
    for told in found.told:
        measure = told.measure
        if measure.value is None or measure.interval is None:
            rows.append((told.title, "-", measure.note))
        else:
            rows.append(
                (told.title, f"{measure.value:.3f}", f"{measure.interval.low:.3f} to {measure.interval.high:.3f}")
            )
    lines = [*found.words, "", table(rows)]
    lines += [f"{d.one} told from {d.other}, within a class: {told}" for d in found.splits for told in d.told]
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
    """A model's figures where both classes were taken alike."""
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
