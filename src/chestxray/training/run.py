"""A training run, from a pack to a finished folder; an interrupted run resumes."""

from __future__ import annotations

import dataclasses
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Final

from chestxray.data.pack import Pack
from chestxray.errors import OutputExists, TrainingInterrupted
from chestxray.files import may_be_replaced
from chestxray.progress import Log, ProgressCallback, no_log, no_progress
from chestxray.training.checkpoint import Best, Checkpoint, CheckpointFolder, Origin, writing
from chestxray.training.config import Recipe
from chestxray.training.distributed import World, init_distributed
from chestxray.training.ensemble import teacher_of
from chestxray.training.plots import AUGMENTED, Tracker, plot_augmented_films, track
from chestxray.training.run_folder import (
    FINISHED,
    RUN_JSON,
    RunFolder,
    RunInfo,
    RunSummary,
    evaluate_best,
    read_finished,
    records_of_lines,
    records_to_lines,
    unfinished_info,
)
from chestxray.training.train_state import EpochRecord, compiled_where_possible, snapshot
from chestxray.training.trainer import Epoch, Estimate, Forecast, Training

SIGNALS: Final = (signal.SIGTERM, signal.SIGINT)  # spot instances and schedulers send SIGTERM, Ctrl-C sends SIGINT


@dataclass(slots=True)
class StopRequest:
    """The signal that asks a training to stop; None until one arrives."""

    signal: signal.Signals | None = None


@contextmanager
def stop_requests() -> Iterator[StopRequest]:
    """Record SIGNALS until the block ends; a second signal acts as usual, at once.

    Only the main thread receives signals; in another thread the request stays empty.
    """
    request = StopRequest()
    if threading.current_thread() is not threading.main_thread():
        yield request
        return
    earlier = {number: signal.getsignal(number) for number in SIGNALS}

    def restore() -> None:
        for number, handler in earlier.items():
            signal.signal(number, handler)

    def note(number: int, _frame: FrameType | None) -> None:
        request.signal = signal.Signals(number)
        restore()

    for number in SIGNALS:
        signal.signal(number, note)
    try:
        yield request
    finally:
        restore()


CHECKPOINTS: Final = "checkpoints"
CHECKPOINT_EVERY_S: Final = 120.0  # seconds within an epoch; a kill loses at most this much work
SPARED_S: Final = 5.0  # seconds; an epoch that ends so soon after a checkpoint is trained again faster than written


@dataclass(frozen=True, slots=True)
class RunOptions:
    """What a run writes beside its results, and whether it may start from the beginning.

    Attributes:
        checkpoints: folder of the checkpoints; by default inside the run's folder.
        every: seconds after which a checkpoint is written within an epoch. Each epoch ends with a checkpoint as well,
            unless the last one is less than SPARED_S old.
        restart: start from the beginning, whatever the folder holds.
        replace: start from the beginning if the folder holds a run of another recipe or pack, which is refused
            otherwise.
        trackers: names of the trackers that receive each epoch.
    """

    checkpoints: Path | None = None
    every: float = CHECKPOINT_EVERY_S
    restart: bool = False
    replace: bool = False
    trackers: tuple[str, ...] = ()


def no_report(record: EpochRecord) -> None:
    """Report nothing."""


