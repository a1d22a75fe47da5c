"""Time of 2,000 resamples of 5,000 films by patient, for every figure of a report at three operating points.

    python benchmarks/bootstrap.py

Goal: under 5 seconds.
"""

from __future__ import annotations

import time

import numpy as np

from chestxray.metrics.calibration import calibrated
from chestxray.metrics.intervals import areas, bootstrap, rates, squared_error

FILMS = 5_000
PATIENTS = 2_500
RESAMPLES = 2_000
REPEATS = 5
THRESHOLDS = (0.2, 0.5, 0.8)


def main() -> None:
    """Draw scores, resample them a few times over, print the times."""
    rng = np.random.default_rng(0)
    groups = np.unique(rng.integers(0, PATIENTS, FILMS), return_inverse=True)[1]
    labels = groups % 2
    scores = calibrated(rng.normal(size=FILMS) + 2.0 * labels - 1.0)
    statistics = [areas(labels, scores), squared_error(labels, scores)]
    statistics += [rates(threshold, labels, scores, prefix=f"{threshold}.") for threshold in THRESHOLDS]
    times, figures = [], 0
    for _ in range(REPEATS):
        start = time.perf_counter()
        figures = len(bootstrap(statistics, groups, resamples=RESAMPLES))
        times.append(time.perf_counter() - start)
    print(f"{RESAMPLES:,} resamples of {FILMS:,} films of {groups.max() + 1:,} patients, {figures} figures")
    print(f"median {np.median(times):.2f} s, fastest {min(times):.2f} s, slowest {max(times):.2f} s, of {REPEATS}")


if __name__ == "__main__":
    main()
