"""DICOM: a table of transfer syntaxes; limits and the frame's own header are checked before anything is decoded.

pydicom is imported when the first DICOM file arrives. No message holds a value of the file that could name a
patient: foreign errors are replaced, not quoted, and the patient's name is never read.
"""

from __future__ import annotations

import io
import struct
from datetime import date
from typing import Any, Final

import numpy as np

from chestxray.errors import ChestXrayError, MissingExtra, TruncatedFilm, UnreadableFilm, UnsupportedFormat
from chestxray.images.dicom_elements import (
    BYTE,
    EXPLICIT_LITTLE,
    PIXEL_DATA,
    SYNTAXES,
    TURBO,
    DataSet,
    Element,
    Frame,
    Syntax,
    elements,
    fragments,
    is_dicom,
    open_data_set,
)
from chestxray.images.dicom_pixels import grey_levels
from chestxray.images.radiograph import Pixels, Radiograph, check_pixels, grey_of_colour

__all__ = ["age_in_years", "is_dicom", "read_dicom"]

MAX_VALUE: Final = 2**20  # bytes of one header element; a look-up table of 65,536 entries takes an eighth

# What a radiograph needs of the header (PS3.6). The patient's name is not among them.
NEEDED: Final = frozenset(
    {
        0x00080005, 0x00080020, 0x00080060, 0x00180015, 0x00185101,  # character set, date, modality, body part, view
        0x00100020, 0x00100030, 0x00101010,  # patient: identifier, birth date, age
        0x00280002, 0x00280004, 0x00280006, 0x00280008, 0x00280010, 0x00280011,  # samples, rows, columns, frames
        0x00280100, 0x00280101, 0x00280102, 0x00280103, 0x00280120, 0x00280121,  # bits, sign, padding
        0x00281050, 0x00281051, 0x00281052, 0x00281053, 0x00281054, 0x00281056,  # window, rescale
        0x00281101, 0x00281102, 0x00281103, 0x00281201, 0x00281202, 0x00281203,  # palette
        0x00283000, 0x00283010, 0x20500010, 0x20500020,  # modality, VOI and presentation tables
    }
)  # fmt: skip

COLOURS: Final = frozenset({"RGB", "YBR_FULL", "YBR_FULL_422", "YBR_ICT", "YBR_RCT"})  # all arrive as RGB

OLDEST: Final = 120  # years; a birth date before that stands for one that was taken out
YEARS: Final = {"D": 1 / 365.25, "W": 7 / 365.25, "M": 1 / 12, "Y": 1.0}  # units of an age (PS3.5 section 6.2, AS)


def read_dicom(data: bytes, source: str, _at_least: tuple[int, int] | None) -> Radiograph:
    """One frame of DICOM, with or without its preamble.

    Raises: UnsupportedFormat, for several frames, reports, and depths or syntaxes that are not read; FilmTooLarge,
        TruncatedFilm, UnreadableFilm; MissingExtra.
    """
    try:
        import pydicom  # noqa: F401
    except ImportError:
        raise MissingExtra("Reading DICOM", "dicom") from None
    data_set = open_data_set(data, source)
    syntax = SYNTAXES.get(data_set.transfer_syntax)
    if syntax is None:
        name = data_set.transfer_syntax if set(data_set.transfer_syntax) <= set("0123456789.") else "no syntax at all"
        raise UnsupportedFormat(f"{source}: DICOM pixels in the transfer syntax {name[:64]}, which is not read")
    try:
        header, pixels = _header(data_set, source)
        frame = _frame(header, source)
        stored = _stored(data_set, pixels, syntax, frame, source)
        levels, coloured = _shown(stored, frame, header, source)
        return Radiograph(
            levels,
            frame.columns,
            frame.rows,
            3 if frame.photometric == "PALETTE COLOR" else frame.samples,
            frame.stored,
            coloured,
            modality=_text(header, "Modality"),
            photometric=frame.photometric,
            view_position=_text(header, "ViewPosition"),
            body_part=_text(header, "BodyPartExamined"),
            patient_id=str(header.get("PatientID") or "").strip(),
            patient_age_years=age_in_years(header),
        )
    except ChestXrayError:
        raise
    except Exception as error:  # noqa: BLE001 - pydicom's and its decoders' errors derive from anything
        # The cause is cut off: its text may quote the file, and with it the patient.
        raise UnreadableFilm(
            f"{source}: the DICOM header or its pixels are damaged ({type(error).__name__}). Copy it again"
        ) from None


def _header(data_set: DataSet, source: str) -> tuple[Any, Element]:
    """The needed part of the header as pydicom reads it, and where the pixels lie."""
    from pydicom.filereader import read_dataset

    data, picked, pixels = data_set.data, [], None
    for element in elements(data, data_set.start, data_set.encoding, source):
        if element.tag == PIXEL_DATA:
            pixels = element
        elif element.tag in NEEDED:
            if element.end - element.value > MAX_VALUE:
                raise UnreadableFilm(f"{source}: an element of the DICOM header takes more than {MAX_VALUE:,} bytes")
            picked.append(data[element.start : element.end])
    if pixels is None:
        raise UnsupportedFormat(f"{source}: a DICOM object without pixels: no radiograph")
    header = read_dataset(io.BytesIO(b"".join(picked)), *data_set.encoding)
    return header, pixels


