"""moto's server as a process of its own: S3 and others, over real HTTP, on a port that it chooses itself.

A server that a test no longer needs is emptied for the next one.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
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


class _Server:
    """One process, which serves one caller after another."""

    def __init__(self) -> None:
        self.folder = tempfile.TemporaryDirectory(prefix="moto-")
        log = Path(self.folder.name) / "log"
        with log.open("wb") as out:
            arguments = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", "0"]
            self.process = subprocess.Popen(arguments, stdout=out, stderr=out)
        try:
            self.address = _address_of(self.process, log)
        except BaseException:
            self.close()
            raise

    def forget(self) -> None:
        """Empty all accounts."""
        with urllib.request.urlopen(f"{self.address}/moto-api/reset", data=b"", timeout=60) as answer:  # noqa: S310
            assert answer.status == 200

    def close(self) -> None:
        self.process.terminate()
        self.process.wait()
        self.folder.cleanup()


_IDLE: Final[list[_Server]] = []  # each costs 3 s to start, and as much to load its services


@contextmanager
def running() -> Iterator[str]:
    """Serve empty accounts until the block ends; gives the address. Blocks within blocks have servers of their own."""
    while _IDLE and _IDLE[-1].process.poll() is not None:
        _IDLE.pop().close()
    server = _IDLE.pop() if _IDLE else _Server()
    try:
        server.forget()
        yield server.address
    finally:
        _IDLE.append(server)


def close_idle() -> None:
    """End the servers; conftest.py calls it behind the last test."""
    while _IDLE:
        _IDLE.pop().close()


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
