"""Several stages in a row: what ``evaluate`` and ``run`` do, as functions.

source -> manifest.csv -> clean.csv -> split.csv -> pack -> training -> bundle -> scores.csv -> report
"""

from __future__ import annotations

import base64
import platform
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import numpy as np

from chestxray.data.clean import Distribution, clean, describe
from chestxray.data.collect import collect
from chestxray.data.films import name_of, read_film
from chestxray.data.pack import DEFAULT_SIZE, labels_of, write_pack
from chestxray.data.parallel import Progress
from chestxray.data.phantom import PhantomSettings, write_phantoms
from chestxray.data.split import SplitSettings, refuse_leakage, split
from chestxray.errors import SourceInvalid
from chestxray.evaluation.assess import assess
from chestxray.evaluation.assessment import Assessment
from chestxray.evaluation.report import CohortStep, Provenance, write_report
from chestxray.evaluation.scores import ScoreTable
from chestxray.inference.batch import ScoredFilm, score_films, write_scores
from chestxray.inference.heatmap import over_film
from chestxray.inference.predictor import Predictor
from chestxray.schema import BundleInfo, Film, Split, read_manifest, write_manifest

if TYPE_CHECKING:
    from chestxray.training.loop import EpochRecord
    from chestxray.training.recipe import Recipe


class Narrator(Protocol):
    """Whoever tells the user what is going on; the command line's console is one."""

    def say(self, line: str) -> None:
        """Tell one line."""

    def progress(self, label: str) -> AbstractContextManager[Progress]:
        """Give the callback that moves a progress bar."""


# --------------------------------------------------------------------------- a source


def films_of(source: Path, *, labels_needed: bool = True) -> tuple[Film, ...]:
    """The rows of a manifest, or the films of a folder. Raises: ManifestInvalid, SourceInvalid."""
    if source.suffix.lower() == ".csv":
        return read_manifest(source)
    return collect(source, labels_needed=labels_needed)


# --------------------------------------------------------------------------- evaluate


def evaluate_bundle(
    bundle: Path,
    source: Path,
    out: Path,
    narrator: Narrator,
    *,
    side: str | None = None,
    command: str = "",
    workers: int | None = None,
) -> Assessment:
    """Judge a bundle on labelled films and write the report.

    Args:
        bundle: the folder of a bundle.
        source: a manifest, or a folder of films; rows that were not cleaned yet are cleaned.
        out: the report's folder, written whole.
        narrator: told about progress.
        side: the side to judge on; by default "test" where the source has one, else every film.
        command: what the user typed, for the report.
        workers: processes that read films.

    Raises:
        Leakage: the source's sides share a patient or a film.
        SourceInvalid: no labelled film is left to judge on.
    """
    predictor = Predictor.load(bundle)
    rows = films_of(source)
    refuse_leakage(rows)
    if side is None and any(film.split == Split.TEST for film in rows):
        side = Split.TEST.value
    with narrator.progress("Cleaning") as move:
        examined = rows if all(film.verdict for film in rows) else clean(rows, move, workers)
    usable = [film for film in examined if film.is_accepted and film.label]
    chosen = [film for film in usable if side is None or film.split == side]
    with narrator.progress("Judging") as move:
        scored = tuple(score_films(predictor, chosen, on_progress=move, workers=workers))
    table = score_table(scored, source)
    assessment = assess(table, predictor.info.operating_points, predictor.info.default_operating_point)
    provenance = Provenance(
        title=f"{predictor.info.name} on {source.name}",
        bundle=predictor.info.name,
        model_sha256=predictor.info.model_sha256,
        source=str(source),
        split=side or "all films",
        cohort=cohort(examined, usable, scored),
        leakage=_LEAKAGE_STATEMENT if side else _LEAKAGE_UNKNOWN,
        command=command,
        versions={name: metadata.version(name) for name in ("chestxray", "numpy", "onnxruntime", "pillow")}
        | {"python": platform.python_version()},
        created=datetime.now(UTC).isoformat(timespec="seconds"),
    )
    errors = [*assessment.missed, *assessment.false_alarms]
    by_path = {film.path: film for film in chosen}
    pictures = {error.path: explained(predictor, by_path[error.path]) for error in errors}
    write_report(assessment, out, provenance, pictures)
    write_scores(scored, out / "scores.csv")
    return assessment


_LEAKAGE_STATEMENT = "No patient and no identical film stands on two sides of the split; checked before judging."
_LEAKAGE_UNKNOWN = "The source names no sides, so whether the model was trained on these films was not checked."


def explained(predictor: Predictor, film: Film) -> bytes:
    """A film with its heat map over it, as a PNG for the report."""
    data = read_film(film)
    answer = predictor.predict(data, name_of(film), heatmap=True)
    return over_film(data, name_of(film), base64.b64decode(answer.heatmap or ""))


def score_table(scored: Sequence[ScoredFilm], source: Path) -> ScoreTable:
    """The judged films as a table of labels and probabilities. Raises: SourceInvalid, where there is none."""
    judged = [row for row in scored if row.prediction.probability is not None]
    if not judged:
        raise SourceInvalid(f"{source}: no accepted, labelled film is left to judge on")
    films = [row.film for row in judged]
    return ScoreTable(
        paths=tuple(film.path for film in films),
        labels=labels_of(films),
        probabilities=np.array([row.prediction.probability for row in judged], dtype=np.float64),
        patients=tuple(film.patient_id for film in films),
        columns={"cause": tuple(film.cause for film in films)} if any(film.cause for film in films) else {},
    )


def cohort(examined: Sequence[Film], usable: Sequence[Film], scored: Sequence[ScoredFilm]) -> tuple[CohortStep, ...]:
    """Films from collected to scored, with the reason of each exclusion."""
    refused = Counter(film.verdict for film in examined if not film.is_accepted)
    unlabelled = sum(film.is_accepted for film in examined) - len(usable)
    steps = [CohortStep("films in the source", len(examined))]
    steps += [
        CohortStep(f"{verdict.replace('_', ' ')}", count, "found by cleaning", removed=True)
        for verdict, count in sorted(refused.items())
    ]
    gated = sum(not row.prediction.gate.accepted for row in scored)
    for step, count, reason in (
        ("without a label", unlabelled, "nothing to compare with"),
        ("on other sides", len(usable) - len(scored), "kept for training and validation"),
        ("refused", gated, "by the gate, when judged"),
    ):
        if count:
            steps.append(CohortStep(step, count, reason, removed=True))
    steps.append(CohortStep("scored", len(scored) - gated))
    return tuple(steps)


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
    from chestxray.training.run import train_run

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
            on_epoch=teller.epoch,
            on_progress=move,
        )
    with stage("export", "graph, weights, calibration, operating points, model card"):
        info = export_run(out / "training", out / "bundle")
    teller.exported(out / "bundle", info)
    with stage("evaluate", "on the test side, once"):
        assessment = evaluate_bundle(
            out / "bundle",
            out / "split.csv",
            out / "report",
            narrator,
            side=Split.TEST.value,
            command=settings.command,
            workers=settings.workers,
        )
    teller.assessed(assessment)
    return RunResult(out / "bundle", out / "report" / "index.html", summary.info.best, assessment, stage.seconds)
