"""The OpenAPI document against the running service: schemathesis sends what it allows, and what it does not."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from chestxray.inference.predictor import Predictor
from chestxray.serving.security import KeyRing, new_key
from chestxray.serving.service import ServiceSettings
from live_service import running

# A body may be of the right form (bytes) and still be no film: 413, 415 and 422 are right answers to right forms.
CONFIGURATION = """
[checks.positive_data_acceptance]
expected-statuses = ["2xx", "401", "406", "413", "415", "422"]
"""


def schemathesis(address: str, folder: Path, *options: str) -> None:
    """Run it with all of its checks; raises with its report where one fails."""
    configuration = folder / "schemathesis.toml"
    configuration.write_text(CONFIGURATION)
    done = subprocess.run(
        [
            Path(sys.executable).with_name("schemathesis"), f"--config-file={configuration}", "run",
            f"{address}/openapi.json", "--checks=all", "--seed=6", "--no-color", "--max-response-time=30", *options,
        ],
        capture_output=True, text=True, check=False, cwd=folder, env=os.environ | {"COLUMNS": "120"},
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-8000:] + done.stderr[-2000:]


def test_the_service_keeps_what_its_document_promises(bundle: Path, tmp_path: Path) -> None:
    with running(Predictor.load(bundle)) as address:
        schemathesis(address, tmp_path, "--max-examples=8")


@pytest.mark.soak
def test_the_service_keeps_what_its_document_promises_for_long(bundle: Path, tmp_path: Path) -> None:
    with running(Predictor.load(bundle)) as address:
        schemathesis(address, tmp_path, "--max-examples=400")


@pytest.mark.soak
def test_the_service_keeps_what_its_document_promises_with_a_key(bundle: Path, tmp_path: Path) -> None:
    key, entry = new_key("tester")
    with running(Predictor.load(bundle), ServiceSettings(keys=KeyRing.from_text(entry, "keys"))) as address:
        # It counts a false bearer token as accepted although the right key stands in the header beside it, so that one
        # check is left out; tests/serving/test_security.py tries false keys of both kinds, each alone.
        options = ("--max-examples=50", "--exclude-checks=ignored_auth", "-H", f"X-API-Key: {key}")
        schemathesis(address, tmp_path, *options)
