"""Tables of labels in common forms: any delimiter and encoding, usual column names, well-known data sets.

A table becomes rows of text by column; columns get roles (path, label, patient, split, cause); rows about one film are
merged. ``collect`` finds the films on disk.
"""

from __future__ import annotations

import bz2
import codecs
import csv
import gzip
import io
import json
import lzma
import re
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any, Final, NamedTuple

from chestxray.data.labels import CAUSES, LABEL_WORDS, SPLIT_WORDS, LabelWords, Meaning, NoLabel, in_one_form
from chestxray.data.sources import FILM_ENDINGS, HEAD
from chestxray.errors import MissingExtra, SourceInvalid, UsageError
from chestxray.progress import said
from chestxray.schema import FILM_COLUMNS, VERSION_COLUMN, Label

TEXT_ENDINGS: Final = frozenset({".csv", ".tsv", ".tab", ".txt"})
WORKBOOK_ENDINGS: Final = frozenset({".xlsx", ".xlsm", ".xls", ".ods"})
TABLE_ENDINGS: Final = TEXT_ENDINGS | WORKBOOK_ENDINGS | {".parquet", ".jsonl", ".ndjson", ".json"}
PACKED: Final[Mapping[str, Callable[..., Any]]] = {".gz": gzip.open, ".bz2": bz2.open, ".xz": lzma.open}
MOST_BYTES: Final = 2**31  # of an unpacked table; those of the field have 10**8
DELIMITERS: Final = ",;\t|"
_FIRST_LINES: Final = 20  # lines in which a header is looked for; titles and comments may stand above it
_MARKS: Final = (
    (codecs.BOM_UTF8, "utf-8-sig"), (codecs.BOM_UTF32_LE, "utf-32"), (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"), (codecs.BOM_UTF16_BE, "utf-16"),
)  # fmt: skip
_SHOWN: Final = 64  # letters of a cell that a message shows
_NAMED: Final = 5  # words or rows that a message lists before it counts the rest

# Columns by role, in the form of ``_key``; the first that a table has is taken.
ROLES: Final[Mapping[str, tuple[str, ...]]] = {
    "path": (
        "path", "filepath", "imagepath", "imgpath", "filename", "file", "imagefilename", "imagefile", "imagename",
        "imgname", "img", "image", "imageindex", "xrayimagename", "imageid", "dicomid", "dicompath", "fname", "imgid",
        "filenames", "paths", "images", "imagepaths", "imagefilepath", "fullpath", "relativepath", "relpath",
        "imageurl",
    ),
    "label": (
        "label", "target", "class", "classname", "findinglabels", "labels", "finding", "findings", "diagnosis",
        "category", "groundtruth", "pathology", "targets", "classes", "disease", "haspneumonia", "ispneumonia",
    ),
    "patient_id": ("patientid", "subjectid", "patient", "subject", "patientnumber", "pid"),
    "split": ("split", "datasettype", "subset", "partition", "phase"),
    "cause": ("cause", "label1viruscategory", "etiology", "aetiology"),
}  # fmt: skip
_PATHS: Final = frozenset(ROLES["path"])
_USUAL: Final = frozenset(name for usual in ROLES.values() for name in usual)
LAST_PATHS: Final = ("patientid", "id")  # RSNA: the patient's id names the file
_LATERAL: Final = frozenset({"lateral", "ll", "l", "lat", "left lateral", "right lateral", "lateral view"})
_VIEWS: Final = ("frontallateral", "viewposition", "projection", "view")
_BOXES: Final = frozenset({"x", "y", "xmin", "ymin", "xmax", "ymax", "width", "height", "radid"})
_LABELS: Final = frozenset({"pneumonia", "nofinding", "target", "classid"})
_FINDINGS: Final = {re.sub(r"[^0-9a-z]", "", word): label for word, label in LABEL_WORDS.items()}
_MANY: Final = frozenset({"findinglabels"})  # columns that name any of many findings


class TableRow(NamedTuple):
    """One row of a table: the number of its first line, and its cells by column, as in the table."""

    line: int
    cells: Mapping[str, str]


Reader = Callable[[bytes, Path], tuple[tuple[str, ...], list[TableRow]]]


@dataclass(frozen=True, slots=True)
class ListedFilm:
    """The facts that a table gives about one film.

    Attributes:
        line: line of its first row.
        places: possible places of its film, the likeliest first; a place that ends in ``/`` is a folder of films.
        label, split, cause, patient_id: "" if the table does not state it.
        said: why there is no label, if the table has a column of labels.
        extra: further columns.
    """

    line: int
    places: tuple[str, ...]
    label: str = ""
    split: str = ""
    patient_id: str = ""
    cause: str = ""
    said: str = ""
    extra: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True, slots=True)
