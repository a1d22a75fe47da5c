"""Pictures that are no chest films, as packages ship them: photographs, drawings, documents, faces, digits, sections.

Nothing is fitted on them. Every fourth, ``PEEKED``, was looked at while the gate was made; the others are the bar.
"""

from __future__ import annotations

import gzip
from collections.abc import Iterator
from pathlib import Path

import matplotlib as mpl
import numpy as np
import numpy.typing as npt
import pydicom
import pydicom.data
import skimage.data
import sklearn.datasets
from PIL import Image

Array = npt.NDArray[np.uint8]

PHOTOGRAPHS = Path(skimage.data.__file__).parent
SAMPLES = Path(mpl.get_data_path()) / "sample_data"
DICOM = Path(pydicom.data.__file__).parent / "test_files"
SECTIONS = (
    "693_J2KI", "CT_small", "MR_small", "JPEG2000", "examples_jpeg2k", "examples_overlay", "liver_1frame",
    "rtdose_1frame", "image_dfl", "J2K_pixelrep_mismatch", "GDCMJ2K_TextGBR", "SC_rgb_rle", "JPEGLSNearLossless_08",
)  # fmt: skip


def files() -> tuple[Path, ...]:
    """Picture and DICOM files as they are shipped."""
    pictures = (path for path in sorted(PHOTOGRAPHS.iterdir()) if path.suffix in {".png", ".jpg"})
    samples = (path for path in sorted(SAMPLES.iterdir()) if path.suffix in {".png", ".jpg"})
    return (*pictures, *samples, *(DICOM / f"{name}.dcm" for name in SECTIONS))


def grey_pictures() -> dict[str, Array]:
    """All of them in grey, by name, so that neither colour nor header speaks against them."""
    return dict(_named())


def _named() -> Iterator[tuple[str, Array]]:
    for path in files():
        yield path.name, _grey_file(path)
    for number, picture in enumerate(sklearn.datasets.load_sample_images().images):
        yield f"sample {number}", np.asarray(Image.fromarray(picture).convert("L"))
    faces = np.load(PHOTOGRAPHS / "lfw_subset.npy")[::2]  # a hundred faces and other photographs of 25 pixels a side
    for number, face in enumerate(faces):
        yield f"face {number}", _enlarged(face * 255)
    for number, digit in enumerate(sklearn.datasets.load_digits().images[::18]):
        yield f"digit {number}", _enlarged(digit * (255 / 16))
    yield "elevation", _stretched(np.load(SAMPLES / "jacksboro_fault_dem.npz")["elevation"])
    yield "sea floor", _stretched(np.load(SAMPLES / "topobathy.npz")["topo"])
    knee = np.frombuffer(gzip.decompress((SAMPLES / "s1045.ima.gz").read_bytes()), np.uint16)
    yield "magnetic resonance", _stretched(knee.reshape(256, 256))


def _grey_file(path: Path) -> Array:
    if path.suffix != ".dcm":
        with Image.open(path) as picture:
            white = Image.new("RGBA", picture.size, "white")
            white.alpha_composite(picture.convert("RGBA"))
            return np.asarray(white.convert("L"))
    pixels = pydicom.dcmread(path).pixel_array
    if pixels.ndim > 2:
        return np.asarray(Image.fromarray(pixels).convert("L"))
    return _stretched(pixels)


def _stretched(values: npt.NDArray[np.generic]) -> Array:
    low, high = np.nanpercentile(values, [0.5, 99.5])
    return (255 * ((np.nan_to_num(values) - low) / max(high - low, 1e-9)).clip(0, 1)).astype(np.uint8)


def _enlarged(values: npt.NDArray[np.floating]) -> Array:
    return np.asarray(
        Image.fromarray(values.clip(0, 255).astype(np.uint8)).resize((200, 200), Image.Resampling.BICUBIC)
    )


NAMES = tuple(name for name, _ in _named())
PEEKED = frozenset(NAMES[::4])
