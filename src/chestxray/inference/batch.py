"""Many films through the one prediction path, one row a film; a batch that was killed resumes.

The groups of a batch are classified by processes of this machine, or by Ray Data on this machine or on a cluster.
``RAY_ADDRESS`` names a cluster; without it Ray is started here and stopped at the end. The bundle is sent to every
worker of Ray; the films must be where every worker can read them, on a shared disk or in S3.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import tempfile
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from itertools import chain, islice
from pathlib import Path
from typing import Any, Final

import numpy as np
import onnxruntime

from chestxray.data.parallel import WORTH_A_POOL, cores, pooled, started
from chestxray.data.sources import read_film, stamp_of
from chestxray.errors import DataError, FilmError, MissingExtra
from chestxray.images.decode import decoder_hash
from chestxray.inference.bundle import Bundle
from chestxray.inference.journal import FilmResult, Journal
from chestxray.inference.ood import Prepared
from chestxray.inference.predictor import Predictor, label_at
from chestxray.metrics.calibration import calibrated
from chestxray.metrics.scores import ScoreRow, check_table, write_table
from chestxray.progress import ProgressCallback, no_progress
from chestxray.schema import BundleInfo, Film, Gate, OperatingPoint, Prediction

GROUP: Final = 32  # films sent to a worker together, fewer at the end (see the journal): each message takes time
BUNDLES_LOADED: Final = 2  # bundles kept loaded in one process: one, and one to compare it with
_ANONYMOUS: Final = "film"  # the name of a film while it is read: identical copies share one answer

# Parts of a bundle that do not affect the logit: applied when the answers are written, or read by people only.
_APPLIED_LATER: Final = frozenset(
    {"temperature", "bias", "operating_points", "default_operating_point", "name", "created", "intended_use", "notice"}
)
READ_BY_PEOPLE: Final = frozenset({"MODEL_CARD.md", "metrics.json", "weights.safetensors"})

WORKER_ENDED: Final = "the process that read it ended: too little memory, or an error in a decoder"

Group = Sequence[Film]


def predictor_digest(bundle: Bundle, *, require_age: bool = False) -> str:
    """Return the SHA-256 of what an answer depends on besides the film: graph, gate, preprocessing, libraries."""
    description = json.loads(bundle.info.to_json())
    used = {name: value for name, value in description.items() if name not in _APPLIED_LATER}
    used["files"] = {name: digest for name, digest in used["files"].items() if name not in READ_BY_PEOPLE}
    used |= {"decoder": decoder_hash(), "onnxruntime": onnxruntime.__version__, "require_age": require_age}
    return hashlib.sha256(json.dumps(used, sort_keys=True).encode()).hexdigest()


def predict_groups(
    bundle: Bundle, groups: Iterable[Group], films: int, workers: int | None = None, *, require_age: bool = False
) -> Iterator[list[FilmResult]]:
    """Classify films, group by group, in order.

    Args:
        bundle: loaded once in each process.
        groups: films that are sent to a worker together; consumed as the work proceeds.
        films: their number in all; for a few films no process is started.
        workers: number of processes; by default one for each core.
        require_age: refuse films whose file states no age.

    Raises: BundleInvalid; DataError, if every process ends before it answers.
    """
    predict = partial(predict_group, folder=bundle.folder, description=bundle.info.to_json(), require_age=require_age)
    workers = workers or cores()
    if workers == 1 or films < WORTH_A_POOL:
        return map(predict, groups)
    return pooled(predict, groups, workers, lost=partial(predict_one_by_one, predict))


def predict_group(group: Group, folder: Path, description: str, *, require_age: bool = False) -> list[FilmResult]:
    """Read and score some films in this process, on one thread.

    Args:
        group: films that were sent together.
        folder: of the bundle.
        description: its ``bundle.json``, so that a folder that has changed meanwhile is refused.
        require_age: refuse films whose file states no age.
    """
    predictor = predictor_of(folder, description, require_age)
    prepared = [_prepared(film, predictor) for film in group]
    planes = [ready.plane for ready in prepared if ready.plane is not None]
    logits = iter(predictor.logits(np.stack(planes))[0].tolist() if planes else ())
    return [
        FilmResult(
            ready.sha256,
            next(logits) if ready.plane is not None else None,
            ready.gate.reason,
            ready.gate.score,
            ready.notes,
        )
        for ready in prepared
    ]


@lru_cache(BUNDLES_LOADED)
def predictor_of(folder: Path, description: str, require_age: bool) -> Predictor:  # noqa: FBT001 - a key of the cache
    """Return the predictor of a worker process, loaded once, for a bundle with that content of ``bundle.json``."""
    return Predictor(Bundle(folder, BundleInfo.from_json(description)), threads=1, require_age=require_age)


def _prepared(film: Film, predictor: Predictor) -> Prepared:
    try:
        data = read_film(film)
    except OSError as error:
        return _unread("", f"cannot be opened ({error.strerror})")
    except MissingExtra as error:
        return _unread("", str(error))
    try:
        return predictor.prepare(data, _ANONYMOUS)
    except FilmError as error:
        return _unread(hashlib.sha256(data).hexdigest(), str(error).removeprefix(f"{_ANONYMOUS}: "))
    except MissingExtra as error:  # do not keep this answer: the film can be classified once the extra is installed
        return _unread("", str(error))


def _unread(sha256: str, reason: str) -> Prepared:
    return Prepared(sha256, Gate(accepted=False, reason=reason), (0, 0), None)


def predict_one_by_one(predict: Callable[[Group], list[FilmResult]], group: Group) -> list[FilmResult]:
    """Classify a group that ended its process again, film by film; only the film that ends its process gets no answer.

    Raises: DataError, if each of several films ends its process: then the films are not the cause.
    """
    if len(group) == 1:
        return [FilmResult("", None, WORKER_ENDED)]
    alone = ((film,) for film in group)
    found = list(chain.from_iterable(pooled(predict, alone, 1, lost=partial(predict_one_by_one, predict))))
    if all(film.reason == WORKER_ENDED for film in found):
        raise DataError(
            "the processes that classify films end before they answer: is there memory enough for the bundle?"
        )
    return found


CALIBRATED_AT_ONCE: Final = 1024  # films that are calibrated at once
REFUSED: Final = "refused"  # counted beside the labels

PredictGroups = Callable[..., Iterator[list[FilmResult]]]  # takes the arguments of ``predict_groups``


@dataclass(frozen=True, slots=True)
class ScoredFilm:
    """A row of the source with its prediction.

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
    on_progress: ProgressCallback = no_progress,
    workers: int | None = None,
) -> Iterator[ScoredFilm]:
    """Classify films in order, at the bundle's default operating point, and yield the results; nothing is stored."""
    point = predictor.info.operating_point()
    bundle = Bundle(predictor.folder, predictor.info)
    groups = [films[start : start + GROUP] for start in range(0, len(films), GROUP)]
    done = 0
    on_progress(0, len(films))
    for group, results in zip(groups, predict_groups(bundle, groups, len(films), workers), strict=True):
        for film, found, probability in zip(group, results, _probabilities(results, predictor.info), strict=True):
            gate = Gate(accepted=found.logit is not None, reason=found.reason, score=found.gate_score)
            answer = predictor.answer(found.sha256, point, gate, probability, notes=found.notes)
            yield ScoredFilm(film, answer, found.logit)
        done += len(group)
        on_progress(done, len(films))


