"""The gate: chest films pass, everything else is refused with a reason and a score."""

from __future__ import annotations

import dataclasses
import json
import re
import shutil
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import torch
from PIL import Image, ImageFilter

from chestxray.data.labels import parse_name
from chestxray.errors import BundleInvalid, FilmError
from chestxray.images.preprocess import preprocess, resample
from chestxray.inference.bundle import DEFAULT, Bundle, folder_of
from chestxray.inference.ood import (
    GATE_JSON,
    KERNELS,
    PICTURE_SIDE,
    REFUSED_ABOVE,
    Gatekeeper,
    OODDetector,
    detector_of,
    prepare,
    thumbnail,
)
from chestxray.inference.predictor import Predictor
from chestxray.schema import INTENDED_AGES, BundleInfo, Gate, Preprocessing, Resize
from chestxray.training.ood_fit import fit_detector
from dicoms import native
from drawing import encoded
from not_films import PEEKED, files, grey_pictures

Array = npt.NDArray[np.uint8]

EXAMPLES = Path(__file__).parents[2] / "src" / "chestxray" / "serving" / "page" / "examples"


@pytest.fixture(scope="module")
def predictor(bundle: Path) -> Predictor:
    return Predictor.load(bundle, threads=1)


@pytest.fixture(scope="module")
def strangers() -> dict[str, Array]:
    """Pictures that are no chest films and that nobody looked at while making the gate."""
    return {name: picture for name, picture in grey_pictures().items() if name not in PEEKED}


@pytest.fixture(scope="module")
def pixels(film_paths: Sequence[Path]) -> tuple[Array, ...]:
    return tuple(_grey(path) for path in film_paths)


def _grey(path: Path) -> Array:
    with Image.open(path) as picture:
        return np.asarray(picture.convert("L"))


def gate_of(predictor: Predictor, data: bytes) -> Gate:
    return predictor.predict(data, "film").gate


# --------------------------------------------------------------------------- a bundle of synthetic films


def test_chest_films_of_other_patients_pass(predictor: Predictor, film_paths: Sequence[Path]) -> None:
    gates = [gate_of(predictor, path.read_bytes()) for path in (*film_paths, *EXAMPLES.glob("*.jpg"))]
    assert len(gates) >= 20
    assert sum(not gate.accepted for gate in gates) <= 1
    assert all(0 <= gate.score <= REFUSED_ABOVE for gate in gates if gate.accepted)


def test_pictures_that_are_no_chest_are_refused_in_grey(predictor: Predictor, strangers: dict[str, Array]) -> None:
    accepted = [name for name, picture in strangers.items() if gate_of(predictor, encoded(picture)).accepted]
    assert len(strangers) > 150
    assert len(accepted) <= 0.05 * len(strangers), accepted


def test_and_as_they_come(predictor: Predictor) -> None:
    def passes(path: Path) -> bool:
        try:
            return gate_of(predictor, path.read_bytes()).accepted
        except FilmError:
            return False

    assert len(files()) > 30
    assert [path.name for path in files() if passes(path)] == []


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda film: np.rot90(film, -1), "turned by 90 degrees to the right"),
        (lambda film: np.rot90(film, 1), "turned by 90 degrees to the left"),
        (lambda film: np.rot90(film, 2), "upside down"),
        (lambda film: 255 - film, "negative"),
    ],
    ids=["right", "left", "upside down", "negative"],
)
def test_a_turned_film_or_a_negative_is_refused_with_the_remedy(
    predictor: Predictor, pixels: Sequence[Array], spoil: Callable[[Array], Array], words: str
) -> None:
    gates = [gate_of(predictor, encoded(np.ascontiguousarray(spoil(film)))) for film in pixels]
    assert sum(gate.accepted for gate in gates) <= 0.05 * len(gates)
    reasons = [gate.reason for gate in gates if not gate.accepted]
    assert sum(words in reason for reason in reasons) >= 0.9 * len(reasons), reasons


def test_a_refusal_comes_with_its_score_in_number_and_in_words(
    predictor: Predictor, strangers: dict[str, Array]
) -> None:
    answer = predictor.predict(encoded(strangers["camera.png"]), "photograph.png")
    assert answer.probability is None
    assert answer.gate.score > REFUSED_ABOVE
    assert f"score {answer.gate.score:.2f}" in answer.gate.reason
    assert "frontal chest film" in answer.gate.reason


