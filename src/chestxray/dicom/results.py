"""A prediction as DICOM: a Structured Report, and a picture with the heat map; same study as the film, new series.

Elements that name the patient and the study are copied from the film byte for byte, with the character set. They are
never decoded, so no name can be damaged; our own text is ASCII, which every character set of DICOM contains.

Sources: DICOM PS3.16 TID 1500 (Measurement Report), TID 1501 (its comments: CP-1779), TID 4019 (Algorithm
Identification); PS3.5 annex B.2 (UIDs derived from UUIDs).
"""

from __future__ import annotations

import hashlib
import io
import re
import struct
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from functools import cache, lru_cache
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFont

from chestxray.dicom.queue import Result
from chestxray.dicom.rules import IDENTITY, MANUFACTURER, SOFTWARE, FilmFacts
from chestxray.images.dicom import LONG_VR, PIXEL_DATA, PREAMBLE, Encoding, elements, open_data_set
from chestxray.images.dicom_pixels import EXPLICIT_LITTLE
from chestxray.schema import NOTICE, Prediction

if TYPE_CHECKING:
    from highdicom.sr import CodedConcept, EnhancedSR, MeasurementReport, MeasurementsAndQualitativeEvaluations
    from pydicom import Dataset

ENHANCED_SR: Final = "1.2.840.10008.5.1.4.1.1.88.22"
SECONDARY_CAPTURE: Final = "1.2.840.10008.5.1.4.1.1.7"

REPORT: Final = "sr"
PICTURE: Final = "sc"

# Each kind of result, for the sender and the conformance statement: SOP class, series number, description.
RESULT_KINDS: Final[Mapping[str, tuple[str, int, str]]] = {
    REPORT: (ENHANCED_SR, 9701, "Pneumonia classification - research use only"),
    PICTURE: (SECONDARY_CAPTURE, 9702, "Pneumonia heat map - research use only"),
}

CODING_SCHEME: Final = "99CHESTXRAY"  # designator of codes that are in no standard
REPORTED: Final = ("399208008", "SCT", "Plain chest X-ray")
PNEUMONIA: Final = ("233604007", "SCT", "Pneumonia")
LUNG: Final = ("39607008", "SCT", "Lung")
PRESENT: Final = ("52101004", "SCT", "Present")
ABSENT: Final = ("2667000", "SCT", "Absent")
CERTAINTY: Final = ("111012", "DCM", "Certainty of Finding")  # here: the calibrated probability
PERCENT: Final = ("%", "UCUM", "Percent")
COMMENT: Final = ("121106", "DCM", "Comment")
THRESHOLD: Final = ("threshold", CODING_SCHEME, "Threshold of the operating point")
GATE_DECISION: Final = ("gate", CODING_SCHEME, "Whether the model may classify the film")
GATE_ACCEPTED: Final = ("accepted", CODING_SCHEME, "Accepted")
GATE_REFUSED: Final = ("refused", CODING_SCHEME, "Refused")

_TYPE_2: Final = frozenset(
    {0x00080020, 0x00080030, 0x00080050, 0x00080090, 0x00100010, 0x00100020, 0x00100030, 0x00100040, 0x00200010}
)
OWN_INSTANCE: Final = 0  # place of a result's own UID among the words of its form
_UID_NAMESPACE: Final = uuid.UUID("0f4cb6d2-5f5e-5a07-9a43-5d6e9a0f2a11")  # the name space of our UIDs

STRIP: Final = 22  # pixels of height of a line of the notice
PLACED_SIZE: Final = (251, 257)  # rows and columns of the picture in a form
HEAT_MAP_SIDE: Final = 768  # pixels of the film in a picture, at most; the map behind it has some ten cells a side
MIN_HEAT_MAP_WIDTH: Final = 256  # pixels of a picture, so that the notice can be read


