"""Least privilege: each statement of each policy, wherever it is written, names what may be done and on what."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

import boto3
import pytest

import live_moto
from chestxray.aws.deploy import EndpointParts, ending
from chestxray.aws.roles import WITHOUT_RESOURCE, joining_network, reading, using_key, working
from chestxray.aws.session import Names, Rules
from live_moto import ACCOUNT
from policies import as_list, statements, template
from request_checks import POLICY, actions_of, is_allowed
from typed import run

NAMES: Final = Names("clinic", ACCOUNT, "us-east-1")
MANAGED_POLICY: Final = 6144  # characters but blanks
RULES: Final = Rules(
    kms_key=f"arn:aws:kms:us-east-1:{ACCOUNT}:key/films", subnets=("subnet-1a",), security_groups=("sg-2b",)
)
SERVED: Final = EndpointParts("clinic", "clinic-hosting-1", "clinic-model-1")


def everything() -> Iterator[Any]:
    """Templates and what the verbs give to roles."""
    found = {
        "website": template("website")["Resources"],
        "build": template("image")["Resources"],
        "jobs and endpoints": working(NAMES),
        "films": reading("films"),
        "expiry": ending(NAMES, SERVED),
        "endpoint": template("endpoint")["Resources"],
        "network": joining_network(NAMES, RULES),
        "key": using_key(RULES),
    }
    for place, document in found.items():
        in_it = list(statements(document))
        assert in_it, place
        for number, statement in enumerate(in_it):
            yield pytest.param(statement, id=f"{place} {number}")


@pytest.mark.parametrize("statement", list(everything()))
def test_a_statement_names_its_actions_and_its_resources(statement: Mapping[str, Any]) -> None:
    actions = as_list(statement["Action"])
    assert statement["Effect"] == "Allow"
    assert not [action for action in actions if "*" in action]
    assert not {"NotAction", "NotResource", "NotPrincipal"} & statement.keys()
    principal = statement.get("Principal")
    assert principal is None or str(principal["Service"]).endswith(".amazonaws.com")
    assert principal is not None or statement["Resource"]
    if "*" in as_list(statement.get("Resource", "")):
        assert len(actions) == 1
        assert WITHOUT_RESOURCE[actions[0]]


@pytest.mark.parametrize("statement", list(everything()))
def test_a_resource_is_of_this_deployment_or_is_what_the_job_is_about(statement: Mapping[str, Any]) -> None:
    """By account and name; what stars stand for begins with a word of ours, or of the service that writes there."""
    ours = (
        NAMES.deployment,
        "films",
        "network-interface/",
        "subnet-1a",
        "sg-2b",
        "TrainingJobs",
        "TransformJobs",
        "763104351884:repository/pytorch",
    )
    for resource in as_list(statement.get("Resource", [])):
        if isinstance(resource, str) and resource.startswith("arn:"):
            before_stars = resource.partition("*")[0]
            assert any(word in before_stars for word in ours), resource


def test_what_gets_no_resource_is_what_aws_gives_none_and_figures_are_held_to_their_namespaces() -> None:
    own = {action for action in WITHOUT_RESOURCE if not action.startswith("ec2:Describe")}  # of networks, if any
    assert own == {"ecr:GetAuthorizationToken", "cloudwatch:PutMetricData"}
    figures = next(found for found in working(NAMES) if found["Action"] == ["cloudwatch:PutMetricData"])
    assert figures["Condition"]["StringEquals"]["cloudwatch:namespace"] == [
        "/aws/sagemaker/TrainingJobs",
        "/aws/sagemaker/TransformJobs",
        "/aws/sagemaker/Endpoints",
    ]


def test_the_schedules_may_delete_three_things_by_name_and_nothing_else() -> None:
    found = {statement["Action"][0]: statement["Resource"] for statement in ending(NAMES, SERVED)}
    own = f"arn:aws:sagemaker:us-east-1:{ACCOUNT}"
    assert found == {
        "sagemaker:DeleteEndpoint": [f"{own}:endpoint/clinic"],
        "sagemaker:DeleteEndpointConfig": [f"{own}:endpoint-config/clinic-hosting-1"],
        "sagemaker:DeleteModel": [f"{own}:model/clinic-model-1"],
    }


# --------------------------------------------------------------------------- who types the commands


def test_the_deployers_policy_fits_into_one_and_names_this_deployment(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Each call that any test here makes is held against it in conftest.py; its size against what IAM takes."""
    with live_moto.running() as address:
        for name, value in {**live_moto.CREDENTIALS, "AWS_ENDPOINT_URL": address}.items():
            monkeypatch.setenv(name, value)
        assert run("aws", "policy", "--films", "hospital", "--deployment", "clinic") == 0
        printed = capsys.readouterr().out
        client = boto3.client("iam")
        client.create_policy(PolicyName="deployer", PolicyDocument=printed)
        client.close()
    assert len("".join(printed.split())) <= MANAGED_POLICY
    assert not re.search(r"DEPLOYMENT|ACCOUNT|REGION|FILMS", printed)
    found = [statement["Resource"] for statement in json.loads(printed)["Statement"]]
    assert "arn:aws:s3:::hospital/*" in found[1]
    assert f"arn:aws:sagemaker:us-east-1:{ACCOUNT}:*/clinic*" in found


def test_the_deployers_policy_names_the_service_of_each_resource_of_the_stacks() -> None:
    types = {resource["Type"] for name in ("website", "image") for resource in template(name)["Resources"].values()}
    service = {"ApiGatewayV2": "apigateway"}
    allowed = {action.partition(":")[0] for statement in POLICY for action in statement["Action"]}
    assert {service.get(word := kind.split("::")[1], word.lower()) for kind in types} <= allowed


def test_a_call_that_the_policy_lacks_is_seen() -> None:
    assert is_allowed("s3:ListBucket")
    assert not is_allowed("ec2:RunInstances")
    assert actions_of("s3.DeleteObjects") == {"s3:DeleteObject", "s3:DeleteObjectVersion"}
    assert actions_of("sagemaker.CreateModel") == {"sagemaker:CreateModel", "iam:PassRole", "sagemaker:AddTags"}
