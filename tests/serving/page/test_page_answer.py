"""The answer beside the film, and what is said where none comes."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import pytest
from PIL import Image
from playwright.sync_api import Page, Route, expect
from scipy.stats import binomtest

from chestxray.inference.predictor import Predictor
from chestxray.schema import NOTICE
from chestxray.serving.app import ServiceSettings
from chestxray.serving.security import KeyRing, new_key
from drawing import coloured, encoded
from driving import DESKTOP, HEADLINES, PHONE, Opener, choose, expect_answer_for, hold, wait_for_all, wait_for_answer
from live_service import running

LIMIT = 20 * 2**20  # bytes of a film, as the service is set


def test_the_operating_point_is_switched_without_asking_again(
    visit: Opener, predictor: Predictor, film_path: Path
) -> None:
    page = visit()
    choose(page, film_path)
    wait_for_answer(page)
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    distinct = {point.threshold: point for point in reversed(predictor.info.operating_points)}
    expect(page.locator("input[name=point]")).to_have_count(len(distinct))
    page.get_by_text("Sensitivity, specificity, model").click()  # folded in a window of this height
    for point in distinct.values():
        page.locator(f"input[name=point][value='{point.name}']").check()
        expect_answer_for(page, predictor, film_path.read_bytes(), point.name)
        mark = page.locator("#bar").evaluate("bar => Number(bar.style.getPropertyValue('--threshold'))")
        assert mark == point.threshold
        measures = page.locator("#measures").inner_text()
        assert f"{round(point.sensitivity * point.positives)} of {point.positives} with pneumonia" in measures
        assert f"{round(point.specificity * point.negatives)} of {point.negatives} labelled normal" in measures
    assert asked == []


def test_the_interval_beside_a_measure_is_wilsons(visit: Opener) -> None:
    page = visit()
    for hits, count in ((355, 367), (0, 20), (20, 20), (1, 2), (64, 65)):
        found = page.evaluate(f"async () => (await import('/words.js')).wilson({hits}, {count})")
        interval = binomtest(hits, count).proportion_ci(method="wilson")
        assert found == pytest.approx([interval.low, interval.high], abs=1e-9)


def test_what_is_not_certain_is_not_shown_as_certain(visit: Opener) -> None:
    shares = {0.9732: "97.3%", 0.5: "50.0%", 0.9999: "> 99.9%", 0.0001: "< 0.1%", 0: "0.0%", 1: "100.0%"}
    page = visit()
    for share, text in shares.items():
        assert page.evaluate(f"async () => (await import('/words.js')).percent({share})") == text


def test_a_film_that_cannot_be_classified_says_why(visit: Opener, predictor: Predictor, tmp_path: Path) -> None:
    path = tmp_path / "holiday.png"
    path.write_bytes(encoded(coloured()))
    reason = predictor.predict(path.read_bytes(), "this film").gate.reason.removeprefix("this film: ")
    page = visit()
    choose(page, path)
    assert wait_for_answer(page) == "refused"
    expect(page.locator("#headline")).to_have_text("Not answered")
    expect(page.locator("#because")).to_contain_text(reason[1:])
    expect(page.locator("#probability")).to_have_text("\N{EN DASH}")
    expect(page.locator("#heat")).to_be_disabled()


def test_the_score_of_a_refusal_is_said_once(visit: Opener, film_path: Path, predictor: Predictor) -> None:
    answer = json.loads(predictor.predict(film_path.read_bytes(), "film").to_json())
    gate = {"accepted": False, "reason": "it does not look like a chest film (score 0.93)", "score": 0.934}
    page = visit()
    body = json.dumps({**answer, "gate": gate, "probability": None, "label": None})
    page.route("**/v1/predict*", lambda route: route.fulfill(body=body), times=1)
    choose(page, film_path)
    assert wait_for_answer(page) == "refused"
    because = page.locator("#because")
    expect(because).to_contain_text("It does not look like a chest film (score 0.93). No probability is given.")
    assert because.inner_text().count("0.93") == 1


def test_the_answer_is_announced(visit: Opener, film_path: Path) -> None:
    page = visit()
    choose(page, film_path)
    headline = HEADLINES[wait_for_answer(page)]
    expect(page.locator("[aria-live=polite]")).to_contain_text(f"{film_path.name}: {headline}. Probability ")


def test_every_outcome_has_a_shape_of_its_own(visit: Opener) -> None:
    drawings = visit().evaluate("[...document.querySelectorAll('template[id^=sign]')].map((t) => t.innerHTML)")
    assert len(drawings) == 6
    assert len(set(drawings)) == 6


def test_the_notice_never_leaves_the_screen(visit: Opener) -> None:
    for size in (DESKTOP, PHONE):
        page = visit(viewport=size)
        expect(page.locator(".notice")).to_contain_text(NOTICE)
        expect(page.locator(".notice")).to_contain_text("not stored")
        expect(page.locator(".notice")).to_be_in_viewport(ratio=1)


def test_the_model_has_a_page_that_opens_beside_the_films(visit: Opener, predictor: Predictor) -> None:
    page = visit()
    with page.context.expect_page() as opened:
        page.get_by_role("link", name="The model").click()
    model = opened.value
    expect(model.locator("main")).to_contain_text(predictor.info.intended_use.replace(NOTICE, "").strip())
    expect(model.locator("main")).to_contain_text(NOTICE)
    expect(model.locator("#facts")).to_contain_text(predictor.info.name)
    for point in predictor.info.operating_points:
        row = model.locator("#operating tr").filter(has_text=point.name)
        hits = round(point.sensitivity * point.positives)
        interval = binomtest(hits, point.positives).proportion_ci(method="wilson")
        expect(row).to_contain_text(f"{hits} of {point.positives}")
        expect(row).to_contain_text(f"{100 * interval.low:.1f} to {100 * interval.high:.1f}%")
    expect(model.get_by_role("heading", name="Limits").first).to_be_visible()
    expect(model.locator("main")).to_contain_text("it is not stored")
    model.get_by_text("Model card, as it lies in the bundle").click()
    expect(model.locator("#card h3").first).to_be_visible()
    assert "license:" not in model.locator("#card").inner_text()


# --------------------------------------------------------------------------- what goes wrong


def test_a_text_file_gets_a_clear_message(visit: Opener, text_file: Path, complaints: list[str]) -> None:
    page = visit()
    choose(page, text_file)
    assert wait_for_answer(page) == "failed"
    expect(page.locator("#because")).to_contain_text("This is not a film that can be read here")
    expect(page.locator("#because")).to_contain_text("Not a DICOM, JPEG, PNG, TIFF, ")
    expect(page.locator("#retry")).to_be_hidden()
    expect(page.locator(".instead").first).to_contain_text("The browser cannot draw this file.")
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
    path.write_bytes(bytes(LIMIT + 1))
    page = visit()
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url) if "predict" in request.url else None)
    choose(page, path)
    assert wait_for_answer(page) == "failed"
    expect(page.locator("#because")).to_contain_text("This film is too large")
    assert asked == []


TROUBLE = {
    408: "Send it again over a better connection",
    413: "Export a smaller copy",
    429: "Too many films in a short time",
    500: "tell the operator the request id",
    503: "The service is busy",
}


def refuse(answer: dict[str, object], route: Route) -> None:
    route.fulfill(**answer)


def test_a_service_in_trouble_gets_a_clear_message(visit: Opener, film_path: Path, complaints: list[str]) -> None:
    page = visit()
    for status, words in TROUBLE.items():
        answer = {"status": status, "body": json.dumps({"detail": "as it is"}), "headers": {"Retry-After": "3600"}}
        page.route("**/v1/predict*", partial(refuse, answer), times=1)
        choose(page, film_path)
        assert wait_for_answer(page) == "failed"
        expect(page.locator("#because")).to_contain_text(words)
        expect(page.locator("#because")).to_contain_text("As it is.")
        expect(page.locator("#retry")).to_be_visible(visible=status != 413)
        page.locator("#clear").click()
    assert all(str(status) in complaint for status, complaint in zip(TROUBLE, complaints, strict=True))
    complaints.clear()


def test_a_failed_film_gets_a_second_chance(visit: Opener, film_path: Path, complaints: list[str]) -> None:
    page = visit()
    page.route("**/v1/predict*", lambda route: route.fulfill(status=500), times=1)
    choose(page, film_path)
    assert wait_for_answer(page) == "failed"
    page.get_by_role("button", name="Try again").click()
    expect(page.locator("#answer")).to_have_attribute("data-outcome", re.compile("normal|pneumonia"))
    assert "500" in complaints.pop()


def test_a_busy_service_is_asked_again_when_it_said(visit: Opener, film_path: Path, complaints: list[str]) -> None:
    page = visit()
    answer = {"status": 503, "headers": {"Retry-After": "2"}, "body": "{}"}
    page.route("**/v1/predict*", partial(refuse, answer), times=1)
    choose(page, film_path)
    expect(page.locator("#because")).to_contain_text("The page tries again automatically, after 2 s")
    expect(page.locator("#headline")).to_have_text("Reading the film")
    assert wait_for_answer(page) in HEADLINES
    began = page.evaluate(
        "performance.getEntriesByType('resource').filter((e) => e.name.includes('predict')).map((e) => e.startTime)"
    )
    assert len(began) == 2
    assert began[1] - began[0] >= 2000
    assert "503" in complaints.pop()


def test_a_slow_answer_is_explained(visit: Opener, film_path: Path) -> None:
    page = visit()
    page.clock.install()
    held = hold(page)
    choose(page, film_path)
    expect(page.locator("#because")).to_have_text("This takes a moment.")
    page.clock.run_for(6_000)
    expect(page.locator("#because")).to_contain_text("longer than usual")
    held[0].continue_()
    page.clock.run_for(1_000)
    assert wait_for_answer(page) in HEADLINES


def test_a_lost_connection_mends_itself(visit: Opener, film_path: Path, complaints: list[str]) -> None:
    page = visit()
    page.context.set_offline(True)
    choose(page, film_path)
    assert wait_for_answer(page) == "failed"
    expect(page.locator("#because")).to_contain_text("You are offline")
    page.context.set_offline(False)
    expect(page.locator("#answer")).to_have_attribute("data-outcome", re.compile("normal|pneumonia"))
    assert "ERR_INTERNET_DISCONNECTED" in complaints.pop()


def test_a_service_that_is_gone_gets_a_clear_message(visit: Opener, film_path: Path, complaints: list[str]) -> None:
    page = visit()
    page.route("**/v1/predict*", lambda route: route.abort("connectionrefused"), times=1)
    choose(page, film_path)
    assert wait_for_answer(page) == "failed"
    expect(page.locator("#because")).to_contain_text("The service does not answer")
    assert "ERR_CONNECTION_REFUSED" in complaints.pop()


def test_a_service_that_wants_a_key_gets_one_that_is_never_stored(
    visit: Opener, predictor: Predictor, film_paths: tuple[Path, ...], complaints: list[str]
) -> None:
    key, entry = new_key("ward-7")
    with running(predictor, ServiceSettings(keys=KeyRing.from_text(entry, "test"))) as locked:
        give_key(visit(at=locked), key, film_paths[:4])
    assert complaints
    assert all("401" in complaint for complaint in complaints)
    complaints.clear()


def give_key(page: Page, key: str, films: Sequence[Path]) -> None:
    expect(page.locator("#headline")).to_have_text("This service wants a key")
    expect(page.get_by_label("Key of the service")).to_be_focused()
    choose(page, *films)
    expect(page.locator("#rows tr")).to_have_count(len(films))
    page.get_by_label("Key of the service").fill("wrong")
    page.keyboard.press("Enter")
    expect(page.get_by_label("Key of the service")).to_have_value("")
    expect(page.locator("#because")).to_contain_text("no key that this service knows")
    page.get_by_label("Key of the service").fill(key)
    page.keyboard.press("Enter")
    wait_for_all(page)
    expect(page.get_by_label("Key of the service")).to_be_hidden()
    expect(page.locator("#failed")).to_be_hidden()
    kept = page.evaluate("JSON.stringify([localStorage, sessionStorage, document.cookie, location.href])")
    assert key not in kept


# --------------------------------------------------------------------------- out


def test_an_answer_is_saved_as_a_picture_with_all_that_belongs_to_it(visit: Opener, film_path: Path) -> None:
    page = visit()
    expect(page.locator("#save")).to_be_hidden()
    choose(page, film_path)
    wait_for_answer(page)
    page.get_by_role("switch", name="Heat map").click()
    expect(page.locator(".overlay").first).to_be_visible()
    with page.expect_download() as download:
        page.get_by_role("button", name="Save PNG").click()
    assert download.value.suggested_filename == f"{film_path.name}.answer.png"
    with Image.open(download.value.path()) as saved, Image.open(film_path) as film:
        assert saved.width == 1200
        assert saved.height > 1200 * film.height / film.width  # the words stand under the film


def test_paper_shows_the_answer_and_the_list_without_the_tools(visit: Opener, film_paths: tuple[Path, ...]) -> None:
    page = visit(script="globalThis.print = () => (globalThis.printed = document.querySelector('.paper').innerText)")
    choose(page, *film_paths[:3])
    wait_for_all(page)
    page.get_by_role("button", name="Print list").click()
    printed = page.wait_for_function("() => globalThis.printed").json_value()
    assert all(path.name in printed for path in film_paths[:3])
    assert re.search(r"Operating point \S+: suspected from [\d.]+%.*Model \S+, \w{12}; \d{4}-", printed, re.DOTALL)
    expect(page.locator(".paper")).to_have_count(0)
    page.emulate_media(media="print")
    expect(page.locator("#tools")).to_be_hidden()
    expect(page.locator("#headline")).to_be_visible()
    expect(page.locator(".notice")).to_be_visible()
    page.evaluate("dispatchEvent(new Event('beforeprint'))")
    expect(page.locator("#printed")).to_contain_text("20")
    sheet = page.pdf(format="A4", print_background=True, prefer_css_page_size=True)
    assert len(re.findall(rb"/Type\s*/Page\b", sheet)) == 1


def test_a_person_at_an_unknown_address_gets_a_page_and_a_program_a_problem(
    visit: Opener, address: str, complaints: list[str]
) -> None:
    page = visit("/nowhere")
    expect(page.locator("main")).to_contain_text("No page has this address")
    answer = page.request.get(f"{address}/nowhere", headers={"Accept": "application/json"})
    assert answer.status == 404
    assert answer.headers["content-type"] == "application/problem+json"
    assert "404" in complaints.pop()
