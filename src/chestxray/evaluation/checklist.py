"""The items of two reporting guidelines that a report can fill by itself, each with its place in the report.

What an item asks is said here in words of our own; the papers have the full text. Most items need people: where
the patients came from, who read the films, what follows for practice. Those are named, so that nobody takes a
short list for a complete one.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, NamedTuple

if TYPE_CHECKING:
    from chestxray.evaluation.assessment import Assessment
    from chestxray.evaluation.provenance import Provenance


class Item(NamedTuple):
    """One item of a guideline.

    Attributes:
        asks: what it asks, in short.
        place: the identifier of the part of the page that answers.
        whole: whether the page answers it; otherwise the authors have more to say.
    """

    number: str
    asks: str
    place: str
    whole: bool


@dataclass(frozen=True, slots=True)
class Guideline:
    """A guideline, the items that a report fills, and those that are left to its authors."""

    name: str
    source: str
    items: tuple[Item, ...]
    left: str


TRIPOD_AI: Final = Guideline(
    name="TRIPOD+AI",
    source="Collins et al., BMJ 385 (2024) e078378",
    items=(
        Item("1", "a title that names the study as an evaluation of a model", "top", whole=False),
        Item("3b", "intended use and population", "tested", whole=False),
        Item("5a", "where the data came from", "tested", whole=False),
        Item("6b", "who was eligible, and who was excluded", "cohort", whole=False),
        Item("7", "how data were prepared and checked", "cohort", whole=False),
        Item("10", "how many took part", "tested", whole=False),
        Item("11", "missing data: films without a label or a score", "cohort", whole=True),
        Item("12a", "how data were divided between development and evaluation", "leakage", whole=False),
        Item("12e", "the measures and plots of performance", "sure", whole=True),
        Item("12g", "how predictions become calls", "points", whole=True),
        Item("14", "fairness: performance in subgroups", "subgroups", whole=False),
        Item("15", "the output, and the thresholds with their reasons", "points", whole=True),
        Item("18f", "code: the software and its versions", "made", whole=False),
        Item("20a", "the flow of participants", "cohort", whole=True),
        Item("21", "participants and outcomes in each analysis", "tested", whole=True),
        Item("22", "the model itself, by its hash", "tested", whole=False),
        Item("23a", "performance with intervals, in subgroups too", "sure", whole=True),
        Item("23b", "how performance varies between clusters", "subgroups", whole=False),
        Item("26", "limits of the study", "limits", whole=False),
        Item("27a", "what becomes of input of poor quality", "cohort", whole=False),
    ),
    left="2, 3a, 3c, 4, 5b, 6a, 6c, 8a-c, 9a-c, 12b-d, 12f, 13, 16, 17, 18a-e, 19, 20b-c, 24, 25, 27b-c",
)

CLAIM: Final = Guideline(
    name="CLAIM",
    source="Mongan, Moy, Kahn, Radiology: Artificial Intelligence 2 (2020) e200029",
    items=(
        Item("1", "a title that names the use of artificial intelligence", "top", whole=False),
        Item("7", "where the data came from", "tested", whole=False),
        Item("8", "what was included and excluded", "cohort", whole=False),
        Item("13", "how missing data were handled", "cohort", whole=True),
        Item("20", "how films were assigned to the sides", "leakage", whole=False),
        Item("21", "at which level the sides are disjoint", "leakage", whole=True),
        Item("23", "software, libraries, versions", "made", whole=True),
        Item("28", "the measures of performance", "made", whole=True),
        Item("29", "how uncertainty was measured", "made", whole=True),
        Item("31", "how answers are explained: heat maps of the worst errors", "heat-maps", whole=False),
        Item("32", "evaluation on internal or on external data", "tested", whole=False),
        Item("33", "the flow of films, with the reasons of exclusion", "cohort", whole=True),
        Item("35", "performance on the side judged", "sure", whole=True),
        Item("36", "diagnostic accuracy and its precision", "answer", whole=True),
        Item("37", "analysis of the wrong answers", "errors", whole=True),
        Item("38", "limits of the study", "limits", whole=False),
    ),
    left="2-6, 9-12, 14-19, 22, 24-27, 30, 34, 39-42",
)

GUIDELINES: Final = (TRIPOD_AI, CLAIM)


def absent_from(assessment: Assessment, provenance: Provenance, *, pictures: bool) -> frozenset[str]:
    """The places that items name and that the report of these does not have."""
    there = {
        "cohort": provenance.cohort,
        "leakage": provenance.leakage,
        "limits": assessment.limits,
        "subgroups": assessment.subgroups,
        "heat-maps": pictures,
    }
    return frozenset(place for place, holds in there.items() if not holds)
