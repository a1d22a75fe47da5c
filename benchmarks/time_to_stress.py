"""How long training takes until films under shifts are told apart: AUROC 0.97 on the panel of the stress validation.

    python benchmarks/time_to_stress.py [--data FOLDER] [--network NAME ...] [--target 0.97] [--most 4] [--json]

All ways train on the same films (patient-disjoint, no test split) and are measured on the same panel, each validation
film under one shift, four times an epoch with the clock stopped; two results in a row have to reach the target, so that
luck does not. Ours is the network's shipped recipe with the schedule of a whole training, and its time begins with
packing. The others read the JPEG files in every epoch:

- a plain loop: the same network and batches, AdamW, and a DataLoader whose workers decode;
- a Lightning trainer over the same DataLoader, where lightning is installed; it is not a dependency;
- the original's recipe and network: batches of one film, SGD, float32.

The others are stopped at ``--most`` times our seconds: "not within" that is then all that is known of them. The bar is
3 x the best of them.
"""

from __future__ import annotations

import argparse
import json
import math
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from chestxray.data.clean import clean
from chestxray.data.collect import collect
from chestxray.data.pack import Pack, labels_of, write_pack
from chestxray.data.split import SplitSettings, split
from chestxray.metrics.metrics import auroc
from chestxray.schema import Film, Label
from chestxray.training.config import Recipe
from chestxray.training.networks import NETWORKS, build, log_odds
from chestxray.training.trainer import Training
from epoch import Original
from other_trainers import HAS_LIGHTNING, Films, lightning_trainer, loader_of, plain_loop
from side_by_side import DATA, machine

BAR: Final = 3.0
IN_A_ROW: Final = 2  # evaluations that reach the target
EVALUATIONS_AN_EPOCH: Final = 4
BATCH: Final = 32  # films evaluated at once
FOREVER: Final = 1_000_000  # epochs

RECIPES: Final = {"alexnet5": "default", "residual": "small", "efficientnet_lite0": "transfer"}

OURS: Final = "this package, from packing on"
PLAIN: Final = "a plain loop with a DataLoader"
LIGHTNING: Final = "a Lightning trainer"
ORIGINAL: Final = "the original's recipe"

OTHERS: Final = {PLAIN: plain_loop}
if HAS_LIGHTNING:
    OTHERS[LIGHTNING] = partial(lightning_trainer, epochs=FOREVER)

Scores = Callable[[nn.Module, Tensor], Tensor]


class Panel(NamedTuple):
    """The validation films, each under a shift: uint8 of shape (n, height, width), and which show pneumonia."""

    planes: npt.NDArray[np.uint8]
    labels: npt.NDArray[np.int8]

    def auroc(self, module: nn.Module, scores_of: Scores) -> float:
        """What a network makes of it; afterwards the network trains on."""
        module.eval()
        with torch.inference_mode():
            batches = torch.from_numpy(self.planes[:, None]).split(BATCH)
            logits = torch.cat([log_odds(scores_of(module, batch.float())) for batch in batches])
        module.train()
        return auroc(self.labels, logits.numpy())


class OverError(Exception):
    """Ends a training: the target is reached, or the time is up."""


class Course:
    """A training's way to the target, its clock stopped while it is evaluated.

    Attributes:
        seconds: of training so far.
        results: (seconds, AUROC) pairs.
        reached: seconds at the first of the evaluations that reached the target, or None.
    """

    def __init__(self, predict: Callable[[nn.Module], float], every: int, target: float, limit: float) -> None:
        """Evaluate after so many films each; give up after ``limit`` seconds."""
        self._predict, self._every, self._target, self._limit = predict, every, target, limit
        self._films = 0
        self.seconds = 0.0
        self.results: list[tuple[float, float]] = []
        self.reached: float | None = None
        self._since = time.perf_counter()

    def after_step(self, films: int, module: nn.Module) -> None:
        """Take notice of a step. Raises: OverError."""
        before, self._films = self._films, self._films + films
        if before // self._every == self._films // self._every:
            return
        self.seconds += time.perf_counter() - self._since
        self.results.append((self.seconds, self._predict(module)))
        last = self.results[-IN_A_ROW:]
        if len(last) == IN_A_ROW and min(area for _, area in last) >= self._target:
            self.reached = last[0][0]
        if self.reached is not None or self.seconds >= self._limit:
            raise OverError
        self._since = time.perf_counter()

    def discount(self, seconds: float) -> None:
        """Take off what the others do not do."""
        self.seconds -= seconds

    def told(self) -> dict[str, Any]:
        """For a document."""
        return {"seconds_to_target": self.reached, "seconds": self.seconds, "auroc_after_seconds": self.results}


def main() -> None:
    """Train each network in every way, and tell."""
    options = _parsed()
    source = options.data / "chest_xray" / "train"
    if not source.is_dir():
        raise SystemExit(f"{source}: no films there. Give --data, or set CHESTXRAY_DATA")
    films = split(clean(collect(source)), SplitSettings(test=0.0))
    with tempfile.TemporaryDirectory() as folder:
        races = {name: Race(name, films, Path(folder) / name, options.target) for name in options.network or NETWORKS}
        for race in races.values():
            race.run(options.most)
        limit = max(race.limit for race in races.values())
        original = original_course(Race("alexnet5", films, Path(folder) / "original", options.target), limit)
    results = {name: {**race.courses, ORIGINAL: original} for name, race in races.items()}
    print(json.dumps(_document(results, options), indent=2) if options.json else "\n".join(_told(results, options)))


