"""Take the screenshots of the demo that the README shows: docs/images/demo.png.

python docs/screenshot.py          # needs lbgen_hf[demo], playwright and a Chromium
"""

import argparse
import shutil
import sys
from pathlib import Path

from playwright.sync_api import expect, sync_playwright

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "demo"))

from app import LAUNCH, build, find_bias  # noqa: E402
from studio import Studio  # noqa: E402


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output_dir", type=Path, default=ROOT / "docs" / "images")
    args = parser.parse_args()
    args.output_dir.mkdir(parents=True, exist_ok=True)
    studio = Studio()
    page = build(studio, [], find_bias(studio))
    _, url, _ = page.launch(**LAUNCH, prevent_thread_lock=True, quiet=True)
    with sync_playwright() as p:
        browser = p.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        tab = browser.new_page(viewport={"width": 1200, "height": 800}, device_scale_factor=1.5)
        tab.goto(url)
        tab.get_by_role("button", name="Generate").click()
        expect(tab.locator("#status")).to_contain_text("mean CLIP score", timeout=300_000)
        tab.wait_for_timeout(1000)
        tab.screenshot(path=args.output_dir / "demo.png", full_page=True)
        tab.get_by_role("tab", name="Bias").click()
        tab.wait_for_timeout(500)
        tab.screenshot(path=args.output_dir / "demo-bias.png", full_page=True)
        browser.close()
    page.close()


if __name__ == "__main__":
    main()
