"""The command line: each verb parses, calls one stage and prints. Heavy imports stay inside the verbs."""

from __future__ import annotations

from chestxray.cli.main import main

__all__ = ["main"]