@dataclass(frozen=True, slots=True)
class ResultContent:
    """The content of the answer to a film.

    Attributes:
        facts: facts of the film's header.
        prediction: None if the film could not be read.
        reason: why there is no prediction.
        bundle: name of the bundle, SHA-256 of its graph, SHA-256 of its description.
        received: arrival of the film; it dates the results, so that they can be reproduced byte for byte.
    """

    facts: FilmFacts
    prediction: Prediction | None
    reason: str
    bundle: tuple[str, str, str]
    received: datetime


def derived_uid(*parts: str) -> str:
    """Derive a UID from texts: the same texts give the same UID, on every machine."""
    return f"2.25.{uuid.uuid5(_UID_NAMESPACE, chr(10).join(parts)).int}"


def results_of(
    identity: Mapping[int, bytes], answer: ResultContent, picture: Image.Image | None = None
) -> tuple[Result, ...]:
    """Make the objects that answer a film.

    Args:
        identity: elements of the film that name patient and study, as ``read_header`` returns them.
        answer: the content of the answer.
        picture: the film with the evidence drawn over it, in RGB; None makes no picture, as a refused film has none.

    Returns: the report, and the picture.
    """
    encoded = encoded_identity(identity)
    results = [_filled_in(REPORT, answer, encoded)]
    if picture is not None and answer.prediction is not None:
        results.append(_filled_in(PICTURE, answer, encoded, _with_notice(picture, answer.prediction)))
    return tuple(results)


# --------------------------------------------------------------------------- the patient, untouched


def encoded_identity(identity: Mapping[int, bytes]) -> dict[int, bytes]:
    """Encode the elements that name patient and study in explicit little endian, values unchanged.

    Args:
        identity: values by tag, which are text in the film's own character set.

    Returns: elements by tag; those that a result must have and the film has not are empty (type 2).
    """
    return {tag: _element(tag, _vr(tag), identity.get(tag, b"")) for tag in _TYPE_2 | identity.keys()}


@cache
def _vr(tag: int) -> bytes:
    from pydicom.datadict import dictionary_VR

    return dictionary_VR(tag).encode()


def _element(tag: int, vr: bytes, value: bytes) -> bytes:
    value += b"\0 "[vr not in {b"UI", b"OB"} :][:1] * (len(value) % 2)
    return _head(tag, vr, len(value)) + value


def _head(tag: int, vr: bytes, length: int) -> bytes:
    form = "<HH2sxxL" if vr in LONG_VR else "<HH2sH"
    return struct.pack(form, tag >> 16, tag & 0xFFFF, vr, length)


def _dated(dataset: Dataset, answer: ResultContent) -> Dataset:
    """Set dates that the library takes from its clock, so that the same answer gives the same bytes."""
    moment = answer.received
    date, time = f"{moment:%Y%m%d}", f"{moment:%H%M%S}"
    dataset.InstanceCreationDate, dataset.InstanceCreationTime = date, time
    if "DateOfSecondaryCapture" in dataset:
        dataset.DateOfSecondaryCapture, dataset.TimeOfSecondaryCapture = date, time
    for item in dataset.get("ContributingEquipmentSequence") or ():
        item.ContributionDateTime = f"{moment:%Y%m%d%H%M%S}"
    return dataset


# --------------------------------------------------------------------------- forms, and how they are filled in


class _Place(NamedTuple):
    """An element of a form whose value is the film's own: the word of ``_values_of`` with that number."""

    tag: int
    vr: bytes
    word: int

    def filled(self, words: Sequence[str]) -> bytes:
        """Encode the element with its word."""
        value = _VALUES.get(self.vr, str.encode)(words[self.word])
        return _element(self.tag, self.vr, value)


Pieces = tuple[bytes | _Place, ...]


class _Form(NamedTuple):
    """An encoded object with places to fill in: the file meta information, and each element by its tag."""

    meta: Pieces
    elements: Mapping[int, Pieces]


_VALUES: Final[Mapping[bytes, Callable[[str], bytes]]] = {
    b"DS": lambda word: str(_decimal(word)).encode(),
    b"FD": lambda word: struct.pack("<d", float(word)),
    b"US": lambda word: struct.pack("<H", int(word)),
}


