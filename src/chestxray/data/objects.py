"""Films in an object store that speaks S3: listed and read one by one, never copied to disk.

Address and credentials are boto3's own affair: its environment variables and files. ``AWS_ENDPOINT_URL_S3`` names
a store other than Amazon's; worker processes inherit it.
"""

from __future__ import annotations

import errno
from collections.abc import Iterator
from functools import cache
from typing import Any, Final

from chestxray.errors import MissingExtra, SourceInvalid

SCHEME: Final = "s3://"
ATTEMPTS: Final = 6  # at one call, while the store is busy
PAGE: Final = 1000  # objects a request; the protocol allows no more
ENDPOINT_VARIABLE: Final = "AWS_ENDPOINT_URL_S3"


def split_address(address: str) -> tuple[str, str]:
    """Bucket and key, or prefix. Raises: SourceInvalid."""
    bucket, _, key = address.removeprefix(SCHEME).partition("/")
    if not bucket:
        raise SourceInvalid(f"{address}: names no bucket; write it as s3://bucket/prefix")
    return bucket, key


def keys_below(address: str) -> list[str]:
    """Keys of the objects below a prefix, sorted, without what would be folders. Raises: SourceInvalid."""
    failures = _failures()
    try:
        return sorted(found["Key"] for found in objects_below(client(), address))
    except failures as error:
        raise SourceInvalid(f"{address}: cannot be listed ({error})") from error


def objects_below(store: Any, address: str) -> Iterator[dict[str, Any]]:
    """Objects below a prefix as S3 lists them (``Key``, ``Size``, ...), without what would be folders.

    Raises: SourceInvalid, botocore's errors.
    """
    bucket, prefix = split_address(address)
    pages = store.get_paginator("list_objects_v2").paginate(
        Bucket=bucket, Prefix=below(prefix), PaginationConfig={"PageSize": PAGE}
    )
    for page in pages:
        yield from (found for found in page.get("Contents", ()) if found["Key"][-1] != "/")


def below(prefix: str) -> str:
    """The prefix of what lies below a prefix: ``a`` is no folder of ``ab``."""
    return f"{prefix.rstrip('/')}/" if prefix else ""


def read_object(address: str) -> bytes:
    """The bytes of one object. Raises: OSError, whatever is wrong."""
    from chestxray.images.decode import MAX_BYTES

    bucket, key = split_address(address)
    failures = _failures()
    try:
        with client().get_object(Bucket=bucket, Key=key)["Body"] as body:
            data: bytes = body.read(MAX_BYTES + 1)
    except failures as error:
        raise OSError(errno.EIO, f"cannot be fetched ({error})") from error
    if len(data) > MAX_BYTES:
        raise OSError(errno.EFBIG, f"holds more than {MAX_BYTES:,} bytes")
    return data


@cache
def client() -> Any:
    """One a process; it keeps its connections open."""
    try:
        import boto3
        from botocore.config import Config
    except ImportError as error:
        raise MissingExtra("Reading films from S3", "aws") from error
    # A store that asks to be asked more slowly is: a film must not become unreadable because many were wanted.
    return boto3.client("s3", config=Config(retries={"mode": "adaptive", "total_max_attempts": ATTEMPTS}))


def _failures() -> tuple[type[Exception], ...]:
    """What boto3 raises where the store refuses or cannot be reached."""
    try:
        from botocore.exceptions import BotoCoreError, ClientError
    except ImportError as error:
        raise MissingExtra("Reading films from S3", "aws") from error
    return BotoCoreError, ClientError
