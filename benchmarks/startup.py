"""``chestxray predict`` on one film as a whole process, against ``python -c "import torch"``.

python benchmarks/startup.py BUNDLE FILM [--rounds 10] [--json]
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from functools import partial
from pathlib import Path

from chestxray.inference.bundle import folder_of
from side_by_side import report, take_turns


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("bundle", type=folder_of)
    parser.add_argument("film", type=Path)
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    command = Path(sys.executable).with_name("chestxray")
    start = partial(subprocess.run, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    timings = take_turns(
        {
            "import torch": partial(start, [sys.executable, "-c", "import torch"]),
            "chestxray predict": partial(start, [command, "predict", arguments.film, "--bundle", arguments.bundle]),
            "chestxray --help": partial(start, [command, "--help"]),
        },
        arguments.rounds,
    )
    report("whole processes, one film", timings, "import torch", 1, as_json=arguments.json)


if __name__ == "__main__":
    main()
