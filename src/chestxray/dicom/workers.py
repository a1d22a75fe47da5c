"""Worker processes that classify films: a decoder that dies or hangs affects no other film."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Final

from chestxray.arrays import Float32Array, UInt8Array
from chestxray.data.parallel import CleanContext, depend_on_the_parent
from chestxray.dicom.deidentify import deidentified
from chestxray.dicom.queue import OutOfRoom, Result, WrittenResult
from chestxray.dicom.results import HEAT_MAP_SIDE, ResultContent, derived_uid, results_of
from chestxray.dicom.rules import FilmFacts, read_header
from chestxray.errors import FilmError, MissingExtra
from chestxray.files import write_atomically
from chestxray.images.decode import decode
from chestxray.inference.batch import predictor_of
from chestxray.inference.heatmap import averaged
from chestxray.inference.ood import Prepared
from chestxray.inference.predictor import Predictor
from chestxray.schema import Prediction

WORKER_FAILED: Final = "the process that read it ended or took too long: too little memory, or an error in a decoder"
STARTING_S: Final = 120.0  # seconds in which a process has to load the bundle and the libraries


@dataclass(frozen=True, slots=True)
class Setup:
    """What all films of a node have in common.

    Attributes:
        results: folder for the results.
        bundle: its folder, its description and the hash of the description.
        require_age: refuse a film without a stated age.
        research: a folder for de-identified copies, and the site's salt; None keeps no copies.
    """

    results: Path
    bundle: tuple[Path, str, str]
    operating_point: str | None = None
    require_age: bool = False
    research: tuple[Path, str] | None = None


@dataclass(frozen=True, slots=True)
class Task:
    """A film to classify.

    Attributes:
        film: its number in the queue.
        secondary_capture: whether a picture is made.
        refused: reason not to read the pixels at all; empty to read them.
    """

    path: Path
    film: int
    received: float
    secondary_capture: bool
    refused: str = ""


@dataclass(frozen=True, slots=True)
class Classified:
    """The result of a process: the objects that it wrote, and the outcome in the words of the metrics."""

    results: tuple[WrittenResult, ...]
    outcome: str


class WorkerDied(Exception):
    """The process ended, or took too long.

    Attributes:
        read: how many films it had read, in the order in which they were given.
    """

    def __init__(self, read: int = 0) -> None:
        super().__init__()
        self.read = read


class NoWorker(OutOfRoom):
    """No process can be started, which is no film's fault; the films wait."""


class Worker:
    """One process, which classifies a few films at a time."""

    def __init__(self, setup: Setup, seconds: float) -> None:
        """Set the limit; the process starts with the first film.

        Args:
            setup: what all films have in common.
            seconds: longest time for one film.
        """
        self.setup = setup
        self.seconds = seconds
        self._process: BaseProcess | None = None
        self._pipe: Connection | None = None

    def predict(self, tasks: Sequence[Task]) -> list[Classified | Exception]:
        """Classify films, which share one pass through the network.

        Returns: for each film what the process made of it, or its error as ``classified`` returns it.
        Raises: WorkerDied (the next films get a new process); NoWorker.
        """
        seconds = self.seconds
        if self._pipe is None:
            self._start()
            seconds += STARTING_S
        assert self._pipe is not None  # noqa: S101 - it was made above
        read = 0
        try:
            self._pipe.send(tasks)
            while self._pipe.poll(seconds):
                found: list[Classified | Exception] | None = self._pipe.recv()
                if found is not None:
                    return found
                read, seconds = read + 1, self.seconds
        except (EOFError, OSError):
            pass
        self.stop()
        raise WorkerDied(read)

    def _start(self) -> None:
        context = CleanContext()
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(theirs, self.setup), daemon=True)
        try:
            self._process.start()
            theirs.close()
            if self._pipe.poll(STARTING_S):
                self._pipe.recv()  # it runs, so what ends it from now on is a film, or the system
                return
            why = f"it was not ready within {STARTING_S:.0f} s"
        except OSError as error:
            theirs.close()
            why = error.strerror or type(error).__name__
        except EOFError:
            why = "it ended at once; its error message is on standard error"
        self.stop()
        raise NoWorker(f"no process that classifies films can be started: {why}")

    def stop(self) -> None:
        """End the process in any state."""
        if self._pipe is not None:
            with contextlib.suppress(OSError):
                self._pipe.close()
        process, self._pipe, self._process = self._process, None, None
        if process is not None and process.pid is not None:
            process.kill()
            process.join()


def _serve(pipe: Connection, setup: Setup) -> None:
    depend_on_the_parent()
    pipe.send(None)
    while True:
        try:
            tasks = pipe.recv()
        except (EOFError, OSError):
            return
        try:
            found = classified(tasks, setup, on_read=lambda: pipe.send(None))
        except Exception as error:  # noqa: BLE001 - of the bundle or the network, whatever the films
            found = [error] * len(tasks)
        pipe.send([_portable(one) for one in found])


