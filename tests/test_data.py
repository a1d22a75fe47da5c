"""From files to a pack: what is collected, what is kept, who stands on which side, what is packed."""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from chestxray.data.clean import clean, describe
from chestxray.data.collect import collect
from chestxray.data.names import parse_name, patient_group
from chestxray.data.pack import Pack, population_statistics, write_pack
from chestxray.data.parallel import map_in_order
from chestxray.data.split import SplitSettings, leaks, refuse_leakage, split
from chestxray.errors import Leakage, OutputExists, PackInvalid, SourceInvalid
from chestxray.images.preprocess import preprocess
from chestxray.schema import Film, Label, Resize, Split, Verdict, read_manifest, write_manifest
from drawing import encoded, textured, write_film

# --------------------------------------------------------------------------- names


@pytest.mark.parametrize(
    ("stem", "label", "patient", "cause", "group"),
    [
        ("person281_bacteria_1328", Label.PNEUMONIA, "person281_bacteria", "bacteria", "person281"),
        ("person281_virus_552", Label.PNEUMONIA, "person281_virus", "virus", "person281"),
        ("person1372_virus_2365_1", Label.PNEUMONIA, "person1372_virus", "virus", "person1372"),
        ("IM-0115-0001", Label.NORMAL, "IM-0115", "", "IM-0115"),
        ("IM-0451-0001-0002", Label.NORMAL, "IM-0451", "", "IM-0451"),
        ("NORMAL2-IM-0587-0001", Label.NORMAL, "NORMAL2-IM-0587", "", "IM-0587"),
    ],
)
def test_a_published_name_tells_label_patient_and_cause(
    stem: str, label: Label, patient: str, cause: str, group: str
) -> None:
    assert parse_name(stem) == (label, patient, cause)
    assert patient_group(patient) == group


@pytest.mark.parametrize("stem", ["", "film", "person_bacteria_1", "IM-0115", "scan-person1", "NORMAL"])
def test_other_names_tell_nothing(stem: str) -> None:
    assert parse_name(stem) is None
    assert patient_group(stem) == stem


# --------------------------------------------------------------------------- collect


