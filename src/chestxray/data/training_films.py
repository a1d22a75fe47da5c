"""The films on which a model was trained, in a small form that names no patient and recognises copies.

A model that is evaluated on films that it was trained on looks perfect. So a bundle carries the hashes of its training
films, and the perceptual hashes by which copies at another size, or saved again, are known (see ``data.dedup``).
"""

from __future__ import annotations

import base64
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final, Self

import numpy as np

from chestxray.arrays import UInt64Array
from chestxray.data.dedup import NEAR
from chestxray.errors import Leakage
from chestxray.images.quality import HASH_BITS
from chestxray.schema import Film

TRAINING_FILMS: Final = "training_films.json"
VERSION: Final = 1
_SHA_BYTES: Final = 16  # bytes of each SHA-256: a film is confused with another at a probability of one in 2**100
_HASH_BYTES: Final = HASH_BITS // 8
_AT_ONCE: Final = 2**22  # pairs of hashes; limits the memory to some hundred megabytes
_NAMED: Final = 3


@dataclass(frozen=True, slots=True)
class TrainingFilms:
    """The films of a training.

    Attributes:
        sha256: the first 16 bytes of each SHA-256, sorted.
        hashes: perceptual hashes, sorted, each once.
    """

    sha256: tuple[bytes, ...]
    hashes: tuple[bytes, ...]

    @classmethod
    def of(cls, films: Iterable[Film]) -> Self:
        """Record these films."""
        rows = list(films)
        return cls(
            tuple(sorted({bytes.fromhex(film.sha256)[:_SHA_BYTES] for film in rows if film.sha256})),
            tuple(sorted({bytes.fromhex(film.perceptual_hash) for film in rows if film.perceptual_hash})),
        )

    def to_json(self) -> str:
        """Return the films as JSON. Law: ``TrainingFilms.from_json(f.to_json()) == f``."""
        return json.dumps(
            {
                "version": VERSION,
                "sha256": base64.b64encode(b"".join(self.sha256)).decode(),
                "perceptual_hashes": base64.b64encode(b"".join(self.hashes)).decode(),
            },
            indent=2,
        )

    @classmethod
    def from_json(cls, text: str) -> Self:
        """Read the films from JSON. Raises: ValueError, KeyError, TypeError, if it is no such list."""
        raw = json.loads(text)
        if raw["version"] != VERSION:
            raise ValueError(f"version {raw['version']}; this program reads {VERSION}")
        return cls(_cut(raw["sha256"], _SHA_BYTES), _cut(raw["perceptual_hashes"], _HASH_BYTES))

    def among(self, films: Sequence[Film]) -> tuple[tuple[Film, ...], tuple[Film, ...]]:
        """Find films that were trained on: the same files, and other files of nearly the same picture."""
        known = set(self.sha256)
        same = [film.sha256 != "" and bytes.fromhex(film.sha256)[:_SHA_BYTES] in known for film in films]
        near = self._near(films)
        return (
            tuple(film for film, found in zip(films, same, strict=True) if found),
            tuple(film for film, one, other in zip(films, same, near, strict=True) if other and not one),
        )

    def _near(self, films: Sequence[Film]) -> list[bool]:
        found = [False] * len(films)
        places = [index for index, film in enumerate(films) if len(film.perceptual_hash) == 2 * _HASH_BYTES]
        if not places or not self.hashes:
            return found
        known = _words(self.hashes)
        asked = _words([bytes.fromhex(films[place].perceptual_hash) for place in places])
        rows = max(1, _AT_ONCE // len(known))
        for start in range(0, len(asked), rows):
            apart = np.zeros((len(asked[start : start + rows]), len(known)), dtype=np.uint16)
            for word in range(known.shape[1]):
                apart += np.bitwise_count(asked[start : start + rows, word, None] ^ known[None, :, word])
            for place, nearest in zip(places[start : start + rows], apart.min(axis=1).tolist(), strict=True):
                found[place] = nearest <= NEAR
        return found


def refuse_training_films(known: TrainingFilms, films: Sequence[Film], model: str) -> None:
    """Stop if a model would be evaluated on films on which it was trained.

    Raises: Leakage, which names some of them.
    """
    same, near = known.among(films)
    if not same and not near:
        return
    named = ", ".join(film.path for film in (*same, *near)[:_NAMED])
    copies = f", {len(near):,} of them as copies (another size, or saved again)" if near else ""
    raise Leakage(
        f"{model} was trained on {len(same) + len(near):,} of these {len(films):,} films{copies}, such as {named}: "
        "figures on them would say nothing. Give films that it has not seen, or train a model of your own and evaluate "
        "it on its test split"
    )


def _cut(text: str, length: int) -> tuple[bytes, ...]:
    data = base64.b64decode(text, validate=True)
    if len(data) % length:
        raise ValueError(f"{len(data)} bytes are no hashes of {length}")
    return tuple(data[start : start + length] for start in range(0, len(data), length))


def _words(hashes: Sequence[bytes]) -> UInt64Array:
    data: UInt64Array = np.frombuffer(b"".join(hashes), dtype=np.uint64).reshape(len(hashes), -1)
    return data
