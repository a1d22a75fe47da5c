"""What a bundle says of films that somebody cut, shaded or compressed before they were sent.

    python benchmarks/altered_films.py BUNDLE MANIFEST [--split val] [--every 5] [--json]

Films of one split of a manifest (every so many of each class, those that are accepted) are decoded, altered in one way
and classified anew as PNG or JPEG files, the gate included, at the operating point that answers when none is named. The
first row is the films as they are, encoded again. For each class: how many were refused, and how many answered wrongly.
"""

from __future__ import annotations

import argparse
import io
import json
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt
from PIL import Image

from chestxray.data.sources import read_film
from chestxray.images.decode import decode
from chestxray.inference.bundle import folder_of
from chestxray.inference.predictor import Predictor
from chestxray.schema import Film, Label, read_manifest

Picture = npt.NDArray[np.uint8]
Altered = Callable[[Picture], bytes]


def encoded(picture: Picture, form: str = "PNG", **options: int) -> bytes:
    """Return the file of a picture."""
    stored = io.BytesIO()
    Image.fromarray(picture).save(stored, form, **options)
    return stored.getvalue()


def cut(picture: Picture, left: float, top: float, right: float, bottom: float) -> bytes:
    """Cut shares of the width and the height off."""
    height, width = picture.shape
    rows = slice(round(top * height), height - round(bottom * height))
    return encoded(np.ascontiguousarray(picture[rows, round(left * width) : width - round(right * width)]))


def shaded(picture: Picture, first: float, last: float) -> bytes:
    """Multiply rows by factors from ``first`` at the top to ``last`` at the bottom."""
    ramp = np.linspace(first, last, picture.shape[0])[:, None]
    return encoded(np.rint(picture * ramp).astype(np.uint8))


def evenly(share: float) -> Altered:
    """Cut the same share off along every edge."""
    return partial(cut, left=share, top=share, right=share, bottom=share)


WAYS: Final[dict[str, Altered]] = {
    "as they are": encoded,
    "a tenth cut off each edge": evenly(0.1),
    "an eighth cut off each edge": evenly(0.125),
    "a fifth cut off each edge": evenly(0.2),
    "a quarter cut off each edge": evenly(0.25),
    "a fifth cut off the top": partial(cut, left=0, top=0.2, right=0, bottom=0),
    "a fifth cut off the bottom": partial(cut, left=0, top=0, right=0, bottom=0.2),
    "a fifth cut off top and bottom": partial(cut, left=0, top=0.2, right=0, bottom=0.2),
    "a fifth cut off either side": partial(cut, left=0.2, top=0, right=0.2, bottom=0),
    "the upper half": partial(cut, left=0, top=0, right=0, bottom=0.5),
    "the lower half": partial(cut, left=0, top=0.5, right=0, bottom=0),
    "the left half": partial(cut, left=0, top=0, right=0.5, bottom=0),
    "the top at 50% of its brightness": partial(shaded, first=0.5, last=1.0),
    "the top at 30% of its brightness": partial(shaded, first=0.3, last=1.0),
    "the bottom at 50% of its brightness": partial(shaded, first=1.0, last=0.5),
    "JPEG of quality 20": partial(encoded, form="JPEG", quality=20),
    "JPEG of quality 10": partial(encoded, form="JPEG", quality=10),
    "JPEG of quality 5": partial(encoded, form="JPEG", quality=5),
}


def eight_bits(film: Film) -> Picture:
    """Return a film's pixels, of 8 bits."""
    pixels = decode(read_film(film), film.path).pixels
    return (pixels >> 8).astype(np.uint8) if pixels.dtype == np.uint16 else pixels.astype(np.uint8)


def measured(predictor: Predictor, films: dict[str, list[Picture]]) -> Iterator[dict[str, str | int]]:
    """Yield a row for each way."""
    for way, alter in WAYS.items():
        row: dict[str, str | int] = {"films": way}
        for label, pictures in films.items():
            answers = [predictor.predict(alter(picture), way) for picture in pictures]
            row[f"{label}, of"] = len(pictures)
            row[f"{label}, refused"] = sum(answer.label is None for answer in answers)
            row[f"{label}, wrong"] = sum(answer.label not in {None, label} for answer in answers)
        yield row


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle")
    parser.add_argument("manifest", type=Path)
    parser.add_argument("--split", default="val")
    parser.add_argument("--every", type=int, default=5)
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    taken = [film for film in read_manifest(args.manifest) if film.split == args.split and film.is_accepted]
    films = {
        label.value: [eight_bits(film) for film in [each for each in taken if each.label == label][:: args.every]]
        for label in Label
    }
    predictor = Predictor.load(folder_of(args.bundle), threads=1)
    for row in measured(predictor, films):
        if args.json:
            print(json.dumps(row), flush=True)
        else:
            print(*(f"{name} {value}" if name != "films" else f"{value}:" for name, value in row.items()), flush=True)


if __name__ == "__main__":
    main()
