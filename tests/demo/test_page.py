"""The page in a real browser: clicked, by keyboard alone, wide and narrow, light and dark. Run by `make test-demo`."""

from __future__ import annotations

import os
import shutil

import pytest

pytest.importorskip("gradio", reason="needs mmemb-r1[demo]: make test-demo")
playwright = pytest.importorskip("playwright.sync_api", reason="needs playwright: make test-demo")

from mmemb_r1.demo.page import build_page, serve  # noqa: E402
from mmemb_r1.index import Index, build_index  # noqa: E402

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
WIDE, NARROW = {"width": 1280, "height": 900}, {"width": 390, "height": 844}


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    from PIL import Image, ImageDraw

    folder = tmp_path_factory.mktemp("pictures")
    for colour in ("red", "green", "blue", "orange", "purple", "grey", "teal", "brown"):
        picture = Image.new("RGB", (96, 64), "white")
        ImageDraw.Draw(picture).ellipse((20, 8, 76, 56), fill=colour)
        picture.save(folder / f"{colour}.png")
    return folder


@pytest.fixture(scope="module")
def index(demo_model, pictures, tmp_path_factory):
    folder = tmp_path_factory.mktemp("index")
    build_index(pictures, demo_model, folder)
    return Index.open(folder, demo_model)


@pytest.fixture(scope="module")
def address(index):
    page = build_page(index)
    _, address, shared = serve(page, prevent_thread_lock=True, quiet=True)
    assert shared is None and address.startswith("http://127.0.0.1:")
    yield address
    page.close()


@pytest.fixture(scope="module")
def browser():
    with playwright.sync_playwright() as started:
        browser = started.chromium.launch(executable_path=BROWSER, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def opened(browser, address):
    """`opened(**options)`: the page in a new window; all that it asks for has to come from this computer."""
    windows, asked = [], []

    def open_page(**options):
        window = browser.new_context(**{"viewport": WIDE, **options})
        windows.append(window)
        page = window.new_page()
        page.on("request", lambda request: asked.append(request.url))
        page.goto(address)
        page.get_by_role("button", name="Search").wait_for()
        return page

    yield open_page
    for window in windows:
        window.close()
    assert asked
    assert [url for url in asked if not url.startswith((address, "data:", "blob:"))] == []


def shot(page, name):
    """Keep a screenshot, if somebody wants to look: DEMO_SCREENSHOTS=folder."""
    if folder := os.environ.get("DEMO_SCREENSHOTS"):
        page.screenshot(path=f"{folder}/{name}.png", full_page=True)


def wait_for_results(page):
    page.locator(".found .side ol").nth(1).wait_for()
    page.get_by_role("heading", name="Rationale", exact=True).wait_for()


def hits(page, side):
    return (
        page.get_by_role("region", name=f"{side} results")
        .locator("li .name")
        .evaluate_all("found => found.map(name => name.title)")
    )


def test_a_text_is_searched_as_the_index_does_it(opened, index):
    page = opened()
    page.get_by_label("Text").fill("a red circle")
    page.get_by_role("button", name="Search").click()
    wait_for_results(page)
    for side, reasoning in (("Direct", "never"), ("Reasoned", "always")):
        assert hits(page, side) == [hit.id for hit in index.search("a red circle", 10, reasoning=reasoning).hits]
    rationale = page.locator(".rationale p").inner_text()
    assert rationale.split() == index.search("a red circle", reasoning="always").rationale.split()
    widths = page.locator(".found img").evaluate_all("found => found.map(one => one.naturalWidth)")
    assert len(widths) == 16 and all(widths)  # pictures that were decoded
    shot(page, "wide-light")


def test_a_picture_is_dropped_and_finds_itself(opened, pictures):
    page = opened()
    page.locator("input[type=file]").first.set_input_files(pictures / "teal.png")
    page.locator(".image-container img, .image-frame img").first.wait_for()
    page.get_by_role("button", name="Search").click()
    wait_for_results(page)
    assert hits(page, "Direct")[0] == "teal.png"
    shot(page, "picture")


def test_the_slider_moves_the_choice_by_keyboard_alone(opened):
    page = opened()
    page.get_by_label("Text").focus()
    page.keyboard.type("a red circle")
    page.keyboard.press("Enter")
    wait_for_results(page)
    slider = page.get_by_role("slider", name="Threshold of the gate")
    for _ in range(40):
        if slider.evaluate("one => one === document.activeElement"):
            break
        page.keyboard.press("Tab")
    assert slider.evaluate("one => one === document.activeElement")
    for key, chosen in (("Home", "Reasoned"), ("End", "Direct")):
        page.keyboard.press(key)
        page.locator(f".side.is-chosen[aria-label='{chosen} results']").wait_for()
    assert "don’t think" in page.get_by_role("status").first.inner_text()
    shot(page, "keyboard")


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("viewport", [WIDE, NARROW], ids=["wide", "narrow"])
def test_nothing_is_cut_off_and_text_can_be_read(opened, viewport, scheme):
    page = opened(viewport=viewport, color_scheme=scheme)
    page.get_by_label("Text").fill("a blue circle")
    page.get_by_role("button", name="Search").click()
    wait_for_results(page)
    assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")
    tops = page.locator(".found .side").evaluate_all("found => found.map(one => one.getBoundingClientRect().top)")
    assert (tops[0] == tops[1]) == (viewport is WIDE)  # side by side, or one below the other
    for place in (".found .decision", ".found .name", ".found .quiet", ".found .chosen", ".rationale p"):
        assert page.locator(place).first.evaluate(CONTRAST) >= 4.5, place
    shot(page, f"{'wide' if viewport is WIDE else 'narrow'}-{scheme}")


CONTRAST = """one => {
    const numbers = text => text.match(/[\\d.]+/g).map(Number)
    const linear = part => part <= .03928 ? part / 12.92 : ((part + .055) / 1.055) ** 2.4
    const luminance = ([r, g, b]) => .2126 * linear(r / 255) + .7152 * linear(g / 255) + .0722 * linear(b / 255)
    const ground = place => numbers(getComputedStyle(place).backgroundColor)
    let below = one
    while (below && ground(below)[3] === 0) below = below.parentElement
    const pair = [numbers(getComputedStyle(one).color), below ? ground(below) : [255, 255, 255]].map(luminance)
    return (Math.max(...pair) + .05) / (Math.min(...pair) + .05)
}"""


def test_without_a_query_the_page_says_what_to_do(opened):
    page = opened()
    page.get_by_role("button", name="Search").click()
    page.get_by_text("type a text, or drop a picture").first.wait_for()
