"""Films to S3 and the door to AWS: a real S3 protocol server on loopback, and real processes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import boto3
import pytest

import live_moto
from chestxray.aws import session, storage
from chestxray.aws.plan import PRICES_NOTICE
from chestxray.aws.session import Cloud, Names, cloud_errors, connect
from chestxray.errors import (
    CloudError,
    CloudForeign,
    CloudMissing,
    CloudRefused,
    CloudThrottled,
    CloudUnreachable,
    CredentialsExpired,
    CredentialsMissing,
    QuotaReached,
    UsageError,
)
from stand_in import StandIn, serving
from typed import run

MANY = 400  # files, of which a killed upload has sent some


@pytest.fixture
def s3(moto: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """An account with the bucket "films"."""
    for name, value in {**live_moto.CREDENTIALS, "AWS_ENDPOINT_URL": moto}.items():
        monkeypatch.setenv(name, value)
    client = boto3.client("s3")
    client.create_bucket(Bucket="films")
    yield client
    storage.empty_bucket(client, "films")
    client.delete_bucket(Bucket="films")
    client.close()


@pytest.fixture
def cloud(s3: Any) -> Iterator[Cloud]:
    found = connect()
    yield found
    found.close()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Films in the published layout, and what is no film of ours."""
    for name in ("train/NORMAL/a.png", "train/PNEUMONIA/b.png", "test/NORMAL/c.png", ".hidden/d.png"):
        path = tmp_path / "films" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(name.encode() * 100)
    return tmp_path / "films"


def uploaded(capsys: pytest.CaptureFixture[str], *arguments: object) -> dict[str, Any]:
    assert run("aws", "upload", *arguments, "--json") == 0
    return dict(json.loads(capsys.readouterr().out))


def keys(s3: Any, bucket: str = "films") -> list[str]:
    return [found["Key"] for found in s3.list_objects_v2(Bucket=bucket).get("Contents", ())]


