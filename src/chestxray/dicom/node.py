"""The node: two receivers (DICOM and HTTP), a queue, workers and senders, and their order of start and stop.

receivers (receive, web) -> rules -> queue -> workers -> queue -> senders -> PACS
"""

from __future__ import annotations

import contextlib
import fcntl
import gc
import hashlib
import os
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Final, Self

from prometheus_client import Counter

from chestxray.data.parallel import cores
from chestxray.dicom.queue import ANSWERED, DEAD, WAITING, Order, OutOfRoom, Queue, QueuedFilm
from chestxray.dicom.receive import Receiver, log, not_taken
from chestxray.dicom.rules import decide, facts_of
from chestxray.dicom.send import LOOKED_EVERY_S, Sender
from chestxray.dicom.settings import NodeSettings
from chestxray.dicom.workers import WORKER_FAILED, Classified, NoWorker, Setup, Task, Worker, WorkerDied
from chestxray.errors import FilmError, FilmTooLarge, OutputUnwritable, SettingsInvalid, UnsupportedFormat
from chestxray.files import MEBIBYTE
from chestxray.inference.bundle import Bundle, folder_of, open_bundle
from chestxray.inference.predictor import FILMS_A_PASS
from chestxray.serving.telemetry import Metrics

if TYPE_CHECKING:
    from chestxray.dicom.web import WebReceiver

SWEPT_EVERY_S: Final = 3600.0
TRIED_AT_MOST: Final = 2  # times that a film may end its process before a report states that as the reason

Answered = tuple[QueuedFilm, Classified]


