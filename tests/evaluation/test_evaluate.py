"""evaluate and calibrate, from the command line to the files: any model's table, two models, local calibration."""

from __future__ import annotations

import csv
import dataclasses
import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from chestxray.cli import main
from chestxray.evaluation import model_card
from chestxray.evaluation.assessment import RefusedFilm
from chestxray.evaluation.evaluate import refusals
from chestxray.inference.bundle import Bundle, write_bundle
from chestxray.metrics.calibration import Calibration, calibrated, choose_operating_points, fit_calibration
from chestxray.metrics.comparison import ORIGINAL
from chestxray.metrics.scores import read_scores, write_scores
from chestxray.schema import Film, read_manifest, write_manifest
from scored import scored

Outcome = tuple[int, Any, str]
Run = Callable[..., Outcome]


@pytest.fixture
def chestxray(capsys: pytest.CaptureFixture[str]) -> Run:
    """Run a verb in this process with --json: exit status, document, standard error."""

    def run(*arguments: object) -> Outcome:
        with pytest.raises(SystemExit) as end:
            main([*(str(argument) for argument in arguments), "--json"])
        out, err = capsys.readouterr()
        return int(end.value.code or 0), json.loads(out), err

    return run


@pytest.fixture
def table(tmp_path: Path) -> Path:
    path = tmp_path / "scores.csv"
    write_scores(scored(films=120), path)
    return path


