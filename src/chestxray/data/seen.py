"""What an earlier cleaning found: a file of lines beside the output, added to as films are examined.

A film is not opened again where its file has the size and the time of change that it had then. The lines are
written as the work goes, so a run that was interrupted resumes where it stood. The file may be deleted at any
time: it holds nothing that opening the films does not give.
"""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import IO, Any, Final, Self

from chestxray.data.reuse import decoder
from chestxray.files import write_atomically
from chestxray.schema import Film

SEEN_VERSION: Final = 1
FOUND: Final = (
    "sha256", "width", "height", "channels", "bit_depth", "perceptual_hash", "mean_level", "verdict", "reason",
    "patient_id",
)  # fmt: skip
WRITTEN_EVERY: Final = 64  # films; what an interruption may cost


class Seen:
    """Findings by path, each with the stamp of the file that it was found in."""

    def __init__(self, file: IO[str], found: dict[str, tuple[str, list[Any]]]) -> None:
        self._file = file
        self._found = found
        self._unwritten = 0

    @classmethod
    def open(cls, path: Path) -> Self:
        """Read what is there, if the same code examined the films, and go on from it."""
        header = json.dumps({"version": SEEN_VERSION, "decoder": decoder(), "columns": FOUND})
        found: dict[str, tuple[str, list[Any]]] = {}
        lines = path.read_text(encoding="utf-8", errors="replace").split("\n") if path.exists() else []
        if lines[:1] == [header]:
            for line in lines[1:-1]:  # the last one is empty, or was cut off by an interruption
                try:
                    name, stamp, values = json.loads(line)
                    found[name] = (stamp, values)
                except ValueError:
                    continue
        kept = "".join(json.dumps([name, *finding]) + "\n" for name, finding in found.items())
        write_atomically(path, f"{header}\n{kept}".encode())
        return cls(path.open("a", encoding="utf-8"), found)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def of(self, film: Film, stamp: str) -> Film | None:
        """The film as it was found, if its file still has that stamp."""
        finding = self._found.get(film.path)
        if not stamp or finding is None or finding[0] != stamp:
            return None
        changes = dict(zip(FOUND, finding[1], strict=True))
        return dataclasses.replace(film, **{**changes, "patient_id": film.patient_id or changes["patient_id"]})

    def add(self, film: Film, stamp: str) -> None:
        """Keep what was found of a film. An empty stamp says that its file cannot be told from a changed one."""
        if not stamp:
            return
        self._file.write(json.dumps([film.path, stamp, [getattr(film, name) for name in FOUND]]) + "\n")
        self._unwritten += 1
        if self._unwritten >= WRITTEN_EVERY:
            self._file.flush()
            self._unwritten = 0