def _decimal(word: str) -> Any:
    from pydicom.valuerep import DS

    return DS(float(word), auto_format=True)


def _filled_in(
    kind: str, answer: ResultContent, identity: Mapping[int, bytes], picture: Image.Image | None = None
) -> Result:
    """Encode a result: the form of the answer's shape, with what is the film's own, and the film's identity."""
    form = _form(kind, _shape(answer, kind))
    words = _values_of(answer, kind, PLACED_SIZE if picture is None else (picture.height, picture.width))
    body = {tag: _joined(pieces, words) for tag, pieces in form.elements.items()} | dict(identity)
    meta = _joined(form.meta, words)
    head = b"\0" * 128 + b"DICM" + _element(0x00020000, b"UL", struct.pack("<L", len(meta)))
    pieces = [head, meta, *(body[tag] for tag in sorted(body))]
    if picture is not None:  # the last element, and a large one: not joined to its head before
        pixels = picture.tobytes()
        padding = b"\0" * (len(pixels) % 2)
        pieces += [_head(PIXEL_DATA, b"OB", len(pixels) + len(padding)), pixels, padding]
    return Result(kind, RESULT_KINDS[kind][0], words[OWN_INSTANCE], b"".join(pieces))


def _joined(pieces: Pieces, words: Sequence[str]) -> bytes:
    return b"".join(piece if isinstance(piece, bytes) else piece.filled(words) for piece in pieces)


@lru_cache(64)
def _form(kind: str, shape: ResultContent) -> _Form:
    """Build a result of a shape with the library, which takes longer than the network takes for a film; cut it up."""
    from pydicom.filewriter import dcmwrite

    dataset = _dated(_BUILDERS[kind](shape), shape)
    for element in dataset.iterall():
        if element.VR == "SQ":  # without stated lengths, what is filled in changes no byte before it
            element.is_undefined_length = True
            for item in element.value:
                item.is_undefined_length_sequence_item = True
    out = io.BytesIO()
    dcmwrite(out, dataset, enforce_file_format=True)
    written = out.getvalue()
    numbers = {word: number for number, word in enumerate(_values_of(shape, kind, PLACED_SIZE))}
    places = [
        _Place(int(element.tag), element.VR.encode(), numbers[text])
        for element in [*dataset.iterall(), *dataset.file_meta]
        if element.VR != "SQ" and (text := str(element.value)) in numbers
    ]
    words = tuple(numbers)
    held = {place.filled(words): place for place in places}
    start = open_data_set(written, kind).start
    length = len(_element(0x00020000, b"UL", bytes(4)))
    found = {
        element.tag: _split_at_placeholders(written[element.start : element.end], held)
        for element in elements(written, start, Encoding(implicit=False, little=True), kind)
        if element.tag not in IDENTITY and element.tag != PIXEL_DATA
    }
    return _Form(_split_at_placeholders(written[PREAMBLE + length : start], held), found)


def _split_at_placeholders(data: bytes, held: Mapping[bytes, _Place]) -> Pieces:
    """Cut encoded elements at those that hold a placeholder."""
    pieces: list[bytes | _Place] = []
    last = 0
    for found in re.finditer(b"|".join(map(re.escape, sorted(held, key=len, reverse=True))), data):
        pieces += [data[last : found.start()], held[found[0]]]
        last = found.end()
    return (*pieces, data[last:])


def _values_of(answer: ResultContent, kind: str, size: Sequence[int]) -> tuple[str, ...]:
    """Return every value that differs between the results of two films of one shape, in a fixed order.

    Args:
        answer: the content of the answer.
        kind: REPORT or PICTURE.
        size: (height, width) of the picture, in pixels.
    """
    facts, bundle, sop_class = answer.facts, answer.bundle[2], RESULT_KINDS[kind][0]
    prediction = answer.prediction
    probability = 0.0 if prediction is None else prediction.probability or 0.0
    return (
        derived_uid(facts.sop_instance, bundle, sop_class),  # OWN_INSTANCE
        derived_uid(facts.study, bundle, sop_class),
        derived_uid("finding", facts.sop_instance, bundle),
        *(facts.study, facts.series, facts.sop_instance),
        *map(str, size),
        str(_instance_number(facts)),
        f"{answer.received:%Y%m%d}",
        f"{answer.received:%H%M%S}",
        f"{answer.received:%Y%m%d%H%M%S}",
        str(_as_percent(probability)),
        *_comments(answer)[:-1],  # the last is the notice
    )


