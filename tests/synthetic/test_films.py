"""Drawn films: what they promise to the rest of the pipeline."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from sklearn.metrics import roc_auc_score

from chestxray.data.labels import parse_name, patient_group
from chestxray.errors import OutputExists, TruncatedFilm, UnsupportedFormat, UsageError
from chestxray.files import sha256_of_file
from chestxray.images.decode import decode
from chestxray.images.quality import objection_to
from chestxray.schema import Label, Verdict
from chestxray.synthetic.anatomy import random_anatomy
from chestxray.synthetic.films import (
    BACTERIA,
    FAULTS,
    HEALTHY,
    MILDEST,
    SYNTHETIC_FILMS_JSON,
    VIRUS,
    SyntheticFilm,
    SyntheticSettings,
    draw_film,
    plan_of,
    write_synthetic_films,
)

CAUSES = (HEALTHY, BACTERIA, VIRUS)
SMALL = SyntheticSettings(patients=30, films_per_patient=2, min_width=160, max_width=240, faults=True)

seeds = st.integers(min_value=0, max_value=2**32 - 1)


def draw(seed: int, cause: str, *, height: int = 150, width: int = 190) -> SyntheticFilm:
    rng = np.random.default_rng(seed)
    return draw_film(random_anatomy(rng), cause, rng, height=height, width=width, patient_id="person1_x")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("drawn") / "films"
    write_synthetic_films(path, SMALL)
    return path


@pytest.fixture(scope="module")
def described(folder: Path) -> dict[str, Any]:
    whole: dict[str, Any] = json.loads((folder / SYNTHETIC_FILMS_JSON).read_text())
    return whole


def file_with(described: dict[str, Any], fault: str) -> str:
    return next(path for path, row in described["faults"].items() if row["fault"] == fault)


# --------------------------------------------------------------------------- one film


@settings(max_examples=25)
@given(seed=seeds, cause=st.sampled_from(CAUSES), height=st.integers(96, 260), width=st.integers(96, 260))
def test_a_film_has_the_size_asked_for_and_uses_the_grey_scale(seed: int, cause: str, height: int, width: int) -> None:
    film = draw(seed, cause, height=height, width=width)
    assert film.pixels.shape == film.opacity.shape == film.lungs.shape == (height, width)
    assert film.pixels.dtype == np.uint8
    assert film.opacity.dtype == film.lungs.dtype == np.bool_
    assert np.percentile(film.pixels, 95) - np.percentile(film.pixels, 5) > 80
    assert 0.05 < film.lungs.mean() < 0.5


@settings(max_examples=25)
@given(seed=seeds, cause=st.sampled_from((BACTERIA, VIRUS)))
def test_opacities_lie_inside_the_lungs_and_their_boxes_fit_them(seed: int, cause: str) -> None:
    film = draw(seed, cause)
    assert film.label is Label.PNEUMONIA
    assert film.severity >= MILDEST
    assert film.opacity.any()
    assert not (film.opacity & ~film.lungs).any()
    covered = np.zeros_like(film.opacity)
    for box in film.boxes:
        inside = film.opacity[box.upper : box.lower, box.left : box.right]
        # A tight box: an opaque pixel on each of its four edges.
        assert inside[0].any()
        assert inside[-1].any()
        assert inside[:, 0].any()
        assert inside[:, -1].any()
        covered[box.upper : box.lower, box.left : box.right] = True
    assert not (film.opacity & ~covered).any()


def test_a_normal_film_has_no_opacity() -> None:
    film = draw(3, HEALTHY)
    assert film.label is Label.NORMAL
    assert film.severity == 0
    assert film.boxes == ()
    assert not film.opacity.any()


@settings(max_examples=15)
@given(seed=seeds, cause=st.sampled_from((BACTERIA, VIRUS)))
def test_an_opacity_is_brighter_than_the_same_place_on_the_healthy_film(seed: int, cause: str) -> None:
    # The same seed gives the same pose, so the lungs lie on the same pixels.
    sick, healthy = draw(seed, cause), draw(seed, HEALTHY)
    assert np.array_equal(sick.lungs, healthy.lungs)
    elsewhere = sick.lungs & ~sick.opacity
    gain = sick.pixels.astype(float) - healthy.pixels
    reference = gain[elsewhere].mean() if elsewhere.sum() > 50 else 0.0
    assert gain[sick.opacity].mean() > reference


def test_lungs_are_darker_than_the_heart_and_the_heart_lies_on_the_patients_left() -> None:
    films = [draw(seed, HEALTHY, height=200, width=220) for seed in range(20)]
    for film in films:
        rows = np.nonzero(film.lungs.any(axis=1))[0]
        assert film.pixels[film.lungs].mean() < film.pixels[rows[0] : rows[-1]][~film.lungs[rows[0] : rows[-1]]].mean()
    # Of the two lungs, the one on the film's right (the patient's left) gives way to the heart.
    shares = []
    for film in films:
        columns = np.nonzero(film.lungs.any(axis=0))[0]
        middle = (columns[0] + columns[-1]) // 2
        shares.append(film.lungs[:, :middle].sum() / film.lungs[:, middle:].sum())
    assert np.mean(shares) > 1.05


def test_films_of_one_patient_share_the_anatomy_but_not_the_pixels() -> None:
    anatomy = random_anatomy(np.random.default_rng(1))
    first, second = (
        draw_film(anatomy, HEALTHY, np.random.default_rng(seed), height=150, width=190).pixels for seed in (1, 2)
    )
    assert not np.array_equal(first, second)
    again = draw_film(anatomy, HEALTHY, np.random.default_rng(1), height=150, width=190).pixels
    assert np.array_equal(first, again)


def test_global_statistics_do_not_tell_the_classes_apart() -> None:
    labels, statistics = [], []
    for seed in range(240):
        cause = (HEALTHY, BACTERIA, HEALTHY, VIRUS)[seed % 4]
        pixels = draw(seed, cause).pixels.astype(float)
        labels.append(bool(cause))
        statistics.append([pixels.mean(), pixels.std(), *np.percentile(pixels, (5, 50, 95))])
    for column in np.transpose(statistics):
        area = roc_auc_score(labels, column)
        assert max(area, 1 - area) < 0.7


# --------------------------------------------------------------------------- the folder


def test_the_folder_has_the_published_layout(folder: Path, described: dict[str, Any]) -> None:
    found = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
    assert found == {*described["films"], SYNTHETIC_FILMS_JSON}
    assert {Path(name).parent.as_posix() for name in described["films"]} == {
        f"{split}/{label}" for split in ("train", "val", "test") for label in ("NORMAL", "PNEUMONIA")
    }
    assert "no patient" in described["notice"]
    assert described["settings"]["seed"] == SMALL.seed


def test_names_tell_what_the_film_is(described: dict[str, Any]) -> None:
    for name, row in described["films"].items():
        named = parse_name(Path(name).stem)
        assert named is not None
        assert (named.label, named.patient_id, named.cause) == (row["label"], row["patient_id"], row["cause"])
        assert Path(name).parent.name == str(row["label"]).upper()
    series = {str(row["patient_id"]).split("-")[0] for row in described["films"].values() if row["label"] == "normal"}
    assert series == {"IM", "NORMAL2"}


@settings(max_examples=30)
@given(seed=seeds, patients=st.integers(10, 120), films=st.integers(1, 5), prevalence=st.floats(0.42, 0.58))
def test_no_patient_stands_in_two_folders_not_even_by_bare_number(
    seed: int, patients: int, films: int, prevalence: float
) -> None:
    plan = plan_of(SyntheticSettings(patients, films, prevalence=prevalence, seed=seed, faults=True))
    assert len({film.path for film in plan}) == len(plan)
    numbers: dict[str, set[int]] = {}
    groups: dict[str, set[str]] = {}
    for film in plan:
        split = film.path.split("/")[0]
        numbers.setdefault(split, set()).add(int("".join(c for c in patient_group(film.patient_id) if c.isdigit())))
        groups.setdefault(split, set()).add(patient_group(film.patient_id))
    for one, other in (("train", "val"), ("train", "test"), ("val", "test")):
        assert not numbers[one] & numbers[other]
        assert not groups[one] & groups[other]


def test_the_usual_folder_has_sixteen_validation_films_and_a_sixth_for_the_test() -> None:
    plan = plan_of(SyntheticSettings())
    splits = [film.path.rsplit("/", 1)[0] for film in plan]
    assert splits.count("val/NORMAL") == splits.count("val/PNEUMONIA") == 8
    assert 540 <= len(plan) <= 660
    assert 0.14 < sum(split.startswith("test") for split in splits) / len(plan) < 0.21
    assert {film.stored for film in plan} == {"L", "RGB", "PNG"}


def test_sound_files_hold_films_that_nothing_speaks_against(folder: Path, described: dict[str, Any]) -> None:
    channels = set()
    for name in set(described["films"]) - set(described["faults"]):
        film = decode((folder / name).read_bytes(), name)
        assert objection_to(film) is None
        assert film.coloured == 0
        assert SMALL.min_width <= film.width <= SMALL.max_width
        channels.add(film.channels)
    assert channels == {1, 3}


def test_boxes_are_told_for_pneumonia_alone_and_lie_on_the_film(folder: Path, described: dict[str, Any]) -> None:
    for name in set(described["films"]) - set(described["faults"]):
        row = described["films"][name]
        assert bool(row["boxes"]) == (row["label"] == Label.PNEUMONIA) == (row["severity"] > 0)
        with Image.open(folder / name) as image:
            for left, upper, right, lower in row["boxes"]:
                assert 0 <= left < right <= image.width
                assert 0 <= upper < lower <= image.height


@pytest.mark.slow
def test_the_same_seed_draws_the_same_files_on_any_number_of_processes(tmp_path: Path) -> None:
    many = SyntheticSettings(patients=80, films_per_patient=2, min_width=128, max_width=160, faults=True)
    told: list[tuple[int, int]] = []
    alone = write_synthetic_films(tmp_path / "alone", many, lambda done, total: told.append((done, total)), workers=1)
    shared = write_synthetic_films(tmp_path / "shared", many, workers=2)
    assert told[-1] == (len(alone) - 2, len(alone) - 2)  # the two copies are not drawn
    for one, other in zip(alone, shared, strict=True):
        assert one.relative_to(tmp_path / "alone") == other.relative_to(tmp_path / "shared")
        assert one.read_bytes() == other.read_bytes()
    assert (tmp_path / "alone" / SYNTHETIC_FILMS_JSON).read_bytes() == (
        tmp_path / "shared" / SYNTHETIC_FILMS_JSON
    ).read_bytes()


def test_another_seed_draws_other_films(tmp_path: Path) -> None:
    few = SyntheticSettings(patients=10, films_per_patient=1, min_width=128, max_width=160)
    other = SyntheticSettings(patients=10, films_per_patient=1, min_width=128, max_width=160, seed=1)
    first = {sha256_of_file(path) for path in write_synthetic_films(tmp_path / "a", few)}
    second = {sha256_of_file(path) for path in write_synthetic_films(tmp_path / "b", other)}
    assert len(first) == len(second) == 10
    assert not first & second


def test_an_earlier_folder_is_replaced_and_a_strangers_is_not(tmp_path: Path) -> None:
    few = SyntheticSettings(patients=10, films_per_patient=1, min_width=128, max_width=160)
    mine, strangers = tmp_path / "mine", tmp_path / "strangers"
    write_synthetic_films(mine, few)
    (mine / "train" / "old.jpeg").write_bytes(b"")
    write_synthetic_films(mine, few)
    assert not (mine / "train" / "old.jpeg").exists()
    strangers.mkdir()
    (strangers / "thesis.txt").write_text("mine")
    with pytest.raises(OutputExists):
        write_synthetic_films(strangers, few)
    assert [path.name for path in strangers.iterdir()] == ["thesis.txt"]


# --------------------------------------------------------------------------- faults


def test_each_fault_is_there_once_and_in_the_training_folder(described: dict[str, Any]) -> None:
    assert sorted(row["fault"] for row in described["faults"].values()) == sorted([*FAULTS, "duplicate", "two_labels"])
    assert all(path.startswith("train/") for path in described["faults"])


@pytest.mark.parametrize(
    ("fault", "error", "fact"),
    [
        ("truncated", TruncatedFilm, "ends before its picture does"),
        ("empty", UnsupportedFormat, "the file is empty"),
        ("text", UnsupportedFormat, "not a DICOM, JPEG, PNG, TIFF, "),
    ],
)
def test_a_file_that_is_no_film_cannot_be_decoded(
    folder: Path, described: dict[str, Any], fault: str, error: type[Exception], fact: str
) -> None:
    name = file_with(described, fault)
    with pytest.raises(error, match=fact):
        decode((folder / name).read_bytes(), name)


@pytest.mark.parametrize(
    ("fault", "verdict"),
    [("coloured", Verdict.COLOURED), ("blank", Verdict.BLANK), ("tiny", Verdict.TOO_SMALL)],
)
def test_a_film_with_a_fault_is_objected_to(
    folder: Path, described: dict[str, Any], fault: str, verdict: Verdict
) -> None:
    name = file_with(described, fault)
    objection = objection_to(decode((folder / name).read_bytes(), name))
    assert objection is not None
    assert objection.verdict is verdict


@pytest.mark.parametrize("fault", ["duplicate", "two_labels"])
def test_a_copy_repeats_another_training_films_bytes(folder: Path, described: dict[str, Any], fault: str) -> None:
    name = file_with(described, fault)
    original = described["faults"][name]["copy_of"]
    assert name != original
    assert (folder / name).read_bytes() == (folder / original).read_bytes()
    labels = {described["films"][path]["label"] for path in (name, original)}
    assert len(labels) == (1 if fault == "duplicate" else 2)


def test_without_faults_no_two_files_are_equal(tmp_path: Path) -> None:
    sound = SyntheticSettings(patients=20, films_per_patient=2, min_width=128, max_width=160)
    paths = write_synthetic_films(tmp_path / "films", sound)
    assert json.loads((tmp_path / "films" / SYNTHETIC_FILMS_JSON).read_text())["faults"] == {}
    assert len({sha256_of_file(path) for path in paths}) == len(paths)


# --------------------------------------------------------------------------- settings


@pytest.mark.parametrize(
    ("wrong", "fact"),
    [
        ({"patients": 7}, "each class needs at least 4"),
        ({"prevalence": 0.0}, "between 0 and 1"),
        ({"prevalence": 1.5}, "between 0 and 1"),
        ({"patients": 40, "prevalence": 0.95}, "each class needs at least 4"),
        ({"films_per_patient": 0}, "may be 1 to 99"),
        ({"min_width": 300, "max_width": 200}, "must rise"),
        ({"max_width": 5000}, "must rise"),
        ({"seed": -1}, "0 or more"),
    ],
)
def test_settings_that_make_no_sense_are_refused(wrong: dict[str, Any], fact: str) -> None:
    with pytest.raises(UsageError, match=fact):
        SyntheticSettings(**wrong)
