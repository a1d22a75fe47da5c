"""What accounts ask of all that is made in them: a role, a boundary, a key, a network; and whether one is ready."""

from __future__ import annotations

import ast
import contextlib
import copy
import json
import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Final

import boto3
import pytest
from cfnlint.api import lint_file

import live_advisers
from chestxray.aws import deploy, roles, session, stacks
from chestxray.aws.images import takes_key
from chestxray.aws.roles import deployer_policy, policy_of_own_role
from chestxray.aws.session import Names, Rules, connect, principal_of, role_of
from chestxray.cli import main
from chestxray.errors import UsageError
from live_moto import ACCOUNT
from policies import as_list, statements
from sagemaker_account import IMAGE, account, put_image
from sagemaker_emulator import SageMaker
from typed import run, told

NAMES: Final = Names("chestxray", ACCOUNT, "us-east-1")
KEY: Final = f"arn:aws:kms:us-east-1:{ACCOUNT}:key/11111111-2222-3333-4444-555555555555"
BOUNDARY: Final = f"arn:aws:iam::{ACCOUNT}:policy/boundary"
NETWORK: Final = ("--subnet", "subnet-1a", "--subnet", "subnet-2b", "--security-group", "sg-3c")
VPC: Final = {"Subnets": ["subnet-1a", "subnet-2b"], "SecurityGroupIds": ["sg-3c"]}
TRAIN: Final = ("aws", "train", "s3://films/set", "--instance", "ml.m5.large", "--no-wait")


@pytest.fixture(scope="module")
def empty(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SageMaker]:
    with account(tmp_path_factory.mktemp("account")) as found, pytest.MonkeyPatch.context() as patch:
        patch.setattr(session, "POLL_S", 0.05)
        patch.setattr(roles, "NEW_ROLE_S", 0.0)
        found.runs_containers = False
        boto3.client("s3").create_bucket(Bucket="films")
        boto3.client("s3").put_object(Bucket="films", Key="set/NORMAL/a.png", Body=b"a film")
        yield found


@pytest.fixture
def service(empty: SageMaker) -> Iterator[SageMaker]:
    put_image("made")
    yield empty
    assert run("aws", "destroy", "--yes") == 0


def test_a_key_and_a_network_reach_jobs_models_endpoints_and_the_bucket(
    service: SageMaker, capsys: pytest.CaptureFixture[str]
) -> None:
    given = ("--kms-key", KEY, *NETWORK)
    first = told(capsys, *TRAIN, *given)
    assert first["exit"] == 0, first
    request = service.last("CreateTrainingJob")
    assert (request["VpcConfig"], request["OutputDataConfig"]["KmsKeyId"]) == (VPC, KEY)
    assert request["ResourceConfig"]["VolumeKmsKeyId"] == KEY
    found = boto3.client("s3").get_bucket_encryption(Bucket=NAMES.bucket)["ServerSideEncryptionConfiguration"]
    assert found["Rules"][0]["ApplyServerSideEncryptionByDefault"] == {
        "SSEAlgorithm": "aws:kms",
        "KMSMasterKeyID": KEY,
    }
    names = boto3.client("iam").list_role_policies(RoleName=NAMES.role("sagemaker"))["PolicyNames"]
    assert {"key", "network"} <= set(names)
    served = told(capsys, "aws", "deploy", "pneumonia", "--image", IMAGE, "--instance", "ml.m5.large", *given)
    assert served["exit"] == 0, served
    assert service.last("CreateModel")["VpcConfig"] == VPC
    assert service.last("CreateEndpointConfig")["KmsKeyId"] == KEY
    again = told(capsys, "aws", "deploy", "pneumonia", "--image", IMAGE, "--instance", "ml.m5.large", *given)
    assert again["did"] == "keep"
    refused = told(capsys, "aws", "deploy", "pneumonia", "--image", IMAGE, *given)
    assert (refused["exit"], "cannot join a network" in refused["error"]["message"]) == (2, True)


