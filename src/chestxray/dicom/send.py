"""Sending of results: one thread for each destination, which waits longer after each failure.

An unreachable destination does not count as an attempt of its results; a refusal does.
"""

from __future__ import annotations

import contextlib
import io
import threading
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, Final

from pydicom.errors import InvalidDicomError

from chestxray.dicom.associations import Stores, wait_for_events
from chestxray.dicom.queue import ASKED, SENT, Delivery, Queue
from chestxray.dicom.receive import (
    COMMITMENT_INSTANCE,
    MAX_PDU,
    STORAGE_COMMITMENT,
    SUCCESS,
    log,
    on_commitment,
    silence_libraries,
)
from chestxray.dicom.results import RESULT_KINDS, derived_uid
from chestxray.dicom.settings import Destination, NodeSettings, client_context
from chestxray.errors import FilmError, PeerError, UnreadableFilm
from chestxray.images.dicom import PREAMBLE, open_data_set
from chestxray.images.dicom_pixels import EXPLICIT_LITTLE, IMPLICIT_LITTLE, SYNTAXES

if TYPE_CHECKING:
    from dicomweb_client import DICOMwebClient
    from pydicom import Dataset
    from pynetdicom.ae import ApplicationEntity
    from pynetdicom.association import Association

STORED_STATUSES: Final = frozenset(
    {SUCCESS, 0xB000, 0xB006, 0xB007}
)  # success, or a warning about elements (PS3.4 B.2.3)
ASKED_AT_MOST: Final = 3  # requests for a commitment that never comes; then the success of C-STORE counts
COMMITMENT_S: Final = 300.0  # seconds until the request is repeated
GONE: Final = "the file of the result is gone or damaged"
LOOKED_EVERY_S: Final = 0.5
TIMEOUT_S: Final = 30.0  # seconds for a peer's answer
LINGER_S: Final = 1.0  # seconds for which an association waits for the next result
RECORDED_TOGETHER: Final = 8  # accepted results: after a kill, at most so many are sent a second time
KEPT_S: Final = 30.0  # seconds of one association, after which storage commitment is requested


