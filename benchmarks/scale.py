"""What the verbs take for many films: processor time a film, and the largest memory of the process.

    python benchmarks/scale.py FOLDER [--copies 1 4] [--work FOLDER]

FOLDER has one folder a class. Each film is linked so many times; links count as films, and copies as duplicates.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from pathlib import Path


def linked(source: Path, out: Path, copies: int) -> int:
    """Link every film of a folder of classes so many times; the number of links."""
    films = [path for path in sorted(source.glob("*/*")) if path.is_file()]
    for path in films:
        folder = out / path.parent.name
        folder.mkdir(parents=True, exist_ok=True)
        for copy in range(copies):
            (folder / f"{copy}-{path.name}").symlink_to(path.resolve())
    return copies * len(films)


def run(films: int, *words: object) -> str:
    """Run a verb and wait; one line of what it took."""
    command = Path(sys.executable).with_name("chestxray")
    silence = [(os.POSIX_SPAWN_OPEN, stream, os.devnull, os.O_WRONLY, 0) for stream in (1, 2)]
    process = os.posix_spawn(command, [str(word) for word in (command, *words)], os.environ, file_actions=silence)
    _, status, used = os.wait4(process, 0)
    seconds = used.ru_utime + used.ru_stime
    failed = "" if status == 0 else f"; ended with {os.waitstatus_to_exitcode(status)}"
    return f"{words[0]}: {films:,} films, {1e3 * seconds / films:.2f} ms each, {used.ru_maxrss / 1024:.0f} MiB{failed}"


def main() -> None:
    """Link, run, print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--copies", type=int, nargs="+", default=[1, 4])
    parser.add_argument("--work", type=Path, default=None, help="where links and tables go; by default a new folder")
    arguments = parser.parse_args()
    work = arguments.work or Path(tempfile.mkdtemp(prefix="chestxray-scale-"))
    for copies in arguments.copies:
        place = work / str(copies)
        films = linked(arguments.folder, place / "films", copies)
        table, cleaned, split = (place / f"{name}.csv" for name in ("films", "cleaned", "split"))
        print(run(films, "collect", place / "films", "--out", table))
        print(run(films, "clean", table, "--out", cleaned, "--workers", 1))
        print(run(films, "split", cleaned, "--out", split))
        print(run(films, "pack", split, "--out", place / "pack", "--size", "128x128", "--workers", 1))
        print(run(films, "batch", table, "--out", place / "scores.csv", "--workers", 1))


if __name__ == "__main__":
    main()