class FilmTable:
    """A table after interpretation: its entries, and notes for the user."""

    entries: tuple[ListedFilm, ...]
    roles: Mapping[str, str]
    notes: tuple[str, ...] = field(default=())


# --------------------------------------------------------------------------- bytes to rows


def is_table(path: Path) -> bool:
    """Check whether the name is that of a table, packed by gzip, bzip2 or xz or not."""
    return _ending(path) in TABLE_ENDINGS


def _ending(path: Path) -> str:
    name = Path(path.stem) if path.suffix.lower() in PACKED else path
    return name.suffix.lower()


def read_rows(path: Path) -> tuple[tuple[str, ...], list[TableRow]]:
    """Return columns and rows of a table, without blank ones.

    Raises: SourceInvalid, if it cannot be read; MissingExtra.
    """
    try:
        data = _bytes_of(path)
        columns, rows = _reader_of(path, data)(data, path)
    except (OSError, EOFError, zlib.error, lzma.LZMAError, UnicodeDecodeError, csv.Error, ValueError) as error:
        raise SourceInvalid(f"{path}: cannot be read as a table ({error})") from error
    if not any(columns):
        raise SourceInvalid(f"{path}: is an empty table. It needs a header with a column path, and one row a film")
    return columns, rows


def _bytes_of(path: Path) -> bytes:
    """Return the bytes of a table, unpacked up to a limit. Raises: OSError and the errors of the packers."""
    with PACKED.get(path.suffix.lower(), open)(path, "rb") as file:
        data: bytes = file.read(MOST_BYTES + 1)
    if len(data) > MOST_BYTES:
        raise ValueError(f"it has more than {MOST_BYTES:,} bytes")
    return data


def _reader_of(path: Path, data: bytes) -> Reader:
    """Return the reader for a table: by its first bytes where these tell, else by the name's ending."""
    ending = _ending(path)
    if data.startswith(b"PAR1"):
        return _read_parquet
    if ending in WORKBOOK_ENDINGS and not data.lstrip().startswith((b"<", b'"')):
        return _read_workbook
    return _READERS.get(ending, _read_text)


def _read_text(data: bytes, path: Path) -> tuple[tuple[str, ...], list[TableRow]]:
    text = _decoded(data)
    first, _, rest = text.partition("\n")
    delimiter = None
    if match := re.fullmatch(r'"?sep=(.)"?\r?', first):  # the form in which Excel states the separator
        delimiter, text = match[1], rest
    above, delimiter = _header_at(text, delimiter)
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, skipinitialspace=True, strict=True)
    lines = ((reader.line_num, cells) for cells in reader)
    try:
        return _table((pair for pair in lines if pair[0] > above), path)
    except csv.Error as error:
        raise SourceInvalid(
            f"{path}, near line {reader.line_num}: a quote is not closed, or stands within a quoted cell ({error}). "
            "Write a quote within quotes twice"
        ) from error


def _header_at(text: str, delimiter: str | None) -> tuple[int, str]:
    """Return how many lines stand above the header, such as a title or comments, and the delimiter.

    The header is the first line with a column of paths; a table without one begins at its first line.
    """
    lines = text[: 2**16].splitlines()[:_FIRST_LINES]
    for above, line in enumerate(lines):
        marks = [delimiter] if delimiter else sorted(DELIMITERS, key=lambda mark: -_unquoted(line).count(mark))
        if not _PATHS.isdisjoint(_key(cell) for cell in line.split(marks[0])):
            return above, marks[0]
    first = next((line for line in lines if line.strip()), "")
    return 0, delimiter or max(DELIMITERS, key=lambda mark: _unquoted(first).count(mark))


