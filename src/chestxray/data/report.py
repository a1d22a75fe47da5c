"""A page about films, to read before training: of a cleaned manifest, or of an audit.

index.html    everything on one page; opens from disk without a network, can be printed
data.json     the same numbers for machines; of an audit, audit.json
films.csv     of an audit: each film's probability of pneumonia without the lungs, and its groups
"""

from __future__ import annotations

import base64
import dataclasses
import io
import json
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from PIL import Image

from chestxray.arguments import arguments_checked
from chestxray.data.audit import Audit, LeftOut, Overlap
from chestxray.data.audit import audit as audit_films
from chestxray.data.clean import Distribution, describe
from chestxray.data.dedup import near_pairs
from chestxray.data.sources import name_of, read_film
from chestxray.errors import FilmError, MissingExtra
from chestxray.files import folder_written_whole
from chestxray.images.decode import decode
from chestxray.images.preprocess import resample
from chestxray.metrics.metrics import auroc
from chestxray.progress import ProgressCallback, no_progress
from chestxray.schema import NOTICE, Film, Label, Resize, Verdict, rows_of
from chestxray.text import table_bytes

if TYPE_CHECKING:
    from jinja2 import Environment

DATA_JSON: Final = "data.json"
AUDIT_MARKER: Final = "audit.json"
FILMS_TABLE: Final = "films.csv"
GROUP_SHEETS: Final = 8  # groups of an audit with a contact sheet
HISTOGRAM_BINS: Final = 24  # bins of each histogram
SHEET: Final = 24  # films on the contact sheet of a verdict
PAIRS_SHOWN: Final = 12  # duplicates shown side by side
THUMBNAIL: Final = 112  # pixels: height of a thumbnail
RISKY: Final = 0.6  # AUROC of a property alone from which on the page warns of it
_QUALITY: Final = 80

COPIES: Final = frozenset({Verdict.DUPLICATE, Verdict.NEAR_DUPLICATE, Verdict.CONFLICTING})

# Properties that a network may learn in place of the disease, because they reveal which camera or ward a film is from.
SHORTCUTS: Final[dict[str, tuple[str, Callable[[Film], float]]]] = {
    "width": ("Width, pixels", lambda film: film.width),
    "height": ("Height, pixels", lambda film: film.height),
    "aspect": ("Aspect ratio, width to height", lambda film: film.width / film.height),
    "mean_level": ("Mean grey level, black 0 to white 1", lambda film: film.mean_level),
}


@dataclass(frozen=True, slots=True)
class Shortcut:
    """The distribution over the classes of one property that is independent of the lungs.

    Attributes:
        auroc: how well the property alone tells the classes apart, in either direction: 0.5 to 1; None if one class is
            missing.
        edges: HISTOGRAM_BINS + 1 edges of the bins.
        shares: fraction of the films of each label in each bin.
    """

    name: str
    title: str
    auroc: float | None
    edges: tuple[float, ...]
    shares: dict[str, tuple[float, ...]]


@dataclass(frozen=True, slots=True)
class DataReport:
    """The numbers of the page.

    Attributes:
        distribution: as ``describe`` returns it.
        shortcuts: one for each property.
        films_a_patient: number of patients by their number of accepted films.
    """

    distribution: Distribution
    shortcuts: tuple[Shortcut, ...]
    films_a_patient: dict[int, int]

    @property
    def risk(self) -> str:
        """The property that tells the classes apart best, in words; empty if none passes RISKY."""
        known = {shortcut.title: shortcut.auroc for shortcut in self.shortcuts if shortcut.auroc is not None}
        title = max(known, key=known.__getitem__, default="")
        if not title or known[title] < RISKY:
            return ""
        return f"{title.split(',')[0].lower()} alone separates the classes with an AUROC of {known[title]:.2f}"


