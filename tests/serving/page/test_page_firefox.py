"""The page in Firefox, the browser that is not Chromium: a real film, uploaded, answered and looked at."""

from __future__ import annotations

import io
from collections.abc import Iterator
from pathlib import Path

import axe_playwright_python
import numpy as np
import pytest
from PIL import Image

import dicoms
from chestxray.inference.predictor import Predictor
from drawing import coloured, encoded, gradient
from driving import HEADLINES
from firefox import Firefox, firefox

AXE = Path(axe_playwright_python.__file__).with_name("axe.min.js")
ANSWERED = "/normal|pneumonia|refused|failed/.exec(document.querySelector('#answer').dataset.outcome)?.[0]"
VIOLATIONS = """
const done = arguments[arguments.length - 1];
axe.run({ resultTypes: ["violations"] }).then(({ violations }) =>
    done(violations.flatMap(({ id, nodes }) => nodes.map(({ html }) => `${id}: ${html.slice(0, 120)}`))));
"""


@pytest.fixture(scope="module")
def started() -> Iterator[Firefox]:
    with firefox() as browser:
        yield browser


@pytest.fixture
def page(started: Firefox, address: str) -> Iterator[Firefox]:
    """The first page, freshly opened; whatever a test does there, the browser has no complaint."""
    started.open(f"{address}/docs.html")  # so that the other test's page is left
    started.complaints(address)
    started.open(address)
    started.until("document.querySelector('.point')")
    yield started
    assert started.complaints(address) == []


def text_of(page: Firefox, selector: str) -> str:
    text: str = page.run("return document.querySelector(arguments[0]).textContent", selector)
    return text


def violations(page: Firefox) -> list[str]:
    page.run(f"if (!globalThis.axe) {{ {AXE.read_text(encoding='utf-8')} }}")
    found: list[str] = page.ask("WebDriver:ExecuteAsyncScript", {"script": VIOLATIONS, "args": []})
    return found


def test_a_film_is_uploaded_and_answered_with_its_map(page: Firefox, film_path: Path, predictor: Predictor) -> None:
    page.choose("#files", [film_path])
    prediction = predictor.predict(film_path.read_bytes(), "film")
    assert page.until(ANSWERED) == prediction.label
    assert text_of(page, "#headline") == HEADLINES[str(prediction.label)]
    shown = page.run("return document.querySelector('#bar').style.getPropertyValue('--probability')")
    assert float(shown) == prediction.probability
    page.until(
        "document.querySelector('.pane').dataset.state === 'film' && document.querySelector('img.film').complete"
    )
    before = page.screenshot()
    page.click("#heat")
    page.until("((map) => !map.hidden && map.complete && map.naturalWidth)(document.querySelector('.overlay'))")
    film, mapped = (np.asarray(Image.open(io.BytesIO(png)).convert("RGB"), int) for png in (before, page.screenshot()))
    assert (np.abs(film - mapped).max(axis=2) > 40).mean() > 0.01  # it is seen, over the film
    assert violations(page) == []


def test_sixteen_bits_of_dicom_are_drawn_and_windowed(page: Firefox, tmp_path: Path) -> None:
    path = tmp_path / "film.dcm"
    path.write_bytes(dicoms.native(gradient().astype(np.uint16) * 16))
    page.choose("#files", [path])
    page.until(ANSWERED)
    page.until("document.querySelector('canvas.film').width === 128")  # the film's own size, not a canvas's 300
    assert page.run("return document.querySelector('canvas.film').hidden") is False


def test_a_worklist_shows_its_thumbnails_and_takes_the_keyboard(
    page: Firefox, film_paths: tuple[Path, ...], text_file: Path, address: str
) -> None:
    page.choose("#files", [*film_paths[:8], text_file])
    page.until("document.querySelector('#worklist').dataset.done === 'true'")
    page.until("document.querySelectorAll('.thumb canvas').length >= 8")
    names = page.run("return [...document.querySelectorAll('.pick > :last-child')].map((one) => one.textContent)")
    page.run("document.querySelectorAll('.pick')[1].focus()")
    page.run("document.activeElement.dispatchEvent(new KeyboardEvent('keydown', {key: 'ArrowDown', bubbles: true}))")
    assert page.run("return document.activeElement.lastChild.textContent") == names[2]
    assert violations(page) == []
    page.run("document.querySelector('#theme').click()")
    assert violations(page) == [], "dark"


def test_a_colour_picture_is_refused_in_words(page: Firefox, tmp_path: Path) -> None:
    path = tmp_path / "holiday.png"
    path.write_bytes(encoded(coloured()))
    page.choose("#files", [path])
    assert page.until(ANSWERED) == "refused"
    assert text_of(page, "#headline") == HEADLINES["refused"]
    assert "colour" in text_of(page, "#because")
    assert violations(page) == []


@pytest.mark.parametrize("path", ["/model.html", "/docs", "/nowhere"])
def test_the_pages_to_read_are_whole(started: Firefox, address: str, path: str) -> None:
    started.open(address + path)
    started.until(
        "document.querySelector('#operating tr, #problems tr') || /No page has/.test(document.body.innerText)"
    )
    assert violations(started) == []
    assert started.run("return document.querySelector('.top nav').innerText.split('\\n').length") >= 1
