"""The ways in, and the film on the stage before its answer."""

from __future__ import annotations

import io
import re
import shutil
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image
from playwright.sync_api import Page, expect
from pydicom import dcmread
from pydicom.pixels.processing import apply_voi_lut

import dicoms
from chestxray.inference.predictor import Predictor
from drawing import encoded, gradient
from driving import (
    HEADLINES,
    PHONE,
    Opener,
    choose,
    drop,
    expect_answer_for,
    hold,
    names_in_list,
    tab_to,
    wait_for_all,
    wait_for_answer,
)

DEEP = gradient().astype(np.uint16) * 12 + 300


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
    held = hold(page)
    choose(page, film_path)
    expect(page.locator("img.film").first).to_be_visible()
    assert page.locator("img.film").first.evaluate("async film => { await film.decode(); return film.naturalWidth; }")
    expect(page.locator("#headline")).to_have_text("Reading the film")
    held[0].continue_()
    assert wait_for_answer(page) in HEADLINES


def test_a_dropped_film_is_answered(visit: Opener, predictor: Predictor, film_path: Path) -> None:
    page = visit()
    drop(page, film_path)
    expect_answer_for(page, predictor, film_path.read_bytes())


@pytest.fixture
def ward(tmp_path: Path, film_paths: tuple[Path, ...]) -> Path:
    """A folder as people have them: films in folders, one without an ending, and things that are no films."""
    folder = tmp_path / "ward"
    (folder / "old" / "7").mkdir(parents=True)
    shutil.copy(film_paths[0], folder / "first.jpeg")
    shutil.copy(film_paths[1], folder / "old" / "7" / "second.JPG")
    (folder / "old" / "IM000001").write_bytes(dicoms.native(gradient()))
    (folder / ".DS_Store").write_bytes(b"Bud1")
    (folder / "report.pdf").write_bytes(b"%PDF-1.7")
    return folder


INSIDE = {"ward/first.jpeg", "ward/old/7/second.JPG", "ward/old/IM000001"}


def test_a_whole_folder_can_be_chosen(visit: Opener, ward: Path) -> None:
    page = visit()
    held = hold(page)
    with page.expect_file_chooser() as chooser:
        page.get_by_role("button", name="Choose a folder").click()
    chooser.value.set_files(ward)
    expect(page.locator("[aria-live=polite]")).to_have_text("3 films added, 2 other files left out.")
    while len(held) < len(INSIDE):
        page.wait_for_timeout(20)
    for route in held:
        route.continue_()
    wait_for_all(page)
    assert set(names_in_list(page) + names_in_list(page, "refused")) == INSIDE


def test_a_whole_folder_can_be_dropped(visit: Opener, ward: Path) -> None:
    page = visit()
    drop(page, ward)
    wait_for_all(page)
    assert set(names_in_list(page) + names_in_list(page, "refused")) == INSIDE


def test_a_folder_without_films_says_so(visit: Opener, tmp_path: Path) -> None:
    (tmp_path / "papers").mkdir()
    (tmp_path / "papers" / "report.pdf").write_bytes(b"%PDF-1.7")
    page = visit()
    page.locator("#folder").set_input_files(tmp_path / "papers")
    expect(page.locator("[aria-live=polite]")).to_have_text("No films in there.")
    expect(page.locator("#stage-choose")).to_be_visible()


def test_a_phone_offers_its_camera(visit: Opener, film_path: Path) -> None:
    expect(visit().get_by_role("button", name="Take a photo")).to_be_hidden()
    page = visit(viewport=PHONE, has_touch=True, is_mobile=True)
    assert page.locator("#camera").get_attribute("capture") == "environment"
    with page.expect_file_chooser() as chooser:
        page.get_by_role("button", name="Take a photo").tap()
    chooser.value.set_files(film_path)
    assert wait_for_answer(page) in HEADLINES


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


def test_an_example_is_one_click_away(visit: Opener) -> None:
    page = visit()
    page.get_by_role("button", name="One dense lobe").click()
    wait_for_answer(page)
    expect(page.locator("#film-name")).to_have_text("lobe.jpg")


def test_a_film_is_chosen_and_classified_from_the_keyboard(
    visit: Opener, predictor: Predictor, film_path: Path
) -> None:
    page = visit()
    page.on("filechooser", lambda _: None)  # the browser begins to tell of choosers some time after it is asked to
    tab_to(page, "#stage-choose")
    with page.expect_file_chooser() as chooser:
        page.keyboard.press("Enter")
    chooser.value.set_files(film_path)
    expect_answer_for(page, predictor, film_path.read_bytes())
    expect(page.get_by_role("application", name=f"Film {film_path.name}")).to_be_focused()
    tab_to(page, "input[name=point]:checked")
    page.keyboard.press("ArrowRight")
    chosen = page.locator("input[name=point]:checked").get_attribute("value")
    assert chosen != predictor.info.default_operating_point
    expect_answer_for(page, predictor, film_path.read_bytes(), chosen)
    tab_to(page, "#heat")
    page.keyboard.press("Space")
    expect(page.locator(".overlay").first).to_be_visible()
    tab_to(page, "#opacity")
    before = page.locator(".overlay").first.evaluate("overlay => Number(overlay.style.opacity)")
    page.keyboard.press("ArrowLeft")
    assert page.locator(".overlay").first.evaluate("overlay => Number(overlay.style.opacity)") < before


# --------------------------------------------------------------------------- DICOM on the stage


