"""Makes run folders as a training would leave them."""

import json
import math
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from cifar_jax import catalog, config
from cifar_jax.runs import records
from cifar_jax.runs.reading import read_run
from cifar_jax.runs.records import Outputs

OFFICIAL = "85f234f317270aaab303f6cd760fa2a4ee3ecc150bc1cfe572e79680b311b8c4"
"""The fingerprint of CIFAR-10 in the order of tfds."""


README = (
    "# Title\n\nbefore\n\n<!-- results -->\nold\n<!-- /results -->\n\n"
    "between\n\n<!-- recipes -->\nold\n<!-- /recipes -->\n\nafter\n"
)


class MakeRun(Protocol):
    """`write_run` in the test's own `runs/`."""

    def __call__(self, experiment: str, seed: int = 0, **options: Any) -> Path: ...


def write_run(
    root: Path,
    experiment: str,
    seed: int = 0,
    *,
    test: float | None = 60.0,
    done: int | None = None,
    overrides: dict[str, Any] | None = None,
    folder: str | None = None,
    starts: list[dict[str, Any]] | None = None,
    **result: Any,
) -> Path:
    """A run of `experiment`; without `test` it is unfinished, with `done` epochs behind it.

    What `starts` say of each start is laid over what this one start tells; `result` is laid over
    the result.
    """
    overrides = overrides or {}
    base = catalog.load(experiment).config
    settings = config.flatten(base) | overrides
    path = root / (folder or f"{experiment}/seed{seed}")
    path.mkdir(parents=True)
    identity = {"experiment": experiment, "seed": seed, "overrides": overrides, "config": settings}
    (path / "config.json").write_text(json.dumps(identity))
    epochs = settings["epochs"]
    final = base.paper.test_accuracy if base.paper else 60.0
    rows = [_epoch(i, epochs, final, seed, settings) for i in range(epochs if test else done or 0)]
    (path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    start = {
        "started": "2026-11-24T16:16:57+00:00",
        "command": ["/home/me/.venv/bin/cifar-jax", "train", experiment],
        "git_commit": "0123456789abcdef0123456789abcdef01234567",
        "device": {"platform": "cpu", "kind": "cpu", "count": 1},
        "machine": {"cpu": "AMD EPYC 7B13 64-Core Processor", "cores": 2},
    }
    start |= {name: value for name, value in result.items() if name in start}
    env = [start | told for told in starts or [{}]]
    (path / "env.json").write_text(json.dumps(env))
    if test is not None:
        last = {name: rows[-1].get(name) for name in ("train_loss", "validation_loss")}
        out = {
            "experiment": experiment,
            "model": base.model.name,
            "dataset": settings["data.dataset"],
            "seed": seed,
            "overrides": overrides,
            "parameters": base.paper.parameters if base.paper else 1,
            "epochs": epochs,
            "test_accuracy": test,
            "best_validation_epoch": epochs,
            "best_validation_test_accuracy": test + 0.25,
            "params_sha256": f"{experiment} {seed} {test}",
            "paper_accuracy": base.paper.test_accuracy if base.paper else None,
            "wall_seconds": 3720.0,
            "data_sha256": OFFICIAL if settings["data.dataset"] == "cifar10" else "d161750f",
            **last,
            **{name: env[-1][name] for name in ("git_commit", "device", "machine")},
        } | result
        (path / "result.json").write_text(json.dumps(out))
    return path


def outputs(accuracy: float) -> Outputs:
    """Of 10,000 test images, of which that many percent are classed rightly."""
    labels = np.arange(10_000) % 10
    wrong = np.arange(10_000) >= round(100 * accuracy)
    return Outputs(5 * np.eye(10, dtype=np.float16)[(labels + wrong) % 10], labels.astype(np.uint8))


def _epoch(
    i: int, epochs: int, final: float, seed: int, settings: dict[str, Any]
) -> dict[str, Any]:
    rise = 1 - math.exp(-6 * (i + 1) / epochs)
    wobble = math.sin(1.7 * i + seed) * (1 - 0.7 * i / epochs)
    rate = settings["optimizer.lr"]
    if settings["schedule.name"] == "plateau":
        rate *= settings["schedule.factor"] ** (4 * i // epochs)
    row = {
        "epoch": i + 1,
        "step": (i + 1) * 100,
        "train_loss": 2.3 * (1 - rise),
        "train_accuracy": 10 + 88 * rise,
        "images_per_second": 1000.0,
        "validation_loss": 2.3 - (2.3 - 0.4) * rise + 0.05 * wobble,
        "validation_accuracy": 10 + (final - 10) * rise + 1.5 * wobble,
        "learning_rate": rate,
        "wall_seconds": 10.0 * (i + 1),
    }
    if not settings["data.validation"]:
        del row["validation_loss"], row["validation_accuracy"]
    return row


def record(folder: Path, results: Path, accuracy: float | None = None) -> Path:
    """Record the run with outputs that confirm it, or give another accuracy."""
    run = read_run(folder)
    if accuracy is None and run.result:
        accuracy = run.result["test_accuracy"]
    return records.record(run, results, None if accuracy is None else outputs(accuracy))
