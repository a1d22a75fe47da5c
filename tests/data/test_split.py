"""From verdicts to splits: who stands where, and what stops the run."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from chestxray.data import dedup
from chestxray.data.clean import clean
from chestxray.data.collect import collect
from chestxray.data.dedup import NEAR, near_pairs
from chestxray.data.labels import patient_group
from chestxray.data.split import (
    SharedPatients,
    SplitSettings,
    leaks,
    read_allowance,
    refuse_leakage,
    shared_patients,
    split,
    write_allowance,
)
from chestxray.errors import Leakage, SourceInvalid
from chestxray.schema import Film, Label
from rows import population, row, some_hash


@settings(max_examples=50)
@given(st.integers(10, 60), st.integers(1, 6), st.integers(0, 10_000), st.floats(0.1, 0.3))
def test_no_patient_ever_stands_on_two_sides(patients: int, most_films: int, seed: int, share: float) -> None:
    films = population(patients, most_films, seed)
    splits = split(films, SplitSettings(share, share, seed))
    by_patient: dict[str, set[str]] = {}
    for film in splits:
        by_patient.setdefault(film.patient_id, set()).add(film.split)
    assert all(len(found) == 1 for found in by_patient.values())
    assert {film.split for film in splits} == {"train", "val", "test"}
    assert [film.path for film in splits] == [film.path for film in films]


def test_rejected_films_stand_where_their_source_or_their_patient_stands_and_leak_nothing() -> None:
    films = population(20, 2, 3)
    given = [dataclasses.replace(film, split="test" if "1" in film.patient_id else "train") for film in films]
    bad = [
        dataclasses.replace(films[0], path="blank", patient_id="elsewhere", split="test", verdict="blank", sha256="0"),
        dataclasses.replace(films[0], path="empty", patient_id="", split="train", verdict="unreadable", sha256="0"),
        dataclasses.replace(films[0], path="redrawn", patient_id="nobody", split="val", verdict="blank", sha256="1"),
        dataclasses.replace(films[0], path="unlabelled", label="", split="test", verdict="blank", sha256="2"),
    ]
    found = {film.path: film.split for film in split([*given, *bad])}
    assert [found[film.path] for film in bad] == ["test", "train", "", ""]
    unsplit = [dataclasses.replace(film, split="") for film in (*films, *bad)]
    bad_of_first = dataclasses.replace(unsplit[0], path="of the first patient", verdict="truncated", sha256="3")
    drawn = {film.path: film.split for film in split([*unsplit, bad_of_first])}
    assert drawn["of the first patient"] == drawn[films[0].path]
    assert drawn["blank"] == ""


def test_each_class_gets_its_share_and_the_seed_decides() -> None:
    films = population(200, 3, 1)
    splits = split(films, SplitSettings(0.2, 0.2, 5))
    for label in Label:
        rows = [film for film in splits if film.label == label]
        assert sum(film.split == "test" for film in rows) / len(rows) == pytest.approx(0.2, abs=0.01)
        assert sum(film.split == "val" for film in rows) / len(rows) == pytest.approx(0.16, abs=0.01)
    assert split(films, SplitSettings(0.2, 0.2, 5)) == splits
    assert split(films, SplitSettings(0.2, 0.2, 6)) != splits
    assert {f.path: f.split for f in split(films[::-1], SplitSettings(0.2, 0.2, 5))} == {
        f.path: f.split for f in splits
    }


def test_one_number_under_two_counters_stays_together_when_drawing() -> None:
    films = population(40, 1, 2)
    films += [
        dataclasses.replace(row(n, "pneumonia", patient=f"person{n}_bacteria"), cause="bacteria") for n in range(40)
    ]
    films += [row(n, "normal", patient=f"NORMAL2-IM-{n:04}") for n in range(40)]
    splits: dict[str, set[str]] = {}
    for film in split(films):
        splits.setdefault(patient_group(film.patient_id), set()).add(film.split)
    assert len(splits) == 80
    assert all(len(found) == 1 for found in splits.values())


def test_one_number_under_two_counters_accuses_no_given_split() -> None:
    films = [dataclasses.replace(film, split="train") for film in population(40, 1, 2)]
    films.append(row(3, "pneumonia", split="test", patient="person3_bacteria"))
    films.append(row(3, "normal", split="test", patient="NORMAL2-IM-0003"))
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
    films += [row(n, label.value, split="val") for n in (1, 2) for label in Label]  # patients of the training split too
    films += [row(n + 500, label.value, split="test") for n in range(20) for label in Label]
    splits = split(films)
    assert paths_on("test", splits) == paths_on("test", films)
    assert sum(film.split == "val" for film in splits) > 20


def paths_on(split: str, films: Sequence[Film]) -> set[str]:
    return {film.path for film in films if film.split == split}


def test_a_large_validation_side_is_kept() -> None:
    films = [dataclasses.replace(film, split="train") for film in population(50, 1, 4)]
    given_validation = [row(n + 500, label.value, split="val") for n in range(10) for label in Label]
    splits = split(films + given_validation)
    assert paths_on("val", splits) == paths_on("val", given_validation)


@pytest.mark.parametrize(
    ("one", "other", "what"),
    [
        (row(1, "normal", split="train"), row(1, "normal", split="test", sha256="ab" * 32), "patient IM-0001"),
        (
            row(1, "normal", split="train"),
            row(2, "normal", split="test", sha256=row(1, "normal").sha256),
            "identical film",
        ),
        (row(1, "normal", split="train"), row(1, "normal", split="val", sha256="ab" * 32), "patient IM-0001"),
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
    assert leaks([row(1, "normal", split="train"), row(1, "normal", split="train", sha256="00" * 32)]) == []


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


# --------------------------------------------------------------------------- nearly the same film


def distance(one: str, other: str) -> int:
    return (int(one, 16) ^ int(other, 16)).bit_count()


@settings(max_examples=40)
@given(st.integers(0, 60), st.integers(0, 10_000), st.integers(0, 60), st.integers(0, 60))
def test_exactly_the_pairs_within_the_distance_are_found(count: int, seed: int, most_flips: int, limit: int) -> None:
    rng = np.random.default_rng(seed)
    hashes = {some_hash(n % 7, flipped=int(rng.integers(0, most_flips + 1))) for n in range(count)}
    expected = [pair for pair in combinations(sorted(hashes), 2) if distance(*pair) <= limit]
    assert near_pairs([*hashes, *hashes, "", "too short"], limit) == expected


def test_pairs_are_found_across_blocks_and_among_more_hashes_than_the_axes_are_learnt_from(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    hashes = [some_hash(n) for n in range(500)] + [some_hash(n, flipped=NEAR) for n in range(0, 500, 9)]
    expected = sorted(tuple(sorted((some_hash(n), some_hash(n, flipped=NEAR)))) for n in range(0, 500, 9))
    assert near_pairs(hashes) == expected
    monkeypatch.setattr(dedup, "_AT_ONCE", 1000)
    monkeypatch.setattr(dedup, "_LEARNT_FROM", 100)
    dedup.pairs_among.cache_clear()
    assert near_pairs(hashes) == expected


def pictured(film: Film, hash_: str, name: str = "") -> Film:
    return dataclasses.replace(film, perceptual_hash=hash_, path=f"{film.path}{name}")


def test_nearly_identical_films_of_two_patients_stay_together_when_drawing() -> None:
    films = [pictured(film, some_hash(n)) for n, film in enumerate(population(30, 1, 3))]
    films += [pictured(row(n + 100, "normal"), some_hash(n, flipped=NEAR), "b") for n in range(30)]
    films += [pictured(row(n + 200, "normal"), some_hash(n), "c") for n in range(30)]
    splits: dict[int, set[str]] = {}
    for film in split(films):
        nearest = min(range(60), key=lambda n: distance(some_hash(n), film.perceptual_hash))
        splits.setdefault(nearest, set()).add(film.split)
    assert len(splits) == 60
    assert all(len(found) == 1 for found in splits.values())


@pytest.mark.parametrize("flipped", [0, 1, NEAR, NEAR + 1])
def test_a_nearly_identical_film_on_two_given_sides_is_accused_up_to_the_distance(flipped: int) -> None:
    one = pictured(row(1, "normal", split="train"), some_hash(1))
    other = pictured(row(2, "normal", split="test"), some_hash(1, flipped=flipped))
    found = [str(leak) for leak in leaks([other, one, pictured(row(3, "normal", split="val"), some_hash(3))])]
    named = "nearly the same film (train/1-train-None.png and test/2-test-None.png)"
    assert found == ([named] if flipped <= NEAR else [])


def test_pictures_accuse_only_where_cleaning_accepted_both_and_no_more_than_once() -> None:
    blank = dataclasses.replace(pictured(row(1, "normal", split="train"), "0" * 128), verdict="blank")
    other = dataclasses.replace(pictured(row(2, "normal", split="test"), "0" * 128), verdict="blank")
    assert leaks([blank, other]) == []
    same = pictured(row(3, "normal", split="train", sha256="ab"), some_hash(1))
    again = pictured(row(4, "normal", split="test", sha256="ab"), some_hash(1))
    assert [leak.what for leak in leaks([same, again])] == ["identical film ab"]


def test_a_reason_lets_a_leaking_split_through_and_the_sides_stay_as_given() -> None:
    films = [dataclasses.replace(film, split="train") for film in population(30, 1, 4)]
    films.append(row(1, "normal", split="test", sha256="ab" * 32))
    with pytest.raises(Leakage):
        split(films)
    splits = split(films, leakage_allowed="to show what it does")
    assert paths_on("test", splits) == paths_on("test", films)


def test_shared_patients_are_counted_by_number_and_by_full_key() -> None:
    train = [dataclasses.replace(film, split="train") for film in population(40, 2, 2)]
    assert shared_patients(train) is None
    test = [
        row(3, "pneumonia", split="test", patient="person3_bacteria"),
        row(3, "normal", split="test", patient="NORMAL2-IM-0003"),
        row(4, "normal", split="test", sha256="ab" * 32),
        row(99, "normal", split="test", patient=""),
    ]
    assert shared_patients([*train, *test]) == SharedPatients(by_number=3, by_full_key=1)


def test_the_reason_is_kept_beside_the_manifest_and_nowhere_else(tmp_path: Path) -> None:
    write_allowance(tmp_path / "split.csv", {"splits": {}}, "a published split")
    assert read_allowance(tmp_path / "split.csv") == "a published split"
    for elsewhere in ("other.csv", "split", "."):
        assert read_allowance(tmp_path / elsewhere) == ""
    (tmp_path / "split.json").write_text("[1]")
    assert read_allowance(tmp_path / "split.csv") == ""


@pytest.mark.slow
@pytest.mark.real_films
def test_on_the_published_films_no_two_patients_and_every_copy_lie_within_the_distance(
    real_films: Path, published_films: Sequence[Film]
) -> None:
    films = {Path(film.path).stem: film for film in published_films}
    hashes = {film.perceptual_hash for film in films.values() if film.is_accepted}
    assert len(hashes) == 5190
    assert near_pairs(hashes) == []
    originals = [film for film in clean(collect(real_films / "originals"), workers=1) if Path(film.path).stem in films]
    apart = [distance(film.perceptual_hash, films[Path(film.path).stem].perceptual_hash) for film in originals]
    assert len(apart) == 120
    assert max(apart) <= NEAR // 2
