"""The original's way: Flask under gunicorn, a PyTorch module, one film a call. ``gunicorn flask_peer:app``."""

from __future__ import annotations

import os
from pathlib import Path

import torch
from flask import Flask, jsonify, request
from safetensors.torch import load_file

from chestxray.inference.bundle import Bundle
from chestxray.inference.ood import prepare
from chestxray.metrics.calibration import calibrated
from chestxray.training.ensemble import Ensemble
from chestxray.training.networks import build

torch.set_num_threads(1)
bundle = Bundle.open(Path(os.environ["PEER_BUNDLE"]))
info = bundle.info
weights = load_file(bundle.folder / "weights.safetensors")
parts = info.network.split(" + ")
# the common scale of grey levels, as the shipped bundle's recipe has it; the answers are compared with the graph's
members = [build(part, info.preprocessing, started=False, common_scale=True) for part in parts]
network = members[0] if len(members) == 1 else Ensemble(members)
network.load_state_dict(weights if len(members) == 1 else {f"members.{name}": one for name, one in weights.items()})
network.eval()
app = Flask(__name__)


@app.post("/predict")
def predict():
    """One film in, one probability out."""
    plane = prepare(request.get_data(), "film", info.preprocessing).plane
    with torch.inference_mode():
        logit, _ = network.explain(torch.from_numpy(plane.copy())[None, None])
    return jsonify(probability=float(calibrated(logit.numpy(), info.temperature, info.bias)[0]))
