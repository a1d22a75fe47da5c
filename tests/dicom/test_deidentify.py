"""De-identified copies: every element of the profile is treated, in nested items too, and the pixels stay."""

from __future__ import annotations

import re

import numpy as np
import pytest
from dicomanonymizer.dicomfields_selector import dicom_anonymization_database_selector
from pydicom import Dataset
from pydicom.datadict import DicomDictionary, dictionary_VR

import live_orthanc
from chestxray.dicom.deidentify import TABLE, deidentified
from chestxray.errors import UnreadableFilm, UnsupportedFormat
from hospital import encoded, modality_film, read
from live_orthanc import Orthanc

TAGS = dicom_anonymization_database_selector(TABLE)
SECRET = {
    **dict.fromkeys(("AE", "CS", "SH"), "SECRET77"),
    **dict.fromkeys(("LO", "LT", "PN", "ST", "UC", "UR", "UT"), "Secret77"),
    "DA": "19770707",
    "DT": "19770707070707",
    "TM": "070707.77",
    "AS": "077Y",
    "UI": "1.2.77.77.77",
    "DS": "77.77",
    "IS": "7777",
    "FD": 77.77,
    "FL": 77.77,
    "US": 7777,
    "UL": 7777,
    "SS": 7777,
    "SL": 7777,
    "OB": b"Secret77",
    "UN": b"Secret77",
}
FILM = modality_film(np.arange(4096, dtype=np.uint16).reshape(64, 64).astype(np.uint8))


def single(tag: tuple[int, ...]) -> bool:
    return len(tag) == 2 and tag[0] not in {0x0000, 0x0002}


def known(tag: tuple[int, ...]) -> str:
    try:
        return dictionary_VR(tag).split(" or ")[0]
    except KeyError:
        return ""


PROFILE = sorted(
    {tag for name in TAGS if name != "ALL_TAGS" for tag in TAGS[name] if single(tag) and known(tag) in SECRET}
)


def with_every_element(dataset: Dataset) -> None:
    for tag in PROFILE:
        if tag not in {(0x0008, 0x0018), (0x0028, 0x0301)}:
            dataset.add_new(tag, known(tag), SECRET[known(tag)])


def secrets_in(dataset: Dataset) -> list[str]:
    found = []
    for element in dataset.iterall():
        tag = (element.tag.group, element.tag.element)
        if element.VR != "SQ" and tag in PROFILE and str(element.value) in {str(value) for value in SECRET.values()}:
            found.append(element.keyword)
    return found


@pytest.mark.parametrize("nested", [False, True])
def test_every_element_of_the_profile_is_removed_or_replaced(nested: bool) -> None:
    dataset = read(FILM)
    item = Dataset()
    with_every_element(item)
    if nested:
        dataset.ViewCodeSequence = [item]
    else:
        with_every_element(dataset)
    assert len(secrets_in(dataset)) > 400
    assert secrets_in(read(deidentified(encoded(dataset), "salt"))) == []


@pytest.mark.parametrize("tag", sorted(set(TAGS["X_TAGS"]) & set(PROFILE)))
def test_what_the_profile_removes_is_gone(tag: tuple[int, int]) -> None:
    dataset = read(FILM)
    dataset.add_new(tag, known(tag), SECRET[known(tag)])
    assert tag not in read(deidentified(encoded(dataset), "salt"))


SEQUENCES = sorted(
    {tag for name in TAGS if name != "ALL_TAGS" for tag in TAGS[name] if single(tag) and known(tag) == "SQ"}
)


@pytest.mark.parametrize("tag", SEQUENCES)
def test_what_a_sequence_of_the_profile_holds_is_gone(tag: tuple[int, int]) -> None:
    dataset, item = read(FILM), Dataset()
    item.CodeMeaning = item.TextValue = "Secret77"
    item.PatientName = "Secret77"
    dataset.add_new(tag, "SQ", [item])
    assert b"Secret77" not in deidentified(encoded(dataset), "salt")


