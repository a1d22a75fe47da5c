"""The documentation builds without a warning, asks nobody for anything, and reads well from disk, on a phone too."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Final

import pytest
from playwright.sync_api import Browser, Page, expect

from chestxray.cli import chestxray_group
from chestxray.schema import NOTICE
from driving import DESKTOP, PHONE
from pages import ROOT, pages

pytestmark = pytest.mark.slow

# What a browser fetches by itself; a link that somebody has to follow is none of it.
FETCHED: Final = {"script": "src", "img": "src", "link": "href", "iframe": "src", "source": "src", "object": "data"}
ELSEWHERE: Final = re.compile(r"^(?:[a-z]+:)?//", re.IGNORECASE)


@pytest.fixture(scope="module")
def site(shared: Callable[[str, Callable[[Path], object]], Path]) -> Path:
    """The documentation, built as ``make docs`` does."""

    def build(path: Path) -> None:
        command = [sys.executable, "-m", "sphinx", "-W", "--keep-going", "-n", "-q", "-b", "html", "docs", path]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr

    return shared("site", build)


class Fetched(HTMLParser):
    """Collects the addresses that a page fetches."""

    def __init__(self) -> None:
        super().__init__()
        self.addresses: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.addresses += [value or "" for name, value in attrs if name == FETCHED.get(tag)]


def test_every_page_is_built_and_says_what_this_is_not(site: Path) -> None:
    written = {page.name.removeprefix("docs/").replace(".md", ".html") for page in pages()} - {"README.html"}
    built = {path.relative_to(site).as_posix() for path in site.rglob("*.html")}
    assert written <= built
    assert all(NOTICE in (site / name).read_text(encoding="utf-8") for name in written)


def test_no_page_fetches_anything_from_elsewhere(site: Path) -> None:
    looked_at = 0
    for path in site.rglob("*.html"):
        page = Fetched()
        page.feed(path.read_text(encoding="utf-8"))
        looked_at += len(page.addresses)
        assert [address for address in page.addresses if ELSEWHERE.match(address)] == [], path
    assert looked_at
    for path in site.rglob("*.css"):
        assert re.findall(r"url\([\"']?(?:[a-z]+:)?//|@import", path.read_text(encoding="utf-8")) == [], path


def test_the_reference_has_every_verb_every_function_and_every_address(site: Path) -> None:
    import chestxray

    commands = (site / "reference" / "command-line.html").read_text(encoding="utf-8")
    assert all(f'id="chestxray-{verb}"' in commands for verb in chestxray_group.commands)
    options = {name for verb in chestxray_group.commands.values() for option in verb.params for name in option.opts}
    assert [name for name in options if name.startswith("--") and name not in commands] == []
    assert "\N{EN DASH}" not in commands
    python = (site / "reference" / "python.html").read_text(encoding="utf-8")
    names = set(chestxray.__all__) - {"__version__", "ChestXrayError"}
    assert [name for name in names if f'id="chestxray.{name}"' not in python] == []
    http = (site / "reference" / "http.html").read_text(encoding="utf-8")
    assert all(f"{path}</span></code>" in http for path in ("/v1/predict", "/invocations", "/metrics"))


def test_the_model_cards_are_those_of_the_bundles(site: Path) -> None:
    from chestxray.inference.bundle import folder_of, shipped_bundles

    page = (site / "model-cards.html").read_text(encoding="utf-8")
    for name in shipped_bundles():
        card = (folder_of(name) / "MODEL_CARD.md").read_text(encoding="utf-8")
        (fingerprint,) = set(re.findall(r"`([0-9a-f]{64})`", card))
        assert fingerprint in page
        assert "model-index" not in page


# --------------------------------------------------------------------------- in a browser


@pytest.fixture
def opened(browser: Browser) -> Iterator[Callable[[Path, dict[str, int]], Page]]:
    """Opens a page from disk, without a network; what it complains about, or asks for elsewhere, fails the test."""
    complaints: list[str] = []
    contexts = []

    def open_page(path: Path, viewport: dict[str, int]) -> Page:
        context = browser.new_context(viewport=viewport, offline=True)  # type: ignore[arg-type]
        contexts.append(context)
        page = context.new_page()
        page.on("request", lambda request: complaints.extend([request.url] * (not request.url.startswith("file:"))))
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on("console", lambda said: complaints.extend([said.text] * (said.type == "error")))
        page.goto(path.as_uri())
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert [line for line in complaints if not line.startswith("data:")] == []


@pytest.mark.browser
def test_no_page_is_wider_than_a_phone(site: Path, opened: Callable[[Path, dict[str, int]], Page]) -> None:
    page = opened(site / "index.html", PHONE)
    for path in sorted(site.rglob("*.html")):
        page.goto(path.as_uri())
        assert page.evaluate("document.documentElement.scrollWidth") <= PHONE["width"], path


@pytest.mark.browser
def test_the_search_finds_a_page_from_disk(site: Path, opened: Callable[[Path, dict[str, int]], Page]) -> None:
    page = opened(site / "index.html", DESKTOP)
    page.get_by_role("textbox", name="Search").fill("recalibrate")
    page.keyboard.press("Enter")
    expect(page.locator("#search-results li").first).to_be_visible()
    expect(page.get_by_role("link", name="Recalibrate for a hospital").first).to_be_visible()
