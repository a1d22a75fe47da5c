"""The parts of a model card that hold figures: its YAML header and one section, both from ``metrics.json``.

A new calibration of a bundle writes these two parts again and keeps the rest of the card.
"""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Mapping, Sequence
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from chestxray.evaluation.robustness import CLEAN
from chestxray.inference.ood import WORDS, OODDetector, RefusedCount
from chestxray.metrics.calibration import Calibration, brier_score, calibrated, expected_calibration_error
from chestxray.metrics.intervals import delong_interval, wilson_interval
from chestxray.metrics.metrics import Confusion, auroc
from chestxray.schema import OperatingPoint

CARD_FILE: Final = "MODEL_CARD.md"
METRICS_JSON: Final = "metrics.json"

_BEGIN: Final = "<!-- figures: written by chestxray from metrics.json -->"
_END: Final = "<!-- end of figures -->"
_PLAIN_WORD: Final = re.compile(r"[A-Za-z][\w-]*")
_NOT_WORDS: Final = frozenset({"true", "false", "yes", "no", "on", "off", "null", "y", "n"})  # in YAML

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
    """Return the card's YAML, in the form that model hubs index.

    Args:
        name: the model's name.
        metrics: as ``measured_where_chosen`` returns them.
        default: the operating point whose figures are stated.

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
    """Return the section of the figures as Markdown, between two marks by which ``amended`` finds it."""
    cautions = "\n".join(f"- {sentence}" for sentence in metrics["cautions"])
    points = "\n".join(_row(point) for point in metrics["operating_points"])
    left_out = "".join(f" {sentence}" for sentence in metrics.get("operating_points_left_out", ()))
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

The operating point "{default}" is used if none is named.{left_out}
{_under_shifts(metrics.get("stress"))}{_reliance(metrics.get("reliance"))}
{_END}"""


def _under_shifts(stress: Mapping[str, Any] | None) -> str:
    """Return the stress validation as a table; empty if it was not made."""
    if not stress:
        return ""
    rows = "\n".join(
        f"| {row['shift']} ({row['what']}) | {_with_interval(row['auroc'])} | "
        f"{_with_interval(row['sensitivity'])} | {_with_interval(row['specificity'])} |"
        for row in stress["rows"]
        if row["shift"] != CLEAN  # shown above
    )
    return f"""
### The same films under shifts

Each film is changed in one way at a time: by other means than in training, or further, or (framing) as far. \
Sensitivity and specificity are those at "{stress["point"]}", with the same threshold. Mean AUROC over the shifts \
{stress["mean_auroc"]:.4f}, at worst "{stress["worst"]}".

| shift | AUROC | sensitivity | specificity |
|---|---|---|---|
{rows}
"""


def _reliance(found: Mapping[str, Any] | None) -> str:
    """Return the reliance on irrelevant properties as a table; empty if it was not measured."""
    if not found:
        return ""
    rows = "\n".join(
        f"| {row['exchange'].replace('_', ' ')} ({row['what']}){'' if row['trained'] else ' *'} | "
        f"{_with_interval(row['other'])} | {_with_interval(row['own'])} | {_gap(row)} | "
        f"{_with_interval(row['sensitivity'])} | {_with_interval(row['specificity'])} |"
        for row in found["rows"]
    )
    sensitivity, specificity = found["sensitivity"], found["specificity"]
    return f"""
### With irrelevant properties exchanged

Each film takes one irrelevant property from a training film: from one of the other class, which misleads a model that \
relies on it, or from one of its own. The gap between the two AUROCs is the reliance; its interval is from resampling \
patients. Sensitivity and specificity at "{found["point"]}" are those with donors of the other class. No recipe \
exchanges the kinds marked * in training.

| exchanged | AUROC, other class | AUROC, own class | gap | sensitivity | specificity |
|---|---|---|---|---|---|
{rows}

Over the unchanged films and all shifts and exchanges of them together, "{found["point"]}" has a sensitivity of \
{_with_interval(sensitivity)} and a specificity of {_with_interval(specificity)}; the calibration and the thresholds \
were fitted on all of these.
"""


def _gap(row: Mapping[str, Any]) -> str:
    interval = row["gap_interval"]
    ends = f" ({interval['low']:+.4f} to {interval['high']:+.4f})" if interval else ""
    return f"{row['gap']:+.4f}{ends}"


def amended(card: str, name: str, metrics: Mapping[str, Any], default: str) -> str:
    """Return a card with new figures; a card without the section gets it at its end."""
    body = re.sub(r"\A---\n.*?\n---\n", "", card, count=1, flags=re.DOTALL)
    new = section(metrics, default)
    start, end = body.find(_BEGIN), body.find(_END)
    body = f"{body.rstrip()}\n\n{new}\n" if min(start, end) < 0 else body[:start] + new + body[end + len(_END) :]
    return header(name, metrics, default) + body


