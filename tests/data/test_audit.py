"""What the audit finds where a shortcut was planted, and what it leaves in peace where there is none."""

from __future__ import annotations

import dataclasses
import io
import json
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageDraw, ImageFont
from sklearn.metrics import roc_auc_score

import chestxray
from chestxray.cli import main
from chestxray.data.audit import Audit, audit, overlap
from chestxray.data.report import write_audit
from chestxray.data.shortcuts import (
    BORDER_PIXELS,
    PICTURE_GROUPS,
    SQUARE_SIDE,
    Features,
    film_features,
    folds_of,
    out_of_fold,
    overlap_weights,
)
from chestxray.errors import OutputExists, SourceInvalid
from chestxray.schema import Film, Label, write_manifest

FILMS = 120  # of each class; each of a patient of its own

Plant = Callable[[Image.Image], Image.Image]


def chest(rng: np.random.Generator, label: Label) -> Image.Image:
    """Something like a chest; with pneumonia, a bright patch well inside. Nothing else depends on the class."""
    y, x = np.mgrid[-1:1:200j, -1:1:220j]
    plane = 150 * np.exp(-((x / 0.8) ** 4)) - 60 * np.exp(-(((np.abs(x) - 0.35) / 0.25) ** 2) - (y / 0.6) ** 4)
    if label is Label.PNEUMONIA:
        plane += 60 * np.exp(-(((x - rng.choice([-0.35, 0.35])) / 0.15) ** 2) - ((y - 0.1) / 0.2) ** 2)
    plane = plane * rng.uniform(0.8, 1.1) + rng.uniform(10, 40) + rng.normal(0, 4, plane.shape)
    return Image.fromarray(plane.clip(0, 255).astype(np.uint8))


def no_shortcut(film: Image.Image) -> Image.Image:
    return film


def corner_mark(film: Image.Image) -> Image.Image:
    marked = film.copy()
    place = (0.88 * film.width, 0.9 * film.height)
    ImageDraw.Draw(marked).text(place, "KV", fill=255, font=ImageFont.load_default(size=14))
    return marked


def grey_level(film: Image.Image) -> Image.Image:
    return film.point(lambda level: round(40 + 0.6 * level))


def frame(film: Image.Image) -> Image.Image:
    framed = Image.new("L", film.size, 0)
    framed.paste(film.crop((16, 0, film.width - 16, film.height)), (16, 0))
    return framed


PLANTS: dict[str, tuple[Plant, str]] = {
    "marks": (corner_mark, "marks"),
    "grey": (grey_level, "grey"),
    "frame": (frame, "frame"),
}


def films_with(folder: Path, plant: Plant, **columns: Sequence[str]) -> tuple[Film, ...]:
    """Films of both classes; those with pneumonia went through ``plant``."""
    folder.mkdir()
    films = []
    for number in range(2 * FILMS):
        label = tuple(Label)[number % 2]
        film = chest(np.random.default_rng(number), label)
        path = folder / f"{number}.png"
        (plant(film) if label is Label.PNEUMONIA else film).save(path)
        extra = tuple((name, values[number]) for name, values in columns.items())
        films.append(Film(str(path), label=label.value, patient_id=f"p{number}", extra=extra))
    return tuple(films)


@pytest.fixture(scope="module")
def clean_films(tmp_path_factory: pytest.TempPathFactory) -> tuple[Film, ...]:
    return films_with(tmp_path_factory.mktemp("audit") / "films", no_shortcut)


@pytest.fixture(scope="module")
def clean_audit(clean_films: tuple[Film, ...]) -> Audit:
    return audit(clean_films, workers=1)


@pytest.fixture(scope="module")
def marked(tmp_path_factory: pytest.TempPathFactory) -> tuple[tuple[Film, ...], Audit]:
    films = films_with(tmp_path_factory.mktemp("marked") / "films", corner_mark)
    return films, audit(films, workers=1)


# --------------------------------------------------------------------------- the check of the check


def test_films_without_a_shortcut_give_no_alarm(clean_audit: Audit) -> None:
    assert clean_audit.alarms == ()
    assert clean_audit.risks == ()
    assert clean_audit.words[0].startswith("No shortcut was found")
    assert clean_audit.exceeds(0.8) == ()


@pytest.mark.parametrize("name", ["marks", *(pytest.param(name, marks=pytest.mark.slow) for name in ("grey", "frame"))])
def test_a_planted_shortcut_is_named(name: str, marked: tuple[tuple[Film, ...], Audit], tmp_path: Path) -> None:
    plant, group = PLANTS[name]
    found = marked[1] if plant is corner_mark else audit(films_with(tmp_path / "films", plant), workers=1)
    assert group in {alarm.name for alarm in found.alarms}
    (row,) = (row for row in found.separability if row.name == group)
    assert row.measure.value is not None
    assert row.measure.value > 0.95
    assert "right for the wrong reason" in found.words[0]


