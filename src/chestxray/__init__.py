"""Chest X-rays in, calibrated pneumonia probabilities out. Research software, not a medical device."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from chestxray.inference.predictor import Predictor

__all__ = ["__version__", "load"]

__version__: Final = "0.1.0"


def load(bundle: str | Path = "pneumonia", threads: int | None = None) -> Predictor:
    """A model, ready to judge: ``load()("film.jpeg").probability``.

    Args:
        bundle: the folder that "chestxray export" or "chestxray run" wrote, or the name of a bundle that comes with
            this package: "pneumonia", or "pneumonia-small".
        threads: of one forward pass; by default one a core, at most four.

    Raises: BundleInvalid.
    """
    from chestxray.inference.predictor import Predictor
    from chestxray.inference.shipped import folder_of

    return Predictor.load(folder_of(bundle), threads)
