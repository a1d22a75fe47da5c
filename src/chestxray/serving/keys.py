"""Who may call: keys that callers send and the service knows by their SHA-256 alone.

A key is 256 random bits, made here, so that one plain hash protects it: there is no dictionary of such keys
to try, which is what slow hashes of passwords are for.
"""

from __future__ import annotations

import hashlib
import hmac
import os
import re
import secrets
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from starlette.datastructures import Headers

from chestxray.errors import UsageError

VARIABLE: Final = "CHESTXRAY_API_KEYS"  # environment variable: lines of a key file, or joined by commas

_LINE: Final = re.compile(r"(?P<hash>[0-9a-f]{64})\s+(?P<name>[A-Za-z0-9_.-]{1,40})")


@dataclass(frozen=True, slots=True)
class KeyRing:
    """The hashes of the keys that open this service, by the name of their holder; without any it is open.

    Attributes:
        hashes: SHA-256 in hexadecimal, lower case; kept out of ``repr``.
    """

    hashes: Mapping[str, str] = field(default_factory=dict, repr=False)

    def __bool__(self) -> bool:
        return bool(self.hashes)

    @classmethod
    def from_text(cls, text: str, source: str) -> KeyRing:
        """Read lines of ``HASH NAME``; "#" begins a remark. Raises: UsageError, which never quotes the line."""
        hashes = {}
        for number, line in enumerate(re.split(r"[\n,]", text), start=1):
            entry = line.partition("#")[0].strip()
            if not entry:
                continue
            match = _LINE.fullmatch(entry)
            if match is None:
                raise UsageError(
                    f'{source}, entry {number}: not "SHA-256 NAME". Make a key and its entry with "chestxray key NAME"'
                )
            if match["name"] in hashes:
                raise UsageError(f"{source}, entry {number}: the name {match['name']} occurs twice. Give each its own")
            hashes[match["name"]] = match["hash"]
        return cls(hashes)

    @classmethod
    def gather(cls, file: Path | None) -> KeyRing:
        """From a file, or else from the environment. Raises: UsageError."""
        if file is None:
            return cls.from_text(os.environ.get(VARIABLE, ""), VARIABLE)
        try:
            ring = cls.from_text(file.read_text(encoding="utf-8"), str(file))
        except (OSError, UnicodeDecodeError) as error:
            raise UsageError(f"{file}: the file of keys cannot be read ({error})") from error
        if not ring:
            raise UsageError(f'{file}: holds no key. Make one and its entry with "chestxray key NAME"')
        return ring

    def holder_of(self, key: str) -> str | None:
        """Whose key it is. Takes the same time for each that it is not."""
        found = None
        digest = _hash(key)
        for name, known in self.hashes.items():
            if hmac.compare_digest(digest, known):
                found = name
        return found

    def holder(self, headers: Headers) -> str | None:
        """Whose key a request carries: ``Authorization: Bearer KEY`` or ``X-API-Key: KEY``."""
        scheme, _, bearer = headers.get("authorization", "").partition(" ")
        key = headers.get("x-api-key") or (bearer.strip() if scheme.lower() == "bearer" else "")
        return self.holder_of(key) if key else None


def new_key(name: str) -> tuple[str, str]:
    """A fresh key, and the entry under which a service knows it. Raises: UsageError."""
    key = f"cx_{secrets.token_urlsafe(32)}"
    entry = f"{_hash(key)} {name}"
    if not _LINE.fullmatch(entry):
        raise UsageError(f"{name!r}: a name has 1 to 40 letters, digits, dots, dashes and underscores")
    return key, entry


def _hash(key: str) -> str:
    return hashlib.sha256(key.encode("utf-8", "surrogateescape")).hexdigest()
