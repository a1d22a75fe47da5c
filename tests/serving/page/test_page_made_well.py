"""For everybody, at any width, in both themes; small, strict and still."""

from __future__ import annotations

import base64
import gzip
import hashlib
import json
import re
import urllib.request
from contextlib import AbstractContextManager
from functools import partial
from http.server import SimpleHTTPRequestHandler
from pathlib import Path

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Page, Route, expect

from chestxray.inference.predictor import Predictor
from chestxray.serving import static
from chestxray.serving.app import ServiceSettings
from driving import DESKTOP, PHONE, Opener, choose, expect_answer_for, shift_of, wait_for_all, wait_for_answer
from live_service import running
from stand_in import serving

KILOBYTE = 1000
WCAG = ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa", "best-practice"]
PAGES = ("/", "/model.html", "/docs.html")
INLINE = {"script": 1, "style": 2}  # what the first page holds itself


def violations(page: Page) -> str:
    """What axe finds against WCAG 2.2 AA and its best practices."""
    found = Axe().run(page, options={"runOnly": {"type": "tag", "values": WCAG}, "resultTypes": ["violations"]})
    return "\n".join(
        f"{one['id']}: {node['html'][:120]}" for one in found.response["violations"] for node in one["nodes"]
    )


def test_axe_itself_finds_what_is_wrong(visit: Opener) -> None:
    page = visit()
    page.locator("#theme").evaluate("button => button.replaceChildren()")
    page.locator("#headline").evaluate("headline => headline.style.color = '#999'")
    assert "button-name" in violations(page) or "aria-toggle-field-name" in violations(page)
    assert "color-contrast" in violations(page)


@pytest.mark.parametrize(("size", "scheme"), [(DESKTOP, "light"), (PHONE, "dark")], ids=["desktop", "phone"])
def test_axe_finds_nothing_in_any_state(
    visit: Opener,
    film_paths: tuple[Path, ...],
    text_file: Path,
    complaints: list[str],
    size: dict[str, int],
    scheme: str,
) -> None:
    page = visit(viewport=size, color_scheme=scheme, reduced_motion="reduce")
    assert violations(page) == "", "empty"
    choose(page, film_paths[0])
    wait_for_answer(page)
    page.keyboard.press("h")
    expect(page.locator(".overlay").first).to_be_visible()
    assert violations(page) == "", "one film, with its heat map"
    choose(page, *film_paths[1:3], text_file)
    wait_for_all(page)
    assert violations(page) == "", "a list, a failure on the stage"
    page.keyboard.press("c")
    expect(page.locator(".pane:visible")).to_have_count(2)
    assert violations(page) == "", "two films"
    page.keyboard.press("?")
    expect(page.get_by_role("dialog")).to_be_visible()
    assert violations(page) == "", "the keys"
    assert "415" in complaints.pop()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_nothing_in_the_pages_to_read(visit: Opener, complaints: list[str], scheme: str) -> None:
    model = visit("/model.html", color_scheme=scheme)
    expect(model.locator("#operating tr").first).to_be_visible()
    assert violations(model) == ""
    docs = visit("/docs", color_scheme=scheme)
    expect(docs.locator("article").first).to_be_visible()
    assert violations(docs) == ""
    page = visit(color_scheme=scheme)
    page.route("**/v1/*", lambda route: route.fulfill(status=401, body="{}"))
    page.reload()
    expect(page.get_by_label("Key of the service")).to_be_visible()
    assert violations(page) == ""
    assert all("401" in complaint for complaint in complaints)
    complaints.clear()


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


def test_nothing_scrolls_sideways_at_any_width(visit: Opener, film_paths: tuple[Path, ...]) -> None:
    sideways = "document.documentElement.scrollWidth - document.documentElement.clientWidth"
    widths = (320, 390, 768, 1024, 1280, 2000)
    page = visit()
    pages = {"empty": page, "model": visit("/model.html"), "docs": visit("/docs")}
    expect(pages["model"].locator("#operating tr").first).to_be_visible()
    expect(pages["docs"].locator("article").first).to_be_visible()
    for name, one in pages.items():
        for width in widths:
            one.set_viewport_size({"width": width, "height": 844})
            assert one.evaluate(sideways) == 0, (name, width)
    choose(page, *film_paths[:3])
    wait_for_all(page)
    page.keyboard.press("?")
    for width in widths:
        page.set_viewport_size({"width": width, "height": 844})
        assert page.evaluate(sideways) == 0, ("list", width)


