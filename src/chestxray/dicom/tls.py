"""TLS of both sides: contexts, and the reason for which a handshake failed.

The libraries between us and the connection drop the reason: pynetdicom says that there is no association, asyncio says
nothing. Here the error is caught where Python raises it.
"""

from __future__ import annotations

import ssl
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

from chestxray.dicom.settings import Tls
from chestxray.errors import SettingsInvalid

OnFault = Callable[[str], object]  # is given the reason, as ``reason_of`` words it

# OpenSSL's reasons, by a part of their names, in the order in which they are tried.
_REASONS: Final[Mapping[str, str]] = {
    "DID_NOT_RETURN_A_CERTIFICATE": "the peer showed no certificate",
    "WRONG_VERSION_NUMBER": "the peer does not use TLS on this connection",
    "HTTP_REQUEST": "the peer does not use TLS on this connection",
    "RECORD_LAYER_FAILURE": "the peer does not use TLS on this connection",
    "NO_SHARED_CIPHER": "no cipher in common; here TLS 1.2 or newer with forward secrecy",
    "NO_PROTOCOLS": "no version of TLS in common; here 1.2 or newer",
    "PROTOCOL": "no version of TLS in common; here 1.2 or newer",
    "ALERT_HANDSHAKE_FAILURE": "the peer found no cipher in common, or no certificate of ours",
    "UNKNOWN_CA": "the peer does not know the authority of our certificate",
    "CERTIFICATE_EXPIRED": "the peer says that our certificate has expired",
    "CERTIFICATE_REQUIRED": "the peer requires a certificate of ours; name one in [tls]",
    "ALERT_BAD_CERTIFICATE": "the peer does not accept our certificate",
    "ALERT_CERTIFICATE": "the peer does not accept our certificate",
    "EOF": "the peer ended the connection within the handshake; it may not use TLS on this port",
}


def reason_of(error: OSError) -> str:
    """Explain in a clause why there is no TLS."""
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"the peer's certificate is not accepted: {error.verify_message.rstrip('.')}"
    if isinstance(error, TimeoutError):
        return "the peer did not end the handshake in time"
    if not isinstance(error, ssl.SSLError):
        return "the peer ended the connection within the handshake; it may not use TLS on this port"
    name = str(error.reason or type(error).__name__).upper()
    return next((words for part, words in _REASONS.items() if part in name), f"TLS failed: {name}")


def _watched(kind: type[Any], on_fault: OnFault) -> type[Any]:
    """Return a class of TLS connections that calls ``on_fault`` with the reason for which one fails."""

    class Watched(kind):  # type: ignore[misc]
        def do_handshake(self, *values: Any, **named: Any) -> Any:
            with _passed_on(on_fault, OSError):
                return super().do_handshake(*values, **named)

        def read(self, *values: Any, **named: Any) -> Any:
            with _passed_on(on_fault, ssl.SSLError):
                return super().read(*values, **named)

    return Watched


@contextmanager
def _passed_on(on_fault: OnFault, kind: type[OSError]) -> Iterator[None]:
    try:
        yield
    except (ssl.SSLWantReadError, ssl.SSLWantWriteError):  # no error, but asyncio's way of waiting
        raise
    except kind as error:
        on_fault(reason_of(error))
        raise


def server_context(tls: Tls, on_fault: OnFault = lambda _: None) -> ssl.SSLContext:
    """Build the TLS context of a server: 1.2 or newer, ciphers with forward secrecy (PS3.15 B.9, BCP 195).

    Args:
        tls: certificates of the node.
        on_fault: called with the reason for which a handshake of asyncio failed, which asyncio keeps to itself.

    Raises: SettingsInvalid, if a certificate cannot be read.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.sslobject_class = _watched(ssl.SSLObject, on_fault)
    _load(context, tls)
    if tls.client_authority is not None:
        context.verify_mode = ssl.CERT_REQUIRED
        _trust(context, tls.client_authority)
    return context


def client_context(tls: Tls | None, authority: Path | None, on_fault: OnFault) -> ssl.SSLContext:
    """Build the TLS context of a client, with our certificate if there is one.

    Args:
        tls: certificates of the node.
        authority: certificate that verifies the server; None takes the system's.
        on_fault: called with the reason for which the handshake failed, or the connection after it: a server of TLS 1.3
            refuses our certificate only when we read.

    Raises: SettingsInvalid.
    """
    context = ssl.create_default_context(ssl.Purpose.SERVER_AUTH)
    context.sslsocket_class = _watched(ssl.SSLSocket, on_fault)
    if tls is not None:
        _load(context, tls)
    if authority is not None:
        _trust(context, authority)
    return context


def _load(context: ssl.SSLContext, tls: Tls) -> None:
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_ciphers("ECDHE+AESGCM:ECDHE+CHACHA20")
    try:
        context.load_cert_chain(tls.certificate, tls.key)
    except (OSError, ssl.SSLError) as error:
        raise SettingsInvalid(f"tls: {tls.certificate} and {tls.key}: no certificate with its key ({error})") from error


def _trust(context: ssl.SSLContext, authority: Path) -> None:
    try:
        context.load_verify_locations(authority)
    except (OSError, ssl.SSLError) as error:
        raise SettingsInvalid(f"tls: {authority}: no certificate of an authority ({error})") from error
