"""Cleaning: every film is opened and checked. Rows get a verdict and a reason; nothing is ever deleted."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Final, Self

import numpy as np

from chestxray.arguments import arguments_checked
from chestxray.data.dedup import near_pairs
from chestxray.data.labels import about_patients, without_nobody
from chestxray.data.parallel import Mapper, mapper_of
from chestxray.data.sources import name_of, read_film, stamp_of
from chestxray.errors import FilmError, TruncatedFilm
from chestxray.files import folder_written_whole, write_atomically
from chestxray.images.decode import decode, decoder_hash
from chestxray.images.quality import objection_to, perceptual_hash
from chestxray.progress import Log, ProgressCallback, no_progress, warn
from chestxray.schema import Film, Label, Split, Verdict, rows_of, write_manifest

ANALYSIS_SIZE = (256, 256)  # pixels; a large JPEG is checked at a resolution of at least twice this


@arguments_checked
def clean(
    films: Sequence[Film],
    on_progress: ProgressCallback = no_progress,
    workers: int | None = None,
    *,
    seen: Path | str | None = None,
    engine: str = "local",
    log: Log = warn,
) -> tuple[Film, ...]:
    """Open every film and give it a verdict; the order stays.

    A film whose bytes occur twice on one split, or nearly the same picture (``data.dedup``), keeps its first row with a
    label (its first row if none has one), and the other rows are marked as duplicates; with two labels, all its rows
    are marked as conflicting. The same film on two splits of a given split is left for the split's leakage check, which
    stops the run.

    Args:
        films: rows of a manifest.
        on_progress: called with (done, total).
        workers: number of processes; by default one for each core.
        seen: a file of earlier findings; films in it that have not changed are not opened.
        engine: where films are opened: "local", in processes of this machine, or "ray" (extra ray). Both give the
            same findings.
        log: called with a line if patients are unknown, or an id names no patient.

    Raises: UsageError, if there is no such engine; MissingExtra.
    """
    mapper, films = mapper_of(engine), rows_of(films)
    if seen is None:
        examined = tuple(mapper(examine, films, on_progress, workers))
    else:
        with FindingsCache.open(Path(seen)) as known:
            examined = _examined(films, known, mapper, on_progress, workers)
    cleaned, note = without_nobody(_without_look_alikes(_without_copies(examined)))
    for line in (*filter(None, [note]), *about_patients([film for film in cleaned if film.is_accepted])):
        log(line)
    return cleaned


def _examined(
    films: Sequence[Film], known: FindingsCache, mapper: Mapper, on_progress: ProgressCallback, workers: int | None
) -> tuple[Film, ...]:
    """Return every film with its earlier findings, or examined now. Stamps are taken first, to detect later changes."""
    stamps = [stamp_of(film) for film in films]
    found = [known.of(film, stamp) for film, stamp in zip(films, stamps, strict=True)]
    fresh = [film for film, finding in zip(films, found, strict=True) if finding is None]
    reused = len(films) - len(fresh)
    examined = mapper(examine, fresh, lambda done, _: on_progress(reused + done, len(films)), workers)
    out = []
    for finding, stamp in zip(found, stamps, strict=True):
        if finding is None:
            film = next(examined)
            known.add(film, stamp)
            out.append(film)
        else:
            out.append(finding)
    next(examined, None)  # completes the progress report
    return tuple(out)


def examine(film: Film) -> Film:
    """Open one film and fill in the values from its bytes and pixels."""
    try:
        data = read_film(film)
    except OSError as error:
        return _changed(film, verdict=Verdict.UNREADABLE, reason=f"cannot be opened: {error.strerror}")
    film = _changed(film, sha256=hashlib.sha256(data).hexdigest())
    name = name_of(film)
    try:
        radiograph = decode(data, name, at_least=ANALYSIS_SIZE)
    except FilmError as error:
        verdict = Verdict.TRUNCATED if isinstance(error, TruncatedFilm) else Verdict.UNREADABLE
        return _changed(film, verdict=verdict, reason=str(error).removeprefix(f"{name}: "))
    objection = objection_to(radiograph)
    return _changed(
        film,
        width=radiograph.width,
        height=radiograph.height,
        channels=radiograph.channels,
        bit_depth=radiograph.bit_depth,
        patient_id=film.patient_id or radiograph.patient_id,
        perceptual_hash=perceptual_hash(radiograph.pixels),
        mean_level=round(float(radiograph.pixels.mean()) / np.iinfo(radiograph.pixels.dtype).max, 4),
        verdict=objection.verdict if objection else Verdict.ACCEPTED,
        reason=objection.reason if objection else "",
    )


def _changed(film: Film, **changes: Any) -> Film:
    return dataclasses.replace(film, **{name: getattr(value, "value", value) for name, value in changes.items()})


def _without_copies(films: Sequence[Film]) -> list[Film]:
    labels: defaultdict[str, set[str]] = defaultdict(set)
    for film in films:
        if film.label and film.sha256:
            labels[film.sha256].add(film.label)
    first: dict[tuple[str, str], str] = {}
    for film in _labelled_first(films):
        if film.is_accepted:
            first.setdefault((film.sha256, film.split), film.path)
    out = []
    for film in films:
        if not film.is_accepted:
            out.append(film)
        elif len(labels[film.sha256]) > 1:
            out.append(
                _changed(film, verdict=Verdict.CONFLICTING, reason="the same file has both labels in this source")
            )
        elif (original := first[film.sha256, film.split]) != film.path:
            out.append(_changed(film, verdict=Verdict.DUPLICATE, reason=f"the same bytes as {Path(original).name}"))
        else:
            out.append(film)
    return out


def _labelled_first(films: Iterable[Film]) -> list[Film]:
    """Return the films in order, those with a label first, so that an unlabelled copy is never kept instead of one."""
    return sorted(films, key=lambda film: not film.label)


def _without_look_alikes(films: Sequence[Film]) -> tuple[Film, ...]:
    """Mark accepted films that look like another one: of the other label, or an earlier one of the same split."""
    showing: defaultdict[str, list[Film]] = defaultdict(list)
    for film in films:
        if film.is_accepted:
            showing[film.perceptual_hash].append(film)
    alike: defaultdict[str, list[str]] = defaultdict(list)
    for one, other in near_pairs(showing):
        alike[one].append(other)
        alike[other].append(one)
    kept: set[str] = set()
    verdicts: dict[str, Film] = {}
    for film in _labelled_first(films):
        others = [other for hash_ in (film.perceptual_hash, *alike[film.perceptual_hash]) for other in showing[hash_]]
        if not film.is_accepted or len(others) == 1:
            continue
        if against := [other for other in others if other.label and film.label and other.label != film.label]:
            reason = f"nearly the same film as {name_of(against[0])}, which has the other label"
            verdicts[film.path] = _changed(film, verdict=Verdict.CONFLICTING, reason=reason)
        elif earlier := [other for other in others if other.path in kept and other.split == film.split]:
            reason = f"nearly the same film as {name_of(earlier[0])}"
            verdicts[film.path] = _changed(film, verdict=Verdict.NEAR_DUPLICATE, reason=reason)
        else:
            kept.add(film.path)
    return tuple(verdicts.get(film.path, film) if film.is_accepted else film for film in films)


# --------------------------------------------------------------------------- findings of earlier runs

_SEEN_VERSION: Final = 1
_FINDINGS: Final = (
    "sha256", "width", "height", "channels", "bit_depth", "perceptual_hash", "mean_level", "verdict", "reason",
    "patient_id",
)  # fmt: skip


class FindingsCache:
    """Findings by path, each with the stamp of its file at that time."""

    def __init__(self, file: IO[str], found: dict[str, tuple[str, list[Any]]]) -> None:
        self._file = file
        self._found = found

    @classmethod
    def open(cls, path: Path) -> Self:
        """Read the findings of earlier runs if the same code made them, and continue the file."""
        header = json.dumps({"version": _SEEN_VERSION, "decoder": decoder_hash(), "columns": _FINDINGS})
        found: dict[str, tuple[str, list[Any]]] = {}
        lines = path.read_text(encoding="utf-8", errors="replace").split("\n") if path.exists() else []
        if lines[:1] == [header]:
            for line in lines[1:-1]:  # the last line is empty, or was cut off by an interruption
                try:
                    name, stamp, values = json.loads(line)
                    found[name] = (stamp, values)
                except ValueError:
                    continue
        kept = "".join(json.dumps([name, *finding]) + "\n" for name, finding in found.items())
        write_atomically(path, f"{header}\n{kept}".encode())
        return cls(path.open("a", encoding="utf-8", buffering=1), found)  # an interruption loses no whole line

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def of(self, film: Film, stamp: str) -> Film | None:
        """Return the film with its earlier findings, if its file still has that stamp."""
        finding = self._found.get(film.path)
        if not stamp or finding is None or finding[0] != stamp:
            return None
        changes = dict(zip(_FINDINGS, finding[1], strict=True))
        return dataclasses.replace(film, **{**changes, "patient_id": film.patient_id or changes["patient_id"]})

    def add(self, film: Film, stamp: str) -> None:
        """Store the findings of a film. An empty stamp means that a change of its file cannot be detected."""
        if not stamp:
            return
        self._file.write(json.dumps([film.path, stamp, [getattr(film, name) for name in _FINDINGS]]) + "\n")


# --------------------------------------------------------------------------- counts


@dataclass(frozen=True, slots=True)
class Distribution:
    """Counts of a cleaned manifest.

    Attributes:
        films, accepted: number of all rows, and of rows that may be used.
        verdicts: rows by verdict.
        classes: accepted rows by given split ("all" if none is given) and label.
        channels: readable rows by channels as stored.
        widths, heights, aspects: smallest, median and largest of the accepted films, by label.
        patients: different patients among the accepted films, by label.
        without_patient: accepted films without a patient; each counts as a patient of its own.
    """

    films: int
    accepted: int
    verdicts: dict[str, int]
    classes: dict[str, dict[str, int]]
    channels: dict[str, int]
    widths: dict[str, tuple[int, int, int]]
    heights: dict[str, tuple[int, int, int]]
    aspects: dict[str, tuple[float, float, float]]
    patients: dict[str, int]
    without_patient: int


@arguments_checked
def describe(films: Sequence[Film]) -> Distribution:
    """Count a cleaned manifest."""
    films = rows_of(films)
    accepted = [film for film in films if film.is_accepted]
    by_label = {label.value: [film for film in accepted if film.label == label] for label in Label}
    splits = [*(split.value for split in Split), ""]
    classes = {
        split or "unassigned": counts
        for split in splits
        if (counts := _counts(film.label or "unlabelled" for film in accepted if film.split == split))
    }
    return Distribution(
        films=len(films),
        accepted=len(accepted),
        verdicts=_counts(film.verdict for film in films),
        classes=classes,
        channels=_counts(str(film.channels) for film in films if film.channels),
        widths={label: _spread([film.width for film in rows]) for label, rows in by_label.items() if rows},
        heights={label: _spread([film.height for film in rows]) for label, rows in by_label.items() if rows},
        aspects={
            label: _spread([round(film.width / film.height, 2) for film in rows])
            for label, rows in by_label.items()
            if rows
        },
        patients={label: len({film.patient_id for film in rows} - {""}) for label, rows in by_label.items() if rows},
        without_patient=sum(not film.patient_id for film in accepted),
    )


def _counts(values: Iterable[str]) -> dict[str, int]:
    return dict(sorted(Counter(values).items()))


def _spread(values: list[Any]) -> tuple[Any, Any, Any]:
    ordered = sorted(values)
    return ordered[0], ordered[len(ordered) // 2], ordered[-1]


# --------------------------------------------------------------------------- rejected films

LIST: Final = "quarantine.csv"


@arguments_checked
def quarantine(films: Sequence[Film], folder: Path | str, on_progress: ProgressCallback = no_progress) -> int:
    """Copy every rejected film to ``folder/VERDICT/``; the originals are not changed.

    ``quarantine.csv`` beside the copies lists the rejected rows with their reasons and the originals' paths. A copy's
    name begins with eight digits derived from its path, so that films of the same name do not collide.

    Args:
        films: rows of a cleaned manifest.
        folder: written completely or not at all; replaced if it is an earlier quarantine, refused if it is anything
            else.
        on_progress: called with (done, total).

    Returns: the number of copied films. Films that cannot be opened are only listed.

    Raises: OutputExists.
    """
    rejected = [film for film in rows_of(films) if film.verdict and not film.is_accepted]
    copied = 0
    with folder_written_whole(Path(folder), marker=LIST) as beside:
        for done, film in enumerate(rejected, start=1):
            try:
                data = read_film(film)
            except OSError:
                continue
            of_verdict = beside / film.verdict
            of_verdict.mkdir(exist_ok=True)
            (of_verdict / f"{hashlib.sha256(os.fsencode(film.path)).hexdigest()[:8]}-{name_of(film)}").write_bytes(data)
            copied += 1
            on_progress(done, len(rejected))
        write_manifest(rejected, beside / LIST)
    return copied