def test_the_stage_holds_its_film_and_every_tool_beside_a_worklist(visit: Opener, film_paths: tuple[Path, ...]) -> None:
    """What is wider than the stage is cut off by it, and cannot be scrolled to."""
    page = visit()
    choose(page, *film_paths[:3])
    wait_for_all(page)
    page.locator("#heat").click()
    cut_off = """() => { const stage = document.querySelector('.stage').getBoundingClientRect();
        return [...document.querySelectorAll('.stage .tools button, .stage canvas, .stage img')]
            .filter((each) => each.checkVisibility()).map((each) => each.getBoundingClientRect())
            .filter((box) => box.left < stage.left - 1 || box.right > stage.right + 1).length }"""
    covered = """() => { const [heat, answer] = ['.heat', '.answer'].map(
        (name) => document.querySelector(name).getBoundingClientRect());
        return heat.right > answer.left + 1 && heat.bottom > answer.top + 1 && heat.top < answer.bottom - 1 }"""
    for width in (996, 1024, 1152, 1280, 1600):
        page.set_viewport_size({"width": width, "height": 844})
        assert page.evaluate(cut_off) == 0, width
        assert not page.evaluate(covered), width


@pytest.mark.parametrize("size", [DESKTOP, PHONE], ids=["desktop", "phone"])
def test_nothing_jumps_when_answers_come(visit: Opener, film_paths: tuple[Path, ...], size: dict[str, int]) -> None:
    page = visit(viewport=size)
    choose(page, film_paths[0])
    wait_for_answer(page)
    page.get_by_role("switch", name="Heat map").click()
    expect(page.locator(".overlay").first).to_be_visible()
    assert shift_of(page) < 0.01
    page.locator("#clear").click()
    choose(page, *film_paths[:8])
    page.locator("#worklist").scroll_into_view_if_needed()
    before = shift_of(page)  # the list came with the films that were chosen
    wait_for_all(page)
    assert shift_of(page) - before < 0.01
    page.evaluate("scrollTo(0, 0)")
    page.locator("header").evaluate("header => header.style.paddingBottom = '200px'")  # the measure itself works
    assert shift_of(page) > 0.05


def test_motion_is_left_out_where_it_is_not_wanted(visit: Opener, film_path: Path) -> None:
    for wish, expected in (("no-preference", "0.25s"), ("reduce", "0s")):
        page = visit(reduced_motion=wish)
        assert page.locator(".rail .fill").evaluate("fill => getComputedStyle(fill).transitionDuration") == expected


def test_every_target_is_large_enough_for_a_finger(visit: Opener, film_paths: tuple[Path, ...]) -> None:
    """Source: WCAG 2.2, success criterion 2.5.8: 24 CSS pixels, but for links within a sentence."""
    page = visit(viewport=PHONE, has_touch=True, is_mobile=True)
    choose(page, *film_paths[:2])
    wait_for_all(page)
    small = page.locator("button:visible, input:visible").evaluate_all(
        """all => all.filter((e) => !e.closest('.unseen')).map((e) => [e, e.getBoundingClientRect()])
            .filter(([, box]) => box.width < 24 || box.height < 24).map(([e]) => e.outerHTML.slice(0, 80))"""
    )
    assert small == []


# --------------------------------------------------------------------------- small and strict


def fetched(page: Page) -> dict[str, int]:
    """The bytes on the wire of each file that the page loaded from its own folder, by path."""
    entries = page.evaluate(
        """() => [performance.getEntriesByType("navigation")[0], ...performance.getEntriesByType("resource")]
            .map((entry) => [new URL(entry.name).pathname, entry.encodedBodySize])"""
    )
    return dict(entries)


def test_the_page_is_small(visit: Opener) -> None:
    """Under 40 kB on the wire: all that is loaded at the start, thumbnails and the model's description with it."""
    page = visit()
    expect(page.locator(".point").first).to_be_visible()
    page.wait_for_function("() => [...document.images].every((image) => image.complete)")
    at_first = fetched(page)
    assert {"/", "/main.js", "/thumbnails/lobe.webp", "/v1/model"} <= set(at_first)
    assert sum(at_first.values()) < 40 * KILOBYTE
    later = {"/shell.css", "/style.css", "/worklist.js", "/dicom.js", "/paper.js", "/csv.js", "/lines.js", "/send.js"}
    assert not later & set(at_first)


def test_scripts_and_styles_are_served_without_the_lines_that_are_comments_alone() -> None:
    served = {path: content.decode() for path, content, _ in static.page_files() if path.endswith((".js", ".css"))}
    for path, content in served.items():
        written = (static.PAGE_FOLDER / path).read_text(encoding="utf-8")
        assert len(content) < len(written), path
        assert not re.search(r"^\s*(//|/\*)", content, re.MULTILINE), path
        code = [line.strip() for line in written.splitlines() if re.match(r"\s*[^\s/*]", line)]
        missing = [line for line in code if line not in content.splitlines()]
        assert all(re.search(r"\*/$", line) for line in missing), path  # the last line of a comment of several


def test_a_file_is_the_same_with_and_without_compression(address: str) -> None:
    plain = urllib.request.urlopen(f"{address}/main.js").read()  # noqa: S310 - our own service
    request = urllib.request.Request(f"{address}/main.js", headers={"Accept-Encoding": "gzip"})  # noqa: S310
    with urllib.request.urlopen(request) as answer:  # noqa: S310
        assert answer.headers["Content-Encoding"] == "gzip"
        assert answer.headers["Vary"] == "Accept-Encoding"
        assert gzip.decompress(answer.read()) == plain


