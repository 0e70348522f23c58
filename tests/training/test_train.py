"""Test whole training runs on `digits`: written files, refused runs and options."""

import hashlib
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from short_runs import (
    EPOCHS,
    STEPS,
    Recorder,
    assert_same_run,
    files,
    result_of,
    rows_of,
    train,
)

import cifar_jax
from cifar_jax import catalog
from cifar_jax.callbacks import checkpoint
from cifar_jax.config import Config, flatten, override
from cifar_jax.data import cifar10, default_data_dir
from cifar_jax.errors import UserError
from cifar_jax.runs.checkpoints import Checkpoints
from cifar_jax.runs.schemas import ModelCard, Result, read
from cifar_jax.training import train as training
from cifar_jax.training.compilation import CompiledSteps
from cifar_jax.training.request import RunRequest
from cifar_jax.training.result import params_sha256
from cifar_jax.training.step import TrainState

Make = Callable[..., Config]


def test_result_has_the_metrics_of_the_last_epoch_and_of_the_best(
    finished: Path, config: Config
) -> None:
    result = read(finished / "result.json", Result)
    rows = rows_of(finished)
    assert (result.experiment, result.model, result.dataset, result.seed) == (
        *("test", "basic", "digits", 0),
    )
    assert (result.parameters, result.epochs, result.steps) == (62_006, EPOCHS, EPOCHS * STEPS)
    assert result.settings == flatten(config)
    for name in ("train_loss", "train_accuracy", "validation_loss", "validation_accuracy"):
        assert getattr(result, name) == rows[-1][name]
    accuracies = [row["validation_accuracy"] for row in rows]
    assert result.best_validation_accuracy == max(accuracies)
    assert result.best_validation_epoch
    assert accuracies[result.best_validation_epoch - 1] == max(accuracies)
    assert 0 < result.compile_seconds < result.wall_seconds
    assert (result.device.platform, result.device.count) == ("cpu", 1)
    assert result.test_accuracy == result.test_accuracy_plain


def test_outputs_are_float32_and_give_the_accuracies_of_the_result(finished: Path) -> None:
    outputs, result = np.load(finished / "outputs.npz"), result_of(finished)
    for split in ("test", "validation"):
        logits, labels = outputs[f"{split}_logits"], outputs[f"{split}_labels"]
        assert logits.dtype == np.float32
        accuracy = 100 * (logits.argmax(1) == labels).mean()
        assert accuracy == pytest.approx(result[f"{split}_accuracy"], abs=1e-9)


def test_run_folder_has_the_documented_files(finished: Path, config: Config) -> None:
    assert {path.name for path in finished.iterdir()} - {".lock"} == {
        *("config.json", "env.json", "log.txt", "metrics.jsonl", "result.json"),
        *("model.json", "outputs.npz", "tensorboard", "checkpoints"),
    }
    card = read(finished / "model.json", ModelCard)
    assert [layer.name for layer in card.layers][:2] == ["input", "conv1"]
    assert sum(layer.parameters for layer in card.layers) == 62_006
    rows = [json.loads(line) for line in (finished / "metrics.jsonl").read_text().splitlines()]
    assert [row["epoch"] for row in rows] == [1, 2, 3]
    assert [row["step"] for row in rows] == [40, 80, 120]
    assert all(row["images_per_second"] > 0 for row in rows)
    seconds = [row["wall_seconds"] for row in rows]
    assert seconds == sorted(seconds)


def test_basic_learns_the_digits(finished: Path) -> None:
    rows = rows_of(finished)
    assert rows[-1]["validation_accuracy"] > 80
    assert rows[-1]["train_loss"] < rows[0]["train_loss"] / 2
    assert result_of(finished)["test_accuracy"] > 80


def test_log_has_loss_lines_in_the_form_of_the_paper(finished: Path) -> None:
    lines = (finished / "log.txt").read_text().splitlines()
    loss_lines = [line for line in lines if line.startswith("[EPOCH")]
    assert [line[: line.index(" LOSS")] for line in loss_lines] == [
        f"[EPOCH {epoch:03d} | IT {step:05d}]" for epoch in (1, 2, 3) for step in (16, 32)
    ]
    losses = [float(line.rpartition(" ")[2]) for line in loss_lines]
    # Each line shows the mean loss since the previous line. The mean loss of epoch 1 is therefore
    # between the values of its two lines.
    assert losses[0] > losses[1] > losses[2] > losses[-1]
    assert losses[1] < rows_of(finished)[0]["train_loss"] < losses[0]
    assert sum(line.startswith("epoch ") for line in lines) == EPOCHS


