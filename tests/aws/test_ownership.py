"""Another team's things under our names: shown, used by no verb, removed by none; and what destroy asks first."""

from __future__ import annotations

import json
import os
import pty
import subprocess
from collections.abc import Iterator
from typing import Any, Final

import boto3
import pytest

from chestxray.aws import roles, session
from chestxray.aws.session import Names
from live_moto import ACCOUNT
from sagemaker_account import IMAGE, account, put_image
from sagemaker_emulator import SageMaker
from sagemaker_work import BIN
from typed import run, told

NAMES: Final = Names("chestxray", ACCOUNT, "us-east-1")
THEIRS: Final = [{"Key": "owner", "Value": "other-team"}]
STACK: Final = """
Resources:
  Box: {Type: "AWS::S3::Bucket"}
Outputs: {Bucket: {Value: !Ref Box}}
"""


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SageMaker]:
    with account(tmp_path_factory.mktemp("account")) as found, pytest.MonkeyPatch.context() as patch:
        patch.setattr(session, "POLL_S", 0.1)
        yield found


@pytest.fixture(scope="module")
def others(service: SageMaker) -> None:
    """One of everything, of another team, under the names that this deployment would choose."""
    boto3.client("cloudformation").create_stack(StackName=NAMES.website_stack, TemplateBody=STACK, Tags=THEIRS)
    boto3.client("s3").put_object(Bucket=box(), Key="report.pdf", Body=b"theirs")
    boto3.client("scheduler").create_schedule_group(Name=NAMES.deployment, Tags=THEIRS)
    put_image("made", ours=False)
    boto3.client("logs").create_log_group(logGroupName=f"/aws/sagemaker/Endpoints/{NAMES.endpoint}")
    trust = {"Effect": "Allow", "Principal": {"Service": "sagemaker.amazonaws.com"}, "Action": "sts:AssumeRole"}
    document = json.dumps({"Version": "2012-10-17", "Statement": [trust]})
    for purpose in ("sagemaker", "expiry"):
        boto3.client("iam").create_role(RoleName=NAMES.role(purpose), AssumeRolePolicyDocument=document, Tags=THEIRS)
    pulling = {"Version": "2012-10-17", "Statement": roles.pulling(roles.own_repository(NAMES))}
    boto3.client("iam").put_role_policy(
        RoleName=NAMES.role("sagemaker"), PolicyName="theirs", PolicyDocument=json.dumps(pulling)
    )
    s3 = boto3.client("s3")
    s3.create_bucket(Bucket=NAMES.bucket)
    s3.put_object(Bucket=NAMES.bucket, Key="model.tar.gz", Body=b"theirs")
    sagemaker = boto3.client("sagemaker")
    role = f"arn:aws:iam::{ACCOUNT}:role/{NAMES.role('sagemaker')}"
    container = {"Image": IMAGE, "ModelDataUrl": f"s3://{NAMES.bucket}/model.tar.gz"}
    sagemaker.create_model(ModelName="chestxray", ExecutionRoleArn=role, PrimaryContainer=container, Tags=THEIRS)
    variant = {"VariantName": "a", "ModelName": "chestxray", "InstanceType": "ml.m5.large", "InitialInstanceCount": 1}
    sagemaker.create_endpoint_config(EndpointConfigName="chestxray", ProductionVariants=[variant], Tags=THEIRS)
    service.add_endpoint({"EndpointName": "chestxray", "EndpointConfigName": "chestxray", "Tags": THEIRS})
    s3.create_bucket(Bucket="films")


def box() -> str:
    found = boto3.client("cloudformation").describe_stacks(StackName=NAMES.website_stack)["Stacks"][0]
    return str(found["Outputs"][0]["OutputValue"])


