"""Films as a modality would send them, and a node's settings for a test."""

from __future__ import annotations

import io
import threading
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pydicom
from PIL import Image
from pydicom.dataset import FileMetaDataset
from pydicom.uid import UID
from pynetdicom import AE, evt
from pynetdicom.transport import ThreadedAssociationServer

import dicoms
from chestxray.dicom.node import Node
from chestxray.dicom.receive import silence_libraries
from chestxray.dicom.settings import NodeSettings
from live_orthanc import free_port

CR = "1.2.840.10008.5.1.4.1.1.1"
DX = "1.2.840.10008.5.1.4.1.1.1.1"
BUNDLE = "pneumonia"
EXPLICIT = "1.2.840.10008.1.2.1"
VERIFICATION = "1.2.840.10008.1.1"

JPEG = "1.2.840.10008.1.2.4.50"
COMPRESSED = {  # by pydicom's own encoders
    "1.2.840.10008.1.2.5": "RLE",
    "1.2.840.10008.1.2.4.80": "JPEG-LS lossless",
    "1.2.840.10008.1.2.4.81": "JPEG-LS near lossless",
    "1.2.840.10008.1.2.4.90": "JPEG 2000 lossless",
    "1.2.840.10008.1.2.4.91": "JPEG 2000",
}
LIBJPEG = {"1.2.840.10008.1.2.4.51": False, "1.2.840.10008.1.2.4.57": True, "1.2.840.10008.1.2.4.70": True}  # lossless
NATIVE = {str(uid): name for name, uid in dicoms.NATIVE.items()}
EVERY_SYNTAX = (*NATIVE, JPEG, *LIBJPEG, *COMPRESSED)


@lru_cache(64)
def grey(path: Path) -> npt.NDArray[np.uint8]:
    with Image.open(path) as film:
        return np.asarray(film.convert("L"))


def modality_film(
    pixels: npt.NDArray[np.uint8], number: int = 1, syntax: str = "1.2.840.10008.1.2.1", **elements: Any
) -> bytes:
    """A DICOM file of these pixels, the ``number``-th film of the hospital, in that transfer syntax."""
    given = {
        "SOPClassUID": DX, "Modality": "DX", "StudyInstanceUID": f"1.2.826.1.{number}", "SeriesNumber": 1,
        "SeriesInstanceUID": f"1.2.826.1.{number}.1", "PatientID": f"P{number}", "PatientName": f"Doe^Jane{number}",
        "PatientBirthDate": "20200101", "PatientSex": "F", "PatientAge": "003Y", "StudyDate": "20260115",
        "StudyTime": "101500", "AccessionNumber": f"A{number}", "StudyID": "1", "ReferringPhysicianName": "Roe^R",
        "BodyPartExamined": "CHEST", "ViewPosition": "AP", "InstanceNumber": 1,
    } | elements  # fmt: skip
    if syntax in NATIVE:
        data = dicoms.native(pixels, NATIVE[syntax], **given)
    elif syntax in COMPRESSED:
        data = _compressed(pixels, syntax, given)
    else:
        data = dicoms.coded([_jpeg(pixels, syntax)], syntax, pixels, **given)
    instance = str(elements.get("SOPInstanceUID", f"1.2.826.1.{number}.1.1"))
    dataset = pydicom.dcmread(io.BytesIO(data))
    dataset.SOPInstanceUID = dataset.file_meta.MediaStorageSOPInstanceUID = UID(instance)
    return encoded(dataset)


def _compressed(pixels: npt.NDArray[np.uint8], syntax: str, elements: dict[str, Any]) -> bytes:
    dataset = dicoms.header(pixels, **elements)
    dataset.file_meta = FileMetaDataset()
    options = {"1.2.840.10008.1.2.4.91": {"j2k_psnr": [60]}, "1.2.840.10008.1.2.4.81": {"jls_error": 2}}
    dataset.compress(syntax, pixels, generate_instance_uid=False, **options.get(syntax, {}))
    return dicoms.written(dataset, syntax)


def _jpeg(pixels: npt.NDArray[np.uint8], syntax: str) -> bytes:
    if syntax == JPEG:
        out = io.BytesIO()
        Image.fromarray(pixels).save(out, "JPEG", quality=95)
        return out.getvalue()
    from imagecodecs import jpeg8_encode, ljpeg_encode

    return bytes(ljpeg_encode(pixels) if LIBJPEG[syntax] else jpeg8_encode(pixels, level=95))


def encoded(dataset: pydicom.Dataset) -> bytes:
    out = io.BytesIO()
    pydicom.dcmwrite(out, dataset, enforce_file_format=True)
    return out.getvalue()


def read(data: bytes) -> pydicom.Dataset:
    return pydicom.dcmread(io.BytesIO(data))


