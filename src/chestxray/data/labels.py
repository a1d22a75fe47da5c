"""The meaning of words, folders and file names: a film's label, split, cause and patient.

Words are compared in one form (lower case, single spaces, numbers without a fraction of zero), and as a whole: "no
pneumonia" is a word of its own, never a text in which "pneumonia" was found. A word that is in no table has no meaning,
and the user is asked for the meaning instead of a guess.

The names of the published films carry facts as well:

    person281_bacteria_1328.jpeg    pneumonia, patient 281 of the bacterial counter      (as Kaggle has them)
    person281_virus_552.jpeg        pneumonia, patient 281 of the viral counter
    IM-0115-0001.jpeg               normal, patient 115
    NORMAL2-IM-0587-0001.jpeg       normal, patient 587 of a second series
    NORMAL-1003233-0001.jpeg        normal, patient 1003233                               (as Mendeley has them)
    BACTERIA-1008087-0002.jpeg      pneumonia, patient 1008087
    VIRUS-1089251-0001.jpeg         pneumonia, patient 1089251

Whether Kaggle's counters name the same people is not published. So the tool is generous when it draws splits (one
number is one person, whatever the counter, so that no patient is in two splits) and strict when it reports leakage (the
number with its counter's name), because published audits by the bare number report patients shared by the official
training and test folders that the full name does not confirm.

Source: Kermany, Zhang, Goldbaum, Mendeley Data (2018), the file names themselves.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Final, NamedTuple

from chestxray.errors import UsageError
from chestxray.progress import counted
from chestxray.schema import PATIENTS_UNKNOWN, Film, Label, Split
from chestxray.text import ACCENTS, INVISIBLE, without_accents

_PNEUMONIA: Final = re.compile(r"(?P<patient>person\d+)_(?P<cause>bacteria|virus)_\d+", re.IGNORECASE)
_NORMAL: Final = re.compile(r"(?P<patient>(?:NORMAL2-)?IM-\d+)-\d+", re.IGNORECASE)
_MENDELEY: Final = re.compile(r"(?P<kind>NORMAL|BACTERIA|VIRUS)-(?P<patient>\d+)-\d+", re.IGNORECASE)


def _phrases(text: str) -> tuple[str, ...]:
    """Return the phrases of a text that commas separate."""
    return tuple(" ".join(phrase.split()) for phrase in text.split(","))


# Words for a label, in the form of ``in_one_form``. Those of other languages are without their accents.
_NORMAL_WORDS: Final = _phrases(
    """
    normal, normals, healthy, control, controls, no finding, no findings, negative, no pneumonia, not pneumonia,
    non pneumonia, without pneumonia, negative for pneumonia, pneumonia negative, pneumonia absent,
    no evidence of pneumonia,
    sano, sana, sanos, sain, sani, normale, normali, normaux, normales, gesund, unauffallig, ohne befund, kein befund,
    gezond, normaal, normalt, frisk, zdrowy, zdravy, saudavel, saglikli, sin hallazgos, норма, здоров, 正常, 정상
    """
)
_PNEUMONIA_WORDS: Final = _phrases(
    """
    pneumonia, pneumonias, pnemonia, positive, bacteria, bacterial, virus, viral, bacterial pneumonia, viral pneumonia,
    pneumonia bacterial, pneumonia viral, pneumonia bacteria, pneumonia virus, bacteria pneumonia, virus pneumonia,
    lobar pneumonia, atypical pneumonia, bronchopneumonia, broncho pneumonia, brocho pneumonia, pleuropneumonia,
    pleuro pneumonia, positive for pneumonia, pneumonia positive, pneumonia present, with pneumonia,
    neumonia, neumonias, neumonia bacteriana, neumonia viral, pneumonia bacteriana, pneumonie, pneumonien, pneumonies,
    lungenentzundung, polmonite, polmoniti, longontsteking, pneumoni, lunginflammation, lungebetændelse,
    lungebetennelse, zapalenie płuc, zapal plic, zaturre, keuhkokuume, viem phoi, пневмония, 肺炎, 폐렴
    """
)
LABEL_WORDS: Final[Mapping[str, Label]] = {
    **dict.fromkeys(_NORMAL_WORDS, Label.NORMAL),
    **dict.fromkeys(_PNEUMONIA_WORDS, Label.PNEUMONIA),
}
# Words for a label in a table, and as names of folders if both of a pair occur.
YES_AND_NO: Final[Mapping[str, Label]] = {
    **dict.fromkeys(("0", "false", "no", "n", "f", "nein", "non"), Label.NORMAL),
    **dict.fromkeys(("1", "true", "yes", "y", "t", "ja", "si", "oui"), Label.PNEUMONIA),
}
YES_NO_PAIRS: Final = (frozenset({"0", "1"}), frozenset({"no", "yes"}), frozenset({"false", "true"}))
BLANK: Final = frozenset(
    _phrases("nan, none, null, na, n/a, #n/a, nat, <na>, ?, -, unlabelled, unlabeled, \u2013, \u2014, missing")
) | {""}
UNCERTAIN: Final = frozenset(
    _phrases(
        """
        -1, uncertain, unknown, not sure, unclear, equivocal, indeterminate, possible pneumonia, probable pneumonia,
        suspected pneumonia, questionable pneumonia, pneumonia?
        """
    )
)

# Findings and diseases that are neither of the two labels: such films stay without a label, and are counted. In the
# order of NIH ChestX-ray14, CheXpert and MIMIC-CXR, VinDr-CXR, then PadChest, COVID-19 Radiography, RSNA and others.
OTHER_FINDINGS: Final = frozenset(
    _phrases(
        """
        atelectasis, cardiomegaly, effusion, infiltration, mass, nodule, pneumothorax, consolidation, edema, oedema,
        emphysema, fibrosis, pleural thickening, hernia,
        enlarged cardiomediastinum, lung opacity, lung lesion, pleural effusion, pleural other, fracture,
        support devices,
        aortic enlargement, calcification, ild, nodule/mass, other lesion, pulmonary fibrosis, clavicle fracture,
        enlarged pa, lung cavity, lung cyst, mediastinal shift, rib fracture, copd, lung tumor, other disease,
        other diseases,
        covid, covid19, covid 19, sars, mers, ards, tuberculosis, tb, lung cancer, pneumonitis, bronchitis,
        bronchiolitis, asthma, situs inversus, no lung opacity / not normal, unchanged, exclude
        """
    )
)
# Causes of a pneumonia: such a folder inside one named PNEUMONIA keeps its label.
CAUSES: Final[Mapping[str, str]] = {
    **dict.fromkeys(
        _phrases(
            "bacteria, bacterial, bacterial pneumonia, pneumonia bacterial, pneumonia bacteria, bacteria pneumonia"
        ),
        "bacteria",
    ),
    **dict.fromkeys(
        _phrases("virus, viral, viral pneumonia, pneumonia viral, pneumonia virus, virus pneumonia"), "virus"
    ),
    **dict.fromkeys(("covid", "covid19", "covid 19"), "covid"),
    **{name: name for name in ("sars", "mers", "ards", "fungal", "mycoplasma", "aspiration", "lobar")},
}
SPLIT_WORDS: Final[Mapping[str, Split]] = {
    **dict.fromkeys(("train", "training", "trainset", "training set", "train set"), Split.TRAIN),
    **dict.fromkeys(("val", "valid", "validation", "validate", "dev", "development"), Split.VAL),
    **dict.fromkeys(("test", "testing", "testset", "test set"), Split.TEST),
}
_SET: Final = re.compile(r" (?:set|data|dataset|split|images?|films?|files)$")  # after the name of a split
_NUMBERED: Final = re.compile(r"^\d+[ .]+")  # before the name of a class
_WHOLE: Final = re.compile(r"^(-?\d+),0+$")  # a whole number with a decimal comma
_PARTS: Final = re.compile(r"[|;,]")  # between the findings of one film


class NoLabel(StrEnum):
    """Why a word gives no label."""

    BLANK = "blank"
    UNCERTAIN = "uncertain"
    OTHER = "another finding"
    CONTRADICTORY = "normal and not normal at once"
    UNKNOWN = "unknown"


Meaning = Label | NoLabel

NO_LABEL: Final = "none"  # the user's word for "leave these without a label"


def split_named(text: str) -> Split | None:
    """Return the split that a word names, such as "Validation", "test_images" or "train set"; None if it names none."""
    word = in_one_form(text)
    return SPLIT_WORDS.get(word) or SPLIT_WORDS.get(_SET.sub("", word))


def in_one_form(text: str) -> str:
    """Return text in lower case, with single spaces for spaces, underscores and hyphens, and "1.0" as "1".

    "Viral_Pneumonia" and "viral-pneumonia" are "viral pneumonia"; "1.0" and "1,0" are "1"; "-1.0" is "-1". Accents,
    invisible characters and a full stop at the end do not count: "Neumonía." is "neumonia".
    """
    text = without_accents(text.strip().strip("'\"").strip().lower(), ACCENTS | INVISIBLE).strip().removesuffix(".")
    text = _WHOLE.sub(r"\1", text)
    try:
        number = float(text)
    except ValueError:
        return text if text in BLANK else " ".join(re.sub(r"[\s_-]+", " ", text).split())
    return str(int(number)) if math.isfinite(number) and number == int(number) else text


@dataclass(frozen=True, slots=True)
class LabelWords:
    """The words of the tables above, and the user's words, which take precedence.

    Attributes:
        given: word in one form -> its label; None for "leave these films without one".
    """

    given: Mapping[str, Label | None] = field(default_factory=dict)

    @classmethod
    def of(cls, assignments: Iterable[str]) -> LabelWords:
        """Read ``sick=pneumonia``, ``healthy=normal``, ``other=none``; also ``pneumonia=Consolidation|Infiltration``.

        Raises: UsageError, if neither side names a label.
        """
        given: dict[str, Label | None] = {}
        for text in assignments:
            word, equals, label = (part.strip() for part in text.rpartition("="))
            if equals and word and label.lower() in {*Label, NO_LABEL, ""}:
                given[in_one_form(word)] = Label(label.lower()) if label.lower() in set(Label) else None
            elif equals and word.lower() in set(Label):
                given |= {in_one_form(part): Label(word.lower()) for part in label.split("|")}
            else:
                raise UsageError(
                    f"--label {text}: is not WORD=LABEL. The label may be {', '.join(Label)}, or {NO_LABEL}: "
                    "write --label sick=pneumonia, for instance"
                )
        return cls(given)

    def meaning(self, text: str, *, one_of_many: bool = False) -> Meaning:
        """Return the meaning of a table's cell. Several findings of one film are separated by ``|``, ``;`` or a comma.

        A pneumonia among them gives the film the label pneumonia; other findings alone leave it without a label.

        Args:
            one_of_many: whether the column names any of many findings, so that an unknown word is one of them.
        """
        whole = self._word(text)
        if whole is not NoLabel.UNKNOWN:
            return whole
        inner = text.strip()
        listed = inner.startswith("[") and inner.endswith("]")
        parts = [part for part in _PARTS.split(inner[1:-1] if listed else inner) if part.strip(" '\"")]
        if len(parts) > 1 or listed:
            labels = {self._word(part) for part in parts} - {NoLabel.BLANK}
            if Label.PNEUMONIA in labels:
                return NoLabel.CONTRADICTORY if Label.NORMAL in labels else Label.PNEUMONIA
            if labels == {Label.NORMAL}:
                return Label.NORMAL
            return NoLabel.OTHER if labels else NoLabel.BLANK
        return NoLabel.OTHER if one_of_many else NoLabel.UNKNOWN

    def finding(self, column: str) -> Meaning:
        """Return the meaning of a column that stands for one finding."""
        word = in_one_form(column)
        if word in self.given:
            return self.given[word] or NoLabel.OTHER
        return LABEL_WORDS.get(word) or (NoLabel.OTHER if word in OTHER_FINDINGS else NoLabel.UNKNOWN)

    def _word(self, text: str) -> Meaning:
        word = in_one_form(text)
        if word in self.given:
            return self.given[word] or NoLabel.OTHER
        for words in (LABEL_WORDS, YES_AND_NO):
            if word in words:
                return words[word]
        if word in BLANK or word in UNCERTAIN:
            return NoLabel.BLANK if word in BLANK else NoLabel.UNCERTAIN
        return NoLabel.OTHER if word in OTHER_FINDINGS else NoLabel.UNKNOWN

    def of_folder(self, name: str) -> Meaning:
        """Return the label that a folder's name means anywhere; 0 and 1 mean one only together (``YES_NO_PAIRS``)."""
        word = in_one_form(name)
        if word in self.given:
            return self.given[word] or NoLabel.OTHER
        if word in LABEL_WORDS:
            return LABEL_WORDS[word]
        if word in OTHER_FINDINGS:
            return NoLabel.OTHER
        if word in UNCERTAIN - {"-1"}:
            return NoLabel.UNCERTAIN
        bare = _NUMBERED.sub("", word)  # "0_normal" and "1_pneumonia" keep their order in a list
        return NoLabel.UNKNOWN if bare == word else self.of_folder(bare)


