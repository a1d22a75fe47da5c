"""The function's code as an archive: a file that asks the endpoint, or all that judges a film itself.

Inline, this is a zip archive and no container image, because pip can fetch onnxruntime, numpy and Pillow for Lambda's
system on any machine, where an image needs Docker; unpacked they take well under the 250 MB that Lambda allows.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from importlib import metadata
from pathlib import Path
from typing import Final

from chestxray.aws import lambda_handler
from chestxray.aws.archives import files_below, package_files, zipped
from chestxray.errors import CloudError, UsageError
from chestxray.inference.bundle import Bundle
from chestxray.progress import Log

PYTHON: Final = "3.13"  # the function's; website.yaml says the same
LIBRARIES: Final = ("numpy", "onnxruntime", "pillow")  # of this installation's versions, so that the answers agree
PLATFORMS: Final = ("manylinux_2_28_x86_64", "manylinux_2_27_x86_64", "manylinux2014_x86_64")  # Amazon Linux 2023's
MAX_UNPACKED: Final = 250 * 2**20  # bytes; Lambda takes no more

_OF_THE_PACKAGE: Final = frozenset({".py", ".npz", ".json"})
_ROOMS_NOT_NEEDED: Final = frozenset({"bundles", "page", "training"})
_NOT_NEEDED: Final = frozenset({"__pycache__", "bin", "tests"})  # of the libraries


def endpoint_archive(model: str) -> bytes:
    """The function that asks an endpoint; ``model`` is its answer to ``/v1/model``."""
    return zipped({"lambda_handler.py": Path(lambda_handler.__file__).read_bytes(), "model.json": model.encode()})


def inline_archive(bundle: Path, model: str, log: Log, python: str = "") -> bytes:
    """The function that judges itself: our package, the bundle, and the libraries for Lambda's system.

    Args:
        python: version that it will run by; the function's own, unless given.

    Raises: CloudError: too large for Lambda; UsageError: pip cannot fetch the libraries.
    """
    with tempfile.TemporaryDirectory(prefix="chestxray-") as made:
        _fetch_libraries(Path(made), python or PYTHON, log)
        files = {
            **dict(files_below(Path(made), _NOT_NEEDED)),
            **package_files(without=_ROOMS_NOT_NEEDED, suffixes=_OF_THE_PACKAGE),
            **_bundle_files(bundle),
            "model.json": model.encode(),
        }
    size = sum(map(len, files.values()))
    if size > MAX_UNPACKED:
        raise CloudError(
            f"the function would have {size / 2**20:,.0f} MiB; Lambda takes {MAX_UNPACKED / 2**20:,.0f}. "
            'Deploy an endpoint ("chestxray aws deploy") and leave out --inline'
        )
    return zipped(files)


def _bundle_files(bundle: Path) -> dict[str, bytes]:
    names = ("bundle.json", *Bundle.open(bundle).info.files)
    return {f"bundle/{name}": (bundle / name).read_bytes() for name in names}


def _fetch_libraries(folder: Path, python: str, log: Log) -> None:
    wanted = [f"{name}=={metadata.version(name)}" for name in LIBRARIES]
    log(f"fetching {', '.join(wanted)} for Python {python} on Linux")
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
