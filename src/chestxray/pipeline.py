"""Several stages in a row: what ``run`` does, as a function.

source -> manifest.csv -> clean.csv -> split.csv -> pack -> training -> bundle -> scores.csv -> report
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from chestxray.data.clean import Distribution, clean, describe
from chestxray.data.collect import collect
from chestxray.data.pack import DEFAULT_SIZE, write_pack
from chestxray.data.parallel import Progress
from chestxray.data.phantom import PhantomSettings, write_phantoms
from chestxray.data.split import SplitSettings, split
from chestxray.evaluation.assessment import Assessment
from chestxray.judging.evaluate import JudgingSettings, Narrator, judge_bundle
from chestxray.schema import VERSION_COLUMN, BundleInfo, Film, Split, read_manifest, write_manifest

if TYPE_CHECKING:
    from chestxray.training.recipe import Recipe
    from chestxray.training.record import EpochRecord


# --------------------------------------------------------------------------- a source


def films_of(source: Path | str, *, labels_needed: bool = True) -> tuple[Film, ...]:
    """The rows of a manifest, or what ``collect`` finds. Raises: ManifestInvalid, SourceInvalid."""
    path = Path(source)
    if path.suffix.lower() == ".csv" and path.is_file() and _is_manifest(path):
        return read_manifest(path)
    return collect(source, labels_needed=labels_needed)


def _is_manifest(table: Path) -> bool:
    """Whether this package wrote the table; ``collect`` reads those of others."""
    with table.open("rb") as file:
        return VERSION_COLUMN.encode() in file.readline()


# --------------------------------------------------------------------------- run


@dataclass(frozen=True, slots=True)
class RunSettings:
    """What ``run`` does besides the films.

    Attributes:
        recipe: how to train.
        device: where to train.
        size: (height, width) of the network's input, in pixels.
        split_seed: draws the sides that the source does not give.
        phantoms: patients to draw where there is no source.
        workers: processes that read films.
        command: what the user typed, for the report.
    """

    recipe: Recipe
    device: str = "auto"
    size: tuple[int, int] = DEFAULT_SIZE
    split_seed: int = 0
    phantoms: int = 300
    workers: int | None = None
    command: str = ""


@dataclass(frozen=True, slots=True)
class RunResult:
    """What ``run`` made.

    Attributes:
        bundle, report: where they lie; the report as an HTML file.
        validation: the record of the best epoch.
        assessment: on the test side.
        seconds: that each stage took.
    """

    bundle: Path
    report: Path
    validation: EpochRecord | None
    assessment: Assessment
    seconds: dict[str, float]


class Teller(Protocol):
    """Whoever puts the results of the stages into words as they come."""

    def cleaned(self, distribution: Distribution, films: Sequence[Film]) -> None:
        """What cleaning found."""

    def split(self, films: Sequence[Film]) -> None:
        """Who stands where."""

    def epoch(self, record: EpochRecord) -> None:
        """What an epoch gave."""

    def exported(self, folder: Path, info: BundleInfo) -> None:
        """What the bundle holds."""

    def assessed(self, assessment: Assessment) -> None:
        """What the test side says."""


@dataclass(slots=True)
class _Stages:
    """Announces each stage and keeps its time."""

    narrator: Narrator
    seconds: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def __call__(self, name: str, what: str) -> Iterator[Progress]:
        self.narrator.say(f"\n{name}: {what}")
        started = time.perf_counter()
        with self.narrator.progress(name.capitalize()) as move:
            yield move
        self.seconds[name] = round(time.perf_counter() - started, 2)


def run(source: Path | None, out: Path, settings: RunSettings, narrator: Narrator, teller: Teller) -> RunResult:
    """Films to a measured bundle: every stage in order, each output in ``out`` under its own name.

    Args:
        source: a folder of films; None draws phantoms first.
        out: the folder; outputs of an earlier run there are replaced.
        settings: everything else.
        narrator: told about progress.
        teller: told the results as they come.

    Raises: what the stages raise.
    """
    from chestxray.training.export import export_run
    from chestxray.training.run import Keeping, train_run

    stage = _Stages(narrator)
    if source is None:
        source = out / "phantoms"
        with stage("draw", "phantoms, drawn films that show no patient; nothing is downloaded") as move:
            write_phantoms(source, PhantomSettings(patients=settings.phantoms, faults=True), move, settings.workers)
    with stage("collect", f"the films of {source}"):
        films = collect(source)
        write_manifest(films, out / "manifest.csv")
    with stage("clean", f"{len(films):,} films are opened and judged; nothing is deleted") as move:
        films = clean(films, move, settings.workers)
        write_manifest(films, out / "clean.csv")
    teller.cleaned(describe(films), films)
    with stage("split", "by patient, so that nobody stands on two sides"):
        films = split(films, SplitSettings(seed=settings.split_seed))
        write_manifest(films, out / "split.csv")
    teller.split(films)
    height, width = settings.size
    with stage("pack", f"films are decoded once, to {height} x {width} pixels") as move:
        write_pack(films, out / "pack", size=settings.size, on_progress=move, workers=settings.workers)
    with stage("train", f"{settings.recipe.network} on {settings.device}") as move:
        summary = train_run(
            out / "pack",
            out / "training",
            settings.recipe,
            device=settings.device,
            keeping=Keeping(replace=True),
            on_epoch=teller.epoch,
            on_progress=move,
            say=narrator.say,
        )
    with stage("export", "graph, weights, calibration, operating points, model card"):
        info = export_run(out / "training", out / "bundle")
    teller.exported(out / "bundle", info)
    with stage("evaluate", "on the test side"):
        assessment = judge_bundle(
            out / "bundle",
            films,
            out / "split.csv",
            out / "report",
            narrator,
            JudgingSettings(side=Split.TEST.value, command=settings.command, workers=settings.workers),
        )
    teller.assessed(assessment)
    return RunResult(out / "bundle", out / "report" / "index.html", summary.info.best, assessment, stage.seconds)
