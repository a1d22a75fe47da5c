"""Looking at a film: zoom, pan, window and level, invert, reset, two side by side; by pointer and by key."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from playwright.sync_api import Locator, Page, expect

import dicoms
from chestxray.inference import heatmap
from chestxray.inference.predictor import Predictor
from chestxray.serving import static
from driving import DESKTOP, PHONE, Opener, choose, tab_to, wait_for_all, wait_for_answer

WHOLE = {"zoom": 1, "x": 0, "y": 0}
PLAIN = (1.0, 0.0)  # slope and intercept of the grey levels


@pytest.fixture
def stage(visit: Opener, film_path: Path) -> Page:
    """A page with one film on the stage."""
    page = visit()
    choose(page, film_path)
    wait_for_answer(page)
    return page


def pane(page: Page, index: int = 0) -> Locator:
    return page.locator(".pane").nth(index)


def place_of(page: Page, index: int = 0) -> dict[str, float]:
    """How the film lies: its zoom, and how far its middle is from the pane's, in shares of the pane."""
    box, outer = pane(page, index).locator(".sheets").bounding_box(), pane(page, index).bounding_box()
    assert box
    assert outer
    return {
        "zoom": round(box["width"] / outer["width"], 3),
        "x": round((box["x"] + box["width"] / 2 - outer["x"] - outer["width"] / 2) / outer["width"], 3),
        "y": round((box["y"] + box["height"] / 2 - outer["y"] - outer["height"] / 2) / outer["height"], 3),
    }


def levels_of(page: Page, index: int = 0) -> tuple[float, float]:
    """Slope and intercept that the browser applies to the film's grey levels."""
    if page.locator("img.film").nth(index).evaluate("film => getComputedStyle(film).filter") == "none":
        return PLAIN
    found: list[float] = page.locator(f"#levels-{index} feFuncG").evaluate(
        "f => [f.slope.baseVal, f.intercept.baseVal]"
    )
    return round(found[0], 3), round(found[1], 3)


def middle(page: Page) -> tuple[float, float]:
    box = pane(page).bounding_box()
    assert box
    return box["x"] + box["width"] / 2, box["y"] + box["height"] / 2


def drag(page: Page, x: float, y: float, button: Any = "left") -> None:
    """From the middle of the film, in shares of the pane."""
    box = pane(page).bounding_box()
    assert box
    at = middle(page)
    page.mouse.move(*at)
    page.mouse.down(button=button)
    page.mouse.move(at[0] + x * box["width"], at[1] + y * box["height"], steps=8)
    page.mouse.up(button=button)


def test_buttons_zoom_invert_and_reset(stage: Page) -> None:
    stage.get_by_role("button", name="Zoom in").click()
    assert place_of(stage)["zoom"] == 1.25
    stage.get_by_role("button", name="Zoom out").click()
    assert place_of(stage) == WHOLE
    stage.get_by_role("button", name="Zoom out").click()
    assert place_of(stage) == WHOLE, "never smaller than the stage"
    invert = stage.get_by_role("button", name="Invert")
    invert.click()
    expect(invert).to_have_attribute("aria-pressed", "true")
    assert levels_of(stage) == (-1.0, 1.0)
    stage.get_by_role("button", name="Zoom in").click()
    stage.get_by_role("button", name="Reset the view").click()
    assert (place_of(stage), levels_of(stage)) == (WHOLE, PLAIN)
    expect(invert).to_have_attribute("aria-pressed", "false")


def test_keys_do_all_of_it_too(stage: Page) -> None:
    press = stage.keyboard.press
    for _ in range(3):
        press("+")
    assert place_of(stage) == {"zoom": 1.953, "x": 0, "y": 0}
    press("ArrowRight")
    press("ArrowDown")
    assert place_of(stage) == {"zoom": 1.953, "x": -0.1, "y": -0.1}
    press("0")
    assert place_of(stage) == WHOLE
    press("Shift+ArrowRight")  # a wider window: less contrast
    assert levels_of(stage) == (pytest.approx(1 / 1.05, abs=1e-3), pytest.approx(0.5 - 0.5 / 1.05, abs=1e-3))
    press("Shift+ArrowUp")
    assert levels_of(stage)[1] == pytest.approx(0.5 - 0.45 / 1.05, abs=1e-3), "brighter"
    press("i")
    assert levels_of(stage)[0] < 0
    expect(stage.locator("[aria-live=polite]")).to_have_text("Inverted")
    press("r")
    assert (place_of(stage), levels_of(stage)) == (WHOLE, PLAIN)
    press("h")
    expect(stage.locator(".overlay").first).to_be_visible()
    press("h")
    expect(stage.locator(".overlay").first).to_be_hidden()


