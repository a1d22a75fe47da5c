"""The table of scores: one film a row, with its label, its probability, its patient.

Any model can be evaluated from such a file, also one of another program: ``path,label,score,patient_id`` and any
further columns, which become subgroups.
"""

from __future__ import annotations

import csv
import io
import json
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from types import MappingProxyType
from typing import Any, BinaryIO, Final, NamedTuple

import numpy as np
import numpy.typing as npt

from chestxray.arrays import BoolArray, Float64Array, Int64Array
from chestxray.errors import MissingExtra, SourceInvalid, UsageError, reason_of
from chestxray.files import file_written_whole, open_regular, refuse_to_replace, write_atomically
from chestxray.progress import warn
from chestxray.schema import PATIENTS_UNKNOWN, Label, Split
from chestxray.text import as_cell, of_cell

KEY_COLUMNS: Final = ("path", "label", "score", "patient_id")
NO_SUBGROUPS: Final = frozenset({"prediction", "sha256", "reason", "split", "notes"})
"""Columns that ``batch`` writes and that divide films into no meaningful parts."""
_REQUIRED: Final = ("path", "label", "score")
_PATIENTS: Final = frozenset({"patientid", "patient", "subjectid", "subject"})
_LABELS: Final = {**{label.value: label.class_index for label in Label}, "0": 0, "1": 1}


@dataclass(frozen=True, slots=True, eq=False)
class ScoreTable:
    """Films with their labels and calibrated probabilities. Law: reading what was written gives an equal table.

    Attributes:
        paths: n names, each once.
        labels: shape (n,), int8, 0 normal and 1 pneumonia; read-only.
        probabilities: shape (n,), float64, of pneumonia, 0 to 1; read-only.
        patients: n names; "" if unknown; such a film counts as a patient of its own.
        columns: further columns of text by name, n values each, such as "cause".

    Raises: SourceInvalid, naming the row (the first film is row 1).
    """

    paths: tuple[str, ...]
    labels: npt.NDArray[np.int8]
    probabilities: Float64Array
    patients: tuple[str, ...] = ()
    columns: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        labels = np.array(self.labels)
        probabilities = np.array(self.probabilities, dtype=np.float64)
        object.__setattr__(self, "paths", tuple(self.paths))
        object.__setattr__(self, "patients", tuple(self.patients) or ("",) * len(self.paths))
        columns = {name: tuple(values) for name, values in self.columns.items()}
        object.__setattr__(self, "columns", MappingProxyType(columns))
        self._check_lengths(labels, probabilities)
        self._check_rows(labels, probabilities)
        for name, array in (("labels", labels.astype(np.int8)), ("probabilities", probabilities)):
            array.setflags(write=False)
            object.__setattr__(self, name, array)

    def __len__(self) -> int:
        return len(self.paths)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, ScoreTable):
            return NotImplemented
        return (
            (self.paths, self.patients, dict(self.columns)) == (other.paths, other.patients, dict(other.columns))
            and np.array_equal(self.labels, other.labels)
            and np.array_equal(self.probabilities, other.probabilities)
        )

    __hash__ = None  # type: ignore[assignment]

    @property
    def groups(self) -> Int64Array:
        """Patient of each film, counted from 0: shape (n,). A film without a patient counts as one of its own."""
        known = {name: index for index, name in enumerate(dict.fromkeys(filter(None, self.patients)))}
        alone = len(known)
        groups = np.empty(len(self), dtype=np.int64)
        for row, name in enumerate(self.patients):
            groups[row] = known[name] if name else alone
            alone += not name
        return groups

    def where(self, keep: BoolArray) -> ScoreTable:
        """Return the films for which ``keep``, shape (n,), is true. Raises: SourceInvalid, if there is none."""
        return self.rows(np.flatnonzero(keep).tolist())

    def rows(self, numbers: Sequence[int]) -> ScoreTable:
        """Return the films of those rows, counted from 0, in that order. Raises: SourceInvalid, if there is none."""
        picked = np.array(numbers, dtype=np.int64)
        return ScoreTable(
            paths=_picked(self.paths, numbers),
            labels=self.labels[picked],
            probabilities=self.probabilities[picked],
            patients=_picked(self.patients, numbers),
            columns={name: _picked(values, numbers) for name, values in self.columns.items()},
        )

    def _check_lengths(self, labels: npt.NDArray[np.generic], probabilities: Float64Array) -> None:
        n = len(self.paths)
        if not n:
            raise SourceInvalid("there are no scores: the table has no row")
        parts = {"labels": labels.shape, "probabilities": probabilities.shape, "patients": (len(self.patients),)}
        parts |= {f"column {name!r}": (len(values),) for name, values in self.columns.items()}
        for name, shape in parts.items():
            if shape != (n,):
                raise SourceInvalid(f"{name} of shape {shape} for {n} films: it must be ({n},)")
        if taken := set(self.columns) & set(KEY_COLUMNS):
            raise SourceInvalid(f"column {min(taken)!r} has a meaning of its own; give the further column another name")

    def _check_rows(self, labels: npt.NDArray[np.generic], probabilities: Float64Array) -> None:
        wrong_label = (labels != 0) & (labels != 1)
        wrong_score = ~((probabilities >= 0.0) & (probabilities <= 1.0))  # written so that NaN fails as well
        for row in np.flatnonzero(wrong_label | wrong_score).tolist():
            where = f"row {row + 1} ({self.paths[row]})"
            if wrong_label[row]:
                raise SourceInvalid(f"{where}: the label is {labels[row]}; it may be 0 or 1")
            raise SourceInvalid(f"{where}: {_not_a_probability(float(probabilities[row]))}")
        if "" in self.paths:
            raise SourceInvalid(f"row {self.paths.index('') + 1}: the path is empty")
        _refuse_repeated_films(enumerate(self.paths, start=1))


