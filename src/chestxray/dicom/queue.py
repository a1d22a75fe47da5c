"""The durable queue: a film is on disk before its sender hears "success", and stays until its results have arrived.

    films/KEY.dcm          the film unchanged, until every result was accepted
    results/ID-KIND.dcm    on disk before its row is; a repeated sending uses the same file
    queue.sqlite           film: one row a film and model. delivery: one row a result and destination

A KEY is a hash of the SOP Instance UID, the model and a salt of this site, so neither the database nor a log holds a
number that somebody else could look up. If the process is killed at any moment, a film is either not acknowledged, or
it waits, or its results wait. A result sent twice is the same instance (its UID is derived from film and model), which
a PACS stores once.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import secrets
import shutil
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

from chestxray.dicom.settings import Limits
from chestxray.errors import OutputUnwritable, SourceInvalid
from chestxray.files import MEBIBYTE, put_durably, size_of, sync, written_beside

WAITING: Final = "waiting"  # a film: not classified yet. A delivery: not sent yet
ANSWERED: Final = "answered"  # a film: its results wait for sending
SENT: Final = "sent"  # a delivery: accepted; storage commitment is requested next
ASKED: Final = "asked"  # a delivery: storage commitment was requested
DONE: Final = "done"  # accepted; only the row is left
DEAD: Final = "dead"  # given up; "chestxray dicom queue retry" tries again

DATABASE: Final = "queue.sqlite"
QUEUE_VERSION: Final = 1
BEING_TAKEN_S: Final = 60.0  # seconds for which a file without a row may be one that is being written, or whose row is
MOST_LISTED: Final = 1000  # films that ``entries`` lists
HASH_LENGTH: Final = 32  # hexadecimal digits; 128 bits

_TABLES: Final = """
CREATE TABLE IF NOT EXISTS note (name TEXT PRIMARY KEY, value TEXT) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS film (
    id INTEGER PRIMARY KEY, key TEXT UNIQUE NOT NULL, model TEXT NOT NULL, state TEXT NOT NULL, reason TEXT NOT NULL,
    received REAL NOT NULL, changed REAL NOT NULL, tries INTEGER NOT NULL, next_try REAL NOT NULL,
    bytes INTEGER NOT NULL, peer TEXT NOT NULL, order_json TEXT NOT NULL);
DROP INDEX IF EXISTS film_by_state;
CREATE INDEX IF NOT EXISTS film_in_order ON film (state, id);
CREATE TABLE IF NOT EXISTS delivery (
    id INTEGER PRIMARY KEY, film INTEGER NOT NULL REFERENCES film (id) ON DELETE CASCADE, destination TEXT NOT NULL,
    kind TEXT NOT NULL, sop_class TEXT NOT NULL, sop_instance TEXT NOT NULL, state TEXT NOT NULL, reason TEXT NOT NULL,
    tries INTEGER NOT NULL, next_try REAL NOT NULL, asked TEXT NOT NULL, changed REAL NOT NULL,
    UNIQUE (film, destination, kind));
DROP INDEX IF EXISTS delivery_by_state;
CREATE INDEX IF NOT EXISTS delivery_in_order ON delivery (state, destination, id);
"""


_DELIVERY: Final = (
    *("id", "film", "key", "destination", "kind"),
    *("sop_class", "sop_instance", "tries", "received"),
)
_DELIVERIES: Final = (
    "SELECT d.id, d.film, f.key, d.destination, d.kind, d.sop_class, d.sop_instance, d.tries, f.received "
    "FROM delivery d JOIN film f ON f.id = d.film"
)
_ENTRY: Final = ("id", "key", "state", "reason", "received", "tries", "bytes", "peer")


class OutOfRoom(OutputUnwritable):
    """The disk, or the queue's part of it, is full; the sender should try again later."""


@dataclass(frozen=True, slots=True)
class Order:
    """What to do with a film, decided when it arrived.

    Attributes:
        rule: name of the rule that decided it.
        send_to: names of destinations.
        secondary_capture: whether a picture is sent with the report.
    """

    rule: str
    send_to: tuple[str, ...]
    secondary_capture: bool


