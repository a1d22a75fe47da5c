"""The page in a real browser, against the real service with a real bundle."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, BrowserContext, Page, Playwright, Route, expect, sync_playwright

from chestxray.inference.predictor import Predictor
from chestxray.schema import NOTICE
from chestxray.serving.app import MEBIBYTE
from drawing import encoded, gradient
from live_service import running

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

pytestmark = [pytest.mark.browser, pytest.mark.skipif(CHROMIUM is None, reason="no chromium on this machine")]

Opener = Callable[..., Page]


@pytest.fixture(scope="module")
def predictor(bundle: Path) -> Predictor:
    return Predictor.load(bundle)


@pytest.fixture(scope="module")
def address(predictor: Predictor) -> Iterator[str]:
    with running(predictor) as found:
        yield found


@pytest.fixture(scope="module")
def playwright() -> Iterator[Playwright]:
    with sync_playwright() as started:
        yield started


@pytest.fixture(scope="module")
def browser(playwright: Playwright) -> Iterator[Browser]:
    opened = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
    yield opened
    opened.close()


@pytest.fixture
def complaints() -> list[str]:
    """What the browser complained of; a test that provokes a complaint empties it."""
    return []


@pytest.fixture
def visit(browser: Browser, address: str, complaints: list[str]) -> Iterator[Opener]:
    """Open a page. Whatever a test does there, no other origin is asked and the browser has no complaint."""
    contexts: list[BrowserContext] = []
    strangers: list[str] = []

    def open_page(path: str = "/", **options: object) -> Page:
        context = browser.new_context(**{"viewport": DESKTOP, "color_scheme": "light", **options})
        contexts.append(context)
        page = context.new_page()
        page.on("console", lambda message: complaints.append(message.text) if message.type == "error" else None)
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on("request", lambda request: None if is_own(request.url) else strangers.append(request.url))
        page.goto(address + path)
        if path == "/":
            expect(page.locator(".point").first).to_be_visible()
        return page

    def is_own(url: str) -> bool:
        return url.startswith((f"{address}/", f"blob:{address}/", "data:image/png;"))

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


def choose(page: Page, *paths: Path) -> None:
    page.locator("#files").set_input_files(paths)


def wait_for_answer(page: Page) -> str:
    """The outcome that the answer panel shows once it shows one."""
    expect(page.locator("#answer")).to_have_attribute(
        "data-outcome", re.compile("normal|pneumonia|refused|failed"), timeout=20_000
    )
    return page.locator("#answer").get_attribute("data-outcome") or ""


HEADLINES = {"normal": "Normal", "pneumonia": "Pneumonia suspected"}


def expect_answer_for(page: Page, predictor: Predictor, data: bytes, operating_point: str | None = None) -> None:
    prediction = predictor.predict(data, "film", operating_point=operating_point)
    assert prediction.probability is not None
    assert wait_for_answer(page) == prediction.label
    expect(page.locator("#headline")).to_have_text(HEADLINES[str(prediction.label)])
    share = page.locator("#bar").evaluate("bar => Number(bar.style.getPropertyValue('--probability'))")
    assert share == prediction.probability


# --------------------------------------------------------------------------- ways in


def test_a_chosen_film_is_answered_as_the_predictor_answers_it(
    visit: Opener, predictor: Predictor, film_paths: tuple[Path, ...]
) -> None:
    page = visit()
    for path in film_paths[:3]:
        choose(page, path)
        expect(page.locator("#film-name")).to_have_text(path.name)
        expect_answer_for(page, predictor, path.read_bytes())
        page.locator("#clear").click()


def test_the_film_is_shown_before_the_answer_is_there(visit: Opener, film_path: Path) -> None:
    page = visit()
    held: list[Route] = []

    def hold(route: Route) -> None:
        held.append(route)

    page.route("**/v1/predict*", hold)
    choose(page, film_path)
    expect(page.locator("#film")).to_be_visible()
    assert page.locator("#film").evaluate("async film => { await film.decode(); return film.naturalWidth; }") > 0
    expect(page.locator("#headline")).to_have_text("Reading the film")
    held[0].continue_()
    assert wait_for_answer(page) in HEADLINES


def test_a_dropped_film_is_answered(visit: Opener, predictor: Predictor, film_path: Path) -> None:
    page = visit()
    devtools = page.context.new_cdp_session(page)
    carried = {"items": [], "files": [str(film_path)], "dragOperationsMask": 1}
    for kind in ("dragEnter", "dragOver"):
        devtools.send("Input.dispatchDragEvent", {"type": kind, "x": 900, "y": 300, "data": carried})
    expect(page.locator(".drop-here")).to_be_visible()
    devtools.send("Input.dispatchDragEvent", {"type": "drop", "x": 900, "y": 300, "data": carried})
    expect_answer_for(page, predictor, film_path.read_bytes())
    expect(page.locator(".drop-here")).to_be_hidden()


def test_a_pasted_film_is_answered(visit: Opener) -> None:
    page = visit(permissions=["clipboard-read", "clipboard-write"])
    page.evaluate(
        """async () => {
            const film = await createImageBitmap(await (await fetch("examples/clear.jpg")).blob());
            const canvas = new OffscreenCanvas(film.width, film.height);
            canvas.getContext("2d").drawImage(film, 0, 0);
            const png = await canvas.convertToBlob({ type: "image/png" });
            await navigator.clipboard.write([new ClipboardItem({ "image/png": png })]);
        }"""
    )
    page.keyboard.press("Control+V")
    assert wait_for_answer(page) in HEADLINES


def test_an_example_is_one_click_away(visit: Opener, predictor: Predictor) -> None:
    page = visit()
    page.get_by_role("button", name="One dense lobe").click()
    wait_for_answer(page)
    expect(page.locator("#film-name")).to_have_text("lobe.jpg")


def test_all_of_it_works_from_the_keyboard(visit: Opener, predictor: Predictor, film_path: Path) -> None:
    page = visit()
    page.on("filechooser", lambda _: None)  # the browser begins to tell of choosers some time after it is asked to
    tab_to(page, "#stage-choose")
    with page.expect_file_chooser() as chooser:
        page.keyboard.press("Enter")
    chooser.value.set_files(film_path)
    expect_answer_for(page, predictor, film_path.read_bytes())
    tab_to(page, "input[name=point]:checked")
    page.keyboard.press("ArrowRight")
    chosen = page.locator("input[name=point]:checked").get_attribute("value")
    assert chosen != predictor.info.default_operating_point
    expect_answer_for(page, predictor, film_path.read_bytes(), chosen)
    tab_to(page, "#heat")
    page.keyboard.press("Space")
    expect(page.locator("#overlay")).to_be_visible()
    tab_to(page, "#opacity")
    before = page.locator("#overlay").evaluate("overlay => Number(overlay.style.opacity)")
    page.keyboard.press("ArrowLeft")
    assert page.locator("#overlay").evaluate("overlay => Number(overlay.style.opacity)") < before


def tab_to(page: Page, selector: str) -> None:
    """Press Tab until that element has the focus, and see that the focus shows."""
    for _ in range(40):
        page.keyboard.press("Tab")
        if page.locator(f"{selector}:focus").count():
            outlined = "e => [e, e.nextElementSibling].some(x => x && getComputedStyle(x).outlineStyle !== 'none')"
            assert page.locator(f"{selector}:focus").evaluate(outlined)
            return
    pytest.fail(f"Tab never reaches {selector}")


# --------------------------------------------------------------------------- the answer


def test_the_operating_point_is_switched_without_asking_again(
    visit: Opener, predictor: Predictor, film_path: Path
) -> None:
    page = visit()
    choose(page, film_path)
    wait_for_answer(page)
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    for point in predictor.info.operating_points:
        page.locator(f"input[name=point][value='{point.name}']").check()
        expect_answer_for(page, predictor, film_path.read_bytes(), point.name)
        mark = page.locator("#bar").evaluate("bar => Number(bar.style.getPropertyValue('--threshold'))")
        assert mark == point.threshold
        measures = page.locator("#measures").inner_text()
        assert f"{round(point.sensitivity * point.positives)} of {point.positives} with pneumonia" in measures
        assert f"{round(point.specificity * point.negatives)} of {point.negatives} normal" in measures
    assert asked == []


def test_the_interval_beside_a_measure_is_wilsons(visit: Opener) -> None:
    from scipy.stats import binomtest

    page = visit()
    for hits, count in ((355, 367), (0, 20), (20, 20), (1, 2), (64, 65)):
        found = page.evaluate(f"async () => (await import('/words.js')).wilson({hits}, {count})")
        interval = binomtest(hits, count).proportion_ci(method="wilson")
        assert found == pytest.approx([interval.low, interval.high], abs=1e-9)


@pytest.mark.parametrize(
    ("share", "text"),
    [(0.9732, "97.3%"), (0.5, "50.0%"), (0.9999, "> 99.9%"), (0.0001, "< 0.1%"), (0, "0.0%"), (1, "100.0%")],
)
def test_what_is_not_certain_is_not_shown_as_certain(visit: Opener, share: float, text: str) -> None:
    assert visit().evaluate(f"async () => (await import('/words.js')).percent({share})") == text


def test_the_heat_map_lies_exactly_over_the_film(visit: Opener, film_path: Path) -> None:
    page = visit()
    choose(page, film_path)
    wait_for_answer(page)
    expect(page.locator("#overlay")).to_be_hidden()
    page.get_by_role("switch", name="Heat map").click()
    expect(page.locator("#overlay")).to_be_visible()
    shapes = [
        page.locator(name).evaluate("async e => { await e.decode(); return e.naturalWidth / e.naturalHeight; }")
        for name in ("#film", "#overlay")
    ]
    assert shapes[0] == pytest.approx(shapes[1], rel=0.01)
    assert page.locator("#film").bounding_box() == page.locator("#overlay").bounding_box()
    page.locator("#opacity").fill("30")
    assert page.locator("#overlay").evaluate("overlay => overlay.style.opacity") == "0.3"
    page.get_by_role("switch", name="Heat map").click()
    expect(page.locator("#overlay")).to_be_hidden()


def test_a_film_that_cannot_be_judged_says_why(visit: Opener, tmp_path: Path) -> None:
    colour = gradient()[..., None].repeat(3, axis=2)
    colour[..., 0] = 255 - colour[..., 0]
    path = tmp_path / "holiday.png"
    path.write_bytes(encoded(colour))
    page = visit()
    choose(page, path)
    assert wait_for_answer(page) == "refused"
    expect(page.locator("#headline")).to_have_text("Cannot judge this film")
    expect(page.locator("#because")).to_contain_text("coloured")
    expect(page.locator("#probability")).to_have_text("\N{EN DASH}")
    expect(page.locator("#heat")).to_be_disabled()


def test_the_answer_is_announced(visit: Opener, film_path: Path) -> None:
    page = visit()
    choose(page, film_path)
    headline = HEADLINES[wait_for_answer(page)]
    expect(page.locator("[aria-live=polite]")).to_contain_text(f"{film_path.name}: {headline}. Probability ")


def test_every_outcome_has_a_shape_of_its_own(visit: Opener) -> None:
    drawings = visit().evaluate("[...document.querySelectorAll('template')].map((t) => t.innerHTML)")
    assert len(drawings) == 6
    assert len(set(drawings)) == 6


def test_the_notice_never_leaves_the_screen(visit: Opener) -> None:
    for size in (DESKTOP, PHONE):
        page = visit(viewport=size)
        expect(page.locator(".notice")).to_contain_text(NOTICE)
        expect(page.locator(".notice")).to_contain_text("not stored")
        expect(page.locator(".notice")).to_be_in_viewport(ratio=1)


def test_about_the_model_shows_its_card(visit: Opener, predictor: Predictor) -> None:
    page = visit()
    page.get_by_role("button", name="About the model").click()
    dialog = page.get_by_role("dialog")
    expect(dialog).to_contain_text(predictor.info.intended_use)
    expect(dialog).to_contain_text(predictor.info.name)
    expect(dialog.get_by_role("heading", name="Limits")).to_be_visible()
    assert "license:" not in dialog.inner_text()
    page.keyboard.press("Escape")
    expect(dialog).to_be_hidden()
    expect(page.get_by_role("button", name="About the model")).to_be_focused()


# --------------------------------------------------------------------------- what goes wrong


def test_a_text_file_gets_a_clear_message(visit: Opener, text_file: Path, complaints: list[str]) -> None:
    page = visit()
    choose(page, text_file)
    assert wait_for_answer(page) == "failed"
    expect(page.locator("#because")).to_contain_text("This is not a film that can be read here")
    expect(page.locator("#because")).to_contain_text("Not a DICOM, JPEG, PNG or TIFF file")
    expect(page.locator("#retry")).to_be_hidden()
    expect(page.locator(".stage .unshowable")).to_be_visible()
    assert "415" in complaints.pop()


def test_a_film_that_is_cut_short_gets_a_clear_message(
    visit: Opener, film: bytes, tmp_path: Path, complaints: list[str]
) -> None:
    path = tmp_path / "half.jpg"
    path.write_bytes(film[: len(film) // 2])
    page = visit()
    choose(page, path)
    assert wait_for_answer(page) == "failed"
    expect(page.locator("#because")).to_contain_text("damaged or incomplete")
    assert "422" in complaints.pop()


def test_a_film_over_the_limit_is_not_even_sent(visit: Opener, tmp_path: Path) -> None:
    path = tmp_path / "huge.png"
    path.write_bytes(bytes(20 * MEBIBYTE + 1))
    page = visit()
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url) if "predict" in request.url else None)
    choose(page, path)
    assert wait_for_answer(page) == "failed"
    expect(page.locator("#because")).to_contain_text("This film is too large")
    assert asked == []


@pytest.mark.parametrize(("status", "words"), [(503, "The service is busy"), (500, "The service failed")])
def test_a_service_in_trouble_gets_a_clear_message_and_a_second_chance(
    visit: Opener, film_path: Path, complaints: list[str], status: int, words: str
) -> None:
    page = visit()
    trouble = json.dumps({"detail": "17 films are waiting already"})
    page.route("**/v1/predict*", lambda route: route.fulfill(status=status, body=trouble), times=1)
    choose(page, film_path)
    assert wait_for_answer(page) == "failed"
    expect(page.locator("#because")).to_contain_text(words)
    page.get_by_role("button", name="Try again").click()
    expect(page.locator("#answer")).to_have_attribute("data-outcome", re.compile("normal|pneumonia"))
    assert str(status) in complaints.pop()


def test_a_lost_connection_gets_a_clear_message_and_a_second_chance(
    visit: Opener, film_path: Path, complaints: list[str]
) -> None:
    page = visit()
    page.context.set_offline(True)
    choose(page, film_path)
    assert wait_for_answer(page) == "failed"
    expect(page.locator("#because")).to_contain_text("The service does not answer")
    page.context.set_offline(False)
    page.get_by_role("button", name="Try again").click()
    expect(page.locator("#answer")).to_have_attribute("data-outcome", re.compile("normal|pneumonia"))
    assert "ERR_INTERNET_DISCONNECTED" in complaints.pop()


def test_one_bad_film_among_many_does_not_stop_the_rest(
    visit: Opener, predictor: Predictor, film_paths: tuple[Path, ...], text_file: Path, complaints: list[str]
) -> None:
    films = film_paths[:4]
    page = visit()
    choose(page, films[0], text_file, *films[1:])
    rows = page.locator("#rows tr")
    expect(rows).to_have_count(5)
    expect(page.locator("#rows [data-outcome=asking]")).to_have_count(0, timeout=20_000)
    expect(rows.nth(1)).to_contain_text("This is not a film")
    for row, path in zip((0, 2, 3, 4), films, strict=True):
        assert rows.nth(row).get_attribute("data-outcome") == predictor.predict(path.read_bytes(), "film").label
    expect(page.locator("#tally")).to_contain_text("5 films:")
    rows.nth(3).get_by_role("button").click()
    expect(page.locator("#film-name")).to_have_text(films[2].name)
    expect_answer_for(page, predictor, films[2].read_bytes())
    page.get_by_role("button", name="Start over").click()
    expect(page.locator("#worklist")).to_be_hidden()
    expect(page.locator("#stage-choose")).to_be_focused()
    assert "415" in complaints.pop()


# --------------------------------------------------------------------------- made well


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_theme_follows_the_system_until_it_is_switched(visit: Opener, scheme: str) -> None:
    page = visit(color_scheme=scheme)
    root, other = page.locator("html"), {"light": "dark", "dark": "light"}[scheme]
    expect(root).to_have_attribute("data-theme", scheme)
    page.get_by_role("switch", name="Dark").click()
    expect(root).to_have_attribute("data-theme", other)
    page.reload()
    expect(root).to_have_attribute("data-theme", other)
    expect(page.get_by_role("switch", name="Dark")).to_have_attribute("aria-checked", str(other == "dark").lower())


@pytest.mark.parametrize("width", [320, 390, 768, 1024, 1280])
def test_nothing_scrolls_sideways_at_any_width(visit: Opener, film_paths: tuple[Path, ...], width: int) -> None:
    page = visit(viewport={"width": width, "height": 844})
    sideways = "document.documentElement.scrollWidth - document.documentElement.clientWidth"
    assert page.evaluate(sideways) == 0
    choose(page, *film_paths[:3])
    expect(page.locator("#rows [data-outcome=asking]")).to_have_count(0, timeout=20_000)
    assert page.evaluate(sideways) == 0
    page.get_by_role("button", name="About the model").click()
    assert page.evaluate(sideways) == 0
    assert visit("/docs", viewport={"width": width, "height": 844}).evaluate(sideways) == 0


@pytest.mark.parametrize("size", [DESKTOP, PHONE], ids=["desktop", "phone"])
def test_nothing_jumps_when_the_answer_comes(visit: Opener, film_path: Path, size: dict[str, int]) -> None:
    page = visit(viewport=size)
    choose(page, film_path)
    wait_for_answer(page)
    page.get_by_role("switch", name="Heat map").click()
    expect(page.locator("#overlay")).to_be_visible()
    assert shift_of(page) < 0.01
    page.evaluate("scrollTo(0, 0)")
    page.locator("header").evaluate("header => header.style.paddingBottom = '200px'")  # the measure itself works
    assert shift_of(page) > 0.05


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


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_all_text_stands_out_from_its_ground(
    visit: Opener, film_paths: tuple[Path, ...], text_file: Path, complaints: list[str], scheme: str
) -> None:
    page = visit(color_scheme=scheme)
    assert faint_texts(page) == []
    choose(page, *film_paths[:3], text_file)
    expect(page.locator("#rows [data-outcome=asking]")).to_have_count(0, timeout=20_000)
    page.get_by_role("switch", name="Heat map").click()
    expect(page.locator("#overlay")).to_be_visible()
    assert faint_texts(page) == []
    page.get_by_role("button", name="About the model").click()
    assert faint_texts(page) == []
    assert faint_texts(visit("/docs", color_scheme=scheme)) == []
    assert "415" in complaints.pop()


def faint_texts(page: Page) -> list[str]:
    """Texts whose contrast lies below 4.5 to 1. Source: WCAG 2.2, success criterion 1.4.3."""
    pairs = page.evaluate(
        """() => [...document.querySelectorAll("body *")].filter((e) =>
            e.checkVisibility({ visibilityProperty: true, opacityProperty: true })
            && !e.closest(".unseen, :disabled, template, [data-on=false], .stage[data-state=film]")
            && [...e.childNodes].some((n) => n.nodeType === 3 && n.data.trim())
        ).map((e) => {
            let ground = e;
            const colour = (x) => getComputedStyle(x).backgroundColor;
            while (ground.parentElement && /, 0\\)|transparent/.test(colour(ground))) ground = ground.parentElement;
            return [e.textContent.trim().slice(0, 40), getComputedStyle(e).color, colour(ground)];
        })"""
    )
    assert len(pairs) > 10
    return [f"{text}: {ink} on {ground}" for text, ink, ground in pairs if contrast(ink, ground) < 4.5]


def contrast(one: str, other: str) -> float:
    light, dark = sorted((luminance(one), luminance(other)), reverse=True)
    return (light + 0.05) / (dark + 0.05)


def luminance(colour: str) -> float:
    channels = [int(part) / 255 for part in re.findall(r"\d+", colour)[:3]]
    red, green, blue = (c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def test_the_docs_describe_every_address_and_problem(visit: Opener, address: str) -> None:
    page = visit("/docs#truncated-film")
    expect(page.locator("article").filter(has_text="POST /v1/predict")).to_be_visible()
    expect(page.locator("article").filter(has_text="POST /invocations")).to_be_visible()
    expect(page.locator("#truncated-film")).to_be_in_viewport()
    expect(page.locator("#call")).to_contain_text(f"{address}/v1/predict")