def test_a_mark_that_one_class_alone_has_makes_a_group_at_risk_with_a_remedy(
    marked: tuple[tuple[Film, ...], Audit],
) -> None:
    (group, *_) = [group for group in marked[1].risks if group.kind == "marks"]
    assert (group.normal, group.title) == (0, "marks lower right")
    assert "0 are normal" in group.risk
    assert "cover the marks of all films alike" in group.risk
    assert any(group.risk in line for line in marked[1].words)


def test_a_lung_that_differs_changes_no_feature() -> None:
    rng = np.random.default_rng(0)
    one = rng.integers(0, 256, (SQUARE_SIDE, SQUARE_SIDE), dtype=np.uint8)
    other = one.copy()
    other[BORDER_PIXELS:-BORDER_PIXELS, BORDER_PIXELS:-BORDER_PIXELS] = 7
    for name in ("frame", "grey"):
        assert np.array_equal(PICTURE_GROUPS[name](one), PICTURE_GROUPS[name](other)), name


# --------------------------------------------------------------------------- columns, files, splits


@pytest.mark.slow
def test_a_column_of_the_manifest_that_tells_the_class_is_named_and_one_that_names_films_left_out(
    clean_films: tuple[Film, ...],
) -> None:
    films = [
        dataclasses.replace(
            film,
            extra=(
                ("accession", f"A{row}"),
                ("scanner", "old" if film.label == "normal" else "new"),
                ("ward", "east" if row % 3 else "west"),
            ),
        )
        for row, film in enumerate(clean_films)
    ]
    found = audit(films, workers=1)
    assert [group.name for group in found.alarms] == ["column scanner"]
    assert found.columns_left_out == ("accession",)
    assert {(group.kind, group.normal, group.pneumonia) for group in found.risks} == {
        ("scanner", FILMS, 0),
        ("scanner", 0, FILMS),
    }


@pytest.mark.slow
def test_splits_taken_differently_are_told_even_where_each_has_its_own_mix_of_classes(tmp_path: Path) -> None:
    films = films_with(tmp_path / "films", no_shortcut)
    rng = np.random.default_rng(3)
    mixed = [
        dataclasses.replace(film, split="test" if rng.random() < (0.2, 0.6)[film.label == "normal"] else "train")
        for film in films
    ]
    (alike,) = audit(mixed, workers=1).splits
    assert not alike.separability[0].is_alarm
    for film in mixed:
        if film.split == "test":
            corner_mark(Image.open(film.path)).save(film.path)
    (different,) = audit(mixed, workers=1).splits
    assert different.separability[0].is_alarm
    assert next(group for group in different.separability if group.name == "marks").is_alarm


def test_jpeg_quality_of_one_class_shows_in_the_files_metadata() -> None:
    film = chest(np.random.default_rng(0), Label.NORMAL)
    found = []
    for quality in (60, 95):
        out = io.BytesIO()
        film.save(out, "JPEG", quality=quality)
        found.append(film_features(out.getvalue(), "film.jpeg"))
    assert found[0].texts["tables"] != found[1].texts["tables"]
    assert found[0].numbers["file"][2] > found[1].numbers["file"][2]


# --------------------------------------------------------------------------- refusals


def test_films_that_cannot_be_used_are_counted_and_none_at_all_is_an_error(
    clean_films: tuple[Film, ...], tmp_path: Path
) -> None:
    (tmp_path / "letter.png").write_text("Dear colleague")
    more = (Film(str(tmp_path / "letter.png"), label="normal"), Film(str(tmp_path / "no-label.png")))
    found = audit([*clean_films[:8], *more], workers=1)
    assert (found.unlabelled, [name for name, _ in found.skipped]) == (1, ["letter.png"])
    assert "10 are needed" in found.words[0]
    assert found.alarms == ()
    with pytest.raises(SourceInvalid, match="has a label"):
        audit([more[1]], workers=1)
    with pytest.raises(SourceInvalid, match=r"none of the 1 labelled films can be read; the first: letter\.png"):
        audit([more[0]], workers=1)


def test_one_class_alone_gives_no_figure_and_no_alarm(clean_films: tuple[Film, ...]) -> None:
    found = audit([film for film in clean_films if film.label == "normal"][:45], workers=1)
    assert all(group.measure.value is None for group in found.separability)
    assert (found.alarms, found.risks) == ((), ())


# --------------------------------------------------------------------------- out of fold


@pytest.mark.parametrize("films", [24, 40, 120])
def test_a_column_that_gives_the_class_away_is_seen_in_few_films_as_well(films: int) -> None:
    labels = np.arange(films) % 2 == 0
    patients = np.arange(films)
    of_unit = Features(np.empty((films, 0)), (tuple(np.where(labels, "unit A", "unit B")),))
    of_age = Features(np.where(labels, 3.0, 12.0)[:, None] + np.arange(films)[:, None] % 3)
    for features in (of_unit, of_age):
        assert roc_auc_score(labels, out_of_fold(features, labels, folds_of(labels, patients))) > 0.95
    noise = Features(np.random.default_rng(3).normal(size=(films, 1)))
    assert 0.2 < roc_auc_score(labels, out_of_fold(noise, labels, folds_of(labels, patients))) < 0.8


