"""Each call of each verb fails once: one sentence, the same command again succeeds, and nothing is left at the end.

A call is refused, throttled, never arrives, or is carried out while its answer is lost. What AWS throttles is asked
again by itself in earnest (test_refusals.py), and once here, so that a failure is one. The website has a stack of
ministack, everything else is moto's; endpoints and jobs answer without a container.
"""

from __future__ import annotations

import functools
import shutil
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import boto3
import pytest

import cloud_requests
import live_ministack
from chestxray.aws import roles, session, stacks, website
from cloud_requests import CloudRequests
from sagemaker_account import IMAGE, account, account_with_functions, put_image, schedules
from sagemaker_emulator import SageMaker
from typed import told

pytestmark = [pytest.mark.soak, pytest.mark.timeout(3000)]

VERBS: Final = {
    "upload": ("upload", "{films}", "s3://chestxray-123456789012-us-east-1/films"),
    "train": ("train", "s3://films/set", "--instance", "ml.m5.large"),
    "deploy": ("deploy", "{bundle}", "--image", IMAGE),
    "validate": ("validate", "s3://films/set", "--out", "{out}", "--model", "{bundle}", "--image", IMAGE),
    "status": ("status", "--cost"),
    "destroy": ("destroy", "--yes"),
    "website": ("website", "--access", "open"),
}
AFTER_DEPLOY: Final = ("status", "destroy", "website")  # these need an endpoint that is there
CHANGES_NOTHING: Final = ("status",)
FAULTS: Final = ("denied", "throttled", "timeout", "lost")
FILMS: Final = 6  # of each kind
# A job's lines that cannot be read are shown later, or never: that ends nobody's waiting.
MAY_FAIL_QUIETLY: Final = ("cloudwatch-logs.DescribeLogStreams", "cloudwatch-logs.GetLogEvents")


@dataclass(frozen=True)
class Place:
    """An account, what is asked of it, and the words that commands are typed with."""

    service: SageMaker
    watched: CloudRequests
    words: dict[str, object]

    def typed(self, capsys: pytest.CaptureFixture[str], verb: str) -> dict[str, Any]:
        workers = ("--workers", "1") if verb == "validate" else ()
        return told(capsys, "aws", *(word.format(**self.words) for word in VERBS[verb]), *workers)


client = functools.cache(boto3.client)  # those of one account


