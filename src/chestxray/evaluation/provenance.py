"""Where the figures of a report come from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from chestxray.schema import INTENDED_USE, NOTICE


@dataclass(frozen=True, slots=True)
class CohortStep:
    """One line of the way from the films collected to the films scored.

    Attributes:
        count: films left after this step, or taken out by it where ``removed``.
    """

    step: str
    count: int
    reason: str = ""
    removed: bool = False


@dataclass(frozen=True, slots=True)
class GateCurve:
    """How much the model's gate refuses, by the limit of its score, on pictures that set its limits.

    Attributes:
        words: what it refuses, in one line.
        limits: of the score, 0 to 1, rising.
        limit: the one that is used.
        refused: the share of each kind of picture that is refused at each of ``limits``.
        counts: pictures of each kind.
    """

    words: str
    limits: tuple[float, ...]
    limit: float
    refused: Mapping[str, tuple[float, ...]]
    counts: Mapping[str, int]


@dataclass(frozen=True, slots=True)
class Provenance:
    """How the figures came about: all that somebody else needs to get them again.

    Attributes:
        title: of the report.
        bundle, model_sha256: what was judged; the hash is empty for scores from elsewhere.
        source, split: the films it was judged on.
        judged_on: what operating points chosen on these films, or on some of them, name them, besides ``split``.
        source_sha256: of the manifest or the table of scores; empty for a folder.
        cohort: from collected to scored, in order; may be empty.
        leakage: what was done to keep patients and films on one side of the split, in a sentence or two.
        command: as it was typed.
        versions: of the program and of the libraries behind the figures, by name.
        created: date and time, from whoever calls; empty leaves it out.
        gate: of the model; None where it has none, or where nothing but scores is known.
    """

    title: str
    bundle: str
    model_sha256: str
    source: str
    split: str
    cohort: tuple[CohortStep, ...] = ()
    leakage: str = ""
    command: str = ""
    versions: Mapping[str, str] = field(default_factory=dict)
    seed: int = 0
    created: str = ""
    judged_on: tuple[str, ...] = ()
    source_sha256: str = ""
    intended_use: str = INTENDED_USE
    notice: str = NOTICE
    gate: GateCurve | None = None