def _shape(answer: ResultContent, kind: str) -> ResultContent:
    """Return the answer with placeholders for the film's own values: equal for all films of one shape."""
    prediction = None if kind == PICTURE else answer.prediction  # a picture says nothing in its elements
    if prediction is not None:
        threshold, sick = prediction.threshold, prediction.label == "pneumonia"
        placed = 0.9876543 * threshold if not sick else threshold + 0.9876543 * (1 - threshold)
        reason = "why" if prediction.gate.reason else ""
        prediction = replace(
            prediction,
            probability=None if prediction.probability is None else placed,
            gate=replace(prediction.gate, reason=reason, score=None),
            heatmap=None,
            film_sha256="0" * 64,
        )
    facts = FilmFacts(answer.facts.sop_class, "1.2.3.1", "1.2.3.2", "1.2.3.3")
    moment = datetime(1901, 2, 3, 4, 5, 6)  # noqa: DTZ001 - a placeholder
    return ResultContent(facts, prediction, "why" if answer.reason and kind == REPORT else "", answer.bundle, moment)


# --------------------------------------------------------------------------- the report


def _library_report(answer: ResultContent) -> EnhancedSR:
    import highdicom
    from highdicom.coding_schemes import CodingSchemeIdentificationItem

    sop_class, number, description = RESULT_KINDS[REPORT]
    scheme = CodingSchemeIdentificationItem(designator=CODING_SCHEME, name="Codes of the chestxray package")
    report = highdicom.sr.EnhancedSR(
        evidence=[_stand_in(answer.facts)],
        content=_content(answer),
        sop_instance_uid=derived_uid(answer.facts.sop_instance, answer.bundle[2], sop_class),
        series_instance_uid=derived_uid(answer.facts.study, answer.bundle[2], sop_class),
        series_number=number,
        instance_number=_instance_number(answer.facts),
        series_description=description,
        manufacturer=MANUFACTURER,
        is_complete=True,
        record_evidence=False,  # the single reference is faster to write than to find in the tree
        coding_schemes=[scheme],
        **_equipment(answer),
    )
    report.CurrentRequestedProcedureEvidenceSequence = _evidence(answer.facts)
    return report


def _evidence(facts: FilmFacts) -> list[Dataset]:
    """Name the film as the subject of the report (PS3.3 C.17.2.3)."""
    from pydicom import Dataset

    film, series, study = Dataset(), Dataset(), Dataset()
    film.ReferencedSOPClassUID, film.ReferencedSOPInstanceUID = facts.sop_class, facts.sop_instance
    series.ReferencedSOPSequence, series.SeriesInstanceUID = [film], facts.series
    study.ReferencedSeriesSequence, study.StudyInstanceUID = [series], facts.study
    return [study]


def _instance_number(facts: FilmFacts) -> int:
    """Number the results of one series by the film's UID, because no counter survives a restart."""
    return 1 + int.from_bytes(hashlib.sha256(facts.sop_instance.encode()).digest()[:3])


def _equipment(answer: ResultContent) -> dict[str, Any]:
    return {
        "manufacturer_model_name": _short(answer.bundle[0]),
        "software_versions": SOFTWARE,
        "device_serial_number": answer.bundle[1],  # SHA-256, 64 characters: the longest value of the element
        "content_date": answer.received.date(),
        "content_time": answer.received.time().replace(microsecond=0),
    }


