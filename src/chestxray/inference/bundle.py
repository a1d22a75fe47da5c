"""A bundle: a trained network with everything that is needed to use it, in one folder.

    model.onnx            input "film": uint8 (N, 1, height, width)
                          outputs "logit": float32 (N,); "activation": float32 (N, rows, columns)
    weights.safetensors   the same weights, for further training
    bundle.json           BundleInfo: preprocessing, calibration, operating points, hashes
    MODEL_CARD.md, metrics.json

No pickle, no ONNX external data, nothing executable.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from chestxray.errors import BundleInvalid
from chestxray.files import folder_written_whole, sha256_of_file
from chestxray.schema import BundleInfo

DESCRIPTION: Final = "bundle.json"
GRAPH: Final = "model.onnx"


@dataclass(frozen=True, slots=True)
class Bundle:
    """An opened bundle: its folder and its description. The graph's hash is not checked yet."""

    folder: Path
    info: BundleInfo

    @classmethod
    def open(cls, folder: Path | str) -> Bundle:
        """Open a bundle. Raises: BundleInvalid, if the description or a file that it lists is missing."""
        folder = Path(folder)
        description = folder / DESCRIPTION
        try:
            info = BundleInfo.from_json(description.read_text(encoding="utf-8"), str(description))
        except (OSError, UnicodeDecodeError) as error:
            raise BundleInvalid(
                f'{folder}: not a bundle, {DESCRIPTION} cannot be read. Make one with "chestxray export"'
            ) from error
        for name in info.files:
            if Path(name).name != name:
                raise BundleInvalid(f"{folder}: lists {name!r}, which lies outside the bundle")
            if not (folder / name).is_file():
                raise BundleInvalid(f"{folder}: {name} is missing. Copy the whole folder again")
        return cls(folder, info)

    def graph(self) -> bytes:
        """Return the ONNX graph, after a check of its hash. Raises: BundleInvalid."""
        return self.read(GRAPH)

    def read(self, name: str) -> bytes:
        """Return the bytes of a listed file, after a check of its hash. Raises: BundleInvalid."""
        data = (self.folder / name).read_bytes()
        self._compare(name, hashlib.sha256(data).hexdigest())
        return data

    def verify(self) -> None:
        """Check every file against its hash. Raises: BundleInvalid, which names the first file that differs."""
        for name in self.info.files:
            self._compare(name, sha256_of_file(self.folder / name))

    def _compare(self, name: str, found: str) -> None:
        expected = self.info.files[name]
        if found != expected:
            raise BundleInvalid(
                f"{self.folder / name}: SHA-256 is {found[:12]}..., expected {expected[:12]}...: "
                "the file was changed or damaged. Copy the whole folder again"
            )


def write_bundle(folder: Path, info: BundleInfo, files: Mapping[str, bytes]) -> BundleInfo:
    """Write a complete bundle or nothing; its hashes are computed from ``files``.

    Law: ``Bundle.open(folder).info`` equals the returned description.

    Raises: OutputExists, if ``folder`` exists and is no bundle.
    """
    hashes = {name: hashlib.sha256(data).hexdigest() for name, data in files.items()}
    complete = dataclasses.replace(info, files=hashes)
    with folder_written_whole(folder, marker=DESCRIPTION) as beside:
        for name, data in files.items():
            (beside / name).write_bytes(data)
        (beside / DESCRIPTION).write_text(complete.to_json(), encoding="utf-8")
    return complete


BUNDLES: Final = Path(__file__).parents[1] / "bundles"
DEFAULT: Final = "pneumonia"


def shipped_bundles() -> tuple[str, ...]:
    """Return the names of the bundles in this package, in alphabetical order."""
    return tuple(sorted(path.parent.name for path in BUNDLES.glob(f"*/{DESCRIPTION}")))


def folder_of(bundle: str | Path) -> Path:
    """Return the folder of a bundle, given by its path or by the name of a bundle in this package.

    A folder of that name in the working directory takes precedence.

    Raises: BundleInvalid: neither exists; the message names the bundles in the package.
    """
    folder = Path(bundle)
    if folder.exists():
        return folder
    if str(bundle) in shipped_bundles():
        return BUNDLES / bundle
    raise BundleInvalid(
        f"{bundle}: no such folder, and no bundle of that name comes with this package, which has "
        f'{", ".join(shipped_bundles()) or "none"}. Make one with "chestxray run"'
    )
