"""A table of scores in the format that its file's ending names; the same columns in each.

Rows are written as they come, so a table of any length takes little memory. In JSON and Parquet a film without
a score has null there; every other column is text, empty where nothing is known.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Iterable
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO, Final

from chestxray.errors import MissingExtra, UsageError
from chestxray.files import file_written_whole

COLUMNS: Final = ("path", "label", "score", "patient_id", "prediction", "cause", "split", "sha256", "reason")
SCORE: Final = COLUMNS.index("score")
ROWS_A_GROUP: Final = 65_536  # of a Parquet file: what is held in memory, and what a reader skips at once

Row = tuple[Any, ...]  # as COLUMNS: text, but for the score, which is a number or None


def write_table(rows: Iterable[Row], path: Path) -> None:
    """Write rows, whole or not at all. Raises: UsageError, MissingExtra."""
    write = _writer(path)
    with file_written_whole(path) as file:
        write(map(_writable, rows), file)


def check_table(path: Path) -> None:
    """Whether a table can be written there, before work is spent on it. Raises: UsageError, MissingExtra."""
    if _writer(path) is _write_parquet:
        _parquet()


def _writer(path: Path) -> Callable[[Iterable[Row], BinaryIO], None]:
    if path.suffix.lower() not in FORMATS:
        raise UsageError(f"{path}: the ending says how to write it; it may be {', '.join(FORMATS)}")
    return FORMATS[path.suffix.lower()]


def _writable(row: Row) -> Row:
    """A file's name may hold bytes that are no text; they are written as escapes."""
    return (row[0].encode("utf-8", "backslashreplace").decode(), *row[1:])


def _write_csv(rows: Iterable[Row], file: BinaryIO) -> None:
    text = io.TextIOWrapper(file, encoding="utf-8", newline="")
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(COLUMNS)
    writer.writerows(rows)  # None becomes empty; a number is written so that it reads back equal
    text.detach()


def _write_jsonl(rows: Iterable[Row], file: BinaryIO) -> None:
    for row in rows:
        line = json.dumps(dict(zip(COLUMNS, row, strict=True)), ensure_ascii=False)
        file.write(f"{line}\n".encode())


def _write_parquet(rows: Iterable[Row], file: BinaryIO) -> None:
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


FORMATS: Final[dict[str, Callable[[Iterable[Row], BinaryIO], None]]] = {
    ".csv": _write_csv,
    ".jsonl": _write_jsonl,
    ".parquet": _write_parquet,
}