def settings_text(folder: Path, pacs: int, more: str = "", port: int = 0, node: str = "", destination: str = "") -> str:
    """The TOML of a node whose results go to an AE on loopback."""
    return f"""
[node]
folder = "{folder}"
port = {port}
http_port = 0
bundle = "{BUNDLE}"
workers = 1
{node}

[[destination]]
name = "pacs"
{destination or f'host = "127.0.0.1"{chr(10)}port = {pacs}{chr(10)}ae_title = "ORTHANC"'}

[[rule]]
name = "chest films"
modality = ["CR", "DX"]
send_to = ["pacs"]

{more}
"""


def settings(folder: Path, pacs: int, more: str = "", **options: Any) -> NodeSettings:
    return NodeSettings.from_toml(settings_text(folder, pacs, more, **options), "node.toml")


def with_raw_name(data: bytes, declared: bytes, name: bytes) -> bytes:
    """The film with these bytes as its character set and its patient's name, whatever they are."""
    return with_raw_elements(data, {0x00080005: ("CS", declared), 0x00100010: ("PN", name)})


def with_raw_elements(data: bytes, values: Mapping[int, tuple[str, bytes]]) -> bytes:
    """The film with these elements, by tag: value representation and bytes, whatever they are."""
    dataset = read(data)
    little, implicit = dataset.file_meta.TransferSyntaxUID.is_little_endian, dataset.is_implicit_VR
    for number, (vr, value) in values.items():
        padded, tag = value + b" " * (len(value) % 2), pydicom.tag.Tag(number)
        dataset._dict[tag] = pydicom.dataelem.RawDataElement(  # noqa: SLF001 - no writer makes these
            tag, vr, len(padded), padded, 0, implicit, little, True
        )
    out = io.BytesIO()
    pydicom.filewriter.write_file_meta_info(out, dataset.file_meta)
    body = pydicom.filebase.DicomBytesIO()
    body.is_little_endian, body.is_implicit_VR = little, implicit
    for tag in sorted(dataset._dict):  # noqa: SLF001
        pydicom.filewriter.write_data_element(body, dataset._dict[tag])  # noqa: SLF001
    return b"\0" * 128 + b"DICM" + out.getvalue() + body.getvalue()


class Archive:
    """A destination as bad as a test wants it.

    Attributes:
        status: what C-STORE is answered with.
        objects: what was accepted, by SOP Instance UID; not filled where only ``came`` is wanted.
        came: how often each UID was accepted, and of which modality it is.
    """

    def __init__(self, *, keep: bool = True) -> None:
        silence_libraries()
        self.status = 0x0000
        self.objects: dict[str, list[pydicom.Dataset]] = {}
        self.came: Counter[str] = Counter()
        self.modality: dict[str, str] = {}
        self.sources: dict[str, str] = {}
        self.port = free_port()
        self._keep = keep
        self._server: ThreadedAssociationServer | None = None
        self._lock = threading.Lock()

    def start(self) -> None:
        entity = AE("ORTHANC")
        for sop_class in ("1.2.840.10008.5.1.4.1.1.88.22", "1.2.840.10008.5.1.4.1.1.7"):
            entity.add_supported_context(sop_class)
        self._server = entity.start_server(
            ("127.0.0.1", self.port), block=False, evt_handlers=[(evt.EVT_C_STORE, self._store)]
        )

    def stop(self) -> None:
        if self._server is not None:
            self._server.ae.shutdown()  # ends open associations as well
            self._server = None

    def clear(self) -> None:
        self.status = 0x0000
        self.objects.clear()

    def _store(self, event: Any) -> int:
        if self.status == 0:
            dataset = event.dataset
            uid = str(dataset.SOPInstanceUID)
            with self._lock:
                self.came[uid] += 1
                self.modality[uid] = str(dataset.Modality)
                if dataset.Modality == "SR":
                    self.sources[uid] = source_of(dataset)
                if self._keep:
                    self.objects.setdefault(uid, []).append(dataset)
        return self.status


def source_of(report: pydicom.Dataset) -> str:
    """SOP Instance UID of the film that a report is about."""
    series = report.CurrentRequestedProcedureEvidenceSequence[0].ReferencedSeriesSequence[0]
    return str(series.ReferencedSOPSequence[0].ReferencedSOPInstanceUID)


@contextmanager
def association(
    node: Node, *classes: str, title: str = "ROOM1", syntax: str = EXPLICIT, seconds: float = 30.0, **options: Any
) -> Iterator[Any]:
    entity = AE(title)
    entity.dimse_timeout = seconds
    for sop_class in classes or (VERIFICATION, DX):
        entity.add_requested_context(sop_class, syntax)
    opened = entity.associate("127.0.0.1", node.port, ae_title=options.pop("called", "CHESTXRAY"), **options)
    try:
        yield opened
    finally:
        if opened.is_established:
            opened.release()


def send(node: Node, *films: bytes, **options: Any) -> list[int]:
    with association(node, **options) as opened:
        assert opened.is_established
        return [opened.send_c_store(read(film)).Status for film in films]
