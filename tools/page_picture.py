"""Draw docs/page.jpg, the picture in the README: the page with the bundle of the package and its own synthetic films.

python tools/page_picture.py [BUNDLE] [--out docs/page.jpg]

The films are those that the page offers; the one that the model finds most suspicious is on the stage, with its map.
"""

from __future__ import annotations

import argparse
import io
import sys
from pathlib import Path
from typing import Final

from PIL import Image
from playwright.sync_api import Page, sync_playwright

from chestxray.inference.bundle import DEFAULT, folder_of
from chestxray.inference.predictor import Predictor
from chestxray.serving.static import EXAMPLES

ROOT: Final = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "tests" / "support"))
SIZE: Final = {"width": 1280, "height": 800}


def by_suspicion(predictor: Predictor) -> list[Path]:
    """The page's own films, the most suspicious first."""
    films = sorted(EXAMPLES.glob("*.jpg"))
    return sorted(films, key=lambda film: -(predictor.predict(film.read_bytes(), film.name).probability or 0.0))


def draw(page: Page, films: list[Path]) -> bytes:
    """Choose the films, switch the map on, and take the picture as PNG."""
    page.locator(".point").first.wait_for()
    page.locator("#files").set_input_files(films)
    page.locator("#worklist[data-done=true]").wait_for()
    page.locator("#heat").click()
    page.locator(".overlay:visible").first.wait_for()
    page.wait_for_function(
        "document.querySelector('.overlay').complete && document.querySelectorAll('.thumb canvas').length > 2"
    )
    page.mouse.move(0, 0)
    return page.screenshot(animations="disabled")


def main() -> None:
    """Draw and write."""
    from driving import CHROMIUM, FLAGS
    from live_service import running

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("bundle", type=folder_of, nargs="?", default=DEFAULT)
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "page.jpg")
    arguments = parser.parse_args()
    predictor = Predictor.load(folder_of(arguments.bundle))
    if CHROMIUM is None:
        sys.exit("page_picture.py: no Chromium here. Install it, for instance with: make browser")
    with running(predictor) as address, sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        page = browser.new_page(viewport=SIZE, color_scheme="light")
        page.goto(address)
        png = draw(page, by_suspicion(predictor))
        browser.close()
    Image.open(io.BytesIO(png)).convert("RGB").save(arguments.out, quality=80, optimize=True)
    print(f"{arguments.out}: {arguments.out.stat().st_size:,} bytes, with {predictor.info.name}")


if __name__ == "__main__":
    main()
