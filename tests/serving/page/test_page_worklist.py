"""Many films: a table that is sorted, filtered, retried and exported, and stays small however many there are."""

from __future__ import annotations

import csv
import re
import shutil
from collections.abc import Sequence
from pathlib import Path

import pytest
from playwright.sync_api import Request, expect

from chestxray.inference.predictor import Predictor
from chestxray.schema import NOTICE
from chestxray.serving.app import ServiceSettings
from drawing import coloured, encoded
from driving import Opener, choose, expect_answer_for, hold, names_in_list, tab_to, wait_for_all
from live_service import running

COUNT_URLS = """
    globalThis.alive = new Set();
    globalThis.most = 0;
    for (const [name, change] of [["createObjectURL", "add"], ["revokeObjectURL", "delete"]]) {
      const real = URL[name].bind(URL);
      URL[name] = (given) => {
        const result = real(given);
        alive[change](name === "createObjectURL" ? result : given);
        most = Math.max(most, alive.size);
        return result;
      };
    }
"""


@pytest.fixture
def colourful(tmp_path: Path) -> Path:
    """A picture that no model should classify."""
    path = tmp_path / "holiday.png"
    path.write_bytes(encoded(coloured()))
    return path


def copies(films: Sequence[Path], count: int, folder: Path) -> list[Path]:
    """Films under further names."""
    folder.mkdir()
    return [Path(shutil.copy(films[i % len(films)], folder / f"film {i:03}.jpeg")) for i in range(count)]


def test_the_most_suspicious_come_first_and_the_refused_stand_apart(
    visit: Opener,
    predictor: Predictor,
    film_paths: tuple[Path, ...],
    text_file: Path,
    colourful: Path,
    complaints: list[str],
) -> None:
    films = film_paths[:5]
    page = visit()
    choose(page, text_file, films[0], colourful, *films[1:])
    wait_for_all(page)
    scores = {path.name: predictor.predict(path.read_bytes(), "film").probability or 0 for path in films}
    assert names_in_list(page) == sorted(scores, key=lambda name: -scores[name])
    expect(page.locator("#refused th")).to_have_text("Not answered")
    assert names_in_list(page, "refused") == ["holiday.png"]
    expect(page.locator("#failed th")).to_have_text("Errors")
    expect(page.locator("#failed")).to_contain_text("This is not a film that can be read here")
    page.get_by_role("button", name=films[3].name).click()
    expect(page.locator("#film-name")).to_have_text(films[3].name)
    expect_answer_for(page, predictor, films[3].read_bytes())
    page.get_by_role("button", name="Start over").click()
    expect(page.locator("#worklist")).to_be_hidden()
    expect(page.locator("#stage-choose")).to_be_focused()
    assert "415" in complaints.pop()


def test_the_table_is_sorted_and_filtered(visit: Opener, predictor: Predictor, film_paths: tuple[Path, ...]) -> None:
    films = film_paths[:6]
    labels = {path.name: predictor.predict(path.read_bytes(), "film").label for path in films}
    page = visit()
    choose(page, *films)
    wait_for_all(page)
    by_probability = names_in_list(page)
    header = page.get_by_role("columnheader", name="Film")
    header.get_by_role("button").click()
    assert names_in_list(page) == sorted(names_in_list(page), key=str.lower)
    expect(header).to_have_attribute("aria-sort", "ascending")
    header.get_by_role("button").click()
    assert names_in_list(page) == sorted(names_in_list(page), key=str.lower, reverse=True)
    page.get_by_role("button", name="Probability").click()
    assert names_in_list(page) == by_probability
    for label, chip in (("normal", "Not suspected"), ("pneumonia", "Suspected")):
        wanted = {name for name, found in labels.items() if found == label}
        if wanted:
            page.locator("#chips label", has_text=re.compile(f"^{chip} ")).locator("input").check()
            assert set(names_in_list(page)) == wanted
    page.get_by_role("radio", name="All").check()
    page.get_by_label("Find films by name").fill(films[2].stem.upper())
    assert names_in_list(page) == [films[2].name]


def test_films_of_one_name_are_told_apart(
    visit: Opener, predictor: Predictor, film_paths: tuple[Path, ...], tmp_path: Path
) -> None:
    films = [tmp_path / ward / "film.jpeg" for ward in ("one", "two")]
    for film, path in zip(films, film_paths, strict=False):
        film.parent.mkdir()
        shutil.copy(path, film)
    page = visit()
    choose(page, *films)
    wait_for_all(page)
    page.get_by_role("columnheader", name="Probability").get_by_role("button").click()
    scores = [predictor.predict(film.read_bytes(), "film").probability for film in films]
    shown = page.locator("#rows .mini").evaluate_all(
        "all => all.map((bar) => Number(bar.style.getPropertyValue('--probability')))"
    )
    assert shown == sorted(scores)


