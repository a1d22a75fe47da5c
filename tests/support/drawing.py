"""Small films with known pixels, for tests."""

from __future__ import annotations

import io
import struct
import zlib
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image

Array = npt.NDArray[np.uint8]


def gradient(height: int = 96, width: int = 128) -> Array:
    """Grey levels that tell left from right and top from bottom."""
    rows, columns = np.mgrid[0:height, 0:width]
    return (20 + 150 * columns / width + 60 * rows / height).astype(np.uint8)


def coloured() -> Array:
    """A picture in colour, which no model should classify."""
    colour = gradient()[..., None].repeat(3, axis=2)
    colour[..., 0] = 255 - colour[..., 0]
    return colour


def encoded(pixels: npt.NDArray[np.generic] | Image.Image, form: str = "PNG", **options: object) -> bytes:
    """The bytes of a file that holds these pixels."""
    image = pixels if isinstance(pixels, Image.Image) else Image.fromarray(pixels)
    out = io.BytesIO()
    image.save(out, form, **options)
    return out.getvalue()


def textured(seed: int, height: int = 96, width: int = 96) -> Array:
    """A film that no other seed gives."""
    coarse = np.random.default_rng(seed).integers(0, 256, (8, 8), dtype=np.uint8)
    return np.asarray(Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC))


def write_film(path: Path, seed: int) -> Path:
    """A file with a film of that seed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(encoded(textured(seed)))
    return path


def png_claiming(width: int, height: int, body: bytes = b"") -> bytes:
    """An 8-bit grey PNG whose header claims a size, around these compressed rows or around too few."""
    head = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    chunks = [(b"IHDR", head), (b"IDAT", body or zlib.compress(b"\0" * 64)), (b"IEND", b"")]
    framed = [
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data)) for kind, data in chunks
    ]
    return b"\x89PNG\r\n\x1a\n" + b"".join(framed)
