"""Films as a modality would send them, and a node's settings for a test."""

from __future__ import annotations

import io
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pydicom
from PIL import Image
from pydicom.dataset import FileMetaDataset
from pydicom.uid import UID

import dicoms
from chestxray.dicom.settings import NodeSettings

CR = "1.2.840.10008.5.1.4.1.1.1"
DX = "1.2.840.10008.5.1.4.1.1.1.1"
BUNDLE = "pneumonia"

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
