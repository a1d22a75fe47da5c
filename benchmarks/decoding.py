"""Films a second from JPEG bytes to the network's input, and how far each decoder's input lies from the full decode.

    python benchmarks/decoding.py [FOLDER] [--rounds 5] [--size 112 160] [--json]

Every way ends in the same resize, so that only the decoding differs; "reduced" ways let the decoder give 1/2, 1/4
or 1/8 of the film, the smallest that has twice the pixels that are needed. The error is against Pillow's full
decode, in grey levels of 255: over all pixels of all films, of the worst film, and of the worst pixel. OpenCV,
pyvips and simplejpeg are measured where they are installed, and named where they are not.
"""

from __future__ import annotations

import argparse
import io
import json
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image

from chestxray.images.preprocess import preprocess, resample
from chestxray.schema import Resize
from side_by_side import DATA, machine, take_turns

Size = tuple[int, int]
Way = Callable[[bytes, Size], np.ndarray]
FULL = "Pillow, full"


def pillow_full(data: bytes, size: Size) -> np.ndarray:
    """The reference."""
    with Image.open(io.BytesIO(data)) as image:
        return resample(np.asarray(image.convert("L")), *size, Resize.SQUEEZE)


def pillow_reduced(data: bytes, size: Size) -> np.ndarray:
    """Pillow's draft mode as its documentation shows it."""
    with Image.open(io.BytesIO(data)) as image:
        image.draft("L", (2 * size[1], 2 * size[0]))
        return resample(np.asarray(image.convert("L")), *size, Resize.SQUEEZE)


def ours(data: bytes, size: Size) -> np.ndarray:
    """What packing and serving do: reduced, with the edges where they belong, and limits and colour checked."""
    return preprocess(data, "film", *size, Resize.SQUEEZE)


def opencv() -> dict[str, Way]:
    """OpenCV, whole and reduced."""
    import cv2

    cv2.setNumThreads(1)
    flags = {1: cv2.IMREAD_GRAYSCALE, 2: cv2.IMREAD_REDUCED_GRAYSCALE_2, 4: cv2.IMREAD_REDUCED_GRAYSCALE_4}

    def way(data: bytes, size: Size, *, reduced: bool) -> np.ndarray:
        flag = flags[factor_for(data, size)] if reduced else cv2.IMREAD_GRAYSCALE
        return resample(cv2.imdecode(np.frombuffer(data, np.uint8), flag), *size, Resize.SQUEEZE)

    return {"OpenCV, full": partial(way, reduced=False), "OpenCV, reduced": partial(way, reduced=True)}


def vips() -> dict[str, Way]:
    """Libvips through pyvips, whole and reduced."""
    import pyvips

    def way(data: bytes, size: Size, *, reduced: bool) -> np.ndarray:
        options = {"shrink": factor_for(data, size)} if reduced else {}
        image = pyvips.Image.jpegload_buffer(data, **options)
        return resample(image.colourspace("b-w")[0].numpy(), *size, Resize.SQUEEZE)

    return {"pyvips, full": partial(way, reduced=False), "pyvips, reduced": partial(way, reduced=True)}


def simple() -> dict[str, Way]:
    """Libjpeg-turbo through simplejpeg, whole and reduced."""
    import simplejpeg

    def way(data: bytes, size: Size, *, reduced: bool) -> np.ndarray:
        least = {"min_height": 2 * size[0], "min_width": 2 * size[1], "min_factor": 1} if reduced else {}
        pixels = simplejpeg.decode_jpeg(data, colorspace="GRAY", **least)
        return resample(np.ascontiguousarray(pixels[..., 0]), *size, Resize.SQUEEZE)

    return {"simplejpeg, full": partial(way, reduced=False), "simplejpeg, reduced": partial(way, reduced=True)}


def factor_for(data: bytes, size: Size) -> int:
    """The reduction that Pillow would choose, for those that want to be told."""
    with Image.open(io.BytesIO(data)) as image:
        smallest = min(image.width // (2 * size[1]), image.height // (2 * size[0]))
    return next(factor for factor in (4, 2, 1) if factor <= max(1, smallest))


def installed() -> tuple[dict[str, Way], list[str]]:
    """The ways that can be measured here, and the names of those that cannot."""
    ways: dict[str, Way] = {FULL: pillow_full, "Pillow, reduced": pillow_reduced, "chestxray": ours}
    absent = []
    for name, make in (("OpenCV", opencv), ("pyvips", vips), ("simplejpeg", simple)):
        try:
            ways |= make()
        except ImportError:
            absent.append(name)
    return ways, absent


def errors(way: Way, films: list[bytes], size: Size) -> tuple[float, float, int]:
    """Mean over all, mean of the worst film, and worst pixel."""
    apart = [np.abs(way(film, size).astype(int) - pillow_full(film, size)) for film in films]
    means = [float(one.mean()) for one in apart]
    return float(np.mean(means)), max(means), max(int(one.max()) for one in apart)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, nargs="?", default=DATA / "originals")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--size", type=int, nargs=2, default=(112, 160), metavar=("HEIGHT", "WIDTH"))
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    size = tuple(arguments.size)
    films = [path.read_bytes() for path in sorted(arguments.folder.rglob("*.jpeg"))]
    ways, absent = installed()
    timings = take_turns(
        {name: lambda way=way: [way(film, size) for film in films] for name, way in ways.items()}, arguments.rounds
    )
    rows = [
        {"way": timing.name, "films_a_second": len(films) / timing.median, "seconds": timing.seconds}
        | dict(zip(("mean", "worst_film", "worst_pixel"), errors(ways[timing.name], films, size), strict=True))
        for timing in timings
    ]
    if arguments.json:
        print(json.dumps({"machine": machine(), "films": len(films), "size": size, "ways": rows, "absent": absent}))
        return
    print(f"{len(films)} films of {arguments.folder.name} to {size[0]} x {size[1]}, one process")
    print(f"{machine()}; medians of {arguments.rounds} rounds in turn")
    for row in rows:
        print(
            f"  {row['way']:20} {row['films_a_second']:7.0f} films/s   error: mean {row['mean']:.2f}, "
            f"worst film {row['worst_film']:.2f}, worst pixel {row['worst_pixel']}"
        )
    for name in absent:
        print(f"  {name:20} not installed, skipped")


if __name__ == "__main__":
    main()