def test_disks_that_encrypt_themselves_get_no_key() -> None:
    taken = {kind: takes_key(kind) for kind in ("ml.m5.large", "ml.c5.xlarge", "ml.g4dn.xlarge", "ml.g5.2xlarge")}
    assert taken == {"ml.m5.large": True, "ml.c5.xlarge": True, "ml.g4dn.xlarge": False, "ml.g5.2xlarge": False}
    assert not takes_key("ml.m5d.large")


def test_roles_are_bounded_those_that_were_there_too(service: SageMaker, capsys: pytest.CaptureFixture[str]) -> None:
    everything = {"Version": "2012-10-17", "Statement": [{"Effect": "Allow", "Action": "*", "Resource": "*"}]}
    boto3.client("iam").create_policy(PolicyName="boundary", PolicyDocument=json.dumps(everything))

    def bounds() -> dict[str, str]:
        found = boto3.client("iam")
        roles = [found.get_role(RoleName=NAMES.role(purpose))["Role"] for purpose in ("sagemaker", "expiry")]
        return {role["RoleName"]: role.get("PermissionsBoundary", {}).get("PermissionsBoundaryArn") for role in roles}

    deploy = ("aws", "deploy", "pneumonia", "--image", IMAGE)
    assert told(capsys, *deploy)["exit"] == 0
    assert set(bounds().values()) == {None}
    assert told(capsys, *deploy, "--permissions-boundary", BOUNDARY)["exit"] == 0
    assert set(bounds().values()) == {BOUNDARY}


def test_with_a_role_of_ones_own_none_is_made(service: SageMaker, capsys: pytest.CaptureFixture[str]) -> None:
    iam = boto3.client("iam")
    trust = {"Effect": "Allow", "Action": "sts:AssumeRole"}
    trust |= {"Principal": {"Service": ["sagemaker.amazonaws.com", "scheduler.amazonaws.com"]}}  # type: ignore[dict-item]
    arn = iam.create_role(
        RoleName="ours", AssumeRolePolicyDocument=json.dumps({"Version": "2012-10-17", "Statement": [trust]})
    )["Role"]["Arn"]
    assert run("aws", "policy", "--of-role", "--films", "films") == 0
    document = capsys.readouterr().out
    iam.put_role_policy(RoleName="ours", PolicyName="work", PolicyDocument=document)
    image = ("--image", IMAGE)  # our own repository, which that policy names
    for verb in ((*TRAIN, *image), ("aws", "deploy", "pneumonia", *image)):
        found = told(capsys, *verb, "--role", arn)
        assert found["exit"] == 0, found
    assert service.last("CreateTrainingJob")["RoleArn"] == service.last("CreateModel")["ExecutionRoleArn"] == arn
    assert [role["RoleName"] for role in iam.list_roles()["Roles"]] == ["ours"]
    iam.delete_role_policy(RoleName="ours", PolicyName="work")
    iam.delete_role(RoleName="ours")


def test_a_pipeline_step_is_the_job_without_its_name_and_begins_nothing(
    service: SageMaker, capsys: pytest.CaptureFixture[str]
) -> None:
    before = len(boto3.client("sagemaker").list_training_jobs()["TrainingJobSummaries"])
    assert run(*TRAIN, "--pipeline-step", "--epochs", "3") == 0
    step = json.loads(capsys.readouterr().out)
    assert (step["Type"], "TrainingJobName" in step["Arguments"]) == ("Training", False)
    assert len(boto3.client("sagemaker").list_training_jobs()["TrainingJobSummaries"]) == before
    checkpoints = step["Arguments"]["CheckpointConfig"]
    own, execution = checkpoints["S3Uri"]["Std:Join"]["Values"]
    assert own.startswith(f"s3://{NAMES.bucket}/checkpoints/chestxray-train-")
    assert execution == {"Get": "Execution.PipelineExecutionId"}, "films may have changed between two executions"
    checkpoints["S3Uri"] = f"{own}/abcdefghijkl"  # as a pipeline puts it in
    boto3.client("sagemaker").create_training_job(TrainingJobName="of-a-pipeline-1", **step["Arguments"])


