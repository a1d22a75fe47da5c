"""The parts of a model card that hold figures: its YAML header and one section, both from ``metrics.json``.

Calibrating a bundle anew writes these two again and leaves the rest of the card as it is.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any, Final

_BEGIN: Final = "<!-- figures: written by chestxray from metrics.json -->"
_END: Final = "<!-- end of figures -->"
_PLAIN_WORD: Final = re.compile(r"[A-Za-z][\w-]*")
_NOT_WORDS: Final = frozenset({"true", "false", "yes", "no", "on", "off", "null", "y", "n"})  # to YAML

_HEADER: Final = """\
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
model-index:
  - name: {name}
    results:
      - task:
          type: image-classification
          name: pneumonia or normal
        dataset:
          type: chest-x-ray
          name: {dataset}
          split: {split}
        metrics:
{metrics}
---
"""


def header(name: str, metrics: Mapping[str, Any], default: str) -> str:
    """The card's YAML, in the form that model hubs index.

    Args:
        name: of the model.
        metrics: as ``summary.measured_where_chosen`` makes them.
        default: the operating point whose figures are named.

    Source: the model card specification of the Hugging Face hub, "model-index".
    """
    point = next((p for p in metrics["operating_points"] if p["name"] == default), metrics["operating_points"][0])
    figures = [("roc_auc", "AUROC", metrics["auroc"]["value"]), ("brier_score", "Brier score", metrics["brier"])]
    figures += [
        (kind, f"{title} at {point['name']}", point[key]["value"])
        for kind, title, key in (
            ("recall", "Sensitivity", "sensitivity"),
            ("specificity", "Specificity", "specificity"),
            ("precision", "Precision", "precision"),
        )
        if point[key]["value"] is not None
    ]
    lines = [
        f"          - type: {kind}\n            name: {_yaml(title)}\n            value: {value:.4f}"
        for kind, title, value in figures
    ]
    dataset = f"{metrics['films']} films that thresholds were chosen on, {metrics['positives']} with pneumonia"
    return _HEADER.format(
        name=_yaml(name), dataset=_yaml(dataset), split=_yaml(metrics["split"]), metrics="\n".join(lines)
    )


def section(metrics: Mapping[str, Any], default: str) -> str:
    """The section of the figures as Markdown, between two marks that ``amended`` finds again."""
    cautions = "\n".join(f"- {sentence}" for sentence in metrics["cautions"])
    points = "\n".join(_row(point) for point in metrics["operating_points"])
    title = "the validation films" if metrics["split"] == "val" else f"the films of {metrics['split']}"
    return f"""{_BEGIN}

## Figures on {title}

{cautions}

{metrics["positives"]:,} films with pneumonia and {metrics["negatives"]:,} normal ones, of {metrics["patients"]:,} \
patients. Intervals are at 95%.

Temperature {metrics["temperature"]:.3f}, bias {metrics["bias"]:+.3f}. AUROC {_with_interval(metrics["auroc"])}. \
Brier score {metrics["brier"]:.4f}; expected calibration error {metrics["expected_calibration_error"]:.4f}.

| operating point | threshold | sensitivity | specificity | precision |
|---|---|---|---|---|
{points}

The operating point "{default}" is the one that answers when none is named.
{_under_shifts(metrics.get("stress"))}
{_END}"""


def _under_shifts(stress: Mapping[str, Any] | None) -> str:
    """The stress validation as a table, where it was made."""
    if not stress:
        return ""
    rows = "\n".join(
        f"| {row['shift']} ({row['what']}) | {_with_interval(row['auroc'])} | "
        f"{_with_interval(row['sensitivity'])} | {_with_interval(row['specificity'])} |"
        for row in stress["rows"]
    )
    return f"""
### The same films under shifts

Each film changed in one thing at a time, by other means or further than training varied it; sensitivity and \
specificity at "{stress["point"]}", whose threshold stays where it is. Mean AUROC over the shifts \
{stress["mean_auroc"]:.4f}, at worst "{stress["worst"]}".

| shift | AUROC | sensitivity | specificity |
|---|---|---|---|
{rows}
"""


def amended(card: str, name: str, metrics: Mapping[str, Any], default: str) -> str:
    """A card with new figures; the section is added at the end of a card that never had one."""
    body = re.sub(r"\A---\n.*?\n---\n", "", card, count=1, flags=re.DOTALL)
    new = section(metrics, default)
    start, end = body.find(_BEGIN), body.find(_END)
    body = f"{body.rstrip()}\n\n{new}\n" if min(start, end) < 0 else body[:start] + new + body[end + len(_END) :]
    return header(name, metrics, default) + body


def _yaml(text: str) -> str:
    """A text as YAML: bare where it is one plain word, else in JSON's quotes, which are YAML's too."""
    if _PLAIN_WORD.fullmatch(text) and text.lower() not in _NOT_WORDS:
        return text
    return json.dumps(text, ensure_ascii=False)


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
