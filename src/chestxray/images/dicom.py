"""DICOM: finding what a radiograph needs of a file, and reading it.

A library builds an object for each element and each item, some 500 bytes for 8 in the file; 64 MB of empty items would
take gigabytes. Here elements are stepped over where they lie, and only those that a radiograph needs are handed on.

pydicom is imported when the first DICOM file arrives. No message holds a value of the file that could name a patient:
foreign errors are replaced, not quoted, and the patient's name is never read.

Source: DICOM PS3.5 sections 7.1 (elements), 7.5 (sequences), A.4 (encapsulated pixels); PS3.10 section 7 (files).
"""

from __future__ import annotations

import io
import re
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import date
from typing import Any, Final, NamedTuple

import numpy as np

from chestxray.errors import (
    ChestXrayError,
    FilmTooLarge,
    MissingExtra,
    TruncatedFilm,
    UnreadableFilm,
    UnsupportedFormat,
)
from chestxray.images.dicom_pixels import (
    BYTE,
    DEFLATED,
    EXPLICIT_BIG,
    EXPLICIT_LITTLE,
    IMPLICIT_LITTLE,
    SYNTAXES,
    Frame,
    grey_levels,
    stored_values,
)
from chestxray.images.radiograph import MAX_PIXELS, Pixels, Radiograph, check_pixels, grey_of_colour

MAX_VALUE: Final = 2**20  # bytes of one header element; a look-up table of 65,536 entries takes an eighth

# What a radiograph needs of the header (PS3.6). The patient's name is not among them.
NEEDED: Final = frozenset(
    {
        0x00080005, 0x00080060, 0x00180015, 0x00185101,  # character set, modality, body part, view
        0x00080020, 0x00080021, 0x00080022, 0x00080023,  # dates
        0x0008103E, 0x00200020, 0x00540220,  # description, orientation, code of the view
        0x00100020, 0x00100030, 0x00101010,  # patient: identifier, birth date, age
        0x00280002, 0x00280004, 0x00280006, 0x00280008, 0x00280010, 0x00280011,  # samples, rows, columns, frames
        0x00280100, 0x00280101, 0x00280102, 0x00280103, 0x00280120, 0x00280121,  # bits, sign, padding
        0x00281050, 0x00281051, 0x00281052, 0x00281053, 0x00281054, 0x00281056,  # window, rescale
        0x00281101, 0x00281102, 0x00281103, 0x00281201, 0x00281202, 0x00281203,  # palette
        0x00283000, 0x00283010, 0x20500010, 0x20500020,  # modality, VOI and presentation tables
    }
)  # fmt: skip

COLOURS: Final = frozenset({"RGB", "YBR_FULL", "YBR_FULL_422", "YBR_ICT", "YBR_RCT"})  # all arrive as RGB

OLDEST: Final = 115  # years; an age beyond that, or a birth date before, stands for one that was taken out
FIRST_YEAR: Final = (
    1902  # of birth; what programs write for "unknown" lies before: 18000101, 18991230, 19000101, 19010101
)
YEARS: Final = {"D": 1 / 365.25, "W": 7 / 365.25, "M": 1 / 12, "Y": 1.0}  # units of an age (PS3.5 section 6.2, AS)
WORDS_FOR_YEARS: Final = frozenset("AJ")  # ans, anos, Jahre
DATES: Final = ("StudyDate", "SeriesDate", "AcquisitionDate", "ContentDate")


MAX_ELEMENTS: Final = 50_000  # stepped over, in all; radiographs have some hundreds
MAX_INFLATED: Final = 2 * MAX_PIXELS + 2**24  # bytes: the largest film at 16 bits, and a generous header

PIXEL_DATA: Final = 0x7FE00010
TRANSFER_SYNTAX: Final = 0x00020010

_UNDEFINED: Final = 0xFFFFFFFF
_ITEM: Final = 0xFFFEE000
_ITEM_END: Final = 0xFFFEE00D
_SEQUENCE_END: Final = 0xFFFEE0DD
_PREAMBLE: Final = 128
_HEADER: Final = 8  # bytes of an element before its value, at least
_SHORT: Final = 64  # bytes; the identifying elements of group 8 are no longer
_LAST_IDENTIFYING: Final = 0x1200  # of the elements that a data set may begin with
_LAST_GROUP: Final = 0x0020  # that may follow the first element
_SHORT_VR: Final = frozenset(b"AE AS AT CS DA DS DT FL FD IS LO LT PN SH SL SS ST TM UI UL US".split())  # 16-bit length
_LONG_VR: Final = frozenset(b"OB OD OF OL OV OW SQ SV UC UN UR UT UV".split())  # 32-bit length


class Encoding(NamedTuple):
    """How elements are written."""

    implicit: bool
    little: bool


