"""Each call of each verb fails once: one sentence, the same command again succeeds, and nothing is left at the end.

Throttling, which is asked again by itself, is in test_refusals.py; endpoints answer here without a container.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final

import boto3
import pytest

import cloud_door
from chestxray.aws import roles, session, waiting
from cloud_door import Door
from sagemaker_account import IMAGE, account, put_image, schedules
from sagemaker_emulator import SageMaker
from typed import told

pytestmark = pytest.mark.soak

VERBS: Final = {
    "upload": ("upload", "{films}", "s3://chestxray-123456789012-us-east-1/films"),
    "train": ("train", "s3://films/set", "--instance", "ml.m5.large", "--no-wait"),
    "deploy": ("deploy", "pneumonia", "--image", IMAGE),
    "destroy": ("destroy", "--yes"),
}
FAULTS: Final = ("denied", "timeout")


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[SageMaker, Door, Path]]:
    folder = tmp_path_factory.mktemp("failures")
    with account(folder) as service, pytest.MonkeyPatch.context() as patch, cloud_door.watched() as door:
        patch.setattr(waiting, "POLL_S", 0.05)
        patch.setattr(session, "ATTEMPTS", 1)
        patch.setattr(roles, "NEW_ROLE_S", 0.0)
        service.runs_containers = False
        boto3.client("s3").create_bucket(Bucket="films")
        boto3.client("s3").put_object(Bucket="films", Key="set/NORMAL/a.png", Body=b"a film")
        (folder / "films").mkdir()
        (folder / "films" / "a.png").write_bytes(b"a film")
        yield service, door, folder / "films"


def typed(place: tuple[SageMaker, Door, Path], capsys: pytest.CaptureFixture[str], verb: str) -> dict[str, Any]:
    return told(capsys, "aws", *(word.format(films=place[2]) for word in VERBS[verb]))


def forget_tags_of_the_bucket() -> None:
    """Moto keeps the tags of a deleted bucket for the next one of its name."""
    s3, bucket = boto3.client("s3"), "chestxray-123456789012-us-east-1"
    s3.create_bucket(Bucket=bucket)
    s3.delete_bucket_tagging(Bucket=bucket)
    s3.delete_bucket(Bucket=bucket)


def what_is_there() -> set[str]:
    sagemaker = boto3.client("sagemaker")
    found = {item["EndpointName"] for item in sagemaker.list_endpoints()["Endpoints"]}
    found |= {item["EndpointConfigName"] for item in sagemaker.list_endpoint_configs()["EndpointConfigs"]}
    found |= {item["ModelName"] for item in sagemaker.list_models()["Models"]}
    found |= {item["Name"] for item in schedules()}
    found |= {item["RoleName"] for item in boto3.client("iam").list_roles()["Roles"]}
    groups = boto3.client("logs").describe_log_groups(logGroupNamePrefix="/aws/sagemaker/Endpoints")["logGroups"]
    found |= {item["logGroupName"] for item in groups}
    return found | {item["Name"] for item in boto3.client("s3").list_buckets()["Buckets"]} - {"films"}


@pytest.mark.timeout(3000)
@pytest.mark.parametrize("verb", VERBS)
def test_each_call_may_fail_once(
    place: tuple[SageMaker, Door, Path], verb: str, capsys: pytest.CaptureFixture[str]
) -> None:
    _, door, _ = place

    def prepare() -> None:
        put_image("made")
        forget_tags_of_the_bucket()
        if verb == "destroy":
            assert typed(place, capsys, "deploy")["exit"] == 0
        door.begin()

    prepare()
    assert typed(place, capsys, verb)["exit"] == 0
    calls = list(dict.fromkeys(door.asked))
    assert len(calls) > 5
    assert typed(place, capsys, "destroy")["exit"] == 0
    wrong = [
        f"{verb}, {call}, {fault}: {what}"
        for call in calls
        for fault in FAULTS
        for what in what_goes_wrong(place, capsys, verb, call, fault, prepare)
    ]
    assert wrong == []


def what_goes_wrong(
    place: tuple[SageMaker, Door, Path],
    capsys: pytest.CaptureFixture[str],
    verb: str,
    call: str,
    fault: str,
    prepare: Callable[[], None],
) -> Iterator[str]:
    """One call of a verb fails once; all is as it should be where nothing is told."""
    _, door, _ = place
    prepare()
    door.fail(call, fault)
    first = typed(place, capsys, verb)
    sentences = [first["error"]["message"]] if "error" in first else [*first.get("problems", ())]
    if first["exit"] == 0 or not sentences or not all(sentence.strip() for sentence in sentences):
        yield f"is not told: {first}"
    if "Traceback" in first["said"]:
        yield first["said"]
    door.faults.clear()
    again = typed(place, capsys, verb)
    if again["exit"] != 0:
        yield f"the same command again: {again}"
    gone = typed(place, capsys, "destroy")
    if gone["exit"] != 0 or what_is_there():
        yield f"destroy: {gone}; left: {what_is_there()}"