@pytest.mark.usefixtures("empty")
def test_buckets_of_other_accounts_are_named_with_their_owners() -> None:
    cloud = connect(rules=Rules(owners={"hospital": "210987654321"}))
    asked: list[dict[str, Any]] = []
    client = cloud.client("s3")
    client.meta.events.register_last("before-parameter-build.s3", lambda params, **_: asked.append(dict(params)))
    for bucket in ("hospital", "films"):
        with contextlib.suppress(client.exceptions.ClientError):
            client.head_bucket(Bucket=bucket)
    assert [request["ExpectedBucketOwner"] for request in asked] == ["210987654321", ACCOUNT]
    cloud.close()


@pytest.mark.parametrize(
    "wrong",
    [
        {"role": "sagemaker"},
        {"role": "callercaller"},
        {"boundary": "arn:aws:iam::1:policy/x"},
        {"kms_key": "alias/films"},
        {"subnets": ("vpc-1",), "security_groups": ("sg-1",)},
        {"subnets": ("subnet-1",)},
        {"owners": {"hospital": "me"}},
        {"role": f"arn:aws:iam::{ACCOUNT}:role/x", "boundary": BOUNDARY},
    ],
)
def test_what_cannot_be_is_refused_before_anything_is_asked(wrong: dict[str, Any]) -> None:
    with pytest.raises(UsageError):
        Rules(**wrong)


def test_a_roles_name_may_hold_the_word_that_stands_for_the_callers_own() -> None:
    arn = f"arn:aws:iam::{ACCOUNT}:role/caller"
    assert Rules(role=arn).role == arn


def test_a_notebooks_own_role_is_found_behind_its_credentials() -> None:
    caller = f"arn:aws:sts::{ACCOUNT}:assumed-role/AmazonSageMaker-ExecutionRole-20250101T000000/SageMaker"
    assert role_of(caller) == (
        f"arn:aws:iam::{ACCOUNT}:role/service-role/AmazonSageMaker-ExecutionRole-20250101T000000"
    )
    assert principal_of(f"arn:aws:iam::{ACCOUNT}:root") == ""
    with pytest.raises(UsageError, match="is no role"):
        role_of(f"arn:aws:iam::{ACCOUNT}:user/ward")


# --------------------------------------------------------------------------- templates and source, without an account


