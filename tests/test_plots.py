"""Pictures of films, data, scaling, networks and answers: they show what is there, and say so where nothing is."""

from __future__ import annotations

import dataclasses
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import chestxray
from chestxray.schema import Film, Preprocessing, Resize
from chestxray.training.networks import NETWORKS, build, parameters_of, stages_of


def rendered(figure: Any) -> np.ndarray:
    """The figure's pixels, grey."""
    out = io.BytesIO()
    figure.savefig(out, format="png", dpi=60)
    return np.asarray(Image.open(out).convert("L"))


def pictures_in(figure: Any) -> list[np.ndarray]:
    return [np.asarray(image.get_array()) for axes in figure.axes for image in axes.images]


# --------------------------------------------------------------------------- films


def test_a_film_is_shown_in_its_proportions_under_its_name_label_and_reason(synthetic_rows: Sequence[Film]) -> None:
    film = next(film for film in synthetic_rows if film.is_accepted)
    copy = next(film for film in synthetic_rows if film.verdict == "duplicate")
    figure = chestxray.plot_films([film, copy])
    titles = [axes.get_title().replace("\n", " ") for axes in figure.axes]
    assert Path(film.path).name in titles[0].replace(" ", "")
    assert film.label in titles[0]
    assert copy.reason.split(" as ")[0] in titles[1]
    height, width = pictures_in(figure)[0].shape
    assert width / height == pytest.approx(film.width / film.height, abs=0.01)


def test_films_stand_in_rows_and_a_title_of_ones_own_replaces_theirs(synthetic_rows: Sequence[Film]) -> None:
    films = [film for film in synthetic_rows if film.is_accepted][:6]
    figure = chestxray.plot_films(films, [f"film {number}" for number in range(6)])
    assert [axes.get_title() for axes in figure.axes][:6] == [f"film {number}" for number in range(6)]
    assert len(pictures_in(figure)) == 6


def test_a_film_that_cannot_be_read_is_an_empty_frame_under_the_reason(synthetic_rows: Sequence[Film]) -> None:
    letter = next(film for film in synthetic_rows if film.verdict == "unreadable" and "it is text" in film.reason)
    figure = chestxray.plot_films([letter])
    assert pictures_in(figure) == []
    assert figure.axes[0].texts[0].get_text() == "cannot be shown"
    assert "it is text" in figure.axes[0].get_title().replace("\n", " ")


def test_where_there_is_no_film_the_picture_says_so() -> None:
    assert [text.get_text() for text in chestxray.plot_films([]).axes[0].texts] == ["no film"]


# --------------------------------------------------------------------------- what there is


def test_the_distribution_shows_the_counts_of_the_description(synthetic_rows: Sequence[Film]) -> None:
    figure = chestxray.plot_distribution(synthetic_rows)
    splits, sizes, set_aside = figure.axes
    described = chestxray.describe(synthetic_rows)
    bars = [int(text.get_text()) for text in splits.texts]
    assert bars == [described.classes[split][label] for label in ("normal", "pneumonia") for split in described.classes]
    assert sum(len(points.get_offsets()) for points in sizes.collections) == described.accepted
    rejected = {name: count for name, count in described.verdicts.items() if name != "accepted"}
    drawn = {
        text.get_text().replace(" ", "_"): bar.get_width()
        for text, bar in zip(set_aside.get_yticklabels(), set_aside.patches, strict=True)
    }
    assert drawn == rejected


def test_films_without_sides_or_faults_have_a_distribution_too(synthetic_rows: Sequence[Film]) -> None:
    films = [dataclasses.replace(film, split="") for film in synthetic_rows if film.is_accepted]
    figure = chestxray.plot_distribution(films)
    assert [text.get_text() for text in figure.axes[0].get_xticklabels()] == ["no split yet"]
    assert [text.get_text() for text in figure.axes[2].texts] == ["nothing"]
    assert rendered(figure).min() < 200


