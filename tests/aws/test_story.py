"""The whole story in one account: from films to a page that answers, and nothing left; each verb typed twice."""

from __future__ import annotations

import json
import sys
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import boto3
import pytest
from playwright.sync_api import Browser

import cloud_requests
import live_ministack
from chestxray.aws import session, stacks, website
from chestxray.aws.roles import WITHOUT_RESOURCE
from chestxray.aws.session import Names, connect
from chestxray.inference.predictor import Predictor
from cloud_requests import CloudRequests
from driving import CHROMIUM, choose, expect_answer_for
from live_moto import ACCOUNT
from sagemaker_account import IMAGE, account_with_functions, put_image, schedules
from sagemaker_emulator import SageMaker
from sagemaker_work import unpacked
from typed import run, told

pytestmark = [pytest.mark.soak, live_ministack.needed]

NAMES: Final = Names("chestxray", ACCOUNT, "us-east-1")
SMALL: Final = ("--instance", "ml.m5.large", "--epochs", "2", "--batch-size", "16", "--size", "32x48", "--seed", "3")
THEIRS: Final = Names("chestxray-two", ACCOUNT, "us-east-1")
BOX: Final = 'Resources: {Box: {Type: "AWS::S3::Bucket"}}'
NOT_EMPTY: Final = """
Resources:
  Box: {Type: "AWS::S3::Bucket", Properties: {VersioningConfiguration: {Status: Enabled}}}
  Images: {Type: "AWS::ECR::Repository", Properties: {RepositoryName: "kept"}}
Outputs: {Bucket: {Value: !Ref Box}}
"""


@dataclass(frozen=True)
class Account:
    """An account of one test.

    Attributes:
        aws: the stand-in's address.
        watched: what our verbs ask of it.
        theirs: what another team has in it, before, meanwhile and afterwards.
    """

    sagemaker: SageMaker
    aws: str
    watched: CloudRequests
    theirs: set[str]


@pytest.fixture
def account(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Account]:
    """With the user's own bucket, "films", and another team's deployment, whose name begins as ours does."""
    monkeypatch.setattr(session, "POLL_S", 0.2)
    monkeypatch.setattr(stacks, "POLL_S", 0.2)
    monkeypatch.setattr(website, "template", live_ministack.template_without_budget)
    with account_with_functions(tmp_path / "account") as (service, aws), cloud_requests.watched() as watched:
        boto3.client("s3").create_bucket(Bucket="films")
        add_other_team(service)
        theirs = what_is_there()
        yield Account(service, aws, watched, theirs)
        assert theirs <= what_is_there()
        assert boto3.client("s3").get_object(Bucket=THEIRS.bucket, Key="kept")["Body"].read() == b"theirs"


def add_other_team(service: SageMaker) -> None:
    """One of everything, under the names and tags that this package gives to another deployment."""
    s3, role = boto3.client("s3"), THEIRS.role("sagemaker")
    s3.create_bucket(Bucket=THEIRS.bucket)
    s3.put_bucket_tagging(Bucket=THEIRS.bucket, Tagging={"TagSet": THEIRS.tag_list})
    s3.put_object(Bucket=THEIRS.bucket, Key="kept", Body=b"theirs")
    trust = {"Effect": "Allow", "Principal": {"Service": "sagemaker.amazonaws.com"}, "Action": "sts:AssumeRole"}
    policy = json.dumps({"Version": "2012-10-17", "Statement": [trust]})
    boto3.client("iam").create_role(RoleName=role, AssumeRolePolicyDocument=policy, Tags=THEIRS.tag_list)
    boto3.client("scheduler").create_schedule_group(Name=THEIRS.deployment, Tags=THEIRS.tag_list)
    boto3.client("logs").create_log_group(logGroupName=f"/aws/sagemaker/Endpoints/{THEIRS.endpoint}", tags=THEIRS.tags)
    boto3.client("ecr").create_repository(repositoryName=THEIRS.deployment, tags=THEIRS.tag_list)
    stack = boto3.client("cloudformation")
    stack.create_stack(StackName=THEIRS.website_stack, TemplateBody=BOX, Tags=THEIRS.tag_list)
    stack.get_waiter("stack_create_complete").wait(StackName=THEIRS.website_stack, WaiterConfig={"Delay": 1})
    service.add_endpoint(
        {"EndpointName": THEIRS.endpoint, "EndpointConfigName": THEIRS.deployment, "Tags": THEIRS.tag_list}
    )