def test_the_first_paint_waits_for_nothing_but_the_first_answer(visit: Opener, address: str) -> None:
    """Whatever else the page asks for never comes: it is painted all the same, in its own colours and order."""
    page = visit("/docs")

    def keep(_: Route) -> None:
        """Neither answer nor refuse."""

    page.route(lambda url: url != f"{address}/", keep)
    page.goto(f"{address}/", wait_until="commit")
    page.wait_for_function("() => performance.getEntriesByName('first-contentful-paint').length")
    assert page.locator("#stage").evaluate("stage => getComputedStyle(stage).backgroundColor") == "rgb(8, 9, 10)"
    stage, answer = (page.locator(selector).bounding_box() for selector in ("#stage", "#answer"))
    assert stage
    assert answer
    assert stage["x"] + stage["width"] <= answer["x"]
    expect(page.locator(".notice")).to_be_in_viewport(ratio=1)


def test_the_first_paint_shows_no_more_than_is_read_at_once_and_moves_nothing(visit: Opener, address: str) -> None:
    """The rest waits in templates, and takes its place after the first paint: what was painted stays where it is."""
    page = visit("/docs")
    page.add_init_script("globalThis.PerformanceObserver = class { observe(callback) {} }; setTimeout = () => {};")
    page.goto(f"{address}/", wait_until="domcontentloaded")
    painted = ("#stage", ".lead", "#stage-choose", ".notice", ".brand")
    assert page.locator("#answer, nav, dialog, table, input").count() == 0
    places = {selector: page.locator(selector).bounding_box() for selector in painted}
    whole = visit()
    for selector, place in places.items():
        assert place
        assert whole.locator(selector).bounding_box() == pytest.approx(place, abs=3), selector  # pixels


@pytest.mark.parametrize("path", PAGES)
def test_no_page_needs_another_origin_or_inline_code_but_what_the_policy_names_by_its_hash(
    visit: Opener, path: str, address: str
) -> None:
    answer = visit(path).request.get(address + path)
    text, policy = answer.text(), answer.headers["content-security-policy"]
    allowed = {tag: re.findall(r"'sha256-([^']+)'", policy.split(f"{tag}-src")[1].split(";")[0]) for tag in INLINE}
    for tag, inside in re.findall(r"<(script|style)\b(?![^>]*\bsrc=)[^>]*>(.*?)</", text, re.DOTALL):
        assert base64.b64encode(hashlib.sha256(inside.encode()).digest()).decode() in allowed[tag], tag
    assert {tag: len(hashes) for tag, hashes in allowed.items()} == INLINE
    assert not re.search(r"\son\w+=|\sstyle=|javascript:", text)
    assert not re.search(r"(?:src|href)=\"(?:https?:)?//", text)


def test_links_lead_to_files_so_that_any_server_can_serve_the_folder(visit: Opener, address: str) -> None:
    for path in PAGES:
        page = visit(path)
        for link in page.locator("a[href]").evaluate_all("all => all.map((a) => a.getAttribute('href'))"):
            if not link.startswith("#"):
                assert link == "./" or link.endswith((".html", "/openapi.json")), link
                assert page.request.get(f"{address}/{link.removeprefix(address).lstrip('./')}").ok, link


def plain_server(folder: Path) -> AbstractContextManager[str]:
    """A server of files that knows nothing of the service, as a bucket is one; gives its address."""
    return serving(partial(QuietFiles, directory=str(folder)))


class QuietFiles(SimpleHTTPRequestHandler):
    extensions_map = {**SimpleHTTPRequestHandler.extensions_map, ".js": "text/javascript"}  # noqa: RUF012

    def log_message(self, *_: object) -> None:
        pass


def test_any_server_can_hold_the_folder_and_the_api_is_one_setting(
    visit: Opener, predictor: Predictor, film_path: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "bucket"
    for name, content, _ in static.page_files():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    with plain_server(folder) as bucket, running(predictor, ServiceSettings(cors_origins=(bucket,))) as api:
        (folder / "config.js").write_text(f'export const API = "{api}";\n')
        page = visit(at=bucket, api=api)
        choose(page, film_path)
        expect_answer_for(page, predictor, film_path.read_bytes())
        for path in ("/model.html", "/docs.html"):
            page = visit(path, at=bucket, api=api)
            expect(page.locator("#operating tr, #problems tr").first).to_be_visible()


def test_the_docs_describe_every_address_and_problem(visit: Opener, address: str) -> None:
    page = visit("/docs#truncated-film")
    expect(page.locator("article").filter(has_text="POST /v1/predict")).to_be_visible()
    expect(page.locator("article").filter(has_text="POST /invocations")).to_be_visible()
    expect(page.locator("#truncated-film")).to_be_in_viewport()
    expect(page.locator("#call")).to_contain_text(f"{address}/v1/predict")
    names = json.loads(page.request.get(f"{address}/openapi.json").text())["x-problems"]
    assert page.locator("#problems tr").count() == len(names)
