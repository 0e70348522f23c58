"""Test the documentation site in a browser."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import screen

pytestmark = pytest.mark.browser

ROOT = Path(__file__).parents[2]
Open = Callable[..., Any]


@pytest.fixture(scope="session")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of the documentation site, built as by `make docs`."""
    pytest.importorskip("sphinx")
    folder = tmp_path_factory.mktemp("docs") / "site"
    build = [sys.executable, "-m", "sphinx", "-q", "-W", "--keep-going", "docs", str(folder)]
    subprocess.run(build, cwd=ROOT, check=True)
    return folder


@pytest.mark.parametrize("name", ["index.html", "api.html"])
@pytest.mark.parametrize(("width", "scheme"), [(400, "light"), (1200, "light"), (1200, "dark")])
def test_pages_fit_the_screen(
    open_page: Open, site: Path, name: str, width: int, scheme: str
) -> None:
    page = open_page(site / name, width, scheme)
    assert screen.overflow(page) <= 0
    assert screen.scheme(page) == scheme
    assert all(page.evaluate("[...document.images].map((image) => image.naturalWidth > 0)"))


@pytest.mark.parametrize("width", [400, 1200])
def test_the_search_finds_a_page(open_page: Open, site: Path, width: int) -> None:
    page = open_page(site / "index.html", width)
    if width == 400:
        page.locator(".mobile-header .nav-overlay-icon").click()  # The menu holds the search field.
    page.get_by_role("textbox", name="Search").fill("freeze")
    page.keyboard.press("Enter")
    page.locator("#search-results a", has_text="Fine-tun").first.wait_for(timeout=10_000)
    assert screen.overflow(page) <= 0
