"""Results as DICOM: valid by other people's tools, in the film's study, and naming the patient byte for byte."""

from __future__ import annotations

import base64
import io
import shutil
import subprocess
from dataclasses import replace
from datetime import datetime
from pathlib import Path

import numpy as np
import pydicom
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from chestxray.dicom import results as module
from chestxray.dicom.queue import Result
from chestxray.dicom.results import PICTURE, REPORT, RESULT_KINDS, ResultContent, derived_uid
from chestxray.dicom.rules import IDENTITY, facts_of, read_header
from chestxray.images.decode import decode
from chestxray.images.dicom import elements, open_data_set
from chestxray.inference.bundle import folder_of
from chestxray.inference.heatmap import averaged, overlay_png, superimpose
from chestxray.inference.predictor import Predictor
from chestxray.schema import NOTICE
from hospital import BUNDLE, encoded, grey, modality_film, read, with_raw_name

RECEIVED = datetime(2026, 1, 15, 10, 20, 30)  # noqa: DTZ001 - DICOM's dates are local
BLACK = np.zeros((64, 64), np.uint8)
UIDS = ("sop_instance", "study", "series")


@pytest.fixture(scope="module")
def predictor() -> Predictor:
    return Predictor.load(folder_of(BUNDLE), threads=1)


@pytest.fixture(scope="module")
def film_file(film_paths: tuple[Path, ...]) -> bytes:
    return modality_film(grey(film_paths[0]))


@pytest.fixture(scope="module")
def answer(predictor: Predictor, film_file: bytes) -> ResultContent:
    prediction = predictor.predict(film_file, "film", heatmap=True)
    assert prediction.gate.accepted
    return ResultContent(facts_of(film_file), prediction, "", ("pneumonia-small", "ab" * 32, "cd" * 32), RECEIVED)


def results_of(film: bytes, answer: ResultContent) -> tuple[Result, ...]:
    """The objects that answer a film, with the answer's own heat map as the drawing."""
    drawing = answer.prediction.heatmap if answer.prediction else None
    if drawing is None:
        return module.results_of(read_header(film)[1], answer)
    layer = Image.open(io.BytesIO(base64.b64decode(drawing)))
    picture = superimpose(averaged(decode(film, "film"), module.HEAT_MAP_SIDE), layer)
    return module.results_of(read_header(film)[1], answer, picture)


def text_of(report: pydicom.Dataset) -> str:
    """All texts, codes and numbers of a report's tree."""
    return "\n".join(str(element.value) for element in report.iterall() if element.VR != "SQ")


def test_a_film_gives_a_report_and_a_picture_in_its_study_and_in_series_of_their_own(
    film_file: bytes, answer: ResultContent
) -> None:
    report, picture = results_of(film_file, answer)
    assert (report.kind, picture.kind) == (REPORT, PICTURE)
    film = read(film_file)
    for result in (report, picture):
        dataset = read(result.data)
        assert (dataset.SOPClassUID, dataset.SOPInstanceUID) == (result.sop_class, result.sop_instance)
        assert dataset.StudyInstanceUID == film.StudyInstanceUID
        assert dataset.SeriesInstanceUID != film.SeriesInstanceUID
        for name in ("PatientID", "PatientName", "PatientBirthDate", "PatientSex", "AccessionNumber", "StudyDate"):
            assert dataset[name].value == film[name].value
        assert "research use only" in dataset.SeriesDescription
        assert dataset.SOPClassUID == RESULT_KINDS[result.kind][0]


def test_the_report_says_probability_threshold_operating_point_and_hashes(
    film_file: bytes, answer: ResultContent
) -> None:
    said = text_of(read(results_of(film_file, answer)[0].data))
    prediction = answer.prediction
    assert prediction is not None
    assert prediction.probability is not None
    assert f"{round(100 * prediction.probability, 4)}" in said
    assert f"threshold: {prediction.threshold:.6f}" in said
    assert f"operating point: {prediction.operating_point}" in said
    assert f"model SHA-256: {'ab' * 32}" in said
    assert NOTICE in said


