"""Many films through the same corridor: read on every core, scored in batches, one row a film.

A film that cannot be read or must not be judged is a row with a reason, never the end of the run.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Final

import numpy as np

from chestxray.data.films import name_of, read_film
from chestxray.data.parallel import Progress, map_in_order, no_progress
from chestxray.errors import FilmError
from chestxray.files import write_atomically
from chestxray.inference.predictor import Predictor
from chestxray.inference.prepare import Prepared, prepare
from chestxray.schema import Film, Gate, Prediction, Preprocessing

BATCH: Final = 32  # films a forward pass; beyond that nothing is gained


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
    """Judge films in order.

    Raises: BundleInvalid, where the bundle has no such operating point.
    """
    point = predictor.info.operating_point(operating_point)
    read = partial(_read, preprocessing=predictor.info.preprocessing)
    prepared = map_in_order(read, films, on_progress, workers)
    rows = zip(films, prepared, strict=True)
    while batch := tuple(islice(rows, BATCH)):
        evidence = iter(_evidence(predictor, [ready for _, ready in batch]))
        for film, ready in batch:
            logit, probability = next(evidence) if ready.gate.accepted else (None, None)
            yield ScoredFilm(film, predictor.answer(ready.sha256, point, ready.gate, probability), logit)


def _evidence(predictor: Predictor, batch: Sequence[Prepared]) -> list[tuple[float, float]]:
    """Logit and probability of the accepted films of a batch, in order."""
    planes = [ready.plane for ready in batch if ready.plane is not None]
    if not planes:
        return []
    logits, _ = predictor.logits(np.stack(planes))
    return list(zip(logits.tolist(), predictor.probabilities(logits).tolist(), strict=True))


def _read(film: Film, preprocessing: Preprocessing) -> Prepared:
    try:
        return prepare(read_film(film), name_of(film), preprocessing)
    except FilmError as error:
        reason = str(error)
    except OSError as error:
        reason = f"{name_of(film)}: cannot be opened ({error.strerror})"
    return Prepared(film.sha256, Gate(accepted=False, reason=reason), (0, 0), None)


SCORE_COLUMNS: Final = (
    "path",
    "label",
    "score",
    "patient_id",
    "prediction",
    "cause",
    "split",
    "sha256",
    "reason",
)


def write_scores(rows: Sequence[ScoredFilm], path: Path) -> None:
    """Write one CSV row a film; ``score`` is the calibrated probability, empty where the film was refused."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(SCORE_COLUMNS)
    for row in rows:
        film, answer = row.film, row.prediction
        score = "" if answer.probability is None else repr(answer.probability)
        writer.writerow(
            [
                film.path,
                film.label,
                score,
                film.patient_id,
                answer.label or "",
                film.cause,
                film.split,
                answer.film_sha256,
                answer.gate.reason,
            ]
        )
    write_atomically(path, out.getvalue().encode())
