"""Packs small enough to train on in a second, for tests."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np

from chestxray.data.pack import IMAGES, MANIFEST, PACK_JSON, Pack, population_statistics
from chestxray.schema import Film, Label, PackInfo, Preprocessing, Resize, Split, fingerprint, write_manifest

HEIGHT, WIDTH = 48, 64


def write_small_pack(
    folder: Path,
    *,
    training: tuple[int, int] = (24, 24),
    validation: tuple[int, int] = (10, 10),
    contrast: float = 60.0,
    films_per_patient: int = 2,
) -> Path:
    """Grey noise; pneumonia has a brighter patch somewhere in the lower half.

    Args:
        training, validation: how many (normal, pneumonia) films.
        contrast: of the patch, in grey levels: how easy the task is.
    """
    rng = np.random.default_rng(5)
    films, planes = [], []
    for split, counts in ((Split.TRAIN, training), (Split.VAL, validation)):
        for label, count in zip(Label, counts, strict=True):
            for number in range(count):
                plane = rng.normal(100, 25, (HEIGHT, WIDTH))
                if label is Label.PNEUMONIA:
                    left = rng.integers(4, WIDTH - 24)
                    plane[28:44, left : left + 20] += contrast
                planes.append(plane.clip(0, 255).astype(np.uint8))
                films.append(
                    Film(
                        path=str(folder / f"{split}-{label}-{number}.png"),
                        label=label,
                        split=split,
                        patient_id=f"{split}-{label}-{number // films_per_patient}",
                        sha256=hashlib.sha256(planes[-1].tobytes()).hexdigest(),
                        verdict="accepted",
                    )
                )
    images = np.stack(planes)
    rows = np.flatnonzero([film.split == Split.TRAIN for film in films])
    mean, std = population_statistics(images, rows)
    info = PackInfo(len(films), Preprocessing(HEIGHT, WIDTH, Resize.SQUEEZE, mean, std), fingerprint(films))
    folder.mkdir(parents=True, exist_ok=True)
    np.save(folder / IMAGES, images)
    write_manifest(films, folder / MANIFEST)
    (folder / PACK_JSON).write_text(info.to_json())
    return folder


def small_pack(folder: Path, **options: object) -> Pack:
    """``write_small_pack``, opened."""
    return Pack.open(write_small_pack(folder, **options))
