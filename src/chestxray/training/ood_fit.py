"""The gate of a bundle, fitted to the training films of a pack: it learns what a frontal chest film looks like.

The gate has to accept the films of three quarters of the training patients, and synthetic films, unchanged and shifted.
It has to refuse pictures made from the same films (turned, inverted, cut, seen from the side), generated pictures, and
given pictures that this bundle must not answer, such as films of patients for whom it is not meant. The other quarter,
of films and of given pictures, sets the limits and is counted. No validation or test film is used in the fit.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from chestxray.arrays import Float32Array, Float64Array, IndexArray, Int64Array, Random, UInt8Array
from chestxray.data.collect import collect
from chestxray.data.pack import Pack
from chestxray.data.sources import read_film
from chestxray.errors import FilmError, SourceInvalid
from chestxray.files import write_atomically
from chestxray.images.preprocess import levelled, preprocess
from chestxray.inference.ood import (
    GATE_JSON,
    KERNELS,
    PICTURE_SIDE,
    REFUSED_ABOVE,
    KindClassifier,
    OODDetector,
    RefusedCount,
    coded,
    picture,
    thumbnail,
)
from chestxray.schema import Levels, Preprocessing, Split
from chestxray.synthetic.ood_negatives import (
    DRAWN,
    SPOILT,
    drawing,
    perturbed,
    shrunk,
    synthetic_films,
    with_acquisition_of,
)

SEED: Final = 0
MOST: Final = 3000  # training films that are used: more change no limit and slow the fit down
FEW: Final = 200  # training films; with fewer, none is kept back to set the limits
KEPT_BACK: Final = 4  # every n-th patient, on average, is kept back to set the limits

AXES: Final = 48  # axes hold 91% of the published films' variance and keep the file below 100 kB
HIDDEN: Final = 48
PASSES: Final = 25
BATCH: Final = 256
LEARNING_RATE: Final = 3e-3
WEIGHT_DECAY: Final = 1e-3

SYNTHETIC_FILMS: Final = (32, 8)  # synthetic films: for the fit, and for the limits
SHIFTED: Final = 1500  # least number of shifted copies in the fit ...
SHIFTS_A_FILM: Final = 2  # ... and least number for each film
SYNTHETIC_SHIFTS: Final = 16  # of each synthetic film, so that they are not rare among thousands of films
DRAWN_SHARES: Final = {"photographs, pages and drawings": 1.5, "other parts of the body": 0.3}  # of each kind, per film
# least number of pictures to refuse; with more films than this, as many as there are films
FEWEST_REFUSED: Final = 1500

# At most these fractions of the films that were kept back lie beyond each limit, unchanged and shifted.
REFUSED_OF_FILMS: Final = 0.003
REFUSED_OF_SHIFTED: Final = 0.007

# If no film was kept back, no fitted film may lie beyond, and the limits are widened by this much times FEW / films:
# fitted films lie closer than others will, and the more so the fewer they are.
FURTHER: Final = np.array([2.0, 0.1, 0.1])  # log-odds, and fractions of the two distances

# The convolutional network.
WIDTHS: Final = (12, 24, 48, 64)  # channels after each layer; a picture costs 2.2 million multiplications
LOOKS_PASSES: Final = 24
LOOKS_RATE: Final = 3e-3
LOOKS_DECAY: Final = 1e-2
REDRAWN: Final = 2  # passes over the same pictures; then all are shifted, modified and generated again
PLAIN: Final = 0.3  # of the films are shown unchanged
MADE: Final = 240  # pictures of each generated kind in a pass
GIVEN: Final = 2400  # ... and of each given kind
# of the kept-back films of each class, at most: neither class is refused more often than this
LOOKS_REFUSED: Final = 0.002
LOOKS_SHIFTED: Final = 0.05  # of the shifted films: their shifts are larger than most differences between units
# Margins of the other three limits where this limit does their work: log-odds, and fractions of the distances.
WIDER: Final = np.array([2.0, 0.05, 0.05])
FEWEST_GIVEN: Final = 8  # pictures of a kind; a kind with fewer is not learnt

SCORE_LIMITS: Final = tuple(step / 20 for step in range(1, 20))  # limits at which the curve is measured


class Refused(NamedTuple):
    """Pictures that a bundle must not answer, of one kind.

    Attributes:
        kind: the words for them in refusals, as in "it looks like {kind}, which this model was not trained on".
        planes: the pictures preprocessed for the network, each (height, width), uint8.
        patients: the patient of each picture; a picture without one counts as a patient of its own.
    """

    kind: str
    planes: Sequence[UInt8Array]
    patients: Sequence[str]


class Pictures(NamedTuple):
    """Films, synthetic films and given pictures, for the fit or kept back; shaped as in ``ood_negatives``."""

    films: Sequence[UInt8Array]
    labels: IndexArray
    synthetic_films: Sequence[UInt8Array]
    given: dict[str, list[UInt8Array]]


def write_gate(pack: Pack, folder: Path, refuse: Sequence[Refused] = ()) -> None:
    """Fit the gate to the training films of a pack, and write ``gate.json`` into a folder."""
    write_atomically(folder / GATE_JSON, fitted_to(pack, refuse).to_json().encode())


def fitted_to(pack: Pack, refuse: Sequence[Refused] = ()) -> OODDetector:
    """Fit the gate to the training films of a pack, and count how many of its validation films the gate refuses."""
    rows = pack.rows(Split.TRAIN)
    rows = np.sort(np.random.default_rng(SEED).permutation(rows)[:MOST])
    films = [pack.films[row] for row in rows]
    detector = fit_detector(
        [pack.images[row] for row in rows],
        [film.patient_id for film in films],
        labels=[film.label for film in films],
        refuse=refuse,
        levels=pack.info.preprocessing.levels,
    )
    return dataclasses.replace(detector, validation=_of_validation(detector, pack))


def _of_validation(detector: OODDetector, pack: Pack) -> dict[str, RefusedCount]:
    """Count how many of the validation films are refused, by label; these films set no limit."""
    rows = pack.rows(Split.VAL)
    labels = np.array([pack.films[row].label for row in rows])
    return {str(label): _share(detector, pack, rows[labels == label]) for label in np.unique(labels) if label}


def _share(detector: OODDetector, pack: Pack, rows: IndexArray) -> RefusedCount:
    scores = detector.scores([pack.images[row] for row in rows])
    return RefusedCount(int(np.sum(scores > REFUSED_ABOVE)), len(rows))


def pictures_to_refuse(source: str, preprocessing: Preprocessing) -> Refused:
    """Read pictures that a bundle must not answer.

    Args:
        source: a folder, an archive, a table or a manifest, or ``WORDS=SOURCE`` with the words for them in refusals,
            such as "an adult's film=archive/adults.csv". A table's ``patient_id`` keeps each patient's pictures
            together.
        preprocessing: preprocessing of the pack on which the bundle was trained.

    Raises: SourceInvalid, if nothing in the source can be read as a picture.
    """
    kind, _, place = source.rpartition("=")
    planes, patients = [], []
    for film in collect(place, labels_needed=False):
        try:
            planes.append(
                preprocess(read_film(film), film.path, *preprocessing.size, preprocessing.resize, preprocessing.levels)
            )
        except FilmError:
            continue
        patients.append(film.patient_id)
    if not planes:
        raise SourceInvalid(f"{place}: holds no picture that can be read, so there is nothing to learn to refuse")
    return Refused(kind or f"the pictures of {Path(place).stem}", planes, patients)


def fit_detector(
    planes: Sequence[UInt8Array],
    patients: Sequence[str],
    *,
    labels: Sequence[str] = (),
    refuse: Sequence[Refused] = (),
    levels: Levels = Levels.STORED,
) -> OODDetector:
    """Fit the detector: what the films have in common, and its limits. The same films give the same gate.

    Args:
        planes: training films, preprocessed, each (height, width), uint8.
        patients: the patient of each film; a film without one counts as a patient of its own.
        labels: labels of the films; the limits hold for each label by itself.
        refuse: pictures that must be refused.
        levels: how the bundle's preprocessing maps grey levels, so that pictures made here are mapped alike.
    """
    rng = np.random.default_rng(SEED)
    films = [shrunk(plane) for plane in planes]
    back = _kept_back(patients)
    classes = np.unique(np.array(labels or [""] * len(films)), return_inverse=True)[1]
    drawn = synthetic_films(sum(SYNTHETIC_FILMS), SEED)
    given = {some.kind: ([shrunk(plane) for plane in some.planes], _kept_back(some.patients, 0)) for some in refuse}

    def part(chests: Sequence[UInt8Array], *, kept: bool) -> Pictures:
        chosen = np.array(back) == kept
        return Pictures(
            [film for film, mine in zip(films, chosen, strict=True) if mine],
            classes[chosen],
            chests,
            {
                kind: [one for one, mine in zip(some, held, strict=True) if mine == kept]
                for kind, (some, held) in given.items()
            },
        )

    fitted, kept = (
        part(drawn[: SYNTHETIC_FILMS[0]], kept=False),
        part(drawn[SYNTHETIC_FILMS[0] :], kept=True),
    )
    maker = _PictureMaker(levels, rng)
    detector = _fitted(fitted, maker)
    scarce = not kept.films
    if not scarce or any(len(some) >= FEWEST_GIVEN for some in fitted.given.values()):
        detector = dataclasses.replace(detector, looks=_kind_classifier(fitted, maker))
    unseen = kept._replace(films=fitted.films, labels=fitted.labels) if scarce else kept
    kinds = {kind: detector.distances(pictures) for kind, pictures in maker.kinds(unseen).items()}
    chests = detector.distances(maker.levelled(unseen.synthetic_films))
    return _measured(_stored(_limited(detector, kinds, chests, unseen.labels, wide=scarce)), kinds)


def _kept_back(patients: Sequence[str], few: int = FEW) -> list[bool]:
    """Choose the films that set the limits, by a hash of the patient, so that no patient is split; none if few."""
    names = [patient or str(row) for row, patient in enumerate(patients)]
    chosen = [hashlib.sha256(name.encode()).digest()[0] % KEPT_BACK == 0 for name in names]
    return chosen if len(names) >= few and not all(chosen) else [False] * len(names)


def _stored(detector: OODDetector) -> OODDetector:
    """Return the gate as it will be read back, with 16 bits a number, so that what is measured is what is used."""
    return OODDetector.from_json(detector.to_json())


# --------------------------------------------------------------------------- pictures


class _PictureMaker:
    """Makes pictures in the form in which the bundle's preprocessing passes them to the gate."""

    def __init__(self, levels: Levels, rng: Random) -> None:
        self._levels, self._rng = levels, rng

    def levelled(self, pictures: Iterable[UInt8Array]) -> list[UInt8Array]:
        return [levelled(np.ascontiguousarray(picture), self._levels) for picture in pictures]

    def any_of(self, pictures: Sequence[UInt8Array]) -> UInt8Array:
        return pictures[int(self._rng.integers(len(pictures)))]

    def shifted(self, films: Iterable[UInt8Array]) -> list[UInt8Array]:
        return self.levelled(perturbed(film, self._rng) for film in films)

    def spoilt(self, kind: str, films: Iterable[UInt8Array]) -> list[UInt8Array]:
        ways = SPOILT[kind]
        return self.levelled(ways[row % len(ways)](film, self._rng) for row, film in enumerate(films))

    def drawn(self, kind: str, count: int) -> list[UInt8Array]:
        return self.levelled(drawing(kind, number, self._rng) for number in range(count))

    def kinds(self, pictures: Pictures) -> dict[str, list[UInt8Array]]:
        """Return pictures that were not in the fit, by kind: films first, then kinds that must be refused."""
        kinds = {"films": self.levelled(pictures.films), "shifted films": self.shifted(pictures.films)}
        kinds |= {kind: self.spoilt(kind, pictures.films) for kind in SPOILT}
        kinds |= {kind: self.drawn(kind, len(pictures.films)) for kind in DRAWN}
        return kinds | {kind: self.levelled(some) for kind, some in pictures.given.items() if some}

    def impostors(self, pictures: Pictures) -> list[UInt8Array]:
        """Return pictures to refuse: modified films, each way equally often, modified synthetic films, and drawings."""
        count = max(FEWEST_REFUSED, len(pictures.films))
        spoilings = [spoil for ways in SPOILT.values() for spoil in ways]
        made = []
        for number in range(count + count // 3):
            chest = self.any_of(pictures.films if number % 10 else pictures.synthetic_films)
            made.append(spoilings[number % len(spoilings)](perturbed(chest, self._rng), self._rng))
        for kind in DRAWN:
            share = DRAWN_SHARES.get(kind, 1.0)
            made.extend(drawing(kind, number, self._rng) for number in range(round(share * count)))
        made.extend(one for some in pictures.given.values() for one in some)
        return self.levelled(made)

    def training_pictures(self, pictures: Pictures) -> tuple[UInt8Array, Int64Array]:
        """Return one training pass of the convolutional network: pictures, and targets (0: film, else 1 + kind)."""
        foreign = [one for some in pictures.given.values() for one in some]

        def restyled(film: UInt8Array, donors: Sequence[UInt8Array]) -> UInt8Array:
            return with_acquisition_of(film, self.any_of(donors), self._rng) if donors else film

        films = [
            film if self._rng.random() < PLAIN else perturbed(restyled(film, foreign), self._rng)
            for film in (*pictures.films, *pictures.synthetic_films)
        ]
        lots = [films]
        for ways in SPOILT.values():
            chests = [perturbed(self.any_of(pictures.films), self._rng) for _ in range(MADE)]
            lots.append([ways[row % len(ways)](film, self._rng) for row, film in enumerate(chests)])
        lots.extend([drawing(kind, number, self._rng) for number in range(MADE)] for kind in DRAWN)
        lots.extend(
            [perturbed(restyled(self.any_of(some), pictures.films), self._rng) for _ in range(GIVEN)]
            for some in pictures.given.values()
            if len(some) >= FEWEST_GIVEN
        )
        seen = [picture(one) for lot in lots for one in self.levelled(lot)]
        return np.stack(seen), np.repeat(np.arange(len(lots)), [len(lot) for lot in lots])


# --------------------------------------------------------------------------- the fit


def _fitted(pictures: Pictures, maker: _PictureMaker) -> OODDetector:
    """Fit axes and network; the limits are not set yet."""
    shifts = max(SHIFTS_A_FILM, SHIFTED // len(pictures.films))
    accepted = _thumbnails(
        [
            *maker.levelled(pictures.films),
            *maker.shifted(film for film in pictures.films for _ in range(shifts)),
            *maker.levelled(pictures.synthetic_films),
            *maker.shifted(film for film in pictures.synthetic_films for _ in range(SYNTHETIC_SHIFTS)),
        ]
    )
    centre = accepted.mean(axis=0)
    variances, directions = np.linalg.eigh(np.cov((accepted - centre).T))
    axes = directions[:, : -AXES - 1 : -1].astype(np.float32)
    deviations = np.sqrt(variances[: -AXES - 1 : -1].clip(1e-6)).astype(np.float32)
    refused = _thumbnails(maker.impostors(pictures))
    seen = coded(np.concatenate([accepted, refused]), centre, axes, deviations)[0]
    wrong = np.repeat([0.0, 1.0], [len(accepted), len(refused)])
    hidden, hidden_bias, output, output_bias = _network(seen, wrong)
    return OODDetector(
        centre, axes, deviations, hidden, hidden_bias, output, output_bias, np.ones(3, dtype=np.float32), refused={}
    )


def _thumbnails(pictures: Iterable[UInt8Array]) -> Float32Array:
    """Return thumbnails as the gate sees them, shape (n, p)."""
    return np.stack([thumbnail(picture) for picture in pictures])


def _network(seen: Float32Array, wrong: Float64Array) -> tuple[Float32Array, Float32Array, Float32Array, Float32Array]:
    """Fit one hidden layer that tells wrong pictures (1) from right ones (0).

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


def _kind_classifier(pictures: Pictures, maker: _PictureMaker) -> KindClassifier:
    """Fit the convolutional network; its limit is not set yet."""
    kinds = (*SPOILT, *DRAWN, *(kind for kind, some in pictures.given.items() if len(some) >= FEWEST_GIVEN))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(SEED)
        layers, dense = _layers(len(kinds) + 1)
        network = nn.Sequential(layers, nn.Flatten(), nn.Dropout(0.3), dense)
        optimiser = torch.optim.AdamW(network.parameters(), LOOKS_RATE, weight_decay=LOOKS_DECAY)
        schedule: torch.optim.lr_scheduler.LRScheduler | None = None
        for number in range(LOOKS_PASSES):
            if number % REDRAWN == 0:
                seen, kind = (torch.from_numpy(part) for part in maker.training_pictures(pictures))
            batches = list(torch.split(torch.randperm(len(seen)), BATCH // 2))
            if schedule is None:
                schedule = torch.optim.lr_scheduler.OneCycleLR(
                    optimiser, LOOKS_RATE, total_steps=LOOKS_PASSES * len(batches) + 1, pct_start=0.05
                )
            for rows in batches:
                loss = functional.cross_entropy(network(_scaled(seen[rows])), kind[rows])
                optimiser.zero_grad()
                loss.backward()  # type: ignore[no-untyped-call]  # torch's own gap
                optimiser.step()
                schedule.step()
        network.eval()
        return _without_torch(kinds, layers, dense)


def _scaled(pictures: torch.Tensor) -> torch.Tensor:
    """Return pictures scaled as in ``KindClassifier.logits``: shape (n, 1, height, width)."""
    return (pictures[:, None].float() - 128) / 64


def _layers(classes: int) -> tuple[nn.Sequential, nn.Linear]:
    layers: list[nn.Module] = []
    before = 1
    for side, width in zip(KERNELS, WIDTHS, strict=True):
        layers += [nn.Conv2d(before, width, side, 2, side // 2, bias=False), nn.BatchNorm2d(width), nn.ReLU()]
        before = width
    return nn.Sequential(*layers), nn.Linear(before * (PICTURE_SIDE // 2 ** len(KERNELS)) ** 2, classes)


def _without_torch(kinds: tuple[str, ...], layers: nn.Sequential, dense: nn.Linear) -> KindClassifier:
    """Return the network for NumPy: normalisation folded into the filters, last layer in NumPy's order."""
    filters, biases = [], []
    convolutions = [layer for layer in layers if isinstance(layer, nn.Conv2d)]
    norms: list[Any] = [layer for layer in layers if isinstance(layer, nn.BatchNorm2d)]
    for convolution, norm in zip(convolutions, norms, strict=True):
        scale = norm.weight / torch.sqrt(norm.running_var + norm.eps)
        weights = (convolution.weight * scale[:, None, None, None]).flatten(1).T
        filters.append(weights.detach().numpy())
        biases.append((norm.bias - norm.running_mean * scale).detach().numpy())
    cells = PICTURE_SIDE // 2 ** len(KERNELS)
    by_place = dense.weight.detach().reshape(len(kinds) + 1, WIDTHS[-1], cells, cells).permute(2, 3, 1, 0)
    last = by_place.reshape(-1, len(kinds) + 1).numpy()
    return KindClassifier(kinds, tuple(filters), tuple(biases), last, dense.bias.detach().numpy())


# --------------------------------------------------------------------------- limits and figures


def _limited(
    detector: OODDetector,
    kinds: dict[str, Float64Array],
    chests: Float64Array,
    labels: IndexArray,
    *,
    wide: bool,
) -> OODDetector:
    """Set the limits of the distances: few films of each class lie beyond each limit, and no synthetic film.

    Args:
        kinds: distances by kind, among them those of the films that set the limits.
        chests: distances of synthetic films.
        labels: class of each of the films.
        wide: no film was kept back; the films are those of the fit.
    """
    films, shifted = kinds["films"], kinds["shifted films"]
    allowed = np.array([REFUSED_OF_FILMS] * 3), np.array([REFUSED_OF_SHIFTED] * 3)
    if detector.looks:
        allowed = np.array([0.0] * 3 + [LOOKS_REFUSED]), np.array([REFUSED_OF_SHIFTED] * 3 + [LOOKS_SHIFTED])

    def beyond(distances: Float64Array, shares: Float64Array) -> Float64Array:
        return np.array([np.quantile(column, 1.0 - part) for column, part in zip(distances.T, shares, strict=True)])

    limits = np.max(
        [
            *(beyond(films[labels == label], allowed[0] * (not wide)) for label in np.unique(labels)),
            beyond(shifted, allowed[1]),
            chests.max(axis=0),
        ],
        axis=0,
    )
    if wide:
        further = np.array([*FURTHER, FURTHER[0]])[: len(limits)]
        limits = limits + FEW / len(films) * further * np.array([1.0, *limits[1:3], 1.0])[: len(limits)]
    elif detector.looks:
        limits[:3] += WIDER * np.array([1.0, *limits[1:3]])
    looks = dataclasses.replace(detector.looks, limit=float(limits[3])) if detector.looks else None
    return dataclasses.replace(detector, limits=limits[:3].astype(np.float32), looks=looks)


def _measured(detector: OODDetector, kinds: dict[str, Float64Array]) -> OODDetector:
    """Add the counts and the curve of refused pictures."""
    scores = {kind: detector.scores_of(distances) for kind, distances in kinds.items()}
    return dataclasses.replace(
        detector,
        refused={kind: RefusedCount(int(np.sum(of > REFUSED_ABOVE)), len(of)) for kind, of in scores.items()},
        curve_limits=SCORE_LIMITS,
        curve={kind: tuple(round(float(np.mean(of > at)), 4) for at in SCORE_LIMITS) for kind, of in scores.items()},
    )