def _unquoted(line: str) -> str:
    return re.sub(r'"[^"]*"', "", line)


def _decoded(data: bytes) -> str:
    """Return text in the encoding of its byte-order mark, else UTF-8, else that of Western Windows."""
    for mark, encoding in _MARKS:
        if data.startswith(mark):
            return data.decode(encoding)
    head = data[: 2 * HEAD]
    if head.count(b"\0") > len(head) // 4:  # UTF-16: of ASCII every second byte is zero
        return data.decode("utf-16-le" if head[1::2].count(b"\0") > head[::2].count(b"\0") else "utf-16-be")
    try:
        return data.decode("utf-8").replace("\0", "")
    except UnicodeDecodeError:
        return data.decode("cp1252").replace("\0", "")


def _table(lines: Iterable[tuple[int, Sequence[str]]], path: Path) -> tuple[tuple[str, ...], list[TableRow]]:
    """Return columns and rows; the first line that is not blank is the header."""
    columns: tuple[str, ...] = ()
    rows = []
    for line, raw in lines:
        cells = [cell.strip() for cell in raw]
        if not any(cells):
            continue
        if not columns:
            columns = _numbered_columns(cells)
            continue
        if any(cells[len(columns) :]):
            raise SourceInvalid(
                f"{path}, line {line}: has {len(cells)} cells and the header {len(columns)}. "
                "A cell that holds the delimiter needs quotes"
            )
        if not any(cells[1:]) and cells[0].startswith("#") and len(columns) > 1:
            continue  # a comment
        by_name: dict[str, str] = {}
        for name, cell in zip(columns, cells, strict=False):
            if name and not by_name.get(name):
                by_name[name] = cell
            elif name and cell and by_name[name] != cell:
                raise SourceInvalid(
                    f"{path}, line {line}: holds {by_name[name]!r} and {cell!r} in two columns named {name}. Rename one"
                )
        rows.append(TableRow(line, by_name))
    return columns, rows


def _numbered_columns(names: Sequence[str]) -> tuple[str, ...]:
    """Number columns of one name, except those that have a role: these must agree."""
    counts = Counter[str]()
    out = []
    for name in names:
        counts[name] += 1
        again = counts[name] > 1 and _key(name) not in _USUAL
        out.append(f"{name} ({counts[name]})" if name and again else name)
    return tuple(out)


def _read_json_lines(data: bytes, path: Path) -> tuple[tuple[str, ...], list[TableRow]]:
    found = []
    for line, text in enumerate(_decoded(data).splitlines(), start=1):
        if text.strip():
            try:
                cells = json.loads(text)
            except ValueError as error:
                raise SourceInvalid(f"{path}, line {line}: is no JSON ({error}). Write one object a line") from error
            if not isinstance(cells, dict):
                raise SourceInvalid(f"{path}, line {line}: is no object. Write one object a line, with the key path")
            found.append((line, cells))
    return _of_objects(found)


def _of_objects(found: Sequence[tuple[int, Mapping[str, Any]]]) -> tuple[tuple[str, ...], list[TableRow]]:
    rows = [TableRow(line, {str(name): _as_text(value) for name, value in cells.items()}) for line, cells in found]
    return tuple(dict.fromkeys(name for row in rows for name in row.cells)), rows


