"""A thin layer on orbax: the last few checkpoints of a run, and the best one."""

from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp
from orbax.checkpoint.checkpoint_managers import AnyPreservationPolicy, BestN, LatestN


class Checkpoints:
    """The checkpoints of one run, by step. Use as a context manager: leaving waits for writes."""

    def __init__(self, folder: Path, keep: int = 1) -> None:
        best = BestN(
            get_metric_fn=lambda metrics: metrics["validation_accuracy"],
            n=1,
            keep_checkpoints_without_metrics=False,
        )
        self._manager = ocp.CheckpointManager(
            folder.resolve(),
            options=ocp.CheckpointManagerOptions(
                preservation_policy=AnyPreservationPolicy([LatestN(keep), best]),
                best_fn=lambda metrics: metrics["validation_accuracy"],
                best_mode="max",
            ),
        )

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, *exception: object) -> None:
        self._manager.close()

    def latest(self) -> int | None:
        """The last step saved."""
        return self._manager.latest_step()

    def best(self) -> int | None:
        """The step of the best validation accuracy, where any was measured."""
        return self._manager.best_step()

    def save(self, state: Any, validation_accuracy: float | None = None) -> None:
        """Save in the background; a `validation_accuracy` lets it count as the best."""
        metrics = (
            None if validation_accuracy is None else {"validation_accuracy": validation_accuracy}
        )
        self._manager.save(
            int(state.step), args=ocp.args.StandardSave(state), metrics=metrics, force=True
        )

    def restore(self, step: int, like: Any) -> Any:
        """The state of that step, with the structure, types and shardings of `like`."""
        abstract = jax.tree.map(ocp.utils.to_shape_dtype_struct, like)
        return self._manager.restore(step, args=ocp.args.StandardRestore(abstract))