def test_no_patient_is_scored_by_trees_that_saw_it() -> None:
    rng = np.random.default_rng(0)
    patients = np.repeat(np.arange(100), 4)
    labels = (rng.random(100) < 0.5)[patients]
    fold = folds_of(labels, patients)
    assert all(len(set(fold[patients == patient])) == 1 for patient in range(100))
    assert np.bincount(fold[labels]).max() - np.bincount(fold[labels]).min() <= 4
    named = Features(rng.normal(size=100)[patients][:, None])  # tells the patient, hence the label of a seen one
    assert roc_auc_score(labels, out_of_fold(named, labels, fold)) < 0.65


# --------------------------------------------------------------------------- overlap


@pytest.mark.slow
def test_a_model_that_follows_the_shortcut_loses_where_the_classes_overlap(tmp_path: Path) -> None:
    """Nine tenths of the pneumonia films and one tenth of the normal ones carry a mark, which one model follows."""
    rng = np.random.default_rng(1)
    films = films_with(tmp_path / "films", no_shortcut)
    has_mark = {film.path: rng.random() < (0.1, 0.9)[film.label == "pneumonia"] for film in films}
    for film in films:
        if has_mark[film.path]:
            corner_mark(Image.open(film.path)).save(film.path)
    found = audit(films, workers=1)
    noise = rng.normal(0, 0.05, len(films))
    follower = {film.path: 0.5 * has_mark[film.path] + e + 0.25 for film, e in zip(films, noise, strict=True)}
    honest = {film.path: 0.5 * (film.label == "pneumonia") + e + 0.25 for film, e in zip(films, noise, strict=True)}
    led, free = overlap(found, follower), overlap(found, honest)
    assert (led.plain.value or 0) > 0.85
    assert (led.weighted.value or 1) < 0.7
    assert (free.weighted.value or 0) > 0.99
    assert led.weighted.value == pytest.approx(
        roc_auc_score(
            found.labels,
            [follower[path] for path in found.paths],
            sample_weight=overlap_weights(found.labels, found.probabilities),
        )
    )
    assert all(count < FILMS for count in led.effective.values())


def test_scores_of_other_films_are_refused(clean_audit: Audit) -> None:
    with pytest.raises(SourceInvalid, match="by the same paths"):
        overlap(clean_audit, {"/elsewhere/1.png": 0.5})


# --------------------------------------------------------------------------- the folder and the verb


def test_the_page_says_what_the_audit_says_and_shows_the_groups(
    marked: tuple[tuple[Film, ...], Audit], tmp_path: Path
) -> None:
    write_audit(marked[1], tmp_path / "audit", "Films")
    page = (tmp_path / "audit" / "index.html").read_text()
    assert "Burnt-in text and markers" in page
    assert page.count("data:image/jpeg") >= 12
    assert "http://" not in page.replace("http://www.w3.org", "")
    document = json.loads((tmp_path / "audit" / "audit.json").read_text())
    assert document["words"][0] == marked[1].words[0]
    rows = (tmp_path / "audit" / "films.csv").read_text().splitlines()
    assert len(rows) == 2 * FILMS + 1
    assert rows[0].startswith("path,label,without_lungs,group by")
    write_audit(marked[1], tmp_path / "audit", "Films")  # an earlier audit is replaced
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("mine")
    with pytest.raises(OutputExists):
        write_audit(marked[1], tmp_path / "mine", "Films")


@pytest.mark.slow
def test_the_verb_exits_with_0_unless_a_limit_is_passed(
    marked: tuple[tuple[Film, ...], Audit],
    clean_films: tuple[Film, ...],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    write_manifest(marked[0], tmp_path / "marked.csv")
    write_manifest(clean_films, tmp_path / "clean.csv")

    def status(*arguments: str) -> object:
        with pytest.raises(SystemExit) as end:
            main(["audit", *arguments, "--workers", "1"])
        return end.value.code

    assert not status(str(tmp_path / "marked.csv"))
    shown = capsys.readouterr().out
    assert shown.startswith(marked[1].words[0])
    assert status(str(tmp_path / "marked.csv"), "--fail-above", "0.8", "--json") == 1
    assert "marks" in json.loads(capsys.readouterr().out)["above"]
    assert not status(str(tmp_path / "clean.csv"), "--fail-above", "0.8")


def test_the_function_is_the_verb(marked: tuple[tuple[Film, ...], Audit]) -> None:
    assert chestxray.audit is audit


def test_without_scikit_learn_the_extra_is_named_before_a_film_is_opened(tmp_path: Path) -> None:
    write_manifest([Film(str(tmp_path / "gone.png"), label="normal")], tmp_path / "films.csv")
    code = (
        "import sys; sys.modules['sklearn'] = None\n"
        "from chestxray.cli import main\n"
        f"main(['audit', {str(tmp_path / 'films.csv')!r}])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (
        2,
        'MissingExtra: Auditing films needs an extra. Install it with: pip install "chestxray[report]"\n',
    )