def summarise(films: Sequence[Film]) -> DataReport:
    """Count what the page shows; no film is opened."""
    accepted = [film for film in films if film.is_accepted]
    shortcuts = tuple(_shortcut(name, accepted) for name in SHORTCUTS if any(film.label for film in accepted))
    patients = Counter(film.patient_id for film in accepted if film.patient_id)
    return DataReport(describe(films), shortcuts, dict(sorted(Counter(patients.values()).items())))


@arguments_checked
def write_data_report(
    films: Sequence[Film],
    folder: Path | str,
    title: str,
    on_progress: ProgressCallback = no_progress,
    workers: int | None = None,
) -> DataReport:
    """Write the folder, completely or not at all; labelled films are audited for shortcuts as well.

    Args:
        films: rows of a cleaned manifest; those on the contact sheets are opened.
        folder: replaced if it is an earlier data report; any other folder is not touched.
        title: title of the page.
        on_progress: called with (films audited, films in all).
        workers: number of processes that read films; by default one for each core.

    Raises: OutputExists, MissingExtra.
    """
    films = rows_of(films)
    report = summarise(films)
    labelled = any(film.is_accepted and film.label for film in films)
    audit = audit_films(films, on_progress, workers) if labelled else None
    page = page_templates().get_template("data_report.html.j2")
    with folder_written_whole(Path(folder), DATA_JSON) as beside:
        text = page.render(
            title=title,
            report=report,
            d=report.distribution,
            labels=[label.value for label in Label],
            sheets=_sheets(films),
            pairs=_pairs(films),
            audit=audit,
            group_sheets=_group_sheets(audit) if audit else [],
            notice=NOTICE,
        )
        (beside / "index.html").write_text(text, encoding="utf-8", errors="backslashreplace")
        document = {**dataclasses.asdict(report), "audit": audit.to_json() if audit else None}
        (beside / DATA_JSON).write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    return report


@arguments_checked
def write_audit(
    found: Audit,
    folder: Path | str,
    title: str,
    measured: Overlap | None = None,
    left_out: Sequence[LeftOut] = (),
) -> None:
    """Write an audit as a folder, completely or not at all: the page, ``audit.json`` and ``films.csv``.

    Args:
        found: the audit; films on the contact sheets are opened.
        folder: replaced if it is an earlier audit; any other folder is not touched.
        title: title of the page.
        measured: a model on films where both classes were acquired alike.
        left_out: networks on groups of films that were left out of their training.

    Raises: OutputExists, MissingExtra.
    """
    page = page_templates().get_template("audit_report.html.j2")
    with folder_written_whole(Path(folder), AUDIT_MARKER) as beside:
        text = page.render(
            standalone=True,
            title=title,
            audit=found,
            sheets=_group_sheets(found),
            measured=measured,
            left_out=left_out,
            notice=NOTICE,
        )
        (beside / "index.html").write_text(text, encoding="utf-8", errors="backslashreplace")
        (beside / AUDIT_MARKER).write_text(json.dumps(found.to_json(), indent=1) + "\n", encoding="utf-8")
        (beside / FILMS_TABLE).write_bytes(table_bytes(_rows_of(found)))


def _rows_of(found: Audit) -> Iterator[list[object]]:
    yield ["path", "label", "without_lungs", *(f"group by {kind}" for kind in found.group_of)]
    for row, path in enumerate(found.paths):
        label = Label.PNEUMONIA if found.labels[row] else Label.NORMAL
        groups = (int(numbers[row]) or "" for numbers in found.group_of.values())
        yield [path, label.value, f"{found.probabilities[row]:.5f}", *groups]


def _group_sheets(found: Audit) -> list[dict[str, Any]]:
    """Return a contact sheet for each group: groups at risk first, then the others in order."""
    label_of = dict(zip(found.paths, found.labels.tolist(), strict=True))
    shown = [*found.risks, *(group for group in found.groups if not group.risk)][:GROUP_SHEETS]
    return [
        {
            "group": group,
            "films": [
                _shown(Film(path, label=(Label.PNEUMONIA if label_of[path] else Label.NORMAL).value))
                for path in group.examples
            ],
        }
        for group in shown
    ]


