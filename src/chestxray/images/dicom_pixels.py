"""Stored values of a DICOM film to the grey levels that it is meant to show.

The steps and their order are those of the standard's grayscale pipeline (PS3.4 section N.2, figure N.2-1):

    stored values -> modality LUT or rescale   PS3.3 C.11.1
                  -> VOI LUT or window         PS3.3 C.11.2
                  -> presentation LUT          PS3.3 C.11.4, C.11.6
                  -> MONOCHROME1 inverted      PS3.3 C.7.6.3.1.2

A film has at most 65,536 different stored values, so each step is applied to a table of those, and the film is
looked up in it once: exact, and cheap at any size.
"""

from __future__ import annotations

from typing import Any, Final

import numpy as np
import numpy.typing as npt

from chestxray.images.radiograph import Pixels

Levels = npt.NDArray[np.float64]
Stored = npt.NDArray[np.integer[Any]]

WHITE_16_BIT: Final = 65535
BYTE: Final = 8  # bits
WORD: Final = 16  # bits
_MOST: Final = 0x7FFF  # of a signed word; above it lie the negative ones


def grey_levels(stored: Stored, bits: int, header: Any) -> Pixels:
    """What a display would show, black 0.

    Where the file gives no window, 8-bit values span black to white as they stand, and deeper ones are scaled
    from the darkest to the brightest that occurs: nothing is clipped. Padding is black and counts for nothing.

    Args:
        stored: shape (height, width), of at most 16 bits; signed where the file says so.
        bits: that the file uses of each.
        header: the data set of the film's header (pydicom), without pixels.

    Returns: the same shape; uint8 for 8-bit films without modality or window, else uint16.
    Raises: ValueError, TypeError or LookupError, where the header contradicts itself.
    """
    kind = np.iinfo(stored.dtype)
    values = np.arange(kind.min, kind.max + 1, dtype=np.float64)
    padding = _padding(values, header)
    index = stored.astype(np.int32) - kind.min if kind.min else stored
    occurs = np.zeros(values.shape, bool)
    occurs[index] = True
    plain = bits <= BYTE and kind.min == 0 and not _has(header, "ModalityLUTSequence", "RescaleSlope")
    shown = _window(header, modality := _modality(values, header))
    if shown is not None:
        plain = False
    elif plain:
        shown = values / (2**bits - 1)
    else:
        shown = _spread(modality, occurs & ~padding)
    shown = _presented(np.clip(shown, 0.0, 1.0), header)
    shown[padding] = 0.0
    table = np.rint(shown * 255).astype(np.uint8) if plain else np.rint(shown * WHITE_16_BIT).astype(np.uint16)
    levels: Pixels = table[index]
    return levels


def _has(header: Any, *names: str) -> bool:
    return any(header.get(name) not in (None, "", []) for name in names)


def _padding(values: Levels, header: Any) -> npt.NDArray[np.bool_]:
    """Which stored values only fill the frame. Source: PS3.3 C.7.5.1.1.2."""
    if not _has(header, "PixelPaddingValue"):
        return np.zeros(values.shape, bool)
    one = _stored_number(header.PixelPaddingValue, header)
    other = _stored_number(header.PixelPaddingRangeLimit, header) if _has(header, "PixelPaddingRangeLimit") else one
    return (values >= min(one, other)) & (values <= max(one, other))


def _stored_number(value: int, header: Any) -> int:
    """Files give signed numbers as unsigned ones and the other way round; the pixels say which it is."""
    value = int(value) & 0xFFFF
    return value - 0x10000 if header.get("PixelRepresentation") == 1 and value > _MOST else value


def _modality(values: Levels, header: Any) -> Levels:
    """Stored values to what the modality measured. Source: PS3.3 C.11.1.1."""
    if _has(header, "ModalityLUTSequence"):
        return _looked_up(values, header.ModalityLUTSequence[0])[0]
    slope = float(header.RescaleSlope) if _has(header, "RescaleSlope") else 1.0
    intercept = float(header.RescaleIntercept) if _has(header, "RescaleIntercept") else 0.0
    return values * slope + intercept


def _window(header: Any, values: Levels) -> Levels | None:
    """Black 0 to white 1 as the first view of the file has it; None where it has none.

    Source: PS3.3 C.11.2.1.1 (VOI LUT), C.11.2.1.2.1 (linear), C.11.2.1.3.1 (sigmoid), C.11.2.1.3.2 (linear exact).
    """
    if _has(header, "VOILUTSequence"):
        levels, white = _looked_up(values, header.VOILUTSequence[0])
        return levels / white
    if not _has(header, "WindowCenter") or not _has(header, "WindowWidth"):
        return None
    centre, width = _first(header.WindowCenter), _first(header.WindowWidth)
    function = WINDOWS.get(str(header.get("VOILUTFunction") or "LINEAR").upper())
    if function is None or not (np.isfinite(centre) and np.isfinite(width)) or width <= 0:
        return None  # a window that the standard does not define is no window
    return function(values, centre, width)


def _linear(values: Levels, centre: float, width: float) -> Levels:
    if width <= 1:
        return (values > centre - 0.5).astype(np.float64)
    return np.clip((values - (centre - 0.5)) / (width - 1) + 0.5, 0.0, 1.0)


def _linear_exact(values: Levels, centre: float, width: float) -> Levels:
    return np.clip((values - centre) / width + 0.5, 0.0, 1.0)


def _sigmoid(values: Levels, centre: float, width: float) -> Levels:
    return 1.0 / (1.0 + np.exp(np.clip(-4.0 * (values - centre) / width, -700.0, 700.0)))  # exp(710) overflows


WINDOWS: Final = {"LINEAR": _linear, "LINEAR_EXACT": _linear_exact, "SIGMOID": _sigmoid}


def _spread(values: Levels, occurs: npt.NDArray[np.bool_]) -> Levels:
    """From the least to the greatest of the values that occur."""
    seen = values[occurs]
    if seen.size == 0 or seen.max() == seen.min():
        return np.zeros(values.shape)
    spread: Levels = (values - seen.min()) / (seen.max() - seen.min())
    return spread


def _presented(shown: Levels, header: Any) -> Levels:
    """The presentation LUT or shape, and MONOCHROME1.

    A MONOCHROME1 film also states the shape INVERSE (PS3.3 C.8.11.3.1.2): both say the same, once.
    """
    if _has(header, "PresentationLUTSequence"):
        item = header.PresentationLUTSequence[0]
        entries = int(item.LUTDescriptor[0]) or 2**16
        levels, white = _looked_up(np.rint(shown * (entries - 1)), item)
        shown = levels / white
    inverse = str(header.get("PresentationLUTShape") or "").upper() == "INVERSE"
    if inverse or header.PhotometricInterpretation == "MONOCHROME1":
        shown = 1.0 - shown
    return shown


def _looked_up(values: Levels, item: Any) -> tuple[Levels, float]:
    """Values looked up in a table of the file, and the table's white; beyond its ends the end counts.

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


def _first(value: Any) -> float:
    return float(value[0] if hasattr(value, "__len__") and not isinstance(value, str) else value)