def _read_json(data: bytes, path: Path) -> tuple[tuple[str, ...], list[TableRow]]:
    """Read JSON: a list of objects, columns (as pandas writes them), labels by path, or annotations of COCO."""
    text = _decoded(data)
    try:
        content = json.loads(text)
    except ValueError:
        return _read_json_lines(data, path)
    objects: list[Any] | None = content if isinstance(content, list) else None
    if isinstance(content, dict) and isinstance(content.get("images"), list):
        objects = _objects_of_coco(content)
    elif isinstance(content, dict) and isinstance(content.get("data"), list):
        objects = content["data"]
    elif isinstance(content, dict) and content and all(isinstance(value, dict | list) for value in content.values()):
        columns = {name: [*(value.values() if isinstance(value, dict) else value)] for name, value in content.items()}
        if len({len(values) for values in columns.values()}) == 1:
            objects = [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]
    elif isinstance(content, dict):
        objects = [{"path": name, "label": value} for name, value in content.items()]
    if objects is None or not all(isinstance(one, dict) for one in objects):
        raise SourceInvalid(
            f"{path}: is JSON of a form that is not known. Write a list of objects with the keys path and label"
        )
    return _of_objects(list(enumerate(objects, start=1)))


def _objects_of_coco(content: Mapping[str, Any]) -> list[Any]:
    """Return one object an image, with its categories as the label; an image without annotation has none."""
    names = {one.get("id"): str(one.get("name", "")) for one in content.get("categories", ())}
    found: dict[Any, list[str]] = {}
    for one in content.get("annotations", ()):
        found.setdefault(one.get("image_id"), []).append(names.get(one.get("category_id"), ""))
    return [
        {"path": one.get("file_name", ""), "label": "|".join(dict.fromkeys(found.get(one.get("id"), ())))}
        for one in content["images"]
    ]


def _read_workbook(data: bytes, path: Path) -> tuple[tuple[str, ...], list[TableRow]]:
    try:
        import python_calamine
    except ImportError as error:
        raise MissingExtra("Reading a table of Excel's", "excel") from error
    try:
        book = python_calamine.CalamineWorkbook.from_filelike(io.BytesIO(data))
        sheets = {name: book.get_sheet_by_name(name).to_python(skip_empty_area=False) for name in book.sheet_names}
    except python_calamine.CalamineError as error:
        raise SourceInvalid(
            f"{path}: cannot be read as a workbook ({error}). Save it again as .xlsx or .csv"
        ) from error
    sheets = {name: [*[[]] * _title_rows(rows), *rows[_title_rows(rows) :]] for name, rows in sheets.items()}
    headers = {name: next((row for row in rows if any(map(_as_text, row))), []) for name, rows in sheets.items()}
    of_films = [name for name, row in headers.items() if not _PATHS.isdisjoint(_key(_as_text(cell)) for cell in row)]
    if len(of_films) > 1:
        raise SourceInvalid(f"{path}: has films in several sheets ({', '.join(of_films)}). Save each as a .csv")
    rows = sheets[next(iter((*of_films, *(name for name, row in headers.items() if row), *sheets)))]
    return _table(((line, [_as_text(cell) for cell in row]) for line, row in enumerate(rows, start=1)), path)


def _title_rows(rows: Sequence[Sequence[Any]]) -> int:
    """Return how many rows stand above the header, which names a column of paths."""
    named = (not _PATHS.isdisjoint(_key(_as_text(cell)) for cell in row) for row in rows[:_FIRST_LINES])
    return next((above for above, found in enumerate(named) if found), 0)


def _read_parquet(data: bytes, path: Path) -> tuple[tuple[str, ...], list[TableRow]]:
    try:
        from pyarrow import ArrowException, parquet
    except ImportError as error:
        raise MissingExtra("Reading a table of Parquet", "parquet") from error
    try:
        table = parquet.read_table(io.BytesIO(data))
    except ArrowException as error:
        raise SourceInvalid(f"{path}: cannot be read as Parquet ({error}). Write it again") from error
    columns = tuple(table.column_names)
    values = zip(*(table.column(at).to_pylist() for at in range(len(columns))), strict=True)
    return _table(((0, columns), *((line, [_as_text(v) for v in row]) for line, row in enumerate(values, 1))), path)


_HOLDS_FILMS: Final = "it holds the films themselves. Write them to files, and their paths to a table"
MOST_PATH: Final = 4096  # bytes of a path, on every system


