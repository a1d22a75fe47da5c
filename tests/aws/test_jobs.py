"""Training on AWS: the real training toolkit runs our source archive on synthetic films in real S3."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import boto3
import pytest

from chestxray.aws import jobs, session
from chestxray.aws.session import Names, Rules
from chestxray.aws.training_entry import check_gpu, job_arguments
from chestxray.errors import JobFailed
from chestxray.inference.predictor import Predictor
from chestxray.training.train_state import device_of
from live_moto import ACCOUNT
from sagemaker_account import IMAGE, account, let_time_pass, put_image
from sagemaker_emulator import SageMaker
from sagemaker_work import BIN, unpacked
from typed import run, told

pytest.importorskip("sagemaker_pytorch_container")

SMALL = ("--instance", "ml.m5.large", "--epochs", "2", "--batch-size", "16", "--size", "32x48", "--seed", "3")


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory, synthetic_films: Path) -> Iterator[SageMaker]:
    """An account whose bucket holds the synthetic films."""
    with account(tmp_path_factory.mktemp("account")) as found, pytest.MonkeyPatch.context() as patch:
        patch.setattr(session, "POLL_S", 0.2)
        boto3.client("s3").create_bucket(Bucket="films")
        run("aws", "upload", synthetic_films, "s3://films/set")
        yield found


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("recipe") / "short.toml"
    path.write_text('network = "alexnet5"\nepochs = 9\nminimum_steps = 0\n')
    return path


def trained(capsys: pytest.CaptureFixture[str], *arguments: object) -> dict[str, Any]:
    return told(capsys, "aws", "train", *arguments)


def test_a_plan_tells_the_cost_and_creates_nothing(
    service: SageMaker, recipe: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = len(service.requests)
    found = trained(capsys, "s3://films/set/train", "--recipe", recipe, "--instances", 2, "--dry-run")
    assert found["plan"]["hourly"] == pytest.approx(2 * 0.736)
    assert {operation for operation, _ in service.requests[before:]} <= {"DescribeTrainingJob"}
    assert boto3.client("iam").list_roles()["Roles"] == []


@pytest.mark.soak
def test_a_job_trains_a_bundle_and_the_same_command_finds_it_again(
    service: SageMaker, recipe: Path, tmp_path: Path, film: bytes, capsys: pytest.CaptureFixture[str]
) -> None:
    from chestxray import load

    found = trained(capsys, "s3://films/set/train", "--recipe", recipe, *SMALL)
    assert found["exit"] == 0, found
    assert found["metrics"]["validation:auroc"] > 0
    assert "epoch 2 of 2" in found["said"]  # the hyperparameter, not the recipe's nine
    assert "Downloading" in found["said"] or "Training" in found["said"]
    bundle = unpacked(found["artifacts"], tmp_path / "bundle")
    (tmp_path / "film.jpeg").write_bytes(film)
    assert load(bundle)(tmp_path / "film.jpeg").model == "pneumonia"
    jobs = len(boto3.client("sagemaker").list_training_jobs()["TrainingJobSummaries"])
    assert trained(capsys, "s3://films/set/train", "--recipe", recipe, *SMALL)["job"] == found["job"]
    assert len(boto3.client("sagemaker").list_training_jobs()["TrainingJobSummaries"]) == jobs
    bucket, _, key = found["artifacts"].removeprefix("s3://").partition("/")
    boto3.client("s3").delete_object(Bucket=bucket, Key=key)
    gone = told(capsys, "aws", "deploy", found["job"], "--image", IMAGE)
    assert "was deleted meanwhile. Train it again" in gone["error"]["message"]
    anew = trained(capsys, "s3://films/set/train", "--recipe", recipe, *SMALL, "--no-wait")
    assert (anew["did"], anew["job"]) == ("create", f"{found['job']}-2")
    kept = told(capsys, "aws", "destroy", "--yes", "--keep-data")
    assert kept["exit"] == 0, kept
    records = boto3.client("sagemaker").list_training_jobs()["TrainingJobSummaries"]
    assert {item["TrainingJobName"] for item in records} >= {found["job"], anew["job"]}
    assert run("aws", "destroy", "--yes") == 0
    assert boto3.client("sagemaker").list_training_jobs()["TrainingJobSummaries"] == []
    gone = told(capsys, "aws", "deploy", found["job"], "--image", IMAGE)
    assert "neither a bundle here nor a training job" in gone["error"]["message"]


@pytest.mark.soak
def test_from_films_to_a_validated_endpoint_that_goes_by_itself(
    service: SageMaker,
    recipe: Path,
    synthetic_films: Path,
    film: bytes,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Upload and training as above; then the job's bundle is served, validated, and gone when its time is over."""
    job = trained(capsys, "s3://films/set/train", "--recipe", recipe, *SMALL)
    put_image("made")
    begun = datetime.now(UTC)
    served = told(capsys, "aws", "deploy", job["job"], "--image", IMAGE, "--ttl", "30m")
    assert served["exit"] == 0, served
    answer = boto3.client("sagemaker-runtime").invoke_endpoint(
        EndpointName=served["endpoint"], ContentType="application/x-image", Body=film
    )
    bundle = unpacked(job["artifacts"], tmp_path / "bundle")
    expected = Predictor.load(bundle).predict(film, "film")
    assert json.loads(answer["Body"].read())["probability"] == pytest.approx(expected.probability, abs=1e-4)
    cloud = told(capsys, "aws", "validate", "s3://films/set/test", "--out", tmp_path / "cloud", "--workers", 1)
    local = told(capsys, "evaluate", bundle, synthetic_films / "test", "--out", tmp_path / "local", "--workers", 1)
    points = [{point["point"]["threshold"]: point for point in a["assessment"]["points"]} for a in (cloud, local)]
    (threshold,) = points[0]
    assert points[0][threshold]["confusion"] == points[1][threshold]["confusion"]
    assert let_time_pass(begun + timedelta(hours=2)) == ["DeleteEndpoint", "DeleteEndpointConfig", "DeleteModel"]
    assert told(capsys, "aws", "destroy", "--yes")["exit"] == 0
    assert told(capsys, "aws", "status")["found"] == []
    assert [bucket["Name"] for bucket in boto3.client("s3").list_buckets()["Buckets"]] == ["films"]


