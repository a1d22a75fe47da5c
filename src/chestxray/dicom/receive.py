"""The DICOM receiver: C-ECHO, C-STORE and the reports of storage commitment, each within limits.

pynetdicom speaks the protocol. This file limits what a peer may do: the length of a PDU, of a message and of an
association, the number of associations, and the time of a TLS handshake.
"""

from __future__ import annotations

import contextlib
import logging
import socket
import ssl
import threading
import time
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, Final

from pynetdicom import _config as pynetdicom_config
from pynetdicom import evt
from pynetdicom.ae import ApplicationEntity
from pynetdicom.transport import RequestHandler, ThreadedAssociationServer

from chestxray import __version__
from chestxray.dicom.associations import StoreRequest, Stores, file_meta, wait_for_events
from chestxray.dicom.queue import OutOfRoom
from chestxray.dicom.rules import FilmFacts
from chestxray.dicom.settings import NodeSettings, server_context, tls_reason_of
from chestxray.errors import FilmTooLarge, UnreadableFilm, UnsupportedFormat, UsageError
from chestxray.files import MEBIBYTE
from chestxray.images.dicom_pixels import SYNTAXES

VERIFICATION: Final = "1.2.840.10008.1.1"
STORAGE_COMMITMENT: Final = "1.2.840.10008.1.20.1"
COMMITMENT_INSTANCE: Final = "1.2.840.10008.1.20.1.1"

# Accepted classes. Films "for processing" are not accepted: they lack the picture that a radiologist would see.
FILM_CLASSES: Final[Mapping[str, str]] = {
    "1.2.840.10008.5.1.4.1.1.1": "Computed Radiography Image Storage",
    "1.2.840.10008.5.1.4.1.1.1.1": "Digital X-Ray Image Storage - For Presentation",
    "1.2.840.10008.5.1.4.1.1.7": "Secondary Capture Image Storage",
}

# The answers to C-STORE (PS3.4 table B.2-1, PS3.7 annex C), by cause.
STATUSES: Final[tuple[tuple[type[Exception], int, str], ...]] = (
    (OutOfRoom, 0xA700, "out of resources: the queue or the disk is full; send again later"),
    (FilmTooLarge, 0xA702, "out of resources: the film is larger than limits.film"),
    (UnsupportedFormat, 0xA900, "the data set does not match its SOP class"),
    (UnreadableFilm, 0xC000, "the header cannot be read, or names no study, series or instance"),
)
SUCCESS: Final = 0x0000
TOO_MANY: Final = 0xA701  # more films than limits.films on one association
NOT_AUTHORISED: Final = 0x0124
FAILED: Final = 0xC211

MAX_PDU: Final = 131_072  # bytes that we ask for; larger PDUs would be fewer, but it would take longer to give up
HANDSHAKE_S: Final = 10.0
WATCHED_EVERY_S: Final = 0.5
IMPLEMENTATION: Final = "2.25.330104712947146553127543853302843210497"
IMPLEMENTATION_NAME: Final = f"CHESTXRAY_{__version__}"[:16]

OnFilm = Callable[[bytes, str], object]
Commitment = Callable[[str, list[str], list[str]], object]

log: Final = logging.getLogger("chestxray.dicom")


