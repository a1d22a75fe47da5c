"""The original's way: Flask under gunicorn, a PyTorch module, one film a call. ``gunicorn flask_peer:app``."""

from __future__ import annotations

import os
from pathlib import Path

import torch
from flask import Flask, jsonify, request
from safetensors.torch import load_file

from chestxray.evaluation.calibration import calibrated
from chestxray.inference.bundle import Bundle
from chestxray.inference.prepare import prepare
from chestxray.training.networks import build

torch.set_num_threads(1)
bundle = Bundle.open(Path(os.environ["PEER_BUNDLE"]))
info = bundle.info
network = build(info.network, info.preprocessing, started=False)
network.load_state_dict(load_file(bundle.folder / "weights.safetensors"))
network.eval()
app = Flask(__name__)


@app.post("/predict")
def predict():
    """One film in, one probability out."""
    plane = prepare(request.get_data(), "film", info.preprocessing).plane
    with torch.inference_mode():
        logit, _ = network.explain(torch.from_numpy(plane.copy())[None, None])
    return jsonify(probability=float(calibrated(logit.numpy(), info.temperature, info.bias)[0]))
