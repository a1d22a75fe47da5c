"""The gate of a bundle, fitted on the training films of a pack: what a frontal chest film looks like.

Three quarters of the training films' patients, and drawn chests, are what the gate has to accept, as they are and
shifted; what it has to refuse is made of the same films (turned, inverted, cut) and drawn. The other quarter sets the
limits. Nothing of validation or test is looked at.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Final, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import nn
from torch.nn import functional

from chestxray.data.pack import Pack
from chestxray.files import write_atomically
from chestxray.inference.ood import GATE, REFUSED_ABOVE, Float32Array, OODDetector, Share, coded, thumbnail
from chestxray.schema import Split
from chestxray.synthetic.ood_negatives import (
    DRAWINGS,
    SPOILT,
    Pixels,
    Random,
    drawing,
    perturbed,
    shrunk,
    synthetic_films,
)

SEED: Final = 0
MOST: Final = 3000  # training films that are looked at: more move no limit, and the fit takes longer
FEW: Final = 200  # training films; below that none is kept back to set the limits
KEPT_BACK: Final = 4  # every so many patients set the limits

AXES: Final = 48  # hold 91% of the published films' variance, and keep the file below 100 kB
HIDDEN: Final = 48
PASSES: Final = 25
BATCH: Final = 256
LEARNING_RATE: Final = 3e-3
WEIGHT_DECAY: Final = 1e-3

SYNTHETIC_FILMS: Final = (32, 8)  # drawn chests: to fit on, and to set the limits by
SHIFTED: Final = 1500  # shifted copies that the fit sees at least ...
SHIFTS: Final = 2  # ... of each film, where there are enough
SYNTHETIC_SHIFTS: Final = 16  # of each synthetic film, so that they are no oddities among thousands of films
FEWEST_REFUSED: Final = 1500  # pictures of each sort; films are enough from that number on

# Beyond each limit lie at most these shares of the films that were kept back, as they are and shifted.
REFUSED_OF_FILMS: Final = 0.003
REFUSED_OF_SHIFTED: Final = 0.007

# Where none was kept back, none of the fitted films may lie beyond, and the limits are moved so far times FEW for each
# film: films that were fitted lie nearer than others will, the more so the fewer they are.
FURTHER: Final = np.array([2.0, 0.1, 0.1])  # log-odds, and shares of the two distances

SCORE_LIMITS: Final = tuple(step / 20 for step in range(1, 20))  # of the curve


class Pictures(NamedTuple):
    """Films and drawn chests, to fit on and kept back; of the shape that ``impostors`` gives."""

    films: Sequence[Pixels]
    synthetic_films: Sequence[Pixels]


def write_gate(pack: Pack, folder: Path) -> None:
    """Fit the gate to the training films of a pack, and write ``gate.json`` into a folder."""
    rows = _rows(pack)
    likeness = fit_detector([pack.images[row] for row in rows], [pack.films[row].patient_id for row in rows])
    write_atomically(folder / GATE, likeness.to_json().encode())


def _rows(pack: Pack) -> npt.NDArray[np.intp]:
    rows = pack.rows(Split.TRAIN)
    return np.sort(np.random.default_rng(SEED).permutation(rows)[:MOST])


def fit_detector(planes: Sequence[Pixels], patients: Sequence[str]) -> OODDetector:
    """What the films have in common, and how far they lie apart. The same films give the same gate.

    Args:
        planes: training films as the network sees them, each (height, width), uint8.
        patients: whose they are; a film of nobody stands for itself.
    """
    rng = np.random.default_rng(SEED)
    films = [shrunk(plane) for plane in planes]
    back = _kept_back(patients)
    drawn = synthetic_films(sum(SYNTHETIC_FILMS), SEED)
    fitted = Pictures([film for film, kept in zip(films, back, strict=True) if not kept], drawn[: SYNTHETIC_FILMS[0]])
    kept = Pictures([film for film, kept in zip(films, back, strict=True) if kept], drawn[SYNTHETIC_FILMS[0] :])
    likeness = _fitted(fitted, rng)
    scarce = not kept.films
    unseen = Pictures(fitted.films, kept.synthetic_films) if scarce else kept
    kinds = _kinds(unseen, rng)
    limited = dataclasses.replace(likeness, limits=_limits(likeness, unseen.synthetic_films, kinds, wide=scarce))
    return _measured(_stored(limited), kinds)


def _kept_back(patients: Sequence[str]) -> list[bool]:
    """Which films set the limits: by a hash of the patient, so that a patient stays on one side. None, if few."""
    names = [patient or str(row) for row, patient in enumerate(patients)]
    chosen = [hashlib.sha256(name.encode()).digest()[0] % KEPT_BACK == 0 for name in names]
    return chosen if len(names) >= FEW and not all(chosen) else [False] * len(names)


def _stored(likeness: OODDetector) -> OODDetector:
    """The gate as it will be read back, 16 bits a number: what is measured is what will be used."""
    return OODDetector.from_json(likeness.to_json())


# --------------------------------------------------------------------------- the fit


def _fitted(pictures: Pictures, rng: Random) -> OODDetector:
    """Axes and network; no limits yet."""
    shifts = max(SHIFTS, SHIFTED // len(pictures.films))
    accepted = _thumbnails(
        [
            *pictures.films,
            *(perturbed(film, rng) for film in pictures.films for _ in range(shifts)),
            *pictures.synthetic_films,
            *(perturbed(film, rng) for film in pictures.synthetic_films for _ in range(SYNTHETIC_SHIFTS)),
        ]
    )
    centre = accepted.mean(axis=0)
    variances, directions = np.linalg.eigh(np.cov((accepted - centre).T))
    axes = directions[:, : -AXES - 1 : -1].astype(np.float32)
    deviations = np.sqrt(variances[: -AXES - 1 : -1].clip(1e-6)).astype(np.float32)
    refused = _thumbnails(_impostors(pictures, rng))
    seen = coded(np.concatenate([accepted, refused]), centre, axes, deviations)[0]
    wrong = np.repeat([0.0, 1.0], [len(accepted), len(refused)])
    hidden, hidden_bias, output, output_bias = _network(seen, wrong)
    return OODDetector(
        centre, axes, deviations, hidden, hidden_bias, output, output_bias, np.ones(3, dtype=np.float32), refused={}
    )


def _impostors(pictures: Pictures, rng: Random) -> Iterable[Pixels]:
    """Spoilt films, each kind as often as the others, spoilt synthetic films, and drawings."""
    count = max(FEWEST_REFUSED, len(pictures.films))
    spoilings = [spoil for ways in SPOILT.values() for spoil in ways]
    for number in range(count + count // 3):
        chests = pictures.films if number % 10 else pictures.synthetic_films
        chest = perturbed(chests[int(rng.integers(len(chests)))], rng)
        yield spoilings[number % len(spoilings)](chest, rng)
    for number in range(count):
        yield drawing(number, rng)


def _thumbnails(pictures: Iterable[Pixels]) -> Float32Array:
    """Shape (n, p), as the gate sees them."""
    return np.stack([thumbnail(np.ascontiguousarray(picture)) for picture in pictures])


def _network(
    seen: Float32Array, wrong: npt.NDArray[np.float64]
) -> tuple[Float32Array, Float32Array, Float32Array, Float32Array]:
    """One hidden layer that tells what is wrong (1) from what is right (0).

    Args:
        seen: shape (n, k + 1).
        wrong: shape (n,).

    Returns: weights and biases of the hidden layer and of the output, as ``OODDetector`` has them.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(SEED)
        network = nn.Sequential(nn.Linear(seen.shape[1], HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, 1))
        optimiser = torch.optim.AdamW(network.parameters(), LEARNING_RATE, weight_decay=WEIGHT_DECAY)
        batches = -(-len(seen) // BATCH)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, PASSES * batches)
        inputs, targets = torch.from_numpy(seen), torch.from_numpy(wrong.astype(np.float32))
        for _ in range(PASSES):
            for rows in torch.split(torch.randperm(len(inputs)), BATCH):
                loss = functional.binary_cross_entropy_with_logits(network(inputs[rows])[:, 0], targets[rows])
                optimiser.zero_grad()
                loss.backward()  # type: ignore[no-untyped-call]  # torch's own gap
                optimiser.step()
                schedule.step()
    hidden, hidden_bias, output, output_bias = (part.detach().numpy() for part in network.parameters())
    return hidden.T, hidden_bias, output[0], output_bias


# --------------------------------------------------------------------------- limits and figures


def _kinds(pictures: Pictures, rng: Random) -> dict[str, Float32Array]:
    """Thumbnails of pictures that the fit did not see, by kind: films first, then what has to be refused."""
    films = pictures.films
    kinds = {"films": films, "shifted films": [perturbed(film, rng) for film in films]}
    for kind, ways in SPOILT.items():
        kinds[kind] = [ways[row % len(ways)](film, rng) for row, film in enumerate(films)]
    kinds[DRAWINGS] = [drawing(number, rng) for number in range(len(films))]
    return {kind: _thumbnails(some) for kind, some in kinds.items()}


def _limits(
    likeness: OODDetector, drawn: Sequence[Pixels], kinds: dict[str, Float32Array], *, wide: bool
) -> Float32Array:
    """Of the three distances: so few films lie beyond each, and no drawn chest.

    Args:
        wide: no film was kept back; these are those that were fitted.
    """
    quantiles = [
        np.quantile(likeness.distances(kinds["films"]), 1.0 if wide else 1.0 - REFUSED_OF_FILMS, axis=0),
        np.quantile(likeness.distances(kinds["shifted films"]), 1.0 - REFUSED_OF_SHIFTED, axis=0),
        likeness.distances(_thumbnails(drawn)).max(axis=0),
    ]
    limits: Float32Array = np.max(quantiles, axis=0)
    if wide:
        limits = limits + FEW / len(kinds["films"]) * FURTHER * np.array([1.0, *limits[1:]])
    return limits.astype(np.float32)


def _measured(likeness: OODDetector, kinds: dict[str, Float32Array]) -> OODDetector:
    """With the counts and the curve of what it refuses."""
    scores = {kind: likeness.scores(thumbnails) for kind, thumbnails in kinds.items()}
    return dataclasses.replace(
        likeness,
        refused={kind: Share(int(np.sum(of > REFUSED_ABOVE)), len(of)) for kind, of in scores.items()},
        curve_limits=SCORE_LIMITS,
        curve={kind: tuple(round(float(np.mean(of > at)), 4) for at in SCORE_LIMITS) for kind, of in scores.items()},
    )