class Node:
    """A running node, used in a ``with`` block.

    Attributes:
        port, http_port: ports of the receivers, once the node runs.
    """

    def __init__(self, settings: NodeSettings) -> None:
        """Open the bundle and the queue; the node does not listen yet.

        Raises: SettingsInvalid, BundleInvalid, SignatureInvalid; OutputUnwritable, if the folder belongs to another
        node.
        """
        if not settings.rules:
            raise SettingsInvalid("there is no [[rule]], so no film would be answered. Write one")
        self.settings = settings
        self.bundle: Bundle = open_bundle(folder_of(settings.bundle), settings.verify_key)
        self.bundle.info.operating_point(settings.operating_point or None)
        self._workers = settings.workers or cores()
        self._lock = _Locked(settings.folder)
        self.queue = Queue(settings.folder, bundle_hash(self.bundle), settings.limits)
        self.senders = {one.name: Sender(one, settings, self.queue) for one in settings.destinations}
        self.receiver = Receiver(settings, self.take, self.queue.committed)
        self.metrics = _metrics(self)
        self._films = Counter(
            "chestxray_dicom_films", "Films by what became of them.", ("outcome",), registry=self.metrics.registry
        )
        self._wake = threading.Event()
        self._stopped = threading.Event()
        self._no_worker = ""  # why no process classifies films at present
        self._threads: list[threading.Thread] = []
        self._web: WebReceiver | None = None
        self.port = self.http_port = 0

    # ------------------------------------------------------------------ life

    def __enter__(self) -> Self:
        """Start everything. Raises: UsageError, if an address cannot be used."""
        from chestxray.dicom.web import WebReceiver

        self.queue.sweep()
        if adopted := self.queue.adopt():
            log.info("films of an earlier model are answered by this one", extra={"films": adopted})
        try:
            self._web = WebReceiver(self)
            self.port = self.receiver.start()
            self.http_port = self._web.start()
        except BaseException:
            self.__exit__(None, None, None)
            raise
        for place in range(self._workers):
            self._threads.append(threading.Thread(target=self._work, name=f"worker-{place}", daemon=True))
        self._threads.append(threading.Thread(target=self._housekeeping, name="housekeeping", daemon=True))
        for thread in self._threads:
            thread.start()
        for sender in self.senders.values():
            sender.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        """Close the receivers first, then finish the films in progress; waiting films stay on the disk."""
        self._stopped.set()
        self._wake.set()
        self.receiver.stop()
        if self._web is not None:
            self._web.stop()
        for thread in self._threads:
            thread.join()
        for sender in self.senders.values():
            if self._threads:
                sender.stop()
        self.queue.close()
        self._lock.release()

    # ------------------------------------------------------------------ films in

    def take(self, data: bytes, ae_title: str) -> None:
        """Take a film from either receiver; on return the film is safe on disk, or needs no answer.

        Args:
            data: a DICOM file.
            ae_title: AE title of the sender.

        Raises: OutOfRoom, FilmTooLarge, UnsupportedFormat, UnreadableFilm: the film was not taken.
        """
        if len(data) > self.settings.limits.film * MEBIBYTE:
            raise FilmTooLarge(f"the film is larger than limits.film, {self.settings.limits.film} MiB")
        facts = facts_of(data, ae_title)
        if why := not_taken(facts):
            raise UnsupportedFormat(why)
        decision = decide(facts, self.settings.rules)
        if not decision.answered or decision.rule is None:
            self._count("not for us")
            return
        order = Order(decision.rule.name, decision.rule.send_to, decision.rule.secondary_capture)
        fresh = self.queue.take(data, facts.sop_instance, ae_title, order)
        self._count("taken" if fresh else "known")
        self._wake.set()

    def _count(self, outcome: str) -> None:
        self._films.labels(outcome).inc()

    # ------------------------------------------------------------------ films classified

    def _work(self) -> None:
        """Classify films until the node stops.

        Each process has one such thread, which waits while the process works, and a second one, which waits for the
        disk to keep the results of some films while the process classifies the next ones.
        """
        worker = Worker(self._setup(), self.settings.limits.film_seconds)
        try:
            with ThreadPoolExecutor(1, "results") as writer:
                self._classify_all(worker, writer)
        finally:
            worker.stop()

    def _classify_all(self, worker: Worker, writer: ThreadPoolExecutor) -> None:
        kept: Future[None] | None = None
        while not self._stopped.is_set():
            films = self._next()
            if not films:
                self._wake.wait(LOOKED_EVERY_S)
                self._wake.clear()
                continue
            answered = self._classified(worker, films)
            if kept is not None:
                wait((kept,))  # so that a slow or full disk slows the classifying down
            kept = writer.submit(self._keep, answered)

    def _next(self) -> Sequence[QueuedFilm]:
        with contextlib.suppress(Exception):  # a full disk is checked again a moment later
            return self.queue.next_films(FILMS_A_PASS, self._workers)
        return ()

    def _classified(self, worker: Worker, films: Sequence[QueuedFilm]) -> list[Answered]:
        """Have films classified; return those that can be answered, and let each of the others wait, or bury it."""
        found: list[Classified | Exception]
        try:
            found = worker.predict([self._task(film) for film in films])
            self._no_worker = ""
        except WorkerDied as died:
            suspects = films[died.read : died.read + 1] or films  # it ended while it read one, or after it had read all
            for film in films:
                if film in suspects:
                    self._count("lost")
                    log.warning("a worker ended", extra=_log_facts(film))
                self.queue.put_back(film, tried=film in suspects)
            return []
        except Exception as error:  # noqa: BLE001 - the thread that classifies the others must go on
            self._no_worker = str(error) if isinstance(error, NoWorker) else ""
            found = [error] * len(films)
        answered = []
        for film, one in zip(films, found, strict=True):
            if isinstance(one, Classified):
                answered.append((film, one))
            else:
                self._not_answered(film, one)
        if any(isinstance(one, OutOfRoom) for one in found):
            self._stopped.wait(LOOKED_EVERY_S)  # the full disk may hold no longer pause of the film either
        return answered

    def _keep(self, answered: Sequence[Answered]) -> None:
        """Keep results, together; the fault of one film costs no other film its answer."""
        try:
            self.queue.answer([(film, found.results) for film, found in answered])
        except OutOfRoom as error:
            for film, _ in answered:
                log.error("a film has to wait", extra=_log_facts(film) | {"reason": str(error)})
            self._stopped.wait(LOOKED_EVERY_S)
            return
        except Exception as error:  # noqa: BLE001 - as above
            if len(answered) == 1:
                self._not_answered(answered[0][0], error)
            else:
                for one in answered:
                    self._keep([one])
            return
        for film, found in answered:
            self._count(found.outcome)
            log.info("answered", extra=_log_facts(film) | {"outcome": found.outcome})
        for name in {name for film, _ in answered for name in film.order.send_to}:
            if name in self.senders:
                self.senders[name].wake()

    def _not_answered(self, film: QueuedFilm, error: Exception) -> None:
        """Let a film wait, or make it a dead letter."""
        if isinstance(error, OutOfRoom):
            log.error("a film has to wait", extra=_log_facts(film) | {"reason": str(error)})
            self.queue.hold(film)
        elif isinstance(error, FileNotFoundError):  # the film was dropped meanwhile
            self.queue.put_back(film, SWEPT_EVERY_S)
        else:
            self._count("dead")
            log.error("a film cannot be answered", extra=_log_facts(film) | {"fault": type(error).__name__})
            with contextlib.suppress(Exception):
                self.queue.bury(film, str(error) if isinstance(error, FilmError) else type(error).__name__)

    def _setup(self) -> Setup:
        research = self.settings.research_folder
        return Setup(
            results=self.queue.results,
            bundle=(self.bundle.folder, self.bundle.info.to_json(), self.queue.model),
            operating_point=self.settings.operating_point or None,
            require_age=self.settings.require_age,
            research=None if research is None else (research, self.queue.hashed("research")),
        )

    def _task(self, film: QueuedFilm) -> Task:
        refused = WORKER_FAILED if film.tries >= TRIED_AT_MOST else ""
        return Task(film.path, film.id, film.received, film.order.secondary_capture, refused)

    # ------------------------------------------------------------------ watching

    def _housekeeping(self) -> None:
        while not self._stopped.wait(SWEPT_EVERY_S):
            with contextlib.suppress(Exception):
                self.queue.sweep()

    def problem(self) -> str:
        """Explain in one sentence why films are not taken or not answered; empty if all is well."""
        try:
            self.queue.check_room(0)
        except OutputUnwritable as error:
            return str(error)
        if self._no_worker:
            return self._no_worker
        if self._threads and not all(thread.is_alive() for thread in self._threads):
            return "a thread of the node has ended; start it again"
        return ""


