"""Upload of files to S3: in parallel, changed files only, each one checked by S3 against our SHA-256.

A film in S3 is recognised by its size and its stored checksum, so the same command resumes a killed upload. Large files
are sent in parts, and resume in the middle.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Final

from chestxray.aws.plan import S3_GB_MONTH, S3_PUT, Plan, PlanItem, dollars
from chestxray.aws.session import Cloud, Names, cloud_errors, error_code, unless_missing
from chestxray.data.sources import S3_SCHEME, below, objects_below, split_address
from chestxray.errors import CloudMissing, SourceInvalid, UsageError
from chestxray.progress import ProgressCallback

WORKERS: Final = 16  # requests at the same time; each waits for the network, not for the processor
PUBLIC_BLOCKS: Final = ("BlockPublicAcls", "IgnorePublicAcls", "BlockPublicPolicy", "RestrictPublicBuckets")
NO_SETTING: Final = frozenset(
    {"NoSuchTagSet", "NoSuchTagSetError", "NoSuchPublicAccessBlockConfiguration", "NoSuchLifecycleConfiguration"}
    | {"ServerSideEncryptionConfigurationNotFoundError"}
)
PART: Final = 64 * 2**20  # bytes of a part; a larger file is sent in parts


@dataclass(frozen=True, slots=True)
class LocalFile:
    """A local file, and its key in S3."""

    path: Path
    key: str
    size: int


@dataclass(frozen=True, slots=True)
class UploadDiff:
    """The difference between local files and a bucket.

    Attributes:
        address: the prefix, ``s3://bucket/prefix``.
        new, changed, same: files in each of these states.
        others: objects below the prefix without a local file; they are not touched.
    """

    address: str
    new: tuple[LocalFile, ...]
    changed: tuple[LocalFile, ...]
    same: tuple[LocalFile, ...]
    others: int

    @property
    def to_send(self) -> tuple[LocalFile, ...]:
        """New and changed files."""
        return self.new + self.changed

    @property
    def bytes_to_send(self) -> int:
        """Bytes of all these files."""
        return sum(file.size for file in self.to_send)


def upload_diff(cloud: Cloud, source: Path, address: str, on_progress: ProgressCallback) -> UploadDiff:
    """Find the files to send. A file's checksum is requested only if the object has the same size.

    Args:
        source: a folder (its content goes below the prefix) or one file. Hidden files are left out.
        address: ``s3://bucket/prefix``.
        on_progress: called with (files compared, files in all).

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

    _in_threads(alike, compare_one, on_progress)
    known = {file.key for file in files}
    return UploadDiff(address, _sorted(new), _sorted(changed), _sorted(same), len(there.keys() - known))


def without_bucket(source: Path, address: str) -> UploadDiff:
    """Compare as ``compare`` does, before the bucket exists. Raises: SourceInvalid."""
    return UploadDiff(address, tuple(local_files(source, address)), (), (), 0)


def send(cloud: Cloud, comparison: UploadDiff, on_progress: ProgressCallback) -> None:
    """Send the new and changed files. Raises: CloudError."""
    bucket, _ = split_address(comparison.address)
    client = cloud.client("s3")
    _in_threads(comparison.to_send, lambda file: put_file(client, bucket, file.key, file.path), on_progress)


def upload_plan(comparison: UploadDiff, *, creates: str = "") -> Plan:
    """Return what sending would do and cost; ``creates`` names our bucket if it has to be created first."""
    count, size = len(comparison.to_send), comparison.bytes_to_send
    items = [PlanItem("bucket", creates, note="private, encrypted")] if creates else []
    if count:
        monthly = dollars(size / 1e9 * S3_GB_MONTH)
        what = f"{len(comparison.new):,} new and {len(comparison.changed):,} changed files ({size / 1e6:,.1f} MB) below"
        items.append(PlanItem(what, comparison.address, once=count * S3_PUT, note=f"{monthly} a month", does="send"))
    return Plan("upload", tuple(items))


def local_files(source: Path, address: str) -> list[LocalFile]:
    """Return the files of a folder with their keys, sorted by key. Raises: SourceInvalid."""
    prefix = below(split_address(address)[1])
    if source.is_file():
        return [LocalFile(source, f"{prefix}{source.name}", source.stat().st_size)]
    found = [
        LocalFile(path, prefix + path.relative_to(source).as_posix(), path.stat().st_size)
        for path in source.rglob("*")
        if path.is_file() and not any(part.startswith(".") for part in path.relative_to(source).parts)
    ]
    if not found:
        why = "holds no file, or hidden ones only. Give the folder with the films"
        raise SourceInvalid(f"{source}: {why if source.is_dir() else 'is not there'}")
    return list(_sorted(found))


def put_file(client: Any, bucket: str, key: str, path: Path) -> None:
    """Send one file, whole or in parts; S3 refuses bytes that do not match their checksum. Raises: CloudError."""
    with cloud_errors(f"sending {path} to {S3_SCHEME}{bucket}/{key}"), path.open("rb") as file:
        if path.stat().st_size > PART:
            _put_in_parts(client, bucket, key, file)
        else:
            put_bytes(client, bucket, key, file.read())


