"""What a pack of 1,000, 5,216 and 50,000 films costs: seconds, films a second, memory. Links to the same films serve.

    python benchmarks/pack_growth.py [FOLDER] [--films 1000 5216 50000] [--json]

Each pack is written by a process of its own, so that its largest memory is its own. A second pack of the same
films shows what is left when every film is known. Linear growth means the same milliseconds a film in each row.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import resource
import subprocess
import sys
import tempfile
import time
from itertools import cycle, islice
from pathlib import Path

from chestxray.data.clean import clean
from chestxray.data.collect import collect
from chestxray.data.pack import write_pack
from chestxray.schema import read_manifest, write_manifest
from side_by_side import DATA, machine


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, nargs="?", default=DATA / "originals")
    parser.add_argument("--films", type=int, nargs="+", default=[1000, 5216, 50000])
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--one", type=Path, nargs=2, metavar=("MANIFEST", "OUT"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one:
        print(json.dumps(one(*arguments.one)))
        return
    rows = [measured(arguments.folder, count) for count in arguments.films]
    if arguments.json:
        print(json.dumps({"machine": machine(), "folder": arguments.folder.name, "packs": rows}, indent=2))
        return
    print(f"Packs of links to the films of {arguments.folder.name}, 112 x 160 pixels\n{machine()}")
    for row in rows:
        print(
            f"  {row['films']:>7,} films {row['seconds']:9.2f} s  {1e3 * row['seconds'] / row['films']:7.3f} ms each  "
            f"{row['mebibytes']:6.0f} MiB at most; again, all known: {row['again_seconds']:7.2f} s"
        )


def measured(folder: Path, count: int) -> dict[str, float]:
    """The cost of one pack, and of writing it again, each in a process of its own."""
    accepted = [film for film in clean(collect(folder)) if film.is_accepted]
    with tempfile.TemporaryDirectory() as name:
        base = Path(name)
        films = []
        for number, film in enumerate(islice(cycle(accepted), count)):
            link = base / "films" / f"{number:06}{Path(film.path).suffix}"
            link.parent.mkdir(exist_ok=True)
            link.symlink_to(film.path)
            films.append(dataclasses.replace(film, path=str(link), split="train"))
        write_manifest(films, base / "split.csv")
        command = [sys.executable, __file__, "--one", str(base / "split.csv"), str(base / "pack")]
        first, again = (
            json.loads(subprocess.run(command, capture_output=True, check=True, text=True).stdout) for _ in range(2)
        )
    return {"films": count, **first, "again_seconds": again["seconds"]}


def one(manifest: Path, out: Path) -> dict[str, float]:
    """Write one pack: seconds, and the most memory that this process or one of its workers held."""
    films = read_manifest(manifest)
    started = time.perf_counter()
    write_pack(films, out)
    seconds = time.perf_counter() - started
    most = max(resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return {"seconds": seconds, "mebibytes": most / 1024}


if __name__ == "__main__":
    main()
