"""The commands that evaluate: evaluate, calibrate."""

from __future__ import annotations

import shlex
import sys
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Final

import click

from chestxray.cli.model import bundle_text
from chestxray.cli.options import (
    FILE,
    FOLDER,
    PATH,
    Console,
    collect_options,
    complete_bundle,
    json_option,
    out_option,
    table,
    workers_option,
)
from chestxray.errors import UsageError
from chestxray.files import json_values
from chestxray.schema import Split

if TYPE_CHECKING:
    from chestxray.data.collect import CollectSettings
    from chestxray.evaluation.assessment import Assessment
    from chestxray.evaluation.calibrate import Recalibrated
    from chestxray.evaluation.evaluate import RefusalCheck, RefusedKind
    from chestxray.evaluation.robustness import Reliance, Stress
    from chestxray.metrics.comparison import Comparison
    from chestxray.metrics.intervals import Measure


_SPLITS: Final = click.Choice([split.value for split in Split])


@click.command()
@click.argument("bundle", type=FOLDER, required=False, shell_complete=complete_bundle)
@click.argument("source", type=PATH, required=False)
@click.option("--out", type=FOLDER, default=None, help="The folder for the report (HTML, JSON, CSV, figures).")
@click.option(
    "--refuse-check",
    metavar="SOURCE",
    default=None,
    help="Only report how many films of SOURCE the bundle refuses, and why, by kind, with intervals; labels are not "
    'needed. SOURCE is any source of "collect". The default bundle is that of the package.',
)
@click.option(
    "--scores",
    type=FILE,
    default=None,
    help="Evaluate this table (path, label, score, patient_id) of any model, instead of BUNDLE and SOURCE.",
)
@click.option(
    "--against",
    metavar="OTHER",
    default=None,
    help='Compare with a bundle or a table of scores on the same films; or, unpaired, with "original", the published '
    "counts of the original work.",
)
@click.option(
    "--threshold",
    type=click.FloatRange(0.0, 1.0),
    default=None,
    help="With --scores: the lowest probability that is labelled pneumonia. [default: 0.5]",
)
@click.option(
    "--conformal",
    type=click.FloatRange(0.0, 1.0, min_open=True, max_open=True),
    default=None,
    help="Error rate of the conformal sets. [default: 0.1 if the bundle has validation scores]",
)
@click.option(
    "--split",
    "split",
    type=_SPLITS,
    default=None,
    help="The split of a manifest or table to evaluate on. [default: test if there is one, else all films]",
)
@click.option(
    "--stress",
    is_flag=True,
    help="Also evaluate under 17 shifts and 6 exchanges (with donors of either class); takes 30 times as long.",
)
@collect_options
@workers_option
@json_option
def evaluate(
    console: Console,
    bundle: Path | None,
    source: Path | None,
    out: Path | None,
    refuse_check: str | None,
    scores: Path | None,
    against: str | None,
    threshold: float | None,
    conformal: float | None,
    split: str | None,
    stress: bool,
    workers: int | None,
    settings: CollectSettings,
) -> None:
    """Evaluate a bundle on labelled films, or any model by its scores.

    Each figure has its count and its 95% interval.

    SOURCE is a manifest, or a folder with one folder per class (or in the published layout). The report is
    one self-contained HTML file. Rows of a table without a label or a score are counted.
    """
    from chestxray import api

    if refuse_check is not None:
        if stress or any(given is not None for given in (source, out, scores, against, threshold, conformal, split)):
            raise UsageError(
                "--refuse-check prints what is refused of its own SOURCE: give it BUNDLE alone, or nothing"
            )
        _check_refusals(console, bundle, refuse_check, settings, workers)
        return
    if out is None:
        raise click.UsageError("Missing option '--out'.")
    if scores is not None:
        _refuse_beside_scores(bundle, stress=stress, conformal=conformal)
        assessment = api.evaluate_scores(
            scores, out, split=split, against=against, threshold=threshold, command=command_line()
        )
    elif bundle is None or source is None:
        raise UsageError("nothing to evaluate: give BUNDLE and SOURCE, or --scores with a table")
    else:
        assessment = api.evaluate(
            bundle,
            source,
            out,
            split=split,
            against=against,
            threshold=threshold,
            conformal=conformal,
            stress=stress,
            workers=workers,
            command=command_line(),
            reporter=console,
            settings=settings,
        )
    console.result(
        {"report": out / "index.html", "assessment": assessment.to_json()},
        f"{assessment_text(assessment)}\nreport: {out / 'index.html'}",
    )


