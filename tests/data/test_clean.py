"""From rows to verdicts: what is kept, what is not, and why."""

from __future__ import annotations

import dataclasses
import hashlib
import html
import json
import os
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from sklearn.metrics import roc_auc_score

from chestxray.data.clean import clean, describe, quarantine
from chestxray.data.collect import collect
from chestxray.data.parallel import map_in_order
from chestxray.data.report import summarise, write_data_report
from chestxray.data.split import refuse_leakage
from chestxray.errors import Leakage, OutputExists
from chestxray.schema import Film, Verdict, read_manifest
from drawing import encoded, textured, write_film
from rows import row


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


# --------------------------------------------------------------------------- on many cores


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


# --------------------------------------------------------------------------- the same film in another file


def another_copy(path: Path, seed: int) -> Path:
    """The film of that seed, smaller, darker and recompressed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(encoded((textured(seed, 80, 80) * 0.9).astype(np.uint8), "JPEG", quality=60))
    return path


def verdicts(films: Sequence[Film]) -> dict[str, str]:
    return {Path(film.path).name: film.verdict for film in films}


def test_a_recompressed_copy_is_a_near_duplicate_and_the_first_row_is_kept(tmp_path: Path) -> None:
    for seed in range(4):
        write_film(tmp_path / f"NORMAL/{seed}.png", seed)
    another_copy(tmp_path / "NORMAL/9-copy-of-2.jpeg", 2)
    films = clean(collect(tmp_path))
    expected = dict.fromkeys((f"{seed}.png" for seed in range(4)), "accepted") | {"9-copy-of-2.jpeg": "near_duplicate"}
    assert verdicts(films) == expected
    assert films[-1].reason == "nearly the same film as 2.png"


def test_nearly_the_same_film_under_two_labels_conflicts_whichever_side_it_stands_on(tmp_path: Path) -> None:
    write_film(tmp_path / "train/NORMAL/a.png", 1)
    another_copy(tmp_path / "test/PNEUMONIA/b.jpeg", 1)
    write_film(tmp_path / "test/PNEUMONIA/c.png", 2)
    films = clean(collect(tmp_path))
    assert verdicts(films) == {"a.png": "conflicting", "b.jpeg": "conflicting", "c.png": "accepted"}
    assert "a.png, which has the other label" in next(f.reason for f in films if f.path.endswith("b.jpeg"))


def test_nearly_the_same_film_on_two_sides_is_left_to_the_gate(tmp_path: Path) -> None:
    write_film(tmp_path / "train/NORMAL/a.png", 1)
    another_copy(tmp_path / "test/NORMAL/b.jpeg", 1)
    films = clean(collect(tmp_path))
    assert verdicts(films) == {"a.png": "accepted", "b.jpeg": "accepted"}
    with pytest.raises(Leakage, match=r"nearly the same film \(train/a.png and test/b.jpeg\)"):
        refuse_leakage(films)


def test_the_mean_level_is_that_of_the_pixels(tmp_path: Path) -> None:
    path = write_film(tmp_path / "NORMAL/a.png", 1)
    sixteen = tmp_path / "NORMAL/b.png"
    sixteen.write_bytes(encoded(textured(2).astype(np.uint16) * 257))
    films = clean(collect(tmp_path))
    assert films[0].mean_level == pytest.approx(np.asarray(Image.open(path)).mean() / 255, abs=1e-4)
    assert films[1].mean_level == pytest.approx(textured(2).mean() / 255, abs=1e-4)


# --------------------------------------------------------------------------- a second time


def test_a_second_cleaning_opens_only_what_changed(tmp_path: Path) -> None:
    source, seen = folder_of_faults(tmp_path / "films"), tmp_path / ".clean.csv.seen"
    films = collect(source)
    first = clean(films, seen=seen)
    assert first == clean(films)
    for film in films:  # other bytes of the same size and time: whoever opens them notices
        path = Path(film.path)
        before = path.stat()
        path.write_bytes(b"\0" * before.st_size)
        os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert clean(films, seen=seen) == first
    changed = Path(films[0].path)
    changed.write_bytes(encoded(textured(77)))
    assert clean(films, seen=seen)[0].sha256 == hashlib.sha256(changed.read_bytes()).hexdigest()


def test_an_interrupted_cleaning_goes_on_where_it_stood(tmp_path: Path) -> None:
    source, seen = folder_of_faults(tmp_path / "films"), tmp_path / "seen"
    films = collect(source)
    whole = clean(films, seen=seen)
    lines = seen.read_text().splitlines(keepends=True)
    seen.write_text("".join(lines[:6]) + lines[6][:20])
    steps: list[tuple[int, int]] = []
    assert clean(films, lambda done, total: steps.append((done, total)), seen=seen) == whole
    assert steps[0] == (5, len(films))
    assert steps[-1] == (len(films), len(films))
    assert len(seen.read_text().splitlines()) == len(films) + 1


def test_what_another_version_found_is_found_anew(tmp_path: Path) -> None:
    films, seen = collect(folder_of_faults(tmp_path / "films")), tmp_path / "seen"
    whole = clean(films, seen=seen)
    lines = seen.read_text().replace("accepted", "blank").splitlines(keepends=True)
    seen.write_text("".join(lines))
    assert "accepted" not in {film.verdict for film in clean(films, seen=seen)}
    seen.write_text("".join(['{"version": 0}\n', *lines[1:]]))
    assert clean(films, seen=seen) == whole


# --------------------------------------------------------------------------- quarantine and report


def test_quarantine_holds_a_copy_of_every_rejected_film_and_the_originals_stay(tmp_path: Path) -> None:
    root = folder_of_faults(tmp_path / "films")
    before = {path: path.read_bytes() for path in root.rglob("*") if path.is_file()}
    films = clean([*collect(root), Film(str(root / "gone.png"), label="normal")])
    rejected = [film for film in films if not film.is_accepted]
    assert quarantine(films, tmp_path / "quarantine") == len(rejected) - 1
    copies = [path for path in (tmp_path / "quarantine").rglob("*") if path.is_file() and path.suffix != ".csv"]
    assert len(copies) == len(rejected) - 1
    for film in rejected[:-1]:
        (copy,) = (
            path
            for path in copies
            if path.name.endswith(f"-{Path(film.path).name}")
            and path.parent.name == film.verdict
            and path.read_bytes() == before[Path(film.path)]
            and path.name[:8] == hashlib.sha256(film.path.encode()).hexdigest()[:8]
        )
        assert copy.is_file()
    assert read_manifest(tmp_path / "quarantine/quarantine.csv") == tuple(rejected)
    assert {path: path.read_bytes() for path in root.rglob("*") if path.is_file()} == before
    with pytest.raises(OutputExists):
        quarantine(films, root)


def test_the_report_shows_each_verdict_the_copies_and_the_shortcuts(tmp_path: Path) -> None:
    root = folder_of_faults(tmp_path / "films")
    another_copy(root / "train/NORMAL/again.jpeg", 2)
    films = clean(collect(root))
    report = write_data_report(films, tmp_path / "report", "Films & faults")
    page = (tmp_path / "report/index.html").read_text()
    assert "<title>Films &amp; faults</title>" in page
    for film in films:
        assert film.verdict.replace("_", " ").capitalize() in page
        assert html.escape(film.reason, quote=True).replace("&#x27;", "&#39;").replace("&quot;", "&#34;") in page
    assert "http" not in page.replace("http-equiv", "")
    document = json.loads((tmp_path / "report/data.json").read_text())
    assert document["distribution"]["accepted"] == report.distribution.accepted == 4
    assert [shortcut["name"] for shortcut in document["shortcuts"]] == ["width", "height", "aspect", "mean_level"]


def test_the_property_that_tells_the_classes_apart_best_is_the_risk() -> None:
    heights = {"normal": 1200, "pneumonia": 700}
    films = [
        dataclasses.replace(row(number, label), height=heights[label] + number, width=900 + number, mean_level=0.5)
        for label in heights
        for number in range(12)
    ]
    assert summarise(films).risk == "height alone separates the classes with an AUROC of 1.00"
    assert summarise(films[:12]).risk == ""
    assert summarise([dataclasses.replace(film, height=700) for film in films]).risk == ""


@settings(max_examples=40)
@given(st.lists(st.tuples(st.booleans(), st.integers(64, 70), st.integers(64, 90)), min_size=1, max_size=40))
def test_the_pull_of_a_shortcut_is_the_auroc_of_the_property_alone(rows: list[tuple[bool, int, int]]) -> None:
    films = [
        Film(f"/{n}.png", label="pneumonia" if sick else "normal", width=width, height=height, verdict="accepted")
        for n, (sick, width, height) in enumerate(rows)
    ]
    labels = [film.label == "pneumonia" for film in films]
    for shortcut in summarise(films).shortcuts:
        assert sum(sum(shares) for shares in shortcut.shares.values()) == pytest.approx(len(set(labels)), abs=0.01)
        if len(set(labels)) < 2:
            assert shortcut.auroc is None
        else:
            values = {
                "width": lambda f: f.width,
                "height": lambda f: f.height,
                "aspect": lambda f: f.width / f.height,
                "mean_level": lambda f: f.mean_level,
            }[shortcut.name]
            area = roc_auc_score(labels, [values(film) for film in films])
            assert shortcut.auroc == pytest.approx(max(area, 1 - area), abs=1e-4)


@pytest.mark.real_films
def test_the_published_films_hold_26_copies_and_nothing_else_is_lost(published_films: Sequence[Film]) -> None:
    films = published_films
    assert len(films) == 5216
    assert Counter(film.verdict for film in films) == {"accepted": 5190, "duplicate": 26}
    copies = Counter(film.sha256 for film in films)
    assert sum(count > 1 for count in copies.values()) == 24
    assert {film.channels for film in films} == {3}  # greyscale in three equal channels, and none of them rejected
    assert Counter(film.label for film in films) == {"normal": 1341, "pneumonia": 3875}


def test_a_dicom_file_gives_its_patient_where_the_source_names_none(tmp_path: Path) -> None:
    pydicom = pytest.importorskip("pydicom")
    for name, patient in (("a", "P-17"), ("person5_virus_1", "P-18")):
        dataset = pydicom.Dataset()
        dataset.PatientID = patient
        dataset.Rows = dataset.Columns = 96
        dataset.SamplesPerPixel, dataset.PhotometricInterpretation = 1, "MONOCHROME2"
        dataset.BitsAllocated = dataset.BitsStored = 8
        dataset.HighBit, dataset.PixelRepresentation = 7, 0
        dataset.PixelData = textured(len(name)).tobytes()
        dataset.SOPClassUID = pydicom.uid.DigitalXRayImageStorageForPresentation
        dataset.SOPInstanceUID = pydicom.uid.generate_uid()
        dataset.file_meta = pydicom.dataset.FileMetaDataset()
        dataset.file_meta.TransferSyntaxUID = pydicom.uid.ExplicitVRLittleEndian
        path = tmp_path / "PNEUMONIA" / (name if name == "a" else f"{name}.dcm")
        path.parent.mkdir(exist_ok=True)
        dataset.save_as(path, enforce_file_format=True)
    films = clean(collect(tmp_path), seen=tmp_path / "seen")
    assert [(film.patient_id, film.verdict) for film in films] == [("P-17", "accepted"), ("person5_virus", "accepted")]
    assert clean(collect(tmp_path), seen=tmp_path / "seen") == films
