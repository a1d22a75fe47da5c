"""Archives of our own code for AWS: the same bytes for the same files, whoever makes them, and whenever.

Nothing in them depends on times, owners, rights or the order of a folder, so a hash of one says what is in it.
"""

from __future__ import annotations

import gzip
import io
import tarfile
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Final

import chestxray

_MODE: Final = 0o644  # whoever unpacks it may read it
_EPOCH: Final = (1980, 1, 1, 0, 0, 0)  # the first time that a zip archive can hold


def files_below(folder: Path, without: frozenset[str]) -> Iterator[tuple[str, bytes]]:
    """Name within the folder and content of every file, in order of the names.

    Args:
        folder: where to look, at any depth.
        without: names of folders and files that are left out, with all that is in them.
    """
    for path in sorted(folder.rglob("*")):
        inside = path.relative_to(folder)
        if path.is_file() and not without.intersection(inside.parts):
            yield inside.as_posix(), path.read_bytes()


def package_files(without: frozenset[str], suffixes: frozenset[str] | None = None) -> dict[str, bytes]:
    """This package by name, as it is imported: ``chestxray/...``.

    Args:
        without: names of rooms that are left out.
        suffixes: of the files that are taken; None for all.
    """
    root = Path(chestxray.__file__).parent
    return {
        f"{root.name}/{name}": data
        for name, data in files_below(root, without | {"__pycache__"})
        if suffixes is None or Path(name).suffix in suffixes
    }


def zipped(files: Mapping[str, bytes]) -> bytes:
    """A ``.zip`` of the files, in order of their names."""
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        for name in sorted(files):
            member = zipfile.ZipInfo(name, _EPOCH)
            member.external_attr = _MODE << 16
            archive.writestr(member, files[name], zipfile.ZIP_DEFLATED)
    return packed.getvalue()


def tarred(files: Mapping[str, bytes]) -> bytes:
    """A ``.tar.gz`` of the files, in order of their names."""
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w", format=tarfile.PAX_FORMAT) as archive:
        for name in sorted(files):
            member = tarfile.TarInfo(name)
            member.size, member.mode = len(files[name]), _MODE
            archive.addfile(member, io.BytesIO(files[name]))
    return gzip.compress(packed.getvalue(), mtime=0)
