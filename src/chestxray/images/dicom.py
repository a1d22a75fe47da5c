"""DICOM: find the elements that a radiograph needs, and read them.

A library builds an object for each element and each item, some 500 bytes for 8 in the file; 64 MB of empty items would
take gigabytes. Here elements are skipped in place, and only those that a radiograph needs are passed to pydicom.

pydicom is imported when the first DICOM file arrives. No message holds a value that could name a patient: errors of
other libraries are replaced, not quoted, and the patient's name is never read.

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
from chestxray.images import MAX_PIXELS, Pixels, Radiograph, check_packed, check_pixels, grey_of_colour
from chestxray.images.dicom_pixels import (
    BYTE,
    DEFLATED,
    EXPLICIT_BIG,
    EXPLICIT_LITTLE,
    IMPLICIT_LITTLE,
    SYNTAXES,
    Frame,
    displayed_levels,
    stored_values,
)
from chestxray.text import without_accents

MAX_VALUE: Final = 2**20  # bytes of one header element; a look-up table of 65,536 entries needs an eighth of this

# The header elements that a radiograph needs (PS3.6). The patient's name is not among them.
NEEDED: Final = frozenset(
    {
        0x00080005, 0x00080060, 0x00180015, 0x00185101,  # character set, modality, body part, view
        0x00080020, 0x00080021, 0x00080022, 0x00080023, 0x0008002A, 0x00400244,  # dates
        0x0008103E, 0x00181030, 0x00200020, 0x00540220, 0x00082218,  # description, protocol, orientation, codes
        0x00100020, 0x00100030, 0x00101010,  # patient: identifier, birth date, age
        0x00280002, 0x00280004, 0x00280006, 0x00280008, 0x00280010, 0x00280011,  # samples, rows, columns, frames
        0x00280100, 0x00280101, 0x00280102, 0x00280103, 0x00280120, 0x00280121,  # bits, sign, padding
        0x00281050, 0x00281051, 0x00281052, 0x00281053, 0x00281054, 0x00281056,  # window, rescale
        0x00281101, 0x00281102, 0x00281103, 0x00281201, 0x00281202, 0x00281203,  # palette
        0x00283000, 0x00283010, 0x20500010, 0x20500020,  # modality, VOI and presentation tables
    }
)  # fmt: skip

# decoders return all of these as RGB
COLOUR_SPACES: Final = frozenset({"RGB", "YBR_FULL", "YBR_FULL_422", "YBR_ICT", "YBR_RCT"})

OLDEST: Final = 115  # years; a greater age, or an earlier birth date, is a placeholder for a removed value
# The first year of birth: programs write earlier dates for "unknown": 18000101, 18991230, 19000101, 19010101.
FIRST_YEAR: Final = 1902
# Units of an age (PS3.5 section 6.2, AS), and hours.
YEARS_A_UNIT: Final = {"H": 1 / 8766, "D": 1 / 365.25, "W": 7 / 365.25, "M": 1 / 12, "Y": 1.0}
# Beginnings of words for a unit, without accents, in the order in which they are tried.
AGE_UNITS: Final = (
    ("D", ("D", "TAG", "JOUR", "GIORN", "PAIV", "ДН", "ДЕН", "日", "天", "일")),
    ("W", ("W", "SEM", "SETTIM", "TYD", "TYG", "VECK", "UGE", "НЕД", "周", "週", "주")),
    ("M", ("M", "МЕС", "月", "ヶ月", "か月", "カ月", "个月", "個月", "개월")),  # noqa: RUF001
    ("Y", ("Y", "A", "J", "LET", "LAT", "ROK", "GOD", "ЛЕТ", "ГОД", "ΕΤ", "岁", "歲", "歳", "才", "세", "살", "VUO")),  # noqa: RUF001
    ("H", ("H", "STD", "STUND")),
)
DATES: Final = (
    "StudyDate", "SeriesDate", "AcquisitionDate", "ContentDate", "AcquisitionDateTime",
    "PerformedProcedureStepStartDate",
)  # fmt: skip


MAX_ELEMENTS: Final = 50_000  # elements that are skipped in all; radiographs have some hundreds
MAX_INFLATED: Final = 2 * MAX_PIXELS + 2**24  # bytes: the largest film at 16 bits, and a generous header

PIXEL_DATA: Final = 0x7FE00010
TRANSFER_SYNTAX: Final = 0x00020010

_UNDEFINED: Final = 0xFFFFFFFF
_ITEM: Final = 0xFFFEE000
_ITEM_END: Final = 0xFFFEE00D
_SEQUENCE_END: Final = 0xFFFEE0DD
PREAMBLE: Final = 128 + len("DICM")  # bytes before the file meta information
_HEADER: Final = 8  # least number of bytes of an element before its value
_SHORT: Final = 64  # bytes; the identifying elements of group 8 are no longer
_LAST_IDENTIFYING: Final = 0x1200  # of the elements with which a data set may begin
_LAST_GROUP: Final = 0x0020  # that may follow the first element
_SHORT_VR: Final = frozenset(b"AE AS AT CS DA DS DT FL FD IS LO LT PN SH SL SS ST TM UI UL US".split())  # 16-bit length
LONG_VR: Final = frozenset(b"OB OD OF OL OV OW SQ SV UC UN UR UT UV".split())  # 32-bit length


class Encoding(NamedTuple):
    """How the elements of a file are written."""

    implicit: bool
    little: bool


class Element(NamedTuple):
    """One element: ``data[start:end]`` is all of it, ``data[value:end]`` its value; ``vr`` is empty if implicit."""

    tag: int
    vr: bytes
    start: int
    value: int
    end: int


@dataclass(frozen=True, slots=True)
class DataSet:
    """The position of the data set in a file.

    Attributes:
        data: the file, or the inflated file.
        start: position of the first element.
    """

    data: bytes
    start: int
    encoding: Encoding
    transfer_syntax: str


def is_dicom(data: bytes) -> bool:
    """Check whether bytes begin like a DICOM file, or like a bare data set of file meta or identifying elements."""
    if data[PREAMBLE - 4 : PREAMBLE] == b"DICM":
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
    """Return the encoding of the element at a position, from its value representation or, without one, its length."""
    if len(data) < start + _HEADER:
        return None
    little = data[start : start + 1] != b"\0"
    if data[start + 4 : start + 6] in _SHORT_VR | LONG_VR:
        return Encoding(implicit=False, little=little)
    (length,) = struct.unpack("<L", data[start + 4 : start + 8])
    return Encoding(implicit=True, little=True) if little and length <= _SHORT else None


def _is_followed(data: bytes, encoding: Encoding) -> bool:
    """Check whether a second element with a greater tag follows the first, as in DICOM and in no similar file."""
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
    start = PREAMBLE if data[PREAMBLE - 4 : PREAMBLE] == b"DICM" else 0
    syntax = ""
    if data[start : start + 2] == b"\x02\x00":
        # some files write these elements without VR
        meta = _encoding_at(data, start) or Encoding(implicit=False, little=True)
        for element in elements(data, start, meta, source, group=0x0002):
            if element.tag == TRANSFER_SYNTAX:
                syntax = data[element.value : element.end].decode("ascii", "replace").strip("\0 ")
            start = element.end
    if syntax == DEFLATED:
        data, start = _inflated(data, start, source), 0
    # Some files state one encoding and use another; the first element shows which one is used.
    implicit = data[start + 4 : start + 6] not in _SHORT_VR | LONG_VR
    if not syntax:
        big = not implicit and data[start : start + 1] == b"\0"
        syntax = IMPLICIT_LITTLE if implicit else EXPLICIT_BIG if big else EXPLICIT_LITTLE
    return DataSet(data, start, Encoding(implicit, syntax != EXPLICIT_BIG), syntax)


def elements(data: bytes, start: int, encoding: Encoding, source: str, group: int | None = None) -> Iterator[Element]:
    """Yield the outermost elements in order, up to Pixel Data, or up to the end of a group.

    Raises: TruncatedFilm, if the file ends within an element; UnreadableFilm, if it is not DICOM.
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
    """Yield the items of encapsulated Pixel Data: first the offset table, then the pieces of the frame."""
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
    """Skips over the elements of a data set, and counts them."""

    def __init__(self, data: bytes, source: str) -> None:
        self._data = data
        self._source = source
        self._steps = 0

    def header(self, position: int, encoding: Encoding) -> tuple[int, bytes, int, int]:
        """Return tag, value representation (empty if implicit), position of the value, and its length."""
        self._steps += 1
        if self._steps > MAX_ELEMENTS:
            raise FilmTooLarge(f"{self._source}: the DICOM file has more than {MAX_ELEMENTS:,} elements")
        order = "<" if encoding.little else ">"
        group, number, length = self._unpack(f"{order}HHL", position)
        tag, value = group << 16 | number, position + 8
        if encoding.implicit or group == _ITEM >> 16:
            return tag, b"", value, length
        vr = self._data[position + 4 : position + 6]
        if vr in LONG_VR:
            (length,) = self._unpack(f"{order}L", value)
            return tag, vr, value + 4, length
        if vr in _SHORT_VR:
            (length,) = self._unpack(f"{order}H", position + 6)
            return tag, vr, value, length
        raise UnreadableFilm(f"{self._source}: the DICOM file is damaged at byte {position:,}. Copy it again")

    def end_of(self, tag: int, value: int, length: int, encoding: Encoding) -> int:
        """Return the position after an element."""
        if length != _UNDEFINED:
            return self.bounded(value, length)
        if tag == PIXEL_DATA:
            return len(self._data)
        return self._end_of_sequence(value, encoding)

    def bounded(self, value: int, length: int) -> int:
        """Return the end of a value. Raises: TruncatedFilm, if the end is beyond the end of the file."""
        if value + length > len(self._data):
            raise TruncatedFilm(f"{self._source}: the DICOM file ends before its picture does. Copy it again")
        return value + length

    def _end_of_sequence(self, position: int, encoding: Encoding) -> int:
        """Skip a sequence of undefined length, with everything of undefined length inside it."""
        depth = [_SEQUENCE_END]  # the end mark of each open level
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
    """Read one frame of DICOM, with or without preamble.

    Raises: UnsupportedFormat, for several frames, reports, and depths or syntaxes that are not supported; FilmTooLarge,
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
        if syntax.check or data_set.transfer_syntax == DEFLATED:
            check_packed(source, frame.columns, frame.rows, len(data))
        # the pieces after the offset table
        pieces = list(fragments(data_set.data, pixels, source))[1:] if syntax.check else []
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
            body_part=_text(header, "BodyPartExamined") or _meaning(header, "AnatomicRegionSequence"),
            orientation=_text(header, "PatientOrientation"),
            series_description=_text(header, "SeriesDescription") or _text(header, "ProtocolName"),
            patient_id=str(header.get("PatientID") or "").strip(),
            patient_age_years=age_in_years(header),
            notes=tuple(notes),
        )
    except ChestXrayError:
        raise
    except Exception as error:  # noqa: BLE001 - errors of pydicom and its decoders have no common class
        # The cause is removed: its text may quote the file, and so the patient.
        raise UnreadableFilm(
            f"{source}: the DICOM header or its pixels are damaged, or of a rare kind ({type(error).__name__}). "
            "Open it in a viewer; if that shows it, export it from there"
        ) from None


def _header(data_set: DataSet, source: str) -> tuple[Any, Element]:
    """Return the needed part of the header as pydicom reads it, and the position of the pixels."""
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
    """Return what the header states about the frame, within limits. Raises: UnsupportedFormat, FilmTooLarge."""
    if missing := [name for name in ("Rows", "Columns", "BitsAllocated") if header.get(name) is None]:
        raise UnreadableFilm(
            f"{source}: the DICOM header is damaged: it lacks {' and '.join(missing)}. Export it again"
        )
    frames = int(header.get("NumberOfFrames") or 1)
    samples = int(header.get("SamplesPerPixel") or 1)
    photometric = _text(header, "PhotometricInterpretation").replace("MONOCHROME ", "MONOCHROME")
    if not photometric:
        photometric = "RGB" if samples > 1 else "MONOCHROME2"
        notes.append(f"its photometric interpretation is missing and is treated as {photometric}")
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
        raise UnreadableFilm(f"{source}: the DICOM header states {frame.rows} x {frame.columns} pixels. Copy it again")
    return frame


def _shown(stored: Any, frame: Frame, header: Any, source: str, notes: list[str]) -> tuple[Pixels, float]:
    """Return the displayed grey levels, and the fraction of coloured pixels."""
    if frame.photometric in {"MONOCHROME1", "MONOCHROME2"} and frame.samples == 1:
        return displayed_levels(stored, frame, header, notes), 0.0
    if frame.photometric == "PALETTE COLOR":
        from pydicom.pixels.processing import apply_color_lut

        stored = apply_color_lut(stored, header)
        bits = int(header.RedPaletteColorLookupTableDescriptor[2])
    elif frame.photometric in COLOUR_SPACES and frame.samples == len("RGB"):
        bits = frame.stored
    else:
        raise UnsupportedFormat(f"{source}: DICOM colours of another kind than RGB, YBR or palette")
    narrow = stored >> max(0, bits - BYTE)
    return grey_of_colour(np.ascontiguousarray(narrow, dtype=np.uint8))


def _text(header: Any, name: str) -> str:
    """Return an element's text in capitals; several values are joined by the standard's separator."""
    try:
        value = header.get(name)
    except ValueError:  # the value does not fit the element's type
        return ""
    several = not isinstance(value, str) and hasattr(value, "__iter__")
    return ("\\".join(map(str, value)) if several else str(value or "")).strip(" \0").upper()


def _meaning(header: Any, name: str) -> str:
    """Return the meaning of a code, in capitals; empty if there is none."""
    try:
        return _text(header.get(name)[0], "CodeMeaning")
    except (TypeError, LookupError, AttributeError, ValueError):
        return ""


def age_in_years(header: Any) -> float | None:
    """Return the age in years at the time of the film, from the file's age or birth date; None if it has neither."""
    years = years_of(_text(header, "PatientAge"))
    if years is not None:
        return years
    born = date_of(_text(header, "PatientBirthDate"))
    taken = next((day for name in DATES if (day := date_of(_text(header, name)))), None)
    if born is None or taken is None:
        return None
    days = (taken - born).days
    return days * YEARS_A_UNIT["D"] if 0 <= days <= OLDEST / YEARS_A_UNIT["D"] else None


