"""Copies of films: near-duplicates among films, and the films on which a model was trained.

A near-duplicate is the same exposure saved again: rescaled, recompressed, brightened, turned by a degree, cut
by a hundredth at its edges. Its hash differs in a few of 512 bits. ``NEAR`` was chosen on the published
training films, squeezed to 224 x 224 (5,190 different files):

    pairs of films within          0      16      32      40      48      56      64 bits
    13,459,053 of two patients     0       0       0       0       0       1       2
         6,402 of one patient      0       0       0       0       0       0       0

    altered copies: median and largest distance to their source          films    within 40
    full resolution against 224 x 224 (the published original)   8, 19     119         119
    half the size                                                9, 19     519         519
    JPEG at quality 30                                          10, 39     519         519
    darker, brighter (gamma 1.4, gamma 0.7)                    4, 3, 15    1,038       1,038
    turned by 1 degree                                          26, 41     519         518
    1% cut off each edge                                        28, 50     519         506

So a limit of 40 bits gives no false pair of two patients on these films, and finds the usual changes of copies. The
usual 64-bit hash cannot do this: 718 pairs of films of different patients share all of its bits, and 279,218 pairs
differ in at most 4.

A model that is evaluated on films that it was trained on looks perfect. So a bundle carries the hashes of its training
films, in a form that names no patient, and the perceptual hashes by which copies are recognised.
"""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Final, Self

import numpy as np

from chestxray.arrays import Float32Array, UInt8Array, UInt64Array
from chestxray.errors import Leakage
from chestxray.images.quality import HASH_BITS
from chestxray.schema import Film

NEAR: Final = 40  # bits of 512; see the table above

_HASH: Final = re.compile(rf"[0-9a-f]{{{HASH_BITS // 4}}}")
_AXES: Final = 96  # axes of the projection in which hashes are compared first; 1 pair in 2,700 is then compared in full
_LEARNT_FROM: Final = 4096  # hashes from which the axes are chosen
_AT_ONCE: Final = 2**23  # pairs; limits the memory to about 64 MB
_SLACK: Final = 0.5  # bits; the sums of the projection are rounded, the distance in full is not


def near_pairs(hashes: Iterable[str], distance: int = NEAR) -> list[tuple[str, str]]:
    """Return every pair of different hashes that differ in at most ``distance`` bits, sorted.

    The number of differing bits is a squared length, and a projection never lengthens. So the hashes are first compared
    in a projection on 96 axes, where one matrix product compares thousands, and only pairs that are close there are
    compared bit by bit: nothing is missed.

    Args:
        hashes: as ``perceptual_hash`` returns them; empty ones and those of another length are skipped.
        distance: in bits.
    """
    return list(pairs_among(tuple(sorted({text for text in hashes if _HASH.fullmatch(text)})), distance))


@lru_cache(maxsize=1)  # a split asks several times for the same films
def pairs_among(distinct: tuple[str, ...], distance: int) -> tuple[tuple[str, str], ...]:
    """Return the pairs as ``near_pairs`` does, for hashes that are sorted and unique."""
    if len(distinct) < 2:  # noqa: PLR2004 - a pair
        return ()
    data = np.frombuffer(bytes.fromhex("".join(distinct)), dtype=np.uint8).reshape(len(distinct), -1)
    words: UInt64Array = data.view(np.uint64)
    left, right = _shadows(data)
    pairs: list[tuple[str, str]] = []
    rows = max(1, _AT_ONCE // len(distinct))
    for start in range(0, len(distinct), rows):
        squared = left[start : start + rows] @ right[start:].T
        ones, others = np.divmod(np.flatnonzero(squared <= distance + _SLACK), squared.shape[1])
        later = others > ones
        ones, others = ones[later] + start, others[later] + start
        apart = np.bitwise_count(words[ones] ^ words[others]).sum(axis=1)
        found = apart <= distance
        pairs += [
            (distinct[one], distinct[other])
            for one, other in zip(ones[found].tolist(), others[found].tolist(), strict=True)
        ]
    return tuple(pairs)


def _shadows(data: UInt8Array) -> tuple[Float32Array, Float32Array]:
    """Project hashes on the axes of largest variance, such that ``left @ right.T`` is the squared distance.

    Args:
        data: shape (n, bytes).

    Returns: two arrays of shape (n, 98): -2 x, |x|^2, 1 and x, 1, |x|^2.
    """
    sample = np.unpackbits(data[:: -(-len(data) // _LEARNT_FROM)], axis=1).astype(np.float32)
    centre = sample.mean(axis=0)
    _, axes = np.linalg.eigh((sample - centre).T @ (sample - centre))
    axes = axes[:, -_AXES:].astype(np.float32)
    parts = [
        (np.unpackbits(part, axis=1).astype(np.float32) - centre) @ axes
        for part in np.array_split(data, -(-len(data) // _LEARNT_FROM))
    ]
    x: Float32Array = np.concatenate(parts)
    lengths = np.square(x).sum(axis=1, keepdims=True)
    ones = np.ones_like(lengths)
    return np.hstack([-2 * x, lengths, ones]), np.hstack([x, ones, lengths])


TRAINING_FILMS: Final = "training_films.json"
VERSION: Final = 1
_SHA_BYTES: Final = 16  # bytes of each SHA-256: a film is confused with another at a probability of one in 2**100
_HASH_BYTES: Final = HASH_BITS // 8
_PAIRS_AT_ONCE: Final = 2**22  # pairs of hashes; limits the memory to some hundred megabytes
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
        rows = max(1, _PAIRS_AT_ONCE // len(known))
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
