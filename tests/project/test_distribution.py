"""The wheel and the source archive: complete, nothing too much, and the same bytes wherever they are built."""

from __future__ import annotations

import os
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import pytest

import chestxray

ROOT = Path(__file__).parents[2]
PACKAGE = Path(chestxray.__file__).parent
MANY_YEARS_AGO = 1_000_000_000  # seconds since 1970


class Built(NamedTuple):
    wheel: Path
    sdist: Path


def build(folder: Path, out: Path, *options: str, umask: int = 0o022) -> Built:
    """As ``make dist`` does it: the source archive, then the wheel from that archive."""
    subprocess.run(
        [sys.executable, "-m", "build", "--no-isolation", *options, "--outdir", out, folder],
        check=True,
        capture_output=True,
        umask=umask,
        env={name: value for name, value in os.environ.items() if name != "SOURCE_DATE_EPOCH"},
    )
    (wheel,) = out.glob("*.whl")
    return Built(wheel, next(out.glob("*.tar.gz"), wheel))


@pytest.fixture(scope="session")
def built(shared: Callable[[str, Callable[[Path], object]], Path]) -> Built:
    out = shared("dist", lambda path: build(ROOT, path))
    return Built(next(out.glob("*.whl")), next(out.glob("*.tar.gz")))


@pytest.fixture
def unpacked(built: Built, tmp_path: Path) -> Path:
    """The source archive, unpacked into a folder of another name."""
    with tarfile.open(built.sdist) as archive:
        archive.extractall(tmp_path / "here", filter="data")
    (folder,) = (tmp_path / "here").iterdir()
    return folder.rename(tmp_path / "a folder of another name")


def test_the_wheel_holds_every_file_of_the_package_and_nothing_else(built: Built) -> None:
    ours = {path.relative_to(PACKAGE.parent) for path in PACKAGE.rglob("*") if path.is_file()}
    expected = {path.as_posix() for path in ours if path.parent.name != "__pycache__"}
    with zipfile.ZipFile(built.wheel) as wheel:
        named = set(wheel.namelist())
    described = {name for name in named if name.startswith(f"chestxray-{chestxray.__version__}.dist-info/")}
    assert named - described == expected
    assert {name.partition("/")[2] for name in described} == {
        *("METADATA", "RECORD", "WHEEL", "entry_points.txt", "licenses/LICENSE")
    }


@pytest.mark.parametrize(
    "name",
    [
        "py.typed",
        "serving/page/index.html",
        "serving/page/examples/lobe.jpg",
        "bundles/pneumonia/model.onnx",
        "bundles/pneumonia/training_films.json",
        "training/recipes/default.toml",
        "evaluation/report.html.j2",
        "aws/website.yaml",
        "aws/Dockerfile",
    ],
)
def test_what_is_no_code_travels_with_the_code(built: Built, name: str) -> None:
    with zipfile.ZipFile(built.wheel) as wheel:
        assert wheel.read(f"chestxray/{name}") == (PACKAGE / name).read_bytes()


@pytest.mark.skipif(
    not (ROOT / ".git").exists(), reason="not in a checkout: nothing tells which files are the project's"
)
def test_the_source_archive_holds_every_file_of_the_project(built: Built) -> None:
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, check=True, capture_output=True, text=True).stdout
    tracked = {name for name in listed.splitlines() if (ROOT / name).exists()}
    with tarfile.open(built.sdist) as archive:
        named = {member.name.partition("/")[2] for member in archive.getmembers()}
    assert tracked - named == set()
    ignored = subprocess.run(
        ["git", "check-ignore", "--stdin"],
        cwd=ROOT,
        input="\n".join(named),
        capture_output=True,
        text=True,
        check=False,
    )
    assert ignored.stdout.splitlines() == []


def test_no_cache_no_environment_and_no_output_of_a_run_is_in_the_source_archive(built: Built) -> None:
    with tarfile.open(built.sdist) as archive:
        members = archive.getmembers()
    folders = {folder for member in members for folder in Path(member.name).parts[1:-1]}
    assert not folders & {"__pycache__", ".venv", "dist", "run", ".pytest_cache", ".hypothesis", "site", ".git"}
    assert {(member.uid, member.gid, member.uname) for member in members} == {(0, 0, "")}


def test_the_same_bytes_come_from_another_folder_at_another_time_with_another_umask(
    built: Built, unpacked: Path, tmp_path: Path
) -> None:
    for path in [unpacked, *unpacked.rglob("*")]:
        if path.is_file():
            path.chmod(path.stat().st_mode & 0o500 | 0o400)
        os.utime(path, (MANY_YEARS_AGO, MANY_YEARS_AGO))
    again = build(unpacked, tmp_path / "again", umask=0o077)
    assert again.wheel.read_bytes() == built.wheel.read_bytes()
    assert again.sdist.read_bytes() == built.sdist.read_bytes()


def test_the_wheel_of_a_checkout_is_the_wheel_of_its_source_archive(built: Built, tmp_path: Path) -> None:
    straight = build(ROOT, tmp_path / "out", "--wheel")
    assert straight.wheel.read_bytes() == built.wheel.read_bytes()


@pytest.mark.slow
@pytest.mark.parametrize("arguments", [["--collect-only"], ["tests/test_layout.py", "tests/inference/test_shipped.py"]])
def test_the_tests_of_the_source_archive_are_all_there_and_test_its_own_code(
    arguments: Sequence[str], unpacked: Path
) -> None:
    environment = {**os.environ, "PYTHONPATH": str(unpacked / "src")}
    for command, shown in (
        (["-m", "pytest", "-q", "-p", "no:cacheprovider", *arguments], ""),
        (["-c", "import chestxray; print(chestxray.__file__)"], str(unpacked)),
    ):
        done = subprocess.run(
            [sys.executable, *command], cwd=unpacked, env=environment, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stdout
        assert shown in done.stdout
