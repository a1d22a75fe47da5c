"""Retrospective studies: films are found in the PACS, fetched, and classified into the same table as any batch.

C-FIND and C-GET or C-MOVE, or QIDO-RS and WADO-RS. A fetched film is not fetched again, so a run that was killed
resumes.
"""

from __future__ import annotations

import io
import re
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from chestxray.data.collect import films_of
from chestxray.dicom.receive import FILM_CLASSES, SUCCESS, Receiver
from chestxray.dicom.rules import UID_FORM, facts_of
from chestxray.dicom.send import ask_web, association, web_client
from chestxray.dicom.settings import Destination, NodeSettings, Peer
from chestxray.errors import FilmError, PeerError, SourceInvalid, UsageError
from chestxray.files import write_atomically
from chestxray.inference.batch import BatchResult, run_batch
from chestxray.inference.bundle import folder_of, open_bundle
from chestxray.progress import ProgressCallback, no_progress

if TYPE_CHECKING:
    from pydicom import Dataset

STUDY_FIND: Final = "1.2.840.10008.5.1.4.1.2.2.1"
STUDY_MOVE: Final = "1.2.840.10008.5.1.4.1.2.2.2"
STUDY_GET: Final = "1.2.840.10008.5.1.4.1.2.2.3"
PENDING: Final = frozenset({0xFF00, 0xFF01})

_DATES: Final = re.compile(r"\d{8}(-\d{8})?")


@dataclass(frozen=True, slots=True)
class Search:
    """The films to ask for.

    Attributes:
        study_date: one day, or a range: "20260101-20260131".
        modalities: modalities of the series.
    """

    study_date: str
    modalities: tuple[str, ...] = ("CR", "DX")

    def __post_init__(self) -> None:
        if not _DATES.fullmatch(self.study_date):
            raise UsageError(f"--study-date {self.study_date}: write a day or a range, as 20260101-20260131")
        first, _, last = self.study_date.partition("-")
        try:
            days = [datetime.strptime(day, "%Y%m%d") for day in (first, last or first)]  # noqa: DTZ007 - of any zone
        except ValueError:
            raise UsageError(f"--study-date {self.study_date}: not a day of the calendar; as 20260131") from None
        if days != sorted(days):
            raise UsageError(f"--study-date {self.study_date}: ends before it begins. Write the earlier day first")


@dataclass(frozen=True, slots=True)
class RemoteFilm:
    """A film in the PACS."""

    study: str
    series: str
    instance: str

    def path(self, folder: Path) -> Path:
        """Return the path of the film once it is fetched."""
        return folder / self.study / f"{self.instance}.dcm"


def pull_batch(
    settings: NodeSettings,
    source: str,
    wanted: Search,
    out: Path,
    films: Path,
    *,
    on_fetched: ProgressCallback = no_progress,
    on_classified: ProgressCallback = no_progress,
    workers: int | None = None,
) -> BatchResult:
    """Fetch the films of some days and classify them; after a kill the same call resumes.

    Args:
        settings: settings of the node: bundle, operating point, ages, AE title, certificates.
        source: name of the destination to query.
        wanted: which films.
        out: the table: .csv, .jsonl or .parquet.
        films: the folder for fetched films; they are kept.
        on_fetched, on_classified: called with (done, total).
        workers: number of processes; by default one for each core.

    Raises: PeerError, if the PACS fails; SourceInvalid, if it has no such film; SettingsInvalid, UsageError.
    """
    destination = settings.destination(source)
    listing, fetch = (_list_by_web, _fetch_by_web) if destination.url else (_list, _fetch)
    listed = tuple(listing(destination, settings, wanted))
    if not listed:
        raise SourceInvalid(
            f"{source} has no film of {wanted.study_date} whose modality is {' or '.join(wanted.modalities)}"
        )
    missing = [film for film in listed if not film.path(films).is_file()]
    on_fetched(len(listed) - len(missing), len(listed))
    keep = _Keeper(films, missing, lambda left: on_fetched(len(listed) - left, len(listed)))
    if missing:
        fetch(destination, settings, missing, keep)
    if keep.missing:
        raise PeerError(
            f"{source} did not give {len(keep.missing):,} of {len(listed):,} films. Run the same command again: those "
            "that came are kept"
        )
    fetched = {film.path(films).resolve() for film in listed}  # the folder may hold films of other days
    return run_batch(
        open_bundle(folder_of(settings.bundle), settings.verify_key),
        [film for film in films_of(films, labels_needed=False) if Path(film.path).resolve() in fetched],
        out,
        operating_point=settings.operating_point or None,
        on_progress=on_classified,
        workers=workers,
        require_age=settings.require_age,
    )


class _Keeper:
    """Writes films that arrive, and knows which are missing."""

    def __init__(self, folder: Path, missing: Sequence[RemoteFilm], on_kept: Callable[[int], None]) -> None:
        self.folder = folder
        self.missing = {film.instance: film for film in missing}
        self._on_kept = on_kept

    def __call__(self, data: bytes, ae_title: str = "") -> None:
        """Keep a film that was asked for; drop any other. Raises: UnreadableFilm, OSError."""
        facts = facts_of(data, ae_title)
        film = self.missing.get(facts.sop_instance)
        if film is not None:
            write_atomically(film.path(self.folder), data)
            del self.missing[facts.sop_instance]
            self._on_kept(len(self.missing))


