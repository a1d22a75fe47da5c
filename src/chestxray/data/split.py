"""Splits: films are assigned patient by patient; a check stops a run on leakage.

Two keys for one patient, on purpose. The published counters (``data.labels``) may or may not name the same people, so
the bare number is the key for drawing splits: no patient is in two splits, whatever the counters mean. For reporting
leakage of a given split, the key is the number with its counter's name: a report has to be certain. ``shared_patients``
gives both counts.
"""

from __future__ import annotations

import dataclasses
import json
import random
from collections import Counter, defaultdict
from collections.abc import Container, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations, product
from pathlib import Path
from typing import Any, Final

from chestxray.arguments import arguments_checked, is_number
from chestxray.data.dedup import near_pairs
from chestxray.data.labels import about_patients, patient_group, without_nobody
from chestxray.data.sources import name_of
from chestxray.errors import Leakage, OutOfRange, SourceInvalid
from chestxray.files import write_atomically
from chestxray.progress import Log, warn
from chestxray.schema import Film, Label, Split, rows_of

# A given validation split is kept if it holds at least this fraction of the films outside the test split.
# The 16 films of the published set (0.3%) are too few to choose anything on, so that split is drawn again.
MIN_VALIDATION: Final = 0.05
Pairs = Sequence[tuple[str, str]]  # of perceptual hashes that are nearly the same

NAMED_PAIRS: Final = 5  # leaking pairs that an error lists before it counts the rest


@dataclass(frozen=True, slots=True)
class SplitSettings:
    """How to draw the splits that the source does not give.

    Attributes:
        validation: share of the films outside the test split, by class.
        test: share of all films, by class; used only if the source has no test split. 0 draws none: for a final model
            whose test films are elsewhere.
        seed: the same seed and films give the same splits.
    """

    validation: float = 0.15
    test: float = 0.15
    seed: int = 0

    def __post_init__(self) -> None:
        are_numbers = is_number(self.validation) and is_number(self.test)
        if not (are_numbers and 0.0 < self.validation < 1.0 and 0.0 <= self.test < 1.0):
            raise OutOfRange(
                f"validation is {self.validation} and test is {self.test}; both are shares below 1, validation above 0"
            )
        if not is_number(self.seed, whole=True):
            raise OutOfRange(f"seed is {self.seed!r}; it is a whole number")


@arguments_checked
def split(
    films: Sequence[Film],
    settings: SplitSettings = SplitSettings(),
    *,
    leakage_allowed: str = "",
    log: Log = warn,
) -> tuple[Film, ...]:
    """Assign a split to every accepted, labelled film. The order stays.

    A labelled film that ``clean`` rejected gets the split that the source gives it, else that of its patient's accepted
    films, so that refusals can be counted by split; it is never packed. Other films get none.

    A given test split is respected. A given validation split is respected if it is large enough. Missing splits are
    drawn by patient (by the generous key of ``data.labels``) and by class; films with the same bytes, and films that
    are nearly the same (``data.dedup``), stay together.

    Args:
        films: rows of a cleaned manifest.
        settings: shares and seed.
        leakage_allowed: reason to use a given split that leaks; empty stops the run.
        log: called with a line if patients are unknown: then a patient may be in two splits.

    Raises:
        Leakage: the given splits share a patient or a film.
        SourceInvalid: too few patients of a class to draw splits from.
    """
    films, note = without_nobody(rows_of(films))
    usable = [film for film in films if film.is_accepted and film.label]
    for line in (*filter(None, [note]), *about_patients(usable)):
        log(line)
    if not _validation_is_large_enough(usable):
        usable = [dataclasses.replace(film, split="" if film.split == Split.VAL else film.split) for film in usable]
    refuse_leakage(usable, allowed=leakage_allowed)
    split_of = {film.path: film.split or Split.TRAIN.value for film in usable}
    alike = near_pairs(film.perceptual_hash for film in usable)
    for split, share, seed in (
        (Split.TEST, settings.test, settings.seed),
        (Split.VAL, settings.validation, settings.seed + 1),
    ):
        if share and split not in split_of.values():
            pool = [film for film in usable if split_of[film.path] == Split.TRAIN]
            _draw(pool, alike, split_of, split, share, seed)
    split_of |= _splits_of_rejected(films, split_of, {film.split for film in usable})
    out = tuple(dataclasses.replace(film, split=split_of.get(film.path, "")) for film in films)
    refuse_leakage(out, allowed=leakage_allowed)
    return out


