"""IAM's documents, and the templates that hold some of them, looked through."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import yaml

from chestxray.aws import stacks


class _Loader(yaml.SafeLoader):
    """YAML with CloudFormation's short functions, which become {"!Ref": ...}."""


_Loader.add_multi_constructor(
    "!",
    lambda loader, suffix, node: {
        f"!{suffix}": loader.construct_scalar(node)
        if isinstance(node, yaml.ScalarNode)
        else loader.construct_sequence(node, deep=True)
    },
)


def template(name: str) -> dict[str, Any]:
    """One of ``stacks.TEMPLATES`` as a document."""
    return dict(yaml.load(stacks.stack_template(name), _Loader))  # noqa: S506 - a SafeLoader


def statements(found: Any) -> Iterator[Mapping[str, Any]]:
    """Every statement of every policy in a document, whatever it hangs on."""
    if isinstance(found, Mapping):
        if "Effect" in found:
            yield found
        for value in found.values():
            yield from statements(value)
    elif isinstance(found, list):
        for value in found:
            yield from statements(value)


def as_list(value: Any) -> list[Any]:
    """One thing or several, as IAM lets people write."""
    return value if isinstance(value, list) else [value]
