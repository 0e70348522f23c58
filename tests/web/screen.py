"""Properties of a page on the screen."""

import re
from typing import Any


def overflow(page: Any) -> int:
    """Return the width of the page minus the width of the window, in pixels."""
    return page.evaluate("document.documentElement.scrollWidth - innerWidth")


def scheme(page: Any) -> str:
    """Return "light" or "dark", the brightness of the page's background."""
    background = page.evaluate("getComputedStyle(document.body).backgroundColor")
    red, green, blue = map(int, re.findall(r"\d+", background)[:3])
    return "light" if red + green + blue > 384 else "dark"
