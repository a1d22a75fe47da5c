"""Finished training runs by network: validation figures of every seed, their mean and their deviation.

    python benchmarks/seeds.py RUN... [--json]

Runs on one pack and of one recipe but for the seed belong together. Each is looked at as ``export`` would: calibration
and threshold are chosen on its validation films, as they are and under every shift. Sensitivity and specificity are
those of ``balanced``, over the films as they are and over all of them shifted.
"""

from __future__ import annotations

import argparse
import json
import statistics
from pathlib import Path
from typing import Final

import numpy as np

from chestxray.evaluation.calibration import calibrated, choose_operating_points, fit_calibration
from chestxray.evaluation.metrics import Confusion, auroc
from chestxray.evaluation.stress import CLEAN, pooled
from chestxray.schema import Split
from chestxray.training.ensemble import Trained

POINT: Final = "balanced"


def main() -> None:
    """Read, group, print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("runs", type=Path, nargs="+")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    found: dict[str, dict[int, dict[str, float]]] = {}
    for path in arguments.runs:
        run = Trained.read([path])
        recipe = {name: value for name, value in run.infos[0].recipe.items() if name != "seed"}
        key = f"{run.network}, {recipe['epochs']} epochs, {run.infos[0].training_data[:8]}"
        found.setdefault(key, {})[run.infos[0].recipe["seed"]] = figures_of(run)
    if arguments.json:
        print(json.dumps(found, indent=2))
        return
    for name, seeds in found.items():
        print(f"{name}: seeds {', '.join(map(str, sorted(seeds)))}")
        for figure in next(iter(seeds.values())):
            values = [each[figure] for _, each in sorted(seeds.items())]
            spread = f" +- {statistics.stdev(values):.4f}" if len(values) > 1 else ""
            print(f"  {figure:36} {statistics.mean(values):.4f}{spread}   {' '.join(f'{v:.4f}' for v in values)}")


def figures_of(run: Trained) -> dict[str, float]:
    """One run's figures by name."""
    labels, clean = run.table.labels, run.table.logits
    areas = {shift: auroc(labels, logits) for shift, logits in run.stress.items()}
    everything = pooled(labels, {CLEAN: clean, **run.stress})
    calibration = fit_calibration(*everything)
    points = choose_operating_points(everything[0], calibrated(everything[1], *calibration), Split.VAL)
    threshold = next(point.threshold for point in points if point.name == POINT)
    here = Confusion.at(threshold, labels, calibrated(clean, *calibration))
    moved = Confusion.at(threshold, *_shifted(run, calibration))
    return {
        "AUROC": auroc(labels, clean),
        "AUROC, mean over shifts": float(np.mean(list(areas.values()))),
        "AUROC, worst shift": min(areas.values()),
        "sensitivity": here.sensitivity or 0.0,
        "specificity": here.specificity or 0.0,
        "sensitivity under shifts": moved.sensitivity or 0.0,
        "specificity under shifts": moved.specificity or 0.0,
    }


def _shifted(run: Trained, calibration: tuple[float, float]) -> tuple[np.ndarray, np.ndarray]:
    labels, logits = pooled(run.table.labels, run.stress)
    return labels, calibrated(logits, *calibration)


if __name__ == "__main__":
    main()