def _splits_of_rejected(films: Sequence[Film], split_of: Mapping[str, str], given: Container[str]) -> dict[str, str]:
    """Return the splits of rejected, labelled films by path; ``given`` holds the source's splits that are kept."""
    of_patient = {patient_group(f.patient_id): split_of[f.path] for f in films if f.path in split_of and f.patient_id}
    return {
        film.path: (film.split in given and film.split) or of_patient.get(patient_group(film.patient_id), "")
        for film in films
        if film.label and _is_rejected(film)
    }


def _is_rejected(film: Film) -> bool:
    """Return True if ``clean`` saw the film and rejected it."""
    return bool(film.verdict) and not film.is_accepted


def refuse_leakage(films: Iterable[Film], *, allowed: str = "") -> None:
    """Stop if two splits share something, unless a reason allows it. Raises: Leakage, which names the pairs."""
    if allowed:
        return
    found = leaks(films)
    if not found:
        return
    listed = "; ".join(str(leak) for leak in found[:NAMED_PAIRS])
    rest = f"; and {len(found) - NAMED_PAIRS} more" if len(found) > NAMED_PAIRS else ""
    raise Leakage(
        f"{len(found)} patients or films are in two splits: {listed}{rest}. "
        "Remove one film of each pair from the source, or drop its folders and let the split be drawn"
    )


@dataclass(frozen=True, slots=True)
class Leak:
    """One thing that two splits share: its kind, and one film in each split."""

    what: str
    first: str
    second: str

    def __str__(self) -> str:
        return f"{self.what} ({self.first} and {self.second})"


def leaks(films: Iterable[Film]) -> list[Leak]:
    """Find every patient (by the full id), file (by its bytes) and picture (nearly the same) in two splits.

    Films that ``clean`` rejected leak nothing: they are not used. Pictures are compared if it accepted both films.
    """
    holders: defaultdict[tuple[str, str], dict[str, Film]] = defaultdict(dict)
    pictures: defaultdict[str, dict[str, Film]] = defaultdict(dict)
    for film in films:
        if not film.split or _is_rejected(film):
            continue
        for kind, key in (("patient", film.patient_id), ("identical film", film.sha256)):
            if key:
                holders[kind, key].setdefault(film.split, film)
        if film.is_accepted:
            pictures[film.perceptual_hash].setdefault(film.split, film)
    found = []
    for (kind, key), splits in holders.items():
        name = f"{kind} {key}" if kind == "patient" else f"{kind} {key[:12]}"
        found += [_leak(name, one, other) for one, other in combinations(_in_order(splits), 2)]
    return found + _leaking_pictures(pictures)


def _leaking_pictures(pictures: Mapping[str, dict[str, Film]]) -> list[Leak]:
    """Find films in two splits that are nearly the same, except those with the same bytes."""
    alike = [pair for hash_, splits in pictures.items() if hash_ for pair in combinations(_in_order(splits), 2)]
    if len({split for splits in pictures.values() for split in splits}) > 1:
        for one, other in near_pairs(pictures):
            alike += product(_in_order(pictures[one]), _in_order(pictures[other]))
    return [
        _leak("nearly the same film", one, other)
        for one, other in alike
        if one.split != other.split and not one.sha256 == other.sha256 != ""
    ]


def _in_order(splits: Mapping[str, Film]) -> list[Film]:
    return [splits[split] for split in Split if split in splits]


def _leak(what: str, one: Film, other: Film) -> Leak:
    pair = sorted((one, other), key=lambda film: list(Split).index(Split(film.split)))
    return Leak(what, *(f"{film.split}/{name_of(film)}" for film in pair))