def test_every_element_of_the_profile_is_tested_by_its_own_value_or_as_one_of_a_kind() -> None:
    tags = {tag for name in TAGS if name != "ALL_TAGS" for tag in TAGS[name]}
    several = {tag for tag in tags if len(tag) != 2}  # such as (60xx,3000)
    left = {tag for tag in tags - several if tag[0] not in {0x0000, 0x0002}} - set(PROFILE) - set(SEQUENCES)
    assert len(PROFILE) + len(SEQUENCES) > 500
    assert left == {tag for tag in left if not known(tag)}  # retired before the dictionary of the test began
    assert {tag[0] & 0xFF00 for tag in several} <= {0x5000, 0x6000, 0x0000}


@pytest.mark.parametrize("tag", [0x50003000, 0x50020030, 0x60003000, 0x60024000, 0x601E4000])
def test_overlays_and_curves_of_every_group_are_gone(tag: int) -> None:
    dataset = read(FILM)
    dataset.add_new(
        tag, "OW" if tag & 0xFFFF == 0x3000 else "LT", b"Secret77" if tag & 0xFFFF == 0x3000 else "Secret77"
    )
    assert b"Secret77" not in deidentified(encoded(dataset), "salt")


@pytest.mark.skipif(not live_orthanc.HERE, reason=live_orthanc.MISSING)
def test_whatever_another_implementation_of_the_profile_hides_is_hidden_here(pacs: Orthanc) -> None:
    """Orthanc has the profile of 2021b in a table of its own; of the whole dictionary, what it hides is hidden here."""
    dataset = read(FILM)
    kept = {0x00080016, 0x00080018, 0x00080005}
    for tag, (vr, *_) in DicomDictionary.items():
        if vr in SECRET and tag not in kept and tag >> 16 not in {0x0000, 0x0002, 0x0004, 0xFFFE, 0x0028, 0x7FE0}:
            dataset.add_new(tag, vr, SECRET[vr])
    film = encoded(dataset)
    instance = pacs.post("/instances", film)["ID"]
    theirs = read(pacs.post(f"/instances/{instance}/anonymize", {"DicomVersion": "2021b", "Force": True}))
    ours = read(deidentified(film, "salt"))
    hidden = [one.tag for one in dataset if one.tag not in theirs or theirs[one.tag].value != one.value]
    assert len(hidden) > 200
    shown = [str(tag) for tag in hidden if tag in ours and ours[tag].value == dataset[tag].value]
    assert shown == []


def test_private_elements_go_and_pixels_stay() -> None:
    dataset = read(FILM)
    dataset.private_block(0x0099, "SECRET MAKER", create=True).add_new(1, "LO", "Secret77")
    copy = deidentified(encoded(dataset), "salt")
    assert not re.search(b"secret|doe", copy, re.IGNORECASE)
    assert np.array_equal(read(copy).pixel_array, dataset.pixel_array)
    assert read(copy).PatientIdentityRemoved == "YES"


def test_the_same_salt_keeps_the_films_of_a_study_together_and_another_does_not() -> None:
    first, second = (
        modality_film(np.zeros((8, 8), np.uint8)),
        modality_film(np.zeros((8, 8), np.uint8), SOPInstanceUID="1.2.826.1.1.1.2"),
    )
    one, two = read(deidentified(first, "salt")), read(deidentified(second, "salt"))
    assert one.StudyInstanceUID == two.StudyInstanceUID != read(first).StudyInstanceUID
    assert one.SOPInstanceUID != two.SOPInstanceUID
    assert read(deidentified(first, "other")).StudyInstanceUID != one.StudyInstanceUID


def test_a_film_with_something_burnt_in_and_what_is_no_film_are_not_kept() -> None:
    with pytest.raises(UnsupportedFormat, match="burnt into its pixels"):
        deidentified(modality_film(np.zeros((8, 8), np.uint8), BurnedInAnnotation="YES"), "salt")
    with pytest.raises(UnreadableFilm, match="could not be de-identified"):
        deidentified(b"Doe^Jane", "salt")
