"""The progress of a batch: an SQLite file beside the output, from which a killed run resumes.

    film      the rows of the source as this run listed them, in order
    bytes     the content of a path while its file had this stamp
    answer    the result of a model for these bytes; the calibration is applied when the output is written

A film is not opened again if the size and modification time of its file are unchanged and the same predictor has
classified it. The journal may be deleted at any time: classifying the films again restores it, and it names no patient
whom the output does not name.
"""

from __future__ import annotations

import hashlib
import json
import os
import sqlite3
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby, starmap
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

from chestxray.data.sources import stamp_of
from chestxray.errors import DataError, OutputExists, OutputUnwritable
from chestxray.schema import Film

JOURNAL_VERSION: Final = 3
ROWS_AT_ONCE: Final = 1024  # rows; limits the memory that reading takes
LAST_ROWS: Final = 64  # rows at the end of the source
FINER: Final = 8  # times smaller are the groups of these

_TABLES: Final = """
CREATE TABLE IF NOT EXISTS note (name TEXT PRIMARY KEY, value TEXT) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS film (
    position INTEGER PRIMARY KEY, path BLOB, label TEXT, patient_id TEXT, cause TEXT, split TEXT, stamp TEXT,
    failure TEXT);
CREATE TABLE IF NOT EXISTS bytes (path BLOB PRIMARY KEY, stamp TEXT, sha256 TEXT) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS answer (
    sha256 TEXT, predictor TEXT, logit REAL, reason TEXT, gate_score REAL, notes TEXT, PRIMARY KEY (sha256, predictor)
) WITHOUT ROWID;
"""
_ANSWERED: Final = """
FROM film
LEFT JOIN bytes ON bytes.path = film.path AND bytes.stamp = film.stamp
LEFT JOIN answer ON answer.sha256 = bytes.sha256 AND answer.predictor = ?
"""
_RESULTS: Final = f"""SELECT position, film.path, label, patient_id, cause, split, '',
ifnull(answer.sha256, ''), logit, CASE WHEN answer.sha256 IS NULL THEN failure ELSE reason END,
gate_score, ifnull(notes, '[]')
{_ANSWERED} WHERE position >= ? AND position < ? ORDER BY position"""


@dataclass(frozen=True, slots=True)
class FilmResult:
    """The result of a model for one film.

    Attributes:
        sha256: of the film's bytes; empty where it could not be opened.
        logit: of pneumonia, before calibration; None where the film was refused or could not be read.
        reason: why there is no logit; empty if there is one. It names no file.
        gate_score: as in ``schema.Gate``.
        notes: as in ``schema.Prediction``.
    """

    sha256: str
    logit: float | None
    reason: str
    gate_score: float | None = None
    notes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "notes", tuple(self.notes))
        if (self.logit is None) != bool(self.reason):
            raise ValueError("a film has a logit or a reason why not")


@dataclass(frozen=True, slots=True)
class JournalFilm:
    """A film of the source, and the stamp of its file at the time of listing."""

    position: int
    film: Film
    stamp: str