def _content(answer: ResultContent) -> MeasurementReport:
    from highdicom import sr

    device = sr.DeviceObserverIdentifyingAttributes(
        uid=derived_uid("device", answer.bundle[2]),
        name="chestxray",
        manufacturer_name=MANUFACTURER,
        model_name=_short(answer.bundle[0]),
        serial_number=answer.bundle[1],
    )
    observer = sr.ObserverContext(
        observer_type=_code("121007", "DCM", "Device"), observer_identifying_attributes=device
    )
    return sr.MeasurementReport(
        observation_context=sr.ObservationContext(observer_device_context=observer),
        procedure_reported=_code(*REPORTED),
        imaging_measurements=[_group(answer)],
    )


def _group(answer: ResultContent) -> MeasurementsAndQualitativeEvaluations:
    """Return one measurement group: the finding, the algorithm, the image; or the reason for no finding."""
    from highdicom import sr

    prediction, facts = answer.prediction, answer.facts
    accepted = prediction is not None and prediction.gate.accepted
    evaluations = [
        sr.QualitativeEvaluation(_code(*GATE_DECISION), _code(*(GATE_ACCEPTED if accepted else GATE_REFUSED)))
    ]
    measured = []
    if prediction is not None and prediction.probability is not None:
        present = PRESENT if prediction.label == "pneumonia" else ABSENT
        evaluations.append(sr.QualitativeEvaluation(_code(*PNEUMONIA), _code(*present)))
        measured = [_percent(CERTAINTY, prediction.probability), _percent(THRESHOLD, prediction.threshold)]
    group = sr.MeasurementsAndQualitativeEvaluations(
        tracking_identifier=sr.TrackingIdentifier(
            uid=derived_uid("finding", facts.sop_instance, answer.bundle[2]), identifier="pneumonia"
        ),
        finding_sites=[sr.FindingSite(_code(*LUNG))],
        algorithm_id=sr.AlgorithmIdentification("chestxray", SOFTWARE, parameters=_parameters(answer)),
        measurements=measured or None,
        qualitative_evaluations=evaluations,
        source_images=[sr.SourceImageForMeasurementGroup(facts.sop_class, facts.sop_instance)],
    )
    for text in _comments(answer):
        group[0].ContentSequence.append(
            sr.TextContentItem(_code(*COMMENT), text, relationship_type=sr.RelationshipTypeValues.CONTAINS)
        )
    return group


def _percent(name: tuple[str, str, str], share: float) -> Any:
    from highdicom import sr

    return sr.Measurement(name=_code(*name), value=_as_percent(share), unit=_code(*PERCENT))


def _as_percent(share: float) -> float:
    return round(100.0 * share, 4)


def _parameters(answer: ResultContent) -> Sequence[str]:
    model, graph, bundle = answer.bundle
    parameters = [f"model: {model}", f"model SHA-256: {graph}", f"bundle SHA-256: {bundle}"]
    if answer.prediction is not None:
        parameters += [
            f"operating point: {answer.prediction.operating_point}",
            f"threshold: {answer.prediction.threshold:.6f}",
        ]
    return [_ascii(text) for text in parameters]


def _comments(answer: ResultContent) -> list[str]:
    prediction = answer.prediction
    reason = answer.reason if prediction is None else prediction.gate.reason
    comments = [f"Not classified: {reason}"] if reason else []
    if prediction is not None and prediction.probability is not None:
        comments.append(_sentence(prediction))
    if prediction is not None:
        comments += [f"Note: {note}" for note in prediction.notes]
    return [_ascii(text) for text in (*comments, NOTICE)]


def _sentence(prediction: Prediction) -> str:
    probability = prediction.probability or 0.0
    return (
        f"{prediction.label}: calibrated probability of pneumonia {probability:.1%}, "
        f"threshold {prediction.threshold:.1%} ({prediction.operating_point})"
    )


def _code(value: str, scheme: str, meaning: str) -> CodedConcept:
    from highdicom.sr import CodedConcept

    return CodedConcept(value, scheme, meaning)


def _ascii(text: str) -> str:
    return text.encode("ascii", "replace").decode()


def _short(text: str) -> str:
    return _ascii(text)[:64]