def test_plateau_reduces_the_learning_rate(finished: Path) -> None:
    rows = rows_of(finished)
    assert [row["learning_rate"] for row in rows] == pytest.approx(
        plateau_rates([row["validation_loss"] for row in rows], 1e-3, 0.9)
    )
    assert rows[-1]["learning_rate"] < 1e-3


def plateau_rates(losses: list[float], lr: float, threshold: float) -> list[float]:
    """Return the plateau schedule's learning rate in each epoch, for patience 0 and factor 0.5."""
    best, rates = float("inf"), []
    for loss in losses:
        rates.append(lr)
        if loss < best * (1 - threshold):
            best = loss
        else:
            lr /= 2
    return rates


def test_params_digest_is_over_sorted_paths_and_little_endian_bytes() -> None:
    params = {"b": {"kernel": jax.numpy.float32([1, 2])}, "a": jax.numpy.float32([[3]])}
    text = b"a\0" + np.array([3], "<f4").tobytes()
    text += b"b/kernel\0" + np.array([1, 2], "<f4").tobytes()
    assert params_sha256(params) == hashlib.sha256(text).hexdigest()


def test_python_api_trains_as_the_command_line_does(
    make_config: Make, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = make_config(epochs=1)
    result = cifar_jax.train(config, tmp_path / "python")
    assert "epoch 1/1" in capsys.readouterr().out
    assert result.params_sha256 == train(config, tmp_path / "cli").params_sha256
    assert cifar_jax.train(config, tmp_path / "python") == result


def test_python_api_does_not_compare_changed_settings_with_the_paper(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    requests = []
    monkeypatch.setattr(training, "train", lambda request, _: requests.append(request) or True)
    config = override(catalog.load("resnet18-adam").config, ["epochs=1"])
    cifar_jax.train(config, tmp_path)
    assert config.paper
    assert requests[0].config.paper is None


def test_python_api_takes_a_path_and_refuses_a_model_with_a_known_name(tmp_path: Path) -> None:
    file = tmp_path / "mine.py"
    file.write_text(
        "from cifar_jax.config import Config, Model, Optimizer\n"
        "from cifar_jax.models.basic import Basic as MODEL\n"
        "PARTS = {'model': Model(name='basic'), 'optimizer': Optimizer()}\n"
        "CONFIG = Config(**PARTS, epochs=1, batch_size=8)\n"
    )
    with pytest.raises(UserError, match=r"mine\.py defines a MODEL, but .* 'basic'"):
        cifar_jax.train(file, tmp_path / "run")


# Refusals


@pytest.mark.parametrize(
    ("setting", "request_", "name"),
    [
        (["epochs=5"], {}, "epochs"),
        ([], {"seed": 1}, "seed"),
        ([], {"experiment": "other"}, "experiment"),
    ],
)
def test_folder_of_another_run_is_refused(
    config: Config, finished: Path, setting: list, request_: dict, name: str
) -> None:
    before = files(finished)
    with pytest.raises(UserError, match=name):
        train(override(config, setting), finished, **request_)
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
        {"optimizer__name": "custom"},
        {"schedule__name": "custom"},
        {"averaging__name": "ema", "averaging__every": 17},
    ],
)
def test_settings_that_do_not_fit_write_nothing(
    make_config: Make, finished: Path, tmp_path: Path, setting: dict
) -> None:
    config, before = make_config(**setting), files(finished)
    for fresh in (False, True):
        with pytest.raises(UserError):
            train(config, tmp_path / "deep" / "run", fresh=fresh)
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(UserError):
        train(config, finished, fresh=True)
    assert files(finished) == before