@pytest.mark.parametrize("name", stacks.TEMPLATES)
def test_the_templates_are_printed_as_they_are_and_are_ones_that_cloudformation_takes(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("AWS_DEFAULT_REGION", raising=False)
    verb = {"website": "website", "endpoint": "deploy"}.get(name)
    printed = stacks.stack_template(name)
    if verb:
        with pytest.raises(SystemExit) as end:
            main(["aws", verb, "--template"])
        assert not end.value.code
        assert capsys.readouterr().out == printed
    path = tmp_path / stacks.TEMPLATES[name]
    path.write_text(printed)
    assert [str(match) for match in lint_file(path)] == []


@pytest.mark.usefixtures("empty")
def test_the_template_of_an_endpoint_asks_for_what_the_verb_asks_for() -> None:
    """On an instance, with a key and a network: moto makes no serverless endpoints, and trips over absent policies."""
    hosting = deploy.Hosting("ml.m5.large")
    values = {"Image": IMAGE, "Bucket": "films", "Key": "model.tar.gz", "InstanceType": hosting.instance}
    values |= {"KmsKey": KEY, "Subnets": "subnet-1a,subnet-2b", "SecurityGroups": "sg-3c"}
    stack = boto3.client("cloudformation")
    stack.create_stack(
        StackName="of-a-template",
        TemplateBody=stacks.stack_template("endpoint"),
        Parameters=[{"ParameterKey": key, "ParameterValue": value} for key, value in values.items()],
        Capabilities=[stacks.CAPABILITY],
    )
    found = stack.describe_stack_resources(StackName="of-a-template")["StackResources"]
    made = {item["LogicalResourceId"]: item["PhysicalResourceId"] for item in found}

    iam = boto3.client("iam")
    policies = {}
    for name in iam.list_role_policies(RoleName=made["Role"])["PolicyNames"]:
        document = iam.get_role_policy(RoleName=made["Role"], PolicyName=name)["PolicyDocument"]
        policies[name] = list(statements(ast.literal_eval(document)))  # moto keeps a template's policy as Python's text
    assert policies.keys() == {"work", "key", "network"}
    assert actions_in(policies["work"]) <= actions_in([*roles.working(NAMES), *roles.reading("films")])
    rules = Rules(kms_key=KEY, subnets=tuple(VPC["Subnets"]), security_groups=tuple(VPC["SecurityGroupIds"]))
    assert as_pairs(policies["key"]) == as_pairs(roles.using_key(rules))
    network = roles.joining_network(NAMES, rules)
    assert actions_in(policies["network"]) == actions_in(network)
    places, ours = (policy[0]["Resource"] for policy in (policies["network"], network))
    assert [place.rpartition(":")[2] for place in places] == [place.rpartition(":")[2] for place in ours]

    sagemaker = boto3.client("sagemaker", endpoint_url=os.environ["AWS_ENDPOINT_URL"])  # where the stack made them
    (config,) = sagemaker.list_endpoint_configs()["EndpointConfigs"]
    (variant,) = sagemaker.describe_endpoint_config(EndpointConfigName=config["EndpointConfigName"])[
        "ProductionVariants"
    ]
    assert variant["VariantName"] == deploy.VARIANT
    assert variant.items() >= hosting.variant.items()
    model = sagemaker.describe_model(ModelName=variant["ModelName"])
    assert model.get("VpcConfig") == VPC
    (log,) = boto3.client("logs").describe_log_groups(logGroupNamePrefix=deploy.LOGS)["logGroups"]
    assert (log["logGroupName"], log["retentionInDays"]) == (f"{deploy.LOGS}{NAMES.endpoint}", deploy.LOG_DAYS)
    stack.delete_stack(StackName="of-a-template")
    sagemaker.close()


def test_the_template_of_a_serverless_endpoint_has_the_size_that_the_verb_gives_it() -> None:
    size = ", ".join(f"{name}: {value}" for name, value in deploy.Hosting().variant["ServerlessConfig"].items())
    assert f"ServerlessConfig: !If [IsServerless, {{{size}}}, " in stacks.stack_template("endpoint")


def as_pairs(policy: Iterable[Mapping[str, Any]]) -> list[tuple[Any, ...]]:
    """What is allowed, on what and under which condition, one way or the other of writing it."""
    return [(sorted(as_list(one["Action"])), as_list(one["Resource"]), one.get("Condition", {})) for one in policy]


def actions_in(policy: Iterable[Mapping[str, Any]]) -> set[str]:
    return {action for statement in policy for action in as_list(statement["Action"])}


def test_the_source_is_written_without_an_account(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "none"))
    monkeypatch.delenv("AWS_DEFAULT_REGION", raising=False)
    source = tmp_path / "source"
    found = told(capsys, "aws", "train", "s3://films/set", "--source-only", source, "--epochs", 3, "--size", "32x48")
    assert found["exit"] == 0, found
    assert {"train.py", "requirements.txt", "recipe.toml", "chestxray"} <= {path.name for path in source.iterdir()}
    given = json.loads((source / "hyperparameters.json").read_text())
    assert (given["epochs"], given["size"], given["recipe"]) == ("3", "32x48", "recipe.toml")
    assert {"Name", "Regex"} == json.loads((source / "metric_definitions.json").read_text())[0].keys()


