"""Files to S3: many at once, only what changed, every one checked by S3 itself against the SHA-256 that we computed.

A film that is there already is recognised by its size and the checksum that S3 stored with it, so the same command
resumes where it was killed. Large files travel in parts, and resume in the middle.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Final

from chestxray.aws.plan import S3_GB_MONTH, S3_PUT, Item, Plan, dollars
from chestxray.aws.session import Cloud, Names, cloud_errors, error_code, is_missing
from chestxray.data.sources import SCHEME, below, objects_below, split_address
from chestxray.errors import CloudMissing, SourceInvalid, UsageError
from chestxray.progress import ProgressCallback

WORKERS: Final = 16  # requests under way; each waits for the network, not for the processor
PUBLIC_BLOCKS: Final = ("BlockPublicAcls", "IgnorePublicAcls", "BlockPublicPolicy", "RestrictPublicBuckets")
NO_SETTING: Final = frozenset(
    {"NoSuchTagSet", "NoSuchTagSetError", "NoSuchPublicAccessBlockConfiguration", "NoSuchLifecycleConfiguration"}
)
PART: Final = 64 * 2**20  # bytes a part; a file of more than this travels in parts


@dataclass(frozen=True, slots=True)
class LocalFile:
    """A file and the key that it has or will have."""

    path: Path
    key: str
    size: int


@dataclass(frozen=True, slots=True)
class UploadDiff:
    """What stands here against what lies in the bucket.

    Attributes:
        address: the prefix, ``s3://bucket/prefix``.
        new, changed, same: files, by what became of them.
        others: objects below the prefix that have no file here; they are left alone.
    """

    address: str
    new: tuple[LocalFile, ...]
    changed: tuple[LocalFile, ...]
    same: tuple[LocalFile, ...]
    others: int

    @property
    def to_send(self) -> tuple[LocalFile, ...]:
        """New and changed ones."""
        return self.new + self.changed

    @property
    def bytes_to_send(self) -> int:
        """Of all of those."""
        return sum(file.size for file in self.to_send)


def compare(cloud: Cloud, source: Path, address: str, on_progress: ProgressCallback) -> UploadDiff:
    """Find what has to be sent. Asks for the checksum of whatever has a file's size already.

    Args:
        source: a folder (what it holds goes below the prefix) or one file. Hidden files are left out.
        address: ``s3://bucket/prefix``.
        on_progress: gets (files compared, files).

    Raises: SourceInvalid, CloudError.
    """
    bucket, _ = split_address(address)
    files = local_files(source, address)
    with cloud_errors(f"listing {address}"):
        client = cloud.client("s3")
        there = {found["Key"]: found["Size"] for found in objects_below(client, address)}
    new = [file for file in files if file.key not in there]
    alike = [file for file in files if there.get(file.key) == file.size]
    changed = [file for file in files if file.key in there and there[file.key] != file.size]
    same: list[LocalFile] = []

    def compare_one(file: LocalFile) -> None:
        (same if checksum_stored(client, bucket, file.key) == checksum_of(file.path) else changed).append(file)

    _each(alike, compare_one, on_progress)
    known = {file.key for file in files}
    return UploadDiff(address, _sorted(new), _sorted(changed), _sorted(same), len(there.keys() - known))


def without_bucket(source: Path, address: str) -> UploadDiff:
    """As ``compare``, where the bucket has still to be made. Raises: SourceInvalid."""
    return UploadDiff(address, tuple(local_files(source, address)), (), (), 0)


def send(cloud: Cloud, comparison: UploadDiff, on_progress: ProgressCallback) -> None:
    """Send what is new and changed. Raises: CloudError."""
    bucket, _ = split_address(comparison.address)
    client = cloud.client("s3")
    _each(comparison.to_send, lambda file: put_file(client, bucket, file.key, file.path), on_progress)


def upload_plan(comparison: UploadDiff, *, creates: str = "") -> Plan:
    """What sending would do and cost; ``creates`` names our bucket where it is made first."""
    count, size = len(comparison.to_send), comparison.bytes_to_send
    items = [Item("bucket", creates, note="private, encrypted")] if creates else []
    if count:
        monthly = dollars(size / 1e9 * S3_GB_MONTH)
        what = f"{len(comparison.new):,} new and {len(comparison.changed):,} changed files ({size / 1e6:,.1f} MB) below"
        items.append(Item(what, comparison.address, once=count * S3_PUT, note=f"{monthly} a month", does="send"))
    return Plan("upload", tuple(items))


def local_files(source: Path, address: str) -> list[LocalFile]:
    """The files of a folder with their keys, sorted by key. Raises: SourceInvalid."""
    prefix = below(split_address(address)[1])
    if source.is_file():
        return [LocalFile(source, f"{prefix}{source.name}", source.stat().st_size)]
    found = [
        LocalFile(path, prefix + path.relative_to(source).as_posix(), path.stat().st_size)
        for path in source.rglob("*")
        if path.is_file() and not any(part.startswith(".") for part in path.relative_to(source).parts)
    ]
    if not found:
        raise SourceInvalid(f"{source}: holds no file to upload" if source.is_dir() else f"{source}: is not there")
    return list(_sorted(found))


def put_file(client: Any, bucket: str, key: str, path: Path) -> None:
    """Send one file, whole or in parts; S3 refuses bytes that do not match their checksum. Raises: CloudError."""
    with cloud_errors(f"sending {path} to {SCHEME}{bucket}/{key}"), path.open("rb") as file:
        if path.stat().st_size > PART:
            _put_in_parts(client, bucket, key, file)
        else:
            put_bytes(client, bucket, key, file.read())


def put_bytes(client: Any, bucket: str, key: str, data: bytes, **headers: str) -> None:
    """Send bytes, checked by S3. Raises: botocore's errors."""
    checked = {"ChecksumAlgorithm": "SHA256", "ChecksumSHA256": checksum_of_bytes(data)}
    client.put_object(Bucket=bucket, Key=key, Body=data, **checked, **headers)


