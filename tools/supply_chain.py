"""The bill of materials of the bare package, and known vulnerabilities of everything that is pinned.

    python tools/supply_chain.py dist/chestxray-0.1.0-py3-none-any.whl --out dist/chestxray.cdx.json [--no-audit]

The first needs a package index, the second an advisory service. What could not be audited is told and is a failure of
its own: "nothing found" must not be said by somebody who did not look. Exit status: 0 all looked at and nothing found,
1 vulnerabilities, 3 not audited.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import venv
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
CONSTRAINTS = ROOT / "constraints.txt"
NOT_AUDITED = 3
SHOWN = 5  # names in a line


@dataclass(frozen=True)
class Audit:
    """What the advisory service said.

    Attributes:
        asked: packages that it knew.
        found: one line a vulnerability.
        skipped: packages that it did not answer for.
        trouble: why it answered for none; empty where it did.
    """

    asked: int = 0
    found: tuple[str, ...] = ()
    skipped: tuple[str, ...] = ()
    trouble: str = ""

    @property
    def status(self) -> int:
        """For the exit: findings count more than gaps."""
        if self.found:
            return 1
        return NOT_AUDITED if self.skipped or self.trouble else 0

    def __str__(self) -> str:
        if self.trouble:
            return f"NOT audited: the advisory service was not reached ({self.trouble})"
        lines = [*self.found, f"{self.asked} packages audited, {len(self.found)} vulnerabilities"]
        if self.skipped:
            names = ", ".join(self.skipped[:SHOWN]) + (", ..." if len(self.skipped) > SHOWN else "")
            lines.append(f"NOT audited: {len(self.skipped)} packages that the advisory service did not know ({names})")
        return "\n".join(lines)


def read_audit(output: str, errors: str) -> Audit:
    """Understand what pip-audit printed; it ends well also where it could not look a package up."""
    try:
        packages = json.loads(output)["dependencies"]
    except (ValueError, KeyError, TypeError):
        return Audit(trouble=(errors.strip() or "it said nothing").splitlines()[-1])
    return Audit(
        asked=sum("skip_reason" not in package for package in packages),
        found=tuple(line for package in packages for line in _findings(package)),
        skipped=tuple(package["name"] for package in packages if "skip_reason" in package),
    )


def _findings(package: dict[str, Any]) -> list[str]:
    name = f"{package['name']} {package.get('version', '')}"
    return [
        f"{name}: {finding['id']}, mended in {', '.join(finding['fix_versions']) or 'no version yet'}"
        for finding in package.get("vulns", ())
    ]


def audit(requirements: Path) -> Audit:
    """Ask about each pinned package, nothing resolved and nothing installed."""
    options = ["--requirement", str(requirements), "--no-deps", "--disable-pip", "--format", "json"]
    command = [sys.executable, "-m", "pip_audit", *options, "--progress-spinner", "off"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return read_audit(done.stdout, done.stderr)


def bare_environment(wheel: Path, folder: Path) -> Path:
    """Install the wheel without extras, at the pinned versions, and nothing else, not even pip; its interpreter."""
    venv.create(folder, with_pip=False)
    python = folder / "bin" / "python"
    pip = [sys.executable, "-m", "pip", "--python", str(python), "install", "--quiet", "--disable-pip-version-check"]
    subprocess.run([*pip, "--constraint", str(CONSTRAINTS), str(wheel)], check=True)
    return python


def bill_of_materials(python: Path, out: Path) -> None:
    """Write what is installed beside an interpreter as CycloneDX, checked against its schema; the same bytes again."""
    options = ["--pyproject", str(ROOT / "pyproject.toml"), "--mc-type", "library", "--output-reproducible"]
    command = [sys.executable, "-m", "cyclonedx_py", "environment", *options, "--validate", "--of", "JSON"]
    subprocess.run([*command, "--output-file", str(out), str(python)], check=True)


def main() -> None:
    """Parse, do both, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("wheel", type=Path)
    parser.add_argument("--out", type=Path, required=True, help="the bill of materials")
    parser.add_argument("--no-audit", action="store_true", help="ask no advisory service")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        bill_of_materials(bare_environment(options.wheel, Path(folder)), options.out)
    components = json.loads(options.out.read_text(encoding="utf-8"))["components"]
    print(f"{options.out}: {len(components)} packages")
    if options.no_audit:
        print("NOT audited: not asked to")
        return
    result = audit(CONSTRAINTS)
    print(result)
    sys.exit(result.status)


if __name__ == "__main__":
    main()
