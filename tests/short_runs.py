"""Helpers that train, interrupt and compare short runs."""

import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

from cifar_jax.callbacks import Callback
from cifar_jax.callbacks.progress import Progress
from cifar_jax.config import Config
from cifar_jax.runs.schemas import Result
from cifar_jax.training import train as training
from cifar_jax.training.request import RunRequest

EPOCHS, STEPS = 3, 40
TIMES = ("wall_seconds", "compile_seconds", "images_per_second", "device", "versions")


class Recorder(Progress):
    """Progress callback that collects the log lines.

    The callback calls the function `act` at each line that contains the text `when`.
    """

    def __init__(self, when: str = "", act: Callable[[], object] = lambda: None) -> None:
        super().__init__(Console(quiet=True))
        self.lines: list[str] = []
        self._when, self._act = when, act

    def _write(self, text: str) -> None:
        super()._write(text)
        self.lines.append(text)
        if self._when and self._when in text:
            self._act()


def train(
    config: Config,
    folder: Path,
    progress: Progress | None = None,
    callbacks: Sequence[Callback] = (),
    **request: Any,
) -> Result:
    """Train a run in `folder` without printing anything. Return the run's result."""
    fields = {"experiment": "test", "seed": 0} | request
    request_ = RunRequest(config=config, workdir=folder, **fields)
    return training.train(request_, callbacks, progress or Recorder())


def kill() -> None:
    """End the run at once without saving, as SIGKILL would."""
    raise KeyboardInterrupt


def send(signum: int) -> Callable[[], None]:
    """Return a function that sends a signal to the current process."""
    return lambda: os.kill(os.getpid(), signum)


def killed_at(text: str) -> Recorder:
    """Return a recorder that kills the run at the first log line that contains `text`."""
    return Recorder(text, kill)


def without_times(row: dict[str, Any]) -> dict[str, Any]:
    """Return the entries of `row` that do not depend on the clock or the machine."""
    return {key: value for key, value in row.items() if key not in TIMES}


def rows_of(folder: Path) -> list[dict[str, Any]]:
    """Return the rows of metrics.jsonl without times. The list is empty if the file is missing."""
    path = folder / "metrics.jsonl"
    lines = path.read_text().splitlines() if path.exists() else []
    return [without_times(json.loads(line)) for line in lines]


def result_of(folder: Path) -> dict[str, Any]:
    """Return the content of a run's result.json."""
    return json.loads((folder / "result.json").read_text())


def files(folder: Path) -> dict[str, bytes]:
    """Return the contents of all files in a run folder except `.lock`, by relative path."""
    paths = (path for path in folder.rglob("*") if path.is_file() and path.name != ".lock")
    return {str(path.relative_to(folder)): path.read_bytes() for path in paths}


def loss_lines(folder: Path) -> list[str]:
    """Return the sorted loss lines of log.txt. A line that a resumed run repeats is listed once."""
    lines = (folder / "log.txt").read_text().splitlines()
    return sorted({line for line in lines if line.startswith("[EPOCH")})


def assert_same_run(folder: Path, other: Path) -> None:
    """Assert that two runs have identical weights, outputs and metrics."""
    ours, theirs = result_of(folder), result_of(other)
    assert ours["params_sha256"] == theirs["params_sha256"]
    assert rows_of(folder) == rows_of(other)
    outputs = [np.load(path / "outputs.npz") for path in (folder, other)]
    assert outputs[0].keys() == outputs[1].keys()
    for name in outputs[0]:
        np.testing.assert_array_equal(outputs[0][name], outputs[1][name])
    assert loss_lines(folder) == loss_lines(other)
    ignored = {*TIMES, "overrides", "experiment", "git_commit", "paper_accuracy", "sessions"}
    for key in theirs.keys() - ignored:
        assert ours[key] == theirs[key], key
