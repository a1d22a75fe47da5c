"""The lowest boto3: what the requests are held against is what pyproject.toml allows, and sees what is too new."""

from __future__ import annotations

import json
import tomllib
from pathlib import Path

from request_checks import FLOOR, unknown_to

ROOT = Path(__file__).parents[2]


def test_the_floor_is_the_one_that_the_package_declares() -> None:
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    written = json.loads((ROOT / "tests/support/botocore_floor.json").read_text())["botocore"]
    assert extras["aws"] == [f"boto3>={written}"]


def test_a_parameter_that_an_older_boto3_lacks_is_seen_at_any_depth() -> None:
    assert list(unknown_to(FLOOR["s3.PutObject"], {"Bucket": "a", "Key": "b", "Shiny": 1}, "s3")) == ["s3.Shiny"]
    request = {"EndpointConfigName": "a", "ProductionVariants": [{"VariantName": "b", "Shiny": 1}]}
    found = list(unknown_to(FLOOR["sagemaker.CreateEndpointConfig"], request, "x"))
    assert found == ["x.ProductionVariants.Shiny"]
