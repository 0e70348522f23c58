"""What a result is made of, where a run was over several starts, or its folder is not whole."""

import json
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from short_runs import Spy, change_meta, raise_it, send, train
from tiny import TINY

from cifar_jax.config import Config
from cifar_jax.errors import Stopped
from cifar_jax.runs.folder import Workdir
from cifar_jax.training import fit, loop

EPOCHS, STEPS = 4, 4
pytestmark = pytest.mark.usefixtures("tiny")


@pytest.fixture(scope="module")
def small(make_config: Callable[..., Config]) -> Config:
    return make_config(**TINY)


@pytest.fixture(scope="module")
def over(small: Config, tiny: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run that was killed after its last epoch."""
    folder = tmp_path_factory.mktemp("over") / "run"
    with pytest.raises(KeyboardInterrupt):
        train(small, folder, Spy(f"epoch {EPOCHS}/", raise_it(KeyboardInterrupt())))
    return folder


@pytest.fixture
def folder(over: Path, tmp_path: Path) -> Path:
    """A copy of that: all that is left to do is the result."""
    return shutil.copytree(over, tmp_path / "run")


@pytest.fixture
def looks(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """What a clock has said on which each look takes a second."""
    said: list[float] = []

    def look() -> float:
        said.append(float(len(said)))
        return said[-1]

    for module in (fit, loop):
        monkeypatch.setattr(module, "time", SimpleNamespace(perf_counter=look))
    return said


def rewrite(folder: Path, name: str, values: list[float]) -> None:
    """Give every epoch in metrics.jsonl another value of that name."""
    path = folder / "metrics.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    changed = [row | {name: value} for row, value in zip(rows, values, strict=True)]
    path.write_text("".join(json.dumps(row) + "\n" for row in changed))


@pytest.mark.parametrize("kept", [0, 1])
def test_what_metrics_have_lost_is_not_taken_from_another_epoch(
    small: Config, folder: Path, kept: int
) -> None:
    path = folder / "metrics.jsonl"
    path.write_text("".join(path.read_text().splitlines(keepends=True)[:kept]))
    result = train(small, folder, display := Spy())
    assert f"metrics.jsonl has lost {EPOCHS - kept} of {EPOCHS} epochs" in display.lines
    for split in ("train", "validation"):
        assert result[f"{split}_loss"] is result[f"{split}_accuracy"] is None
    assert (result["epochs"], result["steps"]) == (EPOCHS, EPOCHS * STEPS)
    assert result["best_validation_accuracy"] is not None  # that is in the checkpoints


@pytest.mark.parametrize(
    ("speeds", "median"), [([0.0, 100.0, 300.14, 0.0], 200.1), ([0.0] * EPOCHS, None)]
)
def test_the_speed_is_the_median_of_the_epochs_that_took_time(
    small: Config, folder: Path, speeds: list[float], median: float | None
) -> None:
    """One that a signal stopped after its last step has taken none in the next start."""
    rewrite(folder, "images_per_second", speeds)
    assert train(small, folder)["images_per_second"] == median


def test_a_result_tells_of_the_start_that_ended_the_run(small: Config, folder: Path) -> None:
    path = folder / "env.json"
    (first,) = json.loads(path.read_text())
    elsewhere: dict[str, Any] = {
        "git_commit": "0" * 40,
        "versions": {"jax": "0.1"},
        "device": {"platform": "gpu", "kind": "X1", "count": 8},
        "machine": {"system": "another", "cpu": "another", "cores": 1, "features": []},
    }
    path.write_text(json.dumps([first | elsewhere]))
    result = train(small, folder, display := Spy())
    before, last = result["starts"]
    for name, value in elsewhere.items():
        assert before[name] == value
        assert result[name] == last[name] != value
    told = "not bit for bit what one start would come to: commit 000000000000 → "
    assert display.lines[1].startswith(told)


def test_seconds_of_a_run_are_counted_from_its_start(
    small: Config, tmp_path: Path, looks: list[float]
) -> None:
    result = train(small, tmp_path)
    assert result["wall_seconds"] == looks[-1] > 0


@pytest.mark.parametrize(("saved", "earlier"), [({}, 400.0), ({"elapsed_seconds": 1000.0}, 1000.0)])
def test_seconds_of_earlier_starts_are_those_that_were_saved(
    small: Config, folder: Path, looks: list[float], saved: dict[str, float], earlier: float
) -> None:
    """Or else, of a version that saved none, the last epoch's."""
    rewrite(folder, "wall_seconds", [100.0, 200.0, 300.0, 400.0])
    for checkpoint in (folder / "checkpoints").iterdir():
        change_meta(checkpoint, extra=saved)
    assert train(small, folder)["wall_seconds"] == earlier + looks[-1]


def test_a_signal_while_the_result_is_written_is_heard_after_it(
    small: Config, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Or the next of several experiments would begin."""
    write = Workdir.write_result

    def interrupted(self: Workdir, *args: Any) -> None:
        send(signal.SIGTERM)()
        write(self, *args)

    monkeypatch.setattr(Workdir, "write_result", interrupted)
    with pytest.raises(Stopped, match=r"^stopped by SIGTERM"):
        train(small, folder)
    assert train(small, folder) == json.loads((folder / "result.json").read_text())
