"""The page in a real browser: drawing, a dataset, keyboard alone, a phone, dark mode."""

import os
import re
import shutil
from collections.abc import Iterator
from urllib.parse import urlsplit

import pytest

playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
if CHROMIUM is None:
    pytest.skip("there is no Chromium on this machine", allow_module_level=True)

PHONE = {"width": 390, "height": 844}
DESKTOP = {"width": 1280, "height": 900}


@pytest.fixture(scope="module")
def browser() -> Iterator["playwright.Browser"]:
    with playwright.sync_playwright() as p:
        arguments = ["--no-sandbox"] if os.geteuid() == 0 else []
        browser = p.chromium.launch(executable_path=CHROMIUM, args=arguments)
        yield browser
        browser.close()


@pytest.fixture
def page(browser: "playwright.Browser", url: str) -> Iterator["playwright.Page"]:
    """A page; the test fails where the console has an error, or another host was asked for anything."""
    context = browser.new_context(viewport=DESKTOP)
    page = context.new_page()
    page.set_default_timeout(120_000)
    playwright.expect.set_options(timeout=120_000)
    errors, hosts = [], set()
    # A refused request is one of our own answers, which Chromium logs by itself.
    refused = "status of 422"
    page.on("console", lambda m: errors.append(m.text) if m.type == "error" and refused not in m.text else None)
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.on("request", lambda request: hosts.add(urlsplit(request.url).hostname))
    yield page
    context.close()
    assert errors == []
    assert hosts - {None} == {"127.0.0.1"}


def press_until_focused(page: "playwright.Page", selector: str) -> None:
    for _ in range(60):
        if page.evaluate("s => !!document.activeElement?.closest(s)", selector):
            return
        page.keyboard.press("Tab")
    raise AssertionError(f"Tab never reaches {selector}")


def test_draw_look_and_read(page: "playwright.Page", url: str) -> None:
    page.goto(url)
    page.locator("#classes input").fill("tenc")
    page.keyboard.press("Enter")
    page.locator("h1").click()  # the list of options covers the button
    page.get_by_role("button", name="Draw").click()
    page.locator("#status", has_text="mean CLIP score").wait_for()
    for variant in ("base", "lbgen"):
        pictures = page.locator(f"#gallery-{variant} .grid-container img")
        playwright.expect(pictures).to_have_count(8)  # star and tench, 4 of each
        assert pictures.first.evaluate("image => image.naturalWidth") == 64
    playwright.expect(page.locator("#gallery-base .caption-label").nth(4)).to_have_text(re.compile("^tench · CLIP"))

    page.locator("#gallery-base .grid-container button").first.click()  # full size, and its file
    with page.expect_download() as download:
        page.locator("#gallery-base").get_by_label("Download").first.click()
    assert download.value.path().read_bytes().startswith(b"\x89PNG")

    page.keyboard.press("Escape")
    page.get_by_role("tab", name="Dataset").click()
    page.get_by_role("button", name="Open").click()
    playwright.expect(page.locator("#gallery-dataset .grid-container img")).to_have_count(4)
    page.get_by_role("tab", name="Measured bias").click()
    page.get_by_text("Nothing was measured for this model yet").wait_for()


def test_the_keyboard_alone_draws(page: "playwright.Page", url: str) -> None:
    page.goto(url)
    page.locator("#draw-button").wait_for()
    press_until_focused(page, "#classes input")
    page.keyboard.type("tench")
    page.keyboard.press("Enter")
    press_until_focused(page, "#draw-button")
    # Tab passed the buttons that remove a class, and removed none.
    playwright.expect(page.locator("#classes .token")).to_have_text(["star", "tench"])
    page.keyboard.press("Enter")
    page.locator("#status", has_text="mean CLIP score").wait_for()


def test_the_keyboard_removes_a_class(page: "playwright.Page", url: str) -> None:
    page.goto(url)
    page.locator("#draw-button").wait_for()
    press_until_focused(page, "#classes .token-remove")
    page.keyboard.press("Enter")
    playwright.expect(page.locator("#classes .token")).to_have_count(0)


def test_a_refusal_is_a_message_in_the_page(page: "playwright.Page", url: str) -> None:
    page.goto(url)
    page.locator("#draw-button").wait_for()
    page.get_by_label("number input for Pictures of each").fill("8")
    for name in ("tench", "goldfish"):
        page.locator("#classes input").fill(name)
        page.keyboard.press("Enter")
    page.locator("h1").click()
    page.get_by_role("button", name="Draw").click()
    page.get_by_text("more than 16").first.wait_for()


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_a_phone_shows_everything_without_scrolling_sideways(page: "playwright.Page", url: str, theme: str) -> None:
    page.set_viewport_size(PHONE)
    page.goto(f"{url}?__theme={theme}")
    page.get_by_role("button", name="Draw").click()
    page.locator("#status", has_text="mean CLIP score").wait_for()
    for tab in ("Draw", "Dataset", "Measured bias"):
        page.get_by_role("tab", name=tab).click()
        assert page.evaluate("document.documentElement.scrollWidth") <= PHONE["width"]
    red, green, blue = page.evaluate(
        "getComputedStyle(document.querySelector('.lb-header h1')).color.match(/[\\d.]+/g).slice(0, 3).map(Number)"
    )
    assert (red + green + blue > 3 * 128) == (theme == "dark")
