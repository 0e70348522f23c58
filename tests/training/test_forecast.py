"""Test the estimated duration of a run, the advice for few steps, and the profiler trace."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from short_runs import Recorder, train
from tiny import DATASET, TINY

from cifar_jax.callbacks import forecast
from cifar_jax.callbacks.forecast import duration, remaining_seconds
from cifar_jax.callbacks.profile import Profile
from cifar_jax.config import Config
from cifar_jax.errors import UserError
from cifar_jax.training import plan
from cifar_jax.training.setup import build_setup

Make = Callable[..., Config]
pytestmark = pytest.mark.usefixtures("tiny")
SMALL = TINY | {"model__name": "dense", "train__steps_per_call": 1}


def test_remaining_time_counts_pixels_and_validation(make_config: Make) -> None:
    """Epochs 1 and 2 have 2 steps each, on 16 images of 16×16 pixels.

    Epochs 3 and 4 have 4 steps each, on 8 images of 32×32 pixels.
    """
    phases = '[{"until": 0.5, "image_size": 16, "batch_size": 16}]'
    setup = build_setup(make_config(**SMALL, phases=phases), dataset=DATASET)
    steps = setup.plan
    first = remaining_seconds(steps, steps.epochs[0], 1, 1.0, 0)
    assert first == pytest.approx(1 + 2 + 2 * 4 * 2)  # Later steps have twice as many pixels.
    last = remaining_seconds(steps, steps.epochs[3], 11, 2.0, 24)
    assert last == pytest.approx(2 + 2 * 24 / 8 / 3)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.1, "1 second"), (59.6, "60 seconds"), (90, "1.5 minutes"), (9000, "2.5 hours")],
)
def test_duration(seconds: float, text: str) -> None:
    assert duration(seconds) == text


@pytest.mark.parametrize("batch_size", [8, 16])  # 16: two compiled calls in each epoch.
def test_long_run_names_faster_experiments(
    make_config: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, batch_size: int
) -> None:
    monkeypatch.setattr(forecast, "MEASURED_SECONDS", 0.0)
    monkeypatch.setattr(forecast, "LONG_RUN", 0.0)
    config = make_config(**SMALL | {"batch_size": batch_size})
    train(config, tmp_path, recorder := Recorder())
    (line,) = [line for line in recorder.lines if line.startswith("this run takes about")]
    assert "on this machine" in line
    assert "faster: the same command on a machine with a GPU, with --device gpu" in recorder.lines
    lines = forecast.alternatives("resnet18-adam", "resnet18", "gpu")
    assert lines == [
        "faster: `cifar-jax train fast-resnet18` trains the same network (4.9 minutes on an NVIDIA "
        "H200 that up to eight runs shared)"
    ]


def test_few_steps_and_large_batches_come_with_a_remedy(make_config: Make, tmp_path: Path) -> None:
    train(make_config(**SMALL | {"batch_size": 16}), tmp_path, recorder := Recorder())
    assert (
        "an epoch has only 2 steps, because the batch size is 16 and there are 32 training images: "
        "--set batch_size=1 gives 32 steps" in recorder.lines
    )
    with pytest.raises(UserError, match="lower it, such as --set batch_size=1"):
        build_setup(make_config(**SMALL | {"batch_size": 64}), dataset=DATASET)
    assert [plan.suggested_batch_size(n) for n in (5, 20, 1293, 45_000)] == [1, 1, 64, 2048]


def test_trace_of_a_few_steps(make_config: Make, tmp_path: Path) -> None:
    lines: list[str] = []
    profile = Profile(tmp_path / "trace", lines.append)
    train(make_config(**SMALL), tmp_path / "run", callbacks=[profile])
    assert lines == [f"a trace of 3 steps is in {tmp_path / 'trace'}"]
    names = {path.name for path in (tmp_path / "trace").rglob("*") if path.is_file()}
    assert "perfetto_trace.json.gz" in names
    assert any(name.endswith(".xplane.pb") for name in names)


def test_run_that_is_too_short_for_a_trace(make_config: Make, tmp_path: Path) -> None:
    settings: dict[str, Any] = {"epochs": 1, "train__steps_per_call": 4, "train__log_every": 4}
    lines: list[str] = []
    profile = Profile(tmp_path / "trace", lines.append)
    train(make_config(**SMALL | settings), tmp_path / "run", callbacks=[profile])
    assert lines[0].startswith("no trace is written, because this session has too few steps")


def test_folder_that_cannot_be_written_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="the trace cannot be written to"):
        Profile(tmp_path / "file" / "trace")
