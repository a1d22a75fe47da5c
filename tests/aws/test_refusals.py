"""What AWS refuses, at any of a verb's steps: asked again where that helps, else one sentence and an exit status."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Final

import boto3
import pytest
from botocore.awsrequest import AWSPreparedRequest
from botocore.exceptions import ReadTimeoutError

import cloud_requests
from chestxray.aws import session
from chestxray.aws.session import connect
from chestxray.data import sources
from cloud_requests import CloudRequests
from sagemaker_account import IMAGE, account, put_image
from sagemaker_emulator import SageMaker
from typed import run, told

# Each verb as somebody types it, in the order of the pipeline. {films}, {bundle} and {out} are folders.
VERBS: Final = {
    "upload": ("upload", "{films}", "s3://films/set"),
    "train": ("train", "s3://films/set/train", "--instance", "ml.m5.large", "--no-wait"),
    "deploy": ("deploy", "{bundle}", "--image", IMAGE),
    "validate": ("validate", "s3://films/set/test", "--out", "{out}", "--workers", "1"),
    "website": ("website", "--access", "open"),
    "status": ("status", "--cost"),
    "destroy": ("destroy", "--yes"),
}


Place = tuple[SageMaker, CloudRequests, dict[str, str]]  # the account, what is asked of it, the folders of VERBS


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory, synthetic_films: Path, bundle: Path) -> Iterator[Place]:
    """An account with films in it, what is asked of it, and the folders of VERBS."""
    folder = tmp_path_factory.mktemp("refusals")
    with account(folder) as service, pytest.MonkeyPatch.context() as patch, cloud_requests.watched() as watched:
        patch.setattr(session, "POLL_S", 0.1)
        boto3.client("s3").create_bucket(Bucket="films")
        assert run("aws", "upload", synthetic_films, "s3://films/set") == 0
        yield service, watched, {"films": str(synthetic_films), "bundle": str(bundle), "out": str(folder / "report")}


@pytest.fixture
def watched(place: Place) -> Iterator[CloudRequests]:
    """Open, before and after."""
    found = place[1]
    found.begin()
    yield found
    found.refuse = lambda _, __: None


def typed(place: Place, verb: str) -> list[str]:
    return ["aws", *(word.format(**place[2]) for word in VERBS[verb])]


@pytest.mark.slow
def test_every_verb_goes_through_though_each_operation_is_throttled_at_first(
    place: Place, watched: CloudRequests, capsys: pytest.CaptureFixture[str]
) -> None:
    """The website's own stack is made under throttling in test_aws_story.py: moto does not know its resources."""
    put_image("made")
    watched.refuse = cloud_requests.at_first(2)
    for verb in [verb for verb in VERBS if verb != "website"]:
        watched.begin()
        found = told(capsys, *typed(place, verb))
        assert found["exit"] == 0, (verb, found)
        repeated = {asked: count for asked, count in watched.times.items() if count < 3}
        assert repeated == {}, verb
        assert len(watched.waited) >= 2 * len(watched.times)
        assert max(watched.waited) <= 20
    assert told(capsys, "aws", "status")["found"] == []