def test_the_worklist_works_from_the_keyboard(visit: Opener, film_paths: tuple[Path, ...]) -> None:
    page = visit()
    choose(page, *film_paths[:4])
    wait_for_all(page)
    order = names_in_list(page)
    tab_to(page, "[data-sort=probability]")
    page.keyboard.press("Tab")
    page.keyboard.press("ArrowDown")
    page.keyboard.press("Enter")
    expect(page.locator("#film-name")).to_have_text(order[1])
    expect(page.locator(".pick[aria-current]")).to_have_text(order[1])
    for _ in range(2):
        page.keyboard.press("n")
    expect(page.locator("#film-name")).to_have_text(order[3])
    page.keyboard.press("n")
    expect(page.locator("#film-name")).to_have_text(order[0])
    page.keyboard.press("p")
    expect(page.locator("#film-name")).to_have_text(order[3])
    expect(page.locator("[aria-live=polite]")).to_contain_text(order[3])


def test_failures_are_tried_again_together(
    visit: Opener, film_paths: tuple[Path, ...], text_file: Path, complaints: list[str]
) -> None:
    page = visit()
    page.route("**/v1/predict*", lambda route: route.fulfill(status=500), times=2)
    choose(page, *film_paths[:4], text_file)
    wait_for_all(page)
    assert len(names_in_list(page, "failed")) == 3
    page.get_by_role("button", name="Try 2 films again").click()
    expect(page.locator("#rows tr")).to_have_count(4)
    wait_for_all(page)
    assert names_in_list(page, "failed") == [text_file.name]
    expect(page.locator("#retry-all")).to_be_hidden()
    assert sorted("500" in complaint for complaint in complaints) == [False, True, True]
    complaints.clear()


def test_the_table_is_exported_and_no_name_becomes_a_formula(
    visit: Opener,
    predictor: Predictor,
    film_paths: tuple[Path, ...],
    colourful: Path,
    tmp_path: Path,
    complaints: list[str],
) -> None:
    names = ["=1+1.jpeg", "+2.jpeg", "-3.jpeg", "@SUM(A1).jpeg", 'a "quoted", one.jpeg']
    films = [Path(shutil.copy(film_paths[i], tmp_path / name)) for i, name in enumerate(names)]
    page = visit()
    page.route("**/v1/predict*", lambda route: route.fulfill(status=500), times=1)
    choose(page, *films, colourful)
    wait_for_all(page)
    page.get_by_role("button", name="Try 1 film again").click()
    wait_for_all(page)
    page.get_by_role("radio", name="Not answered").check()  # what is shown does not change what is exported
    with page.expect_download() as download:
        page.get_by_role("button", name="Export CSV").click()
    assert download.value.suggested_filename.startswith("chestxray-")
    with Path(download.value.path()).open(newline="", encoding="utf-8") as table:
        rows = list(csv.DictReader(table))
    by_path = {row["path"]: row for row in rows}
    assert set(by_path) == {f"'{name}" for name in names[:4]} | {names[4], "holiday.png"}
    for name, film in zip(names, films, strict=True):
        row = by_path.get(name) or by_path[f"'{name}"]
        prediction = predictor.predict(film.read_bytes(), "film")
        assert float(row["score"]) == prediction.probability
        assert (row["prediction"], row["sha256"]) == (prediction.label, prediction.film_sha256)
        assert (row["operating_point"], float(row["threshold"])) == (prediction.operating_point, prediction.threshold)
        assert (row["model_sha256"], row["notice"]) == (prediction.model_sha256, NOTICE)
    refused = by_path["holiday.png"]
    assert (refused["score"], refused["prediction"]) == ("", "")
    assert refused["reason"]
    for text in ("=1", " =1", "+1", "-1", "@a", "\t=1"):
        cell = page.evaluate("async (text) => (await import('/csv.js')).cell(text)", text)
        assert cell.lstrip('"').startswith("'"), text
    assert "500" in complaints.pop()


