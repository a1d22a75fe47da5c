"""The table that everything here starts from: one film a row, its label, its probability, its patient.

Any model can be judged from such a file, whoever made it: ``path,label,score,patient_id`` and any further
columns, which become subgroups.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Final

import numpy as np
import numpy.typing as npt

from chestxray.errors import SourceInvalid
from chestxray.evaluation.metrics import Floats
from chestxray.files import write_atomically
from chestxray.schema import Label

COLUMNS: Final = ("path", "label", "score", "patient_id")
_REQUIRED: Final = ("path", "label", "score")
_LABELS: Final = {**{label.value: label.class_index for label in Label}, "0": 0, "1": 1}


@dataclass(frozen=True, slots=True, eq=False)
class ScoreTable:
    """Films with their labels and calibrated probabilities. Law: reading what was written gives an equal table.

    Attributes:
        paths: n names, each once.
        labels: shape (n,), int8, 0 normal and 1 pneumonia; read-only.
        probabilities: shape (n,), float64, of pneumonia, 0 to 1; read-only.
        patients: n names; "" where unknown, and the film then counts as a patient of its own.
        columns: further texts by name, n each: "cause" for instance.

    Raises: SourceInvalid, naming the row (the first film is row 1).
    """

    paths: tuple[str, ...]
    labels: npt.NDArray[np.int8]
    probabilities: Floats
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
    def groups(self) -> npt.NDArray[np.int64]:
        """Which patient each film is of, counted from 0: shape (n,). Films without a patient stand alone."""
        known = {name: index for index, name in enumerate(dict.fromkeys(filter(None, self.patients)))}
        alone = len(known)
        groups = np.empty(len(self), dtype=np.int64)
        for row, name in enumerate(self.patients):
            groups[row] = known[name] if name else alone
            alone += not name
        return groups

    def where(self, keep: npt.NDArray[np.bool_]) -> ScoreTable:
        """The films for which ``keep``, shape (n,), is true. Raises: SourceInvalid, where none is."""
        rows = np.flatnonzero(keep).tolist()
        return ScoreTable(
            paths=_picked(self.paths, rows),
            labels=self.labels[keep],
            probabilities=self.probabilities[keep],
            patients=_picked(self.patients, rows),
            columns={name: _picked(values, rows) for name, values in self.columns.items()},
        )

    def _check_lengths(self, labels: npt.NDArray[np.generic], probabilities: Floats) -> None:
        n = len(self.paths)
        if not n:
            raise SourceInvalid("there are no scores: the table has no row")
        parts = {"labels": labels.shape, "probabilities": probabilities.shape, "patients": (len(self.patients),)}
        parts |= {f"column {name!r}": (len(values),) for name, values in self.columns.items()}
        for name, shape in parts.items():
            if shape != (n,):
                raise SourceInvalid(f"{name} of shape {shape} for {n} films: it must be ({n},)")
        if taken := set(self.columns) & set(COLUMNS):
            raise SourceInvalid(f"column {min(taken)!r} has a meaning of its own; give the further column another name")

    def _check_rows(self, labels: npt.NDArray[np.generic], probabilities: Floats) -> None:
        wrong_label = (labels != 0) & (labels != 1)
        wrong_score = ~((probabilities >= 0.0) & (probabilities <= 1.0))  # NaN is wrong by this form as well
        for row in np.flatnonzero(wrong_label | wrong_score).tolist():
            where = f"row {row + 1} ({self.paths[row]})"
            if wrong_label[row]:
                raise SourceInvalid(f"{where}: the label is {labels[row]}; it may be 0 or 1")
            raise SourceInvalid(
                f"{where}: the score is {probabilities[row]}; it must be a probability, 0 to 1. "
                "Put a logit through 1 / (1 + exp(-logit)) first"
            )
        first: dict[str, int] = {}
        for row, path in enumerate(self.paths, start=1):
            if not path:
                raise SourceInvalid(f"row {row}: the path is empty")
            if first.setdefault(path, row) != row:
                raise SourceInvalid(f"row {row} ({path}): is the film of row {first[path]} again. Keep one of them")


def write_scores(table: ScoreTable, path: Path) -> None:
    """Write a table as CSV, whole or not at all. Law: ``read_scores(p) == table``."""
    names = tuple(Label)
    further = tuple(table.columns)
    rows = zip(
        table.paths,
        (names[label].value for label in table.labels.tolist()),
        map(repr, table.probabilities.tolist()),
        table.patients,
        *table.columns.values(),
        strict=True,
    )
    out = io.StringIO(newline="")
    # Quotes round everything, since a bare carriage return inside a name would end the row.
    writer = csv.writer(out, lineterminator="\n", quoting=csv.QUOTE_ALL if _has_return(table) else csv.QUOTE_MINIMAL)
    writer.writerow([*COLUMNS, *further])
    writer.writerows(rows)
    write_atomically(path, out.getvalue().encode())


def read_scores(path: Path) -> ScoreTable:
    """Read ``path,label,score`` and, where there, ``patient_id`` and further columns.

    A label may be "normal" or "pneumonia" in any case, or 0 or 1.

    Raises: SourceInvalid, naming the file and the row (the first below the header is row 1).
    """
    try:
        text = path.read_bytes().decode("utf-8-sig")
        rows = list(csv.reader(io.StringIO(text, newline=""), strict=True))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise SourceInvalid(f"{path}: cannot be read as a table of scores ({error})") from error
    header = [name.strip() for name in rows[0]] if rows else []
    if missing := [name for name in _REQUIRED if name not in header]:
        raise SourceInvalid(f"{path}: has no column {missing[0]!r}; a table of scores needs {', '.join(_REQUIRED)}")
    if len(set(header)) != len(header) or "" in header:
        raise SourceInvalid(f"{path}: each column needs a name, and each name once; found {', '.join(header)}")
    try:
        return _table_of(header, [row for row in rows[1:] if row])
    except SourceInvalid as error:
        raise SourceInvalid(f"{path}, {error}") from error


def _table_of(header: Sequence[str], rows: Sequence[Sequence[str]]) -> ScoreTable:
    labels, scores = [], []
    for number, row in enumerate(rows, start=1):
        if len(row) != len(header):
            raise SourceInvalid(f"row {number}: has {len(row)} fields; the header has {len(header)}")
        values = dict(zip(header, row, strict=True))
        labels.append(_label(values["label"], number))
        scores.append(_score(values["score"], number))
    texts = {name: tuple(row[index] for row in rows) for index, name in enumerate(header)}
    return ScoreTable(
        paths=texts["path"],
        labels=np.array(labels, dtype=np.int8),
        probabilities=np.array(scores, dtype=np.float64),
        patients=texts.get("patient_id", ()),
        columns={name: values for name, values in texts.items() if name not in COLUMNS},
    )


def _label(text: str, row: int) -> int:
    try:
        return _LABELS[text.strip().lower()]
    except KeyError:
        raise SourceInvalid(f"row {row}: the label is {text!r}; it may be {', '.join(_LABELS)}") from None


def _score(text: str, row: int) -> float:
    try:
        return float(text)
    except ValueError:
        raise SourceInvalid(f"row {row}: the score is {text!r}, which is no number") from None


def _picked(values: tuple[str, ...], rows: Sequence[int]) -> tuple[str, ...]:
    return tuple(values[row] for row in rows)


def _has_return(table: ScoreTable) -> bool:
    return any("\r" in text for values in (table.paths, table.patients, *table.columns.values()) for text in values)