def checksum_of_bytes(data: bytes) -> str:
    """What S3 will keep as their SHA-256."""
    return _in_base64(hashlib.sha256(data).digest())


def checksum_of(path: Path) -> str:
    """What S3 will keep as the file's SHA-256: base64; for a file in parts that of their digests.

    Source: Amazon S3 user guide, "Checking object integrity", composite checksums.
    """
    with path.open("rb") as file:
        if path.stat().st_size <= PART:
            return _in_base64(hashlib.file_digest(file, "sha256").digest())
        digests = [hashlib.sha256(data).digest() for data in _parts_of(file)]
    return _in_base64(hashlib.sha256(b"".join(digests)).digest())


def checksum_stored(client: Any, bucket: str, key: str) -> str:
    """What S3 keeps as an object's SHA-256; "" where it keeps none, or there is no such object."""
    from botocore.exceptions import ClientError

    try:
        head = client.head_object(Bucket=bucket, Key=key, ChecksumMode="ENABLED")
        return str(head.get("ChecksumSHA256", "")).partition("-")[0]  # behind the hyphen: how many parts
    except ClientError as error:
        if is_missing(error):
            return ""
        raise


def holds(client: Any, address: str) -> bool:
    """Whether an object lies at an address, or below it where that ends with "/"; not where its bucket is gone.

    Raises: botocore's errors.
    """
    from botocore.exceptions import ClientError

    bucket, key = split_address(address)
    try:
        if not key.endswith("/"):
            client.head_object(Bucket=bucket, Key=key)
            return True
        return bool(client.list_objects_v2(Bucket=bucket, Prefix=key, MaxKeys=1).get("KeyCount"))
    except ClientError as error:
        if is_missing(error):
            return False
        raise


