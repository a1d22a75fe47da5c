"""Finished training runs by network: validation figures of every seed, their mean and their deviation.

    python benchmarks/seeds.py RUN... [--json]

Runs on one pack and of one recipe but for the seed belong together; groups are told apart by what differs between them.
Each is looked at as ``export`` would: calibration and threshold are chosen on its validation films, as they are, under
every shift and under every exchange. Sensitivity and specificity are those of ``balanced``, over the films as they are
and over all of them shifted and exchanged. The ends of an interval are those of one run (DeLong), so they say how far
these films are to be trusted, and the deviation how far one seed is.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import statistics
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Final

import numpy as np

from chestxray.evaluation.robustness import CLEAN, pool_shifts
from chestxray.images.shifts import EXCHANGED_FROM, condition
from chestxray.metrics.calibration import calibrated, choose_operating_points, fit_calibration
from chestxray.metrics.intervals import delong_interval
from chestxray.metrics.metrics import Confusion, auroc
from chestxray.schema import Split
from chestxray.training.config import Recipe
from chestxray.training.ensemble import Trained

POINT: Final = "balanced"

Group = frozenset[tuple[str, object]]


def main() -> None:
    """Read, group, print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("runs", type=Path, nargs="+")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    groups: dict[Group, dict[int, dict[str, float]]] = {}
    for path in arguments.runs:
        run = Trained.read([path])
        recipe = Recipe.from_fields(run.infos[0].recipe)
        teachers = ", ".join(hashed[:8] for hashed in run.infos[0].teachers)
        films = run.infos[0].training_data[:8]
        group = frozenset({**flat(recipe), "films": films, "teachers": teachers}.items())
        seeds = groups.setdefault(group, {})
        if recipe.seed in seeds:
            raise SystemExit(f"{path}: a run of the same recipe and seed was given already")
        seeds[recipe.seed] = figures_of(run)
    found = {name: groups[group] for group, name in names_of(list(groups)).items()}
    print(json.dumps(found, indent=2) if arguments.json else "\n".join(told(found)))


def flat(recipe: Recipe) -> dict[str, object]:
    """Every field but the seed; those of the augmentation by their own names."""
    fields = dataclasses.asdict(recipe)
    del fields["seed"]
    return {**fields.pop("augmentation"), **fields}


def names_of(groups: Sequence[Group]) -> dict[Group, str]:
    """The network of each, and the fields in which it differs from the first group of that network."""
    names: dict[Group, str] = {}
    firsts: dict[object, dict[str, object]] = {}
    for group in groups:
        fields = dict(group)
        network = fields["network"]
        first = firsts.setdefault(network, fields)
        apart = [
            f"{name} {value}" for name, value in sorted(fields.items()) if value != first[name] and name != "epochs"
        ]
        names[group] = ", ".join([str(network), f"{fields['epochs']} epochs", *apart])
    return names


def told(found: Mapping[str, Mapping[int, Mapping[str, float]]]) -> Iterator[str]:
    """Lines to read."""
    for name, seeds in found.items():
        yield f"{name}: seeds {', '.join(map(str, sorted(seeds)))}"
        for figure in next(iter(seeds.values())):
            values = [each[figure] for _, each in sorted(seeds.items())]
            spread = f" +- {statistics.stdev(values):.4f}" if len(values) > 1 else ""
            yield f"  {figure:36} {statistics.mean(values):.4f}{spread}   {' '.join(f'{v:.4f}' for v in values)}"


def figures_of(run: Trained) -> dict[str, float]:
    """One run's figures by name."""
    labels, clean = run.table.labels, run.table.logits
    exchanges = {condition(*pair) for pair in EXCHANGED_FROM}
    areas = {shift: auroc(labels, logits) for shift, logits in run.stress.items() if shift not in exchanges}
    exchanged = {name: auroc(labels, logits) for name, logits in run.stress.items() if name in exchanges}
    worst = min(areas, key=areas.__getitem__)
    around, around_worst = delong_interval(labels, clean), delong_interval(labels, run.stress[worst])
    everything = pool_shifts(labels, {CLEAN: clean, **run.stress})
    calibration = fit_calibration(*everything)
    points = choose_operating_points(everything[0], calibrated(everything[1], *calibration), Split.VAL)
    threshold = next(point.threshold for point in points if point.name == POINT)
    here = Confusion.at(threshold, labels, calibrated(clean, *calibration))
    moved = Confusion.at(threshold, *_shifted(run, calibration))
    return {
        "AUROC": auroc(labels, clean),
        "AUROC, 95% from": around.low,
        "AUROC, 95% to": around.high,
        "AUROC, mean over shifts": float(np.mean(list(areas.values()))),
        "AUROC, worst shift": areas[worst],
        "AUROC, worst shift, 95% from": around_worst.low,
        "AUROC, worst shift, 95% to": around_worst.high,
        **{f"AUROC, {name.replace('_', ' ')} class": value for name, value in exchanged.items()},
        "sensitivity": here.sensitivity or 0.0,
        "specificity": here.specificity or 0.0,
        "sensitivity under shifts and exchanges": moved.sensitivity or 0.0,
        "specificity under shifts and exchanges": moved.specificity or 0.0,
    }


def _shifted(run: Trained, calibration: tuple[float, float]) -> tuple[np.ndarray, np.ndarray]:
    labels, logits = pool_shifts(run.table.labels, run.stress)
    return labels, calibrated(logits, *calibration)


if __name__ == "__main__":
    main()
