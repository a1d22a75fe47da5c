"""How much the service takes on, and whom it answers."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Final

from chestxray.data.parallel import cores
from chestxray.errors import UsageError
from chestxray.serving.keys import KeyRing
from chestxray.serving.pool import DecoderLimits
from chestxray.serving.security import HostRule
from chestxray.serving.upload import MEBIBYTE

_ORIGIN: Final = re.compile(r"https?://(\[[0-9a-f:.]+\]|[a-z0-9.-]+)(:\d{1,5})?")


@dataclass(frozen=True, slots=True)
class ServiceSettings:
    """The limits of one service, and the names and keys that open it.

    Attributes:
        max_body: bytes of one film.
        body_seconds: in which a body has to arrive.
        max_bodies: bytes of all the bodies that are arriving or waiting together.
        workers: decoding processes.
        waiting: films that may wait beyond these; the next is refused with 503.
        decoding: what decoding one film may cost.
        hosts: what the Host header may say.
        keys: one of them is needed, where there are any.
        cors_origins: other origins whose pages may call, each exactly as browsers send it: "https://pacs.example".
        transform: whether this is a SageMaker batch transform, whose answers are lines.
    """

    max_body: int = 20 * MEBIBYTE
    body_seconds: float = 30.0
    max_bodies: int = 512 * MEBIBYTE
    workers: int = field(default_factory=lambda: min(cores(), 4))
    waiting: int = 16
    decoding: DecoderLimits = field(default_factory=DecoderLimits)
    hosts: HostRule = field(default_factory=HostRule)
    keys: KeyRing = field(default_factory=KeyRing)
    cors_origins: tuple[str, ...] = ()
    transform: bool = False

    def __post_init__(self) -> None:
        """Raises: UsageError, where an origin is not exact."""
        for origin in self.cors_origins:
            if not _ORIGIN.fullmatch(origin):
                raise UsageError(
                    f"--cors-origin {origin}: not an exact origin. Give scheme, name and port as browsers send them: "
                    "https://pacs.example"
                )