def _checked(study: object, series: object, instance: object) -> RemoteFilm:
    """Return a film after a check that its UIDs may be part of a path. Raises: PeerError."""
    uids = [str(value) for value in (study, series, instance)]
    if not all(UID_FORM.fullmatch(uid) and uid.strip(".") for uid in uids):
        raise PeerError("the PACS named a film by something that is no UID")
    return RemoteFilm(*uids)


# --------------------------------------------------------------------------- C-FIND, C-GET, C-MOVE


def _list(destination: Destination, settings: NodeSettings, wanted: Search) -> Iterator[RemoteFilm]:
    with association(destination, settings, [STUDY_FIND]) as peer:
        studies = _found(peer, destination, "STUDY", StudyDate=wanted.study_date, StudyInstanceUID="")
        for study in studies:
            uid = str(study.StudyInstanceUID)
            for series in _found(peer, destination, "SERIES", StudyInstanceUID=uid, SeriesInstanceUID="", Modality=""):
                if str(series.get("Modality", "")).strip() not in wanted.modalities:
                    continue
                for image in _found(
                    *(peer, destination, "IMAGE"),
                    StudyInstanceUID=uid,
                    SeriesInstanceUID=str(series.SeriesInstanceUID),
                    SOPInstanceUID="",
                ):
                    yield _checked(uid, series.SeriesInstanceUID, image.SOPInstanceUID)


def _found(peer: Any, destination: Destination, level: str, **keys: str) -> list[Dataset]:
    answers = []
    for status, identifier in peer.send_c_find(_query(level, **keys), STUDY_FIND):
        _check(status, destination, "C-FIND")
        if status.Status not in PENDING:
            continue
        if identifier is None:
            raise PeerError(f"destination {destination.name}: an answer to C-FIND cannot be read; it may name a film")
        answers.append(identifier)
    return answers


def _query(level: str, **keys: str) -> Dataset:
    from pydicom import Dataset

    query = Dataset()
    query.QueryRetrieveLevel = level
    for name, value in keys.items():
        setattr(query, name, value)
    return query


def _check(status: Any, destination: Destination, what: str) -> None:
    if "Status" not in status:
        raise PeerError(f"destination {destination.name}: the connection ended during {what}")
    if status.Status not in PENDING and status.Status not in {SUCCESS, 0xB000}:
        raise PeerError(f"destination {destination.name}: {what} ended with status 0x{status.Status:04X}")


def _fetch(destination: Destination, settings: NodeSettings, films: Sequence[RemoteFilm], keep: _Keeper) -> None:
    """Fetch series by series, in one association."""
    by_move = destination.retrieve == "move"
    model = STUDY_MOVE if by_move else STUDY_GET

    def store(event: Any) -> int:
        keep(event.encoded_dataset())
        return SUCCESS

    with ExitStack() as stack:
        if by_move:
            peers = (*settings.peers, Peer(destination.ae_title)) if settings.peers else ()
            receiver = Receiver(replace(settings, peers=peers), keep, lambda *_: None)
            receiver.start()
            stack.callback(receiver.stop)
        held = () if by_move else tuple(FILM_CLASSES)
        peer = stack.enter_context(association(destination, settings, [model], store=store, held=held))
        for study, series in dict.fromkeys((film.study, film.series) for film in films):
            query = _query("SERIES", StudyInstanceUID=study, SeriesInstanceUID=series)
            statuses = peer.send_c_move(query, settings.ae_title, model) if by_move else peer.send_c_get(query, model)
            for status, _ in statuses:
                _check(status, destination, "C-MOVE" if by_move else "C-GET")


# --------------------------------------------------------------------------- QIDO-RS, WADO-RS


def _list_by_web(destination: Destination, _settings: NodeSettings, wanted: Search) -> Iterator[RemoteFilm]:
    client = web_client(destination)
    ask = partial(ask_web, destination)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        dates = {"StudyDate": wanted.study_date}
        for study in ask(partial(client.search_for_studies, search_filters=dates, get_remaining=True)):
            uid = _value(study, "0020000D")
            for series in ask(partial(client.search_for_series, uid, get_remaining=True)):
                if _value(series, "00080060") not in wanted.modalities:
                    continue
                place = _value(series, "0020000E")
                for image in ask(partial(client.search_for_instances, uid, place, get_remaining=True)):
                    yield _checked(uid, place, _value(image, "00080018"))


def _value(answer: Any, tag: str) -> str:
    values = answer.get(tag, {}).get("Value") or [""]
    return str(values[0])


def _fetch_by_web(
    destination: Destination, _settings: NodeSettings, films: Sequence[RemoteFilm], keep: _Keeper
) -> None:
    from pydicom import dcmwrite

    client = web_client(destination)
    for film in films:
        whole = (("application/dicom", "*"),)  # in the transfer syntax in which it is stored
        place = (film.study, film.series, film.instance)
        found = ask_web(destination, partial(client.retrieve_instance, *place, media_types=whole))
        out = io.BytesIO()
        try:
            dcmwrite(out, found, enforce_file_format=True)
            keep(out.getvalue())
        except (FilmError, ValueError, TypeError) as error:
            raise PeerError(f"destination {destination.name}: gave no DICOM file ({type(error).__name__})") from None