class Element(NamedTuple):
    """One element: ``data[start:end]`` is all of it, ``data[value:end]`` its value; ``vr`` empty where implicit."""

    tag: int
    vr: bytes
    start: int
    value: int
    end: int


@dataclass(frozen=True, slots=True)
class DataSet:
    """Where the data set of a file lies.

    Attributes:
        data: the file, or what it inflates to.
        start: of the first element.
    """

    data: bytes
    start: int
    encoding: Encoding
    transfer_syntax: str


def is_dicom(data: bytes) -> bool:
    """Whether this begins like a DICOM file, or like a bare data set of file meta or identifying elements."""
    if data[_PREAMBLE : _PREAMBLE + 4] == b"DICM":
        return True
    if len(data) < 2 * _HEADER:
        return False
    group = data[:2]
    if group == b"\x02\x00":
        return _encoding_at(data, 0) is not None
    if group in {b"\x08\x00", b"\x00\x08"}:
        encoding = _encoding_at(data, 0)
        return encoding is not None and _is_followed(data, encoding)
    return False


def _encoding_at(data: bytes, start: int) -> Encoding | None:
    """How the element there is written, by its value representation or, without one, its length."""
    if len(data) < start + _HEADER:
        return None
    little = data[start : start + 1] != b"\0"
    if data[start + 4 : start + 6] in _SHORT_VR | _LONG_VR:
        return Encoding(implicit=False, little=little)
    (length,) = struct.unpack("<L", data[start + 4 : start + 8])
    return Encoding(implicit=True, little=True) if little and length <= _SHORT else None


def _is_followed(data: bytes, encoding: Encoding) -> bool:
    """Whether behind the first element another begins, of a greater tag, as in nothing else that starts so."""
    try:
        walk = _Walk(data, "")
        tag, _, value, length = walk.header(0, encoding)
        second = walk.header(walk.bounded(value, length), encoding)[0]
    except ChestXrayError:
        return False
    return tag & 0xFFFF <= _LAST_IDENTIFYING and tag < second and second >> 16 <= _LAST_GROUP


def open_data_set(data: bytes, source: str) -> DataSet:
    """Read the file meta information, and inflate a deflated data set up to a limit.

    Raises: FilmTooLarge, TruncatedFilm, UnreadableFilm.
    """
    start = _PREAMBLE + 4 if data[_PREAMBLE : _PREAMBLE + 4] == b"DICM" else 0
    syntax = ""
    if data[start : start + 2] == b"\x02\x00":
        meta = _encoding_at(data, start) or Encoding(implicit=False, little=True)  # some are written without VR
        for element in elements(data, start, meta, source, group=0x0002):
            if element.tag == TRANSFER_SYNTAX:
                syntax = data[element.value : element.end].decode("ascii", "replace").strip("\0 ")
            start = element.end
    if syntax == DEFLATED:
        data, start = _inflated(data, start, source), 0
    # Some files state one way and are written the other; the first element shows which.
    implicit = data[start + 4 : start + 6] not in _SHORT_VR | _LONG_VR
    if not syntax:
        big = not implicit and data[start : start + 1] == b"\0"
        syntax = IMPLICIT_LITTLE if implicit else EXPLICIT_BIG if big else EXPLICIT_LITTLE
    return DataSet(data, start, Encoding(implicit, syntax != EXPLICIT_BIG), syntax)


def elements(data: bytes, start: int, encoding: Encoding, source: str, group: int | None = None) -> Iterator[Element]:
    """The elements of the outermost level in order, to Pixel Data, or to the end of a group.

    Raises: TruncatedFilm, where the file ends within an element; UnreadableFilm, where it is not DICOM.
    """
    walk = _Walk(data, source)
    position = start
    while position < len(data):
        if group is not None and data[position : position + 2] != group.to_bytes(2, "little"):
            return
        tag, vr, value, length = walk.header(position, encoding)
        end = walk.end_of(tag, value, length, encoding)
        yield Element(tag, vr, position, value, end)
        if tag == PIXEL_DATA:
            return
        position = end


def fragments(data: bytes, element: Element, source: str) -> Iterator[bytes]:
    """The values of the items of encapsulated Pixel Data: first the offset table, then the pieces of the frame."""
    position = element.value
    little = Encoding(implicit=True, little=True)
    walk = _Walk(data, source)
    while position < element.end:
        tag, _, value, length = walk.header(position, little)
        if tag == _SEQUENCE_END:
            return
        if tag != _ITEM or length == _UNDEFINED:
            raise UnreadableFilm(f"{source}: the DICOM file's compressed pixels do not lie in items. Copy it again")
        yield data[value : walk.bounded(value, length)]
        position = value + length