@pytest.mark.parametrize("tool", ["dsrdump", "dciodvfy"])
def test_other_tools_find_no_error_in_what_we_write(
    tool: str, film_file: bytes, answer: ResultContent, tmp_path: Path
) -> None:
    if shutil.which(tool) is None:
        pytest.skip(f"{tool} is not here (Debian: dcmtk, dicom3tools)")
    refused = replace(answer, prediction=None, reason="the film is cut short")
    for place, result in enumerate([*results_of(film_file, answer), *results_of(film_file, refused)]):
        if tool == "dsrdump" and result.kind != REPORT:
            continue
        path = tmp_path / f"{place}.dcm"
        path.write_bytes(result.data)
        done = subprocess.run([tool, path], capture_output=True, text=True, check=False)
        complaints = [
            line for line in (done.stdout + done.stderr).split("\n") if line.startswith(("Error", "E:", "F:"))
        ]
        assert complaints == []


def test_a_refused_film_gives_a_report_that_says_why_and_no_picture(film_file: bytes, answer: ResultContent) -> None:
    (report,) = results_of(film_file, replace(answer, prediction=None, reason="the film is cut short"))
    said = text_of(read(report.data))
    assert "Not classified: the film is cut short" in said
    assert "Refused" in said
    assert "Certainty of Finding" not in said


def test_a_film_that_the_gate_refuses_gives_its_reason(predictor: Predictor, answer: ResultContent) -> None:
    data = modality_film(BLACK)
    prediction = predictor.predict(data, "film", heatmap=True)
    assert not prediction.gate.accepted
    (report,) = results_of(data, replace(answer, facts=facts_of(data), prediction=prediction))
    assert prediction.gate.reason in text_of(read(report.data))


def test_the_same_film_and_model_give_the_same_bytes(film_file: bytes, answer: ResultContent) -> None:
    first, again = results_of(film_file, answer), results_of(film_file, answer)
    assert first == again
    other = results_of(film_file, replace(answer, bundle=("pneumonia-small", "ab" * 32, "ef" * 32)))
    assert not {result.sop_instance for result in first} & {result.sop_instance for result in other}


@settings(max_examples=25)
@given(
    probability=st.floats(0.0, 1.0),
    numbers=st.lists(st.integers(1, 10**8), min_size=2, max_size=3),
    reason=st.sampled_from(["", "the film is cut short", "why", "another reason: 7 of 9"]),
    moment=st.datetimes(datetime(1990, 1, 1), datetime(2060, 1, 1)),  # noqa: DTZ001
    refused=st.booleans(),
)
def test_a_result_that_was_filled_in_is_the_one_that_the_library_builds(
    probability: float, numbers: list[int], reason: str, moment: datetime, refused: bool, answer: ResultContent
) -> None:
    for number in numbers:
        facts = replace(answer.facts, **{name: f"1.2.826.{place}.{number}" for place, name in enumerate(UIDS)})
        assert answer.prediction is not None
        label = "pneumonia" if probability >= answer.prediction.threshold else "normal"
        prediction = replace(answer.prediction, probability=probability, label=label)
        if reason:
            gate = replace(prediction.gate, accepted=False, reason=reason)
            prediction = replace(prediction, probability=None, label=None, heatmap=None, gate=gate)
        given_answer = ResultContent(
            facts, None if refused else prediction, "cut" if refused else "", answer.bundle, moment
        )
        check_same(module._filled_in(REPORT, given_answer, {}), module._library_report(given_answer), given_answer)  # noqa: SLF001
        picture = np.full((30 + number % 7, 40 + number % 3, 3), number % 251, np.uint8)
        check_same(
            module._filled_in(PICTURE, given_answer, {}, Image.fromarray(picture)),  # noqa: SLF001
            module._library_picture(given_answer, picture),  # noqa: SLF001
            given_answer,
        )


def check_same(result: Result, built: pydicom.Dataset, answer: ResultContent) -> None:
    """Both hold the same elements, but for the identity, which is the film's."""
    module._dated(built, answer)  # noqa: SLF001
    for tag in IDENTITY & set(built.keys()):
        del built[tag]
    found, expected = read(result.data), read(encoded(built))
    assert found == expected
    assert found.file_meta == expected.file_meta


def grey_size(film: bytes) -> tuple[int, int]:
    dataset = read(film)
    return dataset.Rows, dataset.Columns


def test_the_picture_shows_the_heat_map_and_has_the_notice_burnt_in(
    film_file: bytes, answer: ResultContent, predictor: Predictor
) -> None:
    assert answer.prediction is not None
    evidence = np.zeros((4, 4), np.float32)
    evidence[1, 1] = 1.0
    size = grey_size(film_file)
    overlay = overlay_png(evidence, size, predictor.info.preprocessing)
    prediction = replace(answer.prediction, heatmap=base64.b64encode(overlay).decode())
    dataset = read(results_of(film_file, replace(answer, prediction=prediction))[1].data)
    assert dataset.BurnedInAnnotation == "YES"
    pixels = dataset.pixel_array
    film_rows = pixels[: int(pixels.shape[0] * 0.7)]
    assert (film_rows.max(axis=2) - film_rows.min(axis=2)).max() > 40  # colour over a grey film
    strip = pixels[-40:].astype(int)
    assert (strip.max(axis=2) > 200).sum() > 100  # letters


