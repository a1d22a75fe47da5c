"""Films as Python programs hold them, turned into the bytes of a file, which then take the one prediction path.

Pixels are packed as PNG without loss: an array gets the same answer as a PNG file of the same pixels.
"""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final

import numpy as np
from PIL import Image

from chestxray.data.sources import open_film
from chestxray.errors import FilmTypeInvalid, FilmValueInvalid

NAMELESS: Final = "film"  # the name of a film without a path
_TAKEN: Final = (
    "a path, bytes, an open file, a NumPy array or torch tensor (uint8, uint16, or float in 0 to 1; H x W, H x W x 3 "
    "or 1 x H x W), a PIL image, a pydicom data set, or a list of these"
)
_CHANNELS: Final = (1, 3, 4)
_PLANE, _COLOUR, _MANY = 2, 3, 4  # number of dimensions


def are_many(film: object) -> bool:
    """Check whether the argument is a list of films, or an array of several films."""
    return isinstance(film, list | tuple) or getattr(film, "ndim", None) == _MANY


def bytes_of(film: object) -> tuple[bytes, str]:
    """Return the bytes of a film's file, and its name in errors.

    Raises: FilmUnopened, which is an OSError; FilmTypeInvalid, which is a TypeError, for anything that is no film;
        FilmValueInvalid, which is a ValueError, for pixels out of range.
    """
    if isinstance(film, str | os.PathLike):
        path = Path(film)
        return open_film(path), str(path)
    if isinstance(film, bytes | bytearray | memoryview):
        return bytes(film), NAMELESS
    if isinstance(film, Image.Image):
        return _of_open_image(film), NAMELESS
    if _is_data_set(film):
        return _of_data_set(film), NAMELESS
    if callable(read := getattr(film, "read", None)):
        return _of_open_file(read), str(getattr(film, "name", NAMELESS))
    if hasattr(film, "__array__") and not isinstance(film, type):
        return _of_array(_as_array(film)), NAMELESS
    raise FilmTypeInvalid(f"a film cannot be a {type(film).__name__}; it may be {_TAKEN}")


def _of_open_file(read: Callable[[], object]) -> bytes:
    try:
        data = read()
    except ValueError as error:  # closed, or opened for writing
        raise FilmValueInvalid(f"the file cannot be read ({error}). Open it with mode 'rb'") from error
    if not isinstance(data, bytes):
        raise FilmTypeInvalid("the file is open for text; open it with mode 'rb'")
    if not data:
        raise FilmValueInvalid("the file holds nothing from its position on. Go to its beginning: file.seek(0)")
    return data


def _of_open_image(image: Image.Image) -> bytes:
    try:
        image.load()
    except (ValueError, AttributeError, AssertionError) as error:  # closed before its pixels were read
        raise FilmValueInvalid("the image cannot be read: it was closed. Open it again") from error
    return _of_image(image)


def _as_array(film: Any) -> np.ndarray[Any, Any]:
    torch = sys.modules.get("torch")  # a caller with a tensor has imported torch already
    if torch is not None and isinstance(film, torch.Tensor):
        if film.layout != torch.strided or film.is_meta:
            raise FilmTypeInvalid("a film cannot be a sparse tensor or one without values; give film.to_dense()")
        film = film.detach().cpu()
        film = film.float() if film.dtype in {torch.bfloat16, torch.float16} else film
    array = np.asarray(film)
    if array.dtype.byteorder not in "=|":  # as a file of another kind of computer holds it
        array = array.astype(array.dtype.newbyteorder("="))
    if array.ndim == _COLOUR and array.shape[-1] not in _CHANNELS and array.shape[0] in _CHANNELS:
        array = np.moveaxis(array, 0, -1)  # channels first, as in torch
    if array.ndim == _COLOUR and array.shape[-1] == 1:
        array = array[..., 0]
    return array


def _of_array(array: np.ndarray[Any, Any]) -> bytes:
    if (
        array.ndim not in {_PLANE, _COLOUR}
        or not array.size
        or (array.ndim == _COLOUR and array.shape[-1] not in _CHANNELS)
    ):
        raise FilmTypeInvalid(f"a film cannot be an array of shape {array.shape}; it may be {_TAKEN}")
    if array.dtype.kind == "f":
        low, high = float(array.min()), float(array.max())
        if not 0.0 <= low <= high <= 1.0:  # written so that NaN fails as well
            raise FilmValueInvalid(
                f"the film's values lie in {low:g} to {high:g}; black is 0.0 and white 1.0. Divide by the white level"
            )
        array = np.rint(array.astype(np.float64) * np.iinfo(np.uint16).max).astype(np.uint16)
    if array.dtype not in (np.uint8, np.uint16):
        raise FilmTypeInvalid(
            f"a film cannot be an array of {array.dtype}, whose white is nowhere defined; it may be {_TAKEN}"
        )
    if array.ndim == _COLOUR and array.dtype == np.uint16:
        grey = (array[..., :3] == array[..., :1]).all()
        array = np.ascontiguousarray(array[..., 0]) if grey else (array >> 8).astype(np.uint8)
    return _of_image(Image.fromarray(np.ascontiguousarray(array)))


def _of_image(image: Image.Image) -> bytes:
    """Encode an image as PNG, with its orientation; modes that PNG lacks are converted to colour."""
    if image.mode not in {"1", "L", "LA", "P", "RGB", "RGBA", "I;16"}:
        if image.mode in {"I", "F"}:
            raise FilmTypeInvalid(
                f"a film cannot be an image of mode {image.mode}, whose white is nowhere defined; convert it to I;16"
            )
        image = image.convert("I;16" if image.mode.startswith("I;16") else "RGB")
    out = io.BytesIO()
    image.save(out, "PNG", compress_level=1, exif=image.getexif())
    return out.getvalue()


def _is_data_set(film: object) -> bool:
    pydicom = sys.modules.get("pydicom")
    return pydicom is not None and isinstance(film, pydicom.Dataset)


def _of_data_set(film: Any) -> bytes:
    out = io.BytesIO()
    try:
        film.save_as(out, enforce_file_format=hasattr(film, "file_meta"))
    except (ValueError, AttributeError, TypeError) as error:
        raise FilmValueInvalid(f"the data set cannot be written as DICOM ({error}). Give its file instead") from error
    return out.getvalue()


def in_groups(films: Any, size: int) -> Iterator[list[tuple[bytes, str]]]:
    """Yield films as pairs of bytes and name, in groups of ``size``."""
    group: list[tuple[bytes, str]] = []
    for film in films:
        group.append(bytes_of(film))
        if len(group) == size:
            yield group
            group = []
    if group:
        yield group
