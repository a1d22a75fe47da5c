"""Worker processes that classify films: a decoder that dies or hangs affects no other film."""

from __future__ import annotations

import contextlib
import warnings
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import lru_cache
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Final

from chestxray.data.parallel import CleanContext, depend_on_the_parent
from chestxray.dicom.deidentify import deidentified
from chestxray.dicom.queue import OutOfRoom, WrittenResult, write_result
from chestxray.dicom.results import PICTURE_SIDE, Answer, derived_uid, results_of
from chestxray.dicom.rules import facts_of
from chestxray.errors import FilmError, MissingExtra
from chestxray.files import write_atomically
from chestxray.images.decode import decode
from chestxray.inference.bundle import Bundle
from chestxray.inference.predictor import Predictor
from chestxray.schema import BundleInfo

ENDED: Final = "the process that read it came to an end or took too long: too little memory, or a fault of a decoder"
STARTING_S: Final = 120.0  # seconds in which a process has to load the bundle and the libraries


@dataclass(frozen=True, slots=True)
class Task:
    """A film to classify.

    Attributes:
        film: its number in the queue.
        results: folder for the results.
        bundle: its folder, its description and the hash of the description.
        refused: reason not to read the pixels at all; empty to read them.
        require_age: refuse a film without a stated age.
        research: a folder for a de-identified copy, and the site's salt; None keeps no copy.
    """

    path: Path
    film: int
    results: Path
    received: float
    bundle: tuple[Path, str, str]
    operating_point: str | None
    secondary_capture: bool
    refused: str = ""
    require_age: bool = False
    research: tuple[Path, str] | None = None


@dataclass(frozen=True, slots=True)
class Classified:
    """The result of a process: the objects that it wrote, and the outcome in the words of the metrics."""

    results: tuple[WrittenResult, ...]
    outcome: str


class WorkerDied(Exception):
    """The process ended, or took too long."""


class Worker:
    """One process, which classifies one film at a time."""

    def __init__(self, seconds: float) -> None:
        """Set the limit; the process starts with the first film.

        Args:
            seconds: longest time for one film.
        """
        self.seconds = seconds
        self._process: BaseProcess | None = None
        self._pipe: Connection | None = None

    def predict(self, task: Task) -> Classified:
        """Classify a film. Raises: WorkerDied (the next film gets a new process); errors of ``classified``."""
        seconds = self.seconds
        if self._pipe is None:
            self._start()
            seconds += STARTING_S
        assert self._pipe is not None  # noqa: S101 - it was made above
        try:
            self._pipe.send(task)
            answer = self._pipe.recv() if self._pipe.poll(seconds) else WorkerDied()
        except (EOFError, OSError):
            answer = WorkerDied()
        if isinstance(answer, WorkerDied):
            self.stop()
        if isinstance(answer, BaseException):
            raise answer
        assert isinstance(answer, Classified)  # noqa: S101 - the other end is ours
        return answer

    def _start(self) -> None:
        context = CleanContext()
        self._pipe, theirs = context.Pipe()
        process = context.Process(target=_serve, args=(theirs,), daemon=True)
        process.start()
        theirs.close()
        self._process = process

    def stop(self) -> None:
        """End the process in any state."""
        if self._pipe is not None:
            with contextlib.suppress(OSError):
                self._pipe.close()
        process, self._pipe, self._process = self._process, None, None
        if process is not None:
            process.kill()
            process.join()


def _serve(pipe: Connection) -> None:
    depend_on_the_parent()
    while True:
        try:
            task = pipe.recv()
        except (EOFError, OSError):
            return
        try:
            answer: Classified | Exception = classified(task)
        except Exception as error:  # noqa: BLE001 - passed on unchanged, except for a cause that cannot be pickled
            error.__cause__ = None
            answer = error if isinstance(error, FilmError | OSError | OutOfRoom) else RuntimeError(type(error).__name__)
        pipe.send(answer)


def classified(task: Task) -> Classified:
    """Classify a film in this process and write its results.

    Raises: OSError, if the film cannot be opened; OutOfRoom; FilmError, if the header is damaged.
    """
    data = task.path.read_bytes()
    folder, description, digest = task.bundle
    predictor = _predictor(folder, description, task.require_age)
    prediction, picture, reason = None, None, task.refused
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about invalid header values: not ours to correct, and not to quote
        if not reason:
            try:
                film = decode(data, "film")  # once, for the network and for the picture
                if task.secondary_capture:
                    prediction, picture = predictor.predict_and_draw(
                        data, "film", film, operating_point=task.operating_point, long_side=PICTURE_SIDE
                    )
                else:
                    prediction = predictor.predict(data, "film", operating_point=task.operating_point, film=film)
            except (FilmError, MissingExtra) as error:
                reason = str(error).removeprefix("film: ")
        answer = Answer(
            facts=facts_of(data),
            prediction=prediction,
            reason=reason,
            bundle=(predictor.info.name, predictor.info.model_sha256, digest),
            received=datetime.fromtimestamp(task.received, UTC).astimezone(),
        )
        results = tuple(write_result(task.results, task.film, one) for one in results_of(data, answer, picture))
    if task.research is not None and prediction is not None:
        _keep(data, answer.facts.sop_instance, *task.research)
    return Classified(results, "refused" if prediction is None or prediction.label is None else prediction.label)


def _keep(data: bytes, sop_instance: str, folder: Path, salt: str) -> None:
    """Keep a de-identified copy under its new UID; a copy that fails is left out, and stops nothing."""
    with contextlib.suppress(FilmError, OSError):
        write_atomically(folder / f"{derived_uid('research', salt, sop_instance)}.dcm", deidentified(data, salt))


@lru_cache(1)
def _predictor(folder: Path, description: str, require_age: bool) -> Predictor:  # noqa: FBT001 - a key of the cache
    return Predictor(Bundle(folder, BundleInfo.from_json(description)), threads=1, require_age=require_age)
