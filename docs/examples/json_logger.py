"""Train `basic` with a callback that logs every epoch to a JSON file.

    python docs/examples/json_logger.py

A callback that logs to Weights & Biases or MLflow has the same structure.
"""

import json
from pathlib import Path

import cifar_jax
from cifar_jax.callbacks import RunContext
from cifar_jax.runs.schemas import MetricsRow, Result
from cifar_jax.training.step import TrainState


class JsonLogger(cifar_jax.Callback):
    """Writes the settings, epochs and test accuracy of a run to a JSON file."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def on_start(self, context: RunContext, state: TrainState) -> None:
        """Start the log with the settings and the epochs of earlier sessions."""
        self._log = {
            "experiment": context.identity.experiment,
            "settings": context.identity.settings,
            "epochs": [row.model_dump() for row in context.rows],
        }

    def on_epoch_end(self, state: TrainState, metrics: MetricsRow) -> None:
        """Add the metrics of an epoch to the log, and write the file."""
        self._log["epochs"].append(metrics.model_dump())
        self._path.write_text(json.dumps(self._log))

    def on_end(self, result: Result) -> None:
        """Add the test accuracy to the log, and write the file."""
        self._log["test_accuracy"] = result.test_accuracy
        self._path.write_text(json.dumps(self._log))


if __name__ == "__main__":
    cifar_jax.train("basic", "runs/basic-logged", callbacks=[JsonLogger(Path("basic.json"))])
