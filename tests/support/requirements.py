"""What pyproject.toml and constraints.txt say, and what follows from it in the environment that runs the tests."""

from __future__ import annotations

import importlib.metadata
import re
import tomllib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT: Final = Path(__file__).parents[2]
PROJECT: Final[Mapping[str, Any]] = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
OURS: Final = PROJECT["project"]["name"]
CORE: Final[tuple[str, ...]] = tuple(PROJECT["project"]["dependencies"])
EXTRAS: Final[Mapping[str, list[str]]] = PROJECT["project"]["optional-dependencies"]
GROUPS: Final[Mapping[str, list[str]]] = {
    name: [line for line in lines if isinstance(line, str)] for name, lines in PROJECT["dependency-groups"].items()
}
BUILD: Final[tuple[str, ...]] = tuple(PROJECT["build-system"]["requires"])


@dataclass(frozen=True)
class Closure:
    """All that some requirements ask for, directly or not.

    Attributes:
        installed: version by canonical name.
        missing: canonical names that are asked for and not there.
    """

    installed: Mapping[str, str]
    missing: frozenset[str]


def names(requirements: Iterable[str]) -> set[str]:
    """Canonical names of what is asked for directly; extras of our own are followed."""
    return {canonicalize_name(asked.name) for asked in _followed(map(Requirement, requirements))}


def pins() -> dict[str, str]:
    """constraints.txt: version by canonical name."""
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pairs = [line.split("==") for line in lines if line and not line.startswith("#")]
    return {canonicalize_name(name): version for name, version in pairs}


def locked() -> dict[str, tuple[str, list[str]]]:
    """requirements.lock: version and hashes by canonical name."""
    text = (ROOT / "requirements.lock").read_text(encoding="utf-8")
    found = re.findall(r"^([\w.-]+)==(\S+)[^\n]*((?:\n +--hash=sha256:[0-9a-f]{64}(?: \\)?)*)$", text, re.MULTILINE)
    return {canonicalize_name(name): (version, hashes.split("--hash=")[1:]) for name, version, hashes in found}


def closure(requirements: Iterable[str]) -> Closure:
    """What pip would install here for these requirements, by the metadata of what is installed."""
    installed: dict[str, str] = {}
    missing: set[str] = set()
    todo = [(asked, "") for asked in _followed(map(Requirement, requirements))]
    seen = set()
    while todo:
        asked, extra = todo.pop()
        if asked.marker is not None and not asked.marker.evaluate({"extra": extra}):
            continue
        name = canonicalize_name(asked.name)
        try:
            found = importlib.metadata.distribution(name)
        except importlib.metadata.PackageNotFoundError:
            missing.add(name)
            continue
        installed[name] = found.version
        for wanted in {"", *asked.extras} - {extra for known, extra in seen if known == name}:
            seen.add((name, wanted))
            todo += [(Requirement(line), wanted) for line in found.requires or ()]
    return Closure(installed, frozenset(missing))


def _followed(requirements: Iterable[Requirement]) -> Iterator[Requirement]:
    for asked in requirements:
        if canonicalize_name(asked.name) != OURS:
            yield asked
            continue
        yield from (Requirement(line) for line in CORE)
        for extra in asked.extras:
            yield from _followed(map(Requirement, EXTRAS[extra]))
