"""Tables of labels in common forms: any delimiter and encoding, usual column names, well-known data sets.

A table becomes rows of text by column; columns get roles (path, label, patient, split, cause); rows about one film are
merged. ``collect`` finds the films on disk.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Final, NamedTuple

from chestxray.data.labels import (
    BLANK,
    CAUSES,
    LABEL_WORDS,
    SPLIT_WORDS,
    UNCERTAIN,
    LabelWords,
    Meaning,
    NoLabel,
    in_one_form,
    split_named,
)
from chestxray.data.sources import FILM_ENDINGS, HEAD
from chestxray.data.table_files import (
    ROLES,
    TEXT_ENDINGS,
    WORKBOOK_ENDINGS,
    TableRow,
    column_key,
    ending_of,
    read_rows,
)
from chestxray.errors import SourceInvalid, UsageError
from chestxray.progress import counted
from chestxray.schema import FILM_COLUMNS, VERSION_COLUMN, Label

_SHOWN: Final = 64  # letters of a cell that a message shows
_NAMED: Final = 5  # words or rows that a message lists before it counts the rest

LAST_PATHS: Final = ("patientid", "id")  # RSNA: the patient's id names the file
_SIDES: Final = frozenset({"l", "r", "left", "right"})  # short for a lateral view in a column of views
_PRESENT: Final = frozenset({"1", "true", "yes", "y", "t", "x", "+", "✓", "present", "positive", "ja", "si", "oui"})
_ABSENT: Final = frozenset({"0", "false", "no", "n", "f", "absent", "negative", "nein", "non"})
_SEVERAL: Final = re.compile(r"\.(?:jpe?g|png|tiff?|dcm)\s*[;,|]\s*\S", re.IGNORECASE)  # films in one cell
_ROUNDED: Final = re.compile(r"\d(?:[.,]\d+)?[eE]\+\d+")  # a long number, as a spreadsheet shows it
_VIEWS: Final = ("frontallateral", "viewposition", "projection", "view")
_BOXES: Final = frozenset({"x", "y", "xmin", "ymin", "xmax", "ymax", "width", "height", "radid"})
_LABELS: Final = frozenset({"pneumonia", "nofinding", "target", "classid"})
_FINDINGS: Final = {re.sub(r"[^0-9a-z]", "", word): label for word, label in LABEL_WORDS.items()}
# Columns with the label, or with boxes in the film: they are no property to group films by.
_USED: Final = _BOXES | _LABELS | _FINDINGS.keys()
_MANY: Final = frozenset({"findinglabels"})  # columns that name any of many findings


@dataclass(frozen=True, slots=True)
class ListedFilm:
    """The facts that a table gives about one film.

    Attributes:
        line: line of its first row.
        places: possible places of its film, the likeliest first; a place that ends in ``/`` is a folder of films.
        label, split, cause, patient_id: "" if the table does not state it.
        no_label: why there is no label, if the table has a column of labels.
        extra: further columns.
    """

    line: int
    places: tuple[str, ...]
    label: str = ""
    split: str = ""
    patient_id: str = ""
    cause: str = ""
    no_label: str = ""
    extra: tuple[tuple[str, str], ...] = ()


# --------------------------------------------------------------------------- rows to entries


def read_listing(path: Path, words: LabelWords, columns: Mapping[str, str]) -> tuple[tuple[ListedFilm, ...], list[str]]:
    """Read and interpret a table; return its entries, and notes for the user.

    Args:
        path: the table's path.
        words: the meaning of words.
        columns: role -> its column, if the name is not one of ``ROLES``; "" for none.

    Raises: SourceInvalid, UsageError, MissingExtra.
    """
    names, rows = read_rows(path)
    roles = _roles(path, names, columns)
    form = next(form for form in FORMS if form.recognises(frozenset(map(column_key, names)), roles))
    if not form.places_needed and "path" not in roles:
        raise SourceInvalid(_about_columns(path, [name for name in names if name]))
    rows, laterals = _frontal(rows)
    further = _further_split(names, rows, roles, columns)
    roles |= further
    entries, unknown = [], Counter[str]()
    first_unknown: dict[str, int] = {}
    rivals = [name for name in names if column_key(name) in ROLES["label"] and name != roles.get("label")]
    for row in rows:
        entry, word = _entry(row, form, roles, words, path)
        if "label" not in columns:
            _check_rivals(
                path,
                row,
                entry.label,
                roles.get("label", ""),
                {name: words.finding(row.cells.get(name, "")) for name in rivals},
            )
        if word:
            unknown[word] += 1
            first_unknown.setdefault(word, row.line)
        entries.append(entry)
    if unknown:
        raise SourceInvalid(_about_unknown(path, unknown, first_unknown))
    merged, notes = _merged(path, entries, boxes=not _BOXES.isdisjoint(map(column_key, names)))
    messages = [f"{path.name} is read as {form.name}" if form.name else ""]
    messages += [f"column {name} is used as the split" for name in further.values()]
    messages.append(
        counted(laterals, "film is left out, whose view is", "films are left out, whose view is") + " not frontal"
        if laterals
        else ""
    )
    reasons = Counter(entry.no_label for entry in merged if entry.no_label)
    messages.append(
        "films without a label: " + ", ".join(f"{count:,} {reason}" for reason, count in reasons.most_common())
        if reasons
        else ""
    )
    return tuple(merged), list(filter(None, [*messages, *notes]))


def _further_split(
    names: Sequence[str], rows: Sequence[TableRow], roles: Mapping[str, str], given: Mapping[str, str]
) -> dict[str, str]:
    """Return the one column without a usual name that holds nothing but names of splits, as the role "split"."""
    if "split" in roles or "split" in given or not rows:
        return {}

    def is_split(name: str) -> bool:
        values = {row.cells.get(name, "") for row in rows} - {""}
        return bool(values) and all(map(split_named, values))

    found = [name for name in names if name and name not in roles.values() and is_split(name)]
    return {"split": found[0]} if len(found) == 1 else {}


def _check_rivals(path: Path, row: TableRow, label: str, column: str, rivals: Mapping[str, Meaning]) -> None:
    """Refuse a row in which a second column of labels names the other class in words: 1 may stand for either."""
    for name, other in rivals.items():
        if label and isinstance(other, Label) and other.value != label:
            raise SourceInvalid(
                f"{path}, line {row.line}: {column} is {row.cells.get(column, '')!r}, taken for {label}, and {name} is "
                f"{row.cells[name]!r}. Say which of them counts: --columns label={name}, or label={column}"
            )


def _about_columns(path: Path, names: Sequence[str]) -> str:
    """Explain that no column tells the path; a table without a header, or another kind of file, is called so."""
    from chestxray.images.decode import kind_of  # imports numpy, which names of films do not need

    words = [word for name in names for word in (name, *name.split())]
    if film := next((word for word in words if PurePosixPath(word).suffix.lower() in FILM_ENDINGS), ""):
        return (
            f"{path}: begins with a film, {film[:_SHOWN]}. Put a header above it, and commas between cells: path,label"
        )
    with path.open("rb") as file:
        kind = kind_of(file.read(HEAD))
    if ending_of(path) in TEXT_ENDINGS | WORKBOOK_ENDINGS and kind.startswith(("it is a", "it holds")):
        return f"{path}: is no table: {kind}"
    return (
        f"{path}: has no column of paths; it has {', '.join(names)}. "
        "Name it path, or say which one it is: --columns path=NAME"
    )


def _roles(path: Path, names: Sequence[str], given: Mapping[str, str]) -> dict[str, str]:
    by_key: dict[str, str] = {}
    for name in names:
        by_key.setdefault(column_key(name), name)
    roles = {}
    for role, usual in ROLES.items():
        if role in given:
            wanted = given[role]
            if wanted and wanted not in names and column_key(wanted) not in by_key:
                raise SourceInvalid(f"{path}: has no column {wanted!r}; it has {', '.join(filter(None, names))}")
            if wanted:
                roles[role] = wanted if wanted in names else by_key[column_key(wanted)]
        elif role in names:
            roles[role] = role
        elif found := next((by_key[name] for name in usual if name in by_key), None):
            roles[role] = found
    if "path" not in roles and "path" not in given and "studyid" not in by_key:
        last = next((by_key[name] for name in LAST_PATHS if name in by_key), None)
        return roles if last is None else {**roles, "path": last}
    return roles


def columns_of(assignments: Iterable[str]) -> dict[str, str]:
    """Read ``path=file,label=sick``, several times or separated by commas. Raises: UsageError."""
    given = {}
    for text in (part for assignment in assignments for part in assignment.split(",")):
        role, equals, name = (part.strip() for part in text.partition("="))
        if not equals or role not in ROLES:
            raise UsageError(f"--columns {text}: is not ROLE=COLUMN. The role may be {', '.join(ROLES)}")
        given[role] = name
    return given


class Form(NamedTuple):
    """One form of table.

    Attributes:
        name: name for the user; "" for the plain form.
        recognises: function of the columns' keys and the roles: True if the table has this form.
        label: function that returns the meaning of a row.
        places_needed: None, or function that returns the places of a row's film instead of the column "path".
    """

    name: str
    recognises: Callable[[frozenset[str], Mapping[str, str]], bool]
    label: Callable[[Mapping[str, str], Mapping[str, str], LabelWords], tuple[Meaning, str]]
    places_needed: Callable[[Mapping[str, str]], tuple[str, ...]] | None = None


def _label_by_column(
    cells: Mapping[str, str], roles: Mapping[str, str], words: LabelWords, *, many: bool = False
) -> tuple[Meaning, str]:
    """Return the label from one column that holds the label, or the findings."""
    if "label" not in roles:
        return NoLabel.BLANK, ""
    text = cells.get(roles["label"], "")
    return words.meaning(text, one_of_many=many or column_key(roles["label"]) in _MANY), text


def _label_by_findings(cells: Mapping[str, str], _: Mapping[str, str], words: LabelWords) -> tuple[Meaning, str]:
    """Return the label from one column for each finding: 1 present, 0 absent, -1 uncertain, blank not mentioned.

    A 0 in the column of pneumonia is a normal film only if no column names normal films, and no other finding is
    present: in columns covid, normal, pneumonia the row 1, 0, 0 is neither.
    """
    texts = {in_one_form(name): in_one_form(value) for name, value in cells.items()}
    meanings = {name: words.finding(name) for name in texts}
    yes = {*_PRESENT, *(word for word, label in words.given.items() if label == Label.PNEUMONIA)}
    known = {*yes, *_ABSENT, *words.given, *BLANK, *UNCERTAIN}
    present = {meanings[name] for name, value in texts.items() if value in yes}
    for name, value in texts.items():
        if isinstance(meanings[name], Label) and value not in known:
            return NoLabel.UNKNOWN, value
    if {*Label} <= present:
        return NoLabel.CONTRADICTORY, ""
    if Label.PNEUMONIA not in present and texts.get("pneumonia") in UNCERTAIN:
        return NoLabel.UNCERTAIN, ""
    for first in (Label.PNEUMONIA, Label.NORMAL, NoLabel.OTHER):
        if first in present:
            return first, ""
    if Label.NORMAL not in meanings.values() and "pneumonia" in texts:  # pneumonia has its own column: 0 means no
        return words.meaning(texts["pneumonia"]), texts["pneumonia"]
    return (NoLabel.OTHER if yes & {*texts.values()} else NoLabel.BLANK), ""


def _label_of_rsna(cells: Mapping[str, str], roles: Mapping[str, str], words: LabelWords) -> tuple[Meaning, str]:
    """Return the label from ``Target``, or from the detailed classes: RSNA calls an opacity a pneumonia."""
    text = cells.get(roles["label"], "")
    if in_one_form(text) == "lung opacity" and "lung opacity" not in words.given:
        return Label.PNEUMONIA, text
    return words.meaning(text), text


def _mimic_study(cells: Mapping[str, str]) -> tuple[str, ...]:
    by_key = {column_key(name): value for name, value in cells.items()}
    subject, study, film = (by_key.get(name, "") for name in ("subjectid", "studyid", "dicomid"))
    below = f"p{subject[:2]}/p{subject}/s{study}/{film}"
    return (f"files/{below}", below)


# In the order in which they are tried.
FORMS: Final = (
    Form(
        "MIMIC-CXR (films lie in files/p10/p10000032/s50414267)",
        lambda keys, roles: {"subjectid", "studyid"} <= keys and column_key(roles.get("path", "dicomid")) == "dicomid",
        lambda cells, roles, words: (
            _label_by_column(cells, roles, words) if "label" in roles else _label_by_findings(cells, roles, words)
        ),
        _mimic_study,
    ),
    Form(
        "a table of RSNA's pneumonia challenge",
        lambda _, roles: (
            column_key(roles.get("path", "")) == "patientid"
            and column_key(roles.get("label", "")) in {"target", "class"}
        ),
        _label_of_rsna,
    ),
    Form(
        "one column a finding (as CheXpert, MIMIC-CXR and VinDr-CXR have it)",
        lambda keys, roles: (
            "label" not in roles
            and ("pneumonia" in keys or {_FINDINGS[key] for key in keys & _FINDINGS.keys()} == {*Label})
        ),
        _label_by_findings,
    ),
    Form(
        "annotations of VinDr-CXR",
        lambda keys, roles: {"imageid", "classname"} <= keys and column_key(roles.get("label", "")) == "classname",
        lambda cells, roles, words: _label_by_column(cells, roles, words, many=True),
    ),
    Form("", lambda *_: True, _label_by_column),
)


def _entry(
    row: TableRow, form: Form, roles: Mapping[str, str], words: LabelWords, path: Path
) -> tuple[ListedFilm, str]:
    """Return a row as an entry, and the row's word for a label if its meaning is unknown."""
    cells = row.cells
    given = {role: cells.get(column, "") for role, column in roles.items()}
    places = form.places_needed(cells) if form.places_needed else _places(given["path"], cells)
    if not places:
        raise SourceInvalid(f"{path}, line {row.line}: the path is empty")
    if _SEVERAL.search(places[0]):
        raise SourceInvalid(
            f"{path}, line {row.line}: its path holds several films, {places[0][:_SHOWN]!r}. Write a row for each"
        )
    meaning, text = form.label(cells, roles, words)
    cause = given.get("cause", "").lower()
    if isinstance(meaning, Label):
        of_word = CAUSES.get(in_one_form(text), "") if meaning == Label.PNEUMONIA else ""
        cause = (CAUSES.get(in_one_form(cause), cause) or of_word) if meaning == Label.PNEUMONIA else ""
    used = {*roles.values(), *FILM_COLUMNS, VERSION_COLUMN, "", *(name for name in cells if column_key(name) in _USED)}
    entry = ListedFilm(
        line=row.line,
        places=places,
        label=meaning.value if isinstance(meaning, Label) else "",
        split=_split_of(given.get("split", ""), path, row.line),
        patient_id=given.get("patient_id", "") if in_one_form(given.get("patient_id", "")) != "nan" else "",
        cause=cause,
        no_label="" if isinstance(meaning, Label) or ("label" not in roles and not form.name) else meaning.value,
        extra=tuple(
            (name, value)
            for name, value in cells.items()
            if value and name not in used and column_key(name) not in _USED
        ),
    )
    return entry, text if meaning is NoLabel.UNKNOWN else ""


