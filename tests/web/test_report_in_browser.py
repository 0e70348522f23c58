"""Test report.html in a browser, with the records in results/."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import screen

from cifar_jax.report import html
from cifar_jax.report.groups import collect
from cifar_jax.runs.reading import read_runs

pytestmark = pytest.mark.browser

RESULTS = Path(__file__).parents[2] / "results"
Open = Callable[..., Any]


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Report about three experiments with three seeds each. Only `basic` has validation images."""
    names = ("basic", "fast-basic", "speedrun-94")
    paths = sorted(path for name in names for path in RESULTS.glob(f"{name}-seed?.json"))
    page = tmp_path_factory.mktemp("report") / "report.html"
    page.write_text(html.page(collect(read_runs(paths)), pictures=False), encoding="utf-8")
    return page


@pytest.mark.parametrize("width", [400, 1200])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_page_fits_the_screen(open_page: Open, report: Path, width: int, scheme: str) -> None:
    page = open_page(report, width, scheme)
    assert screen.overflow(page) <= 0
    page.evaluate("document.querySelectorAll('details').forEach((part) => (part.open = true))")
    assert screen.overflow(page) <= 0
    assert screen.scheme(page) == scheme


def test_headings_sort_the_table(open_page: Open, report: Path) -> None:
    page = open_page(report)

    def column(number: int) -> list[str]:
        rows = page.locator("main > section table").first.locator("tbody tr")
        return [row.locator("th, td").nth(number).inner_text() for row in rows.all()]

    tests = {text: float(text.split()[0]) for text in column(2)}
    page.get_by_role("button", name="test", exact=True).first.click()
    assert column(2) == sorted(tests, key=tests.__getitem__, reverse=True)
    page.get_by_role("button", name="test", exact=True).first.click()
    assert column(2) == sorted(tests, key=tests.__getitem__)
    page.get_by_role("button", name="validation", exact=True).first.click()
    assert column(1)[1:] == ["–", "–"]  # Runs without validation images are last.


def test_pointing_at_a_curve_shows_its_values(open_page: Open, report: Path) -> None:
    page = open_page(report)
    (rows,) = (run.rows for run in read_runs([RESULTS / "basic-seed0.json"]))
    runs = read_runs([RESULTS / f"basic-seed{seed}.json" for seed in range(3)])
    at_5 = [run.rows[4].validation_accuracy or 0 for run in runs]
    chart = page.locator("figure.chart.wide").first
    plot, value = chart.locator("svg:not(.key)"), chart.locator(".legend b").first
    at_end = value.inner_text()
    box = plot.bounding_box()
    x = box["x"] + box["width"] * 4 / (len(rows) - 1)
    page.mouse.move(x, box["y"] + 50)
    assert "epoch 5" in chart.locator("figcaption").inner_text()
    expected = f"{sum(at_5) / 3:.2f} ({min(at_5):.2f}–{max(at_5):.2f})"
    assert value.inner_text() == expected
    page.mouse.move(0, 0)
    assert value.inner_text() == at_end

    # Drag from epoch 5 to the end.
    page.mouse.move(x, box["y"] + 50)
    page.mouse.down()
    page.mouse.move(box["x"] + box["width"], box["y"] + 60)
    page.mouse.up()
    left, _, width, _ = map(float, plot.get_attribute("viewBox").split())
    assert (left, width) == (5, len(rows) - 5)
    chart.get_by_role("button", name="All epochs").click()
    assert plot.get_attribute("viewBox").split()[0] == "1"
    plot.focus()
    page.keyboard.press("ArrowRight")
    assert "epoch 1" in chart.locator("figcaption").inner_text()


def test_pointing_at_a_cell_shows_the_number_of_images(open_page: Open, report: Path) -> None:
    page = open_page(report)
    page.locator("a[href='#run-1']").click()
    matrix = page.locator("#run-1 table.matrix")
    cell = matrix.locator("tbody tr").nth(3).locator("td").nth(5)
    cell.hover()
    readout = page.locator("#run-1 figure:has(.matrix) output").inner_text()
    assert re.fullmatch(r"cat → dog: [\d,]+ of 3,000 \([\d.]+ %\)", readout)
    assert int(cell.get_attribute("data-n")) == int(re.findall(r"[\d,]+", readout)[0])
    page.locator("#run-1 .reliability .hit").last.hover()
    assert "answers" in page.locator("#run-1 .reliability output").inner_text()


def test_tabs_choose_the_metric_and_the_pairs_are_filtered(open_page: Open, report: Path) -> None:
    page = open_page(report)
    page.get_by_role("button", name="Training loss").click()
    shown = page.locator("figure.wide:visible")
    assert shown.count() == 1
    assert "Training loss" in shown.inner_text()
    rows = page.locator("#differences tbody tr:visible")
    assert rows.count() == 3
    page.locator("select").select_option("1")
    assert rows.count() == 2
