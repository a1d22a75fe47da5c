"""A model knows its training films, and their copies, and nobody else's."""

from __future__ import annotations

import dataclasses
import hashlib
import io
from pathlib import Path

import pytest
from PIL import Image

from chestxray.data.dedup import TrainingFilms, refuse_training_films
from chestxray.errors import Leakage
from chestxray.images.decode import decode
from chestxray.images.quality import perceptual_hash
from chestxray.schema import Film


def film_of(data: bytes, path: str) -> Film:
    return Film(
        path, sha256=hashlib.sha256(data).hexdigest(), perceptual_hash=perceptual_hash(decode(data, path).pixels)
    )


@pytest.fixture
def files(synthetic_films: Path) -> list[bytes]:
    return [path.read_bytes() for path in sorted(synthetic_films.rglob("*.jp*g"))[:6]]


def smaller(data: bytes) -> bytes:
    out = io.BytesIO()
    picture = Image.open(io.BytesIO(data)).convert("L")
    picture.resize((picture.width * 2 // 3, picture.height * 2 // 3), Image.Resampling.BILINEAR).save(out, "PNG")
    return out.getvalue()


def test_the_same_file_and_a_smaller_copy_are_known_and_another_film_is_not(files: list[bytes]) -> None:
    known = TrainingFilms.of([film_of(data, "a") for data in files[:3]])
    copy = film_of(smaller(files[1]), "copy")
    asked = [film_of(files[0], "same"), copy, film_of(files[5], "new")]
    same, near = known.among(asked)
    assert [film.path for film in same] == ["same"]
    assert [film.path for film in near] == ["copy"]
    with pytest.raises(Leakage, match=r"2 of these 3 films, 1 of them as copies .* such as same, copy"):
        refuse_training_films(known, asked, "pneumonia")
    refuse_training_films(known, asked[2:], "pneumonia")


def test_the_list_survives_its_file_and_does_not_tell_the_order_of_the_films(files: list[bytes]) -> None:
    films = [film_of(data, "a") for data in files]
    known = TrainingFilms.of(films)
    assert TrainingFilms.from_json(known.to_json()) == known
    assert TrainingFilms.of(films[::-1]) == known
    assert known.among([dataclasses.replace(films[0], sha256="", perceptual_hash="")]) == ((), ())


def test_a_list_that_was_cut_is_no_list(files: list[bytes]) -> None:
    text = TrainingFilms.of([film_of(files[0], "a")]).to_json()
    with pytest.raises(ValueError, match="no hashes"):
        TrainingFilms.from_json(text.replace('"sha256": "', '"sha256": "AAAA'))
