"""Copies of the films that cleaning did not accept, by verdict, for a person to look at."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from chestxray.data.films import name_of, read_film
from chestxray.data.parallel import Progress, no_progress
from chestxray.files import folder_written_whole
from chestxray.schema import Film, write_manifest

LIST: Final = "quarantine.csv"


def quarantine(films: Sequence[Film], folder: Path | str, on_progress: Progress = no_progress) -> int:
    """Copy every rejected film to ``folder/VERDICT/``; the originals stay where they are, untouched.

    Beside the copies lies ``quarantine.csv``: the rejected rows with their reasons and the originals' paths. A
    copy's name begins with eight digits that its path gives, so films of one name do not meet.

    Args:
        films: rows of a cleaned manifest.
        folder: written whole; replaced where it is an earlier quarantine, left alone where it is anything else.
        on_progress: called with (done, total).

    Returns: how many films were copied. Those that cannot be opened are listed only.

    Raises: OutputExists.
    """
    rejected = [film for film in films if film.verdict and not film.is_accepted]
    copied = 0
    with folder_written_whole(Path(folder), marker=LIST) as beside:
        for done, film in enumerate(rejected, start=1):
            try:
                data = read_film(film)
            except OSError:
                continue
            of_verdict = beside / film.verdict
            of_verdict.mkdir(exist_ok=True)
            (of_verdict / f"{hashlib.sha256(film.path.encode()).hexdigest()[:8]}-{name_of(film)}").write_bytes(data)
            copied += 1
            on_progress(done, len(rejected))
        write_manifest(rejected, beside / LIST)
    return copied