# --------------------------------------------------------------------------- scaling


def test_scaling_shows_what_the_network_is_given(synthetic_rows: Sequence[Film], pack: Path) -> None:
    packed = chestxray.Pack.open(pack)
    film = packed.films[0]
    figure = chestxray.plot_scaling(film)
    original, squeezed, letterboxed, cropped = pictures_in(figure)
    assert original.shape[1] / original.shape[0] == pytest.approx(film.width / film.height, abs=0.01)
    difference = np.abs(squeezed.astype(int) - packed.images[0])  # a pack decodes a large JPEG reduced
    assert difference.mean() < 1.0
    assert letterboxed.shape == cropped.shape == (112, 160)
    assert [axes.get_title().split("\n")[0] for axes in figure.axes] == [
        "the film",
        *(policy.value for policy in Resize),
    ]


# --------------------------------------------------------------------------- networks


def test_the_stages_of_the_original_network_halve_the_film_five_times() -> None:
    sizes = [(stage.channels, stage.rows, stage.columns) for stage in stages_of("alexnet5")]
    assert sizes == [
        (1, 112, 160),
        (16, 112, 160),
        (32, 56, 80),
        (64, 28, 40),
        (128, 14, 20),
        (256, 7, 10),
        (256, 3, 5),
        (2048, 1, 1),
        (2, 1, 1),
    ]


@pytest.mark.parametrize("name", NETWORKS)
def test_no_parameter_of_a_network_is_left_out_or_counted_twice(name: str) -> None:
    preprocessing = Preprocessing(*NETWORKS[name].size, Resize.SQUEEZE, 0.5, 0.25)
    network = build(name, preprocessing, started=False)
    assert sum(stage.parameters for stage in stages_of(name)) == parameters_of(network)


@pytest.mark.parametrize("name", NETWORKS)
def test_a_network_is_drawn_with_the_size_of_each_stage(name: str) -> None:
    figure = chestxray.plot_network(name)
    stages = stages_of(name)
    texts = [text.get_text() for text in figure.axes[0].texts]
    assert len(texts) == len(stages)
    for stage, text in zip(stages, texts, strict=True):
        assert text.startswith(f"{stage.channels:,}")
    assert f"{sum(stage.parameters for stage in stages):,} parameters" in figure.axes[0].get_title()
    assert rendered(figure).min() < 200


def test_a_film_too_small_for_a_network_is_refused() -> None:
    with pytest.raises(chestxray.ChestXrayError, match="each side must be 32 to 4096 pixels"):
        chestxray.plot_network("alexnet5", (16, 160))


# --------------------------------------------------------------------------- answers


def test_an_answer_is_drawn_beside_its_film_with_its_heat_map(bundle: Path, film_paths: Sequence[Path]) -> None:
    answer = chestxray.predict(film_paths[0], bundle, heatmap=True)
    figure = chestxray.plot_prediction(film_paths[0], answer)
    film, mapped = pictures_in(figure)
    assert (film.ndim, mapped.ndim) == (2, 3)
    assert film.shape[1] / film.shape[0] == pytest.approx(mapped.shape[1] / mapped.shape[0], abs=0.01)
    assert f"{answer.label}: probability {answer.probability:.3f}" in figure.get_suptitle()
    alone = chestxray.plot_prediction(film_paths[0].read_bytes(), chestxray.predict(film_paths[0], bundle))
    assert len(pictures_in(alone)) == 1


def test_a_refused_film_is_shown_with_the_reason_and_without_a_number(
    bundle: Path, synthetic_rows: Sequence[Film]
) -> None:
    coloured = next(Path(film.path) for film in synthetic_rows if film.verdict == "coloured")
    answer = chestxray.predict(coloured, bundle, heatmap=True)
    figure = chestxray.plot_prediction(coloured, answer)
    assert len(pictures_in(figure)) == 1
    assert figure.get_suptitle() == f"not classified: {answer.gate.reason}"
