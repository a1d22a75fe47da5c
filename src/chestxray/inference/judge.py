"""Films in groups through the corridor, on every core: each process reads and scores, so that none waits.

A film that cannot be read or must not be judged is an answer with a reason, never the end of the run.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import lru_cache, partial
from itertools import chain
from pathlib import Path
from typing import Final

import numpy as np
import onnxruntime

from chestxray.data.films import read_film
from chestxray.data.parallel import WORTH_A_POOL, pooled
from chestxray.data.reuse import decoder
from chestxray.errors import DataError, FilmError, MissingExtra
from chestxray.inference.bundle import Bundle
from chestxray.inference.journal import Judged
from chestxray.inference.predictor import Predictor
from chestxray.inference.prepare import Prepared
from chestxray.machine import cores
from chestxray.schema import BundleInfo, Film, Gate

GROUP: Final = 32  # films a forward pass; beyond that nothing is gained
BUNDLES_LOADED: Final = 2  # at a time in one process: one, and one that it is compared with
_ANONYMOUS: Final = "film"  # what a film is called while it is read: copies of it share one answer

# What of a bundle does not touch the logit: it is applied to the answers when they are written, or only read by people.
_APPLIED_LATER: Final = frozenset(
    {"temperature", "bias", "operating_points", "default_operating_point", "name", "created", "intended_use", "notice"}
)
READ_BY_PEOPLE: Final = frozenset({"MODEL_CARD.md", "metrics.json", "weights.safetensors"})

ENDED: Final = "the process that read it came to an end: too little memory, or a fault of a decoder"

Group = Sequence[Film]


def judge_of(bundle: Bundle) -> str:
    """SHA-256 over everything that an answer depends on but for the film: graph, gate, preprocessing, libraries."""
    description = json.loads(bundle.info.to_json())
    used = {name: value for name, value in description.items() if name not in _APPLIED_LATER}
    used["files"] = {name: digest for name, digest in used["files"].items() if name not in READ_BY_PEOPLE}
    used |= {"decoder": decoder(), "onnxruntime": onnxruntime.__version__}
    return hashlib.sha256(json.dumps(used, sort_keys=True).encode()).hexdigest()


def judge_groups(
    bundle: Bundle, groups: Iterable[Group], films: int, workers: int | None = None
) -> Iterator[list[Judged]]:
    """Judge films, group by group, in order.

    Args:
        bundle: loaded once in each process.
        groups: films that share a forward pass; taken as the work goes.
        films: how many there are in all: for a handful, no process is started.
        workers: processes; by default one a core.

    Raises: BundleInvalid; DataError, where no process lives long enough to answer.
    """
    judge = partial(judge_group, folder=bundle.folder, description=bundle.info.to_json())
    workers = workers or cores()
    if workers == 1 or films < WORTH_A_POOL:
        return map(judge, groups)
    return pooled(judge, groups, workers, lost=partial(judge_apart, judge))


def judge_group(group: Group, folder: Path, description: str) -> list[Judged]:
    """Read and score some films in this process, on one thread.

    Args:
        group: one forward pass.
        folder: of the bundle.
        description: its ``bundle.json``, so that a folder that changed on the way is refused.
    """
    predictor = _predictor(folder, description)
    prepared = [_prepared(film, predictor) for film in group]
    planes = [ready.plane for ready in prepared if ready.plane is not None]
    logits = iter(predictor.logits(np.stack(planes))[0].tolist() if planes else ())
    return [
        Judged(ready.sha256, next(logits) if ready.plane is not None else None, ready.gate.reason, ready.gate.score)
        for ready in prepared
    ]


@lru_cache(BUNDLES_LOADED)
def _predictor(folder: Path, description: str) -> Predictor:
    return Predictor(Bundle(folder, BundleInfo.from_json(description)), threads=1)


def _prepared(film: Film, predictor: Predictor) -> Prepared:
    try:
        data = read_film(film)
    except OSError as error:
        return _unread("", f"cannot be opened ({error.strerror})")
    except MissingExtra as error:
        return _unread("", str(error))
    try:
        return predictor.prepare(data, _ANONYMOUS)
    except FilmError as error:
        return _unread(hashlib.sha256(data).hexdigest(), str(error).removeprefix(f"{_ANONYMOUS}: "))
    except MissingExtra as error:  # no answer to keep: the film can be judged once the extra is there
        return _unread("", str(error))


def _unread(sha256: str, reason: str) -> Prepared:
    return Prepared(sha256, Gate(accepted=False, reason=reason), (0, 0), None)


def judge_apart(judge: Callable[[Group], list[Judged]], group: Group) -> list[Judged]:
    """Judge a group that ended its process, film by film: all but the one that is to blame are judged after all.

    Raises: DataError, where every film of several ends its process, so that the films are not to blame.
    """
    if len(group) == 1:
        return [Judged("", None, ENDED)]
    alone = ((film,) for film in group)
    found = list(chain.from_iterable(pooled(judge, alone, 1, lost=partial(judge_apart, judge))))
    if all(film.reason == ENDED for film in found):
        raise DataError("the processes that judge films end before they answer: is there memory enough for the bundle?")
    return found