def _as_text(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, dict) and set(value) == {"bytes", "path"} and not value["bytes"]:
        value = value["path"] or ""
    if isinstance(value, dict) and "bytes" in value:
        raise ValueError(_HOLDS_FILMS)
    if isinstance(value, bytes):
        if b"\0" in value or len(value) > MOST_PATH:
            raise ValueError(_HOLDS_FILMS)
        return value.decode("utf-8", "replace")
    if isinstance(value, float) and value.is_integer():  # a workbook stores integers as floats
        return str(int(value))
    return str(value)


_READERS: Final[Mapping[str, Reader]] = {
    ".parquet": _read_parquet,
    ".jsonl": _read_json_lines,
    ".ndjson": _read_json_lines,
    ".json": _read_json,
}


# --------------------------------------------------------------------------- rows to entries


def read_listing(path: Path, words: LabelWords, columns: Mapping[str, str] | None = None) -> FilmTable:
    """Read and interpret a table.

    Args:
        path: the table's path.
        words: the meaning of words.
        columns: role -> its column, if the name is not one of ``ROLES``; "" for none.

    Raises: SourceInvalid, UsageError, MissingExtra.
    """
    names, rows = read_rows(path)
    roles = _roles(path, names, columns or {})
    form = next(form for form in FORMS if form.recognises(frozenset(map(_key, names)), roles))
    if not form.places_needed and "path" not in roles:
        raise SourceInvalid(_about_columns(path, [name for name in names if name]))
    rows, laterals = _frontal(rows)
    entries, unknown = [], Counter[str]()
    first_unknown: dict[str, int] = {}
    rivals = [name for name in names if _key(name) in ROLES["label"] and name != roles.get("label")]
    for row in rows:
        entry, word = _entry(row, form, roles, words, path)
        if "label" not in (columns or {}):
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
    merged, notes = _merged(entries, boxes=not _BOXES.isdisjoint(map(_key, names)))
    told = [f"{path.name} is read as {form.name}" if form.name else ""]
    told.append(said(laterals, "lateral film is left out", "lateral films are left out") if laterals else "")
    reasons = Counter(entry.said for entry in merged if entry.said)
    told.append(
        "films without a label: " + ", ".join(f"{count:,} {reason}" for reason, count in reasons.most_common())
        if reasons
        else ""
    )
    return FilmTable(tuple(merged), roles, tuple(filter(None, [*told, *notes])))


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
    if _ending(path) in TEXT_ENDINGS | WORKBOOK_ENDINGS and kind.startswith(("it is a", "it holds")):
        return f"{path}: is no table: {kind}"
    return (
        f"{path}: has no column that tells the path; it has {', '.join(names)}. "
        "Name it path, or say which one it is: --columns path=NAME"
    )


def _key(column: str) -> str:
    """Return the form of a column's name for comparison: "Patient ID", "patient_id" and "patientId" are equal."""
    return re.sub(r"[^0-9a-z]", "", column.lower())


def _roles(path: Path, names: Sequence[str], given: Mapping[str, str]) -> dict[str, str]:
    by_key: dict[str, str] = {}
    for name in names:
        by_key.setdefault(_key(name), name)
    roles = {}
    for role, usual in ROLES.items():
        if role in given:
            wanted = given[role]
            if wanted and wanted not in names and _key(wanted) not in by_key:
                raise SourceInvalid(f"{path}: has no column {wanted!r}; it has {', '.join(filter(None, names))}")
            if wanted:
                roles[role] = wanted if wanted in names else by_key[_key(wanted)]
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

    def used(self, columns: Iterable[str]) -> set[str]:
        """Return columns with the label, or with boxes in the film: they are no property to group films by."""
        return {name for name in columns if _key(name) in _BOXES | _LABELS | _FINDINGS.keys()}


