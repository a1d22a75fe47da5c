"""From splits to a pack: what is in it, and what stops it."""

from __future__ import annotations

import dataclasses
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from chestxray.data.clean import clean
from chestxray.data.collect import collect
from chestxray.data.pack import Pack, population_statistics, write_pack
from chestxray.data.split import SplitSettings, split
from chestxray.errors import Leakage, OutputExists, PackInvalid
from chestxray.images.preprocess import preprocess
from chestxray.schema import Film, Levels, Resize, Split, read_manifest, write_manifest
from drawing import encoded, textured, write_film
from rows import row


def packable(root: Path, count: int = 24) -> tuple[Film, ...]:
    for seed in range(count):
        name = f"NORMAL/IM-{seed:04}-0001.png" if seed % 2 else f"PNEUMONIA/person{seed}_virus_{seed}.png"
        write_film(root / name, seed)
    return split(clean(collect(root)))


def test_a_pack_holds_each_film_as_serving_would_see_it(tmp_path: Path) -> None:
    films = packable(tmp_path / "films")
    info = write_pack(films, tmp_path / "pack", size=(48, 64), resize=Resize.LETTERBOX)
    pack = Pack.open(tmp_path / "pack")
    assert pack.info == info
    assert pack.films == films
    for film, image in zip(pack.films, pack.images, strict=True):
        assert np.array_equal(
            image, preprocess(Path(film.path).read_bytes(), film.path, 48, 64, Resize.LETTERBOX, Levels.EQUALISED)
        )
    rows = np.concatenate([pack.rows(split) for split in Split])
    assert sorted(rows) == list(range(len(films)))


def test_the_statistics_are_the_training_films_own(tmp_path: Path) -> None:
    info = write_pack(packable(tmp_path / "films"), tmp_path / "pack")
    pack = Pack.open(tmp_path / "pack")
    training = pack.images[pack.rows(Split.TRAIN)].astype(np.float64) / 255
    assert info.preprocessing.mean == pytest.approx(training.mean(), abs=1e-12)
    assert info.preprocessing.std == pytest.approx(training.std(), abs=1e-12)


@settings(max_examples=25)
@given(st.integers(1, 2500), st.integers(0, 255), st.integers(0, 255))
def test_the_statistics_are_exact_for_any_number_of_films(count: int, low: int, high: int) -> None:
    low, high = sorted((low, high))
    images = np.random.default_rng(count).integers(low, high + 1, (count, 3, 5), dtype=np.uint8)
    mean, std = population_statistics(images, np.arange(count))
    assert mean == pytest.approx(images.mean() / 255, abs=1e-12)
    assert std == pytest.approx(images.std() / 255, abs=1e-12)


def test_packing_again_replaces_the_pack_and_nothing_else(tmp_path: Path) -> None:
    films = packable(tmp_path / "films")
    write_pack(films, tmp_path / "pack", size=(48, 64))
    write_pack(films, tmp_path / "pack", size=(32, 32))
    assert Pack.open(tmp_path / "pack").images.shape[1:] == (32, 32)
    with pytest.raises(OutputExists, match="not a folder that this command wrote"):
        write_pack(films, tmp_path / "films")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["films", "pack"]


def test_a_film_that_changed_since_cleaning_stops_the_pack_and_leaves_nothing(tmp_path: Path) -> None:
    films = packable(tmp_path / "films")
    Path(films[0].path).write_bytes(encoded(textured(999)))
    with pytest.raises(PackInvalid, match="changed since it was cleaned"):
        write_pack(films, tmp_path / "pack")
    Path(films[0].path).unlink()
    with pytest.raises(PackInvalid, match="can no longer be read"):
        write_pack(films, tmp_path / "pack")
    assert [path.name for path in tmp_path.iterdir()] == ["films"]


def test_a_pack_of_leaking_rows_is_refused(tmp_path: Path) -> None:
    films = packable(tmp_path / "films")
    leaking = [dataclasses.replace(film, patient_id="p1") for film in films]
    with pytest.raises(Leakage):
        write_pack(leaking, tmp_path / "pack")


def test_a_damaged_pack_is_refused(tmp_path: Path) -> None:
    films = packable(tmp_path / "films")
    write_pack(films, tmp_path / "pack", size=(32, 32))
    for name, damage in {
        "pack.json": lambda path: path.unlink(),
        "images.npy": lambda path: path.write_bytes(path.read_bytes()[:-100]),
        "manifest.csv": lambda path: write_manifest(read_manifest(path)[:-1], path),
    }.items():
        copy = tmp_path / "copy"
        shutil.rmtree(copy, ignore_errors=True)
        shutil.copytree(tmp_path / "pack", copy)
        damage(copy / name)
        with pytest.raises(PackInvalid, match="copy"):
            Pack.open(copy)
    relabelled = [dataclasses.replace(film, label="normal") for film in read_manifest(tmp_path / "pack/manifest.csv")]
    write_manifest(relabelled, tmp_path / "pack/manifest.csv")
    with pytest.raises(PackInvalid, match="changed after packing"):
        Pack.open(tmp_path / "pack")


