"""A data set of Kaggle's, fetched by its maintained client into that client's own folder. Needs the network."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Final

from chestxray.errors import MissingExtra, SourceInvalid

SCHEME: Final = "kaggle:"
_HANDLE: Final = re.compile(r"[\w-]+/[\w-]+(/versions/[1-9]\d*)?", re.ASCII)


def fetch(handle: str) -> Path:
    """The folder of a data set, downloaded unless the client has it. Raises: SourceInvalid, MissingExtra."""
    try:
        import kagglehub
        from kagglehub import exceptions as its
    except ImportError as error:
        raise MissingExtra("Fetching a data set from Kaggle", "kaggle") from error
    failures = (
        OSError,
        ValueError,
        its.BackendError,
        its.CredentialError,
        its.DataCorruptionError,
        its.KaggleEnvironmentError,
        its.NotFoundError,
        its.UnauthenticatedError,
    )
    try:
        return Path(kagglehub.dataset_download(handle))
    except failures as error:
        raise SourceInvalid(
            f"{SCHEME}{handle}: cannot be fetched ({error}). Download it by hand, or see to network and credentials"
        ) from error


def downloaded(address: str, fetch_one: Callable[[str], Path] = fetch) -> Path:
    """The folder of the data set at ``kaggle:owner/dataset``, or ``kaggle:owner/dataset/versions/2``.

    Raises: SourceInvalid: the address is none, or the data set cannot be fetched.
    """
    handle = address.removeprefix(SCHEME)
    if not _HANDLE.fullmatch(handle):
        raise SourceInvalid(f"{address}: not a data set of Kaggle's; write it as kaggle:owner/dataset")
    return fetch_one(handle)
