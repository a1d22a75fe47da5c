"""The settings of a node, from its TOML file: addresses, peers, destinations, rules, limits; and TLS.

An unknown key is refused with the nearest known one; a value of a wrong type is refused with the expected type.

The libraries between us and a connection drop the reason for which a TLS handshake failed: pynetdicom says that there
is no association, asyncio says nothing. The contexts made here catch the error where Python raises it.
"""

from __future__ import annotations

import dataclasses
import difflib
import os
import ssl
import tomllib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import UnionType
from typing import Any, Final, TypeVar, Union, get_args, get_origin, get_type_hints
from urllib.parse import urlsplit

from chestxray.dicom.rules import Rule
from chestxray.errors import SettingsInvalid
from chestxray.files import read_text
from chestxray.inference.bundle import DEFAULT
from chestxray.serving.security import is_loopback

AE_TITLE_LENGTH: Final = 16  # characters (PS3.5 section 6.2)
HIGHEST_PORT: Final = 65535

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


@dataclass(frozen=True, slots=True)
class Limits:
    """Limits of the node. Sizes are in mebibytes.

    Attributes:
        associations: number that may be open at once.
        association_seconds: longest time of one association.
        idle_seconds: longest time without data from the peer.
        film: size of one instance.
        films: number that one association may send.
        queue: size of all films and results that wait on disk.
        free: space left on the disk for results of waiting films; with less, no film is taken.
        film_seconds: longest time for classifying one film.
        first_pause, longest_pause: seconds between two attempts to send; each pause is twice the one before.
        tries: attempts to send a result that its destination refuses, before it becomes a dead letter.
        give_up_hours: until a result that could not be sent becomes a dead letter.
        dead_days: until a dead letter is deleted.
    """

    associations: int = 10
    association_seconds: float = 1800.0
    idle_seconds: float = 60.0
    film: int = 128
    films: int = 5000
    queue: int = 20_480
    free: int = 512
    film_seconds: float = 120.0
    first_pause: float = 1.0
    longest_pause: float = 300.0
    tries: int = 8
    give_up_hours: float = 168.0
    dead_days: float = 30.0

    def __post_init__(self) -> None:
        for name in (one.name for one in dataclasses.fields(self)):
            if name != "free" and not getattr(self, name) > 0:
                raise SettingsInvalid(f"limits.{name} = {getattr(self, name)}: must be above 0")

    def pause(self, failures: int) -> float:
        """Return the seconds until the next attempt to send, after so many failures before this one."""
        return float(min(self.longest_pause, self.first_pause * 2.0 ** min(failures, 32)))


@dataclass(frozen=True, slots=True)
class Tls:
    """Certificates, in PEM: the node's own, and the authority whose certificates peers must show.

    Attributes:
        client_authority: if empty, peers need no certificate; then the list of AE titles is the only check.
    """

    certificate: Path
    key: Path
    client_authority: Path | None = None


@dataclass(frozen=True, slots=True)
class Peer:
    """A system that may send films.

    Attributes:
        ae_title: the calling AE title.
        addresses: addresses from which it calls; empty for any.
    """

    ae_title: str
    addresses: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        _check_ae_title("peer.ae_title", self.ae_title)


@dataclass(frozen=True, slots=True)
class Destination:
    """A destination of results, and of queries for studies: an AE (host, port, ae_title) or a DICOMweb address (url).

    Attributes:
        tls: whether the AE uses TLS; the node then presents its own certificate.
        authority: certificate in PEM that verifies the destination; None takes the system's.
        user, password_variable: HTTP basic authentication; ``password_variable`` names the environment variable with
            the password.
        token_variable: environment variable with a bearer token.
        commitment: whether to request storage commitment if the AE offers it.
        retrieve: how "chestxray dicom batch" fetches films of an AE: "get" (C-GET), or "move" (C-MOVE, for which the
            PACS has to know our host and port).
    """

    name: str
    host: str = ""
    port: int = 104
    ae_title: str = ""
    tls: bool = False
    authority: Path | None = None
    url: str = ""
    user: str = ""
    password_variable: str = ""
    token_variable: str = ""
    commitment: bool = True
    retrieve: str = "get"

    def __post_init__(self) -> None:
        if bool(self.url) == bool(self.host):
            raise SettingsInvalid(f"destination {self.name}: give either host, port and ae_title, or url")
        if self.retrieve not in {"get", "move"}:
            raise SettingsInvalid(f'destination {self.name}: retrieve = {self.retrieve!r}: must be "get" or "move"')
        if self.host:
            _check_ae_title(f"destination {self.name}: ae_title", self.ae_title)
            _check_port(f"destination {self.name}: port", self.port)
        elif urlsplit(self.url).scheme not in {"http", "https"} or not urlsplit(self.url).hostname:
            raise SettingsInvalid(f"destination {self.name}: url = {self.url!r}: not an http or https address")

    def secret(self, variable: str) -> str:
        """Read a secret from the environment. Raises: SettingsInvalid, if it is missing."""
        value = os.environ.get(variable, "")
        if not value:
            raise SettingsInvalid(f"destination {self.name}: the environment variable {variable} is empty")
        return value