def test_without_training_films_there_is_no_pack(tmp_path: Path) -> None:
    with pytest.raises(PackInvalid, match="chestxray split"):
        write_pack([row(1, "normal")], tmp_path / "pack")


# --------------------------------------------------------------------------- what need not be decoded again


def spoil(films: Iterable[Film]) -> None:
    """Whoever opens one of these files now finds other bytes, and the pack stops."""
    for film in films:
        Path(film.path).write_bytes(b"spoilt")


def same_pack(one: Path, other: Path) -> bool:
    return all((one / name).read_bytes() == (other / name).read_bytes() for name in ("images.npy", "pack.json"))


def test_packing_again_decodes_only_new_films(tmp_path: Path) -> None:
    films = packable(tmp_path / "films")
    write_pack(films[:-3], tmp_path / "pack", size=(32, 48))
    write_pack(films, tmp_path / "fresh", size=(32, 48))
    spoil(films[:-3])
    steps: list[tuple[int, int]] = []
    write_pack(films, tmp_path / "pack", size=(32, 48), on_progress=lambda done, total: steps.append((done, total)))
    assert same_pack(tmp_path / "pack", tmp_path / "fresh")
    assert steps == [(done, len(films)) for done in range(len(films) - 3, len(films) + 1)]


def test_other_sides_and_labels_need_no_decoding_at_all(tmp_path: Path) -> None:
    films = packable(tmp_path / "films")
    write_pack(films, tmp_path / "pack", size=(32, 48))
    spoil(films)
    moved = split([dataclasses.replace(film, split="") for film in films], SplitSettings(seed=9))
    info = write_pack(moved, tmp_path / "pack", size=(32, 48))
    training = np.stack(
        [image for film, image in zip(moved, Pack.open(tmp_path / "pack").images, strict=True) if film.split == "train"]
    )
    assert info.preprocessing.mean == pytest.approx(training.mean() / 255)


@pytest.mark.parametrize("changed", ["size", "resize", "decoder"])
def test_another_size_policy_or_decoder_copies_nothing(tmp_path: Path, changed: str) -> None:
    films = packable(tmp_path / "films")
    info = write_pack(films, tmp_path / "pack", size=(32, 48))
    if changed == "decoder":
        other = dataclasses.replace(info, decoder="another")
        (tmp_path / "pack/pack.json").write_text(other.to_json())
    spoil(films)
    size = (48, 32) if changed == "size" else (32, 48)
    resize = Resize.CROP if changed == "resize" else Resize.SQUEEZE
    with pytest.raises(PackInvalid, match="changed since it was cleaned"):
        write_pack(films, tmp_path / "pack", size=size, resize=resize)
    assert Pack.open(tmp_path / "pack").info.count == len(films)


KILLED = """
import os, signal, sys
from pathlib import Path
from chestxray.data import pack
from chestxray.schema import read_manifest
pack.KEPT_EVERY = 4
def stop(done, total):
    if done == 11:
        os.kill(os.getpid(), signal.SIGKILL)
pack.write_pack(read_manifest(Path(sys.argv[1])), Path(sys.argv[2]), size=(32, 48), on_progress=stop, workers=1)
"""


def test_a_killed_run_leaves_no_half_pack_and_the_next_one_goes_on(tmp_path: Path) -> None:
    films = packable(tmp_path / "films")
    write_manifest(films, tmp_path / "split.csv")
    write_pack(films, tmp_path / "fresh", size=(32, 48))
    arguments = [sys.executable, "-c", KILLED, str(tmp_path / "split.csv"), str(tmp_path / "pack")]
    assert subprocess.run(arguments, check=False).returncode == -signal.SIGKILL
    assert not (tmp_path / "pack").exists()
    spoil(films[:8])  # those whose planes are known to be on disk
    write_pack(films, tmp_path / "pack", size=(32, 48))
    assert same_pack(tmp_path / "pack", tmp_path / "fresh")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["films", "fresh", "pack", "split.csv"]


def test_a_damaged_leftover_is_passed_over(tmp_path: Path) -> None:
    films = packable(tmp_path / "films")
    left = tmp_path / ".pack.999999999.part"
    left.mkdir()
    (left / "progress.json").write_text("[")
    (left / "images.npy").write_bytes(b"half")
    assert write_pack(films, tmp_path / "pack", size=(32, 48)).count == len(films)
    assert not left.exists()
