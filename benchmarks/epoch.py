"""How long one epoch takes: the original work's way against this package's, side by side in one run.

The original's way: one process, batches of one film, each film opened from disk again in each epoch (Pillow,
RGB, resized to 112 x 160), three input channels, SGD, float32. This package's: films decoded once into a
pack, then the default recipe with its augmentation. Repetitions alternate between the two, so that whatever
else the machine does falls on both. The medians are of training alone, without validation.

    python benchmarks/epoch.py
    python benchmarks/epoch.py --films 480 --repetitions 5 --json
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from chestxray.data.pack import Pack, write_pack
from chestxray.data.parallel import cores
from chestxray.schema import Film, Label, Split, Verdict
from chestxray.training.config import Recipe
from chestxray.training.trainer import train
from other_trainers import AfterStep, Films, nothing_more

HEIGHT, WIDTH = 112, 160
MEAN, STD = 0.482, 0.236  # of the published training films
VALIDATION = 2  # films a class: the loop wants a validation split, and its time is not counted


class Source(NamedTuple):
    """A folder of films to measure on."""

    name: str
    folder: Path
    bar: float  # at least so many times faster
    films: int  # measured by default; the epoch is extrapolated from them


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, tell; exit status 1 where there are no films."""
    options = _parsed(arguments)
    data = options.data
    sources = (
        Source("224-pixel films", data / "chest_xray" / "train", bar=3.0, films=240),
        Source("originals", data / "originals", bar=5.0, films=120),
    )
    results = [
        measure(source, options.films or source.films, options.repetitions)
        for source in sources
        if source.folder.is_dir()
    ]
    if not results:
        sys.stderr.write(f"{data}: no films there. Give --data, or set CHESTXRAY_DATA\n")
        return 1
    report = {"machine": machine(), "repetitions": options.repetitions, "results": results}
    print(json.dumps(report, indent=2) if options.json else told(report))
    return 0


def _parsed(arguments: Sequence[str] | None) -> argparse.Namespace:
    default = Path(os.environ.get("CHESTXRAY_DATA", Path(__file__).parents[1] / ".." / "shared" / "data"))
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=default, help="folder with chest_xray/train and originals")
    parser.add_argument("--films", type=int, help="films a repetition (by default 240 and 120)")
    parser.add_argument("--repetitions", type=int, default=5, help="of each way, after one to warm up (default 5)")
    parser.add_argument("--json", action="store_true", help="print one JSON document")
    return parser.parse_args(arguments)


def measure(source: Source, films: int, repetitions: int) -> dict[str, Any]:
    """Both ways on the same films, alternating; the first repetition of each is thrown away."""
    everything = labelled(source.folder)
    drawn = np.random.default_rng(0).permutation(len(everything))[:films]
    sample = [everything[index] for index in drawn]
    with tempfile.TemporaryDirectory() as folder:
        started = time.perf_counter()
        write_pack(rows_of(sample, everything), Path(folder) / "pack")
        packing = time.perf_counter() - started
        pack = Pack.open(Path(folder) / "pack")
        theirs, ours = Original(), from_pack(pack)
        times = [(theirs.epoch(sample), next(ours)) for _ in range(repetitions + 1)][1:]
    original, mine = (statistics.median(column) / len(sample) for column in zip(*times, strict=True))
    return {
        "films": source.name,
        "measured_on": len(sample),
        "in_the_folder": len(everything),
        "original_ms_a_film": original * 1e3,
        "ours_ms_a_film": mine * 1e3,
        "packing_ms_a_film": packing / len(pack.films) * 1e3,
        "original_epoch_s_extrapolated": original * len(everything),
        "ours_epoch_s_extrapolated": mine * len(everything),
        "times_faster": original / mine,
        "times_faster_in_each_repetition": [a / b for a, b in times],
        "bar": source.bar,
        "reached": original / mine >= source.bar,
    }


def labelled(folder: Path) -> list[tuple[Path, Label]]:
    """Every film with its label, sorted."""
    return [(path, label) for label in Label for path in sorted((folder / label.name).glob("*.jp*g"))]


def rows_of(sample: Sequence[tuple[Path, Label]], everything: Sequence[tuple[Path, Label]]) -> Iterator[Film]:
    """The sample to train on, and a few more to validate on; patients are of no account here."""
    chosen = {path for path, _ in sample}
    rest = [(path, label) for path, label in everything if path not in chosen] or list(sample)
    for split, films in (
        (Split.TRAIN, sample),
        *((Split.VAL, [row for row in rest if row[1] is label][:VALIDATION]) for label in Label),
    ):
        for number, (path, label) in enumerate(films):
            yield Film(
                path=str(path.resolve()),
                label=label,
                split=split,
                patient_id=f"{split}{label}{number}",
                verdict=Verdict.ACCEPTED,
            )