def _log_facts(film: QueuedFilm) -> dict[str, str]:
    """Return the facts of a film that the log may hold."""
    return {"film": film.key, "rule": film.order.rule}


def bundle_hash(bundle: Bundle) -> str:
    """Return the SHA-256 of a bundle's description; with another hash a film is classified again."""
    return hashlib.sha256(bundle.info.to_json().encode()).hexdigest()


def run_node(settings: NodeSettings, ready: Callable[[Node], None], stop: threading.Event) -> None:
    """Run a node until ``stop`` is set. Raises: as ``Node``."""
    _leave_a_closed_folder()
    with Node(settings) as node:
        gc.collect()
        gc.freeze()  # the library collects garbage every few seconds; what stays for good is then left out of it
        ready(node)
        # The system may give a signal to another thread: its handler runs in this one alone, between two waits.
        while not stop.wait(LOOKED_EVERY_S):
            pass


def _leave_a_closed_folder() -> None:
    """Change to the root, if this user may not enter the working folder, as with ``sudo -u`` from another's home.

    Workers start in the working folder of their parent. No setting is relative to it.
    """
    try:
        os.chdir(Path.cwd())
    except OSError:
        os.chdir("/")


class _Locked:
    """Locks a queue's folder, so that only one node at a time uses it."""

    def __init__(self, folder: Path) -> None:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self._file = os.open(folder / "node.lock", os.O_RDWR | os.O_CREAT, 0o600)
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(self._file)
            raise OutputUnwritable(f"{folder}: another node runs on this folder. Stop it, or give another") from None
        except OSError as error:
            raise OutputUnwritable(f"{folder}: cannot be used as a queue ({error})") from error

    def release(self) -> None:
        """Release the folder for another node."""
        os.close(self._file)


def _metrics(node: Node) -> Metrics:
    metrics = Metrics()
    for state in (WAITING, ANSWERED, DEAD):
        metrics.watch(f"dicom_{state}", f"Films in the state {state}.", _counted(node, state))
    metrics.watch("dicom_oldest_seconds", "Age of the oldest film that is not done.", node.queue.oldest)
    metrics.watch("dicom_associations", "Open DICOM associations.", lambda: node.receiver.associations)
    for name, sender in node.senders.items():
        label = "".join(letter if letter.isalnum() else "_" for letter in name)
        metrics.watch(f"dicom_last_success_{label}", "When a result was last accepted.", _last(sender))
    return metrics


def _counted(node: Node, state: str) -> Callable[[], float]:
    return lambda: node.queue.counts()[state]


def _last(sender: Sender) -> Callable[[], float]:
    return lambda: sender.last_success
