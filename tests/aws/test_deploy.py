"""Endpoints, validation and the end of it all: the real service behind an emulated SageMaker, films in real S3."""

from __future__ import annotations

import csv
import json
import tomllib
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import boto3
import pytest

from chestxray.aws import images, jobs, roles, session
from chestxray.aws.deploy import parse_ttl
from chestxray.aws.images import repository_arn, training_image
from chestxray.aws.jobs import PAYLOAD_MB
from chestxray.aws.session import Cloud, Names, connect
from chestxray.errors import CloudError, UsageError
from chestxray.inference.predictor import Predictor
from chestxray.metrics.scores import COLUMNS, read_score_file
from chestxray.schema import Film
from live_moto import ACCOUNT
from sagemaker_account import IMAGE, account, let_time_pass, put_image, schedules
from sagemaker_emulator import SageMaker
from typed import run, told

ROOT = Path(__file__).parents[2]
NAMES = Names("chestxray", ACCOUNT, "us-east-1")


@pytest.fixture(scope="module")
def empty(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SageMaker]:
    with account(tmp_path_factory.mktemp("account")) as service, pytest.MonkeyPatch.context() as patch:
        patch.setattr(session, "POLL_S", 0.1)
        yield service


@pytest.fixture
def service(empty: SageMaker) -> Iterator[SageMaker]:
    """An account with our image in it, as a build leaves it; destroyed afterwards."""
    put_image("made")
    yield empty
    assert run("aws", "destroy", "--yes") == 0
    boto3.client("logs").close()


def deployed(capsys: pytest.CaptureFixture[str], bundle: Path, *arguments: object) -> dict[str, Any]:
    return told(capsys, "aws", "deploy", bundle, "--image", IMAGE, *arguments)


def what_is_there() -> set[str]:
    """By other means than ours."""
    sagemaker = boto3.client("sagemaker")
    found = {item["EndpointName"] for item in sagemaker.list_endpoints()["Endpoints"]}
    found |= {item["EndpointConfigName"] for item in sagemaker.list_endpoint_configs()["EndpointConfigs"]}
    found |= {item["ModelName"] for item in sagemaker.list_models()["Models"]}
    found |= {item["Name"] for item in schedules()}
    found |= {item["RoleName"] for item in boto3.client("iam").list_roles()["Roles"]}
    found |= {item["repositoryName"] for item in boto3.client("ecr").describe_repositories()["repositories"]}
    return found | {item["Name"] for item in boto3.client("s3").list_buckets()["Buckets"] if item["Name"] != "films"}


def test_an_endpoint_answers_as_the_bundle_does_and_goes_by_itself(
    service: SageMaker, bundle: Path, film: bytes, capsys: pytest.CaptureFixture[str]
) -> None:
    before = datetime.now(UTC)
    found = deployed(capsys, bundle, "--ttl", "2h")
    assert found["exit"] == 0, found
    answer = boto3.client("sagemaker-runtime").invoke_endpoint(
        EndpointName=found["endpoint"], ContentType="application/x-image", Body=film
    )
    expected = Predictor.load(bundle).predict(film, "film").probability
    assert json.loads(answer["Body"].read())["probability"] == pytest.approx(expected, abs=1e-4)
    assert let_time_pass(before + timedelta(minutes=119)) == []
    assert let_time_pass(before + timedelta(hours=2, minutes=1)) == ["DeleteEndpoint"]
    assert let_time_pass(before + timedelta(hours=3)) == ["DeleteEndpointConfig", "DeleteModel"]
    listed = {"endpoint"}
    while "endpoint" in listed:  # it takes its leave; the limit of the test ends a wait without end
        listed = {item["kind"] for item in told(capsys, "aws", "status")["found"]}
    assert listed == {"schedules", "image repository", "log", "role", "bucket"}  # the schedules' group, empty
    assert schedules() == []


