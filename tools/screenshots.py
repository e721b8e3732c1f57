"""Take the pictures of docs/serve: what `medqa serve` shows, in a real browser.

Usage: python tools/screenshots.py [--url http://127.0.0.1:8000/] [--out docs/serve]

Without --url it shows the page with a service that has no model and answers as one might; its letters and
numbers are made up. Needs Chromium, and the packages of the extras serve and heavy.
"""

import argparse
import contextlib
import io
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from PIL import Image
from playwright.sync_api import Browser, Page, sync_playwright

ROOT = Path(__file__).resolve().parents[1]
FLAGS = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"]
FLAGS += ["--disable-background-networking", "--disable-component-update", "--disable-sync"]
WIDE = {"viewport": {"width": 1280, "height": 1000}, "color_scheme": "light"}
DARK = {**WIDE, "color_scheme": "dark"}
PHONE = {"viewport": {"width": 390, "height": 844}, "color_scheme": "light"}
NUM_COLOURS = 64


def button(page: Page, name: str) -> Any:
    return page.get_by_role("button", name=name, exact=True)


def take(page: Page, example: str) -> None:
    button(page, example).click()
    for _ in range(200):
        if page.get_by_label("Question", exact=True).input_value():
            return
        page.wait_for_timeout(100)


def answered(page: Page) -> None:
    page.locator("#after .agrees, #after .warning").wait_for()
    page.locator("#ask:not([disabled])").wait_for()
    page.wait_for_timeout(300)
    page.evaluate("document.activeElement.blur()")


def start(page: Page) -> None:
    page.wait_for_timeout(500)


def streaming(page: Page) -> None:
    take(page, "Pathology")
    button(page, "Ask").click()
    page.locator("#reason .written").wait_for()
    page.wait_for_timeout(700)


def answer(page: Page) -> None:
    take(page, "Psychiatry")
    button(page, "Ask").click()
    answered(page)


def not_sure(page: Page) -> None:
    take(page, "Pharmacology")
    button(page, "How sure it has to be").click()
    page.get_by_label("10 of 100", exact=True).check()
    button(page, "Ask").click()
    answered(page)


def phone(page: Page) -> None:
    take(page, "Anatomy")
    page.get_by_label("C", exact=True).fill(page.get_by_label("B", exact=True).input_value())
    button(page, "Ask").click()
    page.locator("[role=alert]").wait_for()
    page.evaluate("document.activeElement.blur()")
    page.locator("#form").scroll_into_view_if_needed()


def about(page: Page) -> None:
    page.get_by_role("link").first.click()
    page.wait_for_timeout(500)


PICTURES: dict[str, tuple[Callable[[Page], None], dict[str, Any]]] = {
    "start": (start, WIDE),
    "streaming": (streaming, WIDE),
    "answer-dark": (answer, DARK),
    "not-sure": (not_sure, WIDE),
    "bad-input-phone": (phone, PHONE),
    "about": (about, WIDE),
}


def picture(browser: Browser, url: str, name: str, file: Path) -> None:
    prepare, settings = PICTURES[name]
    context = browser.new_context(**settings)
    page = context.new_page()
    page.goto(url)
    page.locator("#question textarea").wait_for()
    prepare(page)
    tall = name not in ("about", "bad-input-phone")
    if tall:
        page.evaluate("scrollTo(0, 0)")
    clip = page.locator("#columns").bounding_box() if tall else None
    taken = page.screenshot(full_page=tall)
    context.close()
    image = Image.open(io.BytesIO(taken)).convert("RGB")
    if clip:  # down to the end of form and answer
        image = image.crop((0, 0, image.width, round(clip["y"] + clip["height"]) + 24))
    image.quantize(NUM_COLOURS, dither=Image.Dither.NONE).save(file, optimize=True)
    print(f"{file}  {file.stat().st_size / 1024:.0f} KiB")


@contextlib.contextmanager
def served(url: str | None) -> Iterator[str]:
    if url:
        yield url
        return
    sys.path.insert(0, str(ROOT / "tests"))
    from serve.page_server import serving
    from serve.slow_service import SlowService

    with serving(SlowService(word_s=0.1)) as own:
        yield own


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--url", help="a server that runs already")
    parser.add_argument("--out", type=Path, default=ROOT / "docs/serve")
    options = parser.parse_args()
    found = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    options.out.mkdir(parents=True, exist_ok=True)
    with served(options.url) as url, sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=found, args=FLAGS)
        for name in PICTURES:
            picture(browser, url, name, options.out / f"{name}.png")
        browser.close()


if __name__ == "__main__":
    main()
