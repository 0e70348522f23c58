"""Makes run folders as a training would leave them."""

import json
import math
from pathlib import Path
from typing import Any, Protocol

from cifar_jax import catalog, config


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
    **result: Any,
) -> Path:
    """A run of `experiment`; without `test` it is unfinished, with `done` epochs behind it."""
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
    if test is not None:
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
            "git_commit": "0123456789abcdef0123456789abcdef01234567",
            "device": {"platform": "cpu", "kind": "cpu", "count": 1},
            "machine": {"cpu": "AMD EPYC 7B13 64-Core Processor", "cores": 2},
        } | result
        (path / "result.json").write_text(json.dumps(out))
    return path


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