def put_bytes(client: Any, bucket: str, key: str, data: bytes, **headers: str) -> None:
    """Send bytes, checked by S3. Raises: botocore's errors."""
    checked = {"ChecksumAlgorithm": "SHA256", "ChecksumSHA256": checksum_of_bytes(data)}
    client.put_object(Bucket=bucket, Key=key, Body=data, **checked, **headers)


def checksum_of_bytes(data: bytes) -> str:
    """Return the SHA-256 in the form in which S3 stores it."""
    return base64.b64encode(hashlib.sha256(data).digest()).decode()


def checksum_of(path: Path) -> str:
    """Return a file's SHA-256 as S3 stores it: base64; for a file in parts the hash of their hashes.

    Source: Amazon S3 user guide, "Checking object integrity", composite checksums.
    """
    if path.stat().st_size <= PART:
        return checksum_of_bytes(path.read_bytes())
    with path.open("rb") as file:
        digests = [hashlib.sha256(data).digest() for data in _parts_of(file)]
    return checksum_of_bytes(b"".join(digests))


def checksum_stored(client: Any, bucket: str, key: str) -> str:
    """Return the SHA-256 that S3 stored for an object; "" if it has none, or does not exist."""
    head = unless_missing(client.head_object, Bucket=bucket, Key=key, ChecksumMode="ENABLED") or {}
    return str(head.get("ChecksumSHA256", "")).partition("-")[0]  # after the hyphen: the number of parts


def holds(client: Any, address: str) -> bool:
    """Check whether an object exists at an address, or below an address that ends with "/". False without the bucket.

    Raises: botocore's errors.
    """
    bucket, key = split_address(address)
    if not key.endswith("/"):
        return unless_missing(client.head_object, Bucket=bucket, Key=key) is not None
    listed = unless_missing(client.list_objects_v2, Bucket=bucket, Prefix=key, MaxKeys=1)
    return bool(listed and listed.get("KeyCount"))


def ensure_bucket(cloud: Cloud, names: Names) -> bool:
    """Create our own bucket unless it exists: private, encrypted, tagged. Returns: whether it was created.

    Steps that an interrupted attempt left out are done now.

    Raises: CloudForeign: a bucket of that name is not this deployment's; CloudError.
    """
    client, bucket = cloud.client("s3"), names.bucket
    with cloud_errors(f"making the bucket {bucket}"):
        there = bucket_exists(client, bucket)
        if not there:
            # The oldest region must not be stated in the request.
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
        if cloud.rules.kms_key and _key_of(client, bucket) != cloud.rules.kms_key:
            wanted = {"SSEAlgorithm": "aws:kms", "KMSMasterKeyID": cloud.rules.kms_key}
            rule = {"ApplyServerSideEncryptionByDefault": wanted, "BucketKeyEnabled": True}
            client.put_bucket_encryption(Bucket=bucket, ServerSideEncryptionConfiguration={"Rules": [rule]})
        if not _setting(client.get_bucket_lifecycle_configuration, bucket).get("Rules"):
            abandoned = {"ID": "abandoned-parts", "Status": "Enabled", "Filter": {"Prefix": ""}}
            abandoned["AbortIncompleteMultipartUpload"] = {"DaysAfterInitiation": 7}
            client.put_bucket_lifecycle_configuration(Bucket=bucket, LifecycleConfiguration={"Rules": [abandoned]})
    return not there


def bucket_tags(client: Any, bucket: str) -> list[dict[str, str]]:
    """Return the tags of a bucket, which may be none. Raises: botocore's errors."""
    return list(_setting(client.get_bucket_tagging, bucket).get("TagSet", ()))


def _key_of(client: Any, bucket: str) -> str:
    """Return the key with which a bucket encrypts; "" for S3's own. Raises: botocore's errors."""
    found = _setting(client.get_bucket_encryption, bucket).get("ServerSideEncryptionConfiguration", {})
    rules = [rule.get("ApplyServerSideEncryptionByDefault", {}) for rule in found.get("Rules", ())]
    return next((str(rule.get("KMSMasterKeyID", "")) for rule in rules), "")


def _setting(ask: Callable[..., dict[str, Any]], bucket: str) -> dict[str, Any]:
    """Return a setting of a bucket; empty if it was never made. Raises: botocore's errors."""
    from botocore.exceptions import ClientError

    try:
        return ask(Bucket=bucket)
    except ClientError as error:
        if error_code(error) in NO_SETTING:
            return {}
        raise