def ensure_bucket(cloud: Cloud, names: Names) -> bool:
    """Make our own bucket, where it is not there yet: private, encrypted, tagged. Returns: whether it was made.

    What an earlier attempt left out, because it was stopped in between, is made up for.

    Raises: CloudForeign: a bucket of that name is not this deployment's; CloudError.
    """
    client, bucket = cloud.client("s3"), names.bucket
    with cloud_errors(f"making the bucket {bucket}"):
        there = bucket_exists(client, bucket)
        if not there:
            # The oldest region is the one that goes without saying.
            place = {} if cloud.region == "us-east-1" else {"LocationConstraint": cloud.region}
            client.create_bucket(Bucket=bucket, **({"CreateBucketConfiguration": place} if place else {}))
        tags = bucket_tags(client, bucket)
        if tags or (there and client.list_objects_v2(Bucket=bucket, MaxKeys=1).get("KeyCount")):
            names.refuse_foreign("bucket", bucket, tags)
        else:
            client.put_bucket_tagging(Bucket=bucket, Tagging={"TagSet": names.tag_list})
        blocks = dict.fromkeys(PUBLIC_BLOCKS, True)
        if _setting(client.get_public_access_block, bucket).get("PublicAccessBlockConfiguration") != blocks:
            client.put_public_access_block(Bucket=bucket, PublicAccessBlockConfiguration=blocks)
        if not _setting(client.get_bucket_lifecycle_configuration, bucket).get("Rules"):
            abandoned = {"ID": "abandoned-parts", "Status": "Enabled", "Filter": {"Prefix": ""}}
            abandoned["AbortIncompleteMultipartUpload"] = {"DaysAfterInitiation": 7}
            client.put_bucket_lifecycle_configuration(Bucket=bucket, LifecycleConfiguration={"Rules": [abandoned]})
    return not there


def bucket_tags(client: Any, bucket: str) -> list[dict[str, str]]:
    """The tags of a bucket; none where it has none. Raises: botocore's errors."""
    return list(_setting(client.get_bucket_tagging, bucket).get("TagSet", ()))


def _setting(ask: Callable[..., dict[str, Any]], bucket: str) -> dict[str, Any]:
    """What a bucket's setting is; empty where it was never made. Raises: botocore's errors."""
    from botocore.exceptions import ClientError

    try:
        return ask(Bucket=bucket)
    except ClientError as error:
        if error_code(error) in NO_SETTING:
            return {}
        raise


def check_region(cloud: Cloud, *addresses: str) -> None:
    """Refuse films that lie in another region than the one whose SageMaker is to read them.

    Raises: UsageError; CloudMissing: there is no such bucket; CloudError.
    """
    client = cloud.client("s3")
    for bucket in dict.fromkeys(split_address(address)[0] for address in addresses):
        with cloud_errors(f"looking for the bucket {bucket}"):
            found = client.head_bucket(Bucket=bucket)
        region = found["ResponseMetadata"]["HTTPHeaders"].get("x-amz-bucket-region", cloud.region)
        if region != cloud.region:
            raise UsageError(
                f"{SCHEME}{bucket} lies in {region}, and SageMaker in {cloud.region} reads films of its own region "
                f"only. Give --region {region}, or copy the films"
            )


def bucket_exists(client: Any, bucket: str) -> bool:
    """Whether it is there. Raises: botocore's errors, where it is somebody else's, too."""
    from botocore.exceptions import ClientError

    try:
        client.head_bucket(Bucket=bucket)
    except ClientError as error:
        if is_missing(error):
            return False
        raise
    return True


def is_own(names: Names, address: str) -> bool:
    """Whether an address, ``s3://bucket/prefix``, lies in the deployment's own bucket."""
    return split_address(address)[0] == names.bucket


def check_bucket(cloud: Cloud, names: Names, address: str) -> str:
    """The bucket of an address where it has to be made first, else "".

    Raises: UsageError: it is no address in S3; CloudMissing: its bucket is not there, and not ours to make.
    """
    if not address.startswith(SCHEME):
        raise UsageError(f"{address}: not an address in S3. Write it as {SCHEME}bucket/prefix")
    bucket, _ = split_address(address)
    with cloud_errors(f"looking for the bucket {bucket}"):
        if bucket_exists(cloud.client("s3"), bucket):
            return ""
    if bucket != names.bucket:
        raise CloudMissing(
            f"{address}: there is no bucket {bucket}. Make it, or use s3://{names.bucket}/..., which is made for you"
        )
    return bucket


