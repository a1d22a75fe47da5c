"""One browser, one service with a real bundle, and pages that are opened in them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, BrowserContext, Page, expect

from chestxray.inference.predictor import Predictor
from driving import CHROMIUM, DESKTOP, Opener
from firefox import FIREFOX
from live_service import running


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """All tests in this folder drive a browser."""
    for item in items:
        if item.path.parent == Path(__file__).parent:
            name, found = ("firefox", FIREFOX) if item.path.stem.endswith("firefox") else ("chromium", CHROMIUM)
            item.add_marker(pytest.mark.browser)
            item.add_marker(pytest.mark.skipif(found is None, reason=f"no {name} on this machine"))


@pytest.fixture(scope="session")
def predictor(bundle: Path) -> Predictor:
    return Predictor.load(bundle)


@pytest.fixture(scope="session")
def address(predictor: Predictor) -> Iterator[str]:
    with running(predictor) as found:
        yield found


@pytest.fixture
def complaints() -> list[str]:
    """What the browser complained of; a test that provokes a complaint empties it."""
    return []


@pytest.fixture
def visit(browser: Browser, address: str, complaints: list[str]) -> Iterator[Opener]:
    """Open a page. Whatever a test does there, no other origin is asked and the browser has no complaint."""
    contexts: list[BrowserContext] = []
    strangers: list[str] = []

    def open_page(path: str = "/", script: str = "", at: str = address, api: str = "", **options: object) -> Page:
        context = browser.new_context(**{"viewport": DESKTOP, "color_scheme": "light", **options})
        contexts.append(context)
        if script:
            context.add_init_script(script)
        page = context.new_page()
        own = (f"{at}/", f"blob:{at}/", f"{api or at}/", "data:image/png;")
        page.on("console", lambda message: complaints.append(message.text) if message.type == "error" else None)
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on("request", lambda request: None if request.url.startswith(own) else strangers.append(request.url))
        page.goto(at + path)
        if path == "/":
            page.locator("html[data-ready]").wait_for()
        if path == "/" and at == address:
            expect(page.locator(".point").first).to_be_visible()
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert strangers == []
    assert complaints == []


@pytest.fixture
def film_path(film_paths: tuple[Path, ...]) -> Path:
    return film_paths[0]


@pytest.fixture
def text_file(tmp_path: Path) -> Path:
    path = tmp_path / "letter.txt"
    path.write_text("Dear colleague,")
    return path
