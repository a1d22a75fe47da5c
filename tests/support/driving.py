"""What the tests of the page do there, and what they expect to see."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from playwright.sync_api import Page, Route, expect

from chestxray.inference.predictor import Predictor

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)
DESKTOP = {"width": 1280, "height": 800}
PHONE = {"width": 390, "height": 844}
HEADLINES = {"normal": "No pneumonia suspected", "pneumonia": "Pneumonia suspected", "refused": "Not answered"}

Opener = Callable[..., Page]


def choose(page: Page, *paths: Path) -> None:
    page.locator("html[data-ready]").wait_for()
    page.locator("#files").set_input_files(paths)


def wait_for_answer(page: Page) -> str:
    """The outcome that the answer panel shows once it shows one."""
    expect(page.locator("#answer")).to_have_attribute(
        "data-outcome", re.compile("normal|pneumonia|refused|failed"), timeout=20_000
    )
    return page.locator("#answer").get_attribute("data-outcome") or ""


def wait_for_all(page: Page) -> None:
    """Until every film of the worklist has its answer, or none."""
    expect(page.locator("#worklist")).to_have_attribute("data-done", "true", timeout=60_000)


def expect_answer_for(page: Page, predictor: Predictor, data: bytes, operating_point: str | None = None) -> None:
    prediction = predictor.predict(data, "film", operating_point=operating_point)
    assert prediction.probability is not None
    assert wait_for_answer(page) == prediction.label
    expect(page.locator("#headline")).to_have_text(HEADLINES[str(prediction.label)])
    share = page.locator("#bar").evaluate("bar => Number(bar.style.getPropertyValue('--probability'))")
    assert share == prediction.probability


def tab_to(page: Page, selector: str) -> None:
    """Press Tab until that element has the focus, and see that the focus shows."""
    for _ in range(60):
        page.keyboard.press("Tab")
        if page.locator(f"{selector}:focus").count():
            outlined = "e => [e, e.nextElementSibling].some(x => x && getComputedStyle(x).outlineStyle !== 'none')"
            assert page.locator(f"{selector}:focus").evaluate(outlined)
            return
    pytest.fail(f"Tab never reaches {selector}")


def shift_of(page: Page) -> float:
    """Cumulative layout shift since the page was opened, as the browser counts it."""
    found: float = page.evaluate(
        """async () => {
            const entries = [];
            const observer = new PerformanceObserver((list) => entries.push(...list.getEntries()));
            observer.observe({ type: "layout-shift", buffered: true });
            for (let frame = 0; frame < 10; frame += 1) await new Promise(requestAnimationFrame);
            observer.disconnect();
            return entries.reduce((sum, entry) => sum + entry.value, 0);
        }"""
    )
    return found


def hold(page: Page) -> list[Route]:
    """Let films wait on their way to the service; gives those that do."""
    held: list[Route] = []

    def keep(route: Route) -> None:
        held.append(route)

    page.route("**/v1/predict*", keep)
    return held


def drop(page: Page, *paths: Path) -> None:
    """Let files or folders fall onto the page, as the system does it."""
    devtools = page.context.new_cdp_session(page)
    carried = {"items": [], "files": [str(path) for path in paths], "dragOperationsMask": 1}
    for kind in ("dragEnter", "dragOver"):
        devtools.send("Input.dispatchDragEvent", {"type": kind, "x": 900, "y": 300, "data": carried})
    expect(page.locator(".drop-here")).to_be_visible()
    devtools.send("Input.dispatchDragEvent", {"type": "drop", "x": 900, "y": 300, "data": carried})
    expect(page.locator(".drop-here")).to_be_hidden()


def names_in_list(page: Page, body: str = "rows") -> list[str]:
    """The films of one part of the worklist, from the top, whether in sight or not."""
    found: list[str] = page.evaluate(
        """async (body) => {
            const box = document.querySelector("#worklist .scroll");
            const before = box.scrollTop;
            const names = [];
            for (let top = 0; ; top += box.clientHeight / 2) {
                box.scrollTop = top;
                for (let frame = 0; frame < 3; frame += 1) await new Promise(requestAnimationFrame);
                for (const row of document.querySelectorAll(`#${body} tr:has(td)`))
                    names[row.ariaRowIndex] = row.querySelector(".pick > :last-child").innerText;
                if (top + box.clientHeight >= box.scrollHeight) break;
            }
            box.scrollTop = before;
            for (let frame = 0; frame < 3; frame += 1) await new Promise(requestAnimationFrame);
            return names.filter((name) => name !== undefined);
        }""",
        body,
    )
    return found