class NamedFilm(NamedTuple):
    """The facts in a file name."""

    label: Label
    patient_id: str
    cause: str


def parse_name(stem: str) -> NamedFilm | None:
    """Read a published film's name, without its ending; return None for other names."""
    if match := _PNEUMONIA.match(stem):
        cause = match["cause"].lower()
        return NamedFilm(Label.PNEUMONIA, f"{match['patient'].lower()}_{cause}", cause)
    if match := _NORMAL.match(stem):
        return NamedFilm(Label.NORMAL, match["patient"].upper(), "")
    if match := _MENDELEY.match(stem):
        kind = match["kind"].lower()
        label, cause = (Label.NORMAL, "") if kind == "normal" else (Label.PNEUMONIA, kind)
        return NamedFilm(label, match["patient"], cause)
    return None


Parts = tuple[str, ...]
_UNNAMED: Final = "(no folder of a class)"


class Place(NamedTuple):
    """The facts that the folders of one film give.

    Attributes:
        label: label of the nearest folder that names one; None for none.
        split: split of the nearest folder that names one.
        cause: cause of the pneumonia.
        may_be_named: whether the film's own name may give the label, because no folder gives one.
        class_folder: the name of the folder that decided; "" for none.
        meaning: the meaning of that folder.
    """

    label: Label | None
    split: Split | None
    cause: str
    may_be_named: bool
    class_folder: str
    meaning: Meaning


