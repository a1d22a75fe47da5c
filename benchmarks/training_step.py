"""Training steps of every network: what share is overhead, and films a second against other ways to train it.

    python benchmarks/training_step.py [--data FOLDER] [--full-size] [--films 320] [--rounds 5] [--network NAME ...]

Overhead is all of a step but the network's own forward and backward: reading the pack, augmentation, loss, optimiser,
averaging. The bar is 15%. The other ways, in turn with ours so that a slow moment falls on all of them:

- the original's recipe: its own network, one film a step, each opened from disk again, SGD, float32;
- a plain loop: the same network and batches, AdamW, and a DataLoader whose workers decode and resize the JPEGs;
- a Lightning trainer over that same DataLoader, where lightning is installed; it is not a dependency.

The other ways do not vary the films; ours does, by its default recipe. They decode in every epoch, so how long they
take depends on the files: by default those squeezed to 224 x 224, with ``--full-size`` those as they were published.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from chestxray.data.pack import Pack, write_pack
from chestxray.training.config import Recipe
from chestxray.training.networks import NETWORKS, Classifier, build
from chestxray.training.trainer import Training, freed_memory_kept
from epoch import Original, labelled, rows_of
from other_trainers import HAS_LIGHTNING, Films, lightning_trainer, loader_of, plain_loop
from side_by_side import DATA, Timing, machine, take_turns

BAR_SHARE = 0.15  # of a step, at most outside the network
BAR_TIMES = 3.0  # at least so many times the best of the others

OURS = "this package"
NETWORK_ALONE = "forward and backward alone"
ORIGINAL = "the original's recipe"
PLAIN = "a plain loop with a DataLoader"
LIGHTNING = "a Lightning trainer"


class Result(NamedTuple):
    """What was measured of one network."""

    network: str
    films: int
    timings: list[Timing]

    def seconds(self, name: str) -> float:
        """The median of that way."""
        return next(timing.median for timing in self.timings if timing.name == name)

    @property
    def overhead(self) -> float:
        """Share of our step outside the network."""
        return 1.0 - self.seconds(NETWORK_ALONE) / self.seconds(OURS)

    @property
    def times_the_best(self) -> float:
        """How many times faster than the fastest of the other ways."""
        others = [timing.median for timing in self.timings if timing.name not in {OURS, NETWORK_ALONE}]
        return min(others) / self.seconds(OURS)


def main() -> None:
    """Measure each network, and tell."""
    options = _parsed()
    folder = options.data / ("originals" if options.full_size else "chest_xray/train")
    everything = labelled(folder)
    if not everything:
        raise SystemExit(f"{folder}: no films there. Give --data, or set CHESTXRAY_DATA")
    drawn = np.random.default_rng(0).permutation(len(everything))[: options.films]
    films = [everything[index] for index in drawn]
    results = [measured(name, films, everything, options.rounds) for name in options.network or NETWORKS]
    print(json.dumps(_document(results, folder), indent=2) if options.json else _told(results, folder))


def _parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=DATA, help="folder with chest_xray/train and originals")
    parser.add_argument("--full-size", action="store_true", help="take the films of originals")
    parser.add_argument("--films", type=int, default=320, help="films an epoch, at most (default 320)")
    parser.add_argument("--rounds", type=int, default=5, help="epochs of each way, after one to warm up (default 5)")
    parser.add_argument("--network", action="append", choices=tuple(NETWORKS), help="repeatable (default: all)")
    parser.add_argument("--json", action="store_true", help="print one JSON document")
    return parser.parse_args()


def measured(network: str, films: Films, everything: Films, rounds: int) -> Result:
    """One epoch of each way, in turn."""
    size = NETWORKS[network].size
    recipe = Recipe.shipped().with_changes(network=network, epochs=10_000)
    with tempfile.TemporaryDirectory() as folder:
        write_pack(rows_of(films, everything), Path(folder) / "pack", size=size)
        training = Training(Pack.open(Path(folder) / "pack"), recipe, device="cpu")
        batch_size = recipe.batch_size
        original = Original()
        ways: dict[str, Callable[[], object]] = {
            OURS: _steps_of(training),
            NETWORK_ALONE: _network_alone(training),
            ORIGINAL: lambda: original.epoch(films),
            PLAIN: plain_loop(loader_of(films, size, batch_size), _fresh(network, training)),
        }
        if HAS_LIGHTNING:
            ways[LIGHTNING] = lightning_trainer(loader_of(films, size, batch_size), _fresh(network, training))
        return Result(network, len(films), take_turns(ways, rounds))


# --------------------------------------------------------------------------- the ways


class _EpochEndedError(Exception):
    """Ends our epoch before its films are evaluated, which the other ways do not do."""


def _steps_of(training: Training) -> Callable[[], None]:
    def stop() -> None:
        if training.steps_taken == training.steps_an_epoch:
            raise _EpochEndedError

    def epoch() -> None:
        training.steps_taken = 0
        try:
            next(training.epochs(after_step=stop))
        except _EpochEndedError:
            return

    return epoch


def _network_alone(training: Training) -> Callable[[], None]:
    """The forward and backward of an epoch's batches, on films that are ready; memory is kept as the loop keeps it."""
    step = training.state
    count = len(step.splits.training)
    batches = np.array_split(np.arange(count), training.steps_an_epoch)
    ready = [step.films(step.splits.training[batch]) for batch in batches]

    def epoch() -> None:
        step.classifier.train()
        with freed_memory_kept():
            for films in ready:
                step.optimiser.zero_grad()
                step.scores(step.trained, films, reduced=step.reduced).square().mean().backward()

    return epoch


def _fresh(network: str, training: Training) -> Classifier:
    return build(network, training.state.pack.info.preprocessing, started=False).train()


# --------------------------------------------------------------------------- telling


def _document(results: list[Result], folder: Path) -> dict[str, Any]:
    return {
        "machine": machine(),
        "folder": folder.name,
        "threads": torch.get_num_threads(),
        "at": time.strftime("%Y-%m-%d"),
        "lightning": "measured" if HAS_LIGHTNING else "not run: not installed",
        "networks": {
            result.network: {
                "films": result.films,
                "seconds": {timing.name: timing.seconds for timing in result.timings},
                "overhead": result.overhead,
                "times_the_best_other_way": result.times_the_best,
            }
            for result in results
        },
    }


def _told(results: list[Result], folder: Path) -> str:
    where = f"{machine()}, torch {torch.__version__} with {torch.get_num_threads()} threads, films of {folder.name}"
    return "\n".join([where, *_lines(results)])


def _lines(results: list[Result]) -> Iterator[str]:
    for result in results:
        share, times = result.overhead, result.times_the_best
        yield f"\n{result.network}: {result.films} films an epoch, medians of {len(result.timings[0].seconds)}"
        for timing in result.timings:
            yield (
                f"  {timing.name:36} {result.films / timing.median:8.1f} films/s "
                f"({result.films / max(timing.seconds):.1f} to {result.films / min(timing.seconds):.1f})"
            )
        yield f"  overhead {share:.1%} of a step; the bar of {BAR_SHARE:.0%} is {_reached(share <= BAR_SHARE)}"
        yield f"  {times:.1f} x the best other way; the bar of {BAR_TIMES:g} x is {_reached(times >= BAR_TIMES)}"
    if not HAS_LIGHTNING:
        yield f"\n{LIGHTNING}: not run, lightning is not installed"


def _reached(reached: bool) -> str:  # noqa: FBT001 - a word for it
    return "reached" if reached else "MISSED"


if __name__ == "__main__":
    main()
