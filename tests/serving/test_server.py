"""The service in a thread of the caller's process: the same answers, and an end that is one."""

from __future__ import annotations

import json
import shutil
import socket
import subprocess
import sys
import threading
from pathlib import Path

import httpx
import pytest

import chestxray
from chestxray.errors import BundleInvalid, UsageError

JPEG = {"Content-Type": "image/jpeg"}


def test_the_page_and_the_api_answer_until_the_end_of_the_block(bundle: Path, film: bytes) -> None:
    before = threading.active_count()
    with chestxray.serve_in_background(bundle) as service:
        assert "<html" in httpx.get(service.address, timeout=60).text
        told = httpx.post(f"{service.address}/v1/predict", content=film, headers=JPEG, timeout=60).json()
    expected = json.loads(chestxray.predict(film, bundle).to_json())
    assert {name: told[name] for name in expected if name != "heatmap"} == {
        name: value for name, value in expected.items() if name != "heatmap"
    }
    with pytest.raises(httpx.TransportError):
        httpx.get(service.address, timeout=60)
    assert threading.active_count() == before


def test_stopping_twice_is_stopping_once_and_the_port_is_free_again(bundle: Path) -> None:
    service = chestxray.serve_in_background(str(bundle))
    service.stop()
    service.stop()
    port = int(service.address.rsplit(":", 1)[1])
    again = chestxray.serve_in_background(bundle, chestxray.ServeOptions(port=port))
    assert again.address == service.address
    again.stop()


def test_what_keeps_a_service_from_starting_is_raised_where_it_was_asked_for(bundle: Path, tmp_path: Path) -> None:
    damaged = tmp_path / "bundle"
    shutil.copytree(bundle, damaged)
    (damaged / "model.onnx").write_bytes(b"no graph")
    with pytest.raises(BundleInvalid, match="changed or damaged"):
        chestxray.serve_in_background(damaged)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(UsageError, match=f"port {port} on 127.0.0.1 is taken"):
            chestxray.serve_in_background(bundle, chestxray.ServeOptions(port=port))


def test_a_script_that_forgets_to_stop_its_service_ends_all_the_same(bundle: Path) -> None:
    code = f"import chestxray; print(chestxray.serve_in_background({str(bundle)!r}).address)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=120)
    assert (done.returncode, done.stdout[:7]) == (0, "http://"), done.stderr
    with pytest.raises(httpx.TransportError):
        httpx.get(done.stdout.strip(), timeout=60)
