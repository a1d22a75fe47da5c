"""The model card that travels with a bundle."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

from chestxray.evaluation.card import header, section
from chestxray.inference.gate import Gatekeeper, Likeness
from chestxray.schema import BundleInfo
from chestxray.training.networks import spec_of
from chestxray.training.run_folder import RunInfo

_TEMPLATE: Final = """\
{header}
# {name}

> **{notice}**

## What it is

`{network}`: {description}. {parameters:,} parameters. Input: a greyscale film of {height} x {width} pixels
(height x width; resize policy `{resize}`), which the bundle's own preprocessing makes from a JPEG or PNG file.
Output: the calibrated probability of pneumonia, and a map of where the evidence lies.

## Intended use

{intended_use}

## What it refuses

Besides files that are no plain film (coloured, blank, too small, of another modality, body part or view), it
{refusals}. A refused film gets no probability.

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

{figures}

## How it was made

{made}, by chestxray {version} on {device}.
"""


def model_card(
    bundle: BundleInfo, runs: Sequence[RunInfo], metrics: Mapping[str, Any], gate: bytes | None = None
) -> str:
    """The card as Markdown with YAML front matter.

    Args:
        bundle: the description; its hashes are not needed.
        runs: finished runs on one pack, whose networks answer as one.
        metrics: as ``summary.measured_where_chosen`` makes them.
        gate: ``gate.json``, where the bundle has one.
    """
    gatekeeper = Gatekeeper(bundle.intended_ages, Likeness.from_json(gate.decode()) if gate else None)
    return _TEMPLATE.format(
        header=header(bundle.name, metrics, bundle.default_operating_point),
        name=bundle.name,
        notice=bundle.notice,
        network=bundle.network,
        description="; ".join(spec_of(run.recipe["network"]).description for run in runs),
        parameters=bundle.parameters,
        height=bundle.preprocessing.height,
        width=bundle.preprocessing.width,
        resize=bundle.preprocessing.resize.value,
        intended_use=bundle.intended_use,
        refusals=gatekeeper.in_words(),
        training_films=runs[0].training_films,
        validation_films=runs[0].validation_films,
        training_data=bundle.training_data,
        figures=section(metrics, bundle.default_operating_point),
        made="; beside it ".join(f"`{run.recipe['network']}`, {_made(run)}" for run in runs),
        version=bundle.package_version,
        device=runs[0].device,
    )


def _made(run: RunInfo) -> str:
    """One clause: which seeds, which epochs."""
    if run.blended:
        seeds = ", ".join(map(str, run.blended))
        return f"the mean of the weights of {len(run.blended)} runs of one recipe (seeds {seeds})"
    epoch, epochs = (run.best.epoch, run.best.epochs) if run.best else (0, 0)
    chosen = "the one with the highest AUROC on the validation films under shifts"
    taught = f", taught by {len(run.teachers)} trained network" + "s" * (len(run.teachers) > 1) if run.teachers else ""
    return f"recipe with seed {run.recipe['seed']}, epoch {epoch} of {epochs} ({chosen}){taught}"