def _refuse_beside_scores(bundle: Path | None, *, stress: bool, conformal: float | None) -> None:
    """Check that nothing stands beside --scores that only a bundle can do. Raises: UsageError."""
    if stress:
        raise UsageError("--stress shifts films, and --scores gives none. Give BUNDLE and SOURCE")
    if conformal is not None:
        raise UsageError("--conformal needs the validation scores of a bundle, and --scores gives none")
    if bundle is not None:
        raise UsageError(
            "--scores replaces BUNDLE and SOURCE. Give either; to compare the two, give BUNDLE SOURCE "
            "--against the table"
        )


def _check_refusals(
    console: Console, bundle: Path | None, source: str, settings: CollectSettings, workers: int | None
) -> None:
    from chestxray import api
    from chestxray.data.collect import films_of
    from chestxray.evaluation.evaluate import check_refusals
    from chestxray.inference.bundle import DEFAULT

    predictor = api.load(bundle or DEFAULT, threads=1)
    films = tuple(films_of(source, labels_needed=False, settings=settings, log=console.log))
    with console.progress("Classifying") as move:
        check = check_refusals(predictor, films, on_progress=move, workers=workers)
    console.result(check.to_json(), refusal_check_text(check))


def refusal_check_text(check: RefusalCheck) -> str:
    """Format how many films are refused, by kind and by label, each with its interval and an example."""
    rows: list[tuple[str, ...]] = [("refused because", "films", "share", "95% interval", "for example")]
    rows += [(*_share_cells(kind), kind.example) for kind in (*check.kinds, check.refused)]
    parts = [f"{check.refused.films:,} of {check.films:,} films are refused by {check.model}", table(rows)]
    if check.by_label:
        head = ("label", "refused", "share", "95% interval")
        parts.append(table([head, *(_share_cells(label) for label in check.by_label)]))
    return "\n".join(parts)


def _share_cells(row: RefusedKind) -> tuple[str, ...]:
    return row.kind, f"{row.films:,}", f"{row.share:.1%}", f"{row.low:.1%} to {row.high:.1%}"


@click.command()
@click.argument("bundle", type=FOLDER, shell_complete=complete_bundle)
@click.argument("source", type=PATH)
@out_option("The bundle to write.", folder=True)
@click.option("--split", type=_SPLITS, default=None, help="The split of a manifest to use. [default: all films]")
@collect_options
@workers_option
@json_option
def calibrate(
    console: Console,
    bundle: Path,
    source: Path,
    out: Path,
    split: str | None,
    settings: CollectSettings,
    workers: int | None,
) -> None:
    """Refit the calibration of a bundle on local films.

    Calibration and operating points are chosen on SOURCE, because thresholds rarely hold at another hospital. Graph
    and weights stay the same. SOURCE is a manifest or a folder of labelled films of both classes. Evaluate the new
    bundle on other films than these.
    """
    from chestxray import api

    made = api.calibrate(bundle, source, out, split=split, workers=workers, reporter=console, settings=settings)
    document = {"bundle": out, **json_values(made.info), "metrics": made.metrics, "warnings": made.warnings}
    console.result(document, _calibrated_text(out, made))


def _calibrated_text(out: Path, made: Recalibrated) -> str:
    before = [f"temperature {made.before.temperature:.3f}, bias {made.before.bias:+.3f}"]
    before += [f"{point.name} {point.threshold:.4f}" for point in made.before.operating_points]
    return "\n".join(
        [
            bundle_text(out, made.info),
            f"before: {', '.join(before)}",
            f"graph: unchanged ({made.info.model_sha256[:12]}...)",
            *(f"Warning: {warning}" for warning in made.warnings),
        ]
    )


def command_line() -> str:
    """Return the command as the user typed it, for the report."""
    program = Path(sys.argv[0]).name
    return shlex.join(["chestxray" if program == "__main__.py" else program, *sys.argv[1:]])


def assessment_text(assessment: Assessment) -> str:
    """Format the main figures of an assessment: the confusion table, and the figures with their intervals."""
    answer, counts = assessment.answer, assessment.answer.confusion
    confusion = table(
        [
            ("", "classified as pneumonia", "as normal"),
            ("pneumonia", f"{counts.tp:,}", f"{counts.fn:,}"),
            ("normal", f"{counts.fp:,}", f"{counts.tn:,}"),
        ]
    )
    rows: list[tuple[str, ...]] = [("figure", "value", "95% interval", "of")]
    rows += [_measure_row(measure) for measure in (*assessment.overall, *answer.measures)]
    head = (
        f"{assessment.films:,} films of {assessment.patients:,} patients; operating point "
        f'"{answer.point.name}": pneumonia from a probability of {answer.point.threshold:.3f}'
    )
    parts = [head, confusion, table(rows)]
    if assessment.refused:
        parts.append(refusals_text(assessment))
    if assessment.stress:
        parts.append(stress_text(assessment.stress))
    if assessment.reliance:
        parts.append(reliance_text(assessment.reliance))
    if assessment.comparison:
        parts.append(comparison_text(assessment.comparison))
    return "\n".join([*parts, *(f"Note: {limit}" for limit in assessment.limits)])