@dataclass(frozen=True, slots=True)
class SharedPatients:
    """Patients in a given test split who are in another split too, by either key.

    Attributes:
        by_number: by the bare number, which merges the published counters: an upper limit.
        by_full_key: by the number with its counter's name: the certain ones.
    """

    by_number: int
    by_full_key: int


def shared_patients(films: Iterable[Film]) -> SharedPatients | None:
    """Count these patients by both keys; None if no film is in the test split."""
    test: set[str] = set()
    others: set[str] = set()
    given = False
    for film in films:
        given = given or film.split == Split.TEST
        if film.split and film.patient_id and not _is_rejected(film):
            (test if film.split == Split.TEST else others).add(film.patient_id)
    if not given:
        return None
    numbers = {patient_group(patient) for patient in test} & {patient_group(patient) for patient in others}
    return SharedPatients(by_number=len(numbers), by_full_key=len(test & others))


# --------------------------------------------------------------------------- what goes beside the manifest


def write_allowance(manifest: Path, document: Mapping[str, Any], reason: str) -> None:
    """Write the facts of a split beside its manifest, as JSON, with the reason that allows its leakage."""
    text = json.dumps({**document, "leakage_allowed": reason}, indent=2)
    write_atomically(manifest.with_suffix(".json"), text.encode())


def read_allowance(manifest: Path) -> str:
    """Return the reason that allows leakage in a manifest's splits; empty if there is none, and leakage stops a run."""
    if manifest.suffix.lower() != ".csv":
        return ""
    try:
        document = json.loads(manifest.with_suffix(".json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return ""
    return str(document.get("leakage_allowed", "")) if isinstance(document, dict) else ""


def _validation_is_large_enough(usable: Sequence[Film]) -> bool:
    outside_test = [film for film in usable if film.split != Split.TEST]
    return sum(film.split == Split.VAL for film in outside_test) >= MIN_VALIDATION * len(outside_test)


def _draw(films: Sequence[Film], alike: Pairs, split_of: dict[str, str], split: Split, share: float, seed: int) -> None:
    """Move whole groups to a split, class by class, until the split holds its fraction of each class."""
    strata: defaultdict[str, list[list[Film]]] = defaultdict(list)
    for group in _groups(films, alike):
        majority = Counter(film.label for film in group).most_common(1)[0][0]
        strata[majority].append(group)
    for label in Label:
        groups = strata[label.value]
        if len(groups) < 2:  # noqa: PLR2004 - one for each split
            raise SourceInvalid(
                f"{len(groups)} patient(s) with {label} films: at least 2 are needed to draw the {split} split. "
                "Add films of more patients"
            )
        random.Random(f"{seed} {label}").shuffle(groups)  # noqa: S311 - a seeded draw, no secret
        wanted = share * sum(len(group) for group in groups)
        taken = 0
        for group in groups[:-1]:
            if taken and taken + len(group) / 2 > wanted:
                break
            taken += len(group)
            for film in group:
                split_of[film.path] = split.value


def _groups(films: Sequence[Film], alike: Pairs) -> list[list[Film]]:
    """Return groups of films that must stay together (same patient, or nearly the same film), in order of path."""
    leader: dict[str, str] = {}

    def find(key: str) -> str:
        while leader.setdefault(key, key) != key:
            leader[key] = leader[leader[key]]
            key = leader[key]
        return key

    for film in films:
        if film.patient_id:
            leader[find(f"patient {patient_group(film.patient_id)}")] = find(film.path)
        if film.sha256:
            leader[find(f"bytes {film.sha256}")] = find(film.path)
        if film.perceptual_hash:
            leader[find(f"picture {film.perceptual_hash}")] = find(film.path)
    for one, other in alike:
        leader[find(f"picture {one}")] = find(f"picture {other}")
    groups: defaultdict[str, list[Film]] = defaultdict(list)
    for film in sorted(films, key=lambda film: film.path):
        groups[find(film.path)].append(film)
    return list(groups.values())