def _yaml(text: str) -> str:
    """Return a text as YAML: bare if it is one plain word, else in JSON's quotes, which are valid YAML."""
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
    if measure["value"] is None or interval is None:
        return "not defined" if measure["value"] is None else f"{measure['value']:.3f}"
    return f"{measure['value']:.3f} ({interval['low']:.3f} to {interval['high']:.3f})"


LOGITS: Final = "logits_where_chosen"
_DIGITS: Final = 4  # decimals of a stored logit: far below what any figure shows


def measured_where_chosen(
    labels: npt.ArrayLike,
    logits: npt.ArrayLike,
    patients: Sequence[str],
    calibration: Calibration,
    points: Sequence[OperatingPoint],
    *,
    chosen_on: str,
    cautions: Sequence[str],
    left_out: Sequence[str] = (),
) -> dict[str, Any]:
    """Return the content of ``metrics.json``: each figure with count and 95% interval, and the logits by class.

    The logits are sorted, so that they identify no film; conformal sets are fitted on them.

    Args:
        labels, logits: shape (n,); both classes must occur.
        patients: n names, "" where unknown.
        chosen_on: the name of these films.
        cautions: remarks about them for the reader, in sentences.
        left_out: why further points are missing, in sentences.

    Raises: DataError, DegenerateLabels.
    """
    targets, values = np.asarray(labels), np.asarray(logits, dtype=np.float64)
    probabilities = calibrated(values, *calibration)
    positives = int(targets.sum())
    return {
        "split": chosen_on,
        "films": len(targets),
        "positives": positives,
        "negatives": len(targets) - positives,
        "patients": len(set(patients) - {""}) + list(patients).count(""),
        "auroc": {"value": auroc(targets, values), "interval": dataclasses.asdict(delong_interval(targets, values))},
        "brier": brier_score(targets, probabilities),
        "expected_calibration_error": expected_calibration_error(targets, probabilities),
        **calibration._asdict(),
        "operating_points": [
            _reached(point, Confusion.at(point.threshold, targets, probabilities)) for point in points
        ],
        "operating_points_left_out": list(left_out),
        "cautions": list(cautions),
        LOGITS: {
            name: np.sort(values[targets == index]).round(_DIGITS).tolist()
            for index, name in enumerate(("normal", "pneumonia"))
        },
    }


def _reached(point: OperatingPoint, counts: Confusion) -> dict[str, Any]:
    return {
        "name": point.name,
        "threshold": point.threshold,
        "confusion": dataclasses.asdict(counts),
        "sensitivity": _figure(counts.tp, counts.positives),
        "specificity": _figure(counts.tn, counts.negatives),
        "precision": _figure(counts.tp, counts.tp + counts.fp),
    }


def _figure(numerator: int, films: int) -> dict[str, Any]:
    if not films:
        return {"value": None, "numerator": 0, "films": 0, "interval": None}
    interval = dataclasses.asdict(wilson_interval(numerator, films))
    return {"value": numerator / films, "numerator": numerator, "films": films, "interval": interval}


# --------------------------------------------------------------------------- the gate

KINDS_OF_FILMS: Final = frozenset({"films", "shifted films"})


def gate_figures(detector: OODDetector) -> dict[str, Any]:
    """Return the gate's part of ``metrics.json``: how much of each kind is refused, with 95% intervals, and a curve.

    The origin of a kind is "training" (films that were kept back, unchanged and shifted), "made" (drawings, and
    pictures made from films), "given" (pictures that the export was told to refuse) or "validation" (films that set no
    limit).
    """
    kinds = [_refused(kind, _origin(kind), share) for kind, share in detector.refused.items()]
    kinds += [_refused(f"validation films, {label}", "validation", n) for label, n in detector.validation.items()]
    curve = {kind: list(shares) for kind, shares in detector.curve.items()}
    return {"kinds": kinds, "curve_limits": list(detector.curve_limits), "curve": curve}


def _origin(kind: str) -> str:
    return "training" if kind in KINDS_OF_FILMS else "made" if kind in WORDS else "given"


def _refused(kind: str, origin: str, share: RefusedCount) -> dict[str, Any]:
    figure = _figure(share.refused, share.of)
    return {"kind": kind, "origin": origin, "refused": figure.pop("numerator"), "of": figure.pop("films"), **figure}


_ORIGINS: Final = {
    "training": "training films kept back",
    "made": "drawn, or made of training films",
    "given": "given, held out by patient",
    "validation": "set no limit",
}


def gate_table(figures: Mapping[str, Any]) -> str:
    """Return the counts of ``gate_figures`` as a Markdown table."""
    rows = "\n".join(
        f"| {row['kind']} | {_ORIGINS[row['origin']]} | {row['refused']:,} of {row['of']:,} | {_share_of(row)} |"
        for row in figures["kinds"]
    )
    return f"| kind | origin | refused | share (95%) |\n|---|---|---|---|\n{rows}"


def _share_of(row: Mapping[str, Any]) -> str:
    if row["value"] is None:
        return "no such picture"
    interval = row["interval"]
    return f"{row['value']:.1%} ({interval['low']:.1%} to {interval['high']:.1%})"