def _label_by_column(
    cells: Mapping[str, str], roles: Mapping[str, str], words: LabelWords, *, many: bool = False
) -> tuple[Meaning, str]:
    """Return the label from one column that holds the label, or the findings."""
    if "label" not in roles:
        return NoLabel.BLANK, ""
    text = cells.get(roles["label"], "")
    return words.meaning(text, one_of_many=many or _key(roles["label"]) in _MANY), text


def _label_by_findings(cells: Mapping[str, str], _: Mapping[str, str], words: LabelWords) -> tuple[Meaning, str]:
    """Return the label from one column for each finding: 1 present, 0 absent, -1 uncertain, blank not mentioned.

    A 0 in the column of pneumonia is a normal film only if no column names normal films, and no other finding is
    present: in columns covid, normal, pneumonia the row 1, 0, 0 is neither.
    """
    said = {in_one_form(name): in_one_form(value) for name, value in cells.items()}
    meanings = {name: words.finding(name) for name in said}
    present = {meanings[name] for name, value in said.items() if value in {"1", "true", "yes"}}
    if Label.PNEUMONIA in present:
        return (NoLabel.CONTRADICTORY if Label.NORMAL in present else Label.PNEUMONIA), ""
    if said.get("pneumonia") in {"-1", "uncertain"}:
        return NoLabel.UNCERTAIN, ""
    if Label.NORMAL in present:
        return Label.NORMAL, ""
    if NoLabel.OTHER in present:
        return NoLabel.OTHER, ""
    if Label.NORMAL not in meanings.values() and "pneumonia" in said:  # pneumonia has its own column: 0 means no
        return words.meaning(said["pneumonia"]), said["pneumonia"]
    return (NoLabel.OTHER if {"1", "true", "yes"} & {*said.values()} else NoLabel.BLANK), ""


def _label_of_rsna(cells: Mapping[str, str], roles: Mapping[str, str], words: LabelWords) -> tuple[Meaning, str]:
    """Return the label from ``Target``, or from the detailed classes: RSNA calls an opacity a pneumonia."""
    text = cells.get(roles["label"], "")
    if in_one_form(text) == "lung opacity" and "lung opacity" not in words.given:
        return Label.PNEUMONIA, text
    return words.meaning(text), text


def _mimic_study(cells: Mapping[str, str]) -> tuple[str, ...]:
    by_key = {_key(name): value for name, value in cells.items()}
    subject, study, film = (by_key.get(name, "") for name in ("subjectid", "studyid", "dicomid"))
    below = f"p{subject[:2]}/p{subject}/s{study}/{film}"
    return (f"files/{below}", below)