NAMES = {
    "GB18030": ("GB18030", "王^小东".encode("gb18030")),
    "Korean": ("\\ISO 2022 IR 149", b"Hong^Gildong=\x1b$)C\xfb\xf3^\x1b$)C\xd1\xce\xd4\xd7"),
    "Japanese": ("ISO 2022 IR 13\\ISO 2022 IR 87", b"\xd4\xcf\xc0\xde^\xc0\xdb\xb3=\x1b$B;3ED\x1b(J^\x1b$BB@O:\x1b(J"),
    "Latin-1": ("ISO_IR 100", "Müller^Jörg".encode("latin-1")),
    "UTF-8": ("ISO_IR 192", "Σωκράτης".encode()),
    "unknown": ("ISO_IR 999", b"\xff\xfe\x80raw"),
    "undeclared": ("", b"M\xfcller"),
}


@pytest.mark.parametrize("character_set", NAMES)
@pytest.mark.parametrize("syntax", ["1.2.840.10008.1.2", "1.2.840.10008.1.2.1", "1.2.840.10008.1.2.2"])
def test_a_name_comes_back_byte_for_byte_in_whatever_character_set(
    character_set: str, syntax: str, answer: ResultContent
) -> None:
    declared, name = NAMES[character_set]
    data = with_raw_name(modality_film(BLACK, syntax=syntax), declared.encode(), name)
    (report,) = results_of(data, replace(answer, facts=facts_of(data), prediction=None, reason="x"))
    assert raw_value(report.data, 0x00100010).rstrip(b" ") == name
    assert raw_value(report.data, 0x00080005).rstrip(b" ") == declared.encode()


def raw_value(data: bytes, tag: int) -> bytes:
    data_set = open_data_set(data, "x")
    (found,) = [
        data_set.data[element.value : element.end]
        for element in elements(data_set.data, data_set.start, data_set.encoding, "x")
        if element.tag == tag
    ]
    return found


def test_identity_is_read_from_a_film_whose_pixels_are_cut_off() -> None:
    data = modality_film(np.zeros((256, 256), np.uint8))
    whole, cut = read_header(data)[1], read_header(data[:-30_000])[1]
    assert whole == cut
    assert b"Doe^Jane1" in cut[0x00100010]


def test_uids_are_valid_and_follow_from_what_they_name() -> None:
    uid = derived_uid("1.2.3", "model", "kind")
    assert uid == derived_uid("1.2.3", "model", "kind")
    assert uid != derived_uid("1.2.3", "model", "other")
    assert pydicom.uid.UID(uid).is_valid
    assert uid.startswith("2.25.")


def test_a_long_and_foreign_reason_becomes_ascii(film_file: bytes, answer: ResultContent) -> None:
    (report,) = results_of(film_file, replace(answer, prediction=None, reason="größer: 王" * 300))
    dataset = read(report.data)
    assert "gr??er" in text_of(dataset)


def test_a_small_film_gets_a_picture_wide_enough_for_the_notice(predictor: Predictor, answer: ResultContent) -> None:
    assert answer.prediction is not None
    data = modality_film(np.asarray(Image.fromarray(BLACK).resize((80, 90))))
    dataset = read(results_of(data, replace(answer, facts=facts_of(data)))[1].data)
    assert dataset.Columns >= 256


def test_answers_that_differ_in_numbers_alone_are_filled_into_one_form(film_file: bytes, answer: ResultContent) -> None:
    module._form.cache_clear()  # noqa: SLF001
    assert answer.prediction is not None
    for place in range(20):  # each film has numbers of its own; building a form takes as long as three films
        gate = replace(answer.prediction.gate, score=place / 41)
        prediction = replace(
            answer.prediction,
            gate=gate,
            probability=0.9999 - place / 1e6,
            label="pneumonia",
            film_sha256=f"{place:064}",
        )
        facts = replace(answer.facts, **{name: f"1.2.826.{place}.{name != 'study'}" for name in UIDS}, age=place)
        module.results_of(read_header(film_file)[1], replace(answer, facts=facts, prediction=prediction))
    assert module._form.cache_info().misses == 1  # noqa: SLF001