REFUSALS_SHOWN: Final = 10  # refused films that are named in the terminal


def refusals_text(assessment: Assessment) -> str:
    """Format the refused films, and the figures that count them as wrong."""
    labels = Counter(film.label for film in assessment.refused)
    counts = ", ".join(f"{count:,} {label}" for label, count in sorted(labels.items()))
    lines = [f"refused, and not counted above: {len(assessment.refused):,} films ({counts})"]
    lines += [f"  {film.path} ({film.label}): {film.reason}" for film in assessment.refused[:REFUSALS_SHOWN]]
    if len(assessment.refused) > REFUSALS_SHOWN:
        lines.append(f"  and {len(assessment.refused) - REFUSALS_SHOWN:,} more, which the report names")
    rows: list[tuple[str, ...]] = [("refusals counted as wrong", "value", "95% interval", "of")]
    rows += [_measure_row(measure) for measure in assessment.with_refusals]
    return "\n".join([*lines, table(rows)])


def stress_text(stress: Stress) -> str:
    """Format the figures under shifts: the mean, and each shift."""
    rows: list[tuple[str, ...]] = [("shift", "AUROC", "sensitivity", "specificity")]
    rows += [
        (row.shift, *(_value(measure) for measure in (row.auroc, row.sensitivity, row.specificity)))
        for row in stress.rows
    ]
    worst = stress.worst
    head = (
        f"under {len(stress.rows) - 1} shifts: AUROC {stress.mean_auroc:.4f} on average, "
        f'{_value(worst.auroc)} at worst ({worst.shift}); sensitivity and specificity at "{stress.point}"'
    )
    return "\n".join([head, table(rows)])


def reliance_text(reliance: Reliance) -> str:
    """Format the figures with irrelevant properties exchanged: the largest gap, and each exchange."""
    rows: list[tuple[str, ...]] = [("exchanged", "AUROC, other class", "own class", "gap", "95% interval")]
    for row in reliance.rows:
        ends = f"{row.gap_interval.low:+.4f} to {row.gap_interval.high:+.4f}" if row.gap_interval else "-"
        name = row.exchange.replace("_", " ")
        rows.append((name, _value(row.other), _value(row.own), f"{row.gap:+.4f}", ends))
    worst = reliance.worst
    head = (
        "irrelevant properties from a film of the other class, against one of its own class: the largest gap is "
        f"{worst.gap:+.4f} ({worst.exchange.replace('_', ' ')})"
    )
    overall = (
        f'at "{reliance.point}" over films as they are, shifted and exchanged: sensitivity '
        f"{_value(reliance.sensitivity)}, specificity {_value(reliance.specificity)}"
    )
    return "\n".join([head, table(rows), overall])


def _value(measure: Measure) -> str:
    return "-" if measure.value is None else f"{measure.value:.4f}"


def comparison_text(comparison: Comparison) -> str:
    """Format a comparison: each figure of both models, the difference with its interval, and the tests."""
    from chestxray.evaluation.assessment import TERMS

    rows: list[tuple[str, ...]] = [("against", "ours", "theirs", "difference", "95% interval", "p")]
    for difference in comparison.differences:
        interval = difference.by_patient or difference.interval
        values = (difference.ours, difference.theirs, difference.value)
        ours, theirs, value = ("-" if v is None else f"{v:.4f}" for v in values)
        ends = f"{interval.low:+.4f} to {interval.high:+.4f}" if interval else "-"
        p = "-" if difference.p is None else f"{difference.p:.3g}"
        rows.append((TERMS[difference.name].title, ours, theirs, value, ends, p))
    head = f"compared with {comparison.other} on {comparison.films:,} films ({'' if comparison.paired else 'un'}paired)"
    tests = [
        f"McNemar, {test.among}: {test.only_ours:,} right here alone, {test.only_theirs:,} there alone; "
        f"p {test.exact:.3g} exact, {test.mid:.3g} mid-p"
        for test in comparison.mcnemar
    ]
    return "\n".join([head, table(rows), *tests, *(f"Note: {note}" for note in comparison.notes)])


def _measure_row(measure: Measure) -> tuple[str, ...]:
    from chestxray.evaluation.assessment import TERMS

    name = TERMS[measure.name].title
    if measure.value is None:
        return name, "-", "-", measure.note
    interval = f"{measure.interval.low:.4f} to {measure.interval.high:.4f}" if measure.interval else "-"
    return name, f"{measure.value:.4f}", interval, f"{measure.films:,}"