LAYOUTS = {
    "published": ["train/NORMAL/IM-0001-0001.png", "val/PNEUMONIA/person1_virus_1.png", "test/NORMAL/IM-0002-0001.png"],
    "nested twice": ["chest_xray/train/NORMAL/a.png", "chest_xray/test/PNEUMONIA/b.png"],
    "one folder a class": ["normal/a.png", "pneumonia/b.png"],
    "flat": ["IM-0001-0001.png", "person1_bacteria_1.png"],
    "by cause": ["bacteria/a.png", "virus/b.png", "normal/c.png"],
}
EXPECTED = {
    "published": [
        ("test", "normal", "IM-0002", ""),
        ("train", "normal", "IM-0001", ""),
        ("val", "pneumonia", "person1_virus", "virus"),
    ],
    "nested twice": [("test", "pneumonia", "", ""), ("train", "normal", "", "")],
    "one folder a class": [("", "normal", "", ""), ("", "pneumonia", "", "")],
    "flat": [("", "normal", "IM-0001", ""), ("", "pneumonia", "person1_bacteria", "bacteria")],
    "by cause": [("", "pneumonia", "", "bacteria"), ("", "normal", "", ""), ("", "pneumonia", "", "virus")],
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_gives_split_label_patient_and_cause(tmp_path: Path, layout: str) -> None:
    for seed, name in enumerate(LAYOUTS[layout]):
        write_film(tmp_path / name, seed)
    rows = [(film.split, film.label, film.patient_id, film.cause) for film in collect(tmp_path)]
    assert rows == EXPECTED[layout]


def test_what_is_no_film_is_not_collected(tmp_path: Path) -> None:
    write_film(tmp_path / "NORMAL" / "a.PNG", 1)
    for name in ("NORMAL/.DS_Store", "NORMAL/._b.png", "__MACOSX/NORMAL/c.png", "readme.txt", ".hidden/d.png"):
        write_film(tmp_path / name, 2)
    assert [Path(film.path).name for film in collect(tmp_path)] == ["a.PNG"]


def test_a_source_without_films_or_labels_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(SourceInvalid, match="does not exist"):
        collect(tmp_path / "nowhere")
    with pytest.raises(SourceInvalid, match="holds no film"):
        collect(tmp_path)
    write_film(tmp_path / "scan.png", 1)
    with pytest.raises(SourceInvalid, match="folders named NORMAL and PNEUMONIA"):
        collect(tmp_path)
    assert len(collect(tmp_path, labels_needed=False)) == 1


# --------------------------------------------------------------------------- clean


def folder_of_faults(root: Path) -> Path:
    write_film(root / "train/NORMAL/IM-0001-0001.png", 1)
    write_film(root / "train/NORMAL/IM-0002-0001.png", 2)
    write_film(root / "train/NORMAL/IM-0003-0001.png", 1)  # the first again
    write_film(root / "train/NORMAL/both.png", 5)
    write_film(root / "train/PNEUMONIA/both.png", 5)
    folder = root / "train/PNEUMONIA"
    whole = encoded(textured(7), "JPEG")
    faults = {
        "cut.jpeg": whole[: len(whole) // 2],
        "empty.jpeg": b"",
        "text.jpeg": b"not a film",
        "colour.png": encoded(np.dstack([textured(1), textured(2), textured(3)])),
        "blank.png": encoded(np.full((96, 96), 7, np.uint8)),
        "tiny.png": encoded(textured(8, 20, 20)),
        "person1_virus_1.jpeg": whole,
        "grey_as_rgb.jpeg": encoded(Image.fromarray(textured(9)).convert("RGB"), "JPEG"),
    }
    for name, data in faults.items():
        (folder / name).write_bytes(data)
    return root


VERDICTS = {
    "IM-0001-0001.png": Verdict.ACCEPTED,
    "IM-0002-0001.png": Verdict.ACCEPTED,
    "IM-0003-0001.png": Verdict.DUPLICATE,
    "both.png": Verdict.CONFLICTING,
    "cut.jpeg": Verdict.TRUNCATED,
    "empty.jpeg": Verdict.UNREADABLE,
    "text.jpeg": Verdict.UNREADABLE,
    "colour.png": Verdict.COLOURED,
    "blank.png": Verdict.BLANK,
    "tiny.png": Verdict.TOO_SMALL,
    "person1_virus_1.jpeg": Verdict.ACCEPTED,
    "grey_as_rgb.jpeg": Verdict.ACCEPTED,
}


def test_each_fault_gets_its_verdict_with_a_reason_and_nothing_is_deleted(tmp_path: Path) -> None:
    root = folder_of_faults(tmp_path)
    before = {path: path.read_bytes() for path in root.rglob("*") if path.is_file()}
    films = clean(collect(root))
    assert {Path(film.path).name: film.verdict for film in films} == VERDICTS
    assert all(bool(film.reason) != film.is_accepted for film in films)
    assert {path: path.read_bytes() for path in root.rglob("*") if path.is_file()} == before


def test_a_film_that_vanished_is_a_row_with_a_reason(tmp_path: Path) -> None:
    (film,) = clean([Film(str(tmp_path / "gone.png"), label="normal")])
    assert film.verdict == Verdict.UNREADABLE
    assert "No such file" in film.reason


def test_the_distribution_counts_what_was_found(tmp_path: Path) -> None:
    found = describe(clean(collect(folder_of_faults(tmp_path))))
    assert (found.films, found.accepted) == (13, 4)
    assert found.classes == {"train": {"normal": 2, "pneumonia": 2}}
    assert found.verdicts["unreadable"] == 2
    assert found.patients == {"normal": 2, "pneumonia": 1}
    assert found.without_patient == 1
    assert found.widths["normal"] == (96, 96, 96)


def test_many_processes_find_what_one_finds(tmp_path: Path) -> None:
    for seed in range(120):
        write_film(tmp_path / "NORMAL" / f"{seed}.png", seed % 110)
    films = collect(tmp_path)
    assert clean(films, workers=3) == clean(films, workers=1)


@pytest.mark.parametrize("workers", [1, 2])
def test_progress_counts_up_to_the_total(workers: int) -> None:
    seen: list[tuple[int, int]] = []
    doubled = list(map_in_order(abs, range(-200, 0), lambda done, total: seen.append((done, total)), workers))
    assert doubled == list(range(200, 0, -1))
    assert seen[0] == (0, 200)
    assert seen[-1] == (200, 200)
    assert seen == sorted(seen)


def test_an_error_in_a_worker_reaches_the_caller() -> None:
    with pytest.raises(ZeroDivisionError):
        list(map_in_order(_reciprocal, range(-150, 150), workers=2))


def _reciprocal(value: int) -> float:
    return 1 / value


# --------------------------------------------------------------------------- split


def row(number: int, label: str, *, side: str = "", patient: str | None = None, sha256: str | None = None) -> Film:
    name = f"person{number}_virus" if label == "pneumonia" else f"IM-{number:04}"
    return Film(
        f"/films/{label}/{number}-{side}-{patient}.png",
        label=label,
        split=side,
        patient_id=name if patient is None else patient,
        sha256=f"{label}{number}{patient}".encode().hex() if sha256 is None else sha256,
        verdict="accepted",
    )


def population(patients: int, most_films: int, seed: int) -> list[Film]:
    rng = np.random.default_rng(seed)
    films = []
    for label in Label:
        for number in range(patients):
            for view in range(int(rng.integers(1, most_films + 1))):
                film = row(number, label.value)
                films.append(dataclasses.replace(film, path=f"{film.path}.{view}", sha256=f"{film.sha256}{view:02}"))
    return films


@settings(max_examples=50, deadline=None)
@given(st.integers(10, 60), st.integers(1, 6), st.integers(0, 10_000), st.floats(0.1, 0.3))
def test_no_patient_ever_stands_on_two_sides(patients: int, most_films: int, seed: int, share: float) -> None:
    films = population(patients, most_films, seed)
    sides = split(films, SplitSettings(share, share, seed))
    by_patient: dict[str, set[str]] = {}
    for film in sides:
        by_patient.setdefault(film.patient_id, set()).add(film.split)
    assert all(len(found) == 1 for found in by_patient.values())
    assert {film.split for film in sides} == {"train", "val", "test"}
    assert [film.path for film in sides] == [film.path for film in films]


def test_each_class_gets_its_share_and_the_seed_decides() -> None:
    films = population(200, 3, 1)
    sides = split(films, SplitSettings(0.2, 0.2, 5))
    for label in Label:
        rows = [film for film in sides if film.label == label]
        assert sum(film.split == "test" for film in rows) / len(rows) == pytest.approx(0.2, abs=0.01)
        assert sum(film.split == "val" for film in rows) / len(rows) == pytest.approx(0.16, abs=0.01)
    assert split(films, SplitSettings(0.2, 0.2, 5)) == sides
    assert split(films, SplitSettings(0.2, 0.2, 6)) != sides
    assert {f.path: f.split for f in split(films[::-1], SplitSettings(0.2, 0.2, 5))} == {f.path: f.split for f in sides}


def test_one_number_under_two_counters_stays_together_when_drawing() -> None:
    films = population(40, 1, 2)
    films += [
        dataclasses.replace(row(n, "pneumonia", patient=f"person{n}_bacteria"), cause="bacteria") for n in range(40)
    ]
    films += [row(n, "normal", patient=f"NORMAL2-IM-{n:04}") for n in range(40)]
    sides: dict[str, set[str]] = {}
    for film in split(films):
        sides.setdefault(patient_group(film.patient_id), set()).add(film.split)
    assert len(sides) == 80
    assert all(len(found) == 1 for found in sides.values())


def test_one_number_under_two_counters_accuses_no_given_split() -> None:
    films = [dataclasses.replace(film, split="train") for film in population(40, 1, 2)]
    films.append(row(3, "pneumonia", side="test", patient="person3_bacteria"))
    films.append(row(3, "normal", side="test", patient="NORMAL2-IM-0003"))
    assert sum(film.split == "test" for film in split(films)) == 2


def test_identical_films_of_two_patients_stay_together() -> None:
    films = population(30, 1, 3)
    films += [row(n + 100, "normal", sha256=films[n].sha256) for n in range(30)]
    by_bytes: dict[str, set[str]] = {}
    for film in split(films):
        by_bytes.setdefault(film.sha256, set()).add(film.split)
    assert all(len(found) == 1 for found in by_bytes.values())


def test_a_given_test_side_is_respected_and_a_tiny_validation_side_is_drawn_anew() -> None:
    films = [dataclasses.replace(film, split="train") for film in population(100, 1, 4)]
    films += [row(n, label.value, side="val") for n in (1, 2) for label in Label]  # patients of the training side too
    films += [row(n + 500, label.value, side="test") for n in range(20) for label in Label]
    sides = split(films)
    assert paths_on("test", sides) == paths_on("test", films)
    assert sum(film.split == "val" for film in sides) > 20


def paths_on(side: str, films: Sequence[Film]) -> set[str]:
    return {film.path for film in films if film.split == side}


def test_a_large_validation_side_is_kept() -> None:
    films = [dataclasses.replace(film, split="train") for film in population(50, 1, 4)]
    given_validation = [row(n + 500, label.value, side="val") for n in range(10) for label in Label]
    sides = split(films + given_validation)
    assert paths_on("val", sides) == paths_on("val", given_validation)


@pytest.mark.parametrize(
    ("one", "other", "what"),
    [
        (row(1, "normal", side="train"), row(1, "normal", side="test", sha256="ab" * 32), "patient IM-0001"),
        (
            row(1, "normal", side="train"),
            row(2, "normal", side="test", sha256=row(1, "normal").sha256),
            "identical film",
        ),
        (row(1, "normal", side="train"), row(1, "normal", side="val", sha256="ab" * 32), "patient IM-0001"),
    ],
)
def test_a_patient_or_film_on_two_given_sides_stops_the_run_by_name(one: Film, other: Film, what: str) -> None:
    with pytest.raises(Leakage, match=what) as caught:
        refuse_leakage([one, other])
    assert "1-train-None.png" in str(caught.value)
    films = [dataclasses.replace(film, split="train") for film in population(10, 1, 4)]
    if other.split == "test":
        with pytest.raises(Leakage, match=what):
            split([*films, one, other])


def test_a_leak_within_one_side_is_none() -> None:
    assert leaks([row(1, "normal", side="train"), row(1, "normal", side="train", sha256="00" * 32)]) == []


def test_rejected_and_unlabelled_films_get_no_side() -> None:
    films = population(20, 1, 5)
    films += [
        dataclasses.replace(row(900, "normal"), verdict="blank"),
        dataclasses.replace(row(901, "normal"), label=""),
    ]
    assert [film.split for film in split(films)[-2:]] == ["", ""]


def test_too_few_patients_to_draw_from_is_said() -> None:
    with pytest.raises(SourceInvalid, match="1 patient.* with pneumonia films"):
        split([row(1, "normal"), row(2, "normal"), row(1, "pneumonia")])


# --------------------------------------------------------------------------- pack


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
        assert np.array_equal(image, preprocess(Path(film.path).read_bytes(), film.path, 48, 64, Resize.LETTERBOX))
    rows = np.concatenate([pack.rows(side) for side in Split])
    assert sorted(rows) == list(range(len(films)))


def test_the_statistics_are_the_training_films_own(tmp_path: Path) -> None:
    info = write_pack(packable(tmp_path / "films"), tmp_path / "pack")
    pack = Pack.open(tmp_path / "pack")
    training = pack.images[pack.rows(Split.TRAIN)].astype(np.float64) / 255
    assert info.preprocessing.mean == pytest.approx(training.mean(), abs=1e-12)
    assert info.preprocessing.std == pytest.approx(training.std(), abs=1e-12)


@settings(max_examples=25, deadline=None)
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
