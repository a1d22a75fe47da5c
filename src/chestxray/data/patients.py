"""Patients of films: ids as sources write them, ids that name no patient, and messages about unknown patients."""

from __future__ import annotations

import dataclasses
import re
from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import Final

from chestxray.errors import UsageError
from chestxray.progress import counted
from chestxray.schema import PATIENTS_UNKNOWN, Film

# Values of a column or a DICOM header for a removed id, in lower case without punctuation.
_NOBODY: Final = frozenset(
    {
        "anonymous", "anonymized", "anonymised", "anon", "unknown", "none", "null", "nan", "na", "removed", "deleted",
        "deidentified", "redacted", "unnamed", "patient", "patientid", "noid", "noname", "notavailable", "hidden",
    }
)  # fmt: skip
_SHARED_FROM: Final = 3  # number of films with one and the same id at which the id names no single patient
_NUMBER: Final = re.compile(r"(\d+)(?:\.0+)?")
# A folder of one patient, as CheXpert has it: train/patient00001/study1/view1_frontal.jpg
PATIENT_FOLDER: Final = re.compile(r"(?:^|/)(patient[ _-]?\d+)/", re.IGNORECASE)
_NAMED: Final = 3  # ids that a message lists before it counts the rest


def names_nobody(patient_id: str) -> bool:
    """Check whether an id stands for a removed one: "ANONYMOUS", "n/a", "xxxx"."""
    bare = re.sub(r"[^0-9a-z]", "", patient_id.lower())
    return bare in _NOBODY or not bare.strip("x")


def patient_group(patient_id: str) -> str:
    """Return the generous key for splitting: numbers without leading zeros, published counters without their name.

    00012, 12 and 12.0 may be one patient, written by different programs: no patient may be in two splits.
    """
    if match := _NUMBER.fullmatch(patient_id):
        return match[1].lstrip("0") or "0"
    if match := re.fullmatch(r"(person\d+)_(?:bacteria|virus)", patient_id):
        return match[1]
    return patient_id.removeprefix("NORMAL2-") if patient_id.startswith("NORMAL2-IM-") else patient_id


def without_nobody(films: Sequence[Film]) -> tuple[tuple[Film, ...], str]:
    """Remove ids that name no patient; return the films and a message ("" if there is nothing to report).

    An id names no patient if it is a word for that, or if three or more films all have it: one ANONYMOUS for all would
    keep all films in one split.
    """
    ids = {film.patient_id for film in films if film.patient_id}
    nobody = {patient for patient in ids if names_nobody(patient)}
    if len(ids) == 1 and len(films) >= _SHARED_FROM and all(film.patient_id for film in films):
        nobody = ids
    if not nobody:
        return tuple(films), ""
    count = sum(film.patient_id in nobody for film in films)
    cleared = tuple(dataclasses.replace(film, patient_id="") if film.patient_id in nobody else film for film in films)
    films_have = counted(count, "film has a patient id", "films have a patient id")
    return cleared, f"{films_have} that names nobody ({_listed(nobody)}): taken for unknown"


def about_patients(films: Sequence[Film]) -> list[str]:
    """Describe problems with the patients of some films: unknown, or written in several ways."""
    unknown = sum(not film.patient_id for film in films)
    messages = []
    if films and unknown == len(films):
        messages.append(
            f"Beware: {PATIENTS_UNKNOWN}. Give a column patient_id, or read them from the names with "
            '"chestxray collect --patient-pattern"'
        )
    elif unknown:
        messages.append(f"Beware: patients unknown for {unknown:,} of {len(films):,} films: each counts as its own")
    return messages + written_in_several_ways(films)


def written_in_several_ways(films: Iterable[Film]) -> list[str]:
    """Describe ids that differ only in zeros, like 00012, 12 and 12.0; return "" if there are none."""
    alike: defaultdict[str, set[str]] = defaultdict(set)
    for film in films:
        if _NUMBER.fullmatch(film.patient_id):
            alike[patient_group(film.patient_id)].add(film.patient_id)
    several = [sorted(ids) for ids in alike.values() if len(ids) > 1]
    if not several:
        return []
    examples = "; ".join(" and ".join(ids) for ids in several[:_NAMED])
    ids_are = counted(len(several), "patient id is", "patient ids are")
    message = (
        f"Beware: {ids_are} written in several ways ({examples}): kept on one split when splits are drawn, and counted "
        "as different patients otherwise. Write each id in one way"
    )
    return [message]


def pattern_of(text: str) -> re.Pattern[str]:
    """Compile the pattern that reads a patient from a path. Raises: UsageError."""
    try:
        return re.compile(text)
    except re.error as error:
        raise UsageError(f"--patient-pattern {text}: is no regular expression ({error})") from error


def patient_in(path: str, pattern: re.Pattern[str]) -> str:
    """Return the pattern's match in a path inside its source: group "patient", else the first group, else the match."""
    found = pattern.search(path)
    if found is None:
        return ""
    if "patient" in pattern.groupindex:
        return found["patient"] or ""
    return (found[1] if pattern.groups else found[0]) or ""


def _listed(ids: Iterable[str]) -> str:
    names = sorted(ids)
    rest = f" and {len(names) - _NAMED:,} more" if len(names) > _NAMED else ""
    return ", ".join(names[:_NAMED]) + rest