@pytest.fixture(params=VERBS)
def verb(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def place(verb: str, tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Place]:
    films, bundle = tmp_path / "films", "pneumonia"
    for kind in ("NORMAL", "PNEUMONIA"):
        (films / kind).mkdir(parents=True)
        (films / kind / "a.jpeg").write_bytes(b"a film")
    if verb == "validate":  # the one that looks at films
        bundle = str(request.getfixturevalue("bundle"))
        for folder in films.iterdir():
            paths = [path for path in request.getfixturevalue("film_paths") if path.parent.name == folder.name]
            for path in paths[:FILMS]:
                shutil.copy(path, folder)
    with ExitStack() as stack:
        if verb != "website":
            service = stack.enter_context(account(tmp_path / "account"))
        elif live_ministack.needed.args[0]:
            pytest.skip(live_ministack.needed.kwargs["reason"])
        else:
            service, _ = stack.enter_context(account_with_functions(tmp_path / "account"))
        patch = stack.enter_context(pytest.MonkeyPatch.context())
        watched = stack.enter_context(cloud_requests.watched())
        for module in (session, stacks):
            patch.setattr(module, "POLL_S", 0.05)
        patch.setattr(session, "ATTEMPTS", 1)
        patch.setattr(roles, "NEW_ROLE_S", 0.0)
        patch.setattr(website, "template", live_ministack.template_without_budget)
        service.runs_containers = False
        stack.callback(client.cache_clear)
        s3 = client("s3")
        s3.create_bucket(Bucket="films")
        for path in films.rglob("*.jpeg"):
            s3.put_object(Bucket="films", Key=f"set/{path.relative_to(films).as_posix()}", Body=path.read_bytes())
        yield Place(service, watched, {"films": films, "bundle": bundle, "out": tmp_path / "report"})


def forget_tags_of_the_bucket() -> None:
    """Moto keeps the tags of a deleted bucket for the next one of its name."""
    s3, bucket = client("s3"), "chestxray-123456789012-us-east-1"
    s3.create_bucket(Bucket=bucket)
    s3.delete_bucket_tagging(Bucket=bucket)
    s3.delete_bucket(Bucket=bucket)


def what_is_there() -> set[str]:
    sagemaker = client("sagemaker")
    found = {item["EndpointName"] for item in sagemaker.list_endpoints()["Endpoints"]}
    found |= {item["EndpointConfigName"] for item in sagemaker.list_endpoint_configs()["EndpointConfigs"]}
    found |= {item["ModelName"] for item in sagemaker.list_models()["Models"]}
    found |= {item["TrainingJobName"] for item in sagemaker.list_training_jobs()["TrainingJobSummaries"]}
    found |= {item["Name"] for item in schedules()}
    found |= {item["RoleName"] for item in client("iam").list_roles()["Roles"]}
    groups = client("logs").describe_log_groups(logGroupNamePrefix="/aws/sagemaker/Endpoints")["logGroups"]
    found |= {item["logGroupName"] for item in groups}
    made = client("cloudformation").list_stacks()["StackSummaries"]
    found |= {item["StackName"] for item in made if item["StackStatus"] != "DELETE_COMPLETE"}
    return found | {item["Name"] for item in client("s3").list_buckets()["Buckets"]} - {"films"}


@pytest.mark.parametrize("fault", FAULTS)
def test_each_call_may_fail_once(place: Place, verb: str, fault: str, capsys: pytest.CaptureFixture[str]) -> None:
    def prepare() -> None:
        put_image("made")
        forget_tags_of_the_bucket()
        if verb in AFTER_DEPLOY:
            assert place.typed(capsys, "deploy")["exit"] == 0
        place.watched.begin()

    prepare()
    first = place.typed(capsys, verb)
    assert first["exit"] == 0, first
    assert len(place.watched.asked) > 5
    # A question whose answer is lost is one that never arrived.
    calls = list(dict.fromkeys(place.watched.changes if fault == "lost" else place.watched.asked))
    wrong = []
    for call in calls:
        if verb not in CHANGES_NOTHING:
            wrong += [f"{call}: {what}" for what in what_is_left(place, capsys)]
            prepare()
        wrong += [f"{call}: {what}" for what in what_goes_wrong(place, capsys, verb, call, fault)]
    wrong += what_is_left(place, capsys)
    assert wrong == []


def what_goes_wrong(
    place: Place, capsys: pytest.CaptureFixture[str], verb: str, call: str, fault: str
) -> Iterator[str]:
    """One call of a verb fails once; all is as it should be where nothing is told."""
    place.watched.fail(call, fault)
    first = place.typed(capsys, verb)
    place.watched.faults.clear()
    sentences = [first["error"]["message"]] if "error" in first else [*first.get("problems", first.get("unknown", ()))]
    told_of = first["exit"] != 0 and sentences and all(sentence.strip() for sentence in sentences)
    went_well = first["exit"] == 0 and fault == "lost"  # destroy looks again, and finds that it was carried out
    if not told_of and not went_well and call not in MAY_FAIL_QUIETLY:
        yield f"is not told: {first}"
    if "Traceback" in first["said"]:
        yield first["said"]
    again = place.typed(capsys, verb)
    if again["exit"] != 0:
        yield f"the same command again: {again}"


def what_is_left(place: Place, capsys: pytest.CaptureFixture[str]) -> Iterator[str]:
    """Remove all; nothing is left where nothing is told."""
    gone = place.typed(capsys, "destroy")
    if gone["exit"] != 0 or what_is_there():
        yield f"destroy: {gone}; left: {what_is_there()}"
