"""Whole runs on `digits`: what they leave behind, what is refused, and what options change."""

import hashlib
import io
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from rich.console import Console
from short_runs import (
    EPOCHS,
    STEPS,
    Spy,
    files,
    rows_of,
    rows_of_or_none,
    train,
)

from cifar_jax import catalog
from cifar_jax.config import Config, flatten, override
from cifar_jax.data import tfds_folder
from cifar_jax.errors import UserError
from cifar_jax.inference.evaluate import evaluate
from cifar_jax.training import fit, loop, setup
from cifar_jax.training.display import Display
from cifar_jax.training.fit import Run
from cifar_jax.training.result import params_sha256
from cifar_jax.training.step import TrainState

Make = Callable[..., Config]


def test_result_holds_what_scripts_rely_on(finished: Path, config: Config) -> None:
    result = json.loads((finished / "result.json").read_text())
    rows = [json.loads(line) for line in (finished / "metrics.jsonl").read_text().splitlines()]
    last = rows[-1]
    expected = {
        **{"experiment": "test", "model": "basic", "dataset": "digits", "seed": 0},
        **{"parameters": 62_006, "epochs": EPOCHS, "steps": EPOCHS * STEPS},
        **{"overrides": {"optimizer.lr": 1e-3}, "paper_accuracy": None},
        **{key: last[key] for key in ("train_loss", "train_accuracy")},
        **{key: last[key] for key in ("validation_loss", "validation_accuracy")},
    }
    assert expected.items() <= result.items()
    assert {
        *("test_loss", "test_accuracy", "best_validation_epoch", "best_validation_accuracy"),
        *("wall_seconds", "images_per_second", "params_sha256", "git_commit", "versions"),
        *("device", "machine", "compile_seconds", "data_sha256", "data_content"),
        *("data_official", "settings", "starts", "halvings"),
        "best_validation_test_accuracy",
    } == result.keys() - expected.keys()
    best = max(rows, key=lambda row: row["validation_accuracy"])
    assert result["best_validation_accuracy"] == best["validation_accuracy"]
    at = rows[result["best_validation_epoch"] - 1]
    assert at["validation_accuracy"] == best["validation_accuracy"]
    assert 0 < result["compile_seconds"] < result["wall_seconds"]
    assert result["device"] == {"platform": "cpu", "kind": "cpu", "count": 1}
    assert len(result["params_sha256"]) == 64


def test_basic_learns_the_digits(finished: Path) -> None:
    rows = rows_of(finished)
    assert rows[-1]["validation_accuracy"] > 80
    assert rows[-1]["train_loss"] < rows[0]["train_loss"] / 2
    result = json.loads((finished / "result.json").read_text())
    assert result["test_accuracy"] > 80


def test_the_folder_holds_what_it_promises(finished: Path, config: Config) -> None:
    assert {path.name for path in finished.iterdir()} - {".lock"} == {
        *("config.json", "env.json", "log.txt", "metrics.jsonl", "result.json"),
        *("model.json", "test_logits.npy", "tensorboard", "checkpoints"),
    }
    identity = json.loads((finished / "config.json").read_text())
    assert identity["config"] == flatten(config)
    assert (identity["experiment"], identity["seed"]) == ("test", 0)
    assert identity["overrides"] == {"optimizer.lr": 1e-3}
    assert len(json.loads((finished / "env.json").read_text())) == 1
    assert list((finished / "tensorboard").glob("events.out.tfevents.*"))
    rows = [json.loads(line) for line in (finished / "metrics.jsonl").read_text().splitlines()]
    assert [row["epoch"] for row in rows] == [1, 2, 3]
    assert [row["step"] for row in rows] == [40, 80, 120]
    for row in rows:
        assert row.keys() == {
            *("epoch", "step", "train_loss", "train_accuracy", "validation_loss"),
            *("validation_accuracy", "learning_rate", "images_per_second", "wall_seconds"),
        }
        assert row["images_per_second"] > 0
    assert sorted(row["wall_seconds"] for row in rows) == [row["wall_seconds"] for row in rows]


def test_the_log_has_the_papers_lines(finished: Path) -> None:
    lines = (finished / "log.txt").read_text().splitlines()
    papers = [line for line in lines if line.startswith("[EPOCH")]
    assert [line[: line.index(" LOSS")] for line in papers] == [
        f"[EPOCH {epoch:03d} | IT {step:05d}]" for epoch in (1, 2, 3) for step in (16, 32)
    ]
    losses = [float(line.rpartition(" ")[2]) for line in papers]
    rows = rows_of(finished)
    # Each is the mean since the line before, so the epoch's own mean lies between or below them.
    assert losses[0] > losses[1] > losses[2] > losses[-1]
    assert losses[1] < rows[0]["train_loss"] < losses[0]
    assert sum(line.startswith("epoch ") for line in lines) == EPOCHS


