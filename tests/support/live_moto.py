"""moto's server as a process of its own: S3 and others, over real HTTP, on a port that it chooses itself."""

from __future__ import annotations

import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

CREDENTIALS: Final = {
    "AWS_ACCESS_KEY_ID": "test",
    "AWS_SECRET_ACCESS_KEY": "test",
    "AWS_DEFAULT_REGION": "us-east-1",
    "AWS_EC2_METADATA_DISABLED": "true",
}
ACCOUNT: Final = "123456789012"  # moto's


@contextmanager
def running(log: Path) -> Iterator[str]:
    """Serve until the block ends; gives the address."""
    with log.open("wb") as out:
        arguments = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", "0"]
        server = subprocess.Popen(arguments, stdout=out, stderr=out)
    try:
        yield _address_of(server, log)
    finally:
        server.terminate()
        server.wait()


def _address_of(server: subprocess.Popen[bytes], log: Path) -> str:
    for _ in range(600):
        assert server.poll() is None, log.read_text()
        for word in log.read_text().split():
            if word.startswith("http://127.0.0.1:"):
                try:
                    with urllib.request.urlopen(f"{word}/moto-api/", timeout=5):  # noqa: S310 - on loopback
                        return word
                except urllib.error.URLError:
                    break
        time.sleep(0.1)
    raise TimeoutError(log.read_text())