def _frame(header: Any, source: str) -> Frame:
    """What the header says of the frame, within the limits. Raises: UnsupportedFormat, FilmTooLarge."""
    frames = int(header.get("NumberOfFrames") or 1)
    frame = Frame(
        rows=int(header.Rows),
        columns=int(header.Columns),
        samples=int(header.get("SamplesPerPixel") or 1),
        allocated=int(header.BitsAllocated),
        stored=int(header.get("BitsStored") or header.BitsAllocated),
        signed=int(header.get("PixelRepresentation") or 0),
        photometric=_text(header, "PhotometricInterpretation"),
        planes_apart=int(header.get("PlanarConfiguration") or 0),
    )
    check_pixels(source, frame.columns, frame.rows, frame.samples, max(1, frames))
    if frames != 1:
        raise UnsupportedFormat(f"{source}: the DICOM file has {frames} frames; a radiograph has one. Export it alone")
    if frame.allocated not in {8, 16} or not 1 <= frame.stored <= frame.allocated or frame.signed not in {0, 1}:
        raise UnsupportedFormat(
            f"{source}: DICOM samples of {frame.stored} bits in {frame.allocated}; 1 to 16 bits in 8 or 16 are read"
        )
    if min(frame.rows, frame.columns) < 1 or frame.samples not in {1, 3}:
        raise UnreadableFilm(
            f"{source}: the DICOM header tells of {frame.rows} x {frame.columns} pixels. Copy it again"
        )
    return frame


def _stored(data_set: DataSet, element: Element, syntax: Syntax, frame: Frame, source: str) -> Any:
    """The stored values: shape (rows, columns), or (rows, columns, 3) as red, green, blue."""
    from pydicom.pixels.decoders.base import get_decoder

    coded = data_set.data[element.value : element.end]
    if syntax.check is None:
        expected = frame.size * 2 // 3 if frame.photometric == "YBR_FULL_422" else frame.size
        if len(coded) < expected:
            raise TruncatedFilm(f"{source}: the DICOM file ends before its picture does. Copy it again")
    else:
        pieces = list(fragments(data_set.data, element, source))
        try:
            syntax.check(b"".join(pieces[1:]), frame)  # the first item is the offset table
        except (ValueError, struct.error) as error:
            raise UnreadableFilm(f"{source}: the {syntax.name} DICOM file {error}. Copy it again") from None
    photometric, transfer_syntax = frame.photometric, data_set.transfer_syntax
    if syntax.plugin == TURBO:
        coded, transfer_syntax = _by_libjpeg_turbo(b"".join(pieces[1:]), syntax, frame), EXPLICIT_LITTLE
        photometric = "RGB" if frame.samples > 1 else photometric  # libjpeg has turned YBR into it
    decoder = get_decoder(transfer_syntax)
    if transfer_syntax == data_set.transfer_syntax and syntax.plugin not in ("", *decoder.available_plugins):
        raise MissingExtra(f"Reading DICOM in {syntax.name} ({syntax.library})", "dicom")
    options: dict[str, Any] = {
        "allow_excess_frames": False,
        "rows": frame.rows,
        "columns": frame.columns,
        "samples_per_pixel": frame.samples,
        "bits_allocated": frame.allocated,
        "bits_stored": frame.stored,
        "pixel_representation": frame.signed,
        "photometric_interpretation": photometric,
        "planar_configuration": 0 if syntax.plugin == TURBO else frame.planes_apart,
        "number_of_frames": 1,
        "pixel_keyword": "PixelData",
        "pixel_vr": element.vr.decode() or "OW",
    }
    plugin = "" if syntax.plugin == TURBO else syntax.plugin
    values, _ = decoder.as_array(coded, decoding_plugin=plugin, **options)
    return values


def _by_libjpeg_turbo(coded: bytes, syntax: Syntax, frame: Frame) -> bytes:
    """A JPEG frame as uncompressed little-endian samples. Raises: MissingExtra; RuntimeError, where it is damaged."""
    try:
        from imagecodecs import jpeg8_decode
    except ImportError:
        raise MissingExtra(f"Reading DICOM in {syntax.name} ({syntax.library})", "dicom") from None
    samples = jpeg8_decode(coded)
    if samples.size != frame.rows * frame.columns * frame.samples:
        raise ValueError("a JPEG of another size than its header")
    return bytes(samples.astype(f"<u{frame.allocated // 8}").tobytes())


def _shown(stored: Any, frame: Frame, header: Any, source: str) -> tuple[Pixels, float]:
    """Grey levels, and the share of coloured pixels."""
    if frame.photometric in {"MONOCHROME1", "MONOCHROME2"} and frame.samples == 1:
        return grey_levels(stored, frame.stored, header), 0.0
    if frame.photometric == "PALETTE COLOR":
        from pydicom.pixels.processing import apply_color_lut

        stored = apply_color_lut(stored, header)
        bits = int(header.RedPaletteColorLookupTableDescriptor[2])
    elif frame.photometric in COLOURS and frame.samples == len("RGB"):
        bits = frame.stored
    else:
        raise UnsupportedFormat(f"{source}: DICOM colours of another kind than RGB, YBR or palette")
    narrow = stored >> max(0, bits - BYTE)
    return grey_of_colour(np.ascontiguousarray(narrow, dtype=np.uint8))


def _text(header: Any, name: str) -> str:
    return str(header.get(name) or "").strip().upper()


def age_in_years(header: Any) -> float | None:
    """Tell the years at the time of the film, by the age or the birth date in the file; None where it gives neither."""
    years = _years(str(header.get("PatientAge") or ""))
    if years is not None:
        return years
    try:
        born, taken = (date.fromisoformat(str(header.get(name))) for name in ("PatientBirthDate", "StudyDate"))
    except ValueError:
        return None
    days = (taken - born).days
    return days * YEARS["D"] if 0 <= days <= OLDEST / YEARS["D"] else None


def _years(age: str) -> float | None:
    """Years of an age such as "018M", a year and a half; None where the file gives no age."""
    number, unit = age.strip()[:-1], age.strip()[-1:].upper()
    return int(number) * YEARS[unit] if number.isascii() and number.isdigit() and unit in YEARS else None