# --------------------------------------------------------------------------- the two ways


class Original:
    """The original work's training, written as it was: one film after the other, from disk each time."""

    def __init__(self) -> None:
        torch.manual_seed(0)
        layers: list[nn.Module] = []
        for before, after in ((3, 16), (16, 32), (32, 64), (64, 128), (128, 256)):
            layers += [nn.Conv2d(before, after, 3, padding=1), nn.BatchNorm2d(after), nn.ReLU(), nn.MaxPool2d(2)]
        dense = (nn.Dropout(0.5), nn.Linear(15 * 256, 2048), nn.ReLU(), nn.Dropout(0.5), nn.Linear(2048, 2))
        self.network = nn.Sequential(*layers, nn.Flatten(), *dense).train()
        self.optimiser = torch.optim.SGD(self.network.parameters(), lr=0.001)
        self.loss = nn.CrossEntropyLoss()

    def epoch(self, films: Films, after_step: AfterStep = nothing_more) -> float:
        """One pass in seconds; ``after_step`` is called with 1 and the network behind each film."""
        order = [films[index] for index in np.random.default_rng(0).permutation(len(films))]
        total = 0.0
        started = time.perf_counter()
        for path, label in order:
            loss = self.loss(self.network(self.film(path)), torch.tensor([label.class_index]))
            self.optimiser.zero_grad()
            loss.backward()
            self.optimiser.step()
            total += loss.item()
            after_step(1, self.network)
        return time.perf_counter() - started

    @staticmethod
    def film(path: Path) -> Tensor:
        """A file to normalised values of shape (1, 3, 112, 160)."""
        with Image.open(path) as image:
            levels = np.asarray(image.convert("RGB").resize((WIDTH, HEIGHT), Image.Resampling.BILINEAR))
        values = torch.from_numpy(levels.copy()).permute(2, 0, 1).contiguous().float().div(255.0)
        return ((values - MEAN) / STD)[None]

    @staticmethod
    def scores_of(network: nn.Module, planes: Tensor) -> Tensor:
        """Class scores of grey films that are decoded already, levels 0..255 of shape (n, 1, 112, 160)."""
        scores: Tensor = network((planes.expand(-1, 3, -1, -1) / 255.0 - MEAN) / STD)
        return scores


def from_pack(pack: Pack) -> Iterator[float]:
    """The default recipe's epochs, without end: seconds of training for each."""
    recipe = Recipe.shipped().with_changes(epochs=10_000)
    for epoch in train(pack, recipe, device="cpu"):
        yield len(epoch.splits.training) / epoch.record.films_per_second


# --------------------------------------------------------------------------- telling


def machine() -> dict[str, Any]:
    """What it ran on."""
    names = [line for line in _cpuinfo() if line.startswith("model name")]
    return {
        "processor": names[0].split(":", 1)[1].strip() if names else platform.processor(),
        "cores": cores(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "python": platform.python_version(),
    }


def _cpuinfo() -> list[str]:
    path = Path("/proc/cpuinfo")
    return path.read_text().splitlines() if path.is_file() else []


def told(report: dict[str, Any]) -> str:
    """The report as lines to read."""
    of = report["machine"]
    head = (
        f"{of['processor']}, {of['cores']} cores, torch {of['torch']} with {of['threads']} threads; "
        f"medians of {report['repetitions']} alternating repetitions, training alone"
    )
    return "\n\n".join([head, *map(_told_one, report["results"])])


def _told_one(result: dict[str, Any]) -> str:
    spread = result["times_faster_in_each_repetition"]
    return (
        f"{result['films']}: measured on {result['measured_on']:,}, "
        f"extrapolated to an epoch of all {result['in_the_folder']:,}\n"
        f"  original  {result['original_ms_a_film']:7.2f} ms a film   "
        f"{result['original_epoch_s_extrapolated']:7.1f} s an epoch\n"
        f"  ours      {result['ours_ms_a_film']:7.2f} ms a film   "
        f"{result['ours_epoch_s_extrapolated']:7.1f} s an epoch, "
        f"after packing once at {result['packing_ms_a_film']:.2f} ms a film\n"
        f"  {result['times_faster']:.1f} x faster ({min(spread):.1f} to {max(spread):.1f}); "
        f"the bar of {result['bar']:g} x is {'reached' if result['reached'] else 'MISSED'}"
    )


if __name__ == "__main__":
    sys.exit(main())