def test_the_plateau_moves_the_learning_rate(finished: Path) -> None:
    """Patience 0 and a threshold of 0.9: every epoch after the first is a bad one, or nearly so."""
    rows = rows_of(finished)
    assert [row["learning_rate"] for row in rows] == pytest.approx(
        plateau_rates([row["validation_loss"] for row in rows], 1e-3, 0.9)
    )
    assert rows[-1]["learning_rate"] < 1e-3


def plateau_rates(losses: list[float], lr: float, threshold: float) -> list[float]:
    """Learning rate of each epoch under the rule with patience 0 and factor 0.5."""
    best, rates = float("inf"), []
    for loss in losses:
        rates.append(lr)
        if loss < best * (1 - threshold):
            best = loss
        else:
            lr /= 2
    return rates


def test_the_hash_is_over_paths_and_little_endian_bytes() -> None:
    params = {"b": {"kernel": jax.numpy.float32([1, 2])}, "a": jax.numpy.float32([[3]])}
    text = b"a\0" + np.array([3], "<f4").tobytes()
    text += b"b/kernel\0" + np.array([1, 2], "<f4").tobytes()
    assert params_sha256(params) == hashlib.sha256(text).hexdigest()


# What is refused


@pytest.mark.parametrize(
    ("setting", "run", "named"),
    [
        (["epochs=5"], {}, "epochs: 3 there, 5 here"),
        ([], {"seed": 1}, "seed: 0 there, 1 here"),
        ([], {"experiment": "other"}, "experiment: 'test' there, 'other' here"),
    ],
)
def test_a_folder_of_another_run_is_refused(
    make_config: Make, config: Config, finished: Path, setting: list, run: dict, named: str
) -> None:
    before = files(finished)
    with pytest.raises(UserError) as error:
        train(override(config, setting), finished, **run)
    assert named in str(error.value)
    assert files(finished) == before


@pytest.mark.parametrize(
    "setting",
    [
        {"batch_size": 257},
        {"data__dataset": "cifar11"},
        {"data__train_images": 1294},
        {"data__validation": 1437},
        {"model__name": "resnet81"},
        {"model__dropout": 0.5},
        {"model__pooling": "average"},
        {"train__devices": 9},
        {"train__devices": 3},
    ],
)
@pytest.mark.parametrize("fresh", [False, True])
def test_bad_settings_write_nothing(
    make_config: Make, finished: Path, tmp_path: Path, setting: dict, fresh: bool
) -> None:
    bad, before = make_config(**setting), files(finished)
    with pytest.raises(UserError):
        train(bad, tmp_path / "deep" / "run", fresh=fresh)
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(UserError):
        train(bad, finished, fresh=fresh)
    assert files(finished) == before