def _stand_in(facts: FilmFacts) -> Dataset:
    """Return a stand-in for the film where a library needs its header: real UIDs, no name."""
    from pydicom import Dataset

    dataset = Dataset()
    dataset.SOPClassUID, dataset.SOPInstanceUID = facts.sop_class, facts.sop_instance
    dataset.StudyInstanceUID, dataset.SeriesInstanceUID = facts.study, facts.series
    for name in ("PatientID", "PatientName", "PatientBirthDate", "PatientSex", "AccessionNumber", "StudyID"):
        setattr(dataset, name, "")
    for name in ("StudyDate", "StudyTime", "ReferringPhysicianName"):
        setattr(dataset, name, "")
    return dataset


# --------------------------------------------------------------------------- the picture


def _library_picture(answer: ResultContent, pixels: npt.NDArray[np.uint8] | None = None) -> Dataset:
    import highdicom
    from pydicom import Dataset
    from pydicom.sequence import Sequence as Items

    facts = answer.facts
    sop_class, number, description = RESULT_KINDS[PICTURE]
    picture = highdicom.sc.SCImage(
        pixel_array=np.zeros((*PLACED_SIZE, 3), np.uint8) if pixels is None else pixels,
        photometric_interpretation="RGB",
        bits_allocated=8,
        coordinate_system="PATIENT",
        study_instance_uid=facts.study,
        series_instance_uid=derived_uid(facts.study, answer.bundle[2], sop_class),
        series_number=number,
        sop_instance_uid=derived_uid(facts.sop_instance, answer.bundle[2], sop_class),
        instance_number=_instance_number(facts),
        manufacturer=MANUFACTURER,
        patient_orientation=("L", "F"),  # required here, and emptied below: it was not measured
        laterality="L",
        series_description=description,
        transfer_syntax_uid=EXPLICIT_LITTLE,
        **_equipment(answer),
    )
    source = Dataset()
    source.ReferencedSOPClassUID, source.ReferencedSOPInstanceUID = facts.sop_class, facts.sop_instance
    picture.SourceImageSequence = Items([source])
    picture["PatientOrientation"].value = None
    del picture.Laterality  # a chest has no laterality
    picture.BodyPartExamined = "CHEST"
    picture.ImageType = ["DERIVED", "SECONDARY"]
    picture.DerivationDescription = "The film with the evidence for pneumonia drawn over it"
    picture.BurnedInAnnotation = "YES"
    picture.ImageComments = _ascii(NOTICE)
    return picture


_BUILDERS: Final[Mapping[str, Callable[[ResultContent], Dataset]]] = {
    REPORT: _library_report,
    PICTURE: _library_picture,
}


def _with_notice(film: Image.Image, prediction: Prediction) -> Image.Image:
    """Burn the result and the notice into a strip below the picture."""
    width = max(film.width, MIN_HEAT_MAP_WIDTH)
    strips = [_strip(text, width) for text in (_sentence(prediction), NOTICE)]
    canvas = Image.new("RGB", (width, film.height + sum(strip.height for strip in strips) + 4), "black")
    canvas.paste(film, ((width - film.width) // 2, 0))
    top = film.height + 4
    for strip in strips:
        canvas.paste(strip, (0, top))
        top += strip.height
    return canvas


@lru_cache(64)
def _strip(text: str, width: int) -> Image.Image:
    """Draw a text in lines of at most that many pixels."""
    lines = _wrapped(text, width - 12)
    strip = Image.new("RGB", (width, STRIP * len(lines)), "black")
    draw = ImageDraw.Draw(strip)
    for place, line in enumerate(lines):
        draw.text((6, STRIP * place), line, fill=(255, 214, 120), font=_font())
    return strip


@lru_cache(1)
def _font() -> Any:
    return ImageFont.load_default(size=13)


def _wrapped(text: str, width: int) -> list[str]:
    lines = [""]
    for word in _ascii(text).split():
        longer = f"{lines[-1]} {word}".strip()
        if _font().getlength(longer) > width and lines[-1]:
            lines.append(word)
        else:
            lines[-1] = longer
    return lines
