"""Outputs are written whole, where a link leads, and never over what this program did not write."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from chestxray.cli import main
from chestxray.data.pack import write_pack
from chestxray.errors import OutputExists, OutputUnwritable
from chestxray.files import file_written_whole, folder_written_whole, write_atomically
from chestxray.metrics.scores import check_table
from chestxray.schema import Film, read_manifest, write_manifest
from drawing import write_film


def fill(path: Path, text: str) -> None:
    with folder_written_whole(path, "marker") as beside:
        (beside / "marker").write_text(text)
        (beside / "inner").mkdir()


def test_a_link_to_a_folder_is_followed_and_stays(tmp_path: Path) -> None:
    (tmp_path / "disk").mkdir()
    (tmp_path / "out").symlink_to(tmp_path / "disk")
    for text in ("first", "second"):
        fill(tmp_path / "out", text)
        assert (tmp_path / "out").is_symlink()
        assert (tmp_path / "disk" / "marker").read_text() == text
    assert sorted(path.name for path in tmp_path.iterdir()) == ["disk", "out"]


@pytest.fixture
def mounted(tmp_path: Path) -> Iterator[Path]:
    """A folder on a file system of its own."""
    path = tmp_path / "mounted"
    path.mkdir()
    if (
        not shutil.which("mount")
        or subprocess.run(["mount", "-t", "tmpfs", "none", path], capture_output=True, check=False).returncode
    ):
        pytest.skip("nothing may be mounted here")
    yield path
    subprocess.run(["umount", path], check=False)


def test_a_mount_point_is_filled_in_place(mounted: Path) -> None:
    (mounted / "lost+found").mkdir()
    for text in ("first", "second"):
        fill(mounted, text)
        assert (mounted / "marker").read_text() == text
        assert sorted(path.name for path in mounted.iterdir()) == ["inner", "lost+found", "marker"]


def test_a_folder_that_cannot_be_renamed_is_filled_in_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "out"
    out.mkdir()
    monkeypatch.setattr(os.path, "ismount", lambda path: Path(path) == out)  # as a mount point says it
    for text in ("first", "second"):
        fill(out, text)
        assert (out / "marker").read_text() == text
        assert sorted(path.name for path in out.iterdir()) == ["inner", "marker"]
    with pytest.raises(RuntimeError), folder_written_whole(out, "marker"):
        raise RuntimeError
    assert (out / "marker").read_text() == "second"


def test_a_link_to_a_file_is_followed_and_a_pipe_is_written_to(tmp_path: Path) -> None:
    (tmp_path / "link.csv").symlink_to(tmp_path / "real.csv")
    write_atomically(tmp_path / "link.csv", b"data")
    assert (tmp_path / "real.csv").read_bytes() == b"data"
    assert (tmp_path / "link.csv").is_symlink()
    write_atomically(Path(os.devnull), b"data")
    assert not Path(os.devnull).is_file()


def test_a_pipe_that_nobody_reads_and_a_socket_are_refused_and_never_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(tmp_path / "socket"))
        for name in ("pipe", "socket"):
            with pytest.raises(OutputUnwritable, match=f"{name}: cannot be written .nobody reads it"):
                write_manifest([Film("film.png")], tmp_path / name)


def test_links_that_lead_in_a_circle_or_nowhere_are_refused_before_any_work(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_film(tmp_path / "films" / "NORMAL" / "film.png", 1)
    (tmp_path / "one").symlink_to("other")
    (tmp_path / "other").symlink_to("one")
    (tmp_path / "gone").symlink_to("nowhere/folder")
    for out, reason in (("one", "its links lead in a circle"), ("one/x", "leads nowhere"), ("gone/x", "leads nowhere")):
        with pytest.raises(OutputUnwritable, match=reason):
            fill(tmp_path / out, "text")
        for verb, source in (("collect", "films"), ("clean", "m.csv")):
            write_manifest((), tmp_path / "m.csv")
            with pytest.raises(SystemExit) as caught:
                main([verb, str(tmp_path / source), "--out", str(tmp_path / out)])
            assert caught.value.code == 1
            said = capsys.readouterr().err
            assert reason in said
            assert "Traceback" not in said
    fill(tmp_path / "gone", "text")  # the link's own end is made
    assert (tmp_path / "nowhere" / "folder" / "marker").is_file()


def test_a_refusal_of_the_disk_names_the_output_and_no_file_beside_it(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for path in (tmp_path / "file" / "out.csv", Path("/proc/out.csv")):
        with pytest.raises(OutputUnwritable, match=f"{path}: cannot be written") as caught:
            write_atomically(path, b"")
        assert ".part" not in str(caught.value)
    with pytest.raises(ValueError, match="mine"), file_written_whole(tmp_path / "x"):
        raise ValueError("mine")


def test_a_file_that_is_not_ours_is_never_replaced(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    film = write_film(tmp_path / "NORMAL" / "film.png", 1)
    data = film.read_bytes()
    for arguments in (["collect", tmp_path], ["collect", film.parent.parent]):
        with pytest.raises(SystemExit) as caught:
            main([*map(str, arguments), "--out", str(film)])
        assert caught.value.code == 2
        assert "exists and is not a manifest that this program wrote" in capsys.readouterr().err
    assert film.read_bytes() == data
    with pytest.raises(OutputExists):
        check_table(film.with_suffix(".png").rename(tmp_path / "film.csv"))


def test_a_document_beside_the_output_is_never_replaced_unless_it_is_ours(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_film(tmp_path / "NORMAL" / "a.png", 1)
    main_and_stop(["collect", str(tmp_path), "--out", str(tmp_path / "m.csv")], 0)
    (tmp_path / "clean.json").write_text('{"mine": 1}')
    main_and_stop(["clean", str(tmp_path / "m.csv"), "--out", str(tmp_path / "clean.csv")], 2)
    assert (tmp_path / "clean.json").read_text() == '{"mine": 1}'
    (tmp_path / "clean.json").unlink()
    for _ in range(2):
        main_and_stop(["clean", str(tmp_path / "m.csv"), "--out", str(tmp_path / "clean.csv")], 0)
    assert read_manifest(tmp_path / "clean.csv")[0].verdict == "accepted"


def main_and_stop(arguments: list[str], status: int) -> None:
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    assert caught.value.code == status


def test_a_pack_may_lie_behind_a_link(tmp_path: Path) -> None:
    (tmp_path / "disk").mkdir()
    (tmp_path / "pack").symlink_to(tmp_path / "disk")
    films = [
        Film(str(write_film(tmp_path / f"{n}.png", n)), "normal", "train", f"p{n}", verdict="accepted")
        for n in range(2)
    ]
    for _ in range(2):
        assert write_pack(films, tmp_path / "pack", workers=1).count == 2
    assert (tmp_path / "disk" / "pack.json").is_file()


def test_a_pack_on_a_full_disk_is_one_sentence_before_any_film_is_read_and_leaves_nothing(mounted: Path) -> None:
    subprocess.run(["mount", "-o", "remount,size=64k", mounted], check=True)
    films = [Film("gone.png", "normal", "train", f"p{n}", verdict="accepted") for n in range(5)]
    with pytest.raises(OutputUnwritable, match=r"pack: cannot be written \(No space left on device\). Make room"):
        write_pack(films, mounted / "pack")
    assert list(mounted.iterdir()) == []


def test_a_manifest_replaces_manifests_only(tmp_path: Path) -> None:
    (tmp_path / "labels.csv").write_text("path,label\na.png,normal\n")
    with pytest.raises(OutputExists):
        write_manifest([], tmp_path / "labels.csv")
    for _ in range(2):
        write_manifest([], tmp_path / "m.csv")


def test_a_folder_in_which_no_file_may_be_made_is_named_before_any_work(tmp_path: Path) -> None:
    ordinary = ["setpriv", "--bounding-set=-dac_override,-dac_read_search"] if os.geteuid() == 0 else []
    if ordinary and not shutil.which("setpriv"):
        pytest.skip("root may write everywhere, and setpriv is not here")
    code = (
        "from pathlib import Path; from chestxray.files import refuse_to_replace; "
        "refuse_to_replace(Path('deep/out.csv'), bool, 'a table')"
    )
    tmp_path.chmod(0o555)
    try:
        done = subprocess.run(
            [*ordinary, sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False
        )
    finally:
        tmp_path.chmod(0o755)
    assert f"deep/out.csv: cannot be written (no file may be made in {tmp_path}). Give another --out" in done.stderr
