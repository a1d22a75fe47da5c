"""The bundles that come with this package, by name."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from chestxray.errors import BundleInvalid
from chestxray.inference.bundle import DESCRIPTION

BUNDLES: Final = Path(__file__).parents[1] / "bundles"
DEFAULT: Final = "pneumonia"


def shipped_bundles() -> tuple[str, ...]:
    """Names, in alphabetical order."""
    return tuple(sorted(path.parent.name for path in BUNDLES.glob(f"*/{DESCRIPTION}")))


def folder_of(bundle: str | Path) -> Path:
    """The folder of a bundle: a path as it is, or the name of one that comes with this package.

    A folder of that name in the working directory comes first.

    Raises: BundleInvalid: neither exists; names those that come with the package.
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
