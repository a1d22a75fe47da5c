"""Write requirements.lock: every archive that the index in use offers for the versions of constraints.txt, by SHA-256.

    python tools/lock.py        (make lock, after a change of pyproject.toml or constraints.txt)

uv resolves for every platform and Python at once; where its index lies is its own configuration (UV_DEFAULT_INDEX and
its kin) and is not written down. Left out are torch and the GPU libraries of its usual build, because the indexes that
offer torch without them have archives, and hashes, of their own.
"""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
LOCK = ROOT / "requirements.lock"
HEAD = """\
# The archives that a checkout may install, by SHA-256; written by "make lock". Without torch, see tools/lock.py.
"""
LEFT_OUT = re.compile(r"torch|triton|nvidia-.*|cuda-.*|pip")
OLDEST = "3.11.5"  # Python; some of the versions in constraints.txt need it


def locked() -> str:
    """Return what uv resolves, with hashes and without addresses."""
    command = [sys.executable, "-m", "uv", "pip", "compile", "pyproject.toml", "--quiet", "--all-extras"]
    command += ["--group", "dev", "--group", "docs", "--constraint", "constraints.txt", "--python-version", OLDEST]
    command += ["--universal", "--generate-hashes", "--no-annotate", "--no-header", "--no-emit-index-url"]
    return subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.PIPE, text=True).stdout


def without_torch(text: str) -> str:
    """Return the requirements of a hashed list but for those that are LEFT_OUT."""
    blocks = re.split(r"^(?=\S)", text, flags=re.MULTILINE)
    return "".join(block for block in blocks if not LEFT_OUT.fullmatch(block.partition("==")[0]))


def main() -> int:
    """Write the file; return 0."""
    LOCK.write_text(HEAD + without_torch(locked()), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