def _places(path: str, cells: Mapping[str, str]) -> tuple[str, ...]:
    """Return the possible places of a film: its path, and for PadChest the same path in its numbered folder."""
    if not path:
        return ()
    if len(path) > 1 and path[0] == path[-1] and path[0] in "'\"":
        path = path[1:-1]
    written = path
    path = path if "/" in path else path.replace("\\", "/")
    if address := re.match(r"(?!s3:)[a-z][a-z0-9+]+://[^/]*(/.*)", path):  # of another computer
        path = address[1].partition("?")[0]
    folder = next(
        (value for name, value in cells.items() if column_key(name) in {"imagedir", "imagefolder"} and value), ""
    )
    places = (path, f"{folder}/{path}") if folder else (path,)
    # both separators in one path, as programs write on Windows that join folders with their own
    return (*places, written.replace("\\", "/")) if "\\" in path else places


def _split_of(text: str, path: Path, line: int) -> str:
    word = in_one_form(text)
    if not word or word in {"nan", "none"}:
        return ""
    found = split_named(text)
    if found is None:
        raise SourceInvalid(
            f"{path}, line {line}: the split is {text!r}; it may be {', '.join(SPLIT_WORDS)}, or empty. "
            'Where the column holds something else, leave it out: --columns "split="'
        )
    return found.value


