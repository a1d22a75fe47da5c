"""The function's code as an archive: a file that asks the endpoint, or all that judges a film itself.

Inline, this is a zip archive and no container image, because pip can fetch onnxruntime, numpy and Pillow for Lambda's
system on any machine, where an image needs Docker; unpacked they take well under the 250 MB that Lambda allows.
"""

from __future__ import annotations

import io
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterable, Iterator
from importlib import metadata
from pathlib import Path
from typing import Final

import chestxray
from chestxray.aws import lambda_handler
from chestxray.aws.waiting import Say
from chestxray.errors import CloudError, UsageError
from chestxray.inference.bundle import Bundle

PYTHON: Final = "3.13"  # the function's; website.yaml says the same
LIBRARIES: Final = ("numpy", "onnxruntime", "pillow")  # of this installation's versions, so that the answers agree
PLATFORMS: Final = ("manylinux_2_28_x86_64", "manylinux_2_27_x86_64", "manylinux2014_x86_64")  # Amazon Linux 2023's
MAX_UNPACKED: Final = 250 * 2**20  # bytes; Lambda takes no more
EPOCH: Final = (1980, 1, 1, 0, 0, 0)  # of every file, so that the same code is the same archive

_OF_THE_PACKAGE: Final = frozenset({".py", ".npz", ".json"})
_ROOMS_NOT_NEEDED: Final = frozenset({"__pycache__", "bundles", "judging", "page", "training"})
_NOT_NEEDED: Final = frozenset({"__pycache__", "bin", "tests"})  # of the libraries
_WEIGHTS: Final = "weights.safetensors"  # to go on training with

Member = tuple[str, bytes]


def endpoint_archive(model: str) -> bytes:
    """The function that asks an endpoint; ``model`` is its answer to ``/v1/model``."""
    return _zipped([("lambda_handler.py", Path(lambda_handler.__file__).read_bytes()), ("model.json", model.encode())])


def inline_archive(bundle: Path, model: str, say: Say, python: str = PYTHON) -> bytes:
    """The function that judges itself: our package, the bundle, and the libraries for Lambda's system.

    Raises: CloudError: too large for Lambda; UsageError: pip cannot fetch the libraries.
    """
    with tempfile.TemporaryDirectory(prefix="chestxray-") as made:
        _fetch_libraries(Path(made), python, say)
        members = [
            ("model.json", model.encode()),
            *_our_package(),
            *_bundle_files(bundle),
            *_files_below(Path(made), _NOT_NEEDED),
        ]
    size = sum(len(data) for _, data in members)
    if size > MAX_UNPACKED:
        raise CloudError(
            f"the function would have {size / 2**20:,.0f} MiB; Lambda takes {MAX_UNPACKED / 2**20:,.0f}. "
            'Deploy an endpoint ("chestxray aws deploy") and leave out --inline'
        )
    return _zipped(members)


def _bundle_files(bundle: Path) -> Iterator[Member]:
    for name in ("bundle.json", *Bundle.open(bundle).info.files):
        yield f"bundle/{name}", (bundle / name).read_bytes()


def _fetch_libraries(folder: Path, python: str, say: Say) -> None:
    wanted = [f"{name}=={metadata.version(name)}" for name in LIBRARIES]
    say(f"fetching {', '.join(wanted)} for Python {python} on Linux")
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-compile"]
    command += ["--target", str(folder), "--only-binary", ":all:", "--implementation", "cp", "--python-version", python]
    for platform in PLATFORMS:
        command += ["--platform", platform]
    done = subprocess.run([*command, *wanted], capture_output=True, text=True, check=False)  # noqa: S603 - our own words
    if done.returncode:
        reason = done.stderr.strip().splitlines()[-1:] or ["it says nothing"]
        raise UsageError(
            f"pip cannot fetch the function's libraries: {reason[0]}. Is it installed, and the network up?"
        )


def _our_package() -> Iterator[Member]:
    for name, data in _files_below(Path(chestxray.__file__).parent, _ROOMS_NOT_NEEDED):
        if Path(name).suffix in _OF_THE_PACKAGE:
            yield f"chestxray/{name}", data


def _files_below(folder: Path, without: frozenset[str]) -> Iterator[Member]:
    for path in sorted(folder.rglob("*")):
        inside = path.relative_to(folder)
        if path.is_file() and not without.intersection(inside.parts):
            yield inside.as_posix(), path.read_bytes()


def _zipped(members: Iterable[Member]) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in members:
            info = zipfile.ZipInfo(name, EPOCH)
            info.compress_type = zipfile.ZIP_DEFLATED
            info.external_attr = 0o644 << 16  # readable by the function's user
            archive.writestr(info, data)
    return out.getvalue()
