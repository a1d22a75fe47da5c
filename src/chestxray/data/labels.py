"""What the published films say in their names.

    person281_bacteria_1328.jpeg    pneumonia, patient 281 of the bacterial counter
    person281_virus_552.jpeg        pneumonia, patient 281 of the viral counter
    IM-0115-0001.jpeg               normal, patient 115
    NORMAL2-IM-0587-0001.jpeg       normal, patient 587 of a second series

Whether the counters name the same people is not published. So the tool is generous where it splits (one
number is one person, whatever the counter: nobody can end up on two splits) and strict where it accuses (the
number with its counter's name), since published audits by the bare number alone report patients shared by
the official training and test folders that the full name does not confirm.

Source: Kermany, Zhang, Goldbaum, Mendeley Data (2018), the file names themselves.
"""

from __future__ import annotations

import re
from typing import Final, NamedTuple

from chestxray.schema import Label

_PNEUMONIA: Final = re.compile(r"(?P<patient>person\d+)_(?P<cause>bacteria|virus)_\d+", re.IGNORECASE)
_NORMAL: Final = re.compile(r"(?P<patient>(?:NORMAL2-)?IM-\d+)-\d+", re.IGNORECASE)


class NamedFilm(NamedTuple):
    """What a file name tells."""

    label: Label
    patient_id: str
    cause: str


def parse_name(stem: str) -> NamedFilm | None:
    """Read a published film's name, without its ending; None where it is not one."""
    if match := _PNEUMONIA.match(stem):
        cause = match["cause"].lower()
        return NamedFilm(Label.PNEUMONIA, f"{match['patient'].lower()}_{cause}", cause)
    if match := _NORMAL.match(stem):
        return NamedFilm(Label.NORMAL, match["patient"].upper(), "")
    return None


def patient_group(patient_id: str) -> str:
    """The generous key for splitting: the number without its counter's name; other ids stay as they are."""
    if match := re.fullmatch(r"(person\d+)_(?:bacteria|virus)", patient_id):
        return match[1]
    return patient_id.removeprefix("NORMAL2-") if patient_id.startswith("NORMAL2-IM-") else patient_id