def train_run(
    pack_folder: Path,
    out: Path,
    recipe: Recipe,
    *,
    teachers: Sequence[Path] = (),
    device: str = "auto",
    options: RunOptions = RunOptions(),
    compiled: bool = False,
    on_epoch: Callable[[EpochRecord], None] = no_report,
    on_progress: ProgressCallback = no_progress,
    log: Log = no_log,
) -> RunSummary:
    """Train and write a run folder, or resume the run in that folder.

    The same pack, recipe and teachers give the same weights whether or not the run was interrupted. If the folder holds
    their finished run, that run is returned unchanged: training again would give the same result.

    Args:
        pack_folder: a pack.
        out: the run's folder; files in it that no run wrote are not touched.
        recipe: how to train.
        teachers: finished runs on the same pack, if the recipe has ``distillation``.
        device: as for ``trainer.train``.
        options: checkpoints, restart and trackers.
        compiled: let torch compile the network first, if possible.
        on_epoch: called after each epoch, when its line has been written.
        on_progress: called with (films done, films in all) after each step.
        log: called with a line about the expected cost, the resumed checkpoint, and any damage found.

    Raises:
        UsageError: teachers without ``distillation``, or the other way round.
        RunInvalid: a teacher is no finished run on this pack.
        OutputExists: ``out`` holds a run of another recipe, pack or teacher, or is no run at all.
        OutputUnwritable: the disk is full or the folder read-only.
        TrainingInterrupted: SIGTERM or SIGINT arrived; a checkpoint has been written.
        Also the errors of ``Pack.open`` and ``trainer.train``.
    """
    for part in out.glob(f".{RUN_JSON}.*.part"):  # a process that is killed at its start leaves only this file
        part.unlink()
    if not may_be_replaced(out, RUN_JSON):
        raise OutputExists(f"{out}: exists and is not a run. Give another --out")
    with init_distributed(device) as (world, own_device):
        if not world.is_main:
            log = no_log
        pack = Pack.open(pack_folder)
        teacher = teacher_of(teachers, recipe, pack)
        folder = CheckpointFolder(options.checkpoints or out / CHECKPOINTS)
        origin = Origin.of(pack, recipe, teacher.hashes if teacher else ())
        found = _resume_point_for_all(world, out, folder, origin, options, log)
        if isinstance(found, RunSummary):
            return found
        training = Training(pack, recipe, device=own_device, world=world, teacher=teacher)
        if compiled:
            training.state = compiled_where_possible(training.state, log)
        run = _Run(out, folder, training, options, found, log)
        with stop_requests() as stop:
            return run.train(stop, on_epoch, on_progress)


# --------------------------------------------------------------------------- what the folder holds already


def _resume_point_for_all(
    world: World, out: Path, folder: CheckpointFolder, origin: Origin, options: RunOptions, log: Log
) -> RunSummary | Checkpoint | None:
    """Return what the folder holds, read by the first process and sent to the others."""
    if world.size == 1:
        return _resume_point(out, folder, origin, options, log)
    found = _resume_point(out, folder, origin, options, log) if world.is_main else None
    info = records = text = data = b""
    if isinstance(found, RunSummary):
        info, records = found.info.to_json().encode(), records_to_lines(found.records).encode()
    elif found is not None:
        text, data = found.to_files()
    info, records, text, data = map(world.broadcast_bytes, (info, records, text, data))
    if info:
        run = RunInfo.from_json(info.decode())
        return RunSummary(out, run, records_of_lines(records.decode()), was_there=True)
    return Checkpoint.from_files(text, data) if text else None


def _resume_point(
    out: Path, folder: CheckpointFolder, origin: Origin, options: RunOptions, log: Log
) -> RunSummary | Checkpoint | None:
    """Return the finished run, or the checkpoint to resume, or None. Raises: OutputExists, RunInvalid."""
    if options.restart:
        return None
    info = RunInfo.read(out) if (out / RUN_JSON).is_file() else None
    if info is not None and (apart := info.origin.apart_from(origin)):
        _refuse_unless_replaced(out, apart, options)
        return None
    if info is not None and info.state == FINISHED:
        summary = read_finished(out, info)
        log(f"{out}: this run is finished, and training again would give the same. Start again with --restart")
        return summary
    checkpoint = folder.latest(log)
    if checkpoint is not None and (apart := checkpoint.origin.apart_from(origin)):
        _refuse_unless_replaced(folder.folder, apart, options)
        return None
    return checkpoint


def _refuse_unless_replaced(folder: Path, apart: str, options: RunOptions) -> None:
    if not options.replace:
        raise OutputExists(
            f"{folder}: holds another run: {apart}. Give another --out (or --checkpoints), or --restart to replace it"
        )


# --------------------------------------------------------------------------- the training itself


