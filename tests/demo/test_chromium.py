"""The page in a real browser: generating, a dataset, keyboard alone, a phone, dark mode, axe-core."""

import os
import re
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from app import LAUNCH, build
from studio import Progress, Request, Studio
from test_space import bias_file

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


@pytest.fixture(scope="module")
def axe(request: pytest.FixtureRequest) -> str:
    """The source of axe-core, installed once into pytest's cache."""
    npm = shutil.which("npm")
    if npm is None:
        pytest.skip("npm is missing, which installs axe-core")
    folder = Path(request.config.cache.mkdir("axe-core"))
    script = folder / "node_modules" / "axe-core" / "axe.min.js"
    if not script.is_file():
        subprocess.run(
            [npm, "install", "--prefix", str(folder), "--no-audit", "--no-fund", "axe-core@4"], check=True, timeout=300
        )
    return script.read_text(encoding="utf-8")


def serious_violations(page: "playwright.Page", axe: str) -> list[str]:
    """What axe-core finds serious or critical on the page as it stands: the rule, the element, the reason."""
    page.evaluate(axe)
    violations = page.evaluate("async () => (await axe.run(document, { resultTypes: ['violations'] })).violations")
    return [
        f"{violation['id']}: {node['html'][:200]}: {node['failureSummary'][:300]}"
        for violation in violations
        if violation["impact"] in ("serious", "critical")
        for node in violation["nodes"]
    ]


def add_class(page: "playwright.Page", name: str) -> None:
    page.locator("#classes input").fill(name)
    page.keyboard.press("Enter")
    page.locator("h1").click()  # the list of options covers what is below


def generate(page: "playwright.Page") -> None:
    page.get_by_role("button", name="Generate").click()
    page.locator("#status", has_text="mean CLIP score").wait_for()


def press_until_focused(page: "playwright.Page", selector: str) -> None:
    for _ in range(60):
        if page.evaluate("s => !!document.activeElement?.closest(s)", selector):
            return
        page.keyboard.press("Tab")
    raise AssertionError(f"Tab never reaches {selector}")


def test_generate_look_and_read(page: "playwright.Page", url: str) -> None:
    page.goto(url)
    add_class(page, "tenc")
    playwright.expect(page.locator("#classes .token")).to_have_text(["star", "tench"])
    generate(page)
    for side in ("left", "right"):
        images = page.locator(f"#gallery-{side} .grid-container img")
        playwright.expect(images).to_have_count(8)  # star and tench, 4 of each
        assert images.first.evaluate("image => image.naturalWidth") == 64
    playwright.expect(page.locator("#gallery-left .caption-label").nth(4)).to_have_text(re.compile("^tench · CLIP"))
    playwright.expect(page.locator("#gallery-right")).to_contain_text("other.v2")

    page.locator("#gallery-left .grid-container button").first.click()  # full size, and its file
    with page.expect_download() as download:
        page.locator("#gallery-left").get_by_label("Download").first.click()
    assert download.value.path().read_bytes().startswith(b"\x89PNG")

    page.keyboard.press("Escape")
    page.get_by_role("tab", name="Dataset").click()
    page.get_by_role("button", name="Open").click()
    images = page.locator("#gallery-dataset .grid-container img")
    playwright.expect(images).to_have_count(4)
    press_until_focused(page, "#dataset-page input[type=range]")
    page.keyboard.press("ArrowRight")  # the second of two pages; there is no third
    page.keyboard.press("ArrowRight")
    page.locator("#dataset-place", has_text="page 2 of 2").wait_for()
    playwright.expect(images).to_have_count(1)
    page.get_by_role("tab", name="Bias").click()
    page.get_by_text("No bias has been measured for this model").wait_for()


