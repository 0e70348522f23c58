"""Test that the README agrees with the records, the timings, the Makefile and linked files."""

import json
import re
import subprocess
from pathlib import Path

import pytest

from benchmarks import bench
from cifar_jax import models, report

ROOT = Path(__file__).parent.parent


def test_the_tables_are_up_to_date() -> None:
    assert report.readme_is_current(ROOT / "README.md", ROOT / "results"), "run `make readme`"


def test_records_have_the_current_parameter_counts() -> None:
    for run in report.read_runs([ROOT / "results"]):
        assert run.result
        params = models.variable_shapes(models.create(run.result.model))["params"]
        assert run.result.parameters == models.count_parameters(params), run.path.name


def test_the_verdicts_in_docs_paper_are_up_to_date() -> None:
    assert report.page_is_current(ROOT / "docs/paper.md", ROOT / "results"), "run `make readme`"


def test_the_timings_are_from_the_benchmark() -> None:
    record = json.loads((ROOT / "benchmarks/zen4.json").read_text())
    text = (ROOT / "docs/performance.md").read_text()
    assert "\n".join([bench.HEADER, *map(bench.table_line, record["rows"])]) in text
    for line in bench.summary(record["rows"]):
        assert f"- {line}\n" in text


@pytest.mark.parametrize("page", ["README.md", "CONTRIBUTING.md"])
def test_make_targets_exist(page: str) -> None:
    named = set(re.findall(r"\bmake ([a-z][\w-]*)", (ROOT / page).read_text()))
    assert named
    for target in named:
        subprocess.run(["make", "--dry-run", target], cwd=ROOT, check=True, capture_output=True)


def commands(*arguments: str) -> str:
    """Return the commands that `make` would run with these arguments."""
    command = ["make", "--dry-run", *arguments]
    return subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout


def test_make_installs_each_extra_once(tmp_path: Path) -> None:
    (tmp_path / ".installed").touch()
    assert "pip install" not in commands(f"VENV={tmp_path}", "EXTRA=", "setup")
    assert "-e '.[tpu]'" in commands(f"VENV={tmp_path}", "EXTRA=tpu", "setup")


def test_make_installs_developer_tools_only_for_developers(tmp_path: Path) -> None:
    assert "-e '.'" in commands(f"VENV={tmp_path}", "EXTRA=", "demo")
    assert "-e '.[test]'" in commands(f"VENV={tmp_path}", "EXTRA=", "test")
    assert "-e '.[lint,serve,tune]'" in commands(f"VENV={tmp_path}", "EXTRA=", "lint")


@pytest.mark.parametrize("page", [Path("README.md"), *Path(ROOT, "docs").glob("*.md")], ids=str)
def test_links_lead_to_files(page: Path) -> None:
    path = ROOT / page
    for target in re.findall(r"\]\((?!https?:|#)([^)#]+)", path.read_text()):
        # The build of the site writes the page results.md from the README.
        if target != "results.md":
            assert (path.parent / target).exists(), f"{page} links to {target}"
