"""The model card that travels with a bundle."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from chestxray.schema import BundleInfo
from chestxray.training.networks import spec_of
from chestxray.training.run import RunInfo

_TEMPLATE: Final = """\
---
license: apache-2.0
library_name: onnxruntime
pipeline_tag: image-classification
tags:
  - medical-imaging
  - chest-x-ray
  - pneumonia
  - research-only
model_name: {name}
---

# {name}

> **{notice}**

## What it is

`{network}`: {description}. {parameters:,} parameters. Input: a greyscale film of {height} x {width} pixels
(height x width; resize policy `{resize}`), which the bundle's own preprocessing makes from a JPEG or PNG file.
Output: the probability of pneumonia, calibrated by a temperature of {temperature:.3f}, and a map of where the
evidence lies.

## Intended use

{intended_use}

## Limits

- It answers "pneumonia or normal" and knows no third thing: every other finding is outside of what it learnt.
- It was trained on one data set. Films of other hospitals, devices, ages or views may be judged wrongly, and
  confidently so. Evaluate it on films of your own before believing any figure.
- The map shows what moved this network's answer. It does not outline a lesion.
- Training films' labels are taken as they are; they are not free of error.

## Training data

{training_films:,} films for training, {validation_films:,} for validation. Fingerprint of the data set (SHA-256
over each film's hash, label, split and patient): `{training_data}`. The terms of those films may bind what
may be done with these weights; the licence above is that of the software and of the weights as far as it
can be given.

## Figures on the validation films

{cautions}

{positives:,} films with pneumonia and {negatives:,} normal ones, of {patients:,} patients. Intervals are at 95%.

AUROC {auroc}. Brier score {brier:.4f}; expected calibration error {ece:.4f}.

| operating point | threshold | sensitivity | specificity | precision |
|---|---|---|---|---|
{points}

The operating point "{default}" is the one that answers when none is named.

## How it was made

`{network}`, recipe with seed {seed}, epoch {epoch} of {epochs} (the one with the highest AUROC on the validation
films), by chestxray {version} on {device}.
"""


def model_card(bundle: BundleInfo, run: RunInfo, metrics: Mapping[str, Any]) -> str:
    """The card as Markdown with YAML front matter.

    Args:
        bundle: the description; its hashes are not needed.
        run: a finished run.
        metrics: as ``export.validation_metrics`` makes them.
    """
    best = run.best
    return _TEMPLATE.format(
        name=bundle.name,
        notice=bundle.notice,
        network=bundle.network,
        description=spec_of(bundle.network).description,
        parameters=bundle.parameters,
        height=bundle.preprocessing.height,
        width=bundle.preprocessing.width,
        resize=bundle.preprocessing.resize.value,
        temperature=bundle.temperature,
        intended_use=bundle.intended_use,
        training_films=run.training_films,
        validation_films=run.validation_films,
        training_data=bundle.training_data,
        cautions="\n".join(f"- {sentence}" for sentence in metrics["cautions"]),
        positives=metrics["positives"],
        negatives=metrics["negatives"],
        patients=metrics["patients"],
        auroc=_with_interval(metrics["auroc"]),
        brier=metrics["brier"],
        ece=metrics["expected_calibration_error"],
        points="\n".join(_row(point) for point in metrics["operating_points"]),
        default=bundle.default_operating_point,
        seed=run.recipe["seed"],
        epoch=best.epoch if best else 0,
        epochs=best.epochs if best else 0,
        version=bundle.package_version,
        device=run.device,
    )


def _row(point: Mapping[str, Any]) -> str:
    rates = " | ".join(_proportion(point[name]) for name in ("sensitivity", "specificity", "precision"))
    return f"| {point['name']} | {point['threshold']:.3f} | {rates} |"


def _proportion(measure: Mapping[str, Any]) -> str:
    if measure["value"] is None:
        return "no such film"
    return f"{_with_interval(measure)}, {measure['numerator']:,} of {measure['films']:,}"


def _with_interval(measure: Mapping[str, Any]) -> str:
    interval = measure["interval"]
    return f"{measure['value']:.3f} ({interval['low']:.3f} to {interval['high']:.3f})"