def test_a_folder_goes_up_and_a_second_time_only_what_changed(
    s3: Any, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first = uploaded(capsys, folder, "s3://films/set")
    assert (first["sent"], first["same"]) == (3, 0)
    assert keys(s3) == ["set/test/NORMAL/c.png", "set/train/NORMAL/a.png", "set/train/PNEUMONIA/b.png"]
    changed = folder / "train/NORMAL/a.png"
    changed.write_bytes(changed.read_bytes()[::-1])  # of the same size
    (folder / "test/NORMAL/c.png").unlink()
    second = uploaded(capsys, folder, "s3://films/set/")
    assert (second["sent"], second["same"], second["others"]) == (1, 1, 1)
    assert s3.get_object(Bucket="films", Key="set/train/NORMAL/a.png")["Body"].read() == changed.read_bytes()
    assert uploaded(capsys, folder, "s3://films/set")["sent"] == 0


def test_every_file_carries_the_checksum_that_s3_is_to_check(s3: Any, folder: Path, cloud: Cloud) -> None:
    def ignore(done: int, total: int) -> None: ...

    sent: list[dict[str, Any]] = []
    cloud.client("s3").meta.events.register(
        "before-sign.s3.PutObject", lambda request, **_: sent.append(dict(request.headers))
    )
    storage.send(cloud, storage.upload_diff(cloud, folder, "s3://films", ignore), ignore)
    assert len(sent) == 3
    stored = {
        s3.head_object(Bucket="films", Key=key, ChecksumMode="ENABLED")["ChecksumSHA256"].encode() for key in keys(s3)
    }
    assert stored == {headers["x-amz-checksum-sha256"].encode() for headers in sent}
    assert storage.checksum_of(folder / "train/NORMAL/a.png").encode() in stored


def test_a_large_file_travels_in_parts_and_goes_on_with_those_that_arrived(
    s3: Any, cloud: Cloud, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    part = 5 * 2**20  # the least that S3 takes
    monkeypatch.setattr(storage, "PART", part)
    large = tmp_path / "images.npy"
    large.write_bytes(os.urandom(2 * part + 1000))
    upload = s3.create_multipart_upload(Bucket="films", Key="images.npy", ChecksumAlgorithm="SHA256")["UploadId"]
    begun = {"Bucket": "films", "Key": "images.npy", "UploadId": upload}
    s3.upload_part(**begun, PartNumber=1, Body=large.read_bytes()[:part])
    s3.upload_part(**begun, PartNumber=2, Body=b"of another file")
    sent: list[str] = []
    client = cloud.client("s3")
    client.meta.events.register("before-sign.s3.UploadPart", lambda request, **_: sent.append(request.url))
    storage.put_file(client, "films", "images.npy", large)
    assert ["partNumber=1" in url for url in sent] == [False, False]
    assert s3.get_object(Bucket="films", Key="images.npy")["Body"].read() == large.read_bytes()
    assert storage.checksum_stored(client, "films", "images.npy") == storage.checksum_of(large)


def test_an_upload_that_was_killed_goes_on(
    s3: Any, moto: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for number in range(MANY):
        (tmp_path / f"{number:03}.png").write_bytes(number.to_bytes(2))
    command = [Path(sys.executable).with_name("chestxray"), "aws", "upload", tmp_path, "s3://films/many"]
    with (tmp_path / ".log").open("w") as log:
        process = subprocess.Popen(command, stderr=log, stdout=log)
    while not keys(s3):
        assert process.poll() is None, (tmp_path / ".log").read_text()
        time.sleep(0.01)
    process.kill()
    process.wait()
    there = len(keys(s3))
    assert 0 < there < MANY
    again = uploaded(capsys, tmp_path, "s3://films/many")
    assert again["same"] >= there  # a file that was under way may still arrive after the kill
    assert again["same"] + again["sent"] == MANY
    assert len(keys(s3)) == MANY


def test_a_dry_run_tells_the_plan_and_sends_nothing(s3: Any, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("aws", "upload", folder, "s3://films", "--dry-run") == 0
    told = capsys.readouterr().out
    assert "send 3 new and 0 changed files" in told
    assert PRICES_NOTICE in told
    assert uploaded(capsys, folder, "s3://films", "--dry-run")["plan"]["items"][0]["does"] == "send"
    assert keys(s3) == []


def test_our_own_bucket_is_made_private_and_tagged_and_no_other_is_made(
    s3: Any, cloud: Cloud, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bucket = cloud.names("clinic").bucket
    assert bucket == f"clinic-{live_moto.ACCOUNT}-us-east-1"
    assert uploaded(capsys, folder, f"s3://{bucket}/films", "--deployment", "clinic")["sent"] == 3
    tags = {tag["Key"]: tag["Value"] for tag in s3.get_bucket_tagging(Bucket=bucket)["TagSet"]}
    assert tags["chestxray:deployment"] == "clinic"
    blocks = s3.get_public_access_block(Bucket=bucket)["PublicAccessBlockConfiguration"]
    assert set(blocks.values()) == {True}
    assert storage.ensure_bucket(cloud, cloud.names("clinic")) is False
    assert storage.empty_bucket(s3, bucket) == 3
    s3.delete_bucket(Bucket=bucket)
    with pytest.raises(CloudMissing, match=r"there is no bucket elsewhere\. Make it, or use s3://clinic-"):
        storage.check_bucket(cloud, cloud.names("clinic"), "s3://elsewhere/films")


def test_without_credentials_or_region_the_error_says_what_to_set(
    s3: Any, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "none"))
    assert run("aws", "upload", folder, "s3://films") == 2
    told = capsys.readouterr().err
    assert "Set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or give --profile" in told
    assert len(told.splitlines()) == 1
    with pytest.raises(CredentialsMissing, match=r"profile \(nobody\) could not be found"):
        connect(profile="nobody")
    monkeypatch.delenv("AWS_DEFAULT_REGION")
    with pytest.raises(CredentialsMissing, match="Give --region, or set AWS_REGION"):
        connect()


# What AWS answers, what it is called here, and what the user is told to do.
REFUSALS = [
    (403, "AccessDenied", CloudRefused, "Ask whoever administers the account"),
    (403, "ExpiredToken", CredentialsExpired, "Sign in again"),
    (403, "InvalidAccessKeyId", CredentialsMissing, "Set AWS_ACCESS_KEY_ID"),
    (403, "SignatureDoesNotMatch", CredentialsMissing, "Set AWS_ACCESS_KEY_ID"),
    (404, "NoSuchBucket", CloudMissing, "--region"),
    (503, "SlowDown", CloudThrottled, "Wait a minute and repeat"),
    (400, "ResourceLimitExceeded", QuotaReached, "Service Quotas"),
    (400, "MalformedXML", CloudError, "MalformedXML"),
]


@pytest.mark.parametrize(("status", "code", "kind", "remedy"), REFUSALS)
def test_each_refusal_is_an_error_of_its_own_with_its_remedy(
    cloud: Cloud, monkeypatch: pytest.MonkeyPatch, status: int, code: str, kind: type[CloudError], remedy: str
) -> None:
    monkeypatch.setattr(session, "ATTEMPTS", 1)
    body = f"<Error><Code>{code}</Code><Message>told by AWS.</Message></Error>".encode()

    class Refusing(StandIn):
        def do_GET(self) -> None:
            self.reply(status, body)

    with serving(Refusing) as address:
        monkeypatch.setenv("AWS_ENDPOINT_URL_S3", address)
        with pytest.raises(CloudError, match="listing films: .*told by AWS") as caught, cloud_errors("listing films"):
            cloud.client("s3").list_objects_v2(Bucket="films")
    assert type(caught.value) is kind
    assert remedy in str(caught.value)


def test_where_nothing_answers_the_error_says_what_to_check(cloud: Cloud, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(session, "ATTEMPTS", 1)
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", "http://127.0.0.1:9")
    with pytest.raises(CloudUnreachable, match="Check the network, the --region"), cloud_errors("listing films"):
        cloud.client("s3").list_objects_v2(Bucket="films")


@pytest.mark.parametrize("name", ["Clinic", "a--b", "-a", "a" * 25, ""])
def test_a_deployment_is_a_word_that_every_service_takes(name: str) -> None:
    with pytest.raises(UsageError, match="lower-case letters"):
        Names(name, live_moto.ACCOUNT, "us-east-1")


def test_another_tools_unfinished_upload_is_left_alone_and_blocks_nothing(
    s3: Any, cloud: Cloud, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its checksum is another one, or none: S3 would refuse our parts in it, again and again."""
    part = 5 * 2**20
    monkeypatch.setattr(storage, "PART", part)
    large = tmp_path / "images.npy"
    large.write_bytes(os.urandom(part + 1000))
    theirs = {
        s3.create_multipart_upload(Bucket="films", Key="images.npy", ChecksumAlgorithm="CRC32")["UploadId"],
        s3.create_multipart_upload(Bucket="films", Key="images.npy")["UploadId"],
    }
    used: list[str] = []
    client = cloud.client("s3")
    client.meta.events.register("before-sign.s3.UploadPart", lambda request, **_: used.append(request.url))
    storage.put_file(client, "films", "images.npy", large)
    assert used
    assert not [url for url in used for upload in theirs if upload in url]
    left = s3.list_multipart_uploads(Bucket="films")["Uploads"]
    assert {upload["UploadId"] for upload in left} == theirs


def test_a_bucket_that_was_half_made_is_finished_and_one_with_contents_of_others_is_not_used(
    s3: Any, cloud: Cloud
) -> None:
    names = cloud.names("half")
    s3.create_bucket(Bucket=names.bucket)  # as a command that was stopped right behind it leaves it
    assert storage.ensure_bucket(cloud, names) is False
    assert {tag["Key"]: tag["Value"] for tag in s3.get_bucket_tagging(Bucket=names.bucket)["TagSet"]} == names.tags
    blocks = s3.get_public_access_block(Bucket=names.bucket)["PublicAccessBlockConfiguration"]
    assert set(blocks.values()) == {True}
    assert s3.get_bucket_lifecycle_configuration(Bucket=names.bucket)["Rules"]
    s3.delete_bucket(Bucket=names.bucket)
    names = cloud.names("taken")  # moto keeps the tags of a deleted bucket for the next one of its name
    s3.create_bucket(Bucket=names.bucket)
    s3.put_object(Bucket=names.bucket, Key="theirs", Body=b"1")
    with pytest.raises(CloudForeign, match="Choose another --deployment"):
        storage.ensure_bucket(cloud, names)
    storage.empty_bucket(s3, names.bucket)
    s3.delete_bucket(Bucket=names.bucket)


def test_films_in_another_region_are_refused_before_a_job_is_made(s3: Any, cloud: Cloud) -> None:
    place = {"LocationConstraint": "eu-west-1"}
    elsewhere = boto3.client("s3", region_name="eu-west-1")
    elsewhere.create_bucket(Bucket="far", CreateBucketConfiguration=place)
    storage.check_region(cloud, "s3://films/set")
    with pytest.raises(UsageError, match=r"s3://far lies in eu-west-1, .* Give --region eu-west-1, or copy the films"):
        storage.check_region(cloud, "s3://films/set", "s3://far/set")
    elsewhere.delete_bucket(Bucket="far")
    elsewhere.close()


def test_every_call_about_a_bucket_states_whose_it_has_to_be(
    s3: Any, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The name can be guessed, and function code lies there. Creating is refused by S3 itself where it is taken."""
    seen: dict[str, set[object]] = {}

    def note(request: Any, operation_name: str, **_: Any) -> None:
        seen.setdefault(operation_name, set()).add(request.headers.get("x-amz-expected-bucket-owner"))

    cloud = connect()
    cloud.client("s3").meta.events.register("before-sign.s3", note)
    names = cloud.names("owned")
    monkeypatch.setattr(storage, "PART", 5 * 2**20)
    (folder / "large.npy").write_bytes(os.urandom(6 * 2**20))
    storage.ensure_bucket(cloud, names)
    storage.send(cloud, storage.upload_diff(cloud, folder, f"s3://{names.bucket}", lambda *_: None), lambda *_: None)
    storage.upload_diff(cloud, folder, f"s3://{names.bucket}", lambda *_: None)
    storage.check_region(cloud, f"s3://{names.bucket}")
    storage.empty_bucket(cloud.client("s3"), names.bucket)
    cloud.client("s3").delete_bucket(Bucket=names.bucket)
    cloud.close()
    assert seen.pop("CreateBucket") == {None}
    assert len(seen) >= 14
    assert set.union(*seen.values()) == {live_moto.ACCOUNT.encode()} or set.union(*seen.values()) == {live_moto.ACCOUNT}


def test_an_address_without_its_scheme_is_no_bucket(s3: Any, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("aws", "upload", folder, "films/set") == 2
    assert "films/set: not an address in S3. Write it as s3://bucket/prefix" in capsys.readouterr().err
    assert keys(s3) == []


@pytest.mark.parametrize(
    ("region", "fact"),
    [
        ("cn-north-1", "belongs to aws-cn"),
        ("mars-1", "no such region"),
        ("eu-centrl-1", "knows no SageMaker there. Is eu-central-1 meant?"),
    ],
)
def test_other_partitions_and_regions_that_are_none_are_refused_first(s3: Any, region: str, fact: str) -> None:
    with pytest.raises(UsageError, match=fact):
        connect(region)


@pytest.mark.parametrize("name", ["default", "sthree-films", "amzn-s3-demo-x"])
def test_a_name_that_aws_keeps_to_itself_is_refused(name: str) -> None:
    with pytest.raises(UsageError, match="AWS keeps that name to itself"):
        Names(name, live_moto.ACCOUNT, "us-east-1")
