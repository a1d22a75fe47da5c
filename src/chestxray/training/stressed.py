"""What the best weights make of the validation films under every shift: ``stress.csv`` of a run.

One row a validation film in the order of ``validation.csv``, one column of log-odds a shift.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt

from chestxray.data.parallel import Progress, no_progress
from chestxray.errors import RunInvalid
from chestxray.evaluation.shifts import SHIFTS, Shift, shifted
from chestxray.schema import Film
from chestxray.training.checkpoint import read_checked
from chestxray.training.networks import log_odds
from chestxray.training.sides import Rows
from chestxray.training.step import Step
from chestxray.training.validation import Planes, scores_of

STRESS: Final = "stress.csv"
_KEY: Final = "sha256"

ByShift = dict[str, npt.NDArray[np.float64]]


def under_every_shift(step: Step, on_progress: Progress = no_progress) -> ByShift:
    """Log-odds of the validation films under each shift, by the averaged weights of the step.

    A film is shifted alike whatever its company, so that they are read and shifted a batch at a time.

    Args:
        step: whose processes share the work; each gets all log-odds.
        on_progress: called with (films done, films in all), a film counted once a shift.
    """
    rows = step.sides.validation
    keys = [step.pack.films[row].sha256 for row in rows]
    found = {}
    for index, shift in enumerate(SHIFTS, start=1):

        def read(batch: Rows, shift: Shift = shift) -> Planes:
            return shifted(step.pack.images[rows[batch]], [keys[place] for place in batch], shift)

        found[shift.name] = log_odds(scores_of(step, len(rows), read)).double().numpy()
        on_progress(index * len(rows), len(SHIFTS) * len(rows))
    return found


def to_csv(logits: ByShift, films: Sequence[Film]) -> bytes:
    """The table. Law: ``from_csv`` gives the logits back."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow([_KEY, *logits])
    columns = [values.tolist() for values in logits.values()]
    writer.writerows(
        [film.sha256, *map(repr, row)] for film, row in zip(films, zip(*columns, strict=True), strict=True)
    )
    return text.getvalue().encode()


def from_csv(path: Path, sha256: str) -> ByShift:
    """Read a table that must have that hash. Raises: RunInvalid."""
    data = read_checked(path, sha256)
    try:
        rows = list(csv.DictReader(io.StringIO(data.decode())))
        names = [name for name in rows[0] if name != _KEY]
        return {name: np.array([float(row[name]) for row in rows]) for name in names}
    except (ValueError, KeyError, IndexError, TypeError) as error:
        raise RunInvalid(f"{path}: not a table of shifted validation films ({error!r}). Train again") from error
