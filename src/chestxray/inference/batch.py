"""Many films through the same corridor, one row a film; a batch that is killed goes on where it stood."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Final

import numpy as np

from chestxray.data.films import stamp_of
from chestxray.data.parallel import Progress, no_progress
from chestxray.evaluation.calibration import calibrated
from chestxray.inference.bundle import Bundle
from chestxray.inference.journal import Journal, Judged
from chestxray.inference.judge import GROUP, Group, judge_groups, judge_of
from chestxray.inference.predictor import Predictor, label_at
from chestxray.inference.tables import Row, check_table, write_table
from chestxray.schema import BundleInfo, Film, Gate, OperatingPoint, Prediction

CALIBRATED_AT_ONCE: Final = 1024  # films
REFUSED: Final = "refused"  # counted beside the labels

Engine = Callable[[Bundle, Iterable[Group], int, int | None], Iterator[list[Judged]]]


@dataclass(frozen=True, slots=True)
class ScoredFilm:
    """A row of the source with its answer.

    Attributes:
        logit: of pneumonia, before calibration; None where the film was refused.
    """

    film: Film
    prediction: Prediction
    logit: float | None = None


def score_films(
    predictor: Predictor,
    films: Sequence[Film],
    *,
    operating_point: str | None = None,
    on_progress: Progress = no_progress,
    workers: int | None = None,
) -> Iterator[ScoredFilm]:
    """Judge films in order, and keep nothing.

    Raises: BundleInvalid, where the bundle has no such operating point.
    """
    point = predictor.info.operating_point(operating_point)
    bundle = Bundle(predictor.folder, predictor.info)
    groups = [films[start : start + GROUP] for start in range(0, len(films), GROUP)]
    done = 0
    on_progress(0, len(films))
    for group, judged in zip(groups, judge_groups(bundle, groups, len(films), workers), strict=True):
        for film, found, probability in zip(group, judged, _probabilities(judged, predictor.info), strict=True):
            gate = Gate(accepted=found.logit is not None, reason=found.reason, score=found.gate_score)
            answer = predictor.answer(found.sha256, point, gate, probability)
            yield ScoredFilm(film, answer, found.logit)
        done += len(group)
        on_progress(done, len(films))


def write_scores(scored: Iterable[ScoredFilm], path: Path) -> None:
    """Write one row a film; ``score`` is the calibrated probability, empty where the film was refused."""
    write_table(
        (
            _row(
                row.film,
                row.prediction.film_sha256,
                row.prediction.probability,
                row.prediction.label,
                row.prediction.gate.reason,
            )
            for row in scored
        ),
        path,
    )


# --------------------------------------------------------------------------- with a journal


@dataclass(frozen=True, slots=True)
class BatchResult:
    """What a batch did.

    Attributes:
        scores: the table that was written.
        journal: the file that knows what was judged.
        films: rows of the table.
        judged: films that this run opened; the others were known.
        calls: films by what they are called at the operating point, or "refused".
    """

    scores: Path
    journal: Path
    films: int
    judged: int
    calls: dict[str, int]


def journal_of(out: Path) -> Path:
    """Where the journal of an output lies: hidden beside it."""
    return out.with_name(f".{out.name}.journal")


def run_batch(
    bundle: Bundle,
    films: Iterable[Film],
    out: Path,
    *,
    operating_point: str | None = None,
    engine: Engine = judge_groups,
    on_progress: Progress = no_progress,
    workers: int | None = None,
) -> BatchResult:
    """Judge films and write one row a film, in order; ``write_scores`` would write the same.

    A film that the journal knows is not opened. A run that was killed, by whatever signal, goes on where it stood,
    and what it writes in the end is byte for byte what it would have written at once. Where nothing changed since
    the last run, nothing is written. Memory does not grow with the number of films, once they are listed.

    Args:
        bundle: what judges.
        films: any number.
        out: its ending names the format (``tables``).
        operating_point: by name; the bundle's default where None.
        engine: who judges the groups.
        on_progress: called with (done, total).
        workers: processes; by default one a core.

    Raises:
        BundleInvalid: the bundle is damaged or has no such operating point.
        UsageError: no format has the ending of ``out``, or another run is writing it.
    """
    check_table(out)
    point = bundle.info.operating_point(operating_point)
    with Journal.open(journal_of(out), judge_of(bundle)) as journal:
        for killed in out.parent.glob(f".{out.name}.*.part"):  # nobody else writes here while the journal is ours
            killed.unlink(missing_ok=True)
        total = journal.list(films)
        del films  # a million of them would be in memory to the end
        fresh = journal.pending()
        _judge(journal, bundle, engine, total, on_progress, workers)
        calls = _written(journal, out, bundle.info, point)
        return BatchResult(out, journal.path, total, fresh, calls)


def _judge(
    journal: Journal, bundle: Bundle, engine: Engine, total: int, on_progress: Progress, workers: int | None
) -> None:
    fresh = journal.pending()
    done = total - fresh
    on_progress(done, total)
    taken = []

    def groups() -> Iterator[Group]:
        for group in journal.groups(GROUP):
            taken.append(group)
            yield [listed.film for listed in group]

    for judged in engine(bundle, groups(), fresh, workers):
        group = taken.pop(0)
        journal.record(group, judged)
        done += len(group)
        on_progress(done, total)


def _written(journal: Journal, out: Path, info: BundleInfo, point: OperatingPoint) -> dict[str, int]:
    """Write the table, unless it stands there as it would be written; films by what they are called."""
    request = _digest_of(journal, info, point)
    last = journal.note("output")
    if last is not None and last["request"] == request and last["stamp"] == stamp_of(Film(str(out))):
        known: dict[str, int] = last["calls"]
        return known
    calls: Counter[str] = Counter()
    write_table(_rows(journal, info, point, calls), out)
    counts = dict(sorted(calls.items()))
    journal.finish(output={"request": request, "stamp": stamp_of(Film(str(out))), "calls": counts})
    return counts


def _digest_of(journal: Journal, info: BundleInfo, point: OperatingPoint) -> str:
    """SHA-256 over everything that the table is made of."""
    applied = [info.temperature, info.bias, point.threshold]
    digest = hashlib.sha256(json.dumps(applied).encode())
    for film, judged in journal.answers():
        digest.update(repr((film, judged)).encode("utf-8", "backslashreplace"))
    return digest.hexdigest()


def _rows(journal: Journal, info: BundleInfo, point: OperatingPoint, calls: Counter[str]) -> Iterator[Row]:
    answers = journal.answers()
    while some := tuple(islice(answers, CALIBRATED_AT_ONCE)):
        probabilities = _probabilities([judged for _, judged in some], info)
        for (film, judged), probability in zip(some, probabilities, strict=True):
            label = None if probability is None else label_at(point, probability)
            calls[label or REFUSED] += 1
            yield _row(film, judged.sha256, probability, label, judged.reason)


def _probabilities(judged: Sequence[Judged], info: BundleInfo) -> list[float | None]:
    """Calibrated; None where there is no logit."""
    logits = np.array([found.logit or 0.0 for found in judged])
    values = calibrated(logits, info.temperature, info.bias).tolist()
    return [None if found.logit is None else value for found, value in zip(judged, values, strict=True)]


def _row(film: Film, sha256: str, probability: float | None, label: str | None, reason: str) -> Row:
    """As ``tables.COLUMNS``."""
    return (
        film.path,
        film.label,
        probability,
        film.patient_id,
        label or "",
        film.cause,
        film.split,
        sha256,
        reason,
    )
