import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from run_folders import MakeRun, change, record, write_outputs, write_rows

from cifar_jax import cli
from cifar_jax.errors import UserError
from cifar_jax.runs import records
from cifar_jax.runs.reading import read_runs
from cifar_jax.runs.schemas import dump


def test_a_record_holds_the_result_metrics_and_outputs(make_run: MakeRun, tmp_path: Path) -> None:
    folder = make_run("net-attention", 3, test=62.4, sessions=({}, {"xla_flags": "--xla_other"}))
    path = record(folder, tmp_path / "results")
    assert path.name == "net-attention-seed3.json"
    expected = json.loads((folder / "result.json").read_text())
    for session in expected["sessions"]:
        assert session.pop("command")
    assert json.loads(path.read_text()) == expected

    (run,), (trained,) = read_runs([path]), read_runs([folder])
    assert run.rows == trained.rows
    assert (run.epochs, run.seed, run.changes) == (50, 3, {})
    assert [session.xla_flags for session in run.sessions] == ["", "--xla_other"]
    recorded, original = np.load(str(run.outputs)), np.load(folder / "outputs.npz")
    assert recorded["test_logits"].dtype == np.float32
    for name in ("test_logits", "test_labels"):
        np.testing.assert_array_equal(recorded[name], original[name])
    assert run.card is not None
    assert run.card == trained.card
    assert read_runs([path.parent]) == [run]  # The model card is not read as a record.


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"test": None, "done": 20}, "is not finished: resume it"),
        ({"overrides": {"epochs": 2}}, r"experiment basic \(epochs is 2, not 20\)"),
        ({"sessions": ({"git_commit": None},)}, "outside a git checkout"),
        ({"sessions": ()}, "outside a git checkout"),
        ({"sessions": ({"git_commit": "89a-dirty"}, {})}, r"uncommitted code \(89a-dirty\)"),
        ({"official": False}, "not trained on the official CIFAR-10 images"),
    ],
)
def test_a_run_that_cannot_be_reproduced_is_refused(
    make_run: MakeRun, tmp_path: Path, options: dict[str, Any], message: str
) -> None:
    folder = make_run("basic", **options)
    with pytest.raises(UserError, match=message) as error:
        record(folder, tmp_path / "results")
    assert str(folder) in str(error.value)
    assert not (tmp_path / "results").exists()


def test_a_run_of_an_unknown_experiment_is_refused(make_run: MakeRun, tmp_path: Path) -> None:
    folder = make_run("basic")
    change(folder / "result.json", experiment="mine")
    with pytest.raises(UserError, match="'mine' is not an experiment of this package"):
        record(folder, tmp_path / "results")


@pytest.mark.parametrize("lost", [1, 8, 20, None])
def test_a_run_without_the_metrics_of_every_epoch_is_refused(
    make_run: MakeRun, tmp_path: Path, lost: int | None
) -> None:
    folder = make_run("basic")
    rows = [dump(row) for row in read_runs([folder])[0].rows]
    rows += [] if lost else [rows[-1] | {"epoch": 21}]
    write_rows(folder / "metrics.jsonl", [row for row in rows if row["epoch"] != lost])
    with pytest.raises(UserError, match="not have one line for each of its 20 epochs"):
        record(folder, tmp_path / "results")


@pytest.mark.parametrize("accuracy", [61.99, 62.01, 0.0])
def test_outputs_that_give_another_accuracy_are_refused(
    make_run: MakeRun, tmp_path: Path, accuracy: float
) -> None:
    folder = make_run("basic", test=62.0)
    write_outputs(folder / "outputs.npz", accuracy)
    message = rf"accuracy is {accuracy:.2f} % in outputs\.npz and 62\.00 % in result"
    with pytest.raises(UserError, match=message):
        record(folder, tmp_path / "results")
    (folder / "outputs.npz").unlink()
    with pytest.raises(UserError, match=r"has no outputs\.npz"):
        record(folder, tmp_path / "results")


def test_incomplete_records_are_refused(make_run: MakeRun, tmp_path: Path) -> None:
    path = record(make_run("basic"), tmp_path / "results")
    metrics = path.with_suffix(".metrics.jsonl")
    metrics.write_text('{"epoch": 1, "st')
    with pytest.raises(UserError, match=f"{metrics} is damaged: 1 line cannot be read"):
        read_runs([path])
    metrics.unlink()
    with pytest.raises(UserError, match=f"{metrics} is missing. Restore it"):
        read_runs([tmp_path / "results"])


def test_two_runs_of_one_seed_are_refused(make_run: MakeRun, tmp_path: Path) -> None:
    runs = read_runs([make_run("basic"), make_run("basic", folder="again")])
    with pytest.raises(UserError, match="would have the same record"):
        records.record(runs, tmp_path / "results")


def test_records_without_outputs_can_be_read_everywhere(
    make_run: MakeRun, tmp_path: Path, capsys: pytest.CaptureFixture[str], no_figures: None
) -> None:
    results = tmp_path / "results"
    runs = [str(make_run(name, seed)) for name in ("basic", "net") for seed in (0, 1)]
    words = ["report", "--record", str(results), *runs]
    assert cli.run(words) == 0
    assert cli.run([*words, "--no-outputs"]) == 0
    assert not list(results.glob("*.npz"))
    assert cli.run(["compare", "basic", "net", "--runs", str(results)]) == 0
    assert cli.run(["claims", str(results)]) == 0
    assert cli.run(["report", str(results), "--output", str(tmp_path / "page")]) == 0
    assert "60.00" in (tmp_path / "page/report.html").read_text()
    assert cli.run(["report", *runs, "--no-outputs"]) == 2
    assert "--no-outputs has no effect" in capsys.readouterr().err


@pytest.mark.parametrize("damage", ["cut", "flipped", "npy", "fewer labels", "no images"])
def test_damaged_outputs_are_named(tmp_path: Path, damage: str) -> None:
    path = tmp_path / "outputs.npz"
    images = 0 if damage == "no images" else 9
    labels = np.arange(8 if damage == "fewer labels" else images)
    np.savez_compressed(path, test_logits=np.ones((images, 10)), test_labels=labels)
    whole = path.read_bytes()
    if damage == "npy":
        path.write_bytes(b"\x93NUMPY")
    elif damage in ("cut", "flipped"):
        flipped = whole[:80] + bytes([whole[80] ^ 255]) + whole[81:]
        path.write_bytes(whole[:100] if damage == "cut" else flipped)
    with pytest.raises(UserError, match=r"outputs\.npz is damaged"):
        records.read_outputs(path)


def test_the_command_records_all_runs_or_none(
    make_run: MakeRun, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    results = tmp_path / "results"
    good, bad = make_run("net"), make_run("basic", overrides={"epochs": 2})
    assert cli.run(["report", "--record", str(results), str(good), str(bad)]) == 2
    assert capsys.readouterr().err.count("\n") == 1
    assert not results.exists()
    assert cli.run(["report", "--record", str(results), str(good)]) == 0
    assert capsys.readouterr().out == f"recorded {results / 'net-seed0.json'}\n"


def test_conflicting_options_are_refused(readme: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["report", "--record", "here"]) == 2
    assert "no run folder is given" in capsys.readouterr().err
    for words in (["--record", "here", "run"], ["--output", "here"], ["run"]):
        assert cli.run(["report", "--readme", str(readme), *words]) == 2
        assert "--readme" in capsys.readouterr().err