def _parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=DATA, help="folder with chest_xray/train")
    parser.add_argument("--network", action="append", choices=tuple(NETWORKS), help="repeatable (default: all)")
    parser.add_argument("--target", type=float, default=0.97, help="AUROC on the panel (default 0.97)")
    parser.add_argument("--most", type=float, default=4.0, help="times our seconds that another may take (default 4)")
    parser.add_argument("--json", action="store_true", help="print one JSON document")
    return parser.parse_args()


class Race:
    """A network trained in every way, one after the other, on the films of one pack.

    Attributes:
        courses: of the ways that were run.
        limit: seconds that the other ways may take.
    """

    def __init__(self, network: str, films: Sequence[Film], folder: Path, target: float) -> None:
        """Pack the films at the network's own size."""
        started = time.perf_counter()
        write_pack(films, folder, size=NETWORKS[network].size)
        self._packing = time.perf_counter() - started
        self._network, self._target = network, target
        self.pack = Pack.open(folder)
        self.training = Training(self.pack, Recipe.shipped(RECIPES[network]), device="cpu")
        step = self.training.state
        self._panel = Panel(self.training.panels.shifted, labels_of(self.pack.films)[step.splits.validation])
        chosen = [self.pack.films[row] for row in step.splits.training]
        self.films: Films = [(Path(film.path), Label(film.label)) for film in chosen]
        self.courses: dict[str, Course] = {}
        self.limit = math.inf

    def course(self, scores_of: Scores = lambda module, levels: module(levels)) -> Course:
        """A course that begins now."""
        every = len(self.films) // EVALUATIONS_AN_EPOCH
        return Course(lambda module: self._panel.auroc(module, scores_of), every, self._target, self.limit)

    def run(self, most: float) -> None:
        """Ours, and then the others for as long as ``most`` times our seconds."""
        ours = self.courses[OURS] = self.course()
        ours.discount(-self._packing)
        with suppress(OverError):
            self._train(ours)
        self.limit = most * (ours.reached or ours.seconds)
        for name, trainer in OTHERS.items():
            info, batch_size = self.pack.info.preprocessing, self.training.state.recipe.batch_size
            loader = loader_of(self.films, info.size, batch_size)
            course = self.courses[name] = self.course()
            train = trainer(loader, build(self._network, info).train(), course.after_step)
            with suppress(OverError):
                while True:
                    train()

    def _train(self, course: Course) -> None:
        """By the shipped recipe; what it takes to evaluate its own epochs is none of the others' work."""
        done = 0

        def on_progress(films: int, _all: int) -> None:
            nonlocal done
            new, done = films - done, films % len(self.films)
            course.after_step(new, self.training.state.average.module)

        for epoch in self.training.epochs(on_progress):
            course.discount(epoch.record.seconds - len(self.films) / epoch.record.films_per_second)


def original_course(race: Race, limit: float) -> Course:
    """The original's recipe on the films of a race that was not run."""
    race.limit = limit
    original, course = Original(), race.course(Original.scores_of)
    with suppress(OverError):
        while True:
            original.epoch(race.films, course.after_step)
    return course


# --------------------------------------------------------------------------- telling


def _document(results: Mapping[str, Mapping[str, Course]], options: argparse.Namespace) -> dict[str, Any]:
    return {
        "machine": machine(),
        "threads": torch.get_num_threads(),
        "at": time.strftime("%Y-%m-%d"),
        "target": options.target,
        "others_stopped_at_times_ours": options.most,
        "lightning": "measured" if HAS_LIGHTNING else "not run: not installed",
        "networks": {
            network: {name: course.told() for name, course in courses.items()} for network, courses in results.items()
        },
    }


def _told(results: Mapping[str, Mapping[str, Course]], options: argparse.Namespace) -> Iterator[str]:
    yield f"{machine()}, torch {torch.__version__} with {torch.get_num_threads()} threads"
    for network, courses in results.items():
        yield f"\n{network}: until the panel's AUROC is {options.target:g}"
        ours = courses[OURS].reached
        for name, course in courses.items():
            best = max(area for _, area in course.results)
            if course.reached is None:
                yield f"  {name:32} not within {course.seconds:.0f} s; at best {best:.4f}"
            else:
                times = f"{course.reached / ours:.1f} x ours" if ours else ""
                yield f"  {name:32} {course.reached:6.0f} s  {times}"
        others = [c.reached or c.seconds for name, c in courses.items() if name != OURS]
        reached = ours is not None and min(others) >= BAR * ours
        yield f"  the bar of {BAR:g} x the best of the others is {'reached' if reached else 'MISSED'}"
    if not HAS_LIGHTNING:
        yield f"\n{LIGHTNING}: not run, lightning is not installed"


if __name__ == "__main__":
    main()