class Sender:
    """The thread of one destination.

    Attributes:
        last_success: seconds since 1970, 0 before the first.
        sent: number of accepted results.
    """

    def __init__(self, destination: Destination, settings: NodeSettings, queue: Queue) -> None:
        self.destination = destination
        self.settings = settings
        self.queue = queue
        self.last_success = 0.0
        self.sent = 0
        self.failures = 0  # consecutive failures
        self._wake = threading.Event()
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, name=f"to-{destination.name}", daemon=True)

    def start(self) -> None:
        """Start sending."""
        self._thread.start()

    def wake(self) -> None:
        """Tell the thread that a result waits."""
        self._wake.set()

    def stop(self) -> None:
        """Stop after the result that is being sent; waiting results stay."""
        self._stopped.set()
        self._wake.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._stopped.is_set():
            pause = LOOKED_EVERY_S
            try:
                self._round()
                self.failures = 0
            except Exception as error:  # noqa: BLE001 - without this thread, results would never be sent
                pause = self.settings.limits.pause(self.failures)
                self.failures += 1
                facts = {"destination": self.destination.name, "fault": type(error).__name__, "pause": pause}
                log.warning("destination failed", extra=facts | {"reason": _reason_without_quotes(error)})
                with contextlib.suppress(Exception):
                    self.queue.unreachable(self.destination.name, _reason_without_quotes(error))
                self._stopped.wait(pause)
                continue
            self._wake.wait(pause)
            self._wake.clear()

    def _round(self) -> None:
        """Send everything that is due. Raises: PeerError."""
        name = self.destination.name
        while not self._stopped.is_set():
            waiting = self.queue.deliveries(name)
            asking = self.queue.deliveries(name, SENT) or self.queue.deliveries(name, ASKED)
            if not waiting and not asking:
                return
            if self.destination.url:
                self._by_web(waiting)
            else:
                self._by_association(waiting)

    def _accepted(self, deliveries: Sequence[Delivery], *, commitment: bool) -> None:
        if deliveries:
            self.queue.delivered(deliveries, commitment=commitment)
            self.sent += len(deliveries)
            self.last_success = time.time()

    # ------------------------------------------------------------------ C-STORE

    def _by_association(self, waiting: Sequence[Delivery]) -> None:
        contexts = [sop_class for sop_class, _, _ in RESULT_KINDS.values()]
        if self.destination.commitment:
            contexts.append(STORAGE_COMMITMENT)
        commit = partial(on_commitment, self.queue.committed)
        with association(self.destination, self.settings, contexts, commit) as peer:
            offered = any(context.abstract_syntax == STORAGE_COMMITMENT for context in peer.accepted_contexts)
            stores, end = Stores(peer), time.monotonic() + KEPT_S
            while waiting and not self._stopped.is_set():
                for start in range(0, len(waiting), RECORDED_TOGETHER):
                    self._store_some(peer, stores, waiting[start : start + RECORDED_TOGETHER], commitment=offered)
                waiting = self._next() if time.monotonic() < end else ()
            self._ask_for_commitment(peer, offered=offered)

    def _store_some(
        self, peer: Association, stores: Stores, deliveries: Sequence[Delivery], *, commitment: bool
    ) -> None:
        """Send results, and record in one transaction those that were accepted, also if the association ends."""
        accepted: list[Delivery] = []
        try:
            for delivery in deliveries:
                if self._store(peer, stores, delivery):
                    accepted.append(delivery)  # noqa: PERF401 - before an error, too
        finally:
            self._accepted(accepted, commitment=commitment)

    def _next(self) -> Sequence[Delivery]:
        """Return the results that are due, or that come within a moment."""
        self._wake.clear()
        due = self.queue.deliveries(self.destination.name)
        if not due and self._wake.wait(LINGER_S):
            due = self.queue.deliveries(self.destination.name)
        return due

    def _store(self, peer: Association, stores: Stores, delivery: Delivery) -> bool:
        """Send a result; return whether it was accepted. A refusal is recorded. Raises: PeerError."""
        try:
            if (context := _unchanged_context(peer, delivery.sop_class)) is not None:
                status = stores.send(context, delivery.sop_class, delivery.sop_instance, _data_set(delivery))
            else:
                status = peer.send_c_store(_read(delivery)).get("Status")
        except (FileNotFoundError, FilmError, InvalidDicomError):
            self.queue.refused(delivery, GONE)
            return False
        except ValueError:  # no context for this class: this counts as an answer too
            self.queue.refused(delivery, "the destination takes no such objects (no presentation context)")
            return False
        if status is None:
            raise PeerError(f"destination {self.destination.name}: the connection ended before an answer to C-STORE")
        if status not in STORED_STATUSES:
            self.queue.refused(delivery, f"refused with status 0x{status:04X}")
            log.warning("result refused", extra={"film": delivery.key, "status": f"0x{status:04X}"})
        return status in STORED_STATUSES

    # ------------------------------------------------------------------ storage commitment (PS3.4 annex J)

    def _ask_for_commitment(self, peer: Association, *, offered: bool) -> None:
        name = self.destination.name
        due = [*self.queue.deliveries(name, SENT), *self.queue.deliveries(name, ASKED)]
        tired = [delivery for delivery in due if delivery.tries >= ASKED_AT_MOST or not offered]
        if tired:
            if offered:
                log.warning("storage commitment never came", extra={"destination": name, "results": len(tired)})
            self.queue.delivered(tired, commitment=False)
        fresh = [delivery for delivery in due if delivery not in tired]
        if not fresh:
            return
        transaction = derived_uid("commitment", name, str(time.time_ns()))
        self.queue.asked(fresh, transaction, COMMITMENT_S)
        answer, _ = peer.send_n_action(_commitment_of(fresh, transaction), 1, STORAGE_COMMITMENT, COMMITMENT_INSTANCE)
        if answer.get("Status") != SUCCESS:  # the peer offers the service and does not grant it to us
            self.queue.delivered(fresh, commitment=False)

    # ------------------------------------------------------------------ STOW-RS

    def _by_web(self, waiting: Sequence[Delivery]) -> None:
        client = web_client(self.destination)
        left = self.queue.deliveries(self.destination.name, SENT)  # sent before, while this destination was an AE
        if left:
            self.queue.delivered(left, commitment=False)
        for delivery in waiting:
            try:
                result = _read(delivery)
            except (FileNotFoundError, InvalidDicomError):
                self.queue.refused(delivery, GONE)
                continue
            answer = ask_web(self.destination, partial(client.store_instances, [result]))
            failed = answer.get("FailedSOPSequence") or ()
            if failed:
                self.queue.refused(delivery, f"refused with status 0x{int(failed[0].get('FailureReason', 0)):04X}")
            else:
                self._accepted([delivery], commitment=False)