def write_scores(table: ScoreTable, path: Path) -> None:
    """Write a table as CSV, completely or not at all. Law: ``read_scores(p) == table``."""
    names = tuple(Label)
    further = tuple(table.columns)
    rows = zip(
        map(as_cell, table.paths),
        (names[label].value for label in table.labels.tolist()),
        map(repr, table.probabilities.tolist()),
        map(as_cell, table.patients),
        *(map(as_cell, values) for values in table.columns.values()),
        strict=True,
    )
    out = io.StringIO(newline="")
    # Quote every value, because a bare carriage return inside a name would end the row.
    writer = csv.writer(out, lineterminator="\n", quoting=csv.QUOTE_ALL if _has_return(table) else csv.QUOTE_MINIMAL)
    writer.writerow([*KEY_COLUMNS, *further])
    writer.writerows(rows)
    write_atomically(path, out.getvalue().encode())


def read_scores(path: Path) -> ScoreTable:
    """Read ``path,label,score`` and, if present, ``patient_id`` and further columns.

    A label may be "normal" or "pneumonia" in any case, or 0 or 1.

    Raises: SourceInvalid, which names the file and the row (the first below the header is row 1).
    """
    try:
        return _table_of(_rows_of(path))
    except SourceInvalid as error:
        raise SourceInvalid(f"{path}, {error}") from error


@dataclass(frozen=True, slots=True)
class ScoreFile:
    """A file of scores in the form in which it is evaluated, with counts of the rows left out.

    Attributes:
        table: the films with a label and a score, of the split that is evaluated.
        split: "train", "val" or "test"; "" if every row counts.
        rows: number of rows of the whole file.
        without_label, on_other_splits, without_score: rows left out, each counted once, in this order.
        reasons: the file's reasons for missing scores ("" if it gives none), and their counts.
        splits: path, split, patient and SHA-256 of every row that names a split, for the leakage check.
    """

    table: ScoreTable
    split: str
    rows: int
    without_label: int
    on_other_splits: int
    without_score: int
    reasons: Mapping[str, int]
    splits: tuple[tuple[str, str, str, str], ...]


def read_score_file(path: Path, split: str | None = None, *, split_is_optional: bool = False) -> ScoreFile:
    """Read a file of scores, as ``batch`` writes it, in which films may lack a score.

    Args:
        path: the file; a row whose label or score is empty is counted, not evaluated.
        split: for a file with a column "split"; by default "test" if it occurs, else every row.
        split_is_optional: whether a file that names no splits is used as a whole, whatever ``split`` is.

    Raises: SourceInvalid, which names the file and, if one is at fault, the row.
    """
    try:
        rows = _rows_of(path)
        _refuse_repeated_films((row.number, row["path"]) for row in rows)
        names_splits = any(row.get("split") for row in rows)
        return _sorted_out(rows, split if names_splits or not split_is_optional else None)
    except SourceInvalid as error:
        raise SourceInvalid(f"{path}, {error}") from error


