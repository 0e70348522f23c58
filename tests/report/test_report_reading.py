import json
from pathlib import Path
from typing import Any

import pytest
from run_folders import MakeRun

from cifar_jax import report
from cifar_jax.errors import UserError


def test_runs_are_found_at_any_depth_and_once(make_run: MakeRun, tmp_path: Path) -> None:
    a = make_run("basic", 0)
    b = make_run("net", 0, folder="gpu/monday/net")
    (a / "checkpoints").mkdir()
    (a / "checkpoints" / "config.json").write_text("orbax's own")
    runs = report.read_runs([tmp_path / "runs", a])
    assert {run.path for run in runs} == {a, b}


def test_what_was_imported_is_no_run(make_run: MakeRun, tmp_path: Path) -> None:
    trained, imported = make_run("basic", 0), make_run("net", 0, test=None)
    (trained / "model.json").write_text("{}")
    (imported / "model.json").write_text('{"imported_from": "net.pt"}')
    assert [run.path for run in report.read_runs([tmp_path / "runs"])] == [trained]
    with pytest.raises(UserError, match="nothing was trained in a folder of it"):
        report.read_runs([imported])


def test_without_runs_there_is_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert report.read_runs() == []


def start(**told: Any) -> str:
    """An env.json of one start."""
    return json.dumps([{"git_commit": None, "device": {}, "machine": {}} | told])


def epoch(**told: Any) -> str:
    """A line of metrics.jsonl."""
    return json.dumps({"epoch": 1, "step": 1, "train_loss": 1.0, "train_accuracy": 1.0} | told)


@pytest.mark.parametrize(
    ("name", "content", "told"),
    [
        ("result.json", "{", "result.json cannot be read"),
        ("result.json", '{"experiment": "basic"}', "result.json is incomplete: it has no 'model'"),
        ("result.json", None, "'test_accuracy' that makes no sense: 'high'"),
        ("config.json", "[]", r"config\.json is damaged"),
        ("metrics.jsonl", '{"epoch": 1}\n', "metrics.jsonl is incomplete"),
        ("env.json", "{}", "env.json is not that of a run"),
        ("env.json", "[{}]", "env.json is incomplete: it has no 'git_commit'"),
        ("env.json", start(machine={"features": None}), "'features' that makes no sense: None"),
        ("env.json", start(versions=[]), r"'versions' that makes no sense: \[\]"),
        ("env.json", "[" * 100_000, "env.json cannot be read"),
        ("model.json", '{"data": {"sha256": 5}}', "'sha256' that makes no sense: 5"),
        ("metrics.jsonl", epoch(halvings="x"), "'halvings' that makes no sense: 'x'"),
    ],
)
def test_damaged_runs_are_named(
    make_run: MakeRun, name: str, content: str | None, told: str
) -> None:
    path = make_run("basic")
    if content is None:
        content = json.dumps(json.loads((path / name).read_text()) | {"test_accuracy": "high"})
    (path / name).write_text(content)
    with pytest.raises(UserError, match=told) as error:
        report.read_runs([path])
    assert str(path / name) in str(error.value)
    assert "\n" not in str(error.value)


def test_a_path_without_a_run_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no run"):
        report.read_runs([tmp_path / "absent"])
    with pytest.raises(UserError, match="no run in"):
        report.read_runs([tmp_path])