def _unchanged_context(peer: Association, sop_class: str) -> int | None:
    """Return the context in which the peer takes objects of a class in the syntax in which they are written."""
    for context in peer.accepted_contexts:
        if context.abstract_syntax == sop_class and context.transfer_syntax[0] == EXPLICIT_LITTLE:
            return context.context_id
    return None


def _data_set(delivery: Delivery) -> memoryview:
    """Return a result as it lies on the disk, without its file meta information. Raises: OSError, FilmError."""
    data = delivery.path.read_bytes()
    if data[PREAMBLE - 4 : PREAMBLE] != b"DICM":
        raise UnreadableFilm(GONE)
    return memoryview(data)[open_data_set(data, GONE).start :]


def _read(delivery: Delivery) -> Dataset:
    from pydicom import dcmread

    return dcmread(io.BytesIO(delivery.path.read_bytes()))


def _commitment_of(deliveries: Sequence[Delivery], transaction: str) -> Dataset:
    from pydicom import Dataset

    request = Dataset()
    request.TransactionUID = transaction
    request.ReferencedSOPSequence = []
    for delivery in deliveries:
        item = Dataset()
        item.ReferencedSOPClassUID, item.ReferencedSOPInstanceUID = delivery.sop_class, delivery.sop_instance
        request.ReferencedSOPSequence.append(item)
    return request


def _reason_without_quotes(error: Exception) -> str:
    """Describe an error without quoting the peer's message, which may hold an address or a name."""
    return str(error) if isinstance(error, PeerError) else f"unexpected: {type(error).__name__}"


# --------------------------------------------------------------------------- peers, for sending and for asking


@contextlib.contextmanager
def association(
    destination: Destination,
    settings: NodeSettings,
    contexts: Sequence[str],
    on_report: Callable[[Any], tuple[int, None]] | None = None,
    store: Callable[[Any], int] | None = None,
    held: Sequence[str] = (),
) -> Any:
    """Open an association with a destination, and release it at the end.

    Args:
        destination: an AE.
        settings: settings with our AE title and certificate.
        contexts: SOP classes to propose, in the two uncompressed little endian syntaxes.
        on_report: handler of N-EVENT-REPORT.
        store: handler of C-STORE, for C-GET.
        held: SOP classes that C-GET may bring, in every syntax that we decode.

    Raises: PeerError, if the peer does not answer or refuses the association.
    """
    from pynetdicom import evt
    from pynetdicom.presentation import build_role

    entity = _entity(settings, contexts, held)
    opened: list[Any] = []
    handlers: list[Any] = [
        (evt.EVT_CONN_OPEN, lambda event: wait_for_events(event.assoc)),
        (evt.EVT_CONN_OPEN, opened.append),
    ]
    if on_report is not None:
        handlers.append((evt.EVT_N_EVENT_REPORT, on_report))
    if store is not None:
        handlers.append((evt.EVT_C_STORE, store))
    faults: list[str] = []
    tls = None
    if destination.tls:
        tls = (client_context(settings.tls, destination.authority, faults.append), destination.host)
    try:
        peer = entity.associate(
            destination.host,
            destination.port,
            ae_title=destination.ae_title,
            evt_handlers=handlers,
            ext_neg=[build_role(sop_class, scp_role=True) for sop_class in held],
            tls_args=tls,
        )
    except (OSError, ValueError, RuntimeError) as error:
        raise PeerError(f"destination {destination.name}: no association ({type(error).__name__})") from None
    if not peer.is_established:
        raise PeerError(f"destination {destination.name}: {_why_not(peer, destination, faults, opened=bool(opened))}")
    try:
        yield peer
    finally:
        if peer.is_established:
            peer.release()


