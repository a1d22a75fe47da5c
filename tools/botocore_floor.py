"""Writes down what the lowest boto3 that the package allows knows of the requests that it makes.

    pip install --no-deps --target FOLDER botocore==1.40.61     # as pyproject.toml has it for boto3
    python tools/botocore_floor.py FOLDER

The tests hold each request of the AWS verbs against this file, so that a parameter which only a newer boto3 knows is
seen here, and not by somebody whose boto3 is old.
"""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any, Final

from botocore import xform_name
from botocore.loaders import Loader
from botocore.model import ServiceModel, Shape

ROOT: Final = Path(__file__).resolve().parents[1]
OUT: Final = ROOT / "tests" / "support" / "botocore_floor.json"
SERVICES: Final = (
    *(
        "cloudformation",
        "cloudfront",
        "codebuild",
        "ecr",
        "iam",
        "logs",
        "s3",
        "sagemaker",
        "scheduler",
        "service-quotas",
        "sts",
    ),
)


def members(shape: Shape) -> Any:
    """What a parameter may hold: names of a structure, what a list or a map holds; None for a plain value."""
    if shape.type_name == "structure":
        return {name: members(inner) for name, inner in shape.members.items()}
    if shape.type_name == "list":
        return [members(shape.member)]
    if shape.type_name == "map":
        return [members(shape.value)]
    return None


def main(folder: str) -> None:
    """Write the file."""
    loader = Loader(extra_search_paths=[str(Path(folder) / "botocore" / "data")], include_default_search_paths=False)
    code = " ".join(path.read_text() for path in (ROOT / "src" / "chestxray" / "aws").glob("*.py"))
    words = set(re.findall(r"\b[a-z]+(?:_[a-z0-9]+)+\b", code))
    version = next(Path(folder).glob("botocore-*.dist-info")).name.split("-")[1].removesuffix(".dist")
    operations = {}
    for service in SERVICES:
        model = ServiceModel(loader.load_service_model(service, "service-2"), service)
        for name in model.operation_names:
            if xform_name(name) in words:
                shape = model.operation_model(name).input_shape
                operations[f"{service}.{name}"] = members(shape) if shape else {}
    OUT.write_text(json.dumps({"botocore": version, "operations": operations}, indent=1, sort_keys=True) + "\n")


if __name__ == "__main__":
    main(sys.argv[1])
