"""Which films are answered and where their results go: an ordered list of rules, and the reasons of a decision.

The first rule that a film meets decides. A film that meets no rule is accepted (the sender has made no mistake), but
neither kept nor answered.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any, Final

from chestxray import __version__
from chestxray.errors import FilmError, FilmTooLarge, SettingsInvalid, UnreadableFilm
from chestxray.images.dicom import PREAMBLE, DataSet, age_in_years, elements, open_data_set

MANUFACTURER: Final = "chestxray"  # manufacturer of our own results, which identifies them if they come back
SOFTWARE: Final = f"chestxray {__version__}"

_READ: Final = {  # tag -> name; none of them needs the character set, or is longer than a few letters
    0x00080016: "SOPClassUID",
    0x00080018: "SOPInstanceUID",
    0x00080020: "StudyDate",
    0x00080060: "Modality",
    0x00080070: "Manufacturer",
    0x00100030: "PatientBirthDate",
    0x00101010: "PatientAge",
    0x00180015: "BodyPartExamined",
    0x00185101: "ViewPosition",
    0x0020000D: "StudyInstanceUID",
    0x0020000E: "SeriesInstanceUID",
}
UID_FORM: Final = re.compile(r"[0-9.]{1,64}")  # leading zeros, which the standard forbids, are let through: archives do

# Text elements of patient and study that results copy unchanged (PS3.3 C.7.1.1, C.7.2.1, C.7.2.2).
IDENTITY: Final = frozenset(
    {
        0x00080005, 0x00080020, 0x00080030, 0x00080050, 0x00080090, 0x00080201,  # charset, study, accession, physician
        0x00081030,  # study description
        0x00100010, 0x00100020, 0x00100021, 0x00100022, 0x00100030, 0x00100040,  # name, numbers, birth, sex
        0x00101000, 0x00101010,  # other numbers, age
        0x0020000D, 0x00200010,  # study
    }
)  # fmt: skip
_LAST: Final = max(*_READ, *IDENTITY)
_SEQUENCE: Final = b"SQ"
LONGEST_IDENTITY: Final = 2**16 - 2  # bytes that one of them can have in a result


@dataclass(frozen=True, slots=True)
class FilmFacts:
    """The facts of a film that rules may use. They hold no name and no number of a patient.

    Attributes:
        modality, body_part, view: in upper case, empty if the film does not state it.
        age: in years, None if the film does not state it.
        ae_title: AE title of the sender; "STOW-RS" if the film came by HTTP.
        ours: whether the object is a result of this program.
        transfer_syntax: UID of the encoding.
    """

    sop_class: str
    sop_instance: str
    study: str
    series: str
    modality: str = ""
    body_part: str = ""
    view: str = ""
    age: float | None = None
    ae_title: str = ""
    ours: bool = False
    transfer_syntax: str = ""


def facts_of(data: bytes, ae_title: str = "", source: str = "film") -> FilmFacts:
    """Read the few elements of a DICOM file that a decision needs.

    Args:
        data: the file, with preamble and file meta information.
        ae_title: AE title of the sender.
        source: the film's name in errors.

    Raises: UnreadableFilm, if the header cannot be read, does not name study, series and instance by UIDs, or names the
        patient in more bytes than a result can hold; FilmTooLarge, if it has too many elements, or inflates to too many
        bytes.
    """
    return read_header(data, ae_title, source)[0]


def read_header(data: bytes, ae_title: str = "", source: str = "film") -> tuple[FilmFacts, Mapping[int, bytes]]:
    """Read what decision and results need of a DICOM file, in one pass over its header.

    Args:
        data, ae_title, source: as of ``facts_of``.

    Returns: the facts, and by tag the values of those elements of IDENTITY that the film has, as they are encoded.
    Raises: as ``facts_of``.
    """
    if data[PREAMBLE - 4 : PREAMBLE] != b"DICM":
        raise UnreadableFilm(f"{source}: not a DICOM file: it has no preamble. Export the film from the PACS as DICOM")
    try:
        data_set = open_data_set(data, source)
        found, identity = _values(data_set, source)
        age = age_in_years(found)
    except FilmTooLarge:
        raise
    except FilmError as error:  # damaged in one of several ways, which are one for the sender
        raise UnreadableFilm(f"{source}: not a DICOM file with a readable header ({type(error).__name__})") from None
    for name in ("SOPClassUID", "SOPInstanceUID", "StudyInstanceUID", "SeriesInstanceUID"):
        if not found[name]:
            raise UnreadableFilm(f"{source}: the DICOM header has no {name}, so no result could be put beside it")
        if not UID_FORM.fullmatch(found[name]):
            raise UnreadableFilm(f"{source}: the {name} of the DICOM header is no UID, so no result could refer to it")
    for tag, value in identity.items():
        if len(value) > LONGEST_IDENTITY:
            named = f"({tag >> 16:04X},{tag & 0xFFFF:04X})"
            raise UnreadableFilm(f"{source}: the DICOM header's {named} has more than {LONGEST_IDENTITY:,} bytes")
    facts = FilmFacts(
        sop_class=found["SOPClassUID"],
        sop_instance=found["SOPInstanceUID"],
        study=found["StudyInstanceUID"],
        series=found["SeriesInstanceUID"],
        modality=found["Modality"].upper(),
        body_part=found["BodyPartExamined"].upper(),
        view=found["ViewPosition"].upper(),
        age=age,
        ae_title=ae_title,
        ours=found["Manufacturer"] == MANUFACTURER,
        transfer_syntax=data_set.transfer_syntax,
    )
    return facts, identity


def _values(data_set: DataSet, source: str) -> tuple[dict[str, str], dict[int, bytes]]:
    """Return the values that facts need by name, and those of IDENTITY by tag. Raises: FilmError."""
    found, identity = dict.fromkeys(_READ.values(), ""), {}
    for element in elements(data_set.data, data_set.start, data_set.encoding, source):
        if element.tag > _LAST:  # later elements may be cut off
            break
        if element.tag in IDENTITY and element.vr != _SEQUENCE:
            identity[element.tag] = data_set.data[element.value : element.end]
        if name := _READ.get(element.tag):
            found[name] = data_set.data[element.value : element.end].decode("ascii", "replace").strip("\0 ")
    return found, identity


@dataclass(frozen=True, slots=True)
class Rule:
    """One rule; a condition that is left out is met by every film.

    Attributes:
        name: its name in ``--explain`` and on the status page.
        modality, body_part, view: values of the DICOM elements, any of which will do; case does not count.
        age: years, from the first to below the second; a film without a stated age does not meet the condition.
        ae_title: patterns of senders, such as "CR*".
        answer: False refuses to answer the films that meet this rule.
        send_to: names of destinations.
        secondary_capture: whether a picture with the heat map is sent with the report.
    """

    name: str
    modality: tuple[str, ...] = ()
    body_part: tuple[str, ...] = ()
    view: tuple[str, ...] = ()
    age: tuple[float, ...] = ()
    ae_title: tuple[str, ...] = ()
    answer: bool = True
    send_to: tuple[str, ...] = ()
    secondary_capture: bool = True

    def __post_init__(self) -> None:
        if self.age and (len(self.age) != len(("from", "to")) or not 0 <= self.age[0] < self.age[1]):
            raise SettingsInvalid(f"rule {self.name}: age = {list(self.age)}; give two rising numbers of years")
        if self.answer and not self.send_to:
            raise SettingsInvalid(f"rule {self.name}: send_to names no destination. Name one, or set answer = false")

    def findings(self, film: FilmFacts) -> tuple[tuple[bool, str], ...]:
        """Test each condition of the rule: (met, in words)."""
        return tuple(
            (met(wanted, found), f"{name} is {_stated(found)}; the rule wants {_wanted(name, wanted)}")
            for name, met, found in _conditions(film)
            if (wanted := getattr(self, name))
        )


Condition = Callable[[Sequence[Any], Any], bool]


def _conditions(film: FilmFacts) -> tuple[tuple[str, Condition, Any], ...]:
    return (
        ("modality", _one_of, film.modality),
        ("body_part", _one_of, film.body_part),
        ("view", _one_of, film.view),
        ("age", _between, film.age),
        ("ae_title", _like, film.ae_title),
    )


def _one_of(wanted: Sequence[str], found: str) -> bool:
    return found in {value.upper() for value in wanted}


def _between(wanted: Sequence[float], found: float | None) -> bool:
    return found is not None and wanted[0] <= found < wanted[1]


def _like(wanted: Sequence[str], found: str) -> bool:
    return any(fnmatchcase(found, pattern) for pattern in wanted)


def _wanted(name: str, values: Sequence[Any]) -> str:
    return f"{values[0]:g} to below {values[1]:g}" if name == "age" else " or ".join(map(str, values))


def _stated(value: object) -> str:
    if isinstance(value, float):
        return f"{value:.1f} years"
    return "not stated" if value in {"", None} else str(value)


@dataclass(frozen=True, slots=True)
class Decision:
    """What happens to a film, and why, line by line.

    Attributes:
        rule: the rule that decided; None if none did.
        reasons: in the order in which the rules were tested.
    """

    answered: bool
    rule: Rule | None
    reasons: tuple[str, ...]


def decide(film: FilmFacts, rules: Sequence[Rule]) -> Decision:
    """Test the rules in order; the first rule whose conditions are all met decides."""
    if film.ours:
        return Decision(answered=False, rule=None, reasons=("it is a result of this program, which is never answered",))
    reasons = []
    for rule in rules:
        failed = [words for met, words in rule.findings(film) if not met]
        if failed:
            reasons.append(f"rule {rule.name}: not met: {'; '.join(failed)}")
            continue
        action = f"results go to {', '.join(rule.send_to)}" if rule.answer else "not answered, as the rule says"
        reasons.append(f"rule {rule.name}: met: {action}")
        return Decision(answered=rule.answer, rule=rule, reasons=tuple(reasons))
    return Decision(answered=False, rule=None, reasons=(*reasons, "no rule is met, so it is not answered"))