@pytest.fixture(scope="module")
def local_films(synthetic_rows: Sequence[Film], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A manifest of one split alone: nothing of it leaks."""
    path = tmp_path_factory.mktemp("films") / "local.csv"
    write_manifest([film for film in synthetic_rows if film.split == "test"], path)
    return path


def report_of(folder: Path) -> Any:
    return json.loads((folder / "report.json").read_text())


# --------------------------------------------------------------------------- a table of scores


def test_any_models_table_is_evaluated_without_bundle_and_films(chestxray: Run, table: Path, tmp_path: Path) -> None:
    status, document, _ = chestxray("evaluate", "--scores", table, "--out", tmp_path / "report", "--threshold", 0.4)
    assert status == 0
    found = document["assessment"]
    assert (found["films"], found["default"], found["conformal"]) == (120, "given", None)
    assert found["points"][0]["point"]["threshold"] == 0.4
    page = (tmp_path / "report" / "index.html").read_text()
    assert "whether the model was trained on these films was not checked" in page


def test_refused_films_of_batch_stand_in_the_cohort_flow(
    chestxray: Run, bundle: Path, synthetic_films: Path, tmp_path: Path
) -> None:
    scores = tmp_path / "scores.csv"
    chestxray("batch", synthetic_films / "test", "--out", scores, "--bundle", bundle, "--workers", 1)
    rows = list(csv.DictReader(scores.read_text().splitlines()))
    for row in rows[:3]:
        row.update(score="", reason="almost uniform")
    with scores.open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)
    status, document, _ = chestxray("evaluate", "--scores", scores, "--out", tmp_path / "report")
    assert status == 0
    steps = report_of(tmp_path / "report")["provenance"]["cohort"]
    refused = sum(not row["score"] for row in rows if row["label"])
    assert (steps[0]["step"], steps[0]["count"]) == ("rows in the file", len(rows))
    assert ("not scored", refused) in [(step["step"], step["count"]) for step in steps]
    assert steps[-1]["count"] == document["assessment"]["films"] == len(rows) - sum(s["count"] for s in steps[1:-1])
    assert "almost uniform" in (tmp_path / "report" / "index.html").read_text()


def test_refusals_count_where_they_stand() -> None:
    films = [
        Film("a", label="normal", split="test", verdict="blank", reason="uniform"),
        Film("b", label="normal", split="train", verdict="unreadable"),
        Film("c", label="pneumonia", split="", verdict="truncated"),
        Film("d", label="pneumonia", split="test", verdict="duplicate"),
        Film("e", label="", split="test", verdict="blank"),
    ]
    assert refusals(films, (), "test") == (RefusedFilm("a", "normal", "uniform"),)
    assert [film.path for film in refusals(films, (), None)] == ["a", "b", "c"]


def test_a_table_whose_sides_share_a_patient_is_leakage(chestxray: Run, tmp_path: Path) -> None:
    path = tmp_path / "scores.csv"
    path.write_text("path,label,score,patient_id,split\na,1,0.5,p1,train\nb,0,0.5,p1,test\nc,1,0.5,p2,test\n")
    status, document, _ = chestxray("evaluate", "--scores", path, "--out", tmp_path / "report")
    assert (status, document["error"]["type"]) == (1, "Leakage")
    assert not (tmp_path / "report").exists()


def test_two_tables_are_compared_on_the_same_films(chestxray: Run, table: Path, tmp_path: Path) -> None:
    other = tmp_path / "other.csv"
    lines = table.read_text().splitlines()
    other.write_text("\n".join([lines[0], *reversed(lines[11:])]) + "\n")
    status, document, _ = chestxray("evaluate", "--scores", table, "--against", other, "--out", tmp_path / "report")
    assert status == 0
    found = document["assessment"]["comparison"]
    assert (found["paired"], found["films"]) == (True, 110)
    assert {difference["value"] for difference in found["differences"]} == {0.0}
    page = (tmp_path / "report" / "index.html").read_text()
    assert "10 films that this model scored have no score of the other" in page
    assert "Mid-p" in page


def test_the_published_counts_stand_beside_a_model_when_asked(chestxray: Run, table: Path, tmp_path: Path) -> None:
    report = tmp_path / "report"
    status, document, _ = chestxray("evaluate", "--scores", table, "--against", "original", "--out", report)
    assert status == 0
    found = document["assessment"]["comparison"]
    assert found["paired"] is False
    theirs = {difference["name"]: difference["theirs"] for difference in found["differences"]}
    assert theirs["precision"] == ORIGINAL.confusion.precision
    assert "this comparison is unpaired" in (report / "index.html").read_text()


def test_wrong_combinations_are_refused_with_what_to_give_instead(
    chestxray: Run, table: Path, bundle: Path, local_films: Path, tmp_path: Path
) -> None:
    out = ("--out", tmp_path / "report")
    cases: list[tuple[str, Sequence[object]]] = [
        ("give BUNDLE and SOURCE, or --scores", ("evaluate", *out)),
        ("give BUNDLE and SOURCE, or --scores", ("evaluate", bundle, *out)),
        ("Give either", ("evaluate", bundle, local_films, "--scores", table, *out)),
        ("a bundle evaluates films", ("evaluate", "--scores", table, "--against", bundle, *out)),
        ("a bundle evaluates films", ("evaluate", "--scores", table, "--against", "pneumonia", *out)),
        ("does not exist", ("evaluate", "--scores", table, "--against", tmp_path / "gone", *out)),
        ("--conformal needs", ("evaluate", "--scores", table, "--conformal", 0.1, *out)),
        ("--threshold is for", ("evaluate", bundle, local_films, "--threshold", 0.3, *out)),
        ("is the bundle itself", ("calibrate", bundle, local_films, "--out", bundle)),
    ]
    for complaint, arguments in cases:
        status, document, _ = chestxray(*arguments)
        assert (status, document["error"]["type"]) == (2, "UsageError"), document
        assert complaint in document["error"]["message"]
    assert not (tmp_path / "report").exists()


# --------------------------------------------------------------------------- sources that need words


@pytest.fixture(scope="module")
def wards(local_films: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same films in folders of other names, with the patient in the file's name, and a table of other columns."""
    folder = tmp_path_factory.mktemp("wards")
    lines = ["Scan;Dx;Who"]
    for number, film in enumerate(read_manifest(local_films)):
        place = folder / ("sick" if film.label == "pneumonia" else "well")
        place.mkdir(exist_ok=True)
        name = f"case{film.patient_id or number}-{number}.jpeg"
        shutil.copy(film.path, place / name)
        lines.append(f"{place.name}/{name};{film.label[0]};{film.patient_id or number}")
    (folder / "list").mkdir()
    (folder / "list" / "films.csv").write_text("\n".join(lines))
    return folder


FOLDERS = ("--label", "sick=pneumonia", "--label", "well=normal", "--patient-pattern", r"case(.+)-\d+\.")
COLUMNS = ("--columns", "path=Scan,label=Dx,patient_id=Who", "--label", "p=pneumonia", "--label", "n=normal")


@pytest.mark.parametrize("verb", [pytest.param("evaluate", marks=pytest.mark.slow), "calibrate"])
def test_a_source_is_read_as_the_options_say_from_folders_and_from_a_table(
    chestxray: Run, bundle: Path, local_films: Path, wards: Path, tmp_path: Path, verb: str
) -> None:
    sources: dict[str, tuple[object, ...]] = {
        "manifest": (local_films,),
        "folders": (wards, *FOLDERS),
        "table": (wards / "list" / "films.csv", "--root", wards, *COLUMNS),
    }
    found = {}
    for name, source in sources.items():
        status, document, _ = chestxray(verb, bundle, *source, "--out", tmp_path / name, "--workers", 1)
        assert status == 0, document
        if verb == "evaluate":
            assessment = document["assessment"]
            found[name] = (assessment["films"], assessment["patients"], assessment["overall"][0]["value"])
        else:
            found[name] = (round(document["temperature"], 6), round(document["bias"], 6), len(document["warnings"]))
    assert found["manifest"] == found["folders"] == found["table"]


def test_a_folder_whose_name_says_nothing_is_asked_for_by_both(
    chestxray: Run, bundle: Path, wards: Path, tmp_path: Path
) -> None:
    for verb in ("evaluate", "calibrate"):
        status, document, _ = chestxray(verb, bundle, wards, "--label", "well=normal", "--out", tmp_path / verb)
        assert (status, document["error"]["type"]) == (1, "SourceInvalid")
        assert '--label "sick=pneumonia"' in document["error"]["message"]


# --------------------------------------------------------------------------- calibrate, and evaluate the two


@pytest.fixture(scope="module")
def local(bundle: Path, local_films: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bundle, calibrated on the films of ``local_films``."""
    out = tmp_path_factory.mktemp("local") / "bundle"
    with pytest.raises(SystemExit) as end:
        main(["calibrate", str(bundle), str(local_films), "--out", str(out), "--workers", "1"])
    assert not end.value.code
    return out


def test_calibrating_changes_temperature_and_thresholds_and_not_the_graph(bundle: Path, local: Path) -> None:
    before, after = Bundle.open(bundle), Bundle.open(local)
    after.verify()
    assert after.info.model_sha256 == before.info.model_sha256
    assert after.info.files["weights.safetensors"] == before.info.files["weights.safetensors"]
    assert after.info.training_data == before.info.training_data
    assert {point.chosen_on for point in after.info.operating_points} == {"local.csv"}
    assert after.info.temperature != before.info.temperature


@pytest.mark.slow
def test_the_new_temperature_is_the_one_fitted_on_the_films_logits(
    local: Path, bundle: Path, local_films: Path, chestxray: Run, tmp_path: Path
) -> None:
    chestxray("evaluate", bundle, local_films, "--out", tmp_path / "report", "--workers", 1)
    found = read_scores(tmp_path / "report" / "scores.csv")
    info = Bundle.open(bundle).info
    logits = info.temperature * np.log(found.probabilities / (1 - found.probabilities)) - info.bias
    refitted = Bundle.open(local).info
    assert (refitted.temperature, refitted.bias) == pytest.approx(fit_calibration(found.labels, logits), rel=1e-4)


def test_metrics_and_card_tell_of_the_calibration_and_keep_the_figures_before(bundle: Path, local: Path) -> None:
    metrics = json.loads((local / "metrics.json").read_text())
    earlier = json.loads((bundle / "metrics.json").read_text())
    assert (metrics["split"], metrics["before"]["temperature"]) == ("local.csv", earlier["temperature"])
    assert model_card.LOGITS not in metrics["before"]
    assert any("were chosen on these same films (local.csv)" in caution for caution in metrics["cautions"])
    assert any("below 100 a class" in caution for caution in metrics["cautions"])
    text = (local / "MODEL_CARD.md").read_text()
    assert text.count("## Figures on the films of local.csv") == 1
    assert "Figures on the validation films" not in text
    for section in ("## Intended use", "## Limits", "## How it was made"):
        assert section in text


def test_a_card_has_a_header_that_yaml_reads_with_the_figures_of_the_bundle(bundle: Path, local: Path) -> None:
    for folder in (bundle, local):
        metrics = json.loads((folder / "metrics.json").read_text())
        front = (folder / "MODEL_CARD.md").read_text().removeprefix("---\n").split("\n---\n", 1)[0]
        result = yaml.safe_load(front)["model-index"][0]["results"][0]
        assert result["dataset"]["split"] == metrics["split"]
        values = {metric["type"]: metric["value"] for metric in result["metrics"]}
        assert values["roc_auc"] == pytest.approx(metrics["auroc"]["value"], abs=1e-4)


def test_an_odd_name_stays_one_text_in_yaml_and_a_card_without_marks_gains_a_section() -> None:
    found = scored()
    logits = np.log(found.probabilities / (1 - found.probabilities))
    name = 'no: "x" # [1]'
    points = choose_operating_points(found.labels, calibrated(logits))
    metrics = model_card.measured_where_chosen(
        found.labels, logits, found.patients, Calibration(1.0, 0.0), points, chosen_on=name, cautions=["Beware."]
    )
    text = model_card.amended("# Mine\n\nWritten by hand.\n", name, metrics, "balanced")
    front, body = text.removeprefix("---\n").split("\n---\n", 1)
    assert yaml.safe_load(front)["model_name"] == name
    assert "Written by hand." in body
    assert model_card.amended(text, name, metrics, "balanced") == text


def test_films_of_one_class_calibrate_nothing(
    chestxray: Run, bundle: Path, synthetic_rows: Sequence[Film], tmp_path: Path
) -> None:
    write_manifest([f for f in synthetic_rows if f.split == "test" and f.label == "normal"], tmp_path / "normal.csv")
    status, document, _ = chestxray("calibrate", bundle, tmp_path / "normal.csv", "--out", tmp_path / "b")
    assert (status, document["error"]["type"]) == (1, "DegenerateLabels")
    assert "normal.csv: all" in document["error"]["message"]
    assert "add some of the other" in document["error"]["message"]
    assert not (tmp_path / "b").exists()


@pytest.mark.slow
def test_evaluating_on_the_films_of_the_calibration_carries_a_warning(
    chestxray: Run, local: Path, bundle: Path, local_films: Path, tmp_path: Path
) -> None:
    report = tmp_path / "report"
    status, document, _ = chestxray(
        "evaluate", local, local_films, "--split", "test", "--against", bundle, "--out", report, "--workers", 1
    )
    assert status == 0
    comparison = document["assessment"]["comparison"]
    differences = {difference["name"]: difference["value"] for difference in comparison["differences"]}
    assert differences["auroc"] == pytest.approx(0.0, abs=1e-9)  # one graph: only thresholds and probabilities moved
    assert str(bundle) in comparison["other"]
    chestxray("evaluate", local, local_films, "--out", tmp_path / "whole", "--workers", 1)
    for folder in (report, tmp_path / "whole"):
        assert report_of(folder)["provenance"]["source_sha256"]
        assert "were chosen on these very films" in (folder / "index.html").read_text()


@pytest.mark.slow
def test_conformal_sets_are_fitted_on_the_logits_that_the_bundle_brings(
    chestxray: Run, bundle: Path, local_films: Path, tmp_path: Path
) -> None:
    status, document, _ = chestxray(
        "evaluate", bundle, local_films, "--conformal", 0.2, "--out", tmp_path / "report", "--workers", 1
    )
    assert status == 0
    found = document["assessment"]["conformal"]
    stored = json.loads((bundle / "metrics.json").read_text())[model_card.LOGITS]
    assert (found["rule"]["error"], found["rule"]["fitted_on"]) == (0.2, "val")
    assert (found["rule"]["positives"], found["rule"]["negatives"]) == (len(stored["pneumonia"]), len(stored["normal"]))
    assert found["single"] + found["both"] + found["neither"] == document["assessment"]["films"]


@pytest.mark.slow
def test_the_worst_errors_are_small_jpegs_and_the_page_stays_small(
    chestxray: Run, bundle: Path, local_films: Path, tmp_path: Path
) -> None:
    _, document, _ = chestxray("evaluate", bundle, local_films, "--out", tmp_path / "report", "--workers", 1)
    found = document["assessment"]
    page = (tmp_path / "report" / "index.html").read_text()
    assert page.count("data:image/jpeg;base64,") == len(found["missed"]) + len(found["false_alarms"]) > 0
    assert len(page) < 2_000_000


@pytest.mark.slow
def test_a_bundle_without_stored_logits_is_evaluated_without_sets_unless_they_are_asked_for(
    chestxray: Run, bundle: Path, local_films: Path, tmp_path: Path
) -> None:
    opened = Bundle.open(bundle)
    files = {name: (bundle / name).read_bytes() for name in opened.info.files}
    metrics = json.loads(files["metrics.json"])
    del metrics[model_card.LOGITS]
    write_bundle(tmp_path / "old", opened.info, files | {"metrics.json": json.dumps(metrics).encode()})
    common = ("evaluate", tmp_path / "old", local_films, "--out", tmp_path / "report", "--workers", 1)
    status, document, _ = chestxray(*common, "--conformal", 0.1)
    assert (status, document["error"]["type"]) == (2, "UsageError")
    assert "holds no validation scores" in document["error"]["message"]
    status, document, _ = chestxray(*common)
    assert (status, document["assessment"]["conformal"]) == (0, None)


@pytest.mark.slow
def test_leakage_stops_evaluating_unless_the_split_allowed_it_and_the_report_then_says_so(
    chestxray: Run, bundle: Path, synthetic_rows: Sequence[Film], tmp_path: Path
) -> None:
    results = [film for film in synthetic_rows if film.split == "test"]
    twin = dataclasses.replace(results[0], path=f"{results[0].path}.twin.jpeg", split="train")
    write_manifest([*results, twin], tmp_path / "split.csv")
    common = ("evaluate", bundle, tmp_path / "split.csv", "--out", tmp_path / "report", "--workers", 1)
    status, document, _ = chestxray(*common)
    assert (status, document["error"]["type"]) == (1, "Leakage")
    (tmp_path / "split.json").write_text(json.dumps({"leakage_allowed": "to see how much it flatters"}))
    status, _, _ = chestxray(*common)
    assert status == 0
    assert "to see how much it flatters" in report_of(tmp_path / "report")["provenance"]["leakage"]


def test_films_of_the_training_side_are_named_when_calibrating_on_them(
    chestxray: Run, bundle: Path, local_films: Path, tmp_path: Path
) -> None:
    films = [dataclasses.replace(film, split="train") for film in read_manifest(local_films)]
    write_manifest(films, tmp_path / "learnt.csv")
    status, document, _ = chestxray(
        "calibrate", bundle, tmp_path / "learnt.csv", "--out", tmp_path / "b", "--workers", 1
    )
    assert status == 0
    assert any("are in a training split" in warning for warning in document["warnings"])


@pytest.mark.parametrize("verb", ["evaluate", "calibrate"])
def test_films_that_the_bundle_was_trained_on_are_told_and_nothing_is_measured(
    verb: str, chestxray: Run, bundle: Path, synthetic_rows: Sequence[Film], tmp_path: Path
) -> None:
    learnt = [dataclasses.replace(film, split="") for film in synthetic_rows if film.split == "train"]
    write_manifest(learnt, tmp_path / "learnt.csv")
    status, document, _ = chestxray(verb, bundle, tmp_path / "learnt.csv", "--out", tmp_path / "out", "--workers", 1)
    assert (status, document["error"]["type"]) == (1, "Leakage")
    assert "was trained on" in document["error"]["message"]
    assert not (tmp_path / "out").exists()
