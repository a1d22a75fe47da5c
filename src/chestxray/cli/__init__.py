"""The command line: each command parses, calls one stage and prints. Heavy imports stay inside the commands."""

from __future__ import annotations

from chestxray.cli.main import main

__all__ = ["main"]