def shown_canvas(page: Page) -> npt.NDArray[np.int16]:
    """The grey levels of the canvas on the stage, once it is drawn."""
    expect(page.locator(".pane").first).to_have_attribute("data-state", "film")
    columns, grey = page.locator("canvas.film").first.evaluate(
        """async (canvas) => {
            for (let frame = 0; frame < 3; frame += 1) await new Promise(requestAnimationFrame);
            const { data } = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height);
            return [canvas.width, Array.from(data).filter((_, index) => index % 4 === 1)];
        }"""
    )
    return np.array(grey, np.int16).reshape(-1, columns)


def spread(values: npt.NDArray[np.generic]) -> npt.NDArray[np.float64]:
    wide = values.astype(np.float64)
    return 255 * (wide - wide.min()) / (wide.max() - wide.min())


def windowed(data: bytes) -> npt.NDArray[np.float64]:
    """pydicom's own rendering. Only its range differs: it maps onto the range of the stored bits."""
    dataset = dcmread(io.BytesIO(data))
    return apply_voi_lut(dataset.pixel_array, dataset) * 255 / (2**dataset.BitsStored - 1)


WINDOW = {"BitsStored": 12, "WindowCenter": 1500, "WindowWidth": 1400}
FILMS = {
    "as it stands": (dicoms.native(gradient()), gradient()),
    "implicit": (dicoms.native(DEEP, "implicit", BitsStored=12), spread(DEEP)),
    "big endian": (dicoms.native(DEEP, "big endian", BitsStored=12), spread(DEEP)),
    "signed": (dicoms.native(DEEP.astype(np.int16) - 2000), spread(DEEP)),
    "monochrome1": (dicoms.native(DEEP, PhotometricInterpretation="MONOCHROME1"), 255 - spread(DEEP)),
    "rescaled": (dicoms.native(DEEP, RescaleSlope="2.5", RescaleIntercept="-1000"), spread(DEEP)),
    "window": (dicoms.native(DEEP, **WINDOW), windowed(dicoms.native(DEEP, **WINDOW))),
}


def test_a_dicom_film_is_drawn_at_once_as_the_file_wants_it(visit: Opener, tmp_path: Path) -> None:
    page = visit()
    hold(page)
    for name, (data, expected) in FILMS.items():
        path = tmp_path / f"{name}.dcm"
        path.write_bytes(data)
        choose(page, path)
        expect(page.locator("#film-name")).to_have_text(path.name)
        assert np.abs(shown_canvas(page) - expected).max() <= 1, name


def test_a_dicom_film_in_baseline_jpeg_is_drawn(visit: Opener, tmp_path: Path) -> None:
    path = tmp_path / "film.dcm"
    path.write_bytes(dicoms.coded([encoded(gradient(), "JPEG")], "1.2.840.10008.1.2.4.50", gradient()))
    page = visit()
    choose(page, path)
    expect(page.locator("img.film").first).to_be_visible()
    assert page.locator("img.film").first.evaluate("async film => { await film.decode(); return film.naturalWidth; }")


LEVELS_OF = """async (film) => {
    await film.decode();
    const size = { width: film.naturalWidth, height: film.naturalHeight };
    const canvas = Object.assign(document.createElement("canvas"), size);
    const context = canvas.getContext("2d");
    context.drawImage(film, 0, 0);
    const at = (x, y) => context.getImageData(x, y, 1, 1).data[0];
    return [[canvas.width, canvas.height], at(1, 1), at(canvas.width - 2, canvas.height - 2)];
}"""


def test_what_a_browser_cannot_draw_is_drawn_by_the_service(visit: Opener, tmp_path: Path) -> None:
    films = {
        "coded.dcm": dicoms.compressed(gradient(), "1.2.840.10008.1.2.4.90"),
        "film.tiff": encoded(gradient(), "TIFF"),
    }
    for name, data in films.items():
        (tmp_path / name).write_bytes(data)
        page = visit()
        choose(page, tmp_path / name)
        expect(page.locator(".pane").first).to_have_attribute("data-state", "film")
        film = page.locator("img.film").first
        expect(film).to_be_visible()
        levels = film.evaluate(LEVELS_OF)
        assert levels[0] == list(reversed(gradient().shape))
        assert levels[1] < levels[2]  # the gradient rises from left to right, or from top to bottom
        assert wait_for_answer(page) in {"normal", "pneumonia", "refused"}


def test_a_damaged_dicom_film_gets_a_word_instead_of_a_picture(
    visit: Opener, tmp_path: Path, complaints: list[str]
) -> None:
    page = visit()
    for length in (140, 200, 300, 1000):
        path = tmp_path / f"{length}.dcm"
        path.write_bytes(dicoms.native(gradient())[:length])
        choose(page, path)
        expect(page.locator("#film-name")).to_have_text(path.name)
        expect(page.locator(".instead p").first).to_have_text(re.compile("damaged|no picture|ends before its picture"))
    wait_for_all(page)
    assert len(names_in_list(page, "failed")) == 4
    complaints.clear()


def test_a_photo_of_a_film_keeps_its_rotation(visit: Opener, tmp_path: Path) -> None:
    """A phone stores a photo as its sensor lies and says in EXIF how to turn it; film and heat map turn alike."""
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned a quarter to the right
    path = tmp_path / "photo.jpg"
    Image.fromarray(gradient(96, 160)).save(path, exif=exif)
    page = visit()
    choose(page, path)
    expect(page.locator("img.film").first).to_be_visible()
    size = page.locator("img.film").first.evaluate(
        "async film => { await film.decode(); return [film.naturalWidth, film.naturalHeight]; }"
    )
    assert size == [96, 160]