@pytest.mark.soak
def test_a_job_that_fails_says_why_in_our_words_and_the_next_one_has_another_name(
    service: SageMaker, recipe: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ("s3://films/set/train/NORMAL", "--recipe", recipe, *SMALL)
    first = trained(capsys, *arguments)
    assert first["exit"] == 1
    assert first["error"]["type"] == "JobFailed"
    assert re.search(r"failed: AlgorithmError: SourceInvalid: .*exit code: 1", first["error"]["message"])
    second = trained(capsys, *arguments)
    assert "-2: failed" in second["error"]["message"]


@pytest.mark.soak
def test_a_spot_job_goes_on_from_its_checkpoint_when_its_instance_was_taken_away(
    service: SageMaker, recipe: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    many = ("--epochs", 12, "--checkpoint-every", 1, "--spot")
    arguments = ("s3://films/set/train", "--recipe", recipe, *SMALL, *many)
    name = trained(capsys, *arguments, "--no-wait")["job"]
    while service.things["TrainingJob"][name]["SecondaryStatus"] != "Training":
        threading.Event().wait(0.05)
    service.take_the_instance_away(name)
    found = trained(capsys, *arguments)
    assert found["exit"] == 0, found
    assert re.search(r"resumes after step \d+", found["said"])
    assert found["said"].count("epoch 1 of 12") == 1


@pytest.mark.soak
def test_two_processes_train_under_the_toolkits_torchrun(
    service: SageMaker, recipe: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = trained(capsys, "s3://films/set/train", "--recipe", recipe, *SMALL, "--processes", 2)
    assert found["exit"] == 0, found
    assert "Invoking TorchDistributed" in found["said"]
    assert "in each of 2 processes" in found["said"]
    assert found["said"].count("epoch 1 of 2") == 1


@pytest.mark.soak
def test_ctrl_c_leaves_the_job_running_and_destroy_stops_it_and_leaves_nothing_but_the_films(
    service: SageMaker, recipe: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = [BIN / "chestxray", "aws", "train", "s3://films/set/train", "--recipe", recipe, *SMALL, "--epochs", "40"]
    follower = subprocess.Popen([str(word) for word in command], stderr=subprocess.PIPE, text=True)
    assert follower.stderr is not None
    said = ""
    while "epoch 1 of 40" not in said:
        line = follower.stderr.readline()
        assert line, said
        said += line
    follower.send_signal(signal.SIGINT)
    said = follower.communicate()[1]
    assert follower.returncode == 130
    assert "keeps running in AWS. The same command follows it" in said
    running = boto3.client("sagemaker").list_training_jobs(StatusEquals="InProgress")["TrainingJobSummaries"]
    assert len(running) == 1
    assert run("aws", "destroy", "--yes") == 0
    asked = [(operation, request) for operation, request in service.requests if operation.endswith("TrainingJob")]
    name = {"TrainingJobName": running[0]["TrainingJobName"]}
    assert asked.index(("StopTrainingJob", name)) < asked.index(("DeleteTrainingJob", name))
    assert boto3.client("sagemaker").list_training_jobs()["TrainingJobSummaries"] == []
    assert boto3.client("iam").list_roles()["Roles"] == []
    assert [bucket["Name"] for bucket in boto3.client("s3").list_buckets()["Buckets"]] == ["films"]


def test_access_denied_is_one_sentence(service: SageMaker, recipe: Path, capsys: pytest.CaptureFixture[str]) -> None:
    service.faults["CreateTrainingJob"].append(("AccessDeniedException", "not authorized"))
    found = trained(capsys, "s3://films/set/train", "--recipe", recipe, "--epochs", 3, "--no-wait")
    assert found["error"]["type"] == "CloudRefused"
    assert "Ask whoever administers" in found["error"]["message"]


@pytest.mark.parametrize("cannot_be", [("--epochs", 0), ("--recipe", "distilled")])
def test_a_recipe_that_cannot_be_is_refused_before_anything_is_made(
    service: SageMaker, capsys: pytest.CaptureFixture[str], cannot_be: tuple[object, ...]
) -> None:
    found = trained(capsys, "s3://films/set/train", *cannot_be)
    assert found["exit"] == 2
    assert found["error"]["type"] == "RecipeInvalid"


# --------------------------------------------------------------------------- what needs no account


def test_an_instance_whose_gpu_cannot_be_used_is_refused_and_not_trained_on_slowly() -> None:
    """This machine's PyTorch has no GPU, which is what one with the wrong driver looks like."""
    if device_of("auto").type != "cpu":
        pytest.skip("PyTorch can use a GPU here")
    check_gpu({"SM_NUM_GPUS": "0"})
    with pytest.raises(JobFailed, match=r"has 4 GPUs and PyTorch can use none .*Choose a newer --instance"):
        check_gpu({"SM_NUM_GPUS": "4"})


def test_without_the_toolkit_a_job_reads_its_hyperparameters_itself(tmp_path: Path) -> None:
    config = tmp_path / "input" / "config" / "hyperparameters.json"
    assert job_arguments(tmp_path) == []
    config.parent.mkdir(parents=True)
    config.write_text(json.dumps({"epochs": "3", "recipe": '"small"', "size": "64x64", "sagemaker_region": '"x"'}))
    assert job_arguments(tmp_path) == ["--epochs", "3", "--recipe", "small", "--size", "64x64"]


@pytest.mark.slow
def test_our_entry_trains_in_a_container_without_the_toolkit(
    tmp_path: Path, synthetic_films: Path, film: bytes
) -> None:
    """``docker run IMAGE train`` with the tree that SageMaker mounts; the tree is not in /opt/ml here."""
    base = tmp_path / "ml"
    config = base / "input" / "config" / "hyperparameters.json"
    config.parent.mkdir(parents=True)
    config.write_text(json.dumps({"epochs": "1", "batch-size": "16", "size": "32x48", "recipe": '"small"'}))
    (base / "input" / "data").mkdir()
    (base / "input" / "data" / "training").symlink_to(synthetic_films / "train")
    code = f"from chestxray.aws import training_entry as e; e.BASE = {str(base)!r}; from chestxray.cli import main; "
    command = [sys.executable, "-c", f"{code}main()", "serve", "--container", "train"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=tmp_path)
    assert done.returncode == 0, done.stderr + done.stdout
    assert Predictor.load(base / "model").predict(film, "film").probability >= 0


def test_a_spot_job_waits_no_longer_than_an_account_may_ask_for() -> None:
    names = Names("chestxray", ACCOUNT, "us-east-1")
    for hours, wait in ((1.0, 2 * 3600), (120.0, 120 * 3600)):
        order = jobs.TrainingOrder({"training": "s3://a/b"}, "", "x", spot=True, max_hours=hours)
        job = jobs.PreparedJob(order, "train-1", b"", "sources/1", 1)
        stopping = jobs.training_request(names, job, "train-1", "role", Rules())["StoppingCondition"]
        assert stopping == {"MaxRuntimeInSeconds": round(hours * 3600), "MaxWaitTimeInSeconds": wait}
