"""Random damage to one film of each format, in bulk. Prints the outcomes, or the damage that escapes.

python tests/images/fuzz/mutate.py [NAME ...] [--count 1000] [--seed 7]
"""

from __future__ import annotations

import argparse
import sys
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


def main() -> None:
    """Damage, decode, count."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", default=list(FILMS))
    parser.add_argument("--count", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=7)
    arguments = parser.parse_args()
    for name in arguments.names:
        rng = np.random.default_rng(arguments.seed)
        outcomes: Counter[str] = Counter()
        for _ in range(arguments.count):
            data = damaged(FILMS[name], rng)
            try:
                outcomes[outcome(data)] += 1
            except Exception:
                escaped = Path("escaped.bin").absolute()
                escaped.write_bytes(data)
                print(f"{name}: an error escaped; its bytes are in {escaped}")
                raise
        print(f"{name}: {dict(outcomes)}")


if __name__ == "__main__":
    main()