def write_scored_films(scored: Iterable[ScoredFilm], path: Path) -> None:
    """Write one row a film; ``score`` is the calibrated probability, empty where the film was refused."""
    write_table(
        (
            row_of(
                row.film,
                row.prediction.film_sha256,
                row.prediction.probability,
                row.prediction.label,
                row.prediction.gate.reason,
                row.prediction.notes,
            )
            for row in scored
        ),
        path,
    )


@dataclass(frozen=True, slots=True)
class BatchResult:
    """The result of a batch.

    Attributes:
        scores: the table that was written.
        journal: the file that records which films were classified.
        films: rows of the table.
        predicted: films that this run opened; the others were in the journal.
        calls: number of films by their label at the operating point, or "refused".
    """

    scores: Path
    journal: Path
    films: int
    predicted: int
    calls: dict[str, int]


def journal_of(out: Path) -> Path:
    """Return the path of an output's journal: a hidden file beside the output."""
    return out.with_name(f".{out.name}.journal")


def run_batch(
    bundle: Bundle,
    films: Iterable[Film],
    out: Path,
    *,
    operating_point: str | None = None,
    engine: PredictGroups = predict_groups,
    on_progress: ProgressCallback = no_progress,
    workers: int | None = None,
    require_age: bool = False,
) -> BatchResult:
    """Classify films and write one row a film, in order, as ``write_scores`` would; resume a run that was killed.

    A film whose answer is in the journal is not opened. A run that was killed, by whatever signal, resumes, and its
    output is byte for byte that of an uninterrupted run. If nothing has changed since the last run, nothing is written.
    Memory does not grow with the number of films, once they are listed.

    Args:
        bundle: the model.
        films: any number.
        out: the output file; its ending names the format (``tables``).
        operating_point: its name; None takes the bundle's default.
        engine: function that classifies the groups.
        on_progress: called with (done, total).
        workers: number of processes; by default one for each core.
        require_age: refuse films whose file states no age; the engine then receives ``require_age``.

    Raises:
        BundleInvalid: the bundle is damaged or has no such operating point.
        UsageError: no format has the ending of ``out``, or another run is writing it.
    """
    check_table(out)
    point = bundle.info.operating_point(operating_point)
    if require_age:
        engine = partial(engine, require_age=True)
    with Journal.open(journal_of(out), predictor_digest(bundle, require_age=require_age)) as journal:
        # nobody else writes here while this run holds the journal
        for killed in out.parent.glob(f".{out.name}.*.part"):
            killed.unlink(missing_ok=True)
        total = journal.list(films)
        del films  # a million films would otherwise stay in memory to the end
        fresh = journal.pending()
        _predict(journal, bundle, engine, total, on_progress, workers)
        calls = _write_output(journal, out, bundle.info, point)
        return BatchResult(out, journal.path, total, fresh, calls)


