"""Chest X-rays in, calibrated pneumonia probabilities out. Research software, not a medical device."""

from __future__ import annotations

from typing import Final

__version__: Final = "0.1.0"
