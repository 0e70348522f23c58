"""A callback that logs every epoch to a JSON file, as one would log to W&B or MLflow.

python docs/examples/json_logger.py
"""

import json
from pathlib import Path

import cifar_jax
from cifar_jax.callbacks import RunContext
from cifar_jax.runs.schemas import MetricsRow, Result
from cifar_jax.training.step import TrainState


class JsonLogger(cifar_jax.Callback):
    """Writes settings, epochs and the test accuracy of a run to one file."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def on_start(self, context: RunContext, state: TrainState) -> None:
        """Start the log, with the epochs that earlier sessions trained."""
        self._log = {
            "experiment": context.identity.experiment,
            "settings": context.identity.settings,
            "epochs": [row.model_dump() for row in context.rows],
        }

    def on_epoch_end(self, state: TrainState, metrics: MetricsRow) -> None:
        """Add an epoch."""
        self._log["epochs"].append(metrics.model_dump())
        self._path.write_text(json.dumps(self._log))

    def on_end(self, result: Result) -> None:
        """Add the test accuracy."""
        self._log["test_accuracy"] = result.test_accuracy
        self._path.write_text(json.dumps(self._log))


if __name__ == "__main__":
    cifar_jax.train("basic", "runs/basic-logged", callbacks=[JsonLogger(Path("basic.json"))])