def _predict(
    journal: Journal,
    bundle: Bundle,
    engine: PredictGroups,
    total: int,
    on_progress: ProgressCallback,
    workers: int | None,
) -> None:
    fresh = journal.pending()
    done = total - fresh
    on_progress(done, total)
    taken = []

    def groups() -> Iterator[Group]:
        for group in journal.groups(GROUP):
            taken.append(group)
            yield [listed.film for listed in group]

    for results in engine(bundle, groups(), fresh, workers):
        group = taken.pop(0)
        journal.record(group, results)
        done += len(group)
        on_progress(done, total)


def _write_output(journal: Journal, out: Path, info: BundleInfo, point: OperatingPoint) -> dict[str, int]:
    """Write the table, unless an identical one exists already; return the number of films by label."""
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
    """Return the SHA-256 of everything that the table is made of."""
    applied = [info.temperature, info.bias, point.threshold]
    digest = hashlib.sha256(json.dumps(applied).encode())
    digest.update(journal.digest())
    return digest.hexdigest()


def _rows(journal: Journal, info: BundleInfo, point: OperatingPoint, calls: Counter[str]) -> Iterator[ScoreRow]:
    answers = journal.answers()
    while some := tuple(islice(answers, CALIBRATED_AT_ONCE)):
        probabilities = _probabilities([results for _, results in some], info)
        for (film, results), probability in zip(some, probabilities, strict=True):
            label = None if probability is None else label_at(point, probability)
            calls[label or REFUSED] += 1
            yield row_of(film, results.sha256, probability, label, results.reason, results.notes)


