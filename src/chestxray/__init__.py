"""Chest X-rays in, calibrated pneumonia probabilities out. Research software, not a medical device.

Every verb of the command line is a function here, by the same name (those of ``chestxray aws`` excepted):

    films = chestxray.split(chestxray.clean(chestxray.collect("films")))
    chestxray.pack(films, "pack")
    chestxray.train("pack", "training", chestxray.recipe("default", epochs=3))
    chestxray.export("training", "bundle")
    print(chestxray.predict("film.jpeg", "bundle").probability)

Films are values, tuples of ``Film``; what lies on disk is named by its path. Every error on purpose is a
``ChestXrayError``; ``chestxray.errors`` has their tree. Names are found where they live when they are first used.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any, Final

from chestxray.errors import ChestXrayError
from chestxray.version import __version__

if TYPE_CHECKING:
    from chestxray.api import batch, calibrate, evaluate, evaluate_scores, export, load, predict, sign, train, verify
    from chestxray.data.clean import clean, describe, quarantine
    from chestxray.data.collect import collect
    from chestxray.data.pack import Pack
    from chestxray.data.pack import write_pack as pack
    from chestxray.data.report import write_data_report
    from chestxray.data.split import SplitSettings, split
    from chestxray.doctor import diagnose as doctor
    from chestxray.evaluation.assessment import Assessment
    from chestxray.inference.predictor import Predictor
    from chestxray.pipeline import RunSettings, run
    from chestxray.plots import plot_answer, plot_distribution, plot_films, plot_network, plot_scaling
    from chestxray.schema import BundleInfo, Film, PackInfo, Prediction, read_manifest, write_manifest
    from chestxray.serving.security import new_key as key
    from chestxray.serving.server import BackgroundService, ServeOptions, serve, serve_in_background
    from chestxray.synthetic.dataset import SyntheticSettings, write_synthetic_films
    from chestxray.training.blend import blend_runs as blend
    from chestxray.training.config import Recipe
    from chestxray.training.config import recipe_of as recipe

__all__ = [
    "__version__",
    # films
    "write_synthetic_films", "collect", "clean", "describe", "quarantine", "write_data_report", "split",
    "read_manifest", "write_manifest",
    # training
    "pack", "recipe", "train", "blend", "export",
    # judging
    "evaluate", "evaluate_scores", "calibrate", "sign", "verify", "load", "predict", "batch",
    # serving, and everything at once
    "serve", "serve_in_background", "key", "run", "doctor",
    # pictures
    "plot_films", "plot_distribution", "plot_scaling", "plot_network", "plot_answer",
    # what they take and give
    "Film", "PackInfo", "Pack", "BundleInfo", "Prediction", "Predictor", "Assessment", "BackgroundService",
    "SyntheticSettings", "SplitSettings", "Recipe", "RunSettings", "ServeOptions",
    "ChestXrayError",
]  # fmt: skip

# Where each name lives. The imports above say the same to editors and type checkers.
_HOMES: Final = {
    "write_synthetic_films": "synthetic.dataset.write_synthetic_films",
    "collect": "data.collect.collect",
    "clean": "data.clean.clean",
    "describe": "data.clean.describe",
    "quarantine": "data.clean.quarantine",
    "write_data_report": "data.report.write_data_report",
    "split": "data.split.split",
    "read_manifest": "schema.read_manifest",
    "write_manifest": "schema.write_manifest",
    "pack": "data.pack.write_pack",
    "recipe": "training.config.recipe_of",
    "train": "api.train",
    "blend": "training.blend.blend_runs",
    "export": "api.export",
    "evaluate": "api.evaluate",
    "evaluate_scores": "api.evaluate_scores",
    "calibrate": "api.calibrate",
    "sign": "api.sign",
    "verify": "api.verify",
    "load": "api.load",
    "predict": "api.predict",
    "batch": "api.batch",
    "serve": "serving.server.serve",
    "serve_in_background": "serving.server.serve_in_background",
    "key": "serving.security.new_key",
    "run": "pipeline.run",
    "doctor": "doctor.diagnose",
    "plot_films": "plots.draw_films",
    "plot_distribution": "plots.plot_distribution",
    "plot_scaling": "plots.plot_scaling",
    "plot_network": "plots.plot_network",
    "plot_answer": "plots.plot_answer",
    "Film": "schema.Film",
    "PackInfo": "schema.PackInfo",
    "Pack": "data.pack.Pack",
    "BundleInfo": "schema.BundleInfo",
    "Prediction": "schema.Prediction",
    "Predictor": "inference.predictor.Predictor",
    "Assessment": "evaluation.assessment.Assessment",
    "BackgroundService": "serving.server.BackgroundService",
    "SyntheticSettings": "synthetic.dataset.SyntheticSettings",
    "SplitSettings": "data.split.SplitSettings",
    "Recipe": "training.config.Recipe",
    "RunSettings": "pipeline.RunSettings",
    "ServeOptions": "serving.server.ServeOptions",
}


def __getattr__(name: str) -> Any:
    """Find a name where it lives, the first time that it is used. Raises: AttributeError, naming the nearest."""
    if name not in _HOMES:
        from difflib import get_close_matches

        (nearest,) = get_close_matches(name, __all__, n=1, cutoff=0.0)
        raise AttributeError(f"chestxray has no {name!r}; the nearest is {nearest!r}", name=name)
    module, _, attribute = _HOMES[name].rpartition(".")
    found = getattr(import_module(f"{__name__}.{module}"), attribute)
    globals()[name] = found
    return found


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