class Receiver:
    """The listening side of a node's DICOM receiver.

    Attributes:
        reports: number of storage commitment reports that arrived.
    """

    def __init__(self, settings: NodeSettings, take: OnFilm, commit: Commitment) -> None:
        """Prepare the receiver; it does not listen yet.

        Args:
            settings: settings of the node.
            take: function that keeps a film, given its file's bytes and the sender's AE title; its error becomes a
                status.
            commit: called with the answers to requests for storage commitment: transaction, stored, failed.
        """
        self.settings = settings
        self._take = take
        self._commit = commit
        self.reports = 0
        self._server: ThreadedAssociationServer | None = None
        self._watch = threading.Thread(target=self._cut_overdue, name="association-watch", daemon=True)
        self._stopped = threading.Event()
        self._open: dict[int, _Watched] = {}

    def start(self) -> int:
        """Listen, and return the port. Raises: UsageError, if the address cannot be used; SettingsInvalid (TLS)."""
        silence_libraries()
        entity = ApplicationEntity(self.settings.ae_title)
        limits = self.settings.limits
        entity.maximum_associations = limits.associations
        entity.maximum_pdu_size = MAX_PDU
        entity.network_timeout = entity.acse_timeout = entity.dimse_timeout = limits.idle_seconds
        entity.require_called_aet = True
        entity.require_calling_aet = sorted({peer.ae_title for peer in self.settings.peers})
        entity.implementation_class_uid = IMPLEMENTATION
        entity.implementation_version_name = IMPLEMENTATION_NAME
        entity.add_supported_context(VERIFICATION)
        for sop_class in FILM_CLASSES:
            entity.add_supported_context(sop_class, list(SYNTAXES))
        entity.add_supported_context(STORAGE_COMMITMENT, scu_role=True, scp_role=True)
        context = server_context(self.settings.tls) if self.settings.tls else None
        handlers: list[Any] = [
            (evt.EVT_CONN_OPEN, self._opened),
            (evt.EVT_CONN_CLOSE, self._closed),
            (evt.EVT_C_ECHO, self._echo),
            (evt.EVT_C_STORE, self._store_of_the_library),
            (evt.EVT_N_EVENT_REPORT, partial(on_commitment, self._reported)),
        ]
        try:
            server = entity.make_server(
                (self.settings.host, self.settings.port),
                ssl_context=context,
                evt_handlers=handlers,
                server_class=_Server,
            )
        except (OSError, OverflowError) as error:
            raise UsageError(
                f"{self.settings.host}, port {self.settings.port}: cannot be listened on ({error}). Give another port"
            ) from error
        entity._servers.append(server)  # noqa: SLF001 - as AE.start_server does
        self._server = server
        threading.Thread(target=server.serve_forever, args=(0.1,), name="dicom-door", daemon=True).start()
        self._watch.start()
        return int(server.server_address[1])

    def stop(self) -> None:
        """Close the listening socket and every association."""
        self._stopped.set()
        if self._server is not None:
            for watched in list(self._open.values()):
                watched.cut("the node stops")
            with contextlib.suppress(ValueError):
                self._server.shutdown()
            self._watch.join()

    @property
    def associations(self) -> int:
        """Number of open connections."""
        return len(self._open)

    # ------------------------------------------------------------------ what happens on an association

    def _opened(self, event: Any) -> None:
        association = event.assoc
        watched = self._open[id(association)] = _Watched(association, time.monotonic())
        Stores(
            association,
            partial(self._store, association),
            (self.settings.limits.film + 1) * MEBIBYTE,
            partial(watched.cut, "a film is larger than limits.film"),
        )

    def _closed(self, event: Any) -> None:
        self._open.pop(id(event.assoc), None)

    def _is_known(self, association: Any) -> bool:
        """Check whether the peer calls from an allowed address; its AE title was checked before."""
        address, title = association.requestor.address, association.requestor.ae_title.strip()
        known = [peer for peer in self.settings.peers if peer.ae_title == title]
        return not known or any(not peer.addresses or address in peer.addresses for peer in known)

    def _echo(self, event: Any) -> int:
        return SUCCESS if self._is_known(event.assoc) else NOT_AUTHORISED

    def _store_of_the_library(self, event: Any) -> int:
        """Keep a film whose request is odd in some way, so that the library has read it."""
        asked, context = event.request, event.context
        request = StoreRequest(
            context.context_id,
            asked.MessageID,
            str(asked.AffectedSOPClassUID),
            str(asked.AffectedSOPInstanceUID),
            str(context.transfer_syntax),
        )
        return self._store(event.assoc, request, asked.DataSet.getvalue())

    def _store(self, association: Any, request: StoreRequest, data: bytes | memoryview) -> int:
        """Keep a film, and return the status of the answer."""
        watched = self._open.get(id(association))
        if not self._is_known(association):
            return NOT_AUTHORISED
        if watched is not None:
            watched.films += 1
            if watched.films > self.settings.limits.films:
                return TOO_MANY
        try:
            head = file_meta(
                request.sop_class, request.sop_instance, request.transfer_syntax, (IMPLEMENTATION, IMPLEMENTATION_NAME)
            )
            self._take(b"".join((head, data)), association.requestor.ae_title.strip())
        except Exception as error:  # noqa: BLE001 - after any error the sender must not hear "success"
            status = dicom_status_of(error)
            log.warning("film refused", extra={"status": f"0x{status:04X}", "fault": type(error).__name__})
            return status
        return SUCCESS

    def _reported(self, transaction: str, stored: list[str], failed: list[str]) -> None:
        self._commit(transaction, stored, failed)
        self.reports += 1

    def _cut_overdue(self) -> None:
        while not self._stopped.wait(WATCHED_EVERY_S):
            now = time.monotonic()
            for watched in list(self._open.values()):
                if now - watched.began > self.settings.limits.association_seconds:
                    watched.cut("longer than limits.association_seconds")