def _probabilities(results: Sequence[FilmResult], info: BundleInfo) -> list[float | None]:
    """Return the calibrated probabilities; None where there is no logit."""
    logits = np.array([found.logit or 0.0 for found in results])
    values = calibrated(logits, info.temperature, info.bias).tolist()
    return [None if found.logit is None else value for found, value in zip(results, values, strict=True)]


def row_of(
    film: Film, sha256: str, probability: float | None, label: str | None, reason: str, notes: Sequence[str]
) -> ScoreRow:
    """Return a film's row of the table; without a prediction, probability and label are None."""
    return ScoreRow(
        path=film.path,
        label=film.label,
        score=probability,
        patient_id=film.patient_id,
        prediction=label or "",
        cause=film.cause,
        split=film.split,
        sha256=sha256,
        reason=reason,
        notes="; ".join(notes),
    )


GROUPS_AT_ONCE: Final = 4096  # groups in one Ray data set: this many are listed in memory


class RayPredictor:
    """One worker: holds the unpacked bundle, and classifies groups of films."""

    def __init__(self, files: Any, description: str, *, require_age: bool) -> None:
        """Unpack the bundle.

        Args:
            files: a Ray reference to the bundle's files: bytes by name.
            description: the bundle's ``bundle.json``.
            require_age: refuse films whose file states no age.
        """
        import ray

        self._description = description
        self._require_age = require_age
        self._folder = tempfile.TemporaryDirectory()
        for name, data in ray.get(files).items():
            (Path(self._folder.name) / name).write_bytes(data)

    def __call__(self, row: dict[str, str]) -> dict[str, str]:
        """Classify the films of a group. Paths and results are JSON, which keeps numbers and names unchanged."""
        group = [Film(path) for path in json.loads(row["paths"])]
        folder = Path(self._folder.name)
        results = predict_group(group, folder, self._description, require_age=self._require_age)
        return {"results": json.dumps([dataclasses.astuple(found) for found in results])}


def predict_groups_on_ray(
    bundle: Bundle, groups: Iterable[Group], films: int, workers: int | None = None, *, require_age: bool = False
) -> Iterator[list[FilmResult]]:
    """Classify as ``batch.predict_groups`` does, with the same answers.

    Args:
        bundle: sent to each worker.
        groups: films that are sent to a worker together; consumed by the thousand.
        films: their number in all; if it is 0, Ray is not started.
        workers: number of workers, of one core each; by default as many as Ray has cores.
        require_age: refuse films whose file states no age.

    Raises: MissingExtra, BundleInvalid.
    """
    if not films:
        return
    bundle.graph()  # finds a damaged bundle before anything is started
    with started() as ray:
        names = [name for name in bundle.info.files if name not in READ_BY_PEOPLE]
        files = ray.put({name: (bundle.folder / name).read_bytes() for name in names})
        size = workers or int(ray.cluster_resources().get("CPU", 1))
        left = iter(groups)
        while some := list(islice(left, GROUPS_AT_ONCE)):
            rows = [{"paths": json.dumps([film.path for film in group])} for group in some]
            answered = ray.data.from_items(rows, override_num_blocks=_blocks(len(rows), size)).map(
                RayPredictor,
                fn_constructor_kwargs={
                    "files": files,
                    "description": bundle.info.to_json(),
                    "require_age": require_age,
                },
                compute=ray.data.ActorPoolStrategy(size=min(size, len(rows))),
            )
            for row in answered.iter_rows():
                yield [FilmResult(*found) for found in json.loads(row["results"])]


def _blocks(groups: int, workers: int) -> int:
    """Return the number of parts of a data set: many small ones, so that all workers end at about the same time."""
    return min(groups, 8 * workers)