def test_many_films_stay_small(visit: Opener, film_paths: tuple[Path, ...], tmp_path: Path) -> None:
    """At most four on their way, the rows in sight in the document, two addresses of files alive."""
    films = copies(film_paths[:4], 45, tmp_path / "many")
    page = visit(script=COUNT_URLS)
    under_way: set[Request] = set()
    most = 0

    def asked(request: Request) -> None:
        nonlocal most
        under_way.add(request)
        most = max(most, len([one for one in under_way if "predict" in one.url]))

    def answered(request: Request) -> None:
        under_way.discard(request)

    page.on("request", asked)
    page.on("requestfinished", answered)
    page.on("requestfailed", answered)
    choose(page, *films)
    expect(page.locator("#progress-text")).to_contain_text("of 45 done")
    wait_for_all(page)
    assert most <= 4
    assert sorted(names_in_list(page)) == [path.name for path in films]
    for _ in range(6):
        page.keyboard.press("n")
    page.keyboard.press("c")
    expect(page.locator(".pane:visible")).to_have_count(2)
    assert page.evaluate("[alive.size, most]") == [2, 2]
    page.get_by_role("button", name="Start over").click()
    assert page.evaluate("alive.size") == 0


def test_of_thousands_of_films_only_what_is_in_sight_stands_in_the_document(
    visit: Opener, film_path: Path, tmp_path: Path
) -> None:
    count = 3000
    for index in range(count):
        (tmp_path / f"film {index:04}.jpeg").hardlink_to(film_path)
    page = visit()
    hold(page)
    choose(page, *sorted(tmp_path.glob("*.jpeg")))
    rows, current = page.locator("#worklist tbody tr:has(td)"), page.locator(".pick:focus")
    expect(page.locator("#progress-text")).to_have_text(f"0 of {count} done")
    page.locator("[data-sort=name]").click()
    expect(page.locator("#worklist table")).to_have_attribute("aria-rowcount", str(count + 1))
    page.locator(".pick").first.focus()
    for key, place in (("End", 2999), ("ArrowUp", 2998), ("Home", 0), ("ArrowDown", 1)):
        page.keyboard.press(key)
        expect(current).to_have_text(f"film {place:04}.jpeg")
        expect(current).to_be_in_viewport(ratio=1)
        assert rows.count() < 40
    for _ in range(30):  # beyond what stood in the document
        page.keyboard.press("ArrowDown")
    expect(current).to_have_text("film 0031.jpeg")
    expect(current).to_be_in_viewport(ratio=1)
    page.locator("#worklist .scroll").evaluate("box => { box.scrollTop = box.scrollHeight / 2; }")
    expect(page.get_by_text("film 1500.jpeg")).to_be_visible()
    assert rows.count() < 40
    for _ in range(2):  # the films on the stage are those of the list, in its order
        page.keyboard.press("n")
    expect(page.locator("#place")).to_have_text(f"3 of {count}")
    expect(page.locator(".pick[aria-current]")).to_be_in_viewport()


@pytest.mark.slow
def test_a_service_with_little_room_classifies_them_all_in_the_end(
    visit: Opener, predictor: Predictor, film_paths: tuple[Path, ...], tmp_path: Path, complaints: list[str]
) -> None:
    films = copies(film_paths[:4], 16, tmp_path / "many")
    with running(predictor, ServiceSettings(workers=1, waiting=1)) as narrow:
        page = visit(at=narrow)
        choose(page, *films)
        wait_for_all(page)
        assert sorted(names_in_list(page)) == [path.name for path in films]
    assert complaints
    assert all("503" in complaint for complaint in complaints)
    complaints.clear()


def test_rows_do_not_change_under_the_hand(visit: Opener, film_paths: tuple[Path, ...]) -> None:
    """While the focus is in the table, answers come in without moving its films; then they find their places."""
    page = visit()
    held = hold(page)
    choose(page, *film_paths[:4])
    expect(page.locator("#rows tr")).to_have_count(4)
    before = names_in_list(page)
    page.locator(".pick").first.focus()
    for route in held:
        route.continue_()
    wait_for_all(page)
    assert names_in_list(page) == before
    page.locator("#find").focus()
    scores = page.locator("#rows .mini").evaluate_all(
        "all => all.map((bar) => Number(bar.style.getPropertyValue('--probability')))"
    )
    assert scores == sorted(scores, reverse=True)
    assert names_in_list(page) != before


def test_leaving_with_answers_unsaved_is_asked_about(visit: Opener, film_paths: tuple[Path, ...]) -> None:
    page = visit()
    choose(page, *film_paths[:2])
    wait_for_all(page)
    page.locator(".pane").first.click()  # browsers ask only where somebody touched the page
    asked: list[str] = []
    page.on("dialog", lambda dialog: [asked.append(dialog.type), dialog.dismiss()])
    page.evaluate("setTimeout(() => location.reload())")
    page.wait_for_timeout(300)
    assert asked == ["beforeunload"]
    with page.expect_download():
        page.get_by_role("button", name="Export CSV").click()
    page.reload()
    assert asked == ["beforeunload"]
    expect(page.locator("#headline")).to_have_text("No film yet")