def test_the_score_depends_neither_on_the_films_resolution_nor_on_that_of_the_input(
    predictor: Predictor, pixels: Sequence[Array]
) -> None:
    gatekeeper = Gatekeeper.of(Bundle.open(predictor.folder))
    inputs = [Preprocessing(*size, Resize.SQUEEZE, 0.5, 0.25) for size in ((112, 160), (160, 160), (192, 192))]
    for film in pixels[:5]:
        small = np.asarray(Image.fromarray(film).reduce(3))
        gates = [prepare(encoded(x), "film", one, gatekeeper).gate for x in (film, small) for one in inputs]
        scores = [gate.score for gate in gates]
        assert max(scores) - min(scores) < 0.06, scores


def test_the_convolutional_network_is_that_of_pytorch() -> None:
    detector = detector_of(Bundle.open(folder_of(DEFAULT)))
    assert detector is not None
    assert detector.looks is not None
    pictures = np.random.default_rng(0).integers(0, 256, (3, PICTURE_SIDE, PICTURE_SIDE), np.uint8)
    seen = (torch.from_numpy(pictures)[:, None].float() - 128) / 64
    for side, filters, bias in zip(KERNELS, detector.looks.filters, detector.looks.biases, strict=True):
        weights = torch.from_numpy(filters.T.reshape(len(bias), -1, side, side))
        seen = torch.relu(torch.conv2d(seen, weights, torch.from_numpy(bias), stride=2, padding=side // 2))
    expected = seen.permute(0, 2, 3, 1).flatten(1) @ torch.from_numpy(detector.looks.dense)
    logits = detector.looks.logits(pictures)
    assert np.allclose(logits, expected.numpy() + detector.looks.dense_bias, atol=1e-3)
    assert np.allclose(logits[1:2], detector.looks.logits(pictures[1:2]), atol=1e-4)


# --------------------------------------------------------------------------- age


@pytest.mark.parametrize(
    ("age", "accepted"),
    [
        ({}, True),
        ({"PatientAge": "003Y"}, True),
        ({"PatientAge": "018M"}, True),
        ({"PatientAge": "006W"}, True),
        ({"PatientAge": "011Y"}, True),
        ({"PatientAge": "012Y"}, False),
        ({"PatientAge": "067Y"}, False),
        ({"PatientAge": "010D"}, False),
        ({"PatientAge": "62"}, False),
        ({"PatientAge": "62 Y"}, False),
        ({"PatientAge": "000Y"}, True),
        ({"PatientAge": "999Y"}, True),
        ({"PatientBirthDate": "19000101", "StudyDate": "19950601"}, True),
        ({"PatientBirthDate": "19510101", "AcquisitionDate": "20230601"}, False),
        ({"PatientBirthDate": "20200101", "StudyDate": "20230601"}, True),
        ({"PatientBirthDate": "19510101", "StudyDate": "20230601"}, False),
        ({"PatientBirthDate": "19510101", "StudyDate": "20230601", "PatientAge": "003Y"}, True),
        ({"PatientBirthDate": "19510101"}, True),
        ({"PatientBirthDate": "18000101", "StudyDate": "20230601"}, True),
        ({"PatientBirthDate": "20240101", "StudyDate": "20230601"}, True),
    ],
)
def test_a_dicom_film_of_another_age_is_refused_and_silence_is_no_objection(
    predictor: Predictor, pixels: Sequence[Array], age: dict[str, str], accepted: bool
) -> None:
    with warnings.catch_warnings(action="ignore"):  # pydicom's, of ages as people write them
        data = native(pixels[0], Modality="DX", **age)
    gate = gate_of(predictor, data)
    assert gate.accepted == accepted, gate.reason
    if not accepted:
        assert gate.reason.endswith("the model is for 28 days to under 12 years")
        assert re.search(r"an age of (62|67|72|12) years|an age of 10 days", gate.reason)


def test_an_unknown_age_is_a_note_beside_the_answer_and_a_refusal_where_it_is_required(
    bundle: Path, predictor: Predictor, pixels: Sequence[Array]
) -> None:
    strict = Predictor.load(bundle, threads=1, require_age=True)
    stated = native(pixels[0], Modality="DX", PatientAge="003Y")
    for silent in (encoded(pixels[0]), native(pixels[0], Modality="DX")):
        assert predictor.predict(silent, "film").notes == (
            "age not stated; the model is for 28 days to under 12 years",
        )
        gate = strict.predict(silent, "film").gate
        assert not gate.accepted
        assert gate.reason.startswith("its file states no age")
        assert not strict([silent])[0].gate.accepted
        assert not strict.on_one_thread().predict(silent, "film").gate.accepted
    assert strict.predict(stated, "film").gate.accepted
    assert predictor.predict(stated, "film").notes == ()


def test_what_was_ignored_in_a_header_is_a_note_beside_the_answer(
    predictor: Predictor, pixels: Sequence[Array]
) -> None:
    with warnings.catch_warnings(action="ignore"):  # pydicom's, of a word where a number belongs
        data = native(pixels[0], Modality="DX", PatientAge="003Y", RescaleSlope="1", RescaleIntercept="1")
    answer = predictor.predict(data.replace(_slope("1 "), _slope("ab")), "film")
    assert answer.notes == ("its RescaleSlope is no number and was ignored",)
    assert type(answer).from_json(answer.to_json()) == answer


def _slope(value: str) -> bytes:
    """The element RescaleSlope of two letters, explicit little endian."""
    return b"\x28\x00\x53\x10DS\x02\x00" + value.encode()


def test_ages_are_a_field_of_the_bundle_and_none_means_any(bundle: Path, pixels: Sequence[Array]) -> None:
    info = Bundle.open(bundle).info
    assert info.intended_ages == INTENDED_AGES
    assert BundleInfo.from_json(info.to_json()).intended_ages == INTENDED_AGES
    anybody = dataclasses.replace(info, intended_ages=None)
    data = native(pixels[0], Modality="DX", PatientAge="067Y")
    assert gate_of(Predictor(Bundle(bundle, anybody), threads=1), data).accepted
    with pytest.raises(ValueError, match="must rise"):
        dataclasses.replace(info, intended_ages=(12.0, 3.0))


# --------------------------------------------------------------------------- the bundle's part


def test_a_bundle_from_before_there_were_gates_still_classifies(
    bundle: Path, tmp_path: Path, strangers: dict[str, Array]
) -> None:
    old = tmp_path / "old"
    shutil.copytree(bundle, old)
    (old / GATE_JSON).unlink()
    description = json.loads((old / "bundle.json").read_text())
    del description["intended_ages"], description["files"][GATE_JSON]
    (old / "bundle.json").write_text(json.dumps(description))
    answer = Predictor.load(old, threads=1).predict(encoded(strangers["camera.png"]), "photograph.png")
    assert answer.gate == Gate(accepted=True)
    assert Gatekeeper.of(Bundle.open(old)).in_words() == "refuses no film for its looks or its patient's age"


def test_a_changed_gate_is_found_and_one_of_another_version_is_named(bundle: Path, tmp_path: Path) -> None:
    copy = tmp_path / "bundle"
    shutil.copytree(bundle, copy)
    text = (copy / GATE_JSON).read_text()
    (copy / GATE_JSON).write_text(text.replace('"version": 2', '"version": 9'))
    with pytest.raises(BundleInvalid, match=r"gate\.json: SHA-256 is .* changed or damaged"):
        Predictor.load(copy)
    with pytest.raises(BundleInvalid, match="gate version 9; this program reads up to 2"):
        OODDetector.from_json(text.replace('"version": 2', '"version": 9'))


def _with_array(text: str, name: str, **change: object) -> str:
    raw = json.loads(text)
    raw["arrays"][name] |= change
    return json.dumps(raw)


@pytest.mark.parametrize(
    "damage",
    [
        lambda text: text[:200],
        lambda _: "[]",
        lambda text: _with_array(text, "axes", shape=[576, 47]),
        lambda text: _with_array(text, "limits", float16="!!!!"),
        lambda text: _with_array(text, "limits", shape=[2], float16="AAAAAA=="),
        lambda text: _with_array(text, "output_bias", float16="AH4="),
    ],
    ids=["cut", "another thing", "shape", "letters", "two limits", "not a number"],
)
def test_a_gate_that_is_none_is_one_error(bundle: Path, damage: Callable[[str], str]) -> None:
    with pytest.raises(BundleInvalid, match="not a gate"):
        OODDetector.from_json(damage((bundle / GATE_JSON).read_text()))


def test_the_gate_is_small_text_that_reads_back_the_same(bundle: Path) -> None:
    text = (bundle / GATE_JSON).read_text()
    assert len(text) < 300_000
    assert OODDetector.from_json(text).to_json() == text


def test_the_card_tells_what_is_refused(bundle: Path) -> None:
    card = " ".join((bundle / "MODEL_CARD.md").read_text().split())
    assert "## What it refuses" in card
    assert "28 days to under 12 years" in card
    assert re.search(r"\| turned films \| drawn, or made of training films \| \d+ of \d+ \| [\d.]+% \(", card)
    assert "A refused film gets no probability." in card


def test_the_metrics_hold_what_the_gate_was_measured_to_refuse(bundle: Path) -> None:
    gate = json.loads((bundle / "metrics.json").read_text())["gate"]
    detector = OODDetector.from_json((bundle / GATE_JSON).read_text())
    rows = {row["kind"]: row for row in gate["kinds"]}
    assert [(rows[kind]["refused"], rows[kind]["of"]) for kind in detector.refused] == list(detector.refused.values())
    assert {rows[f"validation films, {label}"]["origin"] for label in ("normal", "pneumonia")} == {"validation"}
    for row in gate["kinds"]:
        assert row["interval"]["low"] <= row["value"] == row["refused"] / row["of"] <= row["interval"]["high"]
    assert set(gate["curve"]) == set(detector.refused)
    assert {len(shares) for shares in gate["curve"].values()} == {len(gate["curve_limits"])}


# --------------------------------------------------------------------------- the fit


@pytest.mark.slow
def test_the_same_films_give_the_same_gate(pixels: Sequence[Array]) -> None:
    patients = [str(number) for number in range(len(pixels))]
    assert fit_detector(pixels, patients).to_json() == fit_detector(pixels, patients).to_json()


@pytest.mark.slow
def test_a_gate_of_a_handful_of_films_is_wide(pixels: Sequence[Array]) -> None:
    detector = fit_detector(pixels[:3], ["a", "b", "b"])
    assert [film for film in pixels if detector.score(film) > REFUSED_ABOVE] == []


def test_an_even_picture_has_a_thumbnail_and_is_refused(predictor: Predictor) -> None:
    grey = np.full((112, 160), 90, dtype=np.uint8)
    assert np.abs(thumbnail(grey)).max() == 0.0
    detector = Gatekeeper.of(Bundle.open(predictor.folder)).detector
    assert detector.score(grey) > REFUSED_ABOVE


# --------------------------------------------------------------------------- real films


def _lut(curve: Callable[[npt.NDArray[np.float64]], npt.NDArray[np.float64]]) -> Callable[[Array], Array]:
    levels = (curve(np.linspace(0, 1, 256)).clip(0, 1) * 255).astype(np.uint8)
    return lambda film: levels[film]


def _pillow(change: Callable[[Image.Image], Image.Image]) -> Callable[[Array], Array]:
    return lambda film: np.asarray(change(Image.fromarray(film)))


MILD = {
    "gamma 0.6": _lut(lambda x: x**0.6),
    "gamma 1.6": _lut(lambda x: x**1.6),
    "brighter": _lut(lambda x: x + 0.15),
    "darker": _lut(lambda x: x - 0.15),
    "blurred": _pillow(lambda film: film.filter(ImageFilter.GaussianBlur(3))),
    "cropped by 10%": lambda film: film[len(film) // 20 : -(len(film) // 20), 8:-8],
    "10 degrees to the left": _pillow(lambda film: film.rotate(10, Image.Resampling.BILINEAR)),
    "10 degrees to the right": _pillow(lambda film: film.rotate(-10, Image.Resampling.BILINEAR)),
    "coarse": _pillow(lambda film: film.resize((48, 48), Image.Resampling.BILINEAR)),
}
SPOILT = {
    "turned by 90": lambda film: np.rot90(film, -1),
    "turned by 180": lambda film: np.rot90(film, 2),
    "turned by 270": lambda film: np.rot90(film, 1),
    "inverted": lambda film: 255 - film,
}


def _side_of(patient: str) -> int:
    """0 to 9, by the digits of a patient's number: a draw of its own, not the one that sets the gate's limits."""
    return int(re.sub(r"\D", "", patient) or 0) % 10


@pytest.mark.real_films
@pytest.mark.slow
@pytest.mark.timeout(900)
def test_real_films_pass_and_pictures_of_anything_else_do_not(real_films: Path, strangers: dict[str, Array]) -> None:
    """Every second published film; the patients that are classified are others than those that were fitted."""
    size = (160, 160, Resize.SQUEEZE)
    paths = sorted((real_films / "chest_xray" / "train").glob("*/*.jp*g"))[::2]
    named = [(path, parse_name(path.stem)) for path in paths]
    patients = {path: name.patient_id for path, name in named if name}
    training = [path for path, patient in patients.items() if _side_of(patient) > 1]
    unseen = [_grey(path) for path, patient in patients.items() if _side_of(patient) <= 1]
    planes = [preprocess(path.read_bytes(), path.name, *size) for path in training]
    detector = fit_detector(planes, [patients[path] for path in training])

    def refused(pictures: Sequence[Array]) -> float:
        seen = [resample(np.ascontiguousarray(picture), *size) for picture in pictures]
        return float(np.mean([detector.score(plane) > REFUSED_ABOVE for plane in seen]))

    assert len(unseen) > 300
    assert refused(unseen) <= 0.02
    shifted = {name: refused([change(film) for film in unseen]) for name, change in MILD.items()}
    assert max(shifted.values()) <= 0.035, shifted
    spoilt = {name: refused([change(film) for film in unseen]) for name, change in SPOILT.items()}
    assert min(spoilt.values()) >= 0.95, spoilt
    assert refused(list(strangers.values())) >= 0.95
    assert refused([_grey(path) for path in EXAMPLES.glob("*.jpg")]) == 0.0
