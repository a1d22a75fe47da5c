"""Films a second of ``chestxray batch``, against what decoding and the network allow on the same cores.

    python benchmarks/batch.py BUNDLE [FOLDER] [--times 4] [--rounds 3] [--json]

The floor is the same work with nothing around it: on every core a process that is started and warm, with its share of
the paths, reads, decodes and scores on one thread, and keeps nothing. Against it stand the whole
command (starting Python and its workers, listing, journal, table), the same without what is paid once, and a second
run, which opens no film. Films are taken several times over, as links to the same files.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from functools import partial
from multiprocessing import get_context
from multiprocessing.pool import Pool
from pathlib import Path

from chestxray.data.collect import collect
from chestxray.data.parallel import cores
from chestxray.inference.batch import GROUP, journal_of, predict_group, run_batch
from chestxray.inference.bundle import Bundle, folder_of
from chestxray.schema import Film
from side_by_side import DATA, anew_on_one_thread, report, take_turns

FLOOR = "decode + network, a warm process a core"


def predict_share(paths: list[str], bundle: Path) -> int:
    """What a process of the floor does with its paths."""
    description = Bundle.open(bundle).info.to_json()
    groups = (paths[start : start + GROUP] for start in range(0, len(paths), GROUP))
    return sum(len(predict_group([Film(path) for path in group], bundle, description)) for group in groups)


def floor(pool: Pool, paths: list[str], bundle: Path) -> None:
    """Every film, shared out evenly and beforehand."""
    shares = [paths[start :: cores()] for start in range(cores())]
    pool.map(partial(predict_share, bundle=bundle), shares, chunksize=1)


def anew(out: Path, run: list[str | Path]) -> None:
    """The command as if it had never run."""
    journal_of(out).unlink(missing_ok=True)
    again(run)


def again(run: list[str | Path]) -> None:
    """The command."""
    subprocess.run(run, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def in_process(bundle: Path, folder: Path, out: Path) -> None:
    """``run_batch``, its workers and all, in this Python."""
    journal_of(out).unlink(missing_ok=True)
    run_batch(Bundle.open(bundle), collect(folder, labels_needed=False), out)


def linked(films: tuple[Film, ...], times: int, folder: Path) -> list[str]:
    """A folder of links to the same films, again and again."""
    paths = []
    for copy in range(times):
        for number, film in enumerate(films):
            path = folder / f"{copy}-{number:05}{Path(film.path).suffix}"
            path.symlink_to(film.path)
            paths.append(str(path))
    return paths


def main() -> None:
    """Measure and print; the last column is the share of the floor's films a second."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("bundle", type=folder_of)
    parser.add_argument("folder", type=Path, nargs="?", default=DATA / "chest_xray")
    parser.add_argument("--films", type=int, default=None, help="how many of the folder's films; all by default")
    parser.add_argument("--times", type=int, default=4, help="how often each film is taken")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    films = collect(arguments.folder, labels_needed=False)[: arguments.films]
    with tempfile.TemporaryDirectory() as name, get_context("spawn").Pool(cores()) as pool:
        root = Path(name)
        (root / "films").mkdir()
        paths = linked(films, arguments.times, root / "films")
        command = Path(sys.executable).with_name("chestxray")
        run = [command, "batch", root / "films", "--bundle", arguments.bundle, "--out", root / "scores.csv"]
        timings = take_turns(
            {
                FLOOR: partial(floor, pool, paths, arguments.bundle),
                "chestxray batch, the whole command": partial(anew, root / "scores.csv", run),
                "run_batch, with starting its workers": partial(
                    in_process, arguments.bundle, root / "films", root / "other.csv"
                ),
                "chestxray batch, a second run": partial(again, run),
            },
            arguments.rounds,
        )
    title = f"{len(paths):,} films of {arguments.folder.name}, {cores()} processes"
    report(title, timings, FLOOR, len(paths), as_json=arguments.json)


if __name__ == "__main__":
    anew_on_one_thread()
    main()
