"""Films a second into a pack, against the original's way: open with Pillow, resize to 112 x 160, to tensor.

    python benchmarks/packing.py [FOLDER] [--times 5] [--rounds 3] [--json]

The original read films in its one process; here it is also given a process on every core, as the pack takes.
Films are taken several times over, as links to the same files would be, so that starting the workers does not
hide what a film costs. "From the pack" is what every training epoch then pays for its films.
"""

from __future__ import annotations

import argparse
import dataclasses
import shutil
import tempfile
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context
from pathlib import Path

import numpy as np
from PIL import Image

from chestxray.data.clean import clean
from chestxray.data.collect import collect
from chestxray.data.pack import Pack, write_pack
from chestxray.data.parallel import cores
from chestxray.schema import Film
from side_by_side import DATA, report, take_turns

SIZE = (112, 160)
ORIGINAL = "the original's way, every epoch"


def the_originals_way(path: Path) -> np.ndarray:
    """What the original did for each film, each time: shape (3, 112, 160), float32."""
    with Image.open(path) as image:
        small = image.convert("RGB").resize(SIZE[::-1], Image.Resampling.BILINEAR)
    return (np.asarray(small, dtype=np.float32) / 255).transpose(2, 0, 1).copy()


def the_originals_way_for_all(pool: ProcessPoolExecutor, paths: list[Path]) -> None:
    """Every film once, on every core."""
    for _ in pool.map(the_originals_way, paths, chunksize=4):
        pass


def pack_anew(rows: list[Film], out: Path) -> None:
    """A pack as if there had been none: from one that is there, known films would be copied."""
    shutil.rmtree(out, ignore_errors=True)
    write_pack(rows, out)


def read_all(pack: Pack) -> int:
    """Touch every film of a pack in batches, as an epoch does."""
    return sum(int(pack.images[start : start + 32].astype(np.float32).size) for start in range(0, len(pack.films), 32))


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, nargs="?", default=DATA / "originals")
    parser.add_argument("--times", type=int, default=5, help="how often each film is taken")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    films = [film for film in clean(collect(arguments.folder)) if film.is_accepted] * arguments.times
    rows = [dataclasses.replace(film, split="train") for film in films]
    paths = [Path(film.path) for film in rows]
    with (
        tempfile.TemporaryDirectory() as folder,
        ProcessPoolExecutor(cores(), mp_context=get_context("spawn")) as pool,
    ):
        out = Path(folder) / "pack"
        timings = take_turns(
            {
                ORIGINAL: lambda: [the_originals_way(path) for path in paths],
                "the original's way, on every core": partial(the_originals_way_for_all, pool, paths),
                "pack, once (with starting its workers)": partial(pack_anew, rows, out),
                "from the pack, every epoch after": lambda: read_all(Pack.open(out)),
            },
            arguments.rounds,
        )
    report(
        f"{len(rows)} films of {arguments.folder.name} to {SIZE[0]} x {SIZE[1]}",
        timings,
        ORIGINAL,
        len(rows),
        as_json=arguments.json,
    )


if __name__ == "__main__":
    main()
