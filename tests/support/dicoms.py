"""DICOM files of known pixels, for tests: written by pydicom, or by hand where no writer would."""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pydicom.data
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.encaps import encapsulate
from pydicom.sequence import Sequence
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
)

SHIPPED = Path(pydicom.data.__file__).parent / "test_files"

NATIVE = {
    "implicit": ImplicitVRLittleEndian,
    "explicit": ExplicitVRLittleEndian,
    "big endian": ExplicitVRBigEndian,
    "deflated": DeflatedExplicitVRLittleEndian,
}


def header(pixels: npt.NDArray[np.generic], **elements: object) -> Dataset:
    """A data set that describes these pixels and does not hold them yet."""
    dataset = Dataset()
    dataset.SOPClassUID = "1.2.840.10008.5.1.4.1.1.1.1"
    dataset.PatientName = "Doe^Jane"
    dataset.Rows, dataset.Columns = pixels.shape[:2]
    dataset.SamplesPerPixel = 1 if pixels.ndim == 2 else pixels.shape[2]
    dataset.PhotometricInterpretation = "MONOCHROME2" if pixels.ndim == 2 else "RGB"
    if pixels.ndim > 2:
        dataset.PlanarConfiguration = 0
    dataset.BitsAllocated = dataset.BitsStored = 8 * pixels.itemsize
    dataset.PixelRepresentation = int(np.issubdtype(pixels.dtype, np.signedinteger))
    for name, value in elements.items():
        setattr(dataset, name, value)
    dataset.HighBit = elements.get("HighBit", dataset.BitsStored - 1)
    return dataset


def written(dataset: Dataset, syntax: str) -> bytes:
    """The file of a data set in a transfer syntax."""
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = syntax
    dataset.file_meta.MediaStorageSOPClassUID = dataset.SOPClassUID
    dataset.file_meta.MediaStorageSOPInstanceUID = "1.2.3"
    dataset.SOPInstanceUID = "1.2.3"
    out = io.BytesIO()
    pydicom.dcmwrite(out, dataset, enforce_file_format=True)
    return out.getvalue()


def native(pixels: npt.NDArray[np.generic], syntax: str = "explicit", **elements: object) -> bytes:
    """A file of uncompressed pixels."""
    dataset = header(pixels, **elements)
    order = ">" if syntax == "big endian" else "<"
    raw = np.ascontiguousarray(pixels.astype(pixels.dtype.newbyteorder(order))).tobytes()
    dataset.PixelData = raw + b"\0" * (len(raw) % 2)
    dataset["PixelData"].VR = "OW" if pixels.itemsize == 2 else "OB"
    return written(dataset, NATIVE[syntax])


def coded(frames: Iterable[bytes], syntax: str, pixels: npt.NDArray[np.generic], **elements: object) -> bytes:
    """A file of frames that are compressed already."""
    dataset = header(pixels, **elements)
    dataset.PixelData = encapsulate(list(frames))
    dataset["PixelData"].VR = "OB"
    dataset["PixelData"].is_undefined_length = True
    return written(dataset, syntax)


def compressed(pixels: npt.NDArray[np.generic], syntax: str, **elements: object) -> bytes:
    """A file that pydicom compresses: RLE, JPEG-LS or JPEG 2000."""
    dataset = header(pixels, **elements)
    dataset.file_meta = FileMetaDataset()
    dataset.compress(syntax, pixels, generate_instance_uid=False)
    return written(dataset, syntax)


def table(entries: npt.ArrayLike, first: int = 0, bits: int = 16) -> Sequence:
    """A look-up table as a sequence of one item."""
    item = Dataset()
    values = np.asarray(entries)
    item.add_new("LUTDescriptor", "US", [len(values) % 65536, first % 65536, bits])
    item.add_new("LUTData", "OW", values.astype("<u2").tobytes())
    return Sequence([item])


def hand_made(
    *elements: tuple[int, bytes, bytes], syntax: bytes = b"1.2.840.10008.1.2.1\0", deflate: bool = False
) -> bytes:
    """An explicit little endian file of such elements (tag, VR, value), whatever they hold."""
    meta = b"\x02\x00\x10\x00UI" + struct.pack("<H", len(syntax)) + syntax
    body = b"".join(explicit(*element) for element in elements)
    if deflate:
        packer = zlib.compressobj(9, zlib.DEFLATED, -15)
        body = packer.compress(body) + packer.flush()
    return b"\0" * 128 + b"DICM" + meta + body


def explicit(tag: int, vr: bytes, value: bytes, length: int | None = None) -> bytes:
    """One element in explicit little endian; ``length`` is claimed in place of the true one."""
    claimed = len(value) if length is None else length
    head = struct.pack("<HH", tag >> 16, tag & 0xFFFF) + vr
    if vr in {b"OB", b"OW", b"SQ", b"UN", b"UT"}:
        return head + b"\0\0" + struct.pack("<L", claimed) + value
    return head + struct.pack("<H", claimed) + value


def geometry(
    rows: int, columns: int, samples: int = 1, bits: int = 8, frames: int = 1
) -> list[tuple[int, bytes, bytes]]:
    """The elements that claim a size."""
    short = struct.Struct("<H").pack
    return [
        (0x00280002, b"US", short(samples)),
        (0x00280004, b"CS", b"MONOCHROME2 " if samples == 1 else b"RGB "),
        (0x00280008, b"IS", str(frames).encode().ljust(len(str(frames)) + len(str(frames)) % 2)),
        (0x00280010, b"US", short(rows)),
        (0x00280011, b"US", short(columns)),
        (0x00280100, b"US", short(bits)),
        (0x00280101, b"US", short(bits)),
        (0x00280103, b"US", short(0)),
    ]