def what_is_there() -> set[str]:
    """By the services' own lists; not what our verbs look at."""
    sagemaker, iam = boto3.client("sagemaker"), boto3.client("iam")
    found = {item["EndpointName"] for item in sagemaker.list_endpoints()["Endpoints"]}
    found |= {item["EndpointConfigName"] for item in sagemaker.list_endpoint_configs()["EndpointConfigs"]}
    found |= {item["ModelName"] for item in sagemaker.list_models()["Models"]}
    found |= {item["TrainingJobName"] for item in sagemaker.list_training_jobs()["TrainingJobSummaries"]}
    found |= {item["Name"] for item in schedules()}
    groups = boto3.client("scheduler").list_schedule_groups()["ScheduleGroups"]
    found |= {item["Name"] for item in groups if item["Name"] != "default"}
    found |= {item["RoleName"] for item in iam.list_roles()["Roles"]}
    found |= {item["repositoryName"] for item in boto3.client("ecr").describe_repositories()["repositories"]}
    found |= {item["FunctionName"] for item in boto3.client("lambda").list_functions()["Functions"]}
    found |= {item["Name"] for item in boto3.client("apigatewayv2").get_apis()["Items"]}
    cloudfront = boto3.client("cloudfront")
    found |= {item["Id"] for item in cloudfront.list_distributions()["DistributionList"].get("Items", ())}
    controls = cloudfront.list_origin_access_controls()["OriginAccessControlList"]
    found |= {item["Id"] for item in controls.get("Items", ())}
    headers = cloudfront.list_response_headers_policies(Type="custom")["ResponseHeadersPolicyList"]
    found |= {item["ResponseHeadersPolicy"]["Id"] for item in headers.get("Items", ())}
    logs = boto3.client("logs").describe_log_groups()["logGroups"]
    jobs = ("/aws/sagemaker/TrainingJobs", "/aws/sagemaker/TransformJobs")  # one for the whole account, each
    found |= {item["logGroupName"] for item in logs if item["logGroupName"] not in jobs}
    made = boto3.client("cloudformation").list_stacks()["StackSummaries"]
    found |= {item["StackName"] for item in made if item["StackStatus"] != "DELETE_COMPLETE"}
    return found | {item["Name"] for item in boto3.client("s3").list_buckets()["Buckets"]} - {"films"}


def versions(bucket: str) -> int:
    """Objects, versions and marks of a bucket; AWS deletes none that has any."""
    found = boto3.client("s3").list_object_versions(Bucket=bucket)
    return len(found.get("Versions", ())) + len(found.get("DeleteMarkers", ()))


def check_policies() -> int:
    """No action of any role is a wildcard, and no resource but for the actions that take none. Returns: how many."""
    iam, count = boto3.client("iam"), 0
    for role in iam.list_roles()["Roles"]:
        name = role["RoleName"]
        assert iam.list_attached_role_policies(RoleName=name)["AttachedPolicies"] == []
        for policy in iam.list_role_policies(RoleName=name)["PolicyNames"]:
            document = iam.get_role_policy(RoleName=name, PolicyName=policy)["PolicyDocument"]
            for statement in document["Statement"]:
                actions, resources = as_list(statement["Action"]), as_list(statement["Resource"])
                assert not any("*" in action for action in actions), statement
                assert "*" not in resources or set(actions) <= WITHOUT_RESOURCE.keys(), statement
                count += 1
    return count


def as_list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