def date_of(text: str) -> date | None:
    """Return a date as files have it: "19980423", "1998.04.23", "23/04/1998", "1998"; None if it is none, or too early.

    Without a day or month it is taken for the middle of what is stated.
    """
    if apart := re.fullmatch(r"(\d{1,2})\D(\d{1,2})\D(\d{4})", text.strip()):
        orders = [(apart[3], apart[2], apart[1]), (apart[3], apart[1], apart[2])]
    else:
        digits = re.sub(r"\D", "", text)[:8]
        orders = [(digits[:4], digits[4:6], digits[6:]), (digits[4:], digits[2:4], digits[:2])]
    for year, month, day in orders:
        try:
            found = date(int(year), int(month or 0) or 7, int(day or 0) or 1)
        except ValueError:
            continue
        if found.year >= FIRST_YEAR:
            return found
    return None


def years_of(age: str) -> float | None:
    """Return the years of an age in text: "018M", "62", "62 Y", "2Y6M", "6 months", "45 лет"; None if none.

    An age of zero units counts as half a unit: "000Y" is an infant of unknown months. Zero without a unit means
    unknown.
    """
    text = without_accents(age.upper()).strip(" \0'\"<>~=+")
    if re.search(r"\d[./-]\d+[./-]\d", text) or not re.match(r"(?:P|Y|AGE|AN)?[ :]*\d", text):
        return None  # a date, or no number
    found = re.findall(r"(\d+(?:[.,]\d+)?)\s*([^\W\d_]*)", text)
    (number, word), *others = [(float(digits.replace(",", ".")), word) for digits, word in found]
    unit = unit_of(word) if word else "Y"
    if not unit or (not word and number == 0):
        return None
    years, smallest = number * YEARS_A_UNIT[unit], YEARS_A_UNIT[unit]
    for further, its_word in others:
        if its_word and (its_unit := unit_of(its_word)):
            years, smallest = years + further * YEARS_A_UNIT[its_unit], YEARS_A_UNIT[its_unit]
    years = years or 0.5 * smallest
    return years if years <= OLDEST else None


def unit_of(word: str) -> str:
    """Return the unit that a word in capitals stands for: "D", "W", "M", "Y", "H"; empty if it is unknown."""
    return next((unit for unit, beginnings in AGE_UNITS if word.startswith(beginnings)), "")
