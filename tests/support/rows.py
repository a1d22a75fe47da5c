"""Rows of cleaned manifests, without files behind them."""

from __future__ import annotations

import dataclasses
import random

import numpy as np

from chestxray.schema import Film, Label


def row(number: int, label: str, *, split: str = "", patient: str | None = None, sha256: str | None = None) -> Film:
    name = f"person{number}_virus" if label == "pneumonia" else f"IM-{number:04}"
    return Film(
        f"/films/{label}/{number}-{split}-{patient}.png",
        label=label,
        split=split,
        patient_id=name if patient is None else patient,
        sha256=f"{label}{number}{patient}".encode().hex() if sha256 is None else sha256,
        verdict="accepted",
    )


def some_hash(seed: int, *, flipped: int = 0) -> str:
    """A perceptual hash that no other seed comes near, with that many bits turned over, from place 7 * seed on."""
    bits = random.Random(seed).getrandbits(512)  # noqa: S311 - no secret
    for place in range(flipped):
        bits ^= 1 << (7 * seed + 3 * place) % 512
    return f"{bits:0128x}"


def population(patients: int, most_films: int, seed: int) -> list[Film]:
    rng = np.random.default_rng(seed)
    films = []
    for label in Label:
        for number in range(patients):
            for view in range(int(rng.integers(1, most_films + 1))):
                film = row(number, label.value)
                films.append(dataclasses.replace(film, path=f"{film.path}.{view}", sha256=f"{film.sha256}{view:02}"))
    return films
