"""What a heat map must not be: independent of the weights, or beside the opacity.

Source of the first: Adebayo et al., "Sanity checks for saliency maps", NeurIPS (2018). Of the second, the pointing
game: Zhang et al., "Top-down neural attention by excitation backprop", ECCV (2016).
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest
import torch

from chestxray.data.clean import clean
from chestxray.data.collect import collect
from chestxray.data.pack import Pack, write_pack
from chestxray.data.split import split
from chestxray.images.preprocess import onto_film
from chestxray.schema import Split
from chestxray.synthetic.anatomy import random_anatomy
from chestxray.synthetic.films import SyntheticFilm, SyntheticSettings, draw_film, write_synthetic_films
from chestxray.training.checkpoint import read_weights
from chestxray.training.config import Recipe
from chestxray.training.networks import Classifier, build
from chestxray.training.run import train_run
from chestxray.training.run_folder import BEST_WEIGHTS, RunInfo, restored

SIDE = 160
FILMS = 120
CELL = 16  # pixels: what one cell of the map covers


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Classifier, Pack]:
    """The small network, trained on synthetic films until it tells them apart."""
    folder = tmp_path_factory.mktemp("heat")
    write_synthetic_films(folder / "films", SyntheticSettings(patients=400, seed=11))
    films = split(clean(collect(folder / "films"), workers=1))
    write_pack(films, folder / "pack", size=(SIDE, SIDE), workers=1)
    recipe = Recipe(network="residual", epochs=30, learning_rate=3e-3, dropout=0.1, average_weights=0.1)
    summary = train_run(folder / "pack", folder / "run", recipe.with_changes(flip=0.5, shift=0.05, scale=0.1))
    assert summary.best.auroc > 0.95
    info = RunInfo.read(folder / "run")
    return restored(info, read_weights(folder / "run" / BEST_WEIGHTS, info.files[BEST_WEIGHTS])), Pack.open(
        folder / "pack"
    )


def maps_of(classifier: Classifier, planes: npt.NDArray[np.uint8]) -> tuple[npt.NDArray[np.float32], ...]:
    with torch.inference_mode():
        logits, maps = classifier.eval().explain(torch.from_numpy(planes[:, None]))
    return logits.numpy(), maps.numpy()


def opaque_film(number: int) -> SyntheticFilm:
    rng = np.random.default_rng([17, number])
    return draw_film(random_anatomy(rng), "bacteria", rng, height=SIDE, width=SIDE)


@pytest.mark.slow
def test_the_strongest_place_lies_in_the_opacity(trained: tuple[Classifier, Pack]) -> None:
    classifier, pack = trained
    synthetic_films = [opaque_film(number) for number in range(FILMS)]
    logits, maps = maps_of(classifier, np.stack([film.pixels for film in synthetic_films]))
    called = [index for index in range(FILMS) if logits[index] > 0]
    assert len(called) > 0.8 * FILMS
    hits = 0
    for index in called:
        spread = onto_film(np.clip(maps[index], 0.0, None), (SIDE, SIDE), pack.info.preprocessing)
        row, column = np.unravel_index(np.argmax(spread), spread.shape)
        near = synthetic_films[index].opacity[
            max(0, row - CELL // 2) : row + CELL // 2 + 1, max(0, column - CELL // 2) : column + CELL // 2 + 1
        ]
        hits += bool(near.any())
    assert hits >= 0.9 * len(called)


@pytest.mark.slow
def test_other_weights_give_another_map(trained: tuple[Classifier, Pack]) -> None:
    classifier, pack = trained
    planes = np.asarray(pack.images[pack.rows(Split.VAL)][:40])
    _, learnt = maps_of(classifier, planes)
    _, chance = maps_of(build("residual", pack.info.preprocessing, seed=5), planes)
    alike = [np.corrcoef(one.ravel(), other.ravel())[0, 1] for one, other in zip(learnt, chance, strict=True)]
    assert abs(float(np.mean(alike))) < 0.5
