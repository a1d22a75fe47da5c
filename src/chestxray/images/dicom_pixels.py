"""The pixels of a DICOM film: a table of transfer syntaxes, and the steps from stored values to grey levels.

The limits of each compressed frame are checked in its own header before anything is decoded. The steps from stored
values to grey levels and their order are those of the standard's grayscale pipeline (PS3.4 section N.2, figure N.2-1):

    stored values -> modality LUT or rescale   PS3.3 C.11.1
                  -> VOI LUT or window         PS3.3 C.11.2
                  -> presentation LUT          PS3.3 C.11.4, C.11.6
                  -> MONOCHROME1 inverted      PS3.3 C.7.6.3.1.2

A film has at most 65,536 different stored values, so each step is applied to a table of those, and the film is
looked up in it once: exact, and cheap at any size.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Sequence
from typing import Any, Final, NamedTuple

import numpy as np
import numpy.typing as npt

from chestxray.arrays import BoolArray, Float64Array
from chestxray.errors import MissingExtra, TruncatedFilm, UnreadableFilm
from chestxray.images import Pixels, check_scans
from chestxray.images.raster import START_OF_SCAN, check_tiles, intact_jpeg

IMPLICIT_LITTLE: Final = "1.2.840.10008.1.2"
EXPLICIT_LITTLE: Final = "1.2.840.10008.1.2.1"
DEFLATED: Final = "1.2.840.10008.1.2.1.99"
EXPLICIT_BIG: Final = "1.2.840.10008.1.2.2"

TURBO: Final = "libjpeg-turbo"  # reads lossless JPEG, and 12 bits with loss
_JPEG_MARKER: Final = b"\xff"
# The segments that state a frame's size: SOF0 to SOF15 of JPEG, less three other segments; SOF55 of JPEG-LS.
JPEG_LS_FRAME: Final = 0xF7
JPEG_FRAMES: Final = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC} | {JPEG_LS_FRAME}
END_OF_IMAGE: Final = b"\xff\xd9"
LOSSY_FRAMES: Final = frozenset({0xC0, 0xC1, 0xC2})  # baseline, extended, progressive: libjpeg ignores damage in these


class Frame(NamedTuple):
    """What the header states about the one frame."""

    rows: int
    columns: int
    samples: int
    allocated: int
    stored: int
    signed: int
    photometric: str
    planes_apart: int

    @property
    def size(self) -> int:
        """Decoded size in bytes."""
        return self.rows * self.columns * self.samples * self.allocated // 8


class Syntax(NamedTuple):
    """One row of the table of transfer syntaxes.

    Attributes:
        plugin: pydicom's decoder plugin; empty for uncompressed pixels, TURBO if pydicom is not used.
        library: the library that has to be installed; the extra "dicom" installs it.
        check: checks the coded frame before a library reads it, and returns its pixels where that meant decoding them;
            raises ValueError with the fact.
    """

    name: str
    plugin: str = ""
    library: str = ""
    check: Callable[[bytes, Frame], Pixels | None] | None = None


def _check_rle(coded: bytes, frame: Frame) -> None:
    """Check the size of a run-length frame: two bytes decode to at most 128 (PS3.5 annex G.3.1)."""
    if frame.size > 64 * len(coded):
        raise ValueError(f"claims {frame.size:,} bytes of pixels, and its {len(coded):,} cannot hold so many")


def _check_jpeg(coded: bytes, frame: Frame) -> Pixels | None:
    """Check that a JPEG's own size is the header's, and that an 8-bit frame is undamaged; return its grey levels.

    Source: ITU-T T.81 annex B.2.2; JPEG-LS has the same segment.
    """
    position = 2  # after the marker that starts the picture
    while coded[position : position + 1] == _JPEG_MARKER:
        kind = coded[position + 1]
        if kind == _JPEG_MARKER[0]:  # any number of these bytes may precede a marker
            position += 1
        elif kind in JPEG_FRAMES:
            precision, rows, columns, samples = struct.unpack_from(">BHHB", coded, position + 4)
            _check_same((rows, columns, samples), frame)
            if precision > frame.allocated:
                raise ValueError(f"has samples of {precision} bits and room for {frame.allocated}")
            # Without it CharLS refuses the frame as well, but may first count to 2**31.
            if kind == JPEG_LS_FRAME and coded.find(END_OF_IMAGE, position) < 0:
                raise ValueError("ends before its picture does")
            if kind not in LOSSY_FRAMES or precision != BYTE:
                return None
            try:
                grey = intact_jpeg(coded, "GRAY", (columns, rows))[..., 0]
            except ValueError as error:
                raise ValueError(f"is damaged ({error})") from None
            as_decoded = (frame.samples, frame.allocated, frame.stored, frame.signed) == (1, BYTE, BYTE, 0)
            return grey if as_decoded else None
        else:
            position += 2 + int.from_bytes(coded[position + 2 : position + 4])
    raise ValueError("holds no JPEG frame")


def _check_jpeg2000(coded: bytes, frame: Frame) -> None:
    """Check the size of a JPEG 2000 codestream in the same way. Source: ITU-T T.800 annex A.5.1, segment SIZ."""
    start = coded.find(b"\xff\x4f\xff\x51", 0, 4096)  # a few files wrap the codestream in boxes
    if start < 0 or len(coded) < start + 42:
        raise ValueError("holds no JPEG 2000 codestream")
    right, lower, left, upper, _, _, _, _, samples = struct.unpack_from(">8LH", coded, start + 8)
    _check_same((lower - upper, right - left, samples), frame)
    check_tiles(coded, start)


def _check_same(found: tuple[int, int, int], frame: Frame) -> None:
    expected = (frame.rows, frame.columns, frame.samples)
    if found != expected:
        theirs, ours = (" x ".join(map(str, size)) for size in (found, expected))
        raise ValueError(f"holds a frame of {theirs} (rows, columns, samples) where its header says {ours}")


# Decoders were chosen for maintenance, licence (MIT and BSD) and behaviour on damaged files, and only one for each row,
# so that a film does not change with what else is installed. Of the usual decoders for the JPEG rows,
# pylibjpeg-libjpeg is under the GPL, and GDCM ends the whole process at some damaged frames; libjpeg-turbo has neither
# fault.
SYNTAXES: Final = {
    IMPLICIT_LITTLE: Syntax("implicit VR little endian"),
    EXPLICIT_LITTLE: Syntax("explicit VR little endian"),
    DEFLATED: Syntax("deflated"),
    EXPLICIT_BIG: Syntax("explicit VR big endian"),
    "1.2.840.10008.1.2.5": Syntax("RLE", "pydicom", check=_check_rle),
    "1.2.840.10008.1.2.4.50": Syntax("JPEG baseline", "pillow", "PIL", _check_jpeg),
    "1.2.840.10008.1.2.4.51": Syntax("JPEG extended", TURBO, "imagecodecs", _check_jpeg),
    # Retired processes: arithmetic coding and spectral selection, which libjpeg-turbo reads as well.
    "1.2.840.10008.1.2.4.52": Syntax("JPEG extended, arithmetic", TURBO, "imagecodecs", _check_jpeg),
    "1.2.840.10008.1.2.4.53": Syntax("JPEG spectral selection", TURBO, "imagecodecs", _check_jpeg),
    "1.2.840.10008.1.2.4.54": Syntax("JPEG spectral selection, arithmetic", TURBO, "imagecodecs", _check_jpeg),
    "1.2.840.10008.1.2.4.55": Syntax("JPEG full progression", TURBO, "imagecodecs", _check_jpeg),
    "1.2.840.10008.1.2.4.56": Syntax("JPEG full progression, arithmetic", TURBO, "imagecodecs", _check_jpeg),
    "1.2.840.10008.1.2.4.57": Syntax("JPEG lossless", TURBO, "imagecodecs", _check_jpeg),
    "1.2.840.10008.1.2.4.70": Syntax("JPEG lossless SV1", TURBO, "imagecodecs", _check_jpeg),
    "1.2.840.10008.1.2.4.80": Syntax("JPEG-LS lossless", "pyjpegls", "pyjpegls", _check_jpeg),
    "1.2.840.10008.1.2.4.81": Syntax("JPEG-LS near lossless", "pyjpegls", "pyjpegls", _check_jpeg),
    "1.2.840.10008.1.2.4.90": Syntax("JPEG 2000 lossless", "pylibjpeg", "pylibjpeg-openjpeg", _check_jpeg2000),
    "1.2.840.10008.1.2.4.91": Syntax("JPEG 2000", "pylibjpeg", "pylibjpeg-openjpeg", _check_jpeg2000),
    "1.2.840.10008.1.2.4.201": Syntax("HTJ2K lossless", "pylibjpeg", "pylibjpeg-openjpeg", _check_jpeg2000),
    "1.2.840.10008.1.2.4.202": Syntax("HTJ2K lossless RPCL", "pylibjpeg", "pylibjpeg-openjpeg", _check_jpeg2000),
    "1.2.840.10008.1.2.4.203": Syntax("HTJ2K", "pylibjpeg", "pylibjpeg-openjpeg", _check_jpeg2000),
}


def stored_values(coded: bytes, fragments: Sequence[bytes], syntax: str, frame: Frame, vr: str, source: str) -> Any:
    """Decode the pixels as they are stored: shape (rows, columns), or (rows, columns, 3) as red, green, blue.

    Args:
        coded: the value of Pixel Data.
        fragments: its items after the offset table, if the syntax compresses pixels.
        syntax: of ``SYNTAXES``.
        frame: what the header states about the frame.
        vr: value representation of Pixel Data; empty if implicit.
        source: the file's name in errors.

    Raises: TruncatedFilm, UnreadableFilm, MissingExtra; and the errors of the decoders.
    """
    from pydicom.pixels.decoders.base import get_decoder

    row = SYNTAXES[syntax]
    if row.check is None:
        expected = frame.size * 2 // 3 if frame.photometric == "YBR_FULL_422" else frame.size
        if len(coded) < expected:
            raise TruncatedFilm(f"{source}: the DICOM file ends before its picture does. Copy it again")
    else:
        joined = b"".join(fragments)
        if row.check is _check_jpeg:
            check_scans(source, joined.count(START_OF_SCAN), frame.columns, frame.rows)
        try:
            pixels = row.check(joined, frame)
        except (ValueError, struct.error) as error:
            raise UnreadableFilm(f"{source}: the {row.name} DICOM file {error}. Copy it again") from None
        if pixels is not None:
            return pixels
    photometric, decoded_as = frame.photometric, syntax
    if row.plugin == TURBO:
        coded, decoded_as = _by_libjpeg_turbo(b"".join(fragments), row, frame), EXPLICIT_LITTLE
        photometric = "RGB" if frame.samples > 1 else photometric  # libjpeg has converted YBR to RGB
    decoder = get_decoder(decoded_as)
    if decoded_as == syntax and row.plugin not in ("", *decoder.available_plugins):
        raise MissingExtra(f"Reading DICOM in {row.name} ({row.library})", "dicom")
    options: dict[str, Any] = {
        "allow_excess_frames": False,
        "rows": frame.rows,
        "columns": frame.columns,
        "samples_per_pixel": frame.samples,
        "bits_allocated": frame.allocated,
        "bits_stored": frame.stored,
        "pixel_representation": frame.signed,
        "photometric_interpretation": photometric,
        "planar_configuration": 0 if row.plugin == TURBO else frame.planes_apart,
        "number_of_frames": 1,
        "pixel_keyword": "PixelData",
        "pixel_vr": vr or "OW",
    }
    plugin = "" if row.plugin == TURBO else row.plugin
    values, _ = decoder.as_array(coded, decoding_plugin=plugin, **options)
    return values


def _by_libjpeg_turbo(coded: bytes, syntax: Syntax, frame: Frame) -> bytes:
    """Decode a JPEG frame to little-endian samples. Raises: MissingExtra; RuntimeError, if the frame is damaged."""
    try:
        from imagecodecs import jpeg8_decode
    except ImportError:
        raise MissingExtra(f"Reading DICOM in {syntax.name} ({syntax.library})", "dicom") from None
    samples = jpeg8_decode(coded)
    if samples.size != frame.rows * frame.columns * frame.samples:
        raise ValueError("a JPEG of another size than its header")
    return bytes(samples.astype(f"<u{frame.allocated // 8}").tobytes())


# --------------------------------------------------------------------------- grey levels

Stored = npt.NDArray[np.integer[Any]]

WHITE_16_BIT: Final = 65535
BYTE: Final = 8  # bits
WORD: Final = 16  # bits
_MOST: Final = 0x7FFF  # the largest signed 16-bit value; greater ones are negative


def displayed_levels(stored: Stored, frame: Frame, header: Any, notes: list[str]) -> Pixels:
    """Return the grey levels that a display would show; black is 0.

    Without a window in the file, 8-bit values span black to white unchanged, and deeper values are scaled from the
    darkest to the brightest that occurs: nothing is clipped. Padding is black and does not affect the scale.

    Args:
        stored: shape (height, width), of at most 16 bits; signed if the file says so.
        frame: what the header states about the pixels.
        header: the data set of the film's header (pydicom), without pixels.
        notes: list that receives a short clause for each header value that is ignored.

    Returns: the same shape; uint8 for 8-bit films without modality or window, else uint16.
    Raises: ValueError, TypeError or LookupError, if the header contradicts itself.
    """
    kind = np.iinfo(stored.dtype)
    values = np.arange(kind.min, kind.max + 1, dtype=np.float64)
    padding = _padding(values, header)
    index = stored.astype(np.int32) - kind.min if kind.min else stored
    slope, intercept = _rescale(header, notes)
    rescaled = _has(header, "ModalityLUTSequence") or (slope, intercept) != (1.0, 0.0)
    plain = frame.stored <= BYTE and kind.min == 0 and not rescaled
    modality = _looked_up(values, header.ModalityLUTSequence[0])[0] if _has(header, "ModalityLUTSequence") else None
    modality = values * slope + intercept if modality is None else modality
    shown = _window(header, modality, notes)
    if shown is not None:
        plain = False
    elif plain:
        shown = values / (2**frame.stored - 1)
    else:
        occurs = np.zeros(values.shape, bool)
        occurs[index] = True
        shown = _spread(modality, occurs & ~padding)
    shown = _presented(np.clip(shown, 0.0, 1.0), header, inverted=frame.photometric == "MONOCHROME1")
    shown[padding] = 0.0
    table = np.rint(shown * 255).astype(np.uint8) if plain else np.rint(shown * WHITE_16_BIT).astype(np.uint16)
    if table.dtype == stored.dtype and np.array_equal(table, values):
        return stored.view(table.dtype)
    levels: Pixels = table[index]
    return levels


def _has(header: Any, *names: str) -> bool:
    return any(header.get(name) not in (None, "", []) for name in names)


def _padding(values: Float64Array, header: Any) -> BoolArray:
    """Return which stored values are padding of the frame. Source: PS3.3 C.7.5.1.1.2."""
    if not _has(header, "PixelPaddingValue"):
        return np.zeros(values.shape, bool)
    one = _stored_number(header.PixelPaddingValue, header)
    other = _stored_number(header.PixelPaddingRangeLimit, header) if _has(header, "PixelPaddingRangeLimit") else one
    return (values >= min(one, other)) & (values <= max(one, other))


def _stored_number(value: int, header: Any) -> int:
    """Return a number with the sign of the pixels: some files give signed numbers as unsigned, or the reverse."""
    value = int(value) & 0xFFFF
    return value - 0x10000 if header.get("PixelRepresentation") == 1 and value > _MOST else value


def _rescale(header: Any, notes: list[str]) -> tuple[float, float]:
    """Return slope and intercept from stored values to modality values. Source: PS3.3 C.11.1.1."""
    slope = number_of(header, "RescaleSlope", notes)
    intercept = number_of(header, "RescaleIntercept", notes)
    return 1.0 if slope is None or slope == 0.0 else slope, intercept or 0.0


def number_of(header: Any, name: str, notes: list[str]) -> float | None:
    """Return the first number of a text element, decimal commas allowed; None with a note if there is none."""
    element = header.get_item(name)
    value = None if element is None else element.value
    if isinstance(value, bytes):
        value = value.decode("latin-1").split("\\")
    parts = value if isinstance(value, list) or hasattr(value, "append") else [value]
    first = str(parts[0] if parts and parts[0] is not None else "").strip("\0 ")
    if not first:
        return None
    try:
        found = float(first.replace(",", "."))
    except ValueError:
        found = float("nan")
    if np.isfinite(found):
        return found
    notes.append(f"its {name} is no number and was ignored")
    return None


def _window(header: Any, values: Float64Array, notes: list[str]) -> Float64Array | None:
    """Return levels from black 0 to white 1 by the file's first window or VOI LUT; None if the file has none.

    Source: PS3.3 C.11.2.1.1 (VOI LUT), C.11.2.1.2.1 (linear), C.11.2.1.3.1 (sigmoid), C.11.2.1.3.2 (linear exact).
    """
    if _has(header, "VOILUTSequence"):
        levels, white = _looked_up(values, header.VOILUTSequence[0])
        return levels / white
    centre, width = number_of(header, "WindowCenter", notes), number_of(header, "WindowWidth", notes)
    if centre is None or width is None:
        return None
    function = WINDOWS.get(str(header.get("VOILUTFunction") or "LINEAR").upper())
    if function is None or width <= 0:
        notes.append("its window is none that the standard defines and was ignored")
        return None  # a window that the standard does not define counts as no window
    return function(values, centre, width)


def _linear(values: Float64Array, centre: float, width: float) -> Float64Array:
    if width <= 1:
        return (values > centre - 0.5).astype(np.float64)
    return np.clip((values - (centre - 0.5)) / (width - 1) + 0.5, 0.0, 1.0)


def _linear_exact(values: Float64Array, centre: float, width: float) -> Float64Array:
    return np.clip((values - centre) / width + 0.5, 0.0, 1.0)


def _sigmoid(values: Float64Array, centre: float, width: float) -> Float64Array:
    return 1.0 / (1.0 + np.exp(np.clip(-4.0 * (values - centre) / width, -700.0, 700.0)))  # exp(710) overflows


WINDOWS: Final = {"LINEAR": _linear, "LINEAR_EXACT": _linear_exact, "SIGMOID": _sigmoid}


def _spread(values: Float64Array, occurs: BoolArray) -> Float64Array:
    """Scale values linearly from the least to the greatest that occurs."""
    seen = values[occurs]
    if seen.size == 0 or seen.max() == seen.min():
        return np.zeros(values.shape)
    spread: Float64Array = (values - seen.min()) / (seen.max() - seen.min())
    return spread


def _presented(shown: Float64Array, header: Any, *, inverted: bool) -> Float64Array:
    """Apply the presentation LUT or shape, and MONOCHROME1.

    A MONOCHROME1 film also states the shape INVERSE (PS3.3 C.8.11.3.1.2): both have the same meaning, so the film is
    inverted once.
    """
    if _has(header, "PresentationLUTSequence"):
        item = header.PresentationLUTSequence[0]
        entries = int(item.LUTDescriptor[0]) or 2**16
        levels, white = _looked_up(np.rint(shown * (entries - 1)), item)
        shown = levels / white
    inverse = str(header.get("PresentationLUTShape") or "").upper() == "INVERSE"
    if inverse or inverted:
        shown = 1.0 - shown
    return shown


def _looked_up(values: Float64Array, item: Any) -> tuple[Float64Array, float]:
    """Look values up in a table of the file; return them with the table's white. Values beyond its ends take the end.

    Source: PS3.3 C.11.1.1.1: the descriptor gives the number of entries (0 for 65,536), the first value that is
    mapped, and the bits of each entry.
    """
    entries, first, bits = (int(number) for number in item.LUTDescriptor)
    entries = entries or 2**16
    if not 1 <= bits <= WORD:
        raise ValueError("a look-up table of no possible depth")
    data = item.LUTData
    if isinstance(data, bytes):
        wide = len(data) >= 2 * entries
        table = np.frombuffer(data, "<u2" if wide else "u1")
    else:
        table = np.atleast_1d(np.asarray(data, np.int64)) & 0xFFFF
    if len(table) < entries:
        raise ValueError("a look-up table shorter than it claims")
    if first > _MOST and values.min() < 0:
        first -= 0x10000
    place = np.clip(np.rint(values) - first, 0, entries - 1).astype(np.int64)
    return table[place].astype(np.float64), float(2**bits - 1)