@dataclass(frozen=True, slots=True)
class QueuedFilm:
    """A film that waits to be classified."""

    id: int
    key: str
    path: Path
    received: float
    tries: int
    order: Order


@dataclass(frozen=True, slots=True)
class Result:
    """One object that answers a film: the bytes of a DICOM file, and its UIDs."""

    kind: str
    sop_class: str
    sop_instance: str
    data: bytes


@dataclass(frozen=True, slots=True)
class WrittenResult:
    """A result whose file is written, and not yet sure to survive a power cut."""

    kind: str
    sop_class: str
    sop_instance: str
    path: Path
    bytes: int


@dataclass(frozen=True, slots=True)
class Delivery:
    """A result that waits for a destination."""

    id: int
    film: int
    key: str
    destination: str
    kind: str
    sop_class: str
    sop_instance: str
    tries: int
    received: float
    path: Path


@dataclass(frozen=True, slots=True)
class Entry:
    """A line of ``queue ls``.

    Attributes:
        deliveries: for each result and destination its state, such as ``{"pacs/sr": "waiting: refused (0xA700)"}``.
    """

    id: int
    key: str
    state: str
    reason: str
    received: float
    tries: int
    bytes: int
    peer: str
    deliveries: Mapping[str, str]


class Queue:
    """The queue of one node. Safe to share between threads; a second process may list and change it as well."""

    def __init__(
        self, folder: Path, model: str, limits: Limits | None = None, clock: Callable[[], float] = time.time
    ) -> None:
        """Open the queue, or create a new one.

        Args:
            folder: for films, results and the database; only its owner may read it.
            model: hash of everything that an answer depends on except the film.
            limits: limits of disk space and attempts.
            clock: seconds since 1970.

        Raises: OutputUnwritable, if the folder cannot be written or holds other files.
        """
        self.folder = folder
        self.model = model
        self.limits = limits or Limits()
        self._clock = clock
        self._lock = threading.RLock()
        self._taken: set[int] = set()
        try:
            for part in (self.films, self.results):
                part.mkdir(parents=True, exist_ok=True)
            folder.chmod(0o700)
            self._database = sqlite3.connect(folder / DATABASE, timeout=30.0, check_same_thread=False)
            for setting in ("journal_mode=WAL", "synchronous=FULL", "foreign_keys=ON", "secure_delete=ON"):
                self._database.execute(f"PRAGMA {setting}")
            version = self._database.execute("PRAGMA user_version").fetchone()[0]
            if version not in {0, QUEUE_VERSION}:
                raise OutputUnwritable(f"{folder}: a queue of version {version}; this program has {QUEUE_VERSION}")
            self._database.execute(f"PRAGMA user_version={QUEUE_VERSION}")
            self._database.executescript(_TABLES)
            self._salt = self._site_salt()
        except (OSError, sqlite3.Error) as error:
            raise OutputUnwritable(f"{folder}: cannot be used as a queue ({error}). Give another folder") from error
        self._bytes = self._bytes_on_disk()

    @property
    def films(self) -> Path:
        """Folder of the waiting films."""
        return self.folder / "films"

    @property
    def results(self) -> Path:
        """Folder of the waiting results."""
        return self.folder / "results"

    def close(self) -> None:
        """Close the database; waiting films and results stay."""
        with self._lock:
            self._database.close()

    def hashed(self, value: str) -> str:
        """Hash an identifier with this site's salt: logs and the database hold identifiers only in this form."""
        return hashlib.blake2b(value.encode(), key=self._salt, digest_size=HASH_LENGTH // 2).hexdigest()

    # ------------------------------------------------------------------ films come

    def take(self, data: bytes, sop_instance: str, peer: str, order: Order) -> bool:
        """Write a film to the disk; on return it survives a power cut.

        Args:
            data: the DICOM file.
            sop_instance: its SOP Instance UID.
            peer: AE title of the sender.
            order: what to do with it.

        Returns: False if this film waits already, or was answered by this model before.
        Raises: OutOfRoom; nothing was kept then.
        """
        key = self.hashed(f"{sop_instance}\n{self.model}")
        with self._lock:
            if self._one("SELECT 1 FROM film WHERE key = ?", key):
                return False
        self.check_room(len(data))
        path = self._film_path(key)
        try:
            with written_beside(path, data) as beside, self._lock:
                return self._keep(beside, path, key, len(data), peer, order)
        except (OSError, sqlite3.Error) as error:
            raise OutOfRoom(f"{self.folder}: the film could not be kept ({error})") from error

    def _keep(self, beside: Path, path: Path, key: str, size: int, peer: str, order: Order) -> bool:
        """Move a written film to its place and add its row; both or neither. Return False if the row existed."""
        if self._one("SELECT 1 FROM film WHERE key = ?", key):
            return False
        try:
            put_durably(beside, path)
            now = self._clock()
            with self._changing() as database:
                database.execute(
                    "INSERT INTO film VALUES (NULL, ?, ?, ?, '', ?, ?, 0, 0, ?, ?, ?)",
                    (key, self.model, WAITING, now, now, size, peer, json.dumps(asdict(order))),
                )
        except (OSError, sqlite3.Error):
            path.unlink(missing_ok=True)  # on a full disk, a film that is not acknowledged must not take space
            raise
        self._bytes += size
        return True

    def check_room(self, size: int) -> None:
        """Check that ``size`` bytes may be kept. Raises: OutOfRoom, which names the limit."""
        if self._bytes + size > self.limits.queue * MEBIBYTE:
            raise OutOfRoom(f"{self.folder}: more than limits.queue, {self.limits.queue:,} MiB, would wait here")
        free = shutil.disk_usage(self.folder).free
        if free - size < self.limits.free * MEBIBYTE:
            raise OutOfRoom(f"{self.folder}: less than limits.free, {self.limits.free:,} MiB, is left on the disk")

    # ------------------------------------------------------------------ films are classified

    def next_films(self, most: int, among: int = 1) -> tuple[QueuedFilm, ...]:
        """Return the films that wait longest; they are reserved in this process until answered or put back.

        A film that was tried before comes alone, so that its fault costs no other film a try.

        Args:
            most: number of films at most.
            among: number of callers; the films that wait are shared out among them.
        """
        with self._lock:
            rows = self._database.execute(
                "SELECT id, key, received, tries, order_json FROM film "
                "WHERE state = ? AND model = ? AND next_try <= ? ORDER BY id LIMIT ?",
                (WAITING, self.model, self._clock(), len(self._taken) + most * among),
            ).fetchall()
            films = [self._queued(row) for row in rows if row[0] not in self._taken]
            part = films[: min(most, math.ceil(len(films) / among))]
            if part and part[0].tries:
                part = part[:1]
            part = [film for film in part if film is part[0] or not film.tries]
            self._taken.update(film.id for film in part)
        return tuple(part)

    def answer(self, answered: Sequence[tuple[QueuedFilm, Sequence[WrittenResult]]]) -> None:
        """Keep the results of films, which ``workers.write_result`` wrote, one delivery for each destination.

        All are kept or none. The results of a film that was dropped meanwhile are deleted.

        Raises: OutOfRoom; then the films keep waiting.
        """
        try:
            for _, results in answered:
                for result in results:
                    sync(result.path)
            sync(self.results)
            now = self._clock()
            with self._changing() as database:
                there = "UPDATE film SET state = ?, changed = ? WHERE id = ?"
                kept = [one for one in answered if database.execute(there, (ANSWERED, now, one[0].id)).rowcount]
                database.executemany(
                    "INSERT OR IGNORE INTO delivery VALUES (NULL, ?, ?, ?, ?, ?, ?, '', 0, 0, '', ?)",
                    [
                        (film.id, destination, result.kind, result.sop_class, result.sop_instance, WAITING, now)
                        for film, results in kept
                        for destination in film.order.send_to
                        for result in results
                    ],
                )
        except (OSError, sqlite3.Error) as error:
            for film, _ in answered:
                self.hold(film)
            raise OutOfRoom(f"{self.folder}: a result could not be kept ({error})") from error
        with self._lock:
            self._bytes += sum(result.bytes for _, results in kept for result in results)
        for film, results in answered:
            if (film, results) not in kept:
                for result in results:
                    result.path.unlink(missing_ok=True)
            self._release(film)

    def hold(self, film: QueuedFilm) -> None:
        """Let a film wait whose results find no room: the longer, the longer it has waited; it is not its own fault."""
        waited = self._clock() - film.received
        pause = min(self.limits.longest_pause, max(self.limits.first_pause, waited))
        self.put_back(film, pause, tried=False)

    def put_back(self, film: QueuedFilm, pause: float = 0.0, *, tried: bool = True) -> None:
        """Let a film wait for at least ``pause`` more seconds; ``tried`` if it may be the film's own fault."""
        with contextlib.suppress(sqlite3.Error), self._changing() as database:
            database.execute(
                "UPDATE film SET tries = tries + ?, next_try = ? WHERE id = ?",
                (int(tried), self._clock() + pause, film.id),
            )
        self._release(film)

    def bury(self, film: QueuedFilm, reason: str) -> None:
        """Make a film a dead letter, because it cannot be answered at all."""
        with self._changing() as database:
            database.execute(
                "UPDATE film SET state = ?, reason = ?, changed = ? WHERE id = ?",
                (DEAD, reason, self._clock(), film.id),
            )
        self._release(film)

    def _release(self, film: QueuedFilm) -> None:
        with self._lock:
            self._taken.discard(film.id)

    # ------------------------------------------------------------------ results go

    def deliveries(self, destination: str, state: str = WAITING, limit: int = 50) -> tuple[Delivery, ...]:
        """List the due deliveries of a destination, the oldest first."""
        with self._lock:
            rows = self._database.execute(
                f"{_DELIVERIES} WHERE d.state = ? AND d.destination = ? AND d.next_try <= ? ORDER BY d.id LIMIT ?",
                (state, destination, self._clock(), limit),
            ).fetchall()
        return tuple(map(self._delivery, rows))

    def delivered(self, deliveries: Sequence[Delivery], *, commitment: bool) -> None:
        """Record accepted deliveries; without a later ``commitment``, delete files that are no longer needed."""
        self._set(deliveries, SENT if commitment else DONE)

    def asked(self, deliveries: Sequence[Delivery], transaction: str, wait: float) -> None:
        """Record a request for storage commitment, which is repeated after ``wait`` seconds without an answer."""
        now = self._clock()
        with self._changing() as database:
            database.executemany(
                "UPDATE delivery SET state = ?, asked = ?, next_try = ?, changed = ?, tries = tries + 1 WHERE id = ?",
                [(ASKED, transaction, now + wait, now, delivery.id) for delivery in deliveries],
            )

    def committed(self, transaction: str, stored: Sequence[str], failed: Sequence[str]) -> int:
        """Record the answer to a request for storage commitment; results that were not stored are sent again.

        Args:
            transaction: UID of the request.
            stored, failed: SOP Instance UIDs of our results.

        Returns: the number of results of that request that the queue knows.
        """
        with self._lock:
            rows = self._database.execute(
                f"{_DELIVERIES} WHERE d.asked = ? AND d.state = ?", (transaction, ASKED)
            ).fetchall()
        known = list(map(self._delivery, rows))
        self._set([one for one in known if one.sop_instance in stored], DONE)
        for lost in (one for one in known if one.sop_instance in failed):
            self.refused(lost, "the destination could not commit to its storage")
        return len(known)

    def refused(self, delivery: Delivery, reason: str) -> None:
        """Record that a destination refused a result: it waits longer each time, and finally becomes a dead letter."""
        now = self._clock()
        tired = delivery.tries + 1 >= self.limits.tries
        old = now - delivery.received > self.limits.give_up_hours * 3600
        with self._changing() as database:
            database.execute(
                "UPDATE delivery SET state = ?, reason = ?, tries = tries + 1, next_try = ?, changed = ? WHERE id = ?",
                (DEAD if tired or old else WAITING, reason, now + self.limits.pause(delivery.tries), now, delivery.id),
            )
            self._conclude(database, delivery.film, now)

    def unreachable(self, destination: str, reason: str) -> None:
        """Record that a destination did not answer: no attempt counts, but too old results become dead letters."""
        now = self._clock()
        with self._changing() as database:
            films = database.execute(
                "UPDATE delivery SET state = ?, reason = ?, changed = ? WHERE state = ? AND destination = ? "
                "AND film IN (SELECT id FROM film WHERE received < ?) RETURNING film",
                (DEAD, reason, now, WAITING, destination, now - self.limits.give_up_hours * 3600),
            ).fetchall()
            for (film,) in set(films):
                self._conclude(database, film, now)

    def _set(self, deliveries: Sequence[Delivery], state: str) -> None:
        now = self._clock()
        with self._changing() as database:
            for delivery in deliveries:
                database.execute(
                    "UPDATE delivery SET state = ?, reason = '', tries = 0, next_try = 0, changed = ? WHERE id = ?",
                    (state, now, delivery.id),
                )
            finished = [
                film
                for film in {delivery.film for delivery in deliveries}
                if self._conclude(database, film, now) == DONE
            ]
        for film in finished:
            self._forget_files(film)

    def _conclude(self, database: sqlite3.Connection, film: int, now: float) -> str:
        """Set a film to the state that follows from its deliveries."""
        states = {state for (state,) in database.execute("SELECT DISTINCT state FROM delivery WHERE film = ?", (film,))}
        state = DONE if states <= {DONE} else DEAD if states <= {DONE, DEAD} else ANSWERED
        database.execute("UPDATE film SET state = ?, changed = ? WHERE id = ?", (state, now, film))
        if state == DONE:  # at that point the UIDs of the results are no longer needed
            database.execute("UPDATE delivery SET sop_instance = '' WHERE film = ?", (film,))
        return state

    def _forget_files(self, film: int) -> None:
        with self._lock:  # the folder itself may hold the results of thousands of films
            rows = self._database.execute(
                "SELECT DISTINCT f.key, d.kind FROM film f LEFT JOIN delivery d ON d.film = f.id WHERE f.id = ?",
                (film,),
            ).fetchall()
        paths = [self._result_path(film, kind) for _, kind in rows if kind is not None]
        paths += {self._film_path(key) for key, _ in rows}
        for path in paths:
            with self._lock:
                self._bytes -= size_of(path)
                path.unlink(missing_ok=True)

    # ------------------------------------------------------------------ people look

    def entries(self, state: str | None = None) -> tuple[Entry, ...]:
        """List films, the oldest first, MOST_LISTED at most; finished ones only on request."""
        where, value = ("state = ?", state) if state else ("state <> ?", DONE)
        with self._lock:
            rows = self._database.execute(
                f"SELECT id, key, state, reason, received, tries, bytes, peer FROM film WHERE {where} "  # noqa: S608
                "ORDER BY id LIMIT ?",
                (value, MOST_LISTED),
            ).fetchall()
            sent = [
                self._database.execute(
                    "SELECT destination, kind, state, reason FROM delivery WHERE film = ? ORDER BY id", (row[0],)
                ).fetchall()
                for row in rows
            ]
        return tuple(
            Entry(
                **dict(zip(_ENTRY, row, strict=True)),
                deliveries={f"{to}/{kind}": f"{now}: {why}" if why else now for to, kind, now, why in parts},
            )
            for row, parts in zip(rows, sent, strict=True)
        )

    def retry(self, film: int | None = None) -> int:
        """Make a dead letter, or all of them, wait again; return their number."""
        with self._changing() as database:
            dead = "state = ?" + ("" if film is None else " AND id = ?")
            given = (DEAD,) if film is None else (DEAD, film)
            films = [row[0] for row in database.execute(f"SELECT id FROM film WHERE {dead}", given)]  # noqa: S608
            for one in films:
                known = database.execute("SELECT COUNT(*) FROM delivery WHERE film = ?", (one,)).fetchone()[0]
                database.execute(
                    "UPDATE film SET state = ?, reason = '', tries = 0, next_try = 0, received = ? WHERE id = ?",
                    (ANSWERED if known else WAITING, self._clock(), one),
                )
                database.execute(
                    "UPDATE delivery SET state = ?, tries = 0, next_try = 0 WHERE film = ? AND state = ?",
                    (WAITING, one, DEAD),
                )
        if film is not None and not films:
            raise SourceInvalid(f'there is no dead letter {film}; "chestxray dicom queue ls" lists them')
        return len(films)

    def drop(self, film: int) -> None:
        """Delete a film with all its files, in any state; if sent again, it is a new film. Raises: SourceInvalid."""
        self._forget_files(film)
        with self._changing() as database:
            if not database.execute("DELETE FROM film WHERE id = ?", (film,)).rowcount:
                raise SourceInvalid(f'there is no film {film} in the queue; "chestxray dicom queue ls" lists them')

    def counts(self) -> dict[str, int]:
        """Count films by state; every state has an entry."""
        with self._lock:
            found = dict(self._database.execute("SELECT state, COUNT(*) FROM film GROUP BY state").fetchall())
        return {state: int(found.get(state, 0)) for state in (WAITING, ANSWERED, DONE, DEAD)}

    def oldest(self) -> float:
        """Return the age of the oldest film that is neither done nor dead, in seconds; 0 if there is none."""
        row = self._one("SELECT MIN(received) FROM film WHERE state IN (?, ?)", WAITING, ANSWERED)
        return 0.0 if row is None or row[0] is None else max(0.0, self._clock() - row[0])

    def sweep(self) -> int:
        """Delete dead letters that are too old, also of an earlier model, and files without a row.

        Returns: the number of deleted films.
        """
        dead = self._clock() - self.limits.dead_days * 86400
        with self._lock:
            old = self._database.execute("SELECT id FROM film WHERE state = ? AND changed < ?", (DEAD, dead)).fetchall()
        for (film,) in old:
            self.drop(film)
        with self._lock:  # no film is taken meanwhile, so a file without a row was left by a kill
            for path in [*self.films.iterdir(), *self.results.iterdir()]:
                if not self._is_awaited(path):
                    path.unlink(missing_ok=True)
            self._bytes = self._bytes_on_disk()
        return len(old)

    def adopt(self) -> int:
        """Assign films that wait for an earlier model to this model; return their number."""
        with self._changing() as database:
            found = database.execute(
                "UPDATE film SET model = ? WHERE state = ? AND model <> ?", (self.model, WAITING, self.model)
            )
        return found.rowcount

    def _is_awaited(self, path: Path) -> bool:
        if path.parent == self.films:
            with contextlib.suppress(FileNotFoundError):  # it has just been put into its place, or dropped
                if time.time() - path.stat().st_mtime < BEING_TAKEN_S:
                    return True
            return bool(self._one("SELECT 1 FROM film WHERE key = ? AND state <> ?", path.stem, DONE))
        film = path.stem.partition("-")[0]
        return film.isdigit() and bool(self._one("SELECT 1 FROM film WHERE id = ? AND state <> ?", int(film), DONE))

    # ------------------------------------------------------------------ within

    def _queued(self, row: Sequence[Any]) -> QueuedFilm:
        number, key, received, tries, order = row
        raw = json.loads(order)
        read = Order(raw["rule"], tuple(raw["send_to"]), raw["secondary_capture"])
        return QueuedFilm(number, key, self._film_path(key), received, tries, read)

    def _delivery(self, row: Sequence[Any]) -> Delivery:
        film, kind = row[1], row[4]
        return Delivery(**dict(zip(_DELIVERY, row, strict=True)), path=self._result_path(film, kind))

    def _film_path(self, key: str) -> Path:
        return self.films / f"{key}.dcm"

    def _result_path(self, film: int, kind: str) -> Path:
        return self.results / f"{film}-{kind}.dcm"

    def _bytes_on_disk(self) -> int:
        return sum(size_of(path) for part in (self.films, self.results) for path in part.iterdir())

    def _one(self, query: str, *values: Any) -> Any:
        with self._lock:
            return self._database.execute(query, values).fetchone()

    @contextmanager
    def _changing(self) -> Iterator[sqlite3.Connection]:
        with self._lock, self._database:
            yield self._database

    def _site_salt(self) -> bytes:
        """Return the salt of this queue's hashes: drawn once, in a file that only the owner can read."""
        with self._changing() as database:
            database.execute("INSERT OR IGNORE INTO note VALUES ('salt', ?)", (secrets.token_hex(32),))
            return bytes.fromhex(database.execute("SELECT value FROM note WHERE name = 'salt'").fetchone()[0])