class _Run:
    """One process's part in a run."""

    def __init__(
        self,
        out: Path,
        folder: CheckpointFolder,
        training: Training,
        options: RunOptions,
        checkpoint: Checkpoint | None,
        log: Log,
    ) -> None:
        state = training.state
        self._training = training
        self._writes = state.world.is_main
        self._folder = folder
        self._out = RunFolder(out, state.pack, state.splits.validation)
        self._every = options.every
        self._log = log
        self._best = checkpoint.best if checkpoint else None
        self._seconds_before = checkpoint.seconds if checkpoint else 0.0
        self._started = self._written = time.perf_counter()
        self._stop = StopRequest()
        if checkpoint is not None:
            training.restore(checkpoint.state)
            log(f"{folder.folder}: resumes after step {training.all_steps_taken:,} of {training.all_steps:,}")
        self._info = unfinished_info(training)
        if self._writes:
            self._begin(anew=checkpoint is None)
        self._tracker_names = options.trackers if self._writes else ()
        self._trackers: list[Tracker] = []

    def _begin(self, *, anew: bool) -> None:
        if anew:
            self._folder.clear()
        self._out.begin(self._info, self._training.state.recipe, self._training.records, self._best)
        with writing(self._folder.folder):  # checks early that a separate folder of checkpoints can be written
            self._folder.folder.mkdir(parents=True, exist_ok=True)
        if anew or not (self._out.folder / AUGMENTED).is_file():
            with writing(self._out.folder):
                plot_augmented_films(self._training.varied_films(), self._out.folder)

    def train(
        self, stop: StopRequest, on_epoch: Callable[[EpochRecord], None], on_progress: ProgressCallback
    ) -> RunSummary:
        """Train the remaining epochs and write the results."""
        self._stop = stop
        estimate = Estimate.of(self._training)
        self._log(str(estimate))
        forecast = Forecast(estimate, self._log)

        def after_step() -> None:
            forecast.step()
            self._after_step()

        with ExitStack() as trackers:
            recipe, recorded = self._training.state.recipe, len(self._training.records)
            self._trackers = [
                trackers.enter_context(track(name, self._out.folder, recipe, recorded)) for name in self._tracker_names
            ]
            for epoch in self._training.epochs(on_progress, after_step):
                self._record(epoch)
                on_epoch(epoch.record)
                if len(self._training.records) < self._training.epoch_count and self._is_stopped():
                    self._checkpoint()
                    raise self._interrupted()
            return self._finished(on_progress)

    def _after_step(self) -> None:
        stopped = self._is_stopped()
        if stopped or time.perf_counter() - self._written >= self._every:
            self._checkpoint()
        if stopped:
            raise self._interrupted()

    def _is_stopped(self) -> bool:
        return self._training.state.world.any(self._stop.signal is not None)

    def _record(self, epoch: Epoch) -> None:
        if epoch.record.is_best:
            self._best = Best(epoch.weights, epoch.logits)
        if not self._writes:
            return
        if self._best is not None and epoch.record.is_best:
            self._out.keep_best(self._best)
        self._out.add(epoch.record)
        if time.perf_counter() - self._written >= min(self._every, SPARED_S):
            self._checkpoint()
        for tracker in self._trackers:
            tracker(epoch.record)

    def _checkpoint(self) -> None:
        if self._writes:
            origin = self._info.origin
            self._folder.write(Checkpoint(origin, self._training.snapshot(), self._best, self._seconds()))
        self._written = time.perf_counter()

    def _seconds(self) -> float:
        return self._seconds_before + time.perf_counter() - self._started

    def _interrupted(self) -> TrainingInterrupted:
        training = self._training
        name = self._stop.signal.name if self._stop.signal else "the signal of another process"
        return TrainingInterrupted(
            f"{self._out.folder}: stopped on {name} after step {training.all_steps_taken:,} of "
            f"{training.all_steps:,}; a checkpoint is written. The same command resumes",
            self._stop.signal or 15,
        )

    def _finished(self, on_progress: ProgressCallback) -> RunSummary:
        training, world = self._training, self._training.state.world
        last = snapshot(training.state.average.module)
        info = self._info
        if self._best is not None:
            peak = evaluate_best(self._out, training, self._best, self._log, on_progress)
            info = dataclasses.replace(info, typical_peak=peak)
        if self._writes:
            info = self._out.finish(info, training.records, last, self._seconds())
            self._folder.clear()
        received = world.broadcast_bytes(info.to_json().encode() if self._writes else b"")
        return RunSummary(self._out.folder, RunInfo.from_json(received.decode()), tuple(training.records))
