"""Short runs on `digits`, interrupted or not, and what two of them have in common."""

import hashlib
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from cifar_jax.config import Config
from cifar_jax.training import fit
from cifar_jax.training.display import Display
from cifar_jax.training.fit import Run

EPOCHS, STEPS = 3, 40
TIMES = ("wall_seconds", "compile_seconds", "images_per_second", "device", "versions")


class Spy(Display):
    """Keeps the lines, prints none of them, and does something when one holds a certain text."""

    def __init__(self, when: str = "", do: Callable[[], object] = lambda: None) -> None:
        super().__init__(quiet=True)
        self.lines: list[str] = []
        self._when, self._do = when, do

    def line(self, text: str, *, detail: bool = False) -> None:
        super().line(text, detail=detail)
        self.lines.append(text)
        if self._when and self._when in text:
            self._do()


def train(config: Config, folder: Path, display: Display | None = None, **run: Any) -> dict:
    asked = {"experiment": "test", "seed": 0} | run
    return fit.fit(Run(config=config, workdir=folder, **asked), display or Spy())


def raise_it(error: BaseException) -> Callable[[], None]:
    def do() -> None:
        raise error

    return do


def send(signum: int) -> Callable[[], None]:
    return lambda: os.kill(os.getpid(), signum)


def timeless(row: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in row.items() if key not in TIMES}


def rows_of(folder: Path) -> list[dict[str, Any]]:
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    return [timeless(json.loads(line)) for line in lines]


def rows_of_or_none(folder: Path) -> list[dict[str, Any]]:
    return rows_of(folder) if (folder / "metrics.jsonl").exists() else []


def files(folder: Path) -> dict[str, bytes]:
    """Every file of a run but the lock."""
    found = (path for path in folder.rglob("*") if path.is_file() and path.name != ".lock")
    return {str(path.relative_to(folder)): path.read_bytes() for path in found}


def change_meta(checkpoint: Path, **changes: Any) -> None:
    """As if it had been saved so: what is told beside the state, to its digest."""
    path = checkpoint / "meta/metadata"
    meta = json.loads(path.read_text()) | changes
    del meta["meta_sha256"]
    digest = hashlib.sha256(json.dumps(meta, sort_keys=True).encode()).hexdigest()
    path.write_text(json.dumps(meta | {"meta_sha256": digest}))


def loss_lines(folder: Path) -> list[str]:
    """The log's lines of the training; what was made again after a kill counts once."""
    lines = (folder / "log.txt").read_text().splitlines()
    return sorted({line for line in lines if line.startswith("[EPOCH")})


def assert_same_run(folder: Path, finished: Path) -> None:
    """Bit for bit the same weights, and every figure but the clock's."""
    ours, theirs = (json.loads((path / "result.json").read_text()) for path in (folder, finished))
    assert ours["params_sha256"] == theirs["params_sha256"]
    assert rows_of(folder) == rows_of(finished)
    assert np.array_equal(*(np.load(path / "test_logits.npy") for path in (folder, finished)))
    assert loss_lines(folder) == loss_lines(finished)
    ignored = (*TIMES, "overrides", "experiment", "git_commit", "paper_accuracy", "starts")
    for key in theirs.keys() - set(ignored):
        assert ours[key] == theirs[key], key