def _entity(settings: NodeSettings, contexts: Sequence[str], held: Sequence[str]) -> ApplicationEntity:
    """Return our AE with its limits of time and its presentation contexts."""
    from pynetdicom.ae import ApplicationEntity

    silence_libraries()
    entity = ApplicationEntity(settings.ae_title)
    entity.maximum_pdu_size = MAX_PDU
    entity.acse_timeout = entity.dimse_timeout = entity.network_timeout = entity.connection_timeout = TIMEOUT_S
    for sop_class in contexts:
        for syntax in (EXPLICIT_LITTLE, IMPLICIT_LITTLE):  # apart: a peer that takes both is sent what lies on the disk
            entity.add_requested_context(sop_class, syntax)
    for sop_class in held:
        for syntax in SYNTAXES:  # a context for each: otherwise the peer would choose one, and refuse films in others
            entity.add_requested_context(sop_class, syntax)
    return entity


def _why_not(peer: Association, destination: Destination, faults: Sequence[str], *, opened: bool) -> str:
    """Explain why there is no association, in the standard's words and ours (PS3.8 table 9-21)."""
    where = f"{destination.host}, port {destination.port}"
    if peer.is_rejected:
        reason = getattr(peer.acceptor.primitive, "reason_str", "no reason given")
        return f"{where} rejected the association ({reason}). Check ae_title here, and that the PACS knows ours"
    if faults:
        return f"no TLS with {where}: {faults[-1]}. Check tls and authority of the destination, and [tls]"
    if opened:
        return (
            f"{where} ended the connection before an association. Check tls here, and that the PACS knows our AE title"
        )
    tls = " by TLS" if destination.tls else ""
    return f"no answer from {where}{tls}. Check that the PACS runs, and host, port and tls"


def web_client(destination: Destination) -> DICOMwebClient:
    """Make a DICOMweb client with the credentials that the settings name. Raises: SettingsInvalid."""
    import requests
    from dicomweb_client import DICOMwebClient

    silence_libraries()
    session = requests.Session()
    session.trust_env = False  # no proxy and no .netrc decides where films go
    if destination.token_variable:
        session.headers["Authorization"] = f"Bearer {destination.secret(destination.token_variable)}"
    elif destination.user:
        session.auth = (destination.user, destination.secret(destination.password_variable))
    if destination.authority is not None:
        session.verify = str(destination.authority)
    client = DICOMwebClient(destination.url, session=session)
    client.set_http_retry_params(retry=False)  # the queue repeats attempts, and remembers them
    return client


def ask_web(destination: Destination, ask: Callable[[], Any]) -> Any:
    """Send a request to a DICOMweb server. Raises: PeerError, without the peer's message."""
    import requests

    try:
        return ask()
    except requests.HTTPError as error:
        status = "an error" if error.response is None else f"status {error.response.status_code}"
        raise PeerError(
            f"destination {destination.name}: the server answered with {status}. Check url, and the credentials"
        ) from None
    except (requests.RequestException, OSError) as error:
        raise PeerError(
            f"destination {destination.name}: not reached ({type(error).__name__}). Check url and authority"
        ) from None