def _portable(found: Classified | Exception) -> Classified | Exception:
    """Pass results on unchanged, and errors without a cause, which may not be picklable."""
    if isinstance(found, Classified):
        return found
    found.__cause__ = None
    return found if isinstance(found, FilmError | OSError | OutOfRoom) else RuntimeError(type(found).__name__)


def classified(
    tasks: Sequence[Task], setup: Setup, on_read: Callable[[], object] = lambda: None
) -> list[Classified | Exception]:
    """Classify films in this process, in one pass through the network, and write their results.

    Args:
        tasks: the films.
        setup: what they have in common.
        on_read: called after each film was read.

    Returns: for each film its results, or its own error: OSError, if the film cannot be opened; OutOfRoom; FilmError,
        if the header is damaged.
    """
    folder, description, _ = setup.bundle
    predictor = predictor_of(folder, description, setup.require_age)
    opened: list[_Opened | Exception] = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about invalid header values: not ours to correct, and not to quote
        for task in tasks:
            opened.append(_opened(task, predictor))
            on_read()
        readable = [film.prepared for film in opened if isinstance(film, _Opened) and film.prepared is not None]
        predictions = iter(predictor.predict_prepared(readable, operating_point=setup.operating_point))
        found: list[Classified | Exception] = []
        for film in opened:
            if isinstance(film, Exception):
                found.append(film)
                continue
            prediction, activation = (None, None) if film.prepared is None else next(predictions)
            found.append(_written(film, prediction, activation, predictor, setup))
    return found


@dataclass(frozen=True, slots=True)
class _Opened:
    """A film of which the file and its pixels are no longer needed.

    Attributes:
        prepared: the input of gate and network; None if the pixels could not be read.
        plane: the film for the picture; None if there will be no picture.
        reason: why the pixels could not be read.
    """

    task: Task
    facts: FilmFacts
    identity: Mapping[int, bytes]
    prepared: Prepared | None = None
    plane: UInt8Array | None = None
    reason: str = ""


def _opened(task: Task, predictor: Predictor) -> _Opened | Exception:
    try:
        data = task.path.read_bytes()
        facts, identity = read_header(data)
    except (FilmError, OSError) as error:
        return error
    if task.refused:
        return _Opened(task, facts, identity, reason=task.refused)
    try:
        film = decode(data, "film")  # once, for the network and for the picture
        prepared = predictor.prepare(data, "film", film)
        drawn = task.secondary_capture and prepared.plane is not None
        return _Opened(task, facts, identity, prepared, averaged(film, HEAT_MAP_SIDE) if drawn else None)
    except (FilmError, MissingExtra) as error:
        return _Opened(task, facts, identity, reason=str(error).removeprefix("film: "))
    except Exception as error:  # noqa: BLE001 - of this film; the films beside it are answered
        return error


def _written(
    film: _Opened, prediction: Prediction | None, activation: Float32Array | None, predictor: Predictor, setup: Setup
) -> Classified | Exception:
    task, info = film.task, predictor.info
    answer = ResultContent(
        facts=film.facts,
        prediction=prediction,
        reason=film.reason,
        bundle=(info.name, info.model_sha256, setup.bundle[2]),
        received=datetime.fromtimestamp(task.received, UTC).astimezone(),
    )
    drawn = film.plane is not None and activation is not None
    try:
        picture = predictor.draw(film.plane, activation) if drawn else None  # type: ignore[arg-type]
        made = results_of(film.identity, answer, picture)
        results = tuple(write_result(setup.results, task.film, result) for result in made)
    except Exception as error:  # noqa: BLE001 - of this film; the films beside it are answered
        return error
    if setup.research is not None and prediction is not None:
        _keep(task.path, film.facts.sop_instance, *setup.research)
    return Classified(results, "refused" if prediction is None or prediction.label is None else prediction.label)


def write_result(folder: Path, film: int, result: Result) -> WrittenResult:
    """Write a result for ``Queue.answer``; without its row, no one reads the file.

    Args:
        folder: the results of the queue.
        film: number of the film in the queue.
        result: the result.

    Raises: OutOfRoom.
    """
    path = folder / f"{film}-{result.kind}.dcm"
    try:
        path.write_bytes(result.data)
    except OSError as error:
        with contextlib.suppress(OSError):  # a part of it would take room
            path.unlink()
        raise OutOfRoom(f"{folder}: a result could not be kept ({error})") from error
    return WrittenResult(result.kind, result.sop_class, result.sop_instance, path, len(result.data))


def _keep(path: Path, sop_instance: str, folder: Path, salt: str) -> None:
    """Keep a de-identified copy under its new UID; a copy that fails is left out, and stops nothing."""
    with contextlib.suppress(FilmError, OSError):
        copy = deidentified(path.read_bytes(), salt)
        write_atomically(folder / f"{derived_uid('research', salt, sop_instance)}.dcm", copy)
