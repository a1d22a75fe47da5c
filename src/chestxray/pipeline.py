"""The whole pipeline: the stages of ``run`` in order, as a function.

source -> manifest.csv -> clean.csv -> split.csv (and audit) -> pack -> training -> bundle -> scores.csv -> report
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from chestxray.arguments import arguments_checked
from chestxray.data.audit import Audit, audit
from chestxray.data.clean import Distribution, clean, describe
from chestxray.data.collect import CollectSettings, collect
from chestxray.data.pack import write_pack
from chestxray.data.report import write_audit
from chestxray.data.split import SplitSettings, split
from chestxray.evaluation.assessment import Assessment
from chestxray.evaluation.evaluate import EvaluationSettings, evaluate_bundle
from chestxray.progress import SILENT, ProgressCallback, Reporter
from chestxray.schema import BundleInfo, Film, Split, write_manifest
from chestxray.synthetic.films import SyntheticSettings, write_synthetic_films

if TYPE_CHECKING:
    from chestxray.training.config import Recipe
    from chestxray.training.train_state import EpochRecord


@dataclass(frozen=True, slots=True)
class RunSettings:
    """The settings of ``run`` besides the films.

    Attributes:
        recipe: how to train: a recipe, the name of one of this package, or a TOML file.
        device: where to train.
        size: (height, width) of the network's input, in pixels; None takes the network's own size.
        split_seed: seed for drawing the splits that the source does not give.
        synthetic_patients: number of synthetic patients if there is no source.
        refuse: sources of pictures that the bundle must refuse, each a place or ``WORDS=PLACE``.
        workers: number of processes that read films.
        command: the user's command, for the report.
        collecting: facts about the films that the source does not state.
    """

    recipe: Recipe | Path | str = "default"
    device: str = "auto"
    size: tuple[int, int] | None = None
    split_seed: int = 0
    synthetic_patients: int = 300
    refuse: tuple[str, ...] = ()
    workers: int | None = None
    command: str = ""
    collecting: CollectSettings = field(default_factory=CollectSettings)


@dataclass(frozen=True, slots=True)
class RunResult:
    """The result of ``run``.

    Attributes:
        bundle, report: their paths; the report is an HTML file.
        validation: the record of the best epoch.
        assessment: the evaluation on the test split.
        seconds: time of each stage, in seconds.
    """

    bundle: Path
    report: Path
    validation: EpochRecord | None
    assessment: Assessment
    seconds: dict[str, float]


def _nothing(*_found: object) -> None:
    """Report nothing."""


@dataclass(frozen=True, slots=True)
class StageReporter:
    """Callbacks that get the result of each stage as it comes; by default they do nothing.

    Attributes:
        cleaned: gets the distribution, and the films with their verdicts.
        split: gets the films with their splits.
        audited: gets what a network could learn in place of the disease.
        epoch: gets the figures of an epoch.
        exported: gets the bundle's folder and description.
        assessed: gets the figures of the test split.
    """

    cleaned: Callable[[Distribution, tuple[Film, ...]], None] = _nothing
    split: Callable[[tuple[Film, ...]], None] = _nothing
    audited: Callable[[Audit], None] = _nothing
    epoch: Callable[[EpochRecord], None] = _nothing
    exported: Callable[[Path, BundleInfo], None] = _nothing
    assessed: Callable[[Assessment], None] = _nothing


@dataclass(slots=True)
class _Stages:
    """Announces each stage and measures its time."""

    reporter: Reporter
    seconds: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def __call__(self, name: str, what: str) -> Iterator[ProgressCallback]:
        self.reporter.log(f"\n{name}: {what}")
        started = time.perf_counter()
        with self.reporter.progress(name.capitalize()) as move:
            yield move
        self.seconds[name] = round(time.perf_counter() - started, 2)


@arguments_checked
def run(
    source: Path | str | None,
    out: Path | str,
    settings: RunSettings = RunSettings(),
    reporter: Reporter = SILENT,
    stage_reporter: StageReporter = StageReporter(),
) -> RunResult:
    """Run every stage in order, from films to an evaluated bundle, each output in ``out`` under its own name.

    Args:
        source: a folder of films, or another source that ``collect`` accepts; None draws synthetic films first.
        out: the folder; outputs of an earlier run there are replaced.
        settings: everything else.
        reporter: shows the progress.
        stage_reporter: reports the results as they come.

    Raises: the errors of the stages.
    """
    from chestxray.training.config import recipe_of
    from chestxray.training.export import export_run
    from chestxray.training.networks import spec_for
    from chestxray.training.run import RunOptions, train_run

    out, recipe, stage = Path(out), recipe_of(settings.recipe).without_teacher(), _Stages(reporter)
    height, width = size = settings.size or spec_for(recipe).size
    films = _collected_and_split(source, out, settings, stage, stage_reporter)
    with stage("pack", f"films are decoded once, to {height} x {width} pixels") as move:
        write_pack(films, out / "pack", size=size, on_progress=move, workers=settings.workers)
    with stage("train", f"{recipe.network} on {settings.device}") as move:
        summary = train_run(
            out / "pack",
            out / "training",
            recipe,
            device=settings.device,
            options=RunOptions(replace=True),
            on_epoch=stage_reporter.epoch,
            on_progress=move,
            log=reporter.log,
        )
    with stage("export", "graph, weights, calibration, operating points, model card"):
        info = export_run(out / "training", out / "bundle", refuse=settings.refuse, pack=out / "pack")
    stage_reporter.exported(out / "bundle", info)
    with stage("evaluate", "on the test split"):
        assessment = evaluate_bundle(
            out / "bundle",
            films,
            out / "split.csv",
            out / "report",
            reporter,
            EvaluationSettings(split=Split.TEST.value, command=settings.command, workers=settings.workers),
        )
    stage_reporter.assessed(assessment)
    return RunResult(out / "bundle", out / "report" / "index.html", summary.info.best, assessment, stage.seconds)


def _collected_and_split(
    source: Path | str | None, out: Path, settings: RunSettings, stage: _Stages, stage_reporter: StageReporter
) -> tuple[Film, ...]:
    """Run the stages before the pack, and return their films."""
    if source is None:
        source = out / "synthetic"
        with stage("draw", "synthetic films, which show no patient; nothing is downloaded") as move:
            write_synthetic_films(
                source, SyntheticSettings(patients=settings.synthetic_patients, faults=True), move, settings.workers
            )
    with stage("collect", f"the films of {source}"):
        films = collect(source, settings=settings.collecting, log=stage.reporter.log)
        write_manifest(films, out / "manifest.csv")
    with stage("clean", f"{len(films):,} films are opened and checked; nothing is deleted") as move:
        films = clean(films, move, settings.workers, log=stage.reporter.log)
        write_manifest(films, out / "clean.csv")
    stage_reporter.cleaned(describe(films), films)
    with stage("split", "by patient, so that no patient is in two splits"):
        films = split(films, SplitSettings(seed=settings.split_seed), log=stage.reporter.log)
        write_manifest(films, out / "split.csv")
    stage_reporter.split(films)
    with stage("audit", "what a network could learn in place of the disease") as move:
        found = audit(films, move, settings.workers)
        write_audit(found, out / "audit", f"Shortcuts in {source}")
    stage_reporter.audited(found)
    return films
