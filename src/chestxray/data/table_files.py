"""Files of tables as rows of text by column: text of any delimiter and encoding, JSON, workbooks, Parquet.

What the columns mean is the matter of ``tables``; only the usual names of the column with the path are known here,
because they tell a header from a title above it.
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
from pathlib import Path
from typing import Any, Final, NamedTuple

from chestxray.data.sources import HEAD
from chestxray.errors import MissingExtra, SourceInvalid, reason_of

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

# Columns by role, in the form of ``column_key``; the first that a table has is taken.
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
PATH_COLUMNS: Final = frozenset(ROLES["path"])
USUAL_COLUMNS: Final = frozenset(name for usual in ROLES.values() for name in usual)


class TableRow(NamedTuple):
    """One row of a table: the number of its first line, and its cells by column, as in the table."""

    line: int
    cells: Mapping[str, str]


TableReader = Callable[[bytes, Path], tuple[tuple[str, ...], list[TableRow]]]


def column_key(column: str) -> str:
    """Return the form of a column's name for comparison: "Patient ID", "patient_id" and "patientId" are equal."""
    return re.sub(r"[^0-9a-z]", "", column.lower())


def is_table(path: Path) -> bool:
    """Check whether the name is that of a table, packed by gzip, bzip2 or xz or not."""
    return ending_of(path) in TABLE_ENDINGS


def ending_of(path: Path) -> str:
    """Return the ending of a table's name in lower case, without that of its packer."""
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
        raise SourceInvalid(f"{path}: cannot be read as a table ({reason_of(error)})") from error
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


def _reader_of(path: Path, data: bytes) -> TableReader:
    """Return the reader for a table: by its first bytes where these tell, else by the name's ending."""
    ending = ending_of(path)
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
        if not PATH_COLUMNS.isdisjoint(column_key(cell) for cell in line.split(marks[0])):
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
        again = counts[name] > 1 and column_key(name) not in USUAL_COLUMNS
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
    of_films = [
        name for name, row in headers.items() if not PATH_COLUMNS.isdisjoint(column_key(_as_text(cell)) for cell in row)
    ]
    if len(of_films) > 1:
        raise SourceInvalid(f"{path}: has films in several sheets ({', '.join(of_films)}). Save each as a .csv")
    rows = sheets[next(iter((*of_films, *(name for name, row in headers.items() if row), *sheets)))]
    return _table(((line, [_as_text(cell) for cell in row]) for line, row in enumerate(rows, start=1)), path)


def _title_rows(rows: Sequence[Sequence[Any]]) -> int:
    """Return how many rows stand above the header, which names a column of paths."""
    named = (not PATH_COLUMNS.isdisjoint(column_key(_as_text(cell)) for cell in row) for row in rows[:_FIRST_LINES])
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


_READERS: Final[Mapping[str, TableReader]] = {
    ".parquet": _read_parquet,
    ".jsonl": _read_json_lines,
    ".ndjson": _read_json_lines,
    ".json": _read_json,
}
