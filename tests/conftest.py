"""What many tests share: drawn films, and one bundle trained on them."""

from __future__ import annotations

import gc
import hashlib
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import pytest
from filelock import FileLock
from hypothesis import settings

# Tests share the cores between processes; a library that starts a thread a core in each makes them all wait.
os.environ.setdefault("OMP_NUM_THREADS", "1")

from chestxray.schema import Film

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Playwright

settings.register_profile("untimed", deadline=None)  # how long an example takes says what else the machine does
settings.load_profile("untimed")

SYNTHETIC_PATIENTS = 100
SEED = 7

# Collecting makes millions of objects that stay: looking through them again and again takes half of its time.
gc.disable()


def pytest_collection_finish() -> None:
    """Look for garbage from now on, but not among what was there before the first test."""
    gc.freeze()
    gc.enable()


@pytest.fixture(scope="session")
def shared(tmp_path_factory: pytest.TempPathFactory, worker_id: str) -> Callable[[str, Callable[[Path], object]], Path]:
    """Make something once for all the processes of a test run: ``shared(name, make)`` gives its path."""
    root = tmp_path_factory.getbasetemp()
    if worker_id != "master":
        root = root.parent

    def once(name: str, make: Callable[[Path], object]) -> Path:
        path = root / name
        with FileLock(root / f"{name}.lock"):
            if not path.exists():
                make(path)
        return path

    return once


@pytest.fixture(autouse=True, scope="session")
def gates_are_fitted_once(shared: Callable[[str, Callable[[Path], object]], Path]) -> Iterator[None]:
    """Trainings on the same films share their gate, which depends on nothing else and takes most of their time.

    What imported ``fit_detector`` before, such as its own tests, fits anew each time.
    """
    module = sys.modules.get("chestxray.training.ood_fit")  # without a test that trains, torch is not imported
    if module is None:
        yield
        return
    fit = module.fit_detector

    def fit_once(planes: Sequence[Any], patients: Sequence[str], **options: Any) -> object:
        films = [*planes, *(plane for some in options.get("refuse", ()) for plane in some.planes)]
        rest = {name: value for name, value in options.items() if name != "refuse"}
        refused = [(some.kind, some.patients) for some in options.get("refuse", ())]
        known = hashlib.sha256(repr((patients, rest, refused, [film.shape for film in films])).encode())
        for film in films:
            known.update(film.tobytes())
        path = shared(
            f"gate-{known.hexdigest()}.json",
            lambda path: path.write_text(fit(planes, patients, **options).to_json()),
        )
        return module.OODDetector.from_json(path.read_text())

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "fit_detector", fit_once)
        yield


@pytest.fixture(scope="session")
def playwright() -> Iterator[Playwright]:
    """The driver of browsers: one for all tests of a process, since a second one refuses to start beside its loop."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as started:
        yield started


@pytest.fixture(scope="session")
def browser(playwright: Playwright) -> Iterator[Browser]:
    """Chromium, or no test."""
    from driving import CHROMIUM, FLAGS

    if CHROMIUM is None:
        pytest.skip("no Chromium on this machine")
    opened = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
    yield opened
    opened.close()


@pytest.fixture(scope="session")
def synthetic_films(shared: Callable[[str, Callable[[Path], object]], Path]) -> Path:
    """A folder of synthetic films in the published layout, with one film of each fault."""
    from chestxray.synthetic.films import SyntheticSettings, write_synthetic_films

    return shared(
        "synthetic_films",
        lambda path: write_synthetic_films(path, SyntheticSettings(SYNTHETIC_PATIENTS, seed=SEED, faults=True)),
    )


@pytest.fixture(scope="session")
def synthetic_rows(shared: Callable[[str, Callable[[Path], object]], Path], synthetic_films: Path) -> tuple[Film, ...]:
    """The synthetic films, collected, cleaned and split."""
    from chestxray.data.clean import clean
    from chestxray.data.collect import collect
    from chestxray.data.split import split
    from chestxray.schema import read_manifest, write_manifest

    def make(path: Path) -> None:
        write_manifest(split(clean(collect(synthetic_films), workers=1)), path)

    return read_manifest(shared("synthetic.csv", make))


@pytest.fixture(scope="session")
def pack(shared: Callable[[str, Callable[[Path], object]], Path], synthetic_rows: Sequence[Film]) -> Path:
    """The synthetic films, packed at the size of the original network."""
    from chestxray.data.pack import write_pack

    return shared("pack", lambda path: write_pack(synthetic_rows, path, workers=1))


@pytest.fixture(scope="module")
def planes(pack: Path) -> npt.NDArray[np.uint8]:
    """Four films of the pack, shape (4, height, width)."""
    from chestxray.data.pack import Pack

    return np.asarray(Pack.open(pack).images[:4])


@pytest.fixture(scope="session")
def training(shared: Callable[[str, Callable[[Path], object]], Path], pack: Path) -> Path:
    """A short training run on the synthetic films."""
    from chestxray.training.config import Recipe
    from chestxray.training.run import train_run

    recipe = Recipe.shipped("default").with_changes(epochs=4, batch_size=16, mixup=0.0)
    return shared("training", lambda path: train_run(pack, path, recipe))


@pytest.fixture(scope="session")
def bundle(shared: Callable[[str, Callable[[Path], object]], Path], training: Path) -> Path:
    """A bundle of the training run: it answers, though not well."""
    from chestxray.training.export import export_run

    return shared("bundle", lambda path: export_run(training, path))


@pytest.fixture(scope="session")
def film_paths(synthetic_rows: Sequence[Film]) -> tuple[Path, ...]:
    """Accepted JPEG films of the test split."""
    return tuple(Path(film.path) for film in synthetic_rows if film.split == "test" and film.path.endswith(".jpeg"))


@pytest.fixture(scope="session")
def film(film_paths: Sequence[Path]) -> bytes:
    """The bytes of one accepted JPEG film."""
    return film_paths[0].read_bytes()


@pytest.fixture(scope="module")
def moto() -> Iterator[str]:
    """The address of an emulated, empty AWS."""
    import live_moto

    with live_moto.running() as address:
        yield address


def pytest_sessionfinish() -> None:
    if support := sys.modules.get("live_moto"):
        support.close_idle()


def _real_films() -> Path | None:
    folder = Path(os.environ.get("CHESTXRAY_DATA") or Path(__file__).parents[2] / "shared" / "data")
    return folder if (folder / "chest_xray" / "train").is_dir() else None


@pytest.fixture(scope="session")
def real_films() -> Path:
    """The folder that holds ``chest_xray`` and ``originals``; tests that need it are skipped without it."""
    folder = _real_films()
    if folder is None:
        pytest.skip("the published films are not here: set CHESTXRAY_DATA to the folder that holds chest_xray")
    return folder


@pytest.fixture(scope="session")
def published_films(real_films: Path, shared: Callable[[str, Callable[[Path], object]], Path]) -> tuple[Film, ...]:
    """The published training films, collected and cleaned."""
    from chestxray.data.clean import clean
    from chestxray.data.collect import collect
    from chestxray.schema import read_manifest, write_manifest

    def make(path: Path) -> None:
        write_manifest(clean(collect(real_films / "chest_xray"), workers=1), path)

    return read_manifest(shared("published.csv", make))
