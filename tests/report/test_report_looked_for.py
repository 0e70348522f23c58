"""Where runs and records are looked for, and what is told of those that cannot be read."""

import json
from pathlib import Path
from typing import Any

import pytest
from run_folders import MakeRun, record

from cifar_jax import report
from cifar_jax.errors import UserError


def test_runs_are_looked_for_in_runs(
    make_run: MakeRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where there may be none so far."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs").mkdir()
    assert report.read_runs() == []
    make_run("basic")
    assert [run.experiment for run in report.read_runs()] == ["basic"]


def test_records_and_folders_may_be_named_together(make_run: MakeRun, tmp_path: Path) -> None:
    paths = [record(make_run(name), tmp_path / "results") for name in ("basic", "net")]
    runs = report.read_runs([*paths, make_run("net", 1)])
    assert [(run.experiment, run.seed) for run in runs] == [("basic", 0), ("net", 0), ("net", 1)]


@pytest.mark.parametrize("name", ["result.json", "metrics.jsonl", "env.json"])
def test_what_the_system_does_not_let_read_is_named(make_run: MakeRun, name: str) -> None:
    path = make_run("basic")
    (path / name).unlink()
    (path / name).mkdir()
    with pytest.raises(UserError, match=f"{path / name} cannot be read: .*Is a directory"):
        report.read_runs([path])


@pytest.mark.parametrize("starts", [None, [], {}, "none"])
def test_a_record_that_does_not_tell_where_it_ran_is_incomplete(
    make_run: MakeRun, tmp_path: Path, starts: Any
) -> None:
    path = record(make_run("basic"), tmp_path / "results")
    path.write_text(json.dumps(json.loads(path.read_text()) | {"starts": starts}))
    with pytest.raises(UserError, match=f"{path} is incomplete: it has no 'starts'"):
        report.read_runs([path])


def test_metrics_of_a_record_that_are_damaged_are_named(make_run: MakeRun, tmp_path: Path) -> None:
    path = record(make_run("basic"), tmp_path / "results")
    metrics = path.with_name("basic-seed0.metrics.jsonl")
    metrics.write_text('{"epoch": 1, "st')
    with pytest.raises(UserError, match=f"{metrics} cannot be read"):
        report.read_runs([path])