@dataclass(frozen=True, slots=True)
class NodeSettings:
    """All settings of a node.

    Attributes:
        ae_title, host, port: of the DICOM receiver; port 0 takes a free one.
        http_port: port of STOW-RS, the metrics and the status page, on the same host; 0 takes a free one.
        folder: for the queue, which holds films until their results were accepted.
        bundle: a folder, or the name of one that comes with the package.
        operating_point: its name; empty takes the bundle's default.
        require_age: whether a film without a stated age is refused; otherwise the report says "age not stated".
        workers: number of processes that classify; 0 for one a core.
        verify_key: public key that must verify the bundle's signature.
        keys_file: API keys for HTTP, as for "chestxray serve".
        research_folder: where de-identified copies of the answered films are kept; None keeps none.
    """

    folder: Path
    ae_title: str = "CHESTXRAY"
    host: str = "127.0.0.1"
    port: int = 11112
    http_port: int = 8104
    bundle: str = DEFAULT
    operating_point: str = ""
    require_age: bool = False
    workers: int = 0
    verify_key: Path | None = None
    keys_file: Path | None = None
    research_folder: Path | None = None
    limits: Limits = field(default_factory=Limits)
    tls: Tls | None = None
    peers: tuple[Peer, ...] = ()
    destinations: tuple[Destination, ...] = ()
    rules: tuple[Rule, ...] = ()

    def __post_init__(self) -> None:
        """Check the settings.

        Raises: SettingsInvalid, also if other machines can call without any check of the caller.
        """
        _check_ae_title("node.ae_title", self.ae_title)
        _check_port("node.port", self.port)
        _check_port("node.http_port", self.http_port)
        _check_names("destination", [destination.name for destination in self.destinations])
        _check_names("rule", [rule.name for rule in self.rules])
        known = [destination.name for destination in self.destinations]
        for rule in self.rules:
            for name in rule.send_to:
                if name not in known:
                    raise SettingsInvalid(f"rule {rule.name}: send_to: {_unknown('destination', name, known)}")
        if not (is_loopback(self.host) or self.peers or (self.tls and self.tls.client_authority)):
            raise SettingsInvalid(
                f"node.host = {self.host!r} lets other machines in, and nothing limits who may call. List the callers "
                "as [[peer]], or set client_authority in [tls]"
            )

    @classmethod
    def from_toml(cls, text: str, source: str) -> NodeSettings:
        """Read the settings. Raises: SettingsInvalid, which names the file and the key."""
        try:
            raw = tomllib.loads(text)
            _check_keys(raw, ("node", "limits", "tls", "peer", "destination", "rule"), "table")
            node = dict(raw.get("node", {}))
            _check_keys(node, [name for name in _fields(cls) if name not in _TABLES], "key of [node]")
            tables: dict[str, Any] = {
                "limits": _filled(Limits, raw.get("limits", {}), "limits"),
                "tls": _filled(Tls, raw["tls"], "tls") if "tls" in raw else None,
                "peers": _listed(Peer, raw, "peer"),
                "destinations": _listed(Destination, raw, "destination"),
                "rules": _listed(Rule, raw, "rule"),
            }
            return _filled(cls, node, "node", tables)
        except tomllib.TOMLDecodeError as error:
            raise SettingsInvalid(f"{source}: not TOML ({error})") from error
        except SettingsInvalid as error:
            raise SettingsInvalid(f"{source}: {error}") from None

    @classmethod
    def read(cls, path: Path) -> NodeSettings:
        """Read a file; paths in it are relative to its folder. Raises: SettingsInvalid."""
        try:
            text = read_text(path).decode("utf-8")
        except (OSError, ValueError) as error:
            fact = (error.strerror or "no file") if isinstance(error, OSError) else "not text in UTF-8"
            raise SettingsInvalid(f"{path}: no settings of a node ({fact}). Give the TOML file of the node") from error
        settings = cls.from_toml(text, str(path))
        base = path.parent.resolve()
        return _with_base(settings, base)

    def destination(self, name: str) -> Destination:
        """Find a destination by its name. Raises: SettingsInvalid, which names the nearest one."""
        for destination in self.destinations:
            if destination.name == name:
                return destination
        raise SettingsInvalid(_unknown("destination", name, [one.name for one in self.destinations]))