def twice(
    account: Account, capsys: pytest.CaptureFixture[str], *arguments: object
) -> tuple[dict[str, Any], dict[str, Any]]:
    """What a verb tells the first time and the second, which creates nothing."""
    dry = what_is_there()
    assert told(capsys, *arguments, "--dry-run")["exit"] == 0
    assert what_is_there() == dry
    first = told(capsys, *arguments)
    assert first["exit"] == 0, first
    there = what_is_there()
    account.watched.begin()
    second = told(capsys, *arguments)
    assert second["exit"] == 0, second
    created = [asked for asked in account.watched.changes if asked.partition(".")[2].startswith(("Create", "Start"))]
    # A schedule is moved to the new end; CloudFormation is asked whether there is anything to update.
    assert created == [], arguments
    assert what_is_there() == there
    return first, second


def opened(browser: Browser, address: str, bundle: Path, film: Path) -> None:
    """A person opens the page, chooses a film, and sees the bundle's answer."""
    page = browser.new_page()
    page.goto(address)
    choose(page, film)
    expect_answer_for(page, Predictor.load(bundle), film.read_bytes())
    page.close()


@pytest.mark.timeout(900)
@pytest.mark.browser
@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here")
def test_from_films_to_a_page_that_answers_and_nothing_left(
    browser: Browser,
    account: Account,
    synthetic_films: Path,
    film_paths: tuple[Path, ...],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    pytest.importorskip("sagemaker_pytorch_container")
    recipe = tmp_path / "short.toml"
    recipe.write_text('network = "alexnet5"\nepochs = 9\nminimum_steps = 0\n')

    first, second = twice(account, capsys, "aws", "upload", synthetic_films, "s3://films/set")
    assert (first["same"], second["sent"], second["same"]) == (0, 0, first["sent"])

    first, second = twice(account, capsys, "aws", "train", "s3://films/set/train", "--recipe", recipe, *SMALL)
    assert (first["did"], second["did"], second["job"]) == ("create", "keep", first["job"])
    assert "nothing was created" in second["said"]
    job = first["job"]
    bundle = unpacked(first["artifacts"], tmp_path / "bundle")

    put_image("made")
    first, second = twice(account, capsys, "aws", "deploy", first["job"], "--image", IMAGE, "--ttl", "2h")
    assert (first["did"], second["did"]) == ("create", "keep")
    assert {first[word] for word in ("endpoint", "config", "model")} <= what_is_there() - account.theirs

    films = ("aws", "validate", "s3://films/set/test", "--out", tmp_path / "report", "--workers", 1)
    first, second = twice(account, capsys, *films)
    assert (first["did"], second["did"]) == ("create", "keep")
    assert second["assessment"] == first["assessment"]
    local = told(capsys, "evaluate", bundle, synthetic_films / "test", "--out", tmp_path / "local", "--workers", 1)
    assert first["assessment"]["films"] == local["assessment"]["films"]

    first, second = twice(account, capsys, "aws", "website", "--access", "open")
    assert (first["did"], second["did"], second["page_files"]) == ("create", "keep", 0)
    with live_ministack.edge(account.aws, first) as address:
        opened(browser, address, bundle, film_paths[0])
    assert check_policies() >= 10

    _, second = twice(account, capsys, "aws", "status", "--cost")
    kinds = {item["kind"] for item in second["found"]}
    assert kinds >= {"endpoint", "endpoint configuration", "model", "schedules", "stack", "role", "bucket"}
    assert {item["name"] for item in second["found"]} <= what_is_there()

    page = next(name for name in what_is_there() if "website-page" in name.lower())
    boto3.client("s3").put_bucket_versioning(Bucket=page, VersioningConfiguration={"Status": "Enabled"})
    boto3.client("s3").put_object(Bucket=page, Key="index.html", Body=b"changed by hand")
    boto3.client("s3").delete_object(Bucket=page, Key="main.js")
    full: list[int] = []
    account.watched.before["cloudformation.DeleteStack"] = lambda: full.append(versions(page))

    assert told(capsys, "aws", "destroy", "--yes", "--keep-data", "--dry-run")["exit"] == 0
    assert versions(page)
    first, second = (told(capsys, "aws", "destroy", "--yes", "--keep-data") for _ in range(2))
    assert (first["exit"], second["exit"], second["removed"]) == (0, 0, []), first
    assert full == [0]
    assert what_is_there() == account.theirs | {NAMES.bucket, job}
    assert versions(NAMES.bucket)
    first, second = (told(capsys, "aws", "destroy", "--yes") for _ in range(2))
    assert (first["exit"], second["exit"], second["removed"]) == (0, 0, [])
    assert what_is_there() == account.theirs
    assert told(capsys, "aws", "status")["found"] == []
    assert versions("films"), "the films are the user's own"


def test_a_website_with_the_model_inside_answers_and_goes_whole_though_throttled(
    account: Account,
    bundle: Path,
    film: bytes,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """The function runs by ministack's own Python, so the libraries in it are those for this one."""
    monkeypatch.setattr(website, "PYTHON", f"{sys.version_info.major}.{sys.version_info.minor}")
    account.watched.refuse = cloud_requests.at_first(2)
    made = told(capsys, "aws", "website", "--inline", "--bundle", bundle, "--access", "open")
    if "pip cannot fetch" in json.dumps(made):
        pytest.skip(made["error"]["message"])
    assert (made["exit"], made["did"]) == (0, "create"), made
    assert account.watched.times["cloudformation.CreateStack"] == 3
    assert [item["EndpointName"] for item in boto3.client("sagemaker").list_endpoints()["Endpoints"]] == [
        THEIRS.endpoint
    ]
    with live_ministack.edge(account.aws, made) as address:
        request = urllib.request.Request(  # noqa: S310 - on loopback
            f"{address}/v1/predict", film, {"Content-Type": "image/jpeg"}
        )
        with urllib.request.urlopen(request) as answer:  # noqa: S310
            found = json.loads(answer.read())
    expected = Predictor.load(bundle).predict(film, "film")
    assert found["probability"] == pytest.approx(expected.probability, abs=1e-6)
    account.watched.begin()
    gone = told(capsys, "aws", "destroy", "--yes")
    assert gone["exit"] == 0, gone
    assert account.watched.times["cloudformation.DeleteStack"] == 3
    assert what_is_there() == account.theirs


def test_what_cannot_be_deleted_is_named_and_the_exit_is_1(
    account: Account, capsys: pytest.CaptureFixture[str]
) -> None:
    cloud = connect()
    made = stacks.deploy_stack(cloud, NAMES, NAMES.website_stack, NOT_EMPTY, {}, print)
    put_image("made", repository="kept")  # CloudFormation deletes no repository that holds images
    boto3.client("s3").put_object(Bucket=made.outputs["Bucket"], Key="film", Body=b"1")
    boto3.client("s3").delete_object(Bucket=made.outputs["Bucket"], Key="film")
    found = told(capsys, "aws", "destroy", "--yes")
    assert (found["exit"], [item["name"] for item in found["left"]]) == (1, [NAMES.website_stack])
    assert "Images (AWS::ECR::Repository) delete failed" in found["problems"][0]
    assert "kept" in what_is_there()
    assert run("aws", "destroy", "--yes") == 1
    assert "Repeat the command once that is mended" in capsys.readouterr().out
    boto3.client("ecr").delete_repository(repositoryName="kept", force=True)
    assert told(capsys, "aws", "destroy", "--yes")["exit"] == 0
    assert what_is_there() == account.theirs

    stacks.deploy_stack(cloud, NAMES, NAMES.website_stack, NOT_EMPTY, {}, print)
    client = boto3.client("cloudformation")
    client.update_termination_protection(StackName=NAMES.website_stack, EnableTerminationProtection=True)
    found = told(capsys, "aws", "destroy", "--yes")
    assert (found["exit"], [item["name"] for item in found["left"]]) == (1, [NAMES.website_stack])
    assert "TerminationProtection is enabled" in found["problems"][0]
    client.update_termination_protection(StackName=NAMES.website_stack, EnableTerminationProtection=False)
    assert told(capsys, "aws", "destroy", "--yes")["exit"] == 0
    assert what_is_there() == account.theirs
    cloud.close()
