"""What the benchmarks share: ways taken in turn, medians, ratios, and the machine that they ran on."""

from __future__ import annotations

import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

DATA: Final = Path(os.environ.get("CHESTXRAY_DATA") or Path(__file__).parents[2] / "shared" / "data")  # real films


@dataclass(frozen=True)
class Timing:
    """Seconds of one way, each repetition."""

    name: str
    seconds: tuple[float, ...]

    @property
    def median(self) -> float:
        """The middle one, in seconds."""
        return statistics.median(self.seconds)


def take_turns(ways: Mapping[str, Callable[[], object]], repetitions: int) -> list[Timing]:
    """Time each way once a round, so that a machine that slows down slows all of them; one round goes uncounted."""
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for count in range(repetitions + 1):
        for name, way in ways.items():
            started = time.perf_counter()
            way()
            if count:
                seconds[name].append(time.perf_counter() - started)
    return [Timing(name, tuple(values)) for name, values in seconds.items()]


def anew_on_one_thread() -> None:
    """Start this program anew, once, with the libraries' own threads off; they read these variables when imported.

    Modules are compiled once, as an installed package has them, even where Python is told to write no bytecode: else a
    command that is timed would compile the whole package each time.
    """
    wanted = {f"{library}_NUM_THREADS": "1" for library in ("OMP", "OPENBLAS", "MKL")}
    if all(os.environ.get(name) == value for name, value in wanted.items()):
        return
    environment = os.environ | wanted
    if environment.pop("PYTHONDONTWRITEBYTECODE", ""):
        with tempfile.TemporaryDirectory() as folder:
            environment["PYTHONPYCACHEPREFIX"] = folder
            sys.exit(subprocess.run([sys.executable, *sys.argv], env=environment, check=False).returncode)
    os.execve(sys.executable, [sys.executable, *sys.argv], environment)  # noqa: S606 - itself


def machine() -> str:
    """One line that says what was measured on."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return f"{processor()}, {cores} cores, Python {platform.python_version()}"


def processor() -> str:
    """The processor's name as the system tells it."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.machine())


def report(title: str, timings: list[Timing], baseline: str, films: int, *, as_json: bool) -> None:
    """Print each way's median, its spread and its ratio to the baseline."""
    base = next(timing for timing in timings if timing.name == baseline)
    ratios = {timing.name: base.median / timing.median for timing in timings}
    if as_json:
        document = {
            "title": title,
            "machine": machine(),
            "films": films,
            "ways": {
                timing.name: {"seconds": timing.seconds, "times_faster": ratios[timing.name]} for timing in timings
            },
        }
        print(json.dumps(document, indent=2))
        return
    print(f"{title}\n{machine()}; medians of {len(base.seconds)} rounds in turn")
    for timing in timings:
        spread = f"{min(timing.seconds):.3f} to {max(timing.seconds):.3f} s"
        each = f"{1e3 * timing.median / films:8.2f} ms each" if films else ""
        print(f"  {timing.name:52} {timing.median:8.3f} s ({spread}) {each} {ratios[timing.name]:6.2f} x")