def test_a_drag_pans_a_zoomed_film_and_never_off_the_stage(stage: Page) -> None:
    drag(stage, 0.2, 0.1)
    assert place_of(stage) == WHOLE
    stage.mouse.dblclick(*middle(stage))
    assert place_of(stage) == {"zoom": 2.5, "x": pytest.approx(0, abs=0.01), "y": pytest.approx(0, abs=0.01)}
    drag(stage, 0.2, -0.1)
    assert place_of(stage) == {"zoom": 2.5, "x": pytest.approx(0.2, abs=0.01), "y": pytest.approx(-0.1, abs=0.01)}
    drag(stage, 0.45, 0.45)
    drag(stage, 0.45, 0.45)
    assert place_of(stage) == {"zoom": 2.5, "x": 0.75, "y": 0.75}
    stage.mouse.dblclick(*middle(stage))
    assert place_of(stage) == WHOLE


def test_a_click_centres_so_that_nobody_has_to_drag(stage: Page) -> None:
    stage.keyboard.press("+")
    stage.keyboard.press("+")
    x, y = middle(stage)
    stage.mouse.click(x + 60, y - 40)
    box = pane(stage).bounding_box()
    assert box
    expect(pane(stage).locator(".sheets")).to_have_attribute("style", re.compile(r"translate\(-[1-9]"))
    found = place_of(stage)
    assert found["x"] == pytest.approx(-60 / box["width"], abs=0.01)
    assert found["y"] == pytest.approx(40 / box["height"], abs=0.01)


def test_a_drag_sets_window_and_level(stage: Page) -> None:
    stage.keyboard.press("w")
    expect(stage.get_by_role("button", name="Drag sets window and level")).to_have_attribute("aria-pressed", "true")
    drag(stage, -0.25, 0)  # a narrower window
    slope, intercept = levels_of(stage)
    assert slope == pytest.approx(1 / 0.75, abs=0.05)
    assert intercept == pytest.approx(0.5 - 0.5 * slope, abs=0.01), "the level stays"
    drag(stage, 0, -0.25)  # up: brighter
    assert levels_of(stage)[0] == pytest.approx(slope, abs=0.01)
    assert levels_of(stage)[1] > intercept + 0.2
    expect(stage.locator(".readout").first).to_contain_text(re.compile(r"W 19\d L 6\d"))
    stage.keyboard.press("r")
    stage.keyboard.press("m")
    drag(stage, -0.25, 0, button="right")
    assert levels_of(stage)[0] == pytest.approx(1 / 0.75, abs=0.05)
    assert place_of(stage) == WHOLE


def test_sliders_set_window_and_level_without_a_drag(stage: Page) -> None:
    stage.get_by_role("slider", name="Window").fill("50")
    assert levels_of(stage) == (2.0, -0.5)
    stage.get_by_role("slider", name="Level").fill("25")
    assert levels_of(stage) == (2.0, 0.0)
    stage.keyboard.press("r")
    expect(stage.get_by_role("slider", name="Window")).to_have_value("100")


def test_the_wheel_scrolls_the_page_until_the_film_was_clicked(stage: Page) -> None:
    stage.mouse.move(*middle(stage))
    stage.mouse.wheel(0, -200)
    assert place_of(stage) == WHOLE
    stage.mouse.click(*middle(stage))
    stage.mouse.wheel(0, -200)
    expect(pane(stage).locator(".sheets")).not_to_have_attribute("style", re.compile(r"scale\(1\)"))
    assert place_of(stage)["zoom"] == pytest.approx(1.49, abs=0.01)


def test_two_fingers_zoom(visit: Opener, film_path: Path) -> None:
    page = visit(viewport=PHONE, has_touch=True, is_mobile=True)
    choose(page, film_path)
    wait_for_answer(page)
    devtools = page.context.new_cdp_session(page)
    x, y = middle(page)

    def touch(kind: str, *apart: float) -> None:
        points = [{"x": x + split * apart[0], "y": y, "id": i} for i, split in enumerate((-1, 1))] if apart else []
        devtools.send("Input.dispatchTouchEvent", {"type": kind, "touchPoints": points})

    touch("touchStart", 40)
    for apart in range(45, 125, 5):
        touch("touchMove", apart)
    touch("touchEnd")
    assert place_of(page)["zoom"] == pytest.approx(3, abs=0.1)