class Journal:
    """An opened journal. Only one run at a time may hold it."""

    def __init__(self, path: Path, database: sqlite3.Connection, predictor: str) -> None:
        self.path = path
        self._database = database
        self._predictor = predictor

    @classmethod
    def open(cls, path: Path, predictor: str) -> Self:
        """Open an existing journal and continue it, or begin a new one.

        Args:
            path: of the file; SQLite keeps a second one beside it while it is open.
            predictor: hash of everything that an answer depends on except the film.

        Raises: OutputExists, if another run has it open; DataError, if the file is no journal.
        """
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            database = sqlite3.connect(path, timeout=0)
            for setting in ("locking_mode=EXCLUSIVE", "journal_mode=WAL", "synchronous=NORMAL", "secure_delete=ON"):
                database.execute(f"PRAGMA {setting}")
            if database.execute("PRAGMA user_version").fetchone()[0] not in {0, JOURNAL_VERSION}:
                raise DataError(f"{path}: written by another version. Delete it to classify every film again")
            database.execute(f"PRAGMA user_version={JOURNAL_VERSION}")
            database.executescript(_TABLES)
        except sqlite3.OperationalError as error:
            if error.sqlite_errorcode & 0xFF not in {sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED}:
                raise OutputUnwritable(
                    f"{path.parent}: no file can be written there ({error}). Give an --out in another folder"
                ) from error
            raise OutputExists(
                f"{path}: {error}. Another run is writing the same output; wait for it, or give another --out"
            ) from error
        except sqlite3.DatabaseError as error:
            raise DataError(f"{path}: not a journal ({error}). Delete it to classify every film again") from error
        return cls(path, database, predictor)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._database.close()
        if isinstance(error, sqlite3.Error):
            raise DataError(f"{self.path}: {error}. Make room or delete it, and run again") from error

    def list(self, films: Iterable[Film]) -> int:
        """Store the source's rows in place of an earlier run's, and return their number."""
        self._database.execute("DELETE FROM film")
        self._database.executemany(
            "INSERT INTO film VALUES (?, ?, ?, ?, ?, ?, ?, NULL)",
            (
                (at, os.fsencode(film.path), film.label, film.patient_id, film.cause, film.split, stamp_of(film))
                for at, film in enumerate(films)
            ),
        )
        self._database.execute("DROP TABLE IF EXISTS temp.pending")
        self._database.execute(
            "CREATE TEMP TABLE pending (position INTEGER PRIMARY KEY)",
        )
        self._database.execute(
            f"INSERT INTO pending SELECT position {_ANSWERED} WHERE answer.sha256 IS NULL", (self._predictor,)
        )
        self._database.commit()
        return self._count("film")

    def pending(self) -> int:
        """Return the number of films that had no answer when they were listed."""
        return self._count("temp.pending")

    def groups(self, size: int) -> Iterator[tuple[JournalFilm, ...]]:
        """Yield the films without an answer, in groups that are sent to a worker together.

        A group is cut at multiples of ``size`` of the source's rows, so the groups do not depend on what an interrupted
        run did before: a group is recorded whole or not at all. The last ``LAST_ROWS`` rows are cut into smaller
        groups, so that no worker waits long for another in the end.
        """
        wanted = """SELECT film.position, path, label, patient_id, cause, split, stamp
            FROM temp.pending JOIN film USING (position) WHERE position >= ? AND position < ? ORDER BY position"""
        edge = (self._count("film") - LAST_ROWS) // size * size
        fine = max(1, size // FINER)

        def group_of(row: tuple[Any, ...]) -> tuple[bool, int]:
            position = row[0]
            return (True, position // fine) if position >= edge else (False, position // size)

        for _, rows in groupby(self._pages(wanted, size), group_of):
            yield tuple(starmap(_listed, rows))

    def record(self, group: Sequence[JournalFilm], results: Sequence[FilmResult]) -> None:
        """Store the results of a group, all of them in one transaction."""
        pairs = tuple(zip(group, results, strict=True))
        read = [(listed, found) for listed, found in pairs if found.sha256]
        self._database.executemany(
            "INSERT OR REPLACE INTO bytes VALUES (?, ?, ?)",
            [(os.fsencode(listed.film.path), listed.stamp, found.sha256) for listed, found in read],
        )
        self._database.executemany(
            "INSERT OR IGNORE INTO answer VALUES (?, ?, ?, ?, ?, ?)",
            [
                (found.sha256, self._predictor, found.logit, found.reason, found.gate_score, json.dumps(found.notes))
                for _, found in read
            ],
        )
        self._database.executemany(
            "UPDATE film SET failure = ? WHERE position = ?",
            [(found.reason, listed.position) for listed, found in pairs if not found.sha256],
        )
        self._database.commit()

    def answers(self) -> Iterator[tuple[Film, FilmResult]]:
        """Yield every film of the source with its result, in order."""
        for row in self._pages(_RESULTS, ROWS_AT_ONCE, self._predictor):
            sha256, logit, reason, score, notes = row[7:]
            yield _listed(*row[:7]).film, FilmResult(sha256, logit, reason, score, tuple(json.loads(notes)))

    def digest(self) -> bytes:
        """Return the SHA-256 of everything that ``answers`` yields."""
        digest = hashlib.sha256()
        for row in self._pages(_RESULTS, ROWS_AT_ONCE, self._predictor):
            digest.update(repr(row).encode("utf-8", "backslashreplace"))
        return digest.digest()

    def note(self, name: str) -> Any:
        """Return the note stored under a name; None if there is none."""
        found = self._database.execute("SELECT value FROM note WHERE name = ?", (name,)).fetchone()
        return json.loads(found[0]) if found else None

    def finish(self, **notes: object) -> None:
        """Store the notes of the finished run, and delete the films that are no longer in the source.

        Films whose change cannot be seen (objects in S3) are remembered during one run only, and read again by the
        next.
        """
        self._database.execute("DELETE FROM bytes WHERE stamp = '' OR path NOT IN (SELECT path FROM film)")
        self._database.executemany(
            "INSERT OR REPLACE INTO note VALUES (?, ?)", [(name, json.dumps(value)) for name, value in notes.items()]
        )
        self._database.commit()

    def _pages(self, wanted: str, size: int, *values: object) -> Iterator[tuple[Any, ...]]:
        """Yield the rows of a query page by page, by position: a cursor must not see its table change."""
        total = self._count("film")
        step = ROWS_AT_ONCE // size * size
        for start in range(0, total, step):
            yield from self._database.execute(wanted, (*values, start, start + step)).fetchall()

    def _count(self, table: str) -> int:
        count: int = self._database.execute(f"SELECT count(*) FROM {table}").fetchone()[0]  # noqa: S608 - our own name
        return count


def _listed(position: int, path: bytes, label: str, patient_id: str, cause: str, split: str, stamp: str) -> JournalFilm:
    film = Film(path=os.fsdecode(path), label=label, patient_id=patient_id, cause=cause, split=split)
    return JournalFilm(position, film, stamp)