def _sorted_out(rows: Sequence[_Row], split: str | None) -> ScoreFile:
    if split is not None and not any(row.get("split") for row in rows):
        raise SourceInvalid('has no column "split" with values, so there are no splits to choose from')
    if split is None and any(row.get("split") == Split.TEST for row in rows):
        split = Split.TEST.value
    labelled = [row for row in rows if row["label"].strip()]
    chosen = [row for row in labelled if split is None or row.get("split") == split]
    scored = [row for row in chosen if row["score"].strip()]
    if not scored:
        raise SourceInvalid("holds no film with a label and a score" + (f" on the split {split!r}" if split else ""))
    if not any(row.get("patient_id", "").strip() for row in scored):
        warn(f"Warning: {PATIENTS_UNKNOWN}. Give a column patient_id")
    return ScoreFile(
        table=_table_of(scored, leave_out=NO_SUBGROUPS),
        split=split or "",
        rows=len(rows),
        without_label=len(rows) - len(labelled),
        on_other_splits=len(labelled) - len(chosen),
        without_score=len(chosen) - len(scored),
        reasons=Counter(row.get("reason", "").strip() for row in chosen if not row["score"].strip()),
        splits=tuple(
            (row["path"], row["split"], row.get("patient_id", ""), row.get("sha256", ""))
            for row in rows
            if row.get("split")
        ),
    )


class _Row(dict[str, str]):
    """A row by column, and its number in its file (the first below the header is row 1)."""

    def __init__(self, number: int, values: Mapping[str, str]) -> None:
        super().__init__(values)
        self.number = number


def _rows_of(path: Path) -> list[_Row]:
    """Return every row that is not blank. Raises: SourceInvalid, without the file's name."""
    try:
        with open_regular(path) as file:
            text = file.read().decode("utf-8-sig")
        rows = [row for row in csv.reader(io.StringIO(text, newline=""), strict=True) if row]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise SourceInvalid(f"cannot be read as a table of scores ({reason_of(error)})") from error
    header = _with_patients([name.strip() for name in rows[0]] if rows else [])
    if missing := [name for name in _REQUIRED if name not in header]:
        raise SourceInvalid(f"has no column {missing[0]!r}; a table of scores needs {', '.join(_REQUIRED)}")
    if len(set(header)) != len(header) or "" in header:
        raise SourceInvalid(f"each column needs a name, and each name once; found {', '.join(header)}")
    for number, row in enumerate(rows[1:], start=1):
        if len(row) != len(header):
            raise SourceInvalid(f"row {number}: has {len(row)} fields; the header has {len(header)}")
    return [
        _Row(number, dict(zip(header, map(of_cell, row), strict=True))) for number, row in enumerate(rows[1:], start=1)
    ]


def _with_patients(header: list[str]) -> list[str]:
    """Return the header with "patient_id" in place of another usual name of that column."""
    if "patient_id" in header:
        return header
    found = next((name for name in header if re.sub(r"[^a-z]", "", name.lower()) in _PATIENTS), None)
    return ["patient_id" if name == found else name for name in header]


def _table_of(rows: Sequence[_Row], leave_out: frozenset[str] = frozenset()) -> ScoreTable:
    further = [name for name in (rows[0] if rows else ()) if name not in leave_out.union(KEY_COLUMNS)]
    return ScoreTable(
        paths=tuple(row["path"] for row in rows),
        labels=np.array([_label(row) for row in rows], dtype=np.int8),
        probabilities=np.array([_score(row) for row in rows], dtype=np.float64),
        patients=tuple(row.get("patient_id", "") for row in rows),
        columns={name: tuple(row[name] for row in rows) for name in further},
    )


def _refuse_repeated_films(rows: Iterable[tuple[int, str]]) -> None:
    """Check that no path occurs twice, given the number of each row and its path. Raises: SourceInvalid."""
    first: dict[str, int] = {}
    for row, path in rows:
        if first.setdefault(path, row) != row:
            raise SourceInvalid(f"row {row} ({path}): is the film of row {first[path]} again. Keep one of them")


def _label(row: _Row) -> int:
    try:
        return _LABELS[row["label"].strip().lower()]
    except KeyError:
        raise SourceInvalid(
            f"row {row.number}: the label is {row['label']!r}; it may be {', '.join(_LABELS)}"
        ) from None


def _score(row: _Row) -> float:
    try:
        score = float(row["score"])
    except ValueError:
        raise SourceInvalid(f"row {row.number}: the score is {row['score']!r}, which is no number") from None
    if not 0.0 <= score <= 1.0:
        raise SourceInvalid(f"row {row.number} ({row['path']}): {_not_a_probability(score)}")
    return score


