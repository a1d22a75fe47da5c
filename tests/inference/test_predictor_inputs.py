"""A film in Python is what Python programs have: the answer is that to its file, or an error that says what it may."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import chestxray
from chestxray.cli import main
from chestxray.errors import ChestXrayError, FilmTypeInvalid, FilmUnopened, FilmValueInvalid
from chestxray.inference.predictor import Predictor, bytes_of
from chestxray.schema import Gate, Prediction
from drawing import encoded, textured, write_film


@pytest.fixture(scope="module")
def predictor() -> Predictor:
    return chestxray.load("pneumonia", threads=1)


@pytest.fixture(scope="module")
def example() -> Path:
    """A synthetic film that the package comes with."""
    folder = Path(chestxray.__file__).parent
    return min(path for path in folder.rglob("*.jp*g") if "page" in path.parts or "examples" in path.parts)


def tensor(pixels: np.ndarray) -> Any:
    return pytest.importorskip("torch").from_numpy(pixels.astype(np.float32) / 255)


FORMS: dict[str, Callable[[np.ndarray], Any]] = {
    "bytes": encoded,
    "bytearray": lambda pixels: bytearray(encoded(pixels)),
    "file": lambda pixels: io.BytesIO(encoded(pixels)),
    "uint8": lambda pixels: pixels,
    "uint16": lambda pixels: pixels.astype(np.uint16) * 257,
    "floats": lambda pixels: pixels / 255,
    "colour": lambda pixels: np.dstack([pixels] * 3),
    "coloured 16 bits": lambda pixels: np.dstack([pixels.astype(np.uint16) * 257] * 3),
    "channel first": lambda pixels: pixels[None],
    "not contiguous": np.asfortranarray,
    "Pillow": Image.fromarray,
    "Pillow in colour": lambda pixels: Image.fromarray(pixels).convert("RGB"),
    "torch": tensor,
    "torch with a channel": lambda pixels: tensor(pixels)[None],
}


@pytest.mark.parametrize("form", FORMS)
def test_a_film_gives_the_answer_of_its_file_in_every_form(form: str, predictor: Predictor, example: Path) -> None:
    pixels = np.asarray(Image.open(example).convert("L"))
    of_file = predictor(encoded(pixels))
    found = predictor(FORMS[form](pixels))
    assert found.gate.accepted == of_file.gate.accepted
    assert found.probability == pytest.approx(of_file.probability, abs=1e-6)


def test_a_data_set_is_a_film(predictor: Predictor) -> None:
    pydicom = pytest.importorskip("pydicom")
    from dicoms import native

    data = native(textured(1, 200, 200).astype(np.uint16), BitsStored=8)
    data_set = pydicom.dcmread(io.BytesIO(data))
    assert predictor(data_set).gate == predictor(data).gate


def test_a_list_is_answered_film_by_film(predictor: Predictor, example: Path) -> None:
    films = [example, np.zeros((300, 300), np.uint8), Image.open(example)]
    found = predictor(films, heatmap=True)
    assert [answer.gate.accepted for answer in found] == [True, False, True]
    assert found[0].probability == pytest.approx(predictor(example).probability, abs=1e-6)
    assert found[0].heatmap
    assert predictor([]) == []
    assert len(predictor(np.zeros((2, 3, 64, 64), np.uint8))) == 2


@pytest.mark.parametrize(
    ("film", "error", "message"),
    [
        (7, TypeError, "a film cannot be a int; it may be a path"),
        (None, TypeError, "a film cannot be a NoneType"),
        ({"image": 1}, TypeError, "cannot be a dict"),
        (io.StringIO("text"), TypeError, "open it with mode 'rb'"),
        (np.zeros((2, 2), np.int64), TypeError, "an array of int64, whose white is nowhere defined"),
        (np.zeros(9, np.uint8), TypeError, r"shape \(9,\)"),
        (np.zeros((0, 4), np.uint8), TypeError, r"shape \(0, 4\)"),
        (np.zeros((5, 6, 7), np.uint8), TypeError, r"shape \(5, 6, 7\)"),
        (np.array([[0.0, 255.0]]), ValueError, "lie in 0 to 255; black is 0.0 and white 1.0"),
        (np.array([[0.0, np.nan]]), ValueError, "black is 0.0"),
        (Image.fromarray(np.zeros((2, 2), np.float32)), TypeError, "mode F"),
    ],
)
def test_what_is_no_film_is_a_type_error_that_says_what_one_may_be(film: Any, error: type, message: str) -> None:
    with pytest.raises(error, match=message) as caught:
        bytes_of(film)
    assert isinstance(caught.value, ChestXrayError)


def test_probabilities_come_as_scikit_learn_and_transformers_have_them(predictor: Predictor, example: Path) -> None:
    table = predictor.predict_proba([example, np.zeros((300, 300), np.uint8)])
    assert predictor.classes_ == ("normal", "pneumonia")
    assert table.shape == (2, 2)
    assert table[0].sum() == pytest.approx(1.0)
    assert np.isnan(table[1]).all()
    answer = predictor(example)
    first, second = answer.scores
    assert first["score"] >= second["score"]
    assert {first["label"], second["label"]} == {"normal", "pneumonia"}
    assert {row["label"]: row["score"] for row in answer.scores}["pneumonia"] == answer.probability
    assert Prediction("", Gate(accepted=False, reason="blank"), None, None, "p", 0.5, "m", "").scores == []


def test_answers_and_models_show_themselves_in_notebooks(predictor: Predictor, example: Path) -> None:
    answer = predictor(example, heatmap=True)
    assert repr(answer).startswith(f"Prediction({answer.label}, probability {answer.probability:.3f}")
    assert len(repr(answer)) < 200  # the map's text stays out of it
    assert f"base64,{answer.heatmap}" in answer._repr_html_()
    assert answer.notice in answer._repr_html_()
    refused = Prediction("", Gate(accepted=False, reason="<script>"), None, None, "p", 0.5, "m", "")
    assert "<script>" not in refused._repr_html_()
    assert "efficient" in repr(predictor) or "residual" in repr(predictor) or predictor.info.network in repr(predictor)
    assert predictor.info.network in predictor._repr_html_()


def predicted(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> tuple[int, list[str], str]:
    with pytest.raises(SystemExit) as caught:
        main(["predict", *arguments, "--bundle", "pneumonia", "--json"])
    out = capsys.readouterr().out
    document = json.loads(out)
    return int(caught.value.code or 0), [Path(row["file"]).name for row in document.get("predictions", [])], out


def test_predict_takes_folders_patterns_and_standard_input(
    example: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("ward/a.jpeg", "ward/sub/b.jpeg", "c.jpeg"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(example.read_bytes())
    (tmp_path / "ward" / "notes.txt").write_text("")
    assert predicted([str(tmp_path / "ward")], capsys)[:2] == (0, ["a.jpeg", "b.jpeg"])
    assert predicted([str(tmp_path / "*.jpeg"), str(tmp_path / "c.jpeg")], capsys)[:2] == (0, ["c.jpeg"])
    assert predicted([str(tmp_path / "**" / "*.jpeg")], capsys)[1] == ["c.jpeg", "a.jpeg", "b.jpeg"]
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(example.read_bytes())))
    assert predicted(["-"], capsys)[:2] == (0, ["-"])


@pytest.mark.parametrize("given", ["gone.jpeg", "gone*.jpeg", "empty"])
def test_a_bad_path_is_an_error_before_anything_runs(
    given: str, example: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "empty").mkdir()
    status, names, out = predicted([str(example), str(tmp_path / given)], capsys)
    assert (status, names) == (1, [])
    assert given in out


class FilmAtPath:
    def __init__(self, path: Path) -> None:
        self._path = path

    def __fspath__(self) -> str:
        return str(self._path)


def test_a_path_of_any_kind_and_an_array_of_any_byte_order_are_films(tmp_path: Path) -> None:
    path = write_film(tmp_path / "film.png", 1)
    assert bytes_of(FilmAtPath(path)) == (path.read_bytes(), str(path))
    deep = textured(1).astype(np.uint16) * 257
    assert bytes_of(deep.astype(">u2")) == bytes_of(deep)


def test_what_cannot_be_read_any_more_says_why(tmp_path: Path) -> None:
    path = write_film(tmp_path / "film.png", 1)
    with path.open("rb") as closed:
        pass
    with pytest.raises(FilmValueInvalid, match="the file cannot be read"):
        bytes_of(closed)
    with pytest.raises(FilmValueInvalid, match=r"file.seek\(0\)"):
        bytes_of(io.BytesIO())
    with Image.open(path) as picture:
        pass
    with pytest.raises(FilmValueInvalid, match="the image cannot be read"):
        bytes_of(picture)
    with pytest.raises(FilmUnopened, match=tmp_path.name):
        bytes_of(tmp_path)


def test_tensors_without_values_of_their_own_are_refused() -> None:
    torch = pytest.importorskip("torch")
    for tensor in (torch.zeros(80, 80).to_sparse(), torch.empty(80, 80, device="meta")):
        with pytest.raises(FilmTypeInvalid, match="sparse tensor"):
            bytes_of(tensor)
