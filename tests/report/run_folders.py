"""Write run folders with made-up results, in the format of real training runs."""

import json
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from cifar_jax import catalog, config
from cifar_jax.runs import records
from cifar_jax.runs.reading import read_runs
from cifar_jax.runs.schemas import MetricsRow, ModelCard, Result, RunIdentity, Session, dump, parse

README = (
    "# Title\n\nbefore\n\n<!-- results -->\nold\n<!-- /results -->\n\n"
    "between\n\n<!-- recipes -->\nold\n<!-- /recipes -->\n\nafter\n"
)
_RESULT = json.loads((Path(__file__).parents[2] / "results/basic-seed0.json").read_text())
_SESSION = {
    **_RESULT["sessions"][0],
    "command": ["/home/me/.venv/bin/cifar-jax", "train"],
    "git_commit": "0123456789abcdef",
    "machine": {"system": "Linux", "cpu": "AMD EPYC 64-Core Processor", "cores": 2, "features": []},
}


class MakeRun(Protocol):
    def __call__(self, experiment: str, seed: int = 0, **options: Any) -> Path: ...


def write_run(
    root: Path,
    experiment: str,
    seed: int = 0,
    *,
    test: float | None = 60.0,
    done: int = 0,
    overrides: dict[str, Any] | None = None,
    folder: str | None = None,
    sessions: tuple[dict[str, Any], ...] = ({},),
    images: str = "0ff1c1a1",
    official: bool = True,
    **changes: Any,
) -> Path:
    """Write a run folder and return its path.

    `test` is the test accuracy in percent. If `test` is None, the run is unfinished and has `done`
    epochs. `sessions` replaces fields of each session. `changes` replaces fields of the result.
    """
    path = root / (folder or f"{experiment}/seed{seed}")
    path.mkdir(parents=True)
    base, overrides = catalog.load(experiment).config, overrides or {}
    settings = config.flatten(base) | overrides
    which = {"experiment": experiment, "seed": seed, "overrides": overrides, "settings": settings}
    write(path / "config.json", dump(RunIdentity(**which)))
    official = official and settings["data.dataset"] == "cifar10"
    data = {"name": "cifar10", "sha256": images, "content": "c0ffee", "official": official}
    card = which | {
        **{"model": {"name": base.model.name, "num_classes": 1}, "classes": ["cat"]},
        **{"precision": "float32", "mean": [0.5] * 3, "std": [0.5] * 3},
        "data": data | {"train_images": 1, "validation_images": 0},
    }
    write(path / "model.json", dump(parse(card, ModelCard, "card")))
    epochs, paper = settings["epochs"], base.paper
    rows = [
        MetricsRow(
            **{"epoch": epoch, "step": 100 * epoch, "learning_rate": 0.1},
            **{"train_loss": 2 / epoch, "train_accuracy": 98 - 60 / epoch},
            validation_accuracy=80 + seed - 60 / epoch if settings["data.validation"] else None,
            **{"images_per_second": 1000, "wall_seconds": 10 * epoch},
        )
        for epoch in range(1, 1 + (done if test is None else epochs))
    ]
    write_rows(path / "metrics.jsonl", [dump(row) for row in rows])
    started = [dump(parse(_SESSION | change, Session, "session")) for change in sessions]
    write(path / "env.json", started)
    if test is not None:
        result = _RESULT | which
        result |= {
            **{"model": base.model.name, "dataset": settings["data.dataset"], "epochs": epochs},
            "parameters": paper.parameters if paper else 1,
            "paper_accuracy": paper.test_accuracy if paper else None,
            **{"test_accuracy": test, "best_validation_test_accuracy": test + 0.25},
            **{"params_sha256": f"{experiment} {seed} {test}", "wall_seconds": 3720.0},
            **{"data_sha256": images, "data_official": official},
            **{"sessions": started, "outputs_differ": 0},
        }
        write(path / "result.json", dump(parse(result | changes, Result, "result")))
        write_outputs(path / "outputs.npz", test)
    return path


def write(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value))


def change(path: Path, **changes: Any) -> None:
    """Replace fields of the object in a JSON file."""
    write(path, json.loads(path.read_text()) | changes)


def write_rows(path: Path, rows: list[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def write_outputs(path: Path, accuracy: float) -> None:
    """Write logits of 10,000 test images. `accuracy` percent of the predictions are correct."""
    labels = np.arange(10_000) % 10
    wrong = np.arange(10_000) >= round(100 * accuracy)
    logits = np.eye(10, dtype=np.float32)[(labels + wrong) % 10]
    np.savez(path, test_logits=logits, test_labels=labels.astype(np.uint8))


def record(folder: Path, results: Path) -> Path:
    """Add a record of the run in `folder` to `results`. Return the path of the record."""
    (path,) = records.record(read_runs([folder]), results)
    return path