class _Watched:
    """An open connection: its start, and how many films it has sent."""

    def __init__(self, association: Any, began: float) -> None:
        self.association = association
        self.began = began
        self.films = 0
        self._is_cut = False

    def cut(self, why: str) -> None:
        """Close the connection under the association; its reader notices this."""
        if not self._is_cut:
            log.warning("association cut: %s", why)
        self._is_cut = True
        with contextlib.suppress(OSError, AttributeError):
            self.association.dul.socket.socket.shutdown(socket.SHUT_RDWR)


class _Handler(RequestHandler):
    """A connection whose bytes we read, within limits: the library would read up to 4 GiB if a header claims that."""

    def handle(self) -> None:
        association = self._create_association()
        wait_for_events(association)
        evt.trigger(association, evt.EVT_CONN_OPEN, {"address": self.client_address})
        association.start()


class _Server(ThreadedAssociationServer):
    """Limits connections before they send anything."""

    daemon_threads = True
    request_queue_size = 128  # connections that the system accepts for us; with the library's 5, callers wait seconds

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **{**kwargs, "request_handler": _Handler})
        self._greeting = 0
        self._counting = threading.Lock()

    def get_request(self) -> tuple[socket.socket, Any]:
        """Accept without a TLS handshake, which belongs to the connection's own thread."""
        connection, address = self.socket.accept()  # type: ignore[union-attr]
        connection.settimeout(self.ae.network_timeout)
        return connection, address

    def verify_request(self, _request: Any, _address: Any) -> bool:
        """Refuse a connection at twice the allowed number; up to that, the association is refused with a reason."""
        with self._counting:
            here = self._greeting + len(self.active_associations)
            if here >= 2 * self.ae.maximum_associations:
                return False
            self._greeting += 1
            return True

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        """Do the TLS handshake, if any, then pass the connection to the association's thread."""
        try:
            if self.ssl_context is not None:
                request.settimeout(HANDSHAKE_S)
                request = self.ssl_context.wrap_socket(request, server_side=True)
                request.settimeout(self.ae.network_timeout)
            self.finish_request(request, client_address)
        except ssl.SSLError as error:
            log.warning("connection refused", extra={"caller": client_address[0], "reason": tls_reason_of(error)})
            self.shutdown_request(request)
        except (OSError, ValueError) as error:
            log.info("connection refused", extra={"caller": client_address[0], "fault": type(error).__name__})
            self.shutdown_request(request)
        finally:
            with self._counting:
                self._greeting -= 1


def dicom_status_of(error: Exception) -> int:
    """Return the status by which a sender learns that its film was not taken."""
    return next((code for kind, code, _ in STATUSES if isinstance(error, kind)), FAILED)


def not_taken(facts: FilmFacts) -> str:
    """Explain why an object is refused before any rule is asked; empty if it is taken."""
    if facts.sop_class not in FILM_CLASSES:
        return f"its SOP class is not one of {', '.join(FILM_CLASSES.values())}"
    return "" if facts.transfer_syntax in SYNTAXES else "its transfer syntax is not read"


def on_commitment(commit: Commitment, event: Any) -> tuple[int, None]:
    """Pass on a report of storage commitment (PS3.4 annex J.3.3)."""
    information = event.event_information
    commit(
        str(information.get("TransactionUID", "")),
        [str(item.ReferencedSOPInstanceUID) for item in information.get("ReferencedSOPSequence") or ()],
        [str(item.ReferencedSOPInstanceUID) for item in information.get("FailedSOPSequence") or ()],
    )
    return SUCCESS, None


def silence_libraries() -> None:
    """Keep names and numbers out of logs: the libraries would print headers; we log our own words."""
    pynetdicom_config.LOG_HANDLER_LEVEL = "none"
    for name in ("pynetdicom", "pydicom", "dicomweb_client", "highdicom"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
        logging.getLogger(name).propagate = False