def test_the_keyboard_alone_generates(page: "playwright.Page", url: str) -> None:
    page.goto(url)
    page.locator("#generate-button").wait_for()
    press_until_focused(page, "#classes input")
    page.keyboard.type("tench")
    page.keyboard.press("Enter")
    press_until_focused(page, "#generate-button")
    assert page.evaluate("getComputedStyle(document.activeElement).outlineStyle") == "solid"
    # Tab passed the buttons that remove a class, and removed none.
    playwright.expect(page.locator("#classes .token")).to_have_text(["star", "tench"])
    page.keyboard.press("Enter")
    page.locator("#status", has_text="mean CLIP score").wait_for()


def test_the_keyboard_removes_a_class(page: "playwright.Page", url: str) -> None:
    page.goto(url)
    page.locator("#generate-button").wait_for()
    press_until_focused(page, "#classes .token-remove")
    page.keyboard.press("Enter")
    playwright.expect(page.locator("#classes .token")).to_have_count(0)


def test_stop_ends_the_work_and_the_next_run_starts(
    page: "playwright.Page", url: str, studio: Studio, monkeypatch: pytest.MonkeyPatch
) -> None:
    def endless(request: Request) -> Iterator[Progress]:
        """Updates faster than a slow page shows them: much of what was sent is still to be shown at Stop."""
        while True:
            yield Progress({variant: [] for variant in request.variants}, 0.5, 60)
            time.sleep(0.002)

    with monkeypatch.context() as patch:
        patch.setattr(studio, "generate", endless)
        page.goto(url)
        page.get_by_role("button", name="Generate").click()
        page.locator("#status", has_text=re.compile("images finished, about [0-9]+ (s|min) left")).wait_for()
        slow = page.context.new_cdp_session(page)
        slow.send("Emulation.setCPUThrottlingRate", {"rate": 5})
        page.get_by_role("button", name="Stop").dispatch_event("click")
        page.locator("#status", has_text="Stopped").wait_for()
        slow.send("Emulation.setCPUThrottlingRate", {"rate": 1})
    playwright.expect(page.locator("#stop-button")).to_be_hidden()
    page.get_by_text("Sampling").click()
    page.get_by_label("number input for Steps").fill("2")
    generate(page)


def test_an_unknown_class_stays_and_is_answered_with_near_names(page: "playwright.Page", url: str) -> None:
    page.goto(url)
    page.locator("#generate-button").wait_for()
    add_class(page, "tenhc")
    playwright.expect(page.locator("#classes .token")).to_have_text(["star", "tenhc"])
    page.get_by_role("button", name="Generate").click()
    message = page.get_by_text("unknown class 'tenhc': did you mean 'tench'?")
    message.first.wait_for()


def test_an_error_covers_nothing_of_its_field(page: "playwright.Page", url: str, axe: str) -> None:
    page.goto(url)
    page.locator("#generate-button").wait_for()
    add_class(page, "tenhc")
    page.locator("#seed input").fill("-4")
    page.get_by_role("button", name="Generate").click()
    for field in ("classes", "seed"):
        error = page.locator(f"#{field} div.validation-error")
        error.wait_for()
        box = error.bounding_box()
        for other in ("[data-testid=block-info]", "input", ".info-text"):
            for element in page.locator(f"#{field} {other}:not(:has(.validation-error))").all():
                assert not overlap(box, element.bounding_box()), (field, other)
    assert serious_violations(page, axe) == []


