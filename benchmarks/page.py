"""The page in a headless Chromium on loopback: first paint, film and answer after the choice, layout shift, bytes.

python benchmarks/page.py [BUNDLE] [--rounds 15] [--json]

Each round opens the page in a fresh browser context, so that nothing of it is cached, and waits for its first paint;
then it does the same with a line of text from the same server, whose first paint stands beside. Every other round asks
for the text first. No script of the benchmark runs in either before it is painted: the browser itself tells of that.
The first paint shows head, stage, invitation and notice; the frame with which the whole page stands is timed, too. The
largest paint is that of the page's largest text or picture, when the model's description has come. A third context
chooses one of the page's own films. The interval of the ratio of medians is a bootstrap over the rounds, 95%.
BUNDLE is the one that comes with the package where it is left out.
"""

from __future__ import annotations

import argparse
import json
import random
import shutil
import statistics
import sys
from pathlib import Path
from typing import Final

from playwright.sync_api import Browser, Page, sync_playwright

from chestxray.inference.bundle import DEFAULT, folder_of
from chestxray.serving.static import EXAMPLES
from side_by_side import machine

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "support"))

PROBE: Final = """
    addEventListener("change", () => performance.mark("chosen"), true);
    document.addEventListener("load", ({ target }) => target.matches?.("img.film") && performance.mark("shown"), true);
    new MutationObserver((changes) => changes.forEach(({ type, target, addedNodes }) => {
      if (type === "childList") {
        if ([...addedNodes].some(({ id }) => id === "help")) afterNextFrame("whole");
      } else if (target.id === "answer" && /normal|pneumonia|refused/.test(target.dataset.outcome)) {
        performance.mark("answered");
      }
    })).observe(document, { subtree: true, childList: true, attributeFilter: ["data-outcome"] });
    const afterNextFrame = (name) => requestAnimationFrame(() => requestAnimationFrame(() => performance.mark(name)));
    globalThis.shift = 0;
    new PerformanceObserver((list) => list.getEntries().forEach(({ value }) => (shift += value)))
      .observe({ type: "layout-shift", buffered: true });
"""
TEXT: Final = "first paint of a line of text, ms"
PAGE: Final = "first paint, ms"
LARGEST: Final = "largest paint, ms"
FIRST: Final = """() => performance.getEntriesByName("first-contentful-paint")[0].startTime"""
LAST: Final = """() => new Promise((found) =>
    new PerformanceObserver((list) => found(list.getEntries().at(-1).startTime))
        .observe({ type: "largest-contentful-paint", buffered: true }))"""
READ: Final = """() => {
    const marked = (name) => performance.getEntriesByName(name)[0];
    const [whole, chosen, shown, answered] = ["whole", "chosen", "shown", "answered"].map(marked);
    const files = [...performance.getEntriesByType("navigation"), ...performance.getEntriesByType("resource")];
    const start = files.filter(({ name, startTime }) => startTime < chosen.startTime && !name.startsWith("blob:"));
    return {
      "whole page, ms": whole.startTime,
      "film after the choice, ms": shown.startTime - chosen.startTime,
      "answer after the choice, ms": answered.startTime - chosen.startTime,
      "cumulative layout shift": shift,
      "the start page on the wire, bytes": start.reduce((sum, { encodedBodySize }) => sum + encodedBodySize, 0),
    };
}"""


def one_round(browser: Browser, address: str, film: Path, *, text_first: bool) -> dict[str, float]:
    """First paint of a line of text and of the page, in this order or the other one, and one visit of the page."""
    found = {}
    for name, path in sorted({TEXT: "/healthz", PAGE: "/"}.items(), reverse=text_first):
        page = fresh_page(browser, address)
        first_paint_of(page, address + path)
        found[name] = page.evaluate(FIRST)
        if name == PAGE:
            page.locator(".point").first.wait_for()
            found[LARGEST] = page.evaluate(LAST)
        page.context.close()
    return {**found, **one_visit(browser, address, film)}


def fresh_page(browser: Browser, address: str) -> Page:
    """A page of a fresh context whose process runs: starting it is not ours to count."""
    page = browser.new_context(viewport={"width": 1280, "height": 800}).new_page()
    page.goto(f"{address}/readyz")
    return page


def first_paint_of(page: Page, address: str) -> None:
    """Go there, and wait until the browser says that something was painted: nothing is run in the page for it."""
    devtools = page.context.new_cdp_session(page)
    told: list[tuple[str, str]] = []
    devtools.on("Page.lifecycleEvent", lambda event: told.append((event["loaderId"], event["name"])))
    devtools.send("Page.enable")
    devtools.send("Page.setLifecycleEventsEnabled", {"enabled": True})
    ours = devtools.send("Page.navigate", {"url": address})["loaderId"]
    while (ours, "firstContentfulPaint") not in told:
        page.wait_for_timeout(5)


def one_visit(browser: Browser, address: str, film: Path) -> dict[str, float]:
    """Open the page afresh, choose a film, wait for its answer."""
    page = fresh_page(browser, address)
    page.context.add_init_script(PROBE)
    page.goto(address)
    page.locator(".point").first.wait_for()
    page.locator("html[data-ready]").wait_for()
    page.locator("#files").set_input_files(film)
    page.locator("#answer:is([data-outcome=normal], [data-outcome=pneumonia], [data-outcome=refused])").wait_for()
    found: dict[str, float] = page.evaluate(READ)
    page.context.close()
    return found


def measure(bundle: Path, rounds: int) -> dict[str, list[float]]:
    """Values of each round, by what was measured; one round goes uncounted."""
    from chestxray.inference.predictor import Predictor
    from driving import CHROMIUM, FLAGS
    from live_service import running

    film = EXAMPLES / "lobe.jpg"
    if CHROMIUM is None or not shutil.which(CHROMIUM):
        sys.exit("page.py: no Chromium here, so nothing was measured")
    with running(Predictor.load(bundle)) as address, sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        visits = [one_round(browser, address, film, text_first=number % 2 == 0) for number in range(rounds + 1)][1:]
        browser.close()
    return {name: [visit[name] for visit in visits] for name in sorted(visits[0])}


def ratio_of_medians(ours: list[float], theirs: list[float], resamples: int = 2000) -> tuple[float, float, float]:
    """Ratio of two medians with its 95% bootstrap interval; rounds are resampled as pairs."""
    generator = random.Random(0)  # noqa: S311 - a bootstrap
    median = statistics.median
    pairs = list(zip(ours, theirs, strict=True))
    drawn = [generator.choices(pairs, k=len(pairs)) for _ in range(resamples)]
    cuts = statistics.quantiles((median(a for a, _ in one) / median(b for _, b in one) for one in drawn), n=40)
    return median(ours) / median(theirs), cuts[0], cuts[-1]


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("bundle", type=folder_of, nargs="?", default=DEFAULT)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    values = measure(arguments.bundle, arguments.rounds)
    if arguments.json:
        print(json.dumps({"title": "the page", "machine": machine(), "values": values}, indent=2))
        return
    print(f"the page, a fresh browser context each round\n{machine()}; medians of {arguments.rounds} rounds")
    for name, found in values.items():
        print(f"  {name:34} {statistics.median(found):10.3f} ({min(found):.3f} to {max(found):.3f})")
    ratio, low, high = ratio_of_medians(values[PAGE], values[TEXT])
    print(f"  first paint of the page over that of the line of text {ratio:.2f} ({low:.2f} to {high:.2f})")


if __name__ == "__main__":
    main()