def test_folder_in_use_by_another_process_is_refused(config: Config, tmp_path: Path) -> None:
    request = RunRequest("test", config, 0, tmp_path)
    code = (
        "import json, sys; from pathlib import Path\n"
        "from cifar_jax.runs import folder, schemas\n"
        f"identity = schemas.RunIdentity(**json.loads({request.identity().model_dump_json()!r}))\n"
        f"with folder.open_run_folder(Path({str(tmp_path)!r}), identity, fresh=False):\n"
        "    print('locked', flush=True); sys.stdin.read()"
    )
    other = subprocess.Popen(
        [sys.executable, "-c", code],
        cwd=Path(training.__file__).parents[2],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    assert other.stdout is not None
    assert other.stdout.readline() == b"locked\n"
    before = files(tmp_path)
    with pytest.raises(UserError, match="in use by another process"):
        training.train(request, progress=Recorder())
    assert files(tmp_path) == before
    other.communicate()
    assert other.returncode == 0


def test_diverging_loss_stops_the_run_and_keeps_the_last_checkpoint(
    config: Config, finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = CompiledSteps.run

    def diverge(self: CompiledSteps, state: TrainState, *args: Any) -> TrainState:
        state = run(self, state, *args)
        if int(state.step) <= STEPS:
            return state
        return state._replace(metrics=state.metrics._replace(loss=jax.numpy.float32("nan")))

    with monkeypatch.context() as patch:
        patch.setattr(CompiledSteps, "run", diverge)
        with pytest.raises(
            UserError, match=r"NaN or infinite in epoch 2, at or before step \d+\. Lower optim"
        ):
            train(config, tmp_path)
    assert len(rows_of(tmp_path)) == 1
    assert not (tmp_path / "result.json").exists()
    train(config, tmp_path)
    assert_same_run(tmp_path, finished)


def test_weights_that_are_not_finite_are_never_saved(
    config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checkpoint, "is_finite", lambda state: int(state.step) <= STEPS)
    with pytest.raises(UserError, match=f"the weights are NaN or infinite after step {2 * STEPS}"):
        train(config, tmp_path)
    with Checkpoints(tmp_path / "checkpoints") as checkpoints:
        assert [saved.step for saved in checkpoints.all()] == [STEPS]


def test_update_that_ruins_the_weights_gives_no_result(make_config: Make, tmp_path: Path) -> None:
    """The run has one train step. The loss is computed before the update and is finite."""
    config = make_config(epochs=1, batch_size=256, data__validation=0, optimizer__lr=1e38)
    with pytest.raises(UserError, match="NaN or infinite"):
        train(config, tmp_path)
    assert not (tmp_path / "result.json").exists()


# Options


def test_plateau_follows_the_training_loss_without_validation(
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
    rates = plateau_rates([row["train_loss"] for row in rows], 0.05, 0.2)
    assert [row["learning_rate"] for row in rows] == pytest.approx(rates)
    assert rates[-1] < 0.05
    assert result.validation_loss is result.validation_accuracy is None
    assert result.best_validation_epoch is None
    assert "validation_logits" not in np.load(tmp_path / "outputs.npz")


def test_result_does_not_depend_on_steps_per_call(make_config: Make, tmp_path: Path) -> None:
    recorders = [Recorder(), Recorder()]
    for count, recorder in zip((1, 5), recorders, strict=True):
        config = make_config(train__steps_per_call=count, train__log_every=3)
        train(config, tmp_path / str(count), recorder)
    assert rows_of(tmp_path / "1") == rows_of(tmp_path / "5")
    lines = [[line for line in r.lines if line.startswith("[EPOCH")] for r in recorders]
    assert [line[:25] for line in lines[0]] == [line[:25] for line in lines[1]]


def test_bfloat16_rounds_but_learns_like_float32(make_config: Make, tmp_path: Path) -> None:
    half, full = (
        train(make_config(train__precision=precision, epochs=3), tmp_path / precision)
        for precision in ("bfloat16", "float32")
    )
    # The losses differ by 6.4 % on an Intel Xeon with AMX. The cause was not determined.
    assert half.train_loss == pytest.approx(full.train_loss, rel=0.1)
    assert half.train_loss != pytest.approx(full.train_loss, abs=1e-4)


def test_nothing_compiles_after_the_first_epoch(make_config: Make, tmp_path: Path) -> None:
    compilations: list[str] = []

    def listen(event: str, seconds: float, **kwargs: Any) -> None:
        if event == "/jax/core/compile/backend_compile_duration":
            compilations.append(event)

    counts: list[int] = []

    class Counter(cifar_jax.Callback):
        def on_epoch_end(self, state: Any, metrics: Any) -> None:
            counts.append(len(compilations))

    jax.monitoring.register_event_duration_secs_listener(listen)
    try:
        config = make_config(
            epochs=4,
            batch_size=31,  # No other test compiles programs for this batch size.
            schedule__name="plateau",
            schedule__patience=0,
            schedule__threshold=0.9,
        )
        train(config, tmp_path, callbacks=[Counter()])
    finally:
        jax.monitoring.clear_event_listeners()
    assert len({row["learning_rate"] for row in rows_of(tmp_path)}) > 1
    assert counts[0] > 0
    assert counts[1:] == [counts[1]] * 3


@pytest.mark.slow
def test_basic_learns_cifar10(tmp_path: Path) -> None:
    """The run has one epoch instead of the paper's 20 epochs."""
    if not cifar10.folder(default_data_dir()).is_dir():
        pytest.skip("no CIFAR-10: set TFDS_DATA_DIR")
    config = override(catalog.load("basic").config, ["epochs=1", "train.devices=1"])
    result = train(config, tmp_path)
    assert result.steps == 6000
    assert (result.validation_accuracy or 0) > 40
