import json
from pathlib import Path

import pytest
from run_folders import MakeRun, change

from cifar_jax import cli
from cifar_jax.errors import UserError
from cifar_jax.report.listing import State, list_runs
from cifar_jax.runs.lock import lock


def test_each_run_has_its_state(make_run: MakeRun, tmp_path: Path, capsys) -> None:
    make_run("basic", test=62.0, epochs=12)  # Stopped early.
    running = make_run("net", 1, test=None, done=3, overrides={"epochs": 9})
    make_run("net", 2, test=None, done=2, overrides={"epochs": 9})
    make_run("resnet10", 0, test=None)
    (make_run("resnet10", 1) / "result.json").write_text("{")
    change(make_run("net-bn-gap", test=None) / "model.json", imported_from="net.pt")
    with lock(running):
        entries = {Path(entry.path).name: entry for entry in list_runs(tmp_path / "runs/net")}
        every = list_runs(tmp_path / "runs")
    assert entries["seed1"].state == State.RUNNING
    assert (entries["seed1"].epoch, entries["seed1"].epochs) == (3, 9)
    assert entries["seed1"].minutes_left == pytest.approx(1.0)  # 6 epochs left, 10 s each.
    assert entries["seed2"].state == State.STOPPED
    assert (every[0].epoch, every[0].epochs) == (12, 20)
    states = {entry.path.removeprefix(f"{tmp_path}/runs/"): entry.state for entry in every}
    assert states == {
        "basic/seed0": State.FINISHED,
        "net/seed1": State.RUNNING,
        "net/seed2": State.STOPPED,
        "net-bn-gap/seed0": State.IMPORTED,
        "resnet10/seed0": State.STOPPED,
        "resnet10/seed1": State.DAMAGED,
    }
    assert cli.run(["runs", str(tmp_path / "runs"), "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert [row["test_accuracy"] for row in rows if row["state"] == "finished"] == [62.0]
    assert cli.run(["runs", str(tmp_path / "runs")]) == 0
    out = capsys.readouterr().out
    assert "3/9" in out
    assert "result.json is damaged" in out


def test_a_folder_without_runs(tmp_path: Path, capsys) -> None:
    assert cli.run(["runs", str(tmp_path)]) == 0
    assert "contains no runs" in capsys.readouterr().out
    with pytest.raises(UserError, match="is not a folder"):
        list_runs(tmp_path / "missing")
