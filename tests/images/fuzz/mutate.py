"""Random damage to one film of each format, in bulk. Prints the outcomes, or the damage that escapes.

python tests/images/fuzz/mutate.py [NAME ...] [--count 1000] [--seed 7]
python tests/images/fuzz/mutate.py [NAME ...] --minutes 60 [--count 1000] [--seed 7]

With ``--minutes`` the formats take turns, ``--count`` damages each, until the time is up.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections import Counter
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[2] / "support"))
sys.path.insert(0, str(Path(__file__).parents[1]))

from test_fuzz_decode import FILMS, outcome


def damaged(film: bytes, rng: np.random.Generator) -> bytes:
    """Some bytes replaced, a stretch removed or repeated; headers are hit as often as pixels."""
    data = bytearray(film)
    reach = len(data) if rng.random() < 0.5 else min(1024, len(data))
    for place in rng.integers(0, reach, rng.integers(1, 9)):
        data[place] = rng.choice([0, 1, 0x7F, 0x80, 0xFF, rng.integers(0, 256)])
    if rng.random() < 0.3:
        start, length = int(rng.integers(0, reach)), int(rng.integers(1, 64))
        data[start : start + length] = data[start : start + length] * int(rng.integers(0, 3))
    return bytes(data)


def outcomes_of(name: str, rng: np.random.Generator, count: int) -> Counter[str]:
    """Damage a film so many times and count the outcomes; keep the bytes of damage that escapes."""
    outcomes: Counter[str] = Counter()
    for _ in range(count):
        data = damaged(FILMS[name], rng)
        try:
            outcomes[outcome(data)] += 1
        except Exception:
            escaped = Path("escaped.bin").absolute()
            escaped.write_bytes(data)
            print(f"{name}: an error escaped; its bytes are in {escaped}")
            raise
    return outcomes


def main() -> None:
    """Damage, decode, count."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", default=list(FILMS))
    parser.add_argument("--count", type=int, default=1000)
    parser.add_argument("--minutes", type=float, default=0.0)
    parser.add_argument("--seed", type=int, default=7)
    arguments = parser.parse_args()
    end = time.monotonic() + 60.0 * arguments.minutes
    generators = {name: np.random.default_rng(arguments.seed) for name in arguments.names}
    totals: dict[str, Counter[str]] = {name: Counter() for name in arguments.names}
    turns = 0
    while not turns or time.monotonic() < end:
        for name in arguments.names:
            totals[name] += outcomes_of(name, generators[name], arguments.count)
            if turns and time.monotonic() >= end:
                break
        turns += 1
    for name, outcomes in totals.items():
        print(f"{name}: {outcomes.total():,}: {dict(outcomes)}")
    print(f"{sum(outcomes.total() for outcomes in totals.values()):,} in all")


if __name__ == "__main__":
    main()