_TABLES: Final = frozenset({"limits", "tls", "peers", "destinations", "rules"})
Settings = TypeVar("Settings")


def _fields(cls: type) -> list[str]:
    return [one.name for one in dataclasses.fields(cls)]


def _listed(cls: type[Settings], raw: Mapping[str, Any], name: str) -> tuple[Settings, ...]:
    tables = raw.get(name, [])
    if not isinstance(tables, list):
        raise SettingsInvalid(f"[{name}]: write it as [[{name}]], once for each")
    return tuple(_filled(cls, table, f"{name} {place}") for place, table in enumerate(tables, start=1))


def _filled(cls: type[Settings], raw: Any, where: str, ready: Mapping[str, Any] | None = None) -> Settings:
    if not isinstance(raw, dict):
        raise SettingsInvalid(f"{where}: must be a table")
    _check_keys(raw, _fields(cls), f"key of {where}")
    kinds = get_type_hints(cls)
    values = {name: _value(f"{where}.{name}", value, kinds[name]) for name, value in raw.items()} | dict(ready or {})
    missing = [
        one.name
        for one in dataclasses.fields(cls)  # type: ignore[arg-type]
        if one.default is dataclasses.MISSING and one.default_factory is dataclasses.MISSING and one.name not in values
    ]
    if missing:
        raise SettingsInvalid(f"{where}: {', '.join(missing)} must be given")
    return cls(**values)


def _value(where: str, value: Any, kind: Any) -> Any:
    if get_origin(kind) in {Union, UnionType}:
        (kind,) = (one for one in get_args(kind) if one is not type(None))
    if get_origin(kind) is tuple:
        inner = get_args(kind)[0]
        values = value if isinstance(value, list) else [value]
        return tuple(_value(where, one, inner) for one in values)
    if kind is Path and isinstance(value, str) and value:
        return Path(value)
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if kind is not Path and isinstance(value, kind) and not (kind is int and isinstance(value, bool)):
        return value
    raise SettingsInvalid(f"{where} = {value!r}: must be {_KINDS[kind]}")


_KINDS: Final[Mapping[Any, str]] = {
    str: "text",
    Path: "a path",
    int: "a whole number",
    float: "a number",
    bool: "true or false",
}


def _with_base(settings: NodeSettings, base: Path) -> NodeSettings:
    def based(value: Any) -> Any:
        if isinstance(value, Path):
            return base / value.expanduser()
        if isinstance(value, Tls | Destination):
            return dataclasses.replace(value, **{name: based(getattr(value, name)) for name in _fields(type(value))})
        return tuple(map(based, value)) if isinstance(value, tuple) else value

    values = {name: based(getattr(settings, name)) for name in _fields(NodeSettings)}
    return NodeSettings(**values)


def _check_keys(raw: Mapping[str, Any], known: list[str] | tuple[str, ...], what: str) -> None:
    for name in raw:
        if name not in known:
            raise SettingsInvalid(_unknown(what, name, known))


def _unknown(what: str, name: str, known: list[str] | tuple[str, ...]) -> str:
    nearest = difflib.get_close_matches(name, known, n=1, cutoff=0.0)
    return f"there is no {what} named {name!r}; " + (f"the nearest is {nearest[0]!r}" if nearest else "there is none")


def _check_names(what: str, names: list[str]) -> None:
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise SettingsInvalid(f"two {what}s are named {twice!r}; give each a name of its own")


def _check_ae_title(where: str, title: str) -> None:
    printable = title.isascii() and title.isprintable() and "\\" not in title
    if not (title.strip() and len(title) <= AE_TITLE_LENGTH and printable):
        raise SettingsInvalid(f"{where} = {title!r}: 1 to {AE_TITLE_LENGTH} ASCII characters without a backslash")


def _check_port(where: str, port: int) -> None:
    if not 0 <= port <= HIGHEST_PORT:
        raise SettingsInvalid(f"{where} = {port}: a port is 0 to {HIGHEST_PORT}")


def tls_reason_of(error: OSError) -> str:
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
        on_fault(tls_reason_of(error))
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
