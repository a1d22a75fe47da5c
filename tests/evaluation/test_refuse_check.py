"""How much of a folder is refused, and why, by kind, with intervals."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from chestxray.cli import main
from chestxray.errors import SourceInvalid
from chestxray.evaluation.evaluate import UNREADABLE_FILM, check_refusals, kind_of_refusal
from chestxray.inference.predictor import Predictor
from chestxray.metrics.intervals import wilson_interval
from dicoms import native
from drawing import encoded


@pytest.fixture(scope="module")
def predictor(bundle: Path) -> Predictor:
    return Predictor.load(bundle, threads=1)


@pytest.fixture
def folder(film_paths: Sequence[Path], tmp_path: Path) -> Path:
    """Six films, of which three are spoilt in as many ways, and one that is none."""
    source = tmp_path / "films"
    for label in ("NORMAL", "PNEUMONIA"):
        (source / label).mkdir(parents=True)
    for number, path in enumerate(film_paths[:3]):
        (source / "NORMAL" / f"good{number}.jpeg").write_bytes(path.read_bytes())
    pixels = np.asarray(Image.open(film_paths[0]).convert("L"))
    (source / "PNEUMONIA" / "turned.png").write_bytes(encoded(np.ascontiguousarray(np.rot90(pixels))))
    (source / "PNEUMONIA" / "old.dcm").write_bytes(native(pixels, Modality="DX", PatientAge="067Y"))
    (source / "PNEUMONIA" / "cut.jpeg").write_bytes(film_paths[0].read_bytes()[:3000])
    return source


def test_each_kind_is_counted_with_its_interval_an_example_and_by_label(
    bundle: Path, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as end:
        main(["evaluate", str(bundle), "--refuse-check", str(folder), "--workers", "1", "--json"])
    assert end.value.code in {0, None}
    found = json.loads(capsys.readouterr().out)
    assert {row["kind"]: row["films"] for row in found["kinds"]} == {
        "a film that was turned": 1,
        "another age, by its file": 1,
        UNREADABLE_FILM: 1,
    }
    assert found["films"] == 6
    assert found["refused"]["films"] == 3
    assert found["refused"]["share"] == 0.5
    interval = wilson_interval(3, 6)
    assert (found["refused"]["low"], found["refused"]["high"]) == pytest.approx((interval.low, interval.high))
    assert {row["kind"]: row["films"] for row in found["by_label"]} == {"normal": 0, "pneumonia": 3}
    old = next(row for row in found["kinds"] if row["kind"].startswith("another age"))
    assert old["example"].endswith("old.dcm")
    assert "an age of 67 years" in old["reason"]


def test_the_terminal_names_the_share_and_an_example(
    bundle: Path, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        main(["evaluate", str(bundle), "--refuse-check", str(folder), "--workers", "1"])
    text = capsys.readouterr().out
    assert "3 of 6 films are refused" in text
    assert "turned.png" in text
    assert "50.0%" in text


@pytest.mark.parametrize("option", ["--out=somewhere", "--split=test", "--stress", "--against=original"])
def test_it_takes_no_option_of_an_evaluation(
    bundle: Path, folder: Path, option: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as end:
        main(["evaluate", str(bundle), "--refuse-check", str(folder), option])
    assert end.value.code == 2
    assert "--refuse-check" in capsys.readouterr().err


def test_it_takes_no_other_source_and_needs_a_film(
    bundle: Path, folder: Path, predictor: Predictor, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as end:
        main(["evaluate", str(bundle), str(folder), "--refuse-check", str(folder), "--out", "somewhere"])
    assert end.value.code == 2
    assert "--refuse-check" in capsys.readouterr().err
    with pytest.raises(SourceInvalid, match="no film"):
        check_refusals(predictor, ())


@pytest.mark.parametrize(
    ("reason", "kind"),
    [
        ("it looks like an adult's film, which this model was not trained on (score 0.93; ...", "an adult's film"),
        ("it does not look like a frontal chest film (score 0.61; refused above 0.50)", "unlike the training films"),
        ("it looks like the negative of a chest film. Invert it (score 1.00; ...", "a negative"),
        ("its grey levels are those of a negative: its middle is darker", "a negative"),
        ("its grey levels are cut off: 31% of its middle is plain black", "grey levels cut off or too few"),
        ("its grey levels are almost uniform: they deviate by 0.1%", "almost uniform"),
        ("its file states no age, and this service answers only", "no age in its file"),
        ('its file names the modality "CT", which is no plain radiograph', "another modality, by its file"),
        ('its file names the body part "HAND", which is not the chest', "another body part, by its file"),
        ('its file names the view "LATERAL": lateral, not frontal', "another view, by its file"),
        ('its rows and columns run towards "A\\F" (PatientOrientation)', "another view, by its file"),
        ("12% of its pixels are coloured, so it is not", "coloured"),
        ("40 x 60 pixels; each side needs at least 64", "too small"),
        ("400 x 60 pixels; a chest film's sides differ", "too long and narrow"),
        ("the JPEG file ends before its picture does. Copy it again", UNREADABLE_FILM),
    ],
)
def test_reasons_belong_to_kinds(reason: str, kind: str) -> None:
    assert kind_of_refusal(reason) == kind