# In the order in which they are tried.
FORMS: Final = (
    Form(
        "MIMIC-CXR (films lie in files/p10/p10000032/s50414267)",
        lambda keys, roles: {"subjectid", "studyid"} <= keys and _key(roles.get("path", "dicomid")) == "dicomid",
        lambda cells, roles, words: (
            _label_by_column(cells, roles, words) if "label" in roles else _label_by_findings(cells, roles, words)
        ),
        _mimic_study,
    ),
    Form(
        "a table of RSNA's pneumonia challenge",
        lambda _, roles: (
            _key(roles.get("path", "")) == "patientid" and _key(roles.get("label", "")) in {"target", "class"}
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
        lambda keys, roles: {"imageid", "classname"} <= keys and _key(roles.get("label", "")) == "classname",
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
    meaning, text = form.label(cells, roles, words)
    cause = given.get("cause", "").lower()
    if isinstance(meaning, Label):
        of_word = CAUSES.get(in_one_form(text), "") if meaning == Label.PNEUMONIA else ""
        cause = (CAUSES.get(in_one_form(cause), cause) or of_word) if meaning == Label.PNEUMONIA else ""
    used = {*roles.values(), *FILM_COLUMNS, VERSION_COLUMN, "", *form.used(cells)}
    entry = ListedFilm(
        line=row.line,
        places=places,
        label=meaning.value if isinstance(meaning, Label) else "",
        split=_split_of(given.get("split", ""), path, row.line),
        patient_id=given.get("patient_id", "") if in_one_form(given.get("patient_id", "")) != "nan" else "",
        cause=cause,
        said="" if isinstance(meaning, Label) or ("label" not in roles and not form.name) else meaning.value,
        extra=tuple((name, value) for name, value in cells.items() if name not in used and value),
    )
    return entry, text if meaning is NoLabel.UNKNOWN else ""


def _places(path: str, cells: Mapping[str, str]) -> tuple[str, ...]:
    """Return the possible places of a film: its path, and for PadChest the same path in its numbered folder."""
    if not path:
        return ()
    if len(path) > 1 and path[0] == path[-1] and path[0] in "'\"":
        path = path[1:-1]
    path = path if "/" in path else path.replace("\\", "/")
    if address := re.match(r"(?!s3:)[a-z][a-z0-9+]+://[^/]*(/.*)", path):  # of another computer
        path = address[1].partition("?")[0]
    folder = next((value for name, value in cells.items() if _key(name) in {"imagedir", "imagefolder"} and value), "")
    return (path, f"{folder}/{path}") if folder else (path,)


def _split_of(text: str, path: Path, line: int) -> str:
    word = in_one_form(text)
    if not word or word in {"nan", "none"}:
        return ""
    if word not in SPLIT_WORDS:
        raise SourceInvalid(
            f"{path}, line {line}: the split is {text!r}; it may be {', '.join(SPLIT_WORDS)}, or empty. "
            'Where the column holds something else, leave it out: --columns "split="'
        )
    return SPLIT_WORDS[word].value


def _frontal(rows: list[TableRow]) -> tuple[list[TableRow], int]:
    """Return rows without those of lateral films, if a column states the view; and the number of removed rows."""
    view = next((name for row in rows[:1] for name in row.cells if _key(name) in _VIEWS), None)
    if view is None:
        return rows, 0
    kept = [row for row in rows if in_one_form(row.cells.get(view, "")) not in _LATERAL]
    return kept, len(rows) - len(kept)


def _merged(entries: Sequence[ListedFilm], *, boxes: bool) -> tuple[list[ListedFilm], list[str]]:
    """Merge rows to one entry a film. Rows with boxes or readers complement each other; other rows must agree."""
    by_film: dict[tuple[str, ...], list[ListedFilm]] = {}
    for entry in entries:
        by_film.setdefault(entry.places, []).append(entry)
    merged: list[ListedFilm] = []
    again, contradictions = 0, []
    for rows in by_film.values():
        labels = {row.label for row in rows}
        again += len(rows) - 1
        if len(labels - {""}) > 1 and not boxes:
            contradictions.append(rows)
            merged += [next(row for row in rows if row.label == label) for label in sorted(labels - {""})]
        else:
            merged.append(_one(rows))
    notes = [said(again, "row tells of a film again", "rows tell of a film again")] if again else []
    if contradictions:
        rows = contradictions[0]
        notes.append(
            f"Beware: {said(len(contradictions), 'film stands', 'films stand')} under two labels, {rows[0].places[0]} "
            f"in lines {', '.join(str(row.line) for row in rows[:_NAMED])} for one; clean will mark them as conflicting"
        )
    return merged, notes


def _one(rows: Sequence[ListedFilm]) -> ListedFilm:
    """Merge several rows of one film: a finding in any row counts; contradicting readers leave no label."""
    first = rows[0]
    if len(rows) == 1:
        return first
    labels = {row.label for row in rows}
    others = [row.said for row in rows if row.said]
    if Label.PNEUMONIA in labels:
        label, said = ("", NoLabel.CONTRADICTORY.value) if Label.NORMAL in labels else (Label.PNEUMONIA.value, "")
    else:
        label, said = (Label.NORMAL.value, "") if labels == {Label.NORMAL} else ("", others[0] if others else "")
    same = set(first.extra).intersection(*(row.extra for row in rows))
    return ListedFilm(
        first.line,
        first.places,
        label,
        next((row.split for row in rows if row.split), ""),
        next((row.patient_id for row in rows if row.patient_id), ""),
        next((row.cause for row in rows if row.cause), ""),
        said,
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