def empty_bucket(client: Any, bucket: str) -> int:
    """Delete every object, version and unfinished upload; only then a bucket can be deleted. Returns: how many.

    Raises: botocore's errors; also for one object that S3 would not delete, which it tells in an answer of status 200.
    """
    from botocore.exceptions import ClientError

    deleted = 0
    for page in client.get_paginator("list_object_versions").paginate(Bucket=bucket):
        found = [*page.get("Versions", ()), *page.get("DeleteMarkers", ())]
        marked = [{"Key": item["Key"], "VersionId": item["VersionId"]} for item in found]
        if marked:
            answer = client.delete_objects(Bucket=bucket, Delete={"Objects": marked, "Quiet": True})
            for refused in answer.get("Errors", ()):
                told = {"Code": refused["Code"], "Message": f"{refused['Key']}: {refused.get('Message', '')}"}
                raise ClientError({"Error": told}, "DeleteObjects")
            deleted += len(marked)
    for page in client.get_paginator("list_multipart_uploads").paginate(Bucket=bucket):
        for upload in page.get("Uploads", ()):
            client.abort_multipart_upload(Bucket=bucket, Key=upload["Key"], UploadId=upload["UploadId"])
    return deleted


def _put_in_parts(client: Any, bucket: str, key: str, file: BinaryIO) -> None:
    """In parts of one size, so that those which an earlier attempt sent are recognised."""
    kinds = {"ChecksumAlgorithm": "SHA256"}
    upload, sent = _upload_under_way(client, bucket, key)
    if not upload:
        upload = client.create_multipart_upload(Bucket=bucket, Key=key, ChecksumType="COMPOSITE", **kinds)["UploadId"]
    parts = []
    for number, data in enumerate(_parts_of(file), start=1):
        checksum = _in_base64(hashlib.sha256(data).digest())
        part = sent.get(number, {})
        if not _is_the_same(part, data, checksum):
            part = client.upload_part(
                Bucket=bucket, Key=key, UploadId=upload, PartNumber=number, Body=data, ChecksumSHA256=checksum, **kinds
            )
        parts.append({"PartNumber": number, "ETag": part["ETag"], "ChecksumSHA256": checksum})
    client.complete_multipart_upload(Bucket=bucket, Key=key, UploadId=upload, MultipartUpload={"Parts": parts})


def _upload_under_way(client: Any, bucket: str, key: str) -> tuple[str, dict[int, Any]]:
    """The latest upload in parts that was begun and not ended, with the parts that arrived; "" without one.

    Another tool's, with another checksum or none, takes none of our parts: it is left alone, and a new one begun.
    """
    pages = client.get_paginator("list_multipart_uploads").paginate(Bucket=bucket, Prefix=key)
    begun = [upload for page in pages for upload in page.get("Uploads", ()) if upload["Key"] == key]
    ours = [upload for upload in begun if upload.get("ChecksumAlgorithm") == "SHA256"]
    ours = [upload for upload in ours if upload.get("ChecksumType", "COMPOSITE") == "COMPOSITE"]
    ours.sort(key=lambda upload: upload["Initiated"])
    if not ours:
        return "", {}
    upload = ours[-1]["UploadId"]
    pages = client.get_paginator("list_parts").paginate(Bucket=bucket, Key=key, UploadId=upload)
    return upload, {part["PartNumber"]: part for page in pages for part in page.get("Parts", ())}


def _is_the_same(part: Mapping[str, Any], data: bytes, checksum: str) -> bool:
    """By the stored checksum; stores that list none with a part have the MD5 as its tag."""
    if "ChecksumSHA256" in part:
        return bool(part["ChecksumSHA256"] == checksum)
    return str(part.get("ETag", "")).strip('"') == hashlib.md5(data, usedforsecurity=False).hexdigest()


def _sorted(files: Sequence[LocalFile]) -> tuple[LocalFile, ...]:
    return tuple(sorted(files, key=lambda file: file.key))


def _parts_of(file: BinaryIO) -> Iterator[bytes]:
    return iter(lambda: file.read(PART), b"")


def _in_base64(digest: bytes) -> str:
    return base64.b64encode(digest).decode()


def _each(files: Sequence[LocalFile], act: Callable[[LocalFile], None], on_progress: ProgressCallback) -> None:
    """Do it for each, several at once. The first failure, or Ctrl-C, ends it: what has not begun does not begin."""
    with ThreadPoolExecutor(WORKERS) as pool:
        under_way = [pool.submit(act, file) for file in files]
        try:
            for done, future in enumerate(as_completed(under_way), start=1):
                future.result()
                on_progress(done, len(files))
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