def test_a_deep_film_is_windowed_in_its_own_values(visit: Opener, tmp_path: Path) -> None:
    """Sixteen bits hold more than a screen shows: a narrow window brings out what a byte has lost."""
    deep = np.full((64, 64), 1000, np.uint16)
    deep[:, 32:] = 1004
    deep[0, :2] = (0, 4000)
    path = tmp_path / "deep.dcm"
    path.write_bytes(dicoms.native(deep, BitsStored=12, WindowCenter=2000, WindowWidth=4001))
    page = visit()
    choose(page, path)
    expect(page.locator("canvas.film").first).to_be_visible()
    expect(page.locator(".readout").first).to_contain_text("W 4000 L 2000")
    step = """async (canvas) => {
        for (let frame = 0; frame < 3; frame += 1) await new Promise(requestAnimationFrame);
        const { data } = canvas.getContext("2d").getImageData(0, 32, 64, 1);
        return data[4 * 40] - data[4 * 20];
    }"""
    assert page.locator("canvas.film").first.evaluate(step) <= 1
    page.get_by_role("slider", name="Level").fill("25")
    page.get_by_role("slider", name="Window").fill("2")  # 80 of 4,000
    assert page.locator("canvas.film").first.evaluate(step) == pytest.approx(4 / 80 * 255, abs=2)


def test_two_films_stand_side_by_side_and_move_as_one(
    visit: Opener, predictor: Predictor, film_paths: tuple[Path, ...]
) -> None:
    page = visit()
    choose(page, *film_paths[:2])
    wait_for_all(page)
    page.get_by_role("button", name="Two films side by side").click()
    expect(page.locator(".pane:visible")).to_have_count(2)
    shown = {pane(page, index).locator(".caption b").inner_text() for index in (0, 1)}
    assert shown == {path.name for path in film_paths[:2]}
    for index in (0, 1):
        name = pane(page, index).locator(".caption b").inner_text()
        label = predictor.predict(next(p for p in film_paths if p.name == name).read_bytes(), name).label
        expect(pane(page, index).locator(".caption")).to_have_attribute("data-outcome", str(label))
    pane(page, 1).click()
    expect(page.locator("#film-name")).to_have_text(pane(page, 1).locator(".caption b").inner_text())
    page.keyboard.press("+")
    assert place_of(page, 0) == place_of(page, 1) == {"zoom": 1.25, "x": 0, "y": 0}
    page.keyboard.press("i")
    assert levels_of(page, 1) == (-1.0, 1.0)
    assert levels_of(page, 0) == PLAIN
    page.keyboard.press("x")
    expect(page.locator("#film-name")).to_have_text(pane(page, 0).locator(".caption b").inner_text())
    page.keyboard.press("h")
    expect(page.locator(".overlay:visible")).to_have_count(2)
    page.keyboard.press("c")
    expect(page.locator(".pane:visible")).to_have_count(1)


def test_one_film_alone_asks_for_a_second_to_compare(visit: Opener, film_paths: tuple[Path, ...]) -> None:
    page = visit()
    choose(page, film_paths[0])
    wait_for_answer(page)
    page.keyboard.press("c")
    expect(pane(page, 1)).to_contain_text("A second film, to compare")
    with page.expect_file_chooser() as chooser:
        pane(page, 1).get_by_role("button", name="Choose films").click()
    chooser.value.set_files(film_paths[1])
    expect(pane(page, 1).locator(".caption b")).to_have_text(film_paths[1].name)
    expect(pane(page, 0).locator(".caption b")).to_have_text(film_paths[0].name)


def test_the_heat_map_lies_exactly_over_the_film(stage: Page) -> None:
    film, overlay = stage.locator("img.film").first, stage.locator(".overlay").first
    expect(overlay).to_be_hidden()
    stage.get_by_role("switch", name="Heat map").click()
    expect(overlay).to_be_visible()
    shapes = [
        e.evaluate("async e => { await e.decode(); return e.naturalWidth / e.naturalHeight; }") for e in (film, overlay)
    ]
    assert shapes[0] == pytest.approx(shapes[1], rel=0.01)
    stage.keyboard.press("+")
    assert film.bounding_box() == overlay.bounding_box()
    stage.locator("#opacity").fill("30")
    assert overlay.evaluate("overlay => overlay.style.opacity") == "0.3"
    stage.get_by_role("switch", name="Heat map").click()
    expect(overlay).to_be_hidden()


