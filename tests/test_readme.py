"""The README keeps to what is recorded and to what make knows."""

import json
import re
import subprocess
from pathlib import Path

import pytest

from benchmarks import bench
from cifar_jax import models, report
from cifar_jax.report.table import row

ROOT = Path(__file__).parent.parent


def test_the_table_is_made_of_the_records() -> None:
    assert report.readme_is_current(ROOT / "README.md", ROOT / "results"), "run `make readme`"


def test_records_are_of_the_networks_of_today() -> None:
    """Their settings alone do not tell: a network may change behind its name."""
    for path in (ROOT / "results").glob("*-seed*.json"):
        record = json.loads(path.read_text())
        params = models.variable_shapes(models.create(record["model"]))["params"]
        assert record["parameters"] == models.count_parameters(params), path.name


def test_the_papers_page_tells_what_is_recorded() -> None:
    text = (ROOT / "docs/paper.md").read_text()
    for group in report.collect(report.read_runs([ROOT / "results"])):
        if group.paper and group.results:
            r, seeds = row(group), ", ".join(f"{value:.2f}" for value in group.measured())
            line = f"| {r.experiment} | {r.paper} | {seeds} | {r.measured} | {r.difference} |"
            assert line in text, "update the table and the text under “What was measured”"


def test_the_timings_are_those_of_the_bench() -> None:
    record = json.loads((ROOT / "benchmarks/results.json").read_text())
    table = [bench.HEADER, *map(bench.table_line, record["rows"])]
    assert "\n".join(table) in (ROOT / "README.md").read_text()


@pytest.mark.parametrize("page", ["README.md", "CONTRIBUTING.md"])
def test_make_knows_the_targets_that_are_named(page: str) -> None:
    named = set(re.findall(r"\bmake ([a-z][\w-]*)", (ROOT / page).read_text()))
    assert named
    for target in named:
        subprocess.run(["make", "--dry-run", target], cwd=ROOT, check=True, capture_output=True)


def commands(*arguments: str) -> str:
    """What make would do."""
    command = ["make", "--dry-run", *arguments]
    return subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout


def test_what_is_installed_is_not_installed_again_but_another_extra_is(tmp_path: Path) -> None:
    """Each by a stamp of its own."""
    (tmp_path / ".installed").touch()
    assert "pip install" not in commands(f"VENV={tmp_path}", "EXTRA=", "setup")
    installing = commands(f"VENV={tmp_path}", "EXTRA=tpu", "setup")
    assert "pip install" in installing
    assert "-e '.[tpu]'" in installing


def test_a_user_gets_no_tools_of_developers(tmp_path: Path) -> None:
    assert "-e '.'" in commands(f"VENV={tmp_path}", "EXTRA=", "demo")
    assert "-e '.[test]'" in commands(f"VENV={tmp_path}", "EXTRA=", "test")
    assert "-e '.[lint]'" in commands(f"VENV={tmp_path}", "EXTRA=", "lint")


@pytest.mark.parametrize("page", [Path("README.md"), *Path(ROOT, "docs").glob("*.md")], ids=str)
def test_links_lead_somewhere(page: Path) -> None:
    path = ROOT / page
    for target in re.findall(r"\]\((?!https?:|#)([^)#]+)", path.read_text()):
        assert (path.parent / target).exists(), f"{page} links to {target}"