# --------------------------------------------------------------------------- the doctor

QUOTAS: Final = {
    "ml.g4dn.xlarge for training job usage": 0.0,
    "ml.m5.large for transform job usage": 0.0,
    "ml.m5.large for endpoint usage": 2.0,
}


@pytest.fixture
def ask(empty: SageMaker, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Any:
    def examined(policy: dict[str, Any], own: dict[str, float], *options: str) -> dict[str, Any]:
        with live_advisers.running(policy, QUOTAS, own) as address:
            for service in ("IAM", "SERVICE_QUOTAS"):
                monkeypatch.setenv(f"AWS_ENDPOINT_URL_{service}", address)
            found = told(capsys, "aws", "doctor", "--films", "films", *options)
        return found | {"by": {item["name"]: item for item in found["checks"]}}

    monkeypatch.setattr("chestxray.aws.doctor.principal_of", lambda _: f"arn:aws:iam::{ACCOUNT}:user/ward")
    return examined


def test_an_account_that_is_ready_is_said_to_be(ask: Any) -> None:
    own = {"ml.g4dn.xlarge for training job usage": 1.0, "ml.m5.large for transform job usage": 1.0}
    found = ask(json.loads(deployer_policy(NAMES, "films")), own, "--hosting", "ml.m5.large")
    assert found["exit"] == 0, found
    assert found["by"]["permissions"]["finding"].startswith("all ")
    assert ACCOUNT in found["by"]["credentials"]["finding"]
    assert found["by"]["image for serving"]["ok"]


def test_what_an_account_lacks_is_named_with_its_remedy(ask: Any) -> None:
    policy = copy.deepcopy(json.loads(deployer_policy(NAMES, "films")))
    for statement in policy["Statement"]:
        statement["Action"] = [
            action for action in statement["Action"] if action not in {"iam:PassRole", "sagemaker:CreateModel"}
        ]
    found = ask(policy, {})
    assert found["exit"] == 1
    assert "denied: iam:PassRole, sagemaker:CreateModel. Give the policy" in found["by"]["permissions"]["finding"]
    quotas = [item for item in found["checks"] if item["name"] == "quota"]
    assert [item["ok"] for item in quotas] == [False, False]
    assert "ml.g4dn.xlarge for training job usage: 0. Ask for more" in quotas[0]["finding"]


def test_what_may_not_be_looked_at_is_not_known_and_hides_nothing_else(
    empty: SageMaker, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Moto knows neither SageMaker's quotas nor simulation: each is said, and the rest is looked at."""
    monkeypatch.setattr("chestxray.aws.doctor.principal_of", lambda _: f"arn:aws:iam::{ACCOUNT}:user/ward")
    found = told(capsys, "aws", "doctor")
    by = {item["name"]: item for item in found["checks"]}
    assert (by["credentials"]["ok"], by["permissions"]["ok"]) == (True, None), found
    assert "what answered is not AWS" in by["permissions"]["finding"]
    assert "image for serving" in by
    run("aws", "doctor")
    lines = capsys.readouterr().out.splitlines()
    begins = {line.index(item["finding"]) for line, item in zip(lines, found["checks"], strict=True)}
    assert len(begins) == 1, lines


def test_the_policy_of_a_role_of_ones_own_names_its_key_and_its_network() -> None:
    rules = Rules(kms_key=KEY, subnets=("subnet-1",), security_groups=("sg-1",))
    document = json.loads(policy_of_own_role(NAMES, "films", rules))
    actions = {action for statement in document["Statement"] for action in statement["Action"]}
    assert {"kms:Decrypt", "ec2:CreateNetworkInterface", "sagemaker:DeleteEndpoint", "s3:GetObject"} <= actions
    assert len(json.dumps(document, separators=(",", ":"))) <= 10_240, "an inline policy of a role holds no more"
