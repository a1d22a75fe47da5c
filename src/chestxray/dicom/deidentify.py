"""De-identified copies for research: the Basic Application Level Confidentiality Profile, by a maintained library.

The library (dicom-anonymizer) has the table of the profile (PS3.15 table E.1-1) and its actions. Three things are
stricter here: what the profile removes is removed (the library leaves a date of the year 1 in place of a date), nested
items are treated like the outermost level, and a UID is replaced by one derived from it and the site's salt, so that
the films of a study stay together in all copies.

The profile does not look at pixels: a film whose header states burnt-in annotations gets no copy.
"""

from __future__ import annotations

import io
import warnings
from collections.abc import Callable, Iterator, Mapping
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Final

from chestxray.dicom.results import derived_uid
from chestxray.errors import UnreadableFilm, UnsupportedFormat

if TYPE_CHECKING:
    from pydicom import Dataset
    from pydicom.dataelem import DataElement

TABLE: Final = "dicomfields_2026c"  # edition of the standard behind the library's table
METHOD: Final = "Basic Application Level Confidentiality Profile (PS3.15 E.1), private elements removed"
PROFILE_CODE: Final = ("113100", "DCM", "Basic Application Confidentiality Profile")

Action = Callable[[Any, Any], None]


def is_deidentified(head: bytes) -> bool:
    """Check whether a file that begins so is a copy that ``deidentified`` made."""
    return METHOD[:64].encode() in head


def deidentified(data: bytes, salt: str, source: str = "film") -> bytes:
    """Make a copy of a film without anything that identifies the patient.

    Args:
        data: a DICOM file.
        salt: the site's salt; with it, the same UID is always replaced by the same UID.
        source: the film's name in errors.

    Returns: a DICOM file with the same pixels.
    Raises: UnsupportedFormat, if the header states burnt-in annotations; UnreadableFilm.
    """
    import pydicom

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            dataset = pydicom.dcmread(io.BytesIO(data))
            burnt_in = str(dataset.get("BurnedInAnnotation") or "").strip().upper()
            if burnt_in != "YES":
                _treat(dataset, salt)
                return _written(dataset)
        except Exception as error:  # noqa: BLE001 - nothing is kept of a failed copy; the error may quote the file
            raise UnreadableFilm(
                f"{source}: could not be de-identified ({type(error).__name__}). Give an undamaged DICOM film"
            ) from None
    raise UnsupportedFormat(f"{source}: says that something is burnt into its pixels, so no copy of it is kept")


def _treat(dataset: Dataset, salt: str) -> None:
    from dicomanonymizer import simpledicomanonymizer

    for level in _levels(dataset):
        simpledicomanonymizer.anonymize_dataset(level, base_rules_gen=lambda: dict(_rules(salt)))
    simpledicomanonymizer.dictionary.clear()  # the library remembers every UID that it has replaced
    dataset.PatientIdentityRemoved = "YES"
    dataset.DeidentificationMethod = METHOD[:64]
    dataset.DeidentificationMethodCodeSequence = [_coded(*PROFILE_CODE)]


def _levels(dataset: Dataset) -> Iterator[Dataset]:
    """Yield the outermost level, then the items of what is left of it."""
    yield dataset
    for element in list(dataset):
        if element.VR == "SQ":
            for item in element.value:
                yield from _levels(item)


@lru_cache(2)
def _rules(salt: str) -> Mapping[Any, Action]:
    """Return the library's table of the profile, with our two stricter actions."""
    from dicomanonymizer.dicomfields_selector import dicom_anonymization_database_selector
    from dicomanonymizer.simpledicomanonymizer import initialize_actions

    def renamed(dataset: Any, tag: Any) -> None:
        element: DataElement | None = dataset.get(tag)
        if element is not None and element.VR == "UI":
            values = element.value if isinstance(element.value, list) else [element.value]
            fresh = [derived_uid("research", salt, str(value)) for value in values if value]
            element.value = fresh if len(fresh) > 1 else (fresh or [""])[0]

    tags = dicom_anonymization_database_selector(TABLE)
    rules = dict(initialize_actions(TABLE))
    rules |= {tag: _removed for tag in tags["X_TAGS"] if len(tag) == len(("group", "element"))}
    return rules | dict.fromkeys(tags["U_TAGS"], renamed)


def _removed(dataset: Any, tag: Any) -> None:
    if tag in dataset:
        del dataset[tag]


def _coded(value: str, scheme: str, meaning: str) -> Dataset:
    from pydicom import Dataset

    item = Dataset()
    item.CodeValue, item.CodingSchemeDesignator, item.CodeMeaning = value, scheme, meaning
    return item


def _written(dataset: Dataset) -> bytes:
    from pydicom import dcmwrite

    dataset.file_meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID
    for name in ("SourceApplicationEntityTitle", "SendingApplicationEntityTitle", "ReceivingApplicationEntityTitle"):
        if name in dataset.file_meta:
            del dataset.file_meta[name]
    dataset.preamble = b"\0" * 128
    out = io.BytesIO()
    dcmwrite(out, dataset, enforce_file_format=True)
    return out.getvalue()