def _not_a_probability(score: float) -> str:
    return f"the score is {score}; it must be a probability, 0 to 1. Put a logit through 1 / (1 + exp(-logit)) first"


def _picked(values: tuple[str, ...], rows: Sequence[int]) -> tuple[str, ...]:
    return tuple(values[row] for row in rows)


def _has_return(table: ScoreTable) -> bool:
    return any("\r" in text for values in (table.paths, table.patients, *table.columns.values()) for text in values)


class ScoreRow(NamedTuple):
    """A row of a table: text, except the score, which is None for a film without a prediction."""

    path: str
    label: str
    score: float | None
    patient_id: str
    prediction: str
    cause: str
    split: str
    sha256: str
    reason: str
    notes: str


COLUMNS: Final = ScoreRow._fields
SCORE: Final = COLUMNS.index("score")
# rows in a group of a Parquet file: held in memory at once, and skipped at once by a reader
ROWS_A_GROUP: Final = 65_536

_BEGINS: Final = (",".join(COLUMNS[:-1]).encode(), b'{"path": ', b"PAR1")  # first bytes of each of FORMATS


def write_table(rows: Iterable[ScoreRow], path: Path) -> None:
    """Write rows, completely or not at all. Raises: UsageError, MissingExtra."""
    write = _writer(path)
    with file_written_whole(path) as file:
        write(map(_writable, rows), file)


def check_table(path: Path) -> None:
    """Check that a table can be written to a path, before other work is done.

    Raises: UsageError, MissingExtra; OutputExists, if the path exists and is no table of scores.
    """
    if _writer(path) is _write_parquet:
        _parquet()
    refuse_to_replace(path, lambda head: head.startswith(_BEGINS), "a table of scores")


def _writer(path: Path) -> Callable[[Iterable[ScoreRow], BinaryIO], None]:
    if path.suffix.lower() not in SCORE_FORMATS:
        raise UsageError(f"{path}: the ending says how to write it; it may be {', '.join(SCORE_FORMATS)}")
    return SCORE_FORMATS[path.suffix.lower()]


def _writable(row: ScoreRow) -> ScoreRow:
    """Return a row with the file's name in a form that can be written: bytes that are no text become escapes."""
    return row._replace(path=row.path.encode("utf-8", "backslashreplace").decode())


def _write_csv(rows: Iterable[ScoreRow], file: BinaryIO) -> None:
    text = io.TextIOWrapper(file, encoding="utf-8", newline="")
    writer = csv.writer(text, lineterminator="\n")
    quoting = csv.writer(text, lineterminator="\n", quoting=csv.QUOTE_ALL)
    writer.writerow(COLUMNS)
    for row in rows:  # None becomes empty; a number is written so that it reads back equal
        cells = [as_cell(value) if isinstance(value, str) else value for value in row]
        # A bare carriage return inside a name would end the row.
        texts = "".join(cell for cell in cells if isinstance(cell, str))
        (quoting if "\r" in texts else writer).writerow(cells)
    text.detach()


def _write_jsonl(rows: Iterable[ScoreRow], file: BinaryIO) -> None:
    for row in rows:
        line = json.dumps(dict(zip(COLUMNS, row, strict=True)), ensure_ascii=False)
        file.write(f"{line}\n".encode())


def _write_parquet(rows: Iterable[ScoreRow], file: BinaryIO) -> None:
    arrow, parquet = _parquet()
    kinds = (arrow.float64() if at == SCORE else arrow.string() for at in range(len(COLUMNS)))
    schema = arrow.schema(list(zip(COLUMNS, kinds, strict=True)))
    left = iter(rows)
    with parquet.ParquetWriter(file, schema, compression="zstd") as writer:
        while group := tuple(islice(left, ROWS_A_GROUP)):
            columns = [arrow.array(values, field.type) for values, field in zip(zip(*group), schema)]  # noqa: B905
            writer.write_table(arrow.Table.from_arrays(columns, schema=schema))


def _parquet() -> tuple[Any, Any]:
    try:
        import pyarrow as pa
        from pyarrow import parquet
    except ImportError as error:
        raise MissingExtra("Writing Parquet", "parquet") from error
    return pa, parquet


SCORE_FORMATS: Final[dict[str, Callable[[Iterable[ScoreRow], BinaryIO], None]]] = {
    ".csv": _write_csv,
    ".jsonl": _write_jsonl,
    ".parquet": _write_parquet,
}
