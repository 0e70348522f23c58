"""Runs that commit 97d1dfc made open in every later version: finished, killed, and stopped.

Of `basic` on 320 digits, three epochs of ten steps, with a plateau that reduces early. Killed by
SIGKILL in the second epoch, after its first was saved; stopped by SIGTERM after six steps of it.
And one of `net-bn-gap` by Adam, with BatchNorm and dropout, killed in its second epoch: its weights
and moments are powers of four and constants, so that the archive is small, and the same commit went
on from there to what is beside it.
"""

import json
import shutil
import tarfile
from pathlib import Path

import pytest
from short_runs import Spy, files, rows_of, train

from cifar_jax.config import Config, Data, Model, Optimizer, Schedule, Train
from cifar_jax.errors import UserError
from cifar_jax.inference.evaluate import evaluate
from cifar_jax.inference.load import load
from cifar_jax.runs.checkpoints import Checkpoints
from cifar_jax.runs.reading import read_runs

MADE = Path(__file__).parents[1] / "fixtures" / "runs_97d1dfc.tar.xz"
CONFIG = Config(
    model=Model(name="basic"),
    epochs=3,
    batch_size=32,
    optimizer=Optimizer(name="sgd", lr=0.05, momentum=0.9),
    schedule=Schedule(name="plateau", patience=0, threshold=0.9),
    data=Data(dataset="digits", train_images=320),
    train=Train(devices=1),
)


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    with tarfile.open(MADE) as archive:
        archive.extractall(tmp_path, filter="data")
    return tmp_path / "runs"


def test_a_finished_run_is_finished_and_says_the_same(runs: Path) -> None:
    folder = runs / "finished"
    result = json.loads((folder / "result.json").read_text())
    assert train(CONFIG, folder, experiment="old") == result
    found = evaluate(folder)
    assert (found["step"], found["epoch"]) == (30, 3)
    assert found["accuracy"] == pytest.approx(result["test_accuracy"], abs=0.3)
    assert found["loss"] == pytest.approx(result["test_loss"], rel=1e-4)
    assert load(folder).classes == tuple("0123456789")


@pytest.mark.parametrize(("name", "step", "epochs"), [("killed", 10, 2), ("stopped", 16, 2)])
def test_an_unfinished_run_goes_on_where_it_was(
    runs: Path, name: str, step: int, epochs: int
) -> None:
    """To what the uninterrupted run has come to, but for another processor's rounding."""
    folder, display = runs / name, Spy()
    before = rows_of(folder)
    result = train(CONFIG, folder, display, experiment="old")
    assert f"goes on from step {step}" in display.lines[0]
    assert "not bit for bit" in display.lines[1]
    assert "commit 97d1dfc" in display.lines[1]
    assert sum(line.startswith("epoch ") for line in display.lines) == epochs
    rows, expected = rows_of(folder), rows_of(runs / "finished")
    assert rows[: len(before)] == before
    for row, uninterrupted in zip(rows, expected, strict=True):
        assert row["learning_rate"] == uninterrupted["learning_rate"]
        assert row["train_loss"] == pytest.approx(uninterrupted["train_loss"], rel=1e-3)
    assert next(start["git_commit"][:7] for start in result["starts"]) == "97d1dfc"
    assert len(result["starts"]) == 2
    assert (folder / "model.json").exists()


def test_statistics_and_moments_go_on_too(runs: Path) -> None:
    config = CONFIG.model_copy(
        update={
            "model": Model(name="net-bn-gap"),
            "optimizer": Optimizer(name="adam", lr=0.01, weight_decay=0.001),
        }
    )
    display = Spy()
    train(config, runs / "killed_bn", display, experiment="old-bn")
    assert "goes on from step 10" in display.lines[0]
    text = (runs / "killed_bn_uninterrupted.jsonl").read_text()
    expected = [json.loads(line) for line in text.splitlines()]
    for row, uninterrupted in zip(rows_of(runs / "killed_bn"), expected, strict=True):
        assert row["learning_rate"] == uninterrupted["learning_rate"]
        assert row["train_loss"] == pytest.approx(uninterrupted["train_loss"], rel=1e-3)
        assert row["validation_loss"] == pytest.approx(uninterrupted["validation_loss"], rel=1e-2)


def test_they_are_held_to_their_images_where_they_tell_them(runs: Path) -> None:
    """Once they are finished."""
    folder = runs / "finished"
    path = folder / "result.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"data_sha256": "0" * 64}))
    before = files(folder)
    with pytest.raises(UserError, match="was trained on other images of digits"):
        evaluate(folder)
    longer = CONFIG.model_copy(update={"epochs": 4})
    with pytest.raises(UserError, match="was begun with images of digits that are others here"):
        train(longer, folder, experiment="old", extend=True)
    assert files(folder) == before


def test_what_they_kept_can_be_read_without_the_optimizer(runs: Path) -> None:
    with Checkpoints(runs / "stopped/checkpoints") as checkpoints:
        # None of them says that it was made within an epoch.
        assert [(meta.step, meta.whole) for meta in checkpoints.all()] == [(10, True), (16, True)]
        assert checkpoints.best() == 10
        weights = checkpoints.weights(16)
    assert weights["params"]["fc3"]["kernel"].shape == (84, 10)


def test_a_damaged_one_falls_back_too(runs: Path) -> None:
    folder, display = runs / "stopped", Spy()
    shutil.rmtree(folder / "checkpoints/16/default/d")
    train(CONFIG, folder, display, experiment="old")
    assert "goes on from step 10" in display.lines[0]
    assert (folder / "checkpoints/damaged-16").is_dir()


def test_they_are_read_for_reports(runs: Path) -> None:
    found = {run.path.name: run for run in read_runs([runs])}
    assert {name: len(run.rows) for name, run in found.items()} == {
        **{"finished": 3, "killed": 1, "stopped": 1, "killed_bn": 2},
    }
    assert found["finished"].result


def test_another_config_is_refused_by_its_fields(runs: Path) -> None:
    other = CONFIG.model_copy(update={"batch_size": 16})
    with pytest.raises(UserError, match="batch_size: 32 there, 16 here"):
        train(other, runs / "killed", experiment="old")