def _frontal(rows: list[TableRow]) -> tuple[list[TableRow], int]:
    """Return rows without those of lateral and other views, if a column states it; and the number of removed rows."""
    view = next((name for row in rows[:1] for name in row.cells if column_key(name) in _VIEWS), None)
    if view is None:
        return rows, 0
    from chestxray.images.quality import view_of  # imports numpy, which most tables do not need

    def is_frontal(text: str) -> bool:
        return in_one_form(text) not in _SIDES and view_of(text) in {"frontal", ""}

    kept = [row for row in rows if is_frontal(row.cells.get(view, ""))]
    return kept, len(rows) - len(kept)


def _merged(path: Path, entries: Sequence[ListedFilm], *, boxes: bool) -> tuple[list[ListedFilm], list[str]]:
    """Merge rows to one entry a film. Rows with boxes or readers complement each other; other rows must agree.

    Raises: SourceInvalid, if a film is in two splits, which would let it be trained on and evaluated.
    """
    by_film: dict[tuple[str, ...], list[ListedFilm]] = {}
    for entry in entries:
        by_film.setdefault(entry.places, []).append(entry)
    merged: list[ListedFilm] = []
    again, contradictions = 0, []
    owners: list[list[ListedFilm]] = []
    for rows in by_film.values():
        labels = {row.label for row in rows}
        again += len(rows) - 1
        splits = sorted({row.split for row in rows} - {""})
        if len(splits) > 1:
            raise SourceInvalid(
                f"{path}, lines {', '.join(str(row.line) for row in rows[:_NAMED])}: {rows[0].places[0]} is in several "
                f'splits ({", ".join(splits)}). Keep one, or draw new ones: --columns "split="'
            )
        if len({row.patient_id for row in rows} - {""}) > 1:
            owners.append(rows)
        if len(labels - {""}) > 1 and not boxes:
            contradictions.append(rows)
            merged += [next(row for row in rows if row.label == label) for label in sorted(labels - {""})]
        else:
            merged.append(_one(rows))
    notes = [counted(again, "row repeats a film", "rows repeat a film")] if again else []
    if owners:
        films_have = counted(len(owners), "film has", "films have")
        names = " and ".join(dict.fromkeys(row.patient_id for row in owners[0]))
        notes.append(
            f"Warning: {films_have} two patients, {owners[0][0].places[0]} ({names}) for one: the first counts"
        )
    if rounded := sorted({entry.patient_id for entry in entries if _ROUNDED.fullmatch(entry.patient_id)}):
        ids_are = counted(len(rounded), "patient id was", "patient ids were")
        notes.append(
            f"Warning: {ids_are} rounded by a spreadsheet, {rounded[0]} for one, so different patients may have one "
            "id. Export the column as text"
        )
    if contradictions:
        rows = contradictions[0]
        films_have = counted(len(contradictions), "film has", "films have")
        notes.append(
            f"Warning: {films_have} two labels, {rows[0].places[0]} "
            f"in lines {', '.join(str(row.line) for row in rows[:_NAMED])} for one; clean will mark them as conflicting"
        )
    return merged, notes