def test_a_folder_in_use_is_refused(config: Config, tmp_path: Path) -> None:
    run = Run("test", config, 0, tmp_path)
    code = (
        "import sys; from pathlib import Path; from cifar_jax.runs import folder as workdir\n"
        f"with workdir.open_workdir(Path({str(tmp_path)!r}), {run.identity()!r}, fresh=False):\n"
        "    print('locked', flush=True); sys.stdin.read()"
    )
    other = subprocess.Popen(
        [sys.executable, "-c", code],
        cwd=Path(fit.__file__).parents[2],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    assert other.stdout is not None
    assert other.stdout.readline() == b"locked\n"
    before = files(tmp_path)
    with pytest.raises(UserError, match="in use by another process"):
        fit.fit(run, Spy())
    assert files(tmp_path) == before
    other.communicate()
    assert other.returncode == 0


def test_a_loss_that_diverges_is_the_users_to_mend(
    config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    init_state = setup.init_state

    def far_off(*args: Any) -> TrainState:
        state = init_state(*args)
        return state._replace(params=jax.tree.map(lambda x: x * 1e12, state.params))

    monkeypatch.setattr(setup, "init_state", far_off)
    with pytest.raises(UserError, match=r"not finite in epoch 1, by step 1: lower optimizer\.lr"):
        train(config, tmp_path)
    assert rows_of_or_none(tmp_path) == []
    assert not (tmp_path / "result.json").exists()


def test_a_last_update_that_ruins_the_weights_is_no_result(
    make_config: Make, tmp_path: Path
) -> None:
    """Without validation the training loss is from before the update."""
    config = make_config(epochs=1, batch_size=256, data__validation=0, optimizer__lr=1e38)
    with pytest.raises(UserError, match="not finite"):
        train(config, tmp_path)
    assert not (tmp_path / "result.json").exists()


# Options of a run


def test_without_validation_the_plateau_follows_the_training_loss(
    make_config: Make, tmp_path: Path
) -> None:
    config = make_config(
        epochs=5,
        data__validation=0,
        schedule__name="plateau",
        schedule__patience=0,
        schedule__threshold=0.2,
    )
    result = train(config, tmp_path)
    rows = rows_of(tmp_path)
    assert all("validation_loss" not in row for row in rows)
    rates = plateau_rates([row["train_loss"] for row in rows], 0.05, 0.2)
    assert [row["learning_rate"] for row in rows] == pytest.approx(rates)
    assert rates[-1] < 0.05
    for key in ("validation_loss", "validation_accuracy", "best_validation_epoch"):
        assert result[key] is None
    assert result["test_accuracy"] > 10
    with pytest.raises(UserError, match="no validation images"):
        evaluate(tmp_path, "validation")
    with pytest.raises(UserError, match="no checkpoint"):
        evaluate(tmp_path, best=True)


def test_the_result_does_not_depend_on_steps_per_call(make_config: Make, tmp_path: Path) -> None:
    """Five of eight steps, with a line after every third."""
    singly, together = (
        make_config(train__steps_per_call=count, train__log_every=3) for count in (1, 5)
    )
    displays = [Spy(), Spy()]
    train(singly, tmp_path / "1", displays[0])
    train(together, tmp_path / "5", displays[1])
    assert rows_of(tmp_path / "1") == rows_of(tmp_path / "5")
    lines = [[line[:25] for line in d.lines if line.startswith("[EPOCH")] for d in displays]
    assert lines[0] == lines[1]


def test_a_run_in_bfloat16_rounds_and_learns_as_one_in_float32(
    make_config: Make, tmp_path: Path
) -> None:
    results = {
        precision: train(make_config(train__precision=precision, epochs=3), tmp_path / precision)
        for precision in ("bfloat16", "float32")
    }
    halved, whole = results["bfloat16"], results["float32"]
    assert halved["train_loss"] == pytest.approx(whole["train_loss"], rel=0.05)
    assert abs(halved["train_loss"] - whole["train_loss"]) > 1e-4
    assert halved["train_loss"] < 2.25


def test_nothing_compiles_in_mid_run(make_config: Make, tmp_path: Path) -> None:
    """Not after the first epoch, whatever the learning rate does; the test images come last."""
    compiled: list[str] = []

    def listen(event: str, seconds: float, **kwargs: Any) -> None:
        if event == "/jax/core/compile/backend_compile_duration":
            compiled.append(event)

    counts: list[int] = []

    class Counter(Spy):
        def line(self, text: str, *, detail: bool = False) -> None:
            super().line(text, detail=detail)
            counts.append(len(compiled))

    jax.monitoring.register_event_duration_secs_listener(listen)
    try:
        config = make_config(
            epochs=4,
            batch_size=31,  # for programs that no other test has compiled
            schedule__name="plateau",
            schedule__patience=0,
            schedule__threshold=0.9,
            train__log_every=3,
        )
        train(config, tmp_path, display := Counter())
    finally:
        jax.monitoring.clear_event_listeners()
    assert len({row["learning_rate"] for row in rows_of(tmp_path)}) > 1
    first_epoch = next(i for i, line in enumerate(display.lines) if line.startswith("epoch 1/4"))
    assert counts[first_epoch] > 0
    assert counts[first_epoch:] == [counts[first_epoch]] * len(counts[first_epoch:])


def test_a_terminal_shows_the_bar_and_only_the_epochs_lines(
    make_config: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loop, "SECONDS_BETWEEN_UPDATES", 0)
    shown = io.StringIO()
    console = Console(file=shown, force_terminal=True, width=150)
    train(make_config(train__log_every=2), tmp_path, Display(console))
    text = shown.getvalue()
    assert "epoch 1/2" in text
    assert "images/s" in text
    assert "16/16" in text
    assert "[EPOCH 001" not in text
    assert "[EPOCH 001 | IT 00002] LOSS: " in (tmp_path / "log.txt").read_text()


@pytest.mark.slow
def test_basic_learns_cifar10(tmp_path: Path) -> None:
    """The paper's first epoch of twenty. (After 10,000 images alone it stands at 30 %, as
    PyTorch's does.)"""
    prepared = tfds_folder.default_data_dir() / "cifar10" / "3.0.2"
    if not prepared.is_dir():
        pytest.skip(f"no CIFAR-10 in {prepared}: set TFDS_DATA_DIR")
    config = override(catalog.load("basic").config, ["epochs=1", "train.devices=1"])
    result = train(config, tmp_path, Spy())
    assert result["steps"] == 6000
    assert result["validation_accuracy"] > 40