class _Walk:
    """Steps over the elements of a data set, and counts them."""

    def __init__(self, data: bytes, source: str) -> None:
        self._data = data
        self._source = source
        self._steps = 0

    def header(self, position: int, encoding: Encoding) -> tuple[int, bytes, int, int]:
        """Tag, value representation (empty where implicit), where the value lies, its length."""
        self._steps += 1
        if self._steps > MAX_ELEMENTS:
            raise FilmTooLarge(f"{self._source}: the DICOM file has more than {MAX_ELEMENTS:,} elements")
        order = "<" if encoding.little else ">"
        group, number, length = self._unpack(f"{order}HHL", position)
        tag, value = group << 16 | number, position + 8
        if encoding.implicit or group == _ITEM >> 16:
            return tag, b"", value, length
        vr = self._data[position + 4 : position + 6]
        if vr in _LONG_VR:
            (length,) = self._unpack(f"{order}L", value)
            return tag, vr, value + 4, length
        if vr in _SHORT_VR:
            (length,) = self._unpack(f"{order}H", position + 6)
            return tag, vr, value, length
        raise UnreadableFilm(f"{self._source}: the DICOM file is damaged at byte {position:,}. Copy it again")

    def end_of(self, tag: int, value: int, length: int, encoding: Encoding) -> int:
        """Where the element after this one begins."""
        if length != _UNDEFINED:
            return self.bounded(value, length)
        if tag == PIXEL_DATA:
            return len(self._data)
        return self._end_of_sequence(value, encoding)

    def bounded(self, value: int, length: int) -> int:
        """The end of a value. Raises: TruncatedFilm, where that lies beyond the end of the file."""
        if value + length > len(self._data):
            raise TruncatedFilm(f"{self._source}: the DICOM file ends before its picture does. Copy it again")
        return value + length

    def _end_of_sequence(self, position: int, encoding: Encoding) -> int:
        """Step over a sequence of undefined length, and over whatever of undefined length lies in it."""
        depth = [_SEQUENCE_END]  # what ends each level that is open
        while depth:
            tag, vr, position, length = self.header(position, encoding)
            if tag == depth[-1]:
                depth.pop()
            elif length != _UNDEFINED:
                position = self.bounded(position, length)
            else:
                depth.append(_ITEM_END if tag == _ITEM else _SEQUENCE_END)
                if vr == b"UN":  # its content is implicit little endian (PS3.5 section 6.2.2, note 4)
                    position = self._end_of_sequence(position, Encoding(implicit=True, little=True))
                    depth.pop()
        return position

    def _unpack(self, form: str, position: int) -> tuple[int, ...]:
        try:
            return struct.unpack_from(form, self._data, position)
        except struct.error:
            raise TruncatedFilm(f"{self._source}: the DICOM file ends within its header. Copy it again") from None


def _inflated(data: bytes, start: int, source: str) -> bytes:
    inflater = zlib.decompressobj(-zlib.MAX_WBITS)
    try:
        plain = inflater.decompress(memoryview(data)[start:], MAX_INFLATED + 1)
    except zlib.error:
        raise UnreadableFilm(f"{source}: the deflated DICOM file is damaged. Copy it again") from None
    if len(plain) > MAX_INFLATED:
        raise FilmTooLarge(f"{source}: inflates to more than {MAX_INFLATED:,} bytes. Export a smaller copy")
    if not inflater.eof:
        raise TruncatedFilm(f"{source}: the deflated DICOM file ends before its picture does. Copy it again")
    return plain


