"""How many of a user's films a bundle refuses, and why; no labels are needed.

films -> predictions -> kinds of refusal, each with its count and its 95% interval
"""

from __future__ import annotations

import dataclasses
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Final

from chestxray.errors import SourceInvalid
from chestxray.inference.batch import ScoredFilm, score_films
from chestxray.inference.predictor import Predictor
from chestxray.metrics.intervals import wilson_interval
from chestxray.progress import ProgressCallback, no_progress
from chestxray.schema import Film

UNREADABLE: Final = "cannot be read as a film"

# The beginning of a reason, or a part of it, and the kind that it belongs to; the first match decides.
_KINDS: Final = (
    (r"it looks like a chest film (turned|that stands)", "a film that was turned"),
    (r"it looks like the negative|its grey levels are those of a negative", "a negative"),
    (r"it looks like (.+?), which this model was not trained on", r"\1"),
    (r"it does not look like a frontal chest film", "unlike the training films"),
    (r"its file gives an age", "another age, by its file"),
    (r"its file states no age", "no age in its file"),
    (r"its file names the modality", "another modality, by its file"),
    (r"its file names the body part", "another body part, by its file"),
    (r"its file names |its rows and columns run", "another view, by its file"),
    (r"its grey levels are almost uniform", "almost uniform"),
    (r"its grey levels", "grey levels cut off or too few"),
    (r"[\d.]+% of its pixels are coloured", "coloured"),
    (r"\d+ x \d+ pixels; each side", "too small"),
    (r"\d+ x \d+ pixels; a chest film", "too long and narrow"),
)


def kind_of_refusal(reason: str) -> str:
    """Return the kind of refusal that a reason belongs to; a reason of no gate rule means "unreadable"."""
    for pattern, kind in _KINDS:
        if found := re.match(pattern, reason):
            return found.expand(kind)
    return UNREADABLE


@dataclass(frozen=True, slots=True)
class RefusedKind:
    """One kind of refusal.

    Attributes:
        kind: in words.
        films: number of films refused for this reason.
        share: proportion of all films, 0 to 1, with the ends of its 95% interval (Wilson).
        example: the first film, and the whole reason.
    """

    kind: str
    films: int
    share: float
    low: float
    high: float
    example: str
    reason: str


@dataclass(frozen=True, slots=True)
class RefusalCheck:
    """The films of a source that a bundle refuses.

    Attributes:
        model: the bundle's name.
        films: number of films checked.
        refused: all films without a prediction, as one kind; its example is empty if there is none.
        kinds: the most frequent first.
        by_label: the same as ``refused`` for each label in the source.
    """

    model: str
    films: int
    refused: RefusedKind
    kinds: tuple[RefusedKind, ...]
    by_label: tuple[RefusedKind, ...]

    def to_json(self) -> dict[str, Any]:
        """Return the check as plain data."""
        return dataclasses.asdict(self)


def check_refusals(
    predictor: Predictor,
    films: Sequence[Film],
    *,
    on_progress: ProgressCallback = no_progress,
    workers: int | None = None,
) -> RefusalCheck:
    """Classify films and count what is refused.

    Args:
        predictor: the loaded bundle.
        films: any, labelled or not; at least one.
        on_progress: called with (done, total).
        workers: number of processes that read films; by default one a core.

    Raises: SourceInvalid, if there is no film; BundleInvalid.
    """
    if not films:
        raise SourceInvalid("there is no film to be refused or answered")
    return counted(predictor.info.name, score_films(predictor, films, on_progress=on_progress, workers=workers))


def counted(model: str, scored: Iterable[ScoredFilm]) -> RefusalCheck:
    """Count refusals by kind and by label."""
    films, labels, counts, of_label = 0, Counter[str](), Counter[str](), Counter[str]()
    examples: dict[str, tuple[str, str]] = {}
    for row in scored:
        films += 1
        labels[row.film.label] += 1
        gate = row.prediction.gate
        if gate.accepted:
            continue
        kind = kind_of_refusal(gate.reason)
        counts[kind] += 1
        of_label[row.film.label] += 1
        examples.setdefault(kind, (row.film.path, gate.reason))

    def row_of(kind: str, refused: int, of: int, example: tuple[str, str] = ("", "")) -> RefusedKind:
        interval = wilson_interval(refused, of)
        return RefusedKind(kind, refused, refused / of, interval.low, interval.high, *example)

    return RefusalCheck(
        model,
        films,
        row_of("all refused", counts.total(), films, next(iter(examples.values()), ("", ""))),
        tuple(row_of(kind, count, films, examples[kind]) for kind, count in counts.most_common()),
        tuple(row_of(label, of_label[label], of) for label, of in sorted(labels.items()) if label),
    )
