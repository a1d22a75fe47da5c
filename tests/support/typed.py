"""Commands as somebody types them, in this process."""

from __future__ import annotations

import json
from typing import Any

import pytest

from chestxray.cli import main


def run(*arguments: object) -> int:
    """The exit status."""
    with pytest.raises(SystemExit) as end:
        main([str(argument) for argument in arguments])
    return int(end.value.code or 0)


def told(capsys: pytest.CaptureFixture[str], *arguments: object) -> dict[str, Any]:
    """What it tells machines, with the exit status as "exit" and what it says beside as "said"."""
    capsys.readouterr()
    status = run(*arguments, "--json")
    out = capsys.readouterr()
    return {**json.loads(out.out), "exit": status, "said": out.err}
