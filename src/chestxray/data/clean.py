"""Every film is opened and judged. Rows get a verdict and a reason; nothing is ever deleted."""

from __future__ import annotations

import dataclasses
import hashlib
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from chestxray.data.films import name_of, read_film
from chestxray.data.parallel import Progress, map_in_order, no_progress
from chestxray.errors import FilmError, TruncatedFilm
from chestxray.images.decode import decode
from chestxray.images.quality import objection_to, perceptual_hash
from chestxray.schema import Film, Label, Split, Verdict

ANALYSIS_SIZE = (256, 256)  # pixels; a large JPEG is decoded no finer than twice this to be judged


def clean(films: Sequence[Film], on_progress: Progress = no_progress, workers: int | None = None) -> tuple[Film, ...]:
    """Open every film and give it a verdict; the order stays.

    A film whose bytes occur twice on one side of the split keeps its first row and has the others marked as
    duplicates; with two labels, all its rows are marked as conflicting. The same bytes on two sides of a
    given split are left for the split's leakage check, which stops the run.
    """
    examined = tuple(map_in_order(examine, films, on_progress, workers))
    return _compared(examined)


def examine(film: Film) -> Film:
    """Open one film and fill in what its bytes and pixels tell."""
    try:
        data = read_film(film)
    except OSError as error:
        return _with(film, verdict=Verdict.UNREADABLE, reason=f"cannot be opened: {error.strerror}")
    film = _with(film, sha256=hashlib.sha256(data).hexdigest())
    name = name_of(film)
    try:
        radiograph = decode(data, name, at_least=ANALYSIS_SIZE)
    except FilmError as error:
        verdict = Verdict.TRUNCATED if isinstance(error, TruncatedFilm) else Verdict.UNREADABLE
        return _with(film, verdict=verdict, reason=str(error).removeprefix(f"{name}: "))
    objection = objection_to(radiograph)
    return _with(
        film,
        width=radiograph.width,
        height=radiograph.height,
        channels=radiograph.channels,
        bit_depth=radiograph.bit_depth,
        perceptual_hash=perceptual_hash(radiograph.pixels),
        verdict=objection.verdict if objection else Verdict.ACCEPTED,
        reason=objection.reason if objection else "",
    )


def _with(film: Film, **changes: Any) -> Film:
    return dataclasses.replace(film, **{name: getattr(value, "value", value) for name, value in changes.items()})


def _compared(films: Sequence[Film]) -> tuple[Film, ...]:
    """Mark films whose bytes occur more than once."""
    labels: defaultdict[str, set[str]] = defaultdict(set)
    for film in films:
        if film.label and film.sha256:
            labels[film.sha256].add(film.label)
    first: dict[tuple[str, str], str] = {}
    out = []
    for film in films:
        if not film.is_accepted:
            out.append(film)
        elif len(labels[film.sha256]) > 1:
            out.append(
                _with(film, verdict=Verdict.CONFLICTING, reason="the same bytes stand under both labels in this source")
            )
        elif (original := first.setdefault((film.sha256, film.split), film.path)) != film.path:
            out.append(_with(film, verdict=Verdict.DUPLICATE, reason=f"the same bytes as {Path(original).name}"))
        else:
            out.append(film)
    return tuple(out)


@dataclass(frozen=True, slots=True)
class Distribution:
    """What a cleaned manifest holds, counted.

    Attributes:
        films, accepted: rows in all, and rows that may be used.
        verdicts: rows by verdict.
        classes: accepted rows by given split ("all" where none is given) and label.
        channels: readable rows by channels as stored.
        widths, heights, aspects: smallest, median and largest of the accepted films, by label.
        patients: different patients among the accepted films, by label.
        without_patient: accepted films that name no patient; each counts as its own.
    """

    films: int
    accepted: int
    verdicts: dict[str, int]
    classes: dict[str, dict[str, int]]
    channels: dict[str, int]
    widths: dict[str, tuple[int, int, int]]
    heights: dict[str, tuple[int, int, int]]
    aspects: dict[str, tuple[float, float, float]]
    patients: dict[str, int]
    without_patient: int


def describe(films: Sequence[Film]) -> Distribution:
    """Count a cleaned manifest."""
    accepted = [film for film in films if film.is_accepted]
    by_label = {label.value: [film for film in accepted if film.label == label] for label in Label}
    sides = [*(split.value for split in Split), ""]
    classes = {
        side or "unassigned": counts
        for side in sides
        if (counts := _counts(film.label or "unlabelled" for film in accepted if film.split == side))
    }
    return Distribution(
        films=len(films),
        accepted=len(accepted),
        verdicts=_counts(film.verdict for film in films),
        classes=classes,
        channels=_counts(str(film.channels) for film in films if film.channels),
        widths={label: _spread([film.width for film in rows]) for label, rows in by_label.items() if rows},
        heights={label: _spread([film.height for film in rows]) for label, rows in by_label.items() if rows},
        aspects={
            label: _spread([round(film.width / film.height, 2) for film in rows])
            for label, rows in by_label.items()
            if rows
        },
        patients={label: len({film.patient_id for film in rows} - {""}) for label, rows in by_label.items() if rows},
        without_patient=sum(not film.patient_id for film in accepted),
    )


def _counts(values: Iterable[str]) -> dict[str, int]:
    return dict(sorted(Counter(values).items()))


def _spread(values: list[Any]) -> tuple[Any, Any, Any]:
    ordered = sorted(values)
    return ordered[0], ordered[len(ordered) // 2], ordered[-1]
