"""Chest X-rays in, calibrated pneumonia probabilities out. Research software, not a medical device."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from chestxray.inference.predictor import Predictor

__all__ = ["__version__", "load"]

__version__: Final = "0.1.0"


def load(bundle: str | Path, threads: int | None = None) -> Predictor:
    """The model in a bundle, ready to judge: ``load("bundle")("film.jpeg").probability``.

    Args:
        bundle: the folder that "chestxray export" or "chestxray run" wrote.
        threads: of one forward pass; by default one a core, at most four.

    Raises: BundleInvalid.
    """
    from chestxray.inference.predictor import Predictor

    return Predictor.load(Path(bundle), threads)