def check_region(cloud: Cloud, *addresses: str) -> None:
    """Refuse films in another region than that of SageMaker, which has to read them.

    Raises: UsageError; CloudMissing: there is no such bucket; CloudError.
    """
    client = cloud.client("s3")
    for bucket in dict.fromkeys(split_address(address)[0] for address in addresses):
        with cloud_errors(f"looking for the bucket {bucket}"):
            found = client.head_bucket(Bucket=bucket)
        region = found["ResponseMetadata"]["HTTPHeaders"].get("x-amz-bucket-region", cloud.region)
        if region != cloud.region:
            raise UsageError(
                f"{S3_SCHEME}{bucket} lies in {region}, and SageMaker in {cloud.region} reads films of its own region "
                f"only. Give --region {region}, or copy the films"
            )


def bucket_exists(client: Any, bucket: str) -> bool:
    """Check whether a bucket exists. Raises: botocore's errors, also if it belongs to another account."""
    return unless_missing(client.head_bucket, Bucket=bucket) is not None


def check_order(source: Path, address: str) -> None:
    """Check what needs no account. Raises: UsageError: no address in S3; SourceInvalid: there is no such source."""
    if not address.startswith(S3_SCHEME):
        raise UsageError(f"{address}: not an address in S3. Write it as {S3_SCHEME}bucket/prefix")
    if not source.exists():
        raise SourceInvalid(f"{source}: is not there")


def check_bucket(cloud: Cloud, names: Names, address: str) -> str:
    """Return the bucket of an address if it has to be created first, else "".

    Raises: CloudMissing: the bucket does not exist, and is not the deployment's own.
    """
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
    """Delete every object, version and unfinished upload, so that the bucket can be deleted. Returns: how many.

    Raises: botocore's errors; also for a single object that S3 did not delete, which it reports in an answer of status
    200.
    """
    from botocore.exceptions import ClientError

    deleted = 0
    for page in client.get_paginator("list_object_versions").paginate(Bucket=bucket):
        found = [*page.get("Versions", ()), *page.get("DeleteMarkers", ())]
        marked = [{"Key": item["Key"], "VersionId": item["VersionId"]} for item in found]
        if marked:
            answer = client.delete_objects(Bucket=bucket, Delete={"Objects": marked, "Quiet": True})
            for refused in answer.get("Errors", ()):
                failure = {"Code": refused["Code"], "Message": f"{refused['Key']}: {refused.get('Message', '')}"}
                raise ClientError({"Error": failure}, "DeleteObjects")
            deleted += len(marked)
    for page in client.get_paginator("list_multipart_uploads").paginate(Bucket=bucket):
        for upload in page.get("Uploads", ()):
            client.abort_multipart_upload(Bucket=bucket, Key=upload["Key"], UploadId=upload["UploadId"])
    return deleted


def _put_in_parts(client: Any, bucket: str, key: str, file: BinaryIO) -> None:
    """Send a file in parts of one size, so that parts of an interrupted attempt are recognised."""
    kinds = {"ChecksumAlgorithm": "SHA256"}
    upload, sent = _upload_under_way(client, bucket, key)
    if not upload:
        upload = client.create_multipart_upload(Bucket=bucket, Key=key, ChecksumType="COMPOSITE", **kinds)["UploadId"]
    parts = []
    for number, data in enumerate(_parts_of(file), start=1):
        checksum = checksum_of_bytes(data)
        part = sent.get(number, {})
        if not _is_the_same(part, data, checksum):
            part = client.upload_part(
                Bucket=bucket, Key=key, UploadId=upload, PartNumber=number, Body=data, ChecksumSHA256=checksum, **kinds
            )
        parts.append({"PartNumber": number, "ETag": part["ETag"], "ChecksumSHA256": checksum})
    client.complete_multipart_upload(Bucket=bucket, Key=key, UploadId=upload, MultipartUpload={"Parts": parts})


def _upload_under_way(client: Any, bucket: str, key: str) -> tuple[str, dict[int, Any]]:
    """Return the latest unfinished upload in parts, with the parts that arrived; "" if there is none.

    An upload by another tool, with another checksum or none, cannot take our parts: it is not touched, and a new one
    begins.
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
    """Compare a part by its stored checksum, or by its tag (MD5) for stores that list no checksums."""
    if "ChecksumSHA256" in part:
        return bool(part["ChecksumSHA256"] == checksum)
    return str(part.get("ETag", "")).strip('"') == hashlib.md5(data, usedforsecurity=False).hexdigest()


def _sorted(files: Sequence[LocalFile]) -> tuple[LocalFile, ...]:
    return tuple(sorted(files, key=lambda file: file.key))


def _parts_of(file: BinaryIO) -> Iterator[bytes]:
    return iter(lambda: file.read(PART), b"")


def _in_threads(files: Sequence[LocalFile], act: Callable[[LocalFile], None], on_progress: ProgressCallback) -> None:
    """Apply a function to each file, several at once. The first failure, or Ctrl-C, stops files that have not begun."""
    with ThreadPoolExecutor(WORKERS) as pool:
        under_way = [pool.submit(act, file) for file in files]
        try:
            for done, future in enumerate(as_completed(under_way), start=1):
                future.result()
                on_progress(done, len(files))
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
