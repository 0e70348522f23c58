"""Fixtures for tests in a browser. The tests are skipped without Chromium or Playwright."""

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

_NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")

Open = Callable[..., Any]
"""Function `open_page(path_or_url, width=1200, scheme="light", allowed=None)`.

The function returns a browser tab. The page may write messages that contain the text `allowed` to
the browser's console, but no other messages.
"""


@pytest.fixture(scope="session")
def browser() -> Iterator[Any]:
    """Headless Chromium, controlled by Playwright."""
    sync_api = pytest.importorskip("playwright.sync_api")
    chromium = next(filter(None, map(shutil.which, _NAMES)), None)
    if chromium is None:
        pytest.skip("Chromium is not installed")
    with sync_api.sync_playwright() as playwright:
        # Chromium's sandbox does not work in containers. It is not needed for local pages.
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def open_page(browser: Any) -> Iterator[Open]:
    """Function that opens a page. The test fails if the page writes to the browser's console."""
    contexts, errors = [], []

    def open_page(
        page: Path | str, width: int = 1200, scheme: str = "light", allowed: str | None = None
    ) -> Any:
        def note(message: Any) -> None:
            if allowed is None or allowed not in message.text:
                errors.append(message.text)

        size = {"width": width, "height": 900}
        contexts.append(browser.new_context(viewport=size, color_scheme=scheme))
        tab = contexts[-1].new_page()
        tab.on("console", note)
        tab.on("pageerror", lambda error: errors.append(str(error)))
        tab.on("requestfailed", lambda request: errors.append(request.url))
        tab.goto(page if isinstance(page, str) else page.as_uri())
        return tab

    yield open_page
    for context in contexts:
        context.close()
    assert errors == []