class Folders:
    """The folders of a source, seen together: 0 and 1 are classes if both occur, and 17 is none."""

    def __init__(self, films: Sequence[Parts], words: LabelWords) -> None:
        """Read all folders.

        Args:
            films: the folders and the name of each film, inside its source.
            words: the meaning of names.
        """
        self._words = words
        self._beside: defaultdict[Parts, set[str]] = defaultdict(set)
        self._places: dict[Parts, Place] = {}
        counts = Counter(parts[:-1] for parts in films)
        for folder in counts:
            for depth in range(len(folder)):
                self._beside[folder[:depth]].add(folder[depth])
        self._counts = counts

    def of(self, film: Parts) -> Place:
        """Return the facts that the folders of a film give."""
        folder = film[:-1]
        if folder not in self._places:
            self._places[folder] = self._place(folder)
        return self._places[folder]

    def table(self) -> tuple[tuple[str, int, str], ...]:
        """Return (name, number of films, meaning) of each folder of a class; empty if no folder is one."""
        counts: Counter[tuple[str, str]] = Counter()
        for folder, count in self._counts.items():
            place = self.of((*folder, ""))
            counts[place.class_folder or _UNNAMED, _in_words(place)] += count
        if set(counts) <= {(_UNNAMED, "by name")}:
            return ()
        return tuple((name, count, taken) for (name, taken), count in sorted(counts.items()))

    def strange(self) -> Counter[str]:
        """Count films by folders of unknown name that stand beside folders of classes."""
        found: Counter[str] = Counter()
        for folder, count in self._counts.items():
            place = self.of((*folder, ""))
            if place.meaning is NoLabel.UNKNOWN and place.class_folder:
                found[place.class_folder] += count
        return found

    def _place(self, folder: Parts) -> Place:
        split = next((found for name in reversed(folder) if (found := split_named(name))), None)
        cause = next((CAUSES[word] for word in map(in_one_form, reversed(folder)) if word in CAUSES), "")
        decided, name = self._decided(folder)
        if decided is NoLabel.UNKNOWN:
            name = self._class_folder(folder)
        label = decided if isinstance(decided, Label) else None
        may_be_named = decided is NoLabel.UNKNOWN and not name
        return Place(label, split, cause, may_be_named, name, decided)

    def _decided(self, folder: Parts) -> tuple[Meaning, str]:
        """Return the meaning of the nearest folder that has one; a cause inside a pneumonia folder means pneumonia."""
        for depth in range(len(folder) - 1, -1, -1):
            meaning = self._meaning(folder[:depth], folder[depth])
            if meaning is NoLabel.OTHER and in_one_form(folder[depth]) in CAUSES:
                outer, name = self._decided(folder[:depth])
                if outer == Label.PNEUMONIA:
                    return outer, name
            if meaning is not NoLabel.UNKNOWN:
                return meaning, folder[depth]
        return NoLabel.UNKNOWN, ""

    def _meaning(self, parent: Parts, name: str) -> Meaning:
        meaning = self._words.of_folder(name)
        word = in_one_form(name)
        if meaning is NoLabel.UNKNOWN and word in YES_AND_NO:
            beside = {in_one_form(other) for other in self._beside[parent]}
            if beside in YES_NO_PAIRS:
                return YES_AND_NO[word]
        return meaning

    def _class_folder(self, folder: Parts) -> str:
        """Return the unknown folder that stands beside folders of classes; "" if there is none."""
        for depth in range(len(folder)):
            parent = folder[:depth]
            if split_named(folder[depth]) is None and any(
                self._meaning(parent, other) is not NoLabel.UNKNOWN for other in self._beside[parent]
            ):
                return folder[depth]
        return ""


