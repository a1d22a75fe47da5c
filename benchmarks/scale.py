"""What the verbs take for many films: processor time a film, and the largest memory of the process.

    python benchmarks/scale.py FOLDER [--copies 1 4] [--distinct] [--verbs collect ...] [--work FOLDER]

FOLDER has one folder a class. Each film is linked so many times; links count as films, and copies as duplicates, so
that "pack" and "audit" see each film once. With --distinct every copy is a part of the film, cut at another place and
mirrored every other time: another file and another picture, of which few are taken for near duplicates.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

VERBS = ("collect", "clean", "split", "pack", "audit", "batch")
CUT = 0.25  # of each side that a part leaves out
SIZE = "128x128"


def copied(source: Path, out: Path, copies: int, *, distinct: bool) -> int:
    """Link every film of a folder of classes so many times, or write parts of it; the number of films."""
    films = [path for path in sorted(source.glob("*/*")) if path.is_file()]
    draws = np.random.default_rng(0)
    for path in films:
        folder = out / path.parent.name
        folder.mkdir(parents=True, exist_ok=True)
        for copy in range(copies):
            place = folder / f"{copy}-{path.name}"
            if not distinct:
                place.symlink_to(path.resolve())
            elif not place.exists():  # the parts serve the next run as well
                part(path, draws, mirrored=copy % 2 == 1).save(place, "JPEG", quality=90)
    return copies * len(films)


def part(path: Path, draws: np.random.Generator, *, mirrored: bool) -> Image.Image:
    """A part of a film, of three quarters to the whole of each side."""
    with Image.open(path) as film:
        (left, right), (upper, lower) = (
            (round(side * CUT * start), round(side * (1 - CUT * (1 - start) * draws.random())))
            for side, start in zip(film.size, draws.random(2), strict=True)
        )
        cut = film.convert("L").crop((left, upper, right, lower))
    return ImageOps.mirror(cut) if mirrored else cut


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
    """Copy, run, print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--copies", type=int, nargs="+", default=[1, 4])
    parser.add_argument("--distinct", action="store_true", help="parts of the films in place of links")
    parser.add_argument("--verbs", nargs="+", choices=VERBS, default=VERBS)
    parser.add_argument("--work", type=Path, default=None, help="where films and tables go; by default a new folder")
    arguments = parser.parse_args()
    work = arguments.work or Path(tempfile.mkdtemp(prefix="chestxray-scale-"))
    for copies in arguments.copies:
        place = work / str(copies)
        films = copied(arguments.folder, place / "films", copies, distinct=arguments.distinct)
        table, cleaned, split = (place / f"{name}.csv" for name in ("films", "cleaned", "split"))
        one = ("--workers", 1)
        commands: dict[str, tuple[object, ...]] = {
            "collect": (place / "films", "--out", table),
            "clean": (table, "--out", cleaned, *one),
            "split": (cleaned, "--out", split),
            "pack": (split, "--out", place / "pack", "--size", SIZE, *one),
            "audit": (split, *one),
            "batch": (table, "--out", place / "scores.csv", *one),
        }
        for verb in arguments.verbs:
            print(run(films, verb, *commands[verb]), flush=True)


if __name__ == "__main__":
    main()