# --------------------------------------------------------------------------- numbers


def _shortcut(name: str, films: Sequence[Film]) -> Shortcut:
    title, value_of = SHORTCUTS[name]
    labelled = [film for film in films if film.label]
    values = np.array([value_of(film) for film in labelled], dtype=np.float64)
    sick = np.array([film.label == Label.PNEUMONIA for film in labelled])
    edges = np.histogram_bin_edges(values, HISTOGRAM_BINS)
    shares = {
        label.value: tuple((np.histogram(values[of], edges)[0] / max(1, of.sum())).round(4).tolist())
        for label, of in ((Label.NORMAL, ~sick), (Label.PNEUMONIA, sick))
    }
    area = auroc(sick, values) if 0 < sick.sum() < len(sick) else None
    return Shortcut(
        name,
        title,
        None if area is None else round(max(area, 1 - area), 4),
        tuple(edges.round(4).tolist()),
        shares,
    )


# --------------------------------------------------------------------------- pictures


def _sheets(films: Sequence[Film]) -> list[dict[str, Any]]:
    """Return a contact sheet for each verdict: films spread evenly over the rows, each with its reason."""
    by_verdict: defaultdict[str, list[Film]] = defaultdict(list)
    for film in films:
        by_verdict[film.verdict].append(film)
    sheets = []
    for verdict in Verdict:
        rows = by_verdict[verdict.value]
        shown = rows[:: -(-len(rows) // SHEET)] if rows else []
        if rows:
            name = verdict.value.replace("_", " ")
            sheets.append({"verdict": name, "count": len(rows), "films": [_shown(film) for film in shown]})
    return sheets


def _pairs(films: Sequence[Film]) -> list[tuple[dict[str, str], dict[str, str]]]:
    """Return the first films that occur more than once, each beside the film of which it is a copy."""
    copies = [film for film in films if film.verdict in COPIES][:PAIRS_SHOWN]
    alike: defaultdict[str, set[str]] = defaultdict(set)
    for one, other in near_pairs(film.perceptual_hash for film in films if film.is_accepted or film.verdict in COPIES):
        alike[one].add(other)
        alike[other].add(one)
    pairs = []
    for copy in copies:
        hashes = {copy.perceptual_hash} | alike[copy.perceptual_hash]
        original = next((f for f in films if f.path != copy.path and f.perceptual_hash in hashes), None)
        if original is not None:
            pairs.append((_shown(original), _shown(copy)))
    return pairs


def _shown(film: Film) -> dict[str, str]:
    """Return what the page shows of a film, with its picture if it can be read."""
    label = film.label or "unlabelled"
    return {"name": name_of(film), "label": label, "reason": film.reason, "picture": _picture(film)}


def _picture(film: Film) -> str:
    try:
        radiograph = decode(read_film(film), name_of(film), at_least=(THUMBNAIL, THUMBNAIL))
    except (OSError, FilmError):
        return ""
    width = min(2 * THUMBNAIL, max(1, round(THUMBNAIL * radiograph.width / radiograph.height)))
    plane = resample(radiograph.pixels, THUMBNAIL, width, Resize.SQUEEZE, radiograph.frame)
    out = io.BytesIO()
    Image.fromarray(plane).save(out, "JPEG", quality=_QUALITY)
    return "data:image/jpeg;base64," + base64.b64encode(out.getvalue()).decode()


def page_templates() -> Environment:
    """Return the templates of every report: they share one style sheet. Raises: MissingExtra."""
    try:
        from jinja2 import Environment, FileSystemLoader, StrictUndefined
    except ImportError as error:
        raise MissingExtra("Writing a report", "report") from error
    here = Path(__file__).parent
    return Environment(
        loader=FileSystemLoader([here, here.parent / "evaluation"]),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