@pytest.mark.parametrize("verb", VERBS)
def test_a_verb_that_is_throttled_without_end_says_so_in_one_sentence(
    place: Place,
    watched: CloudRequests,
    verb: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    watched.refuse = lambda service, _: cloud_requests.throttled(service) if service != "sts" else None
    assert run(*typed(place, verb)) == 1
    lines = capsys.readouterr()
    told_of = [line for line in (lines.out + lines.err).splitlines() if "was answered with" in line]
    assert told_of
    assert all("Wait a minute and repeat the command; it resumes where it stopped" in line for line in told_of)
    assert "Traceback" not in lines.err
    tried = {count for asked, count in watched.times.items() if not asked.startswith("sts.")}
    assert {count % sources.ATTEMPTS for count in tried} == {0}, "some are asked for two kinds of things"
    assert watched.changes == []


@pytest.mark.parametrize("verb", VERBS)
@pytest.mark.parametrize(
    ("refusal", "sentence"),
    [
        (cloud_requests.DENIED, "Ask whoever administers the account for that permission"),
        (cloud_requests.EXPIRED, 'Sign in again ("aws sso login", or new keys) and repeat the command'),
    ],
)
def test_a_verb_that_may_not_is_one_sentence_and_is_not_tried_twice(
    place: Place,
    watched: CloudRequests,
    verb: str,
    refusal: tuple[int, str],
    sentence: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    watched.refuse = lambda _, __: refusal
    assert run(*typed(place, verb)) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.endswith(sentence)
    assert watched.asked == ["sts.GetCallerIdentity"]


@pytest.mark.parametrize("verb", ["upload", "status", "destroy"])
def test_what_may_not_be_looked_for_is_told_of_each_kind(
    place: Place,
    watched: CloudRequests,
    verb: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """HEAD has no body: S3's own word for it is then the status."""
    watched.refuse = lambda service, _: cloud_requests.DENIED if service != "sts" else None
    assert run(*typed(place, verb)) == 1
    lines = capsys.readouterr()
    told_of = [line for line in (lines.out + lines.err).splitlines() if "was answered with" in line]
    assert told_of
    assert all("Ask whoever administers the account for that permission" in line for line in told_of)
    assert watched.changes == []


def test_a_plan_to_destroy_what_may_not_be_looked_for_is_no_success(
    place: Place, watched: CloudRequests, capsys: pytest.CaptureFixture[str]
) -> None:
    watched.refuse = lambda service, _: cloud_requests.DENIED if service == "iam" else None
    assert run("aws", "destroy", "--dry-run") == 1
    assert "Warning: looking for role" in capsys.readouterr().err


@pytest.mark.parametrize("verb", VERBS)
def test_without_a_region_each_verb_says_what_to_set(
    place: Place,
    watched: CloudRequests,
    verb: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.delenv("AWS_DEFAULT_REGION")
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "none"))
    assert run(*typed(place, verb)) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "no AWS region is set. Give --region, or set AWS_REGION" in line
    assert watched.asked == []


@pytest.mark.parametrize(
    ("order", "sentence"),
    [
        (("validate", "s3://films/set", "--out", "x", "--image", IMAGE), "--image belongs to --model"),
        (("validate", "films/set", "--out", "x"), "films/set: not an address in S3"),
        (("website", "--access", "open", "--bundle", "pneumonia"), "--bundle belongs to --inline"),
        (("website", "--access", "open", "--budget", "5"), "--budget belongs to --email"),
        (("train", "s3://films/set", "--source-only", "x", "--pipeline-step"), "contradict each other"),
        (("deploy", "pneumonia", "--serverless", "--instance", "ml.m5.large"), "contradict each other"),
        (("deploy", "pneumonia", "--ttl", "1m"), "--ttl 1m: give 5m or more"),
        (("upload", ".", "films/set"), "films/set: not an address in S3"),
    ],
)
def test_what_cannot_be_meant_is_refused_before_aws_is_asked(
    place: Place,
    watched: CloudRequests,
    order: tuple[str, ...],
    sentence: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert run("aws", *order) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert sentence in line
    assert watched.asked == []


def test_films_that_are_not_there_are_missed_before_aws_is_asked(
    place: Place, watched: CloudRequests, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("aws", "upload", "nowhere", "s3://films/set") == 1
    assert "nowhere: is not there" in capsys.readouterr().err
    assert watched.asked == []


def test_a_bucket_that_keeps_an_object_is_named_with_it(
    place: Place, watched: CloudRequests, capsys: pytest.CaptureFixture[str]
) -> None:
    """S3 says so in an answer of status 200; here by a lock on the object."""
    cloud = connect()
    bucket = cloud.names("locked").bucket
    s3 = boto3.client("s3")
    s3.create_bucket(Bucket=bucket, ObjectLockEnabledForBucket=True)
    s3.put_bucket_tagging(Bucket=bucket, Tagging={"TagSet": cloud.names("locked").tag_list})
    made = s3.put_object(Bucket=bucket, Key="jobs/kept", Body=b"1")
    s3.put_object_legal_hold(Bucket=bucket, Key="jobs/kept", LegalHold={"Status": "ON"})
    found = told(capsys, "aws", "destroy", "--yes", "--deployment", "locked")
    assert (found["exit"], [item["name"] for item in found["left"]]) == (1, [bucket])
    assert "jobs/kept" in found["problems"][0]
    s3.put_object_legal_hold(Bucket=bucket, Key="jobs/kept", LegalHold={"Status": "OFF"}, VersionId=made["VersionId"])
    assert told(capsys, "aws", "destroy", "--yes", "--deployment", "locked")["exit"] == 0
    cloud.close()


@pytest.mark.slow
@pytest.mark.parametrize("refusal", [cloud_requests.DENIED, cloud_requests.THROTTLED])
def test_a_log_that_cannot_be_read_ends_nobodys_waiting(
    place: Place,
    watched: CloudRequests,
    refusal: tuple[int, str],
    capsys: pytest.CaptureFixture[str],
) -> None:
    put_image("made")
    watched.refuse = lambda service, _: refusal if service == "cloudwatch-logs" else None
    found = told(capsys, *typed(place, "validate"), "--model", place[2]["bundle"], "--image", IMAGE)
    assert found["exit"] == 0, found
    denied = "reading the log /aws/sagemaker/TransformJobs: DescribeLogStreams was answered with AccessDenied"
    assert found["said"].count(denied) == (refusal == cloud_requests.DENIED)
    watched.refuse = lambda _, __: None
    assert run("aws", "destroy", "--yes") == 0


def test_films_that_cannot_be_read_are_no_report_without_them(
    place: Place,
    watched: CloudRequests,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """The job has answered; here one film is fetched in vain, for its label's row and its place among copies."""
    service, _, words = place
    monkeypatch.setattr(service, "runs_containers", False)
    put_image("made")
    sources.client.cache_clear()
    lost: list[str] = []

    def lose(request: AWSPreparedRequest, **_: object) -> None:
        lost[:] = lost or [request.url]
        if request.url == lost[0]:
            raise ReadTimeoutError(endpoint_url=request.url)

    sources.client().meta.events.register("before-send.s3.GetObject", lose)
    validate = ("aws", "validate", "s3://films/set/test", "--out", tmp_path / "report", "--workers", "1")
    given = ("--model", words["bundle"], "--image", IMAGE)
    first = told(capsys, *validate, *given)
    assert first["exit"] == 1
    assert "A report without such films would mislead, so none was written. Repeat" in first["error"]["message"]
    assert lost[0].split("/")[-1] in first["error"]["message"]
    assert not (tmp_path / "report").exists()
    sources.client.cache_clear()
    again = told(capsys, *validate, *given)
    assert (again["exit"], again["did"]) == (0, "keep"), again
    assert run("aws", "destroy", "--yes") == 0