def all_of_it() -> dict[str, Any]:
    """By the services' own lists."""
    sagemaker, iam, s3 = boto3.client("sagemaker"), boto3.client("iam"), boto3.client("s3")
    buckets = [bucket["Name"] for bucket in s3.list_buckets()["Buckets"]]
    roles = [role["RoleName"] for role in iam.list_roles()["Roles"]]
    return {
        "stacks": boto3.client("cloudformation").describe_stacks()["Stacks"],
        "objects": {name: [o["Key"] for o in s3.list_objects_v2(Bucket=name).get("Contents", ())] for name in buckets},
        "groups": [group["Name"] for group in boto3.client("scheduler").list_schedule_groups()["ScheduleGroups"]],
        "images": boto3.client("ecr").describe_images(repositoryName="chestxray")["imageDetails"],
        "logs": [group["logGroupName"] for group in boto3.client("logs").describe_log_groups()["logGroups"]],
        "roles": {name: iam.list_role_policies(RoleName=name)["PolicyNames"] for name in roles},
        "endpoints": sagemaker.list_endpoints()["Endpoints"],
        "configs": sagemaker.list_endpoint_configs()["EndpointConfigs"],
        "models": sagemaker.list_models()["Models"],
    }


@pytest.mark.usefixtures("others")
def test_destroy_leaves_what_lacks_our_tag_and_shows_it(capsys: pytest.CaptureFixture[str]) -> None:
    before = all_of_it()
    found = told(capsys, "aws", "destroy", "--yes")
    assert (found["exit"], found["removed"], found["left"]) == (0, [], [])
    assert {item["kind"] for item in found["foreign"]} == {
        *("stack", "schedules", "image repository", "log", "role", "bucket", "endpoint")
    }
    assert f"Not of this deployment, left alone: stack {NAMES.website_stack}" in found["said"]
    assert all_of_it() == before
    shown = told(capsys, "aws", "status")
    assert (shown["found"], len(shown["foreign"])) == ([], len(found["foreign"]))


@pytest.mark.usefixtures("others")
@pytest.mark.parametrize(
    ("verb", "what"),
    [
        (("deploy", "pneumonia", "--image", IMAGE), "endpoint chestxray"),
        (("website", "--inline", "--access", "open"), f"bucket {NAMES.bucket}"),
        (("train", "s3://films/set", "--instance", "ml.m5.large", "--no-wait"), f"bucket {NAMES.bucket}"),
    ],
)
def test_no_verb_changes_or_uses_what_lacks_our_tag(
    verb: tuple[str, ...], what: str, capsys: pytest.CaptureFixture[str]
) -> None:
    boto3.client("s3").put_object(Bucket="films", Key="set/NORMAL/a.png", Body=b"film")
    before = all_of_it()
    found = told(capsys, "aws", *verb)
    assert (found["exit"], found["error"]["type"]) == (1, "CloudForeign"), found
    assert what in found["error"]["message"]
    assert all_of_it() == before


@pytest.mark.usefixtures("service")
def test_destroy_asks_for_the_name_and_removes_nothing_without_it() -> None:
    s3, names = boto3.client("s3"), Names("clinic", ACCOUNT, "us-east-1")
    s3.create_bucket(Bucket=names.bucket)
    s3.put_bucket_tagging(Bucket=names.bucket, Tagging={"TagSet": names.tag_list})

    def typing(text: bytes) -> tuple[int, str]:
        ours, theirs = pty.openpty()
        command = [BIN / "chestxray", "aws", "destroy", "--deployment", "clinic"]
        process = subprocess.Popen(command, stdin=theirs, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        os.write(ours, text)
        said = process.communicate(timeout=300)[0]
        os.close(ours)
        os.close(theirs)
        return process.returncode, said

    status, said = typing(b"yes\n")
    assert (status, "'yes' is not clinic; nothing was removed" in said, names.bucket in said) == (2, True, True), said
    s3.head_bucket(Bucket=names.bucket)
    assert run("aws", "destroy", "--deployment", "clinic") == 2  # nobody is there to be asked
    s3.head_bucket(Bucket=names.bucket)
    status, said = typing(b"clinic\n")
    assert (status, "Looked again: nothing is left." in said) == (0, True), said
    assert names.bucket not in {bucket["Name"] for bucket in s3.list_buckets()["Buckets"]}


def test_only_our_own_tag_makes_a_thing_ours() -> None:
    assert NAMES.owns([{"Key": "chestxray:deployment", "Value": "chestxray"}])
    assert NAMES.owns({"chestxray:deployment": "chestxray"})
    assert not NAMES.owns([{"Key": "chestxray:deployment", "Value": "chestxray-two"}])
    assert not NAMES.owns([])
    assert not NAMES.owns({"owner": "other-team"})