def _in_words(place: Place) -> str:
    if isinstance(place.meaning, Label):
        return place.meaning.value
    if place.meaning is NoLabel.UNKNOWN:
        return "not known" if place.class_folder else "by name"
    return f"left without a label ({place.meaning.value})"


# --------------------------------------------------------------------------- patients

# Values of a column or a DICOM header for a removed id, in lower case without punctuation.
_NOBODY: Final = frozenset(
    _phrases(
        """
        anonymous, anonymized, anonymised, anon, unknown, none, null, nan, na, removed, deleted, deidentified,
        redacted, unnamed, patient, patientid, noid, noname, notavailable, hidden
        """
    )
)
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
    return cleared, f"{films_have} that stands for no patient ({_listed(nobody)}): treated as unknown"


def about_patients(films: Sequence[Film]) -> list[str]:
    """Describe problems with the patients of some films: unknown, or written in several ways."""
    unknown = sum(not film.patient_id for film in films)
    messages = []
    if films and unknown == len(films):
        messages.append(
            f"Warning: {PATIENTS_UNKNOWN}. Give a column patient_id, or read them from the names with "
            '"chestxray collect --patient-pattern"'
        )
    elif unknown:
        messages.append(f"Warning: patients unknown for {unknown:,} of {len(films):,} films: each counts as its own")
    return messages + written_in_several_ways(films)


def written_in_several_ways(films: Iterable[Film]) -> list[str]:
    """Return a line about ids that differ only in zeros, like 00012, 12 and 12.0; none if there are none."""
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
        f"Warning: {ids_are} written in several ways ({examples}): kept in one split when splits are drawn, and "
        "counted as different patients otherwise. Write each id in one way"
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