# --------------------------------------------------------------------------- a radiograph


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
        notes: list[str] = []
        frame = _frame(header, source, notes)
        pieces = list(fragments(data_set.data, pixels, source))[1:] if syntax.check else []  # behind the offset table
        coded = data_set.data[pixels.value : pixels.end]
        stored = stored_values(coded, pieces, data_set.transfer_syntax, frame, pixels.vr.decode(), source)
        levels, coloured = _shown(stored, frame, header, source, notes)
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
            view_meaning=_meaning(header, "ViewCodeSequence"),
            body_part=_text(header, "BodyPartExamined"),
            orientation=_text(header, "PatientOrientation"),
            series_description=_text(header, "SeriesDescription"),
            patient_id=str(header.get("PatientID") or "").strip(),
            patient_age_years=age_in_years(header),
            notes=tuple(notes),
        )
    except ChestXrayError:
        raise
    except Exception as error:  # noqa: BLE001 - pydicom's and its decoders' errors derive from anything
        # The cause is cut off: its text may quote the file, and with it the patient.
        raise UnreadableFilm(
            f"{source}: the DICOM header or its pixels are damaged, or of a rare kind ({type(error).__name__}). "
            "Open it in a viewer; if that shows it, export it from there"
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


def _frame(header: Any, source: str, notes: list[str]) -> Frame:
    """What the header says of the frame, within the limits. Raises: UnsupportedFormat, FilmTooLarge."""
    if missing := [name for name in ("Rows", "Columns", "BitsAllocated") if header.get(name) is None]:
        raise UnreadableFilm(
            f"{source}: the DICOM header is damaged: it lacks {' and '.join(missing)}. Export it again"
        )
    frames = int(header.get("NumberOfFrames") or 1)
    samples = int(header.get("SamplesPerPixel") or 1)
    photometric = _text(header, "PhotometricInterpretation").replace("MONOCHROME ", "MONOCHROME")
    if not photometric:
        photometric = "RGB" if samples > 1 else "MONOCHROME2"
        notes.append(f"its photometric interpretation is missing and was taken for {photometric}")
    frame = Frame(
        rows=int(header.Rows),
        columns=int(header.Columns),
        samples=samples,
        allocated=int(header.BitsAllocated),
        stored=int(header.get("BitsStored") or header.BitsAllocated),
        signed=int(header.get("PixelRepresentation") or 0),
        photometric=photometric,
        planes_apart=int(header.get("PlanarConfiguration") or 0),
    )
    check_pixels(source, frame.columns, frame.rows, frame.samples, max(1, frames))
    if frames != 1:
        raise UnsupportedFormat(f"{source}: the DICOM file has {frames} frames; a radiograph has one. Export it alone")
    if frame.allocated not in {8, 16} or not 1 <= frame.stored <= frame.allocated or frame.signed not in {0, 1}:
        raise UnsupportedFormat(
            f"{source}: DICOM samples of {frame.stored} bits in {frame.allocated}; 1 to 16 bits in 8 or 16 are read"
        )
    if header.get("HighBit") not in (None, frame.stored - 1):
        raise UnsupportedFormat(
            f"{source}: DICOM samples of {frame.stored} bits whose highest is bit {int(header.HighBit)}; those are "
            f"read that end at bit {frame.stored - 1}. Export it again"
        )
    if min(frame.rows, frame.columns) < 1 or frame.samples not in {1, 3}:
        raise UnreadableFilm(
            f"{source}: the DICOM header tells of {frame.rows} x {frame.columns} pixels. Copy it again"
        )
    return frame


def _shown(stored: Any, frame: Frame, header: Any, source: str, notes: list[str]) -> tuple[Pixels, float]:
    """Grey levels, and the share of coloured pixels."""
    if frame.photometric in {"MONOCHROME1", "MONOCHROME2"} and frame.samples == 1:
        return grey_levels(stored, frame, header, notes), 0.0
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
    """In capitals; several values with the standard's separator between them."""
    try:
        value = header.get(name)
    except ValueError:  # a value that is none of its kind
        return ""
    several = not isinstance(value, str) and hasattr(value, "__iter__")
    return ("\\".join(map(str, value)) if several else str(value or "")).strip(" \0").upper()


def _meaning(header: Any, name: str) -> str:
    """The words of a code, in capitals; empty where there are none."""
    try:
        return _text(header.get(name)[0], "CodeMeaning")
    except (TypeError, LookupError, AttributeError, ValueError):
        return ""


def age_in_years(header: Any) -> float | None:
    """Tell the years at the time of the film, by the age or the birth date in the file; None where it has neither."""
    years = years_of(_text(header, "PatientAge"))
    if years is not None:
        return years
    born = _date(header, "PatientBirthDate")
    taken = next((day for name in DATES if (day := _date(header, name))), None)
    if born is None or taken is None:
        return None
    days = (taken - born).days
    return days * YEARS["D"] if 0 <= days <= OLDEST / YEARS["D"] else None


def _date(header: Any, name: str) -> date | None:
    """A date, also as older files write it ("1998.04.23"); None where it only stands for one."""
    digits = re.sub(r"\D", "", _text(header, name))[:8]
    try:
        day = date.fromisoformat(digits)
    except ValueError:
        return None
    return day if day.year >= FIRST_YEAR else None


def years_of(age: str) -> float | None:
    """Years of an age as people write it: "018M", "62", "62 Y", "6 months"; None where it is none.

    None of a unit is half of one: "000Y" is an infant of unknown months. Zero without a unit says nothing.
    """
    found = re.fullmatch(r"(\d{1,4}(?:[.,]\d+)?)\s*([A-Z]?)\D*", age.strip(" \0"))
    if not found:
        return None
    number, unit = float(found[1].replace(",", ".")), found[2]
    if unit in WORDS_FOR_YEARS or (not unit and number > 0):
        unit = "Y"
    if unit not in YEARS:
        return None
    years = (number or 0.5) * YEARS[unit]
    return years if years <= OLDEST else None
