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
import torch

from chestxray.data.parallel import Progress, no_progress
from chestxray.errors import RunInvalid
from chestxray.evaluation.shifts import SHIFTS, shifted
from chestxray.schema import Film
from chestxray.training.checkpoint import read_checked
from chestxray.training.networks import Classifier, log_odds
from chestxray.training.schedule import steps_of
from chestxray.training.validation import VALIDATION_BATCH, Floats

STRESS: Final = "stress.csv"
_KEY: Final = "sha256"

ByShift = dict[str, npt.NDArray[np.float64]]


def logits_of(classifier: Classifier, planes: npt.NDArray[np.uint8], device: torch.device) -> Floats:
    """Log-odds of films, shape (n,), in float32.

    Args:
        classifier: on the device, set to evaluation.
        planes: shape (n, height, width).
    """
    found = []
    with torch.inference_mode():
        for batch in np.array_split(planes, steps_of(len(planes), VALIDATION_BATCH)):
            films = torch.from_numpy(batch[:, None]).to(device).contiguous(memory_format=torch.channels_last)
            found.append(log_odds(classifier(films)).float().cpu().numpy())
    return np.concatenate(found)


def under_every_shift(
    classifier: Classifier,
    planes: npt.NDArray[np.uint8],
    films: Sequence[Film],
    device: torch.device,
    on_progress: Progress = no_progress,
) -> ByShift:
    """Log-odds of the validation films under each shift.

    Args:
        classifier: on the device, set to evaluation.
        planes: shape (n, height, width).
        films: n rows of the pack; a film of the same SHA-256 is always shifted alike.
        on_progress: called with (films done, films in all), a film counted once a shift.
    """
    keys = [film.sha256 for film in films]
    found = {}
    for index, shift in enumerate(SHIFTS, start=1):
        found[shift.name] = logits_of(classifier, shifted(planes, keys, shift), device).astype(np.float64)
        on_progress(index * len(keys), len(SHIFTS) * len(keys))
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