def _one(rows: Sequence[ListedFilm]) -> ListedFilm:
    """Merge several rows of one film: a finding in any row counts; contradicting readers leave no label."""
    first = rows[0]
    if len(rows) == 1:
        return first
    labels = {row.label for row in rows}
    others = [row.no_label for row in rows if row.no_label]
    if Label.PNEUMONIA in labels:
        label, no_label = ("", NoLabel.CONTRADICTORY.value) if Label.NORMAL in labels else (Label.PNEUMONIA.value, "")
    else:
        label, no_label = (Label.NORMAL.value, "") if labels == {Label.NORMAL} else ("", others[0] if others else "")
    same = set(first.extra).intersection(*(row.extra for row in rows))
    return ListedFilm(
        first.line,
        first.places,
        label,
        next((row.split for row in rows if row.split), ""),
        next((row.patient_id for row in rows if row.patient_id), ""),
        next((row.cause for row in rows if row.cause), ""),
        no_label,
        tuple(pair for pair in first.extra if pair in same),
    )


def _about_unknown(path: Path, unknown: Counter[str], lines: Mapping[str, int]) -> str:
    word = min(lines, key=lambda text: lines[text])
    listed = ", ".join(f"{text!r} ({count:,})" for text, count in unknown.most_common(_NAMED))
    rest = f" and {len(unknown) - _NAMED:,} more" if len(unknown) > _NAMED else ""
    return (
        f"{path}, line {lines[word]}: the label is {word!r}. Words that are not known: {listed}{rest}. Say what they "
        f'mean: --label "{word}=pneumonia", "{word}=normal", or "{word}=none" to leave these films without a label'
    )