def test_the_keys_are_listed_and_can_be_switched_off(stage: Page) -> None:
    stage.keyboard.press("?")
    dialog = stage.get_by_role("dialog", name="Keyboard shortcuts")
    expect(dialog).to_contain_text("Invert")
    stage.keyboard.press("i")
    assert levels_of(stage) == PLAIN, "nothing happens behind a dialog"
    dialog.get_by_label("Single keys work").uncheck()
    stage.keyboard.press("Escape")
    expect(dialog).to_be_hidden()
    stage.keyboard.press("i")
    assert levels_of(stage) == PLAIN
    stage.reload()
    stage.keyboard.press("?")
    expect(dialog).to_be_hidden()


def test_every_button_of_the_stage_is_reached_and_pressed_by_key(stage: Page) -> None:
    names = stage.locator("#buttons button").evaluate_all("all => all.map((button) => button.dataset.does)")
    assert len(names) == 11
    stage.mouse.click(*middle(stage))
    for name in names:
        tab_to(stage, f"[data-does={name}]")
    stage.keyboard.press("Enter")
    expect(stage.get_by_role("dialog", name="Keyboard shortcuts")).to_be_visible()


@pytest.mark.parametrize("size", [DESKTOP, PHONE], ids=["desktop", "phone"])
def test_film_and_answer_fit_one_screen(visit: Opener, film_path: Path, size: dict[str, int]) -> None:
    page = visit(viewport=size)
    choose(page, film_path)
    wait_for_answer(page)
    notice = page.locator(".notice").bounding_box()
    assert notice
    for part in (".pane >> nth=0", "#tools", "#headline", "#probability", "#meter"):
        box = page.locator(part).bounding_box()
        assert box
        assert box["y"] >= 0
        assert box["y"] + box["height"] <= notice["y"], part


def test_one_pixel_of_the_film_is_one_of_the_screen(stage: Page) -> None:
    stage.keyboard.press("1")
    film = stage.locator("img.film").first
    scale = film.evaluate(
        """(film) => {
            const fitted = Math.min(film.clientWidth / film.naturalWidth, film.clientHeight / film.naturalHeight);
            return fitted * new DOMMatrix(getComputedStyle(film.parentElement).transform).a * devicePixelRatio;
        }"""
    )
    assert scale == pytest.approx(1.0, abs=0.01)


def test_the_magnifier_follows_the_pointer(stage: Page) -> None:
    stage.keyboard.press("l")
    stage.mouse.move(*middle(stage))
    expect(stage.locator(".lens").first).to_be_visible()
    stage.mouse.move(2, 2)
    expect(stage.locator(".lens").first).to_be_hidden()
    stage.keyboard.press("l")
    stage.mouse.move(*middle(stage))
    expect(stage.locator(".lens").first).to_be_hidden()


def test_presets_set_the_window_and_a_reset_takes_them_back(stage: Page) -> None:
    before = stage.locator("#window").input_value()
    stage.locator("#preset").select_option("lungs")
    assert stage.locator("#window").input_value() != before
    stage.keyboard.press("r")
    assert stage.locator("#window").input_value() == before
    expect(stage.locator("#preset")).to_have_value("")


def test_the_heat_map_can_be_lines(stage: Page) -> None:
    stage.keyboard.press("h")
    overlay = stage.locator(".overlay").first
    expect(overlay).to_be_visible()
    areas = overlay.get_attribute("src")
    stage.locator("#lines").check()
    expect(overlay).to_have_attribute("data-lines", "true")
    expect(overlay).not_to_have_attribute("src", str(areas))
    stage.locator("#lines").uncheck()
    expect(overlay).to_have_attribute("src", str(areas))


def test_the_page_draws_lines_where_the_service_does() -> None:
    """Both know the overlay by its alpha: the levels of the one are the contours of the other."""
    levels = re.search(r"const LEVELS = \[([\d, ]+)\]", (static.PAGE_FOLDER / "lines.js").read_text())
    assert levels is not None
    assert [int(one) for one in levels[1].split(",")] == np.interp(heatmap.CONTOURS, *heatmap.ALPHA.T).round().tolist()