@pytest.mark.soak
def test_the_same_command_keeps_the_endpoint_and_another_one_changes_it(
    service: SageMaker, bundle: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first = deployed(capsys, bundle)
    again = deployed(capsys, bundle, "--ttl", "never")
    assert (again["endpoint"], again["config"], again["end"]) == (first["endpoint"], first["config"], None)
    assert schedules() == []
    changed = deployed(capsys, bundle, "--instance", "ml.m5.large")
    assert changed["config"] != first["config"]
    assert "is replaced" in changed["said"]  # serverless ones cannot be changed into others
    larger = deployed(capsys, bundle, "--instance", "ml.m5.xlarge")
    assert "UpdateEndpoint" in {operation for operation, _ in service.requests}
    changed = deployed(capsys, bundle, "--instance", "ml.m5.large")
    assert larger["config"] != changed["config"]
    configs = boto3.client("sagemaker").list_endpoint_configs()["EndpointConfigs"]
    assert [item["EndpointConfigName"] for item in configs] == [changed["config"]]
    found = told(capsys, "aws", "status", "--cost")
    assert found["hourly"] == pytest.approx(0.115, abs=1e-3)
    assert "deleted by itself at" in next(item["note"] for item in found["found"] if item["kind"] == "endpoint")


def test_a_dry_run_tells_the_cost_and_makes_nothing(
    service: SageMaker, bundle: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = what_is_there()
    found = deployed(capsys, bundle, "--instance", "ml.m5.large", "--dry-run")
    assert found["plan"]["hourly"] == pytest.approx(0.115)
    assert what_is_there() == before


def test_an_endpoint_that_does_not_come_up_says_why_and_is_taken_away(
    service: SageMaker, bundle: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CHESTXRAY_API_KEYS", "this is no key")  # which the container's environment inherits
    found = deployed(capsys, bundle)
    assert found["exit"] == 1
    assert found["error"]["type"] == "JobFailed"
    assert "did not pass the ping health check" in found["error"]["message"]
    assert what_is_there() == {"chestxray", NAMES.role("sagemaker"), NAMES.role("expiry"), NAMES.bucket}  # the image
    assert boto3.client("sagemaker").list_endpoints()["Endpoints"] == []


@pytest.mark.slow
def test_a_change_that_does_not_come_up_ends_and_leaves_what_ran_with_its_end(
    service: SageMaker, bundle: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first = deployed(capsys, bundle, "--instance", "ml.m5.large")
    there = what_is_there()
    service.updates = ["InService"]  # SageMaker went back by itself
    failed = deployed(capsys, bundle, "--instance", "ml.m5.xlarge")
    assert (failed["exit"], failed["error"]["type"]) == (1, "JobFailed")
    assert "answers as before the change" in failed["said"]
    assert what_is_there() == there
    ends = {json.loads(item["Target"]["Input"]).get("EndpointConfigName") for item in schedules()}
    assert first["config"] in ends
    service.updates = ["UpdateRollbackFailed"]  # it could not: part of it runs as changed, so nothing is taken from it
    stuck = deployed(capsys, bundle, "--instance", "ml.m5.xlarge")
    assert (stuck["exit"], stuck["error"]["type"]) == (1, "JobFailed")
    assert "is as the failed change left it" in stuck["said"]
    assert there < what_is_there()


@pytest.mark.slow
def test_destroy_endpoint_ends_the_endpoint_alone(
    service: SageMaker, bundle: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The original's ``delete_endpoint()``."""
    deployed(capsys, bundle)
    found = told(capsys, "aws", "destroy", "--yes", "--endpoint")
    assert found["exit"] == 0, found
    kinds = ["endpoint", "endpoint configuration", "model", "schedules"]
    assert [item["kind"] for item in found["removed"]] == kinds
    assert what_is_there() == {"chestxray", NAMES.role("sagemaker"), NAMES.role("expiry"), NAMES.bucket}  # the image


@pytest.mark.parametrize(
    "message",
    [
        "Could not assume role arn:aws:iam::1:role/x. Please ensure that the role exists",
        'No S3 objects found under S3 URL "s3://films/set". Please ensure that the role has "s3:ListBucket"',
        "Could not access model data at s3://b/k. Please ensure that the role exists",
    ],
)
def test_what_a_service_says_while_a_new_role_spreads_is_asked_again(
    service: SageMaker,
    bundle: Path,
    message: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(roles, "RETRY_S", 0.01)
    s3 = boto3.client("s3")
    s3.create_bucket(Bucket="films")
    s3.put_object(Bucket="films", Key="set/NORMAL/a.png", Body=b"1")
    for operation in ("CreateTrainingJob", "CreateTransformJob"):
        service.faults[operation] += [("ValidationException", message)] * 3
    other = ("--split-seed", len(message))  # another job each time
    begun = told(capsys, "aws", "train", "s3://films/set", "--instance", "ml.m5.large", "--no-wait", *other)
    assert begun["did"] == "create", begun
    order = jobs.TransformOrder("s3://films/set", "no-such-model", "ml.m5.large", "validate-x", 1)
    with connect_to(NAMES) as cloud, pytest.raises(CloudError, match="Could not find Model"):
        jobs.run_transform(cloud, NAMES, order, print)  # by then the three refusals are over
    assert service.faults["CreateTransformJob"] == []
    boto3.client("sagemaker").stop_training_job(TrainingJobName=begun["job"])
    s3.delete_object(Bucket="films", Key="set/NORMAL/a.png")
    s3.delete_bucket(Bucket="films")


@contextmanager
def connect_to(names: Names) -> Iterator[Cloud]:
    cloud = connect(names.region)
    yield cloud
    cloud.close()


@pytest.mark.slow
def test_an_image_of_another_repository_can_be_pulled_and_one_that_cannot_is_refused_first(
    service: SageMaker, bundle: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    put_image("one", repository="hospital/chest", ours=False)
    image = f"{ACCOUNT}.dkr.ecr.us-east-1.amazonaws.com/hospital/chest:one"
    found = told(capsys, "aws", "deploy", bundle, "--image", image)
    assert found["exit"] == 0, found
    before = what_is_there()
    for wrong in ("docker.io/library/python:3.13", image.replace("us-east-1", "eu-west-1")):
        for verb in (("deploy", bundle), ("train", "s3://films/set")):
            refused = told(capsys, "aws", *verb, "--image", wrong)
            assert (refused["exit"], "--image" in refused["error"]["message"]) == (2, True)
    assert what_is_there() == before
    boto3.client("ecr").delete_repository(repositoryName="hospital/chest", force=True)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("operation", "code", "kind"),
    [
        ("CreateModel", "AccessDeniedException", "CloudRefused"),
        ("CreateEndpointConfig", "ResourceLimitExceeded", "QuotaReached"),
        ("CreateEndpoint", "ResourceLimitExceeded", "QuotaReached"),
    ],
)
def test_a_failure_at_any_step_is_one_sentence_and_destroy_leaves_nothing(
    service: SageMaker, bundle: Path, operation: str, code: str, kind: str, capsys: pytest.CaptureFixture[str]
) -> None:
    service.faults[operation].append((code, "refused"))
    found = deployed(capsys, bundle)
    assert (found["exit"], found["error"]["type"]) == (1, kind)
    assert operation in found["error"]["message"]
    assert told(capsys, "aws", "destroy", "--yes")["exit"] == 0
    assert what_is_there() == set()


@pytest.mark.slow
def test_destroy_goes_on_past_what_it_cannot_remove_and_says_so(
    service: SageMaker, bundle: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    deployed(capsys, bundle)
    service.faults["DeleteModel"] += [("AccessDeniedException", "not yours")] * 3
    found = told(capsys, "aws", "destroy", "--yes")
    assert found["exit"] == 1
    assert [item["kind"] for item in found["left"]] == ["model"]
    assert "CloudRefused" not in found["problems"][0]
    assert "DeleteModel" in found["problems"][0]
    assert {name for name in what_is_there() if "model" not in name} == set()
    service.faults.clear()
    assert told(capsys, "aws", "destroy", "--yes")["exit"] == 0
    assert what_is_there() == set()
    assert told(capsys, "aws", "destroy", "--yes")["removed"] == []  # there is nothing to do


@pytest.mark.slow
def test_destroy_leaves_other_deployments_and_the_data_where_asked(
    service: SageMaker, bundle: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    deployed(capsys, bundle)
    model = boto3.client("sagemaker").list_models()["Models"][0]["ModelName"]
    made = boto3.client("sagemaker").describe_model(ModelName=model)
    other = {"ModelName": "chestxray-two-model", "ExecutionRoleArn": made["ExecutionRoleArn"]}
    tags = [{"Key": "chestxray:deployment", "Value": "chestxray-two"}]
    boto3.client("sagemaker").create_model(**other, PrimaryContainer=made["PrimaryContainer"], Tags=tags)
    assert told(capsys, "aws", "destroy", "--yes", "--keep-data")["exit"] == 0
    assert what_is_there() == {"chestxray-two-model", NAMES.bucket}
    boto3.client("sagemaker").delete_model(ModelName="chestxray-two-model")


@pytest.mark.soak
def test_validation_by_transform_says_what_the_local_evaluation_says(
    service: SageMaker,
    bundle: Path,
    synthetic_films: Path,
    synthetic_rows: tuple[Film, ...],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    boto3.client("s3").create_bucket(Bucket="films")
    assert told(capsys, "aws", "upload", synthetic_films / "test", "s3://films/test")["exit"] == 0
    deployed(capsys, bundle)
    found = told(capsys, "aws", "validate", "s3://films/test", "--out", tmp_path / "cloud", "--workers", 1)
    assert found["exit"] == 0, found
    capsys.readouterr()
    assert run("evaluate", bundle, synthetic_films / "test", "--out", tmp_path / "local", "--workers", 1, "--json") == 0
    local = json.loads(capsys.readouterr().out)["assessment"]
    assert found["assessment"]["films"] == local["films"]
    ours, theirs = answered(found["assessment"]), answered(local)
    assert ours["confusion"] == theirs["confusion"]
    measures = [{item["name"]: item["value"] for item in point["measures"]} for point in (ours, theirs)]
    assert {"sensitivity", "precision"} <= measures[0].keys()
    assert measures[0] == pytest.approx(measures[1])
    scores = [scores_of(path) for path in (tmp_path / "cloud.scores.csv", tmp_path / "local" / "scores.csv")]
    assert scores[0].keys() >= scores[1].keys()
    assert all(scores[0][name] == pytest.approx(score, abs=1e-4) for name, score in scores[1].items())
    jobs = len(boto3.client("sagemaker").list_transform_jobs()["TransformJobSummaries"])
    again = told(capsys, "aws", "validate", "s3://films/test", "--out", tmp_path / "again", "--workers", 1)
    assert again["job"] == found["job"]
    assert len(boto3.client("sagemaker").list_transform_jobs()["TransformJobSummaries"]) == jobs


def answered(assessment: dict[str, Any]) -> dict[str, Any]:
    """The operating point that calls are made at."""
    return next(point for point in assessment["points"] if point["point"]["name"] == assessment["default"])


def scores_of(path: Path) -> dict[str, float]:
    rows = [line.split(",") for line in path.read_text().splitlines()]
    at = rows[0].index("score")
    return {Path(row[0]).name: float(row[at]) for row in rows[1:] if row[at]}


def test_validation_refuses_what_would_fail_in_the_job(
    service: SageMaker, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    boto3.client("s3").create_bucket(Bucket="large")
    boto3.client("s3").put_object(Bucket="large", Key="test/NORMAL/a.png", Body=b"0" * (PAYLOAD_MB * 2**20 + 1))
    nothing = told(capsys, "aws", "validate", "s3://large/test", "--out", tmp_path / "report")
    assert "nothing is deployed" in nothing["error"]["message"]
    found = told(capsys, "aws", "validate", "s3://large/test", "--out", tmp_path / "report", "--model", "no-such-job")
    assert "neither a bundle here nor a training job" in found["error"]["message"]
    boto3.client("s3").delete_object(Bucket="large", Key="test/NORMAL/a.png")
    boto3.client("s3").delete_bucket(Bucket="large")


@pytest.mark.slow
def test_an_image_is_built_by_a_stack_of_its_own_and_only_once(
    empty: SageMaker, bundle: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """moto's builds end well at once and leave no image; what they would push is put there by hand."""
    builds = boto3.client("codebuild")
    kind = {"type": "LINUX_CONTAINER", "image": "any", "computeType": "BUILD_GENERAL1_SMALL"}
    source = {"type": "S3", "location": "any/any.zip"}
    role = f"arn:aws:iam::{ACCOUNT}:role/service-role/any"
    named = {"name": NAMES.build_stack, "serviceRole": role, "environment": kind}
    builds.create_project(**named, source=source, artifacts={"type": "NO_ARTIFACTS"})
    planned = told(capsys, "aws", "deploy", bundle, "--dry-run")["plan"]["items"]
    assert [item["does"] for item in planned if item["what"] == "image"] == ["build"]
    found = told(capsys, "aws", "deploy", bundle)
    assert "succeeded, but there is no such image" in found["error"]["message"]
    assert len(builds.list_builds_for_project(projectName=NAMES.build_stack)["ids"]) == 1
    put_image(images.image_of(NAMES).tag)
    assert told(capsys, "aws", "deploy", bundle)["exit"] == 0
    assert len(builds.list_builds_for_project(projectName=NAMES.build_stack)["ids"]) == 1
    assert {item["name"] for item in told(capsys, "aws", "destroy", "--yes")["removed"]} >= {
        NAMES.build_stack,
        NAMES.endpoint,
    }
    assert what_is_there() == set()


# --------------------------------------------------------------------------- what needs no account


def test_lifetimes_are_exact_and_never_has_to_be_typed() -> None:
    assert parse_ttl("90m") == timedelta(minutes=90)
    assert parse_ttl("4h") == timedelta(hours=4)
    assert parse_ttl("2d") == timedelta(days=2)
    assert parse_ttl("never") is None
    for nonsense in ("4", "1m", "0h", "h", "-4h", "4 h", "forever"):
        with pytest.raises(UsageError, match="give 5m or more"):
            parse_ttl(nonsense)


def test_the_image_installs_what_the_package_declares() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    declared = {*project["dependencies"], *project["optional-dependencies"]["dicom"]}
    text = (ROOT / "src/chestxray/aws/Dockerfile").read_text()
    installed = {line.strip(' \\"') for line in text.splitlines() if line.startswith('    "')}
    assert installed == declared


def test_the_image_holds_the_page_and_no_training() -> None:
    names = set(images.context())
    assert {"chestxray/aws/Dockerfile", "chestxray/serving/page/index.html", "chestxray/cli/__init__.py"} <= names
    assert not [name for name in names if name.startswith("chestxray/training/") or name.endswith(".pyc")]
    assert images.image_of(NAMES) == images.image_of(NAMES)


def test_the_account_of_the_training_images_is_the_regions_own_or_there_is_no_job() -> None:
    assert training_image("me-south-1", "ml.m5.large").startswith("217643126080.dkr.ecr.me-south-1.")
    assert training_image("eu-central-2", "ml.m5.large").startswith("380420809688.")
    with pytest.raises(UsageError, match="Give an --image there"):
        training_image("ap-nowhere-1", "ml.m5.large")
    for old in ("ml.p3.2xlarge", "ml.p2.xlarge", "ml.g3.4xlarge"):
        with pytest.raises(UsageError, match="older than what the image's CUDA 13 supports"):
            training_image("us-east-1", old)


def test_an_image_is_named_as_policies_name_its_repository() -> None:
    registry = "210987654321.dkr.ecr.us-east-1.amazonaws.com"
    for image in (f"{registry}/a/b:1", f"{registry}/a/b@sha256:{'0' * 64}"):
        assert repository_arn(image, "us-east-1") == "arn:aws:ecr:us-east-1:210987654321:repository/a/b"


def test_instances_with_a_gpu_get_the_image_for_it() -> None:
    assert "-cu133-" in training_image("eu-central-1", "ml.g4dn.xlarge")
    assert training_image("eu-central-1", "ml.m5.large") == (
        "763104351884.dkr.ecr.eu-central-1.amazonaws.com/pytorch:2.13-cpu-amzn2023-sagemaker"
    )


def test_films_that_got_no_prediction_are_rows_with_a_reason(tmp_path: Path, bundle: Path, film: bytes) -> None:
    """Unreadable here, refused there, without any answer: the report counts them all."""
    address = "s3://films/set"
    answer = Predictor.load(bundle).predict(film, "film")
    answers = {"set/a.jpeg": answer.to_json(), "set/b.jpeg": json.dumps({"detail": "is no film"}), "set/e.jpeg": "?"}
    verdicts = {"a": "accepted", "b": "accepted", "c": "unreadable", "d": "accepted", "e": "accepted"}
    films = [
        Film(f"{address}/{name}.jpeg", label="pneumonia", verdict=verdict, reason="is text" if name == "c" else "")
        for name, verdict in verdicts.items()
    ]
    table = tmp_path / "scores.csv"
    threshold = jobs.write_transform_scores(films, jobs.Transformed(answers, "validate-x", "create"), table)
    assert threshold == answer.threshold
    with table.open(newline="") as file:
        rows = {row["path"].removeprefix(f"{address}/"): row for row in csv.DictReader(file, strict=True)}
    assert {len(row) for row in rows.values()} == {len(COLUMNS)}
    assert all(None not in row and None not in row.values() for row in rows.values()), "as many fields as columns"
    assert float(rows["a.jpeg"]["score"]) == answer.probability
    reasons = {name: row["reason"] for name, row in rows.items() if not row["score"]}
    assert reasons == {
        "b.jpeg": "is no film",
        "c.jpeg": "unreadable: is text",
        "d.jpeg": jobs.NO_ANSWER,
        "e.jpeg": "answered with '?'",
    }
    assert len(read_score_file(table).table.paths) == 1
