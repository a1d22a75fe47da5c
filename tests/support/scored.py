"""Scores as a classifier would give them: several films a patient, whose scores hang together."""

from __future__ import annotations

from typing import Any

import numpy as np
from hypothesis import assume
from hypothesis import strategies as st

from chestxray.metrics.calibration import calibrated
from chestxray.metrics.scores import ScoreTable

GRID = 20  # steps of ``evaluated`` scores


def scored(films: int = 300, patients: int = 120, seed: int = 0, apart: float = 3.0) -> ScoreTable:
    rng = np.random.default_rng(seed)
    patient = rng.integers(0, patients, films)
    labels = (patient % 8 < 5).astype(np.int8)
    logits = apart * (labels - 0.5) + rng.normal(size=patients)[patient] + rng.normal(size=films)
    return ScoreTable(
        paths=tuple(f"test/{row:04}.png" for row in range(films)),
        labels=labels,
        probabilities=calibrated(logits),
        patients=tuple(f"person{number}" for number in patient),
        columns={
            "cause": tuple(
                ("bacteria", "virus")[n % 2] if label else "" for n, label in zip(patient, labels, strict=True)
            )
        },
    )


@st.composite
def evaluated(draw: st.DrawFn, least: int = 2) -> tuple[Any, Any]:
    """Labels of both classes, and scores on a coarse grid, so that ties are common."""
    films = draw(st.integers(least, 40))
    labels = draw(st.lists(st.integers(0, 1), min_size=films, max_size=films))
    assume(0 < sum(labels) < films)
    scores = draw(st.lists(st.integers(0, GRID), min_size=films, max_size=films))
    return np.array(labels), np.array(scores) / GRID