def overlap(a: dict, b: dict) -> bool:
    return all(
        a[start] < b[start] + b[size] and b[start] < a[start] + a[size]
        for start, size in (("x", "width"), ("y", "height"))
    )


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_axe_finds_nothing_serious(page: "playwright.Page", url: str, axe: str, theme: str) -> None:
    page.goto(f"{url}?__theme={theme}")
    page.locator("#generate-button").wait_for()
    assert serious_violations(page, axe) == []
    page.get_by_text("Sampling").click()
    generate(page)
    page.get_by_text("Scores of every image").click()
    assert serious_violations(page, axe) == []
    page.get_by_role("tab", name="Dataset").click()
    assert serious_violations(page, axe) == []
    page.get_by_role("button", name="Open").click()
    page.locator("#dataset-place", has_text="page 1").wait_for()
    assert serious_violations(page, axe) == []
    page.get_by_role("tab", name="Bias").click()
    assert serious_violations(page, axe) == []


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_an_audit_is_readable_on_a_phone(page: "playwright.Page", url: str, axe: str, theme: str) -> None:
    page.set_viewport_size(PHONE)
    page.emulate_media(color_scheme="null")  # else a frame is light whatever the page around it is
    page.goto(f"{url}?__theme={theme}")
    page.get_by_role("tab", name="Audit").click()
    page.get_by_role("button", name="Audit").click()
    page.locator("#audit-status", has_text="images was audited").wait_for()
    # The frame runs no scripts, Playwright's neither: the page looks into it.
    frame = page.locator(".lb-audit")
    root = "frame.contentDocument.documentElement"
    page.wait_for_function("() => document.querySelector('.lb-audit')?.contentDocument.querySelector('h1')")
    # The frame is as high as the report: the page scrolls, and nothing inside it does, sideways neither.
    page.wait_for_function(
        f"() => ((frame) => frame.clientHeight >= {root}.scrollHeight)(document.querySelector('.lb-audit'))"
    )
    assert frame.evaluate(f"frame => {root}.scrollWidth <= frame.clientWidth")
    assert page.evaluate("document.documentElement.scrollWidth") <= PHONE["width"]
    color = frame.evaluate("frame => getComputedStyle(frame.contentDocument.body).color")
    assert (sum(map(int, re.findall("[0-9]+", color)[:3])) > 3 * 128) == (theme == "dark")
    assert serious_violations(page, axe) == []
    report = frame.get_attribute("srcdoc")
    page.emulate_media(color_scheme=theme)
    page.set_content(report)
    assert serious_violations(page, axe) == []


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_axe_finds_nothing_serious_in_measured_bias(
    page: "playwright.Page", studio: Studio, tmp_path: Path, axe: str, theme: str
) -> None:
    path = bias_file(tmp_path / "bias.json", mi_background=(3.25, 2.9, 3.6), quality=(-0.1, -0.2, 0.0))
    served = build(studio, [], {"lora": path})
    try:
        _, address, _ = served.launch(**LAUNCH, prevent_thread_lock=True, quiet=True, server_name="127.0.0.1")
        page.set_viewport_size(PHONE)
        page.goto(f"{address}?__theme={theme}")
        page.get_by_role("tab", name="Bias").click()
        page.locator(".lb-bias svg").first.wait_for()
        assert serious_violations(page, axe) == []
        right = page.evaluate(
            "Math.max(...[...document.querySelectorAll('.lb-bias *')].map(e => e.getBoundingClientRect().right))"
        )
        assert right <= PHONE["width"]  # nothing is cut off
    finally:
        served.close()


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_a_phone_shows_everything_without_scrolling_sideways(page: "playwright.Page", url: str, theme: str) -> None:
    page.set_viewport_size(PHONE)
    page.goto(f"{url}?__theme={theme}")
    generate(page)
    images = page.locator("#gallery-left img, #gallery-right img")
    playwright.expect(images.nth(4)).to_be_attached()
    page.wait_for_function("document.querySelector('#gallery-right img').getBoundingClientRect().bottom < innerHeight")
    left, right = (page.locator(f"#gallery-{side} img").first.bounding_box() for side in ("left", "right"))
    assert left["y"] == right["y"]  # side by side
    for tab in ("Studio", "Dataset", "Audit", "Bias"):
        page.get_by_role("tab", name=tab).click()
        assert page.evaluate("document.documentElement.scrollWidth") <= PHONE["width"]
    red, green, blue = page.evaluate(
        "getComputedStyle(document.querySelector('.lb-header h1')).color.match(/[\\d.]+/g).slice(0, 3).map(Number)"
    )
    assert (red + green + blue > 3 * 128) == (theme == "dark")
