"""What a run came to: its accuracy on the test images, and the digest of its weights."""

import hashlib
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from cifar_jax import distributed, models
from cifar_jax.config import Config
from cifar_jax.errors import UserError
from cifar_jax.runs.checkpoints import Checkpoints, Meta
from cifar_jax.training import compilation
from cifar_jax.training.display import Display
from cifar_jax.training.evaluation import measure
from cifar_jax.training.setup import Setup
from cifar_jax.training.step import TrainState


def measure_result(
    config: Config,
    workload: Setup,
    state: TrainState,
    rows: Sequence[Mapping[str, Any]],
    checkpoints: Checkpoints,
    display: Display,
    after_batch: Callable[[], None] = lambda: None,
) -> tuple[dict[str, Any], np.ndarray]:
    """What result.json tells of a run that is over, and the logits of the test images, which are
    read here, after everything is decided. What `after_batch` raises ends it.

    Raises:
      UserError: the loss on the test images is not finite.
    """
    images, labels = workload.dataset.test
    evaluate = compilation.compile_evaluation(workload, state, images, after_batch)
    logits = evaluate(state.evaluated)
    test = measure(logits, labels)
    if not math.isfinite(test["loss"]):  # the last update's doing, where nothing is held out
        raise UserError("the loss on the test images is not finite: lower optimizer.lr")
    paper = config.paper
    last = rows[-1] if rows and rows[-1]["epoch"] == len(workload.plan.epochs) else {}
    # None was taken by an epoch that a signal stopped after its last step.
    speeds = [row["images_per_second"] for row in rows if row["images_per_second"]]
    result: dict[str, Any] = {
        "model": config.model.name,
        "dataset": workload.dataset.name,
        "parameters": models.count_parameters(state.params),
        "epochs": len(workload.plan.epochs),
        "steps": int(state.step),
        "train_loss": last.get("train_loss"),
        "train_accuracy": last.get("train_accuracy"),
        "validation_loss": last.get("validation_loss"),
        "validation_accuracy": last.get("validation_accuracy"),
        "test_loss": test["loss"],
        "test_accuracy": test["accuracy"],
        "best_validation_epoch": None,
        "best_validation_accuracy": None,
        "best_validation_test_accuracy": None,
        "images_per_second": round(float(np.median(speeds)), 1) if speeds else None,
        "params_sha256": params_sha256(state.evaluated["params"]),
        "data_sha256": workload.dataset.fingerprint,
        "data_content": workload.dataset.content,
        "data_official": workload.dataset.official,
        "paper_accuracy": paper.test_accuracy if paper else None,
    }
    if (best := _restore_best(state, checkpoints, display)) is not None:
        meta, best_state = best
        if meta.step != int(state.step):
            test = measure(evaluate(best_state.evaluated), labels)
        result |= {
            "best_validation_epoch": workload.plan.epochs_before(meta.step),
            "best_validation_accuracy": meta.validation_accuracy,
            "best_validation_test_accuracy": test["accuracy"],
        }
    return result, logits


def _restore_best(
    state: TrainState, checkpoints: Checkpoints, display: Display
) -> tuple[Meta, TrainState] | None:
    """The checkpoint of the best validation accuracy that can be read."""
    while (meta := distributed.run_on_all(checkpoints.best_meta)) is not None:
        if meta.step == int(state.step):
            return meta, state
        best, reason = checkpoints.restore_together(meta.step, state)
        if not reason:
            return meta, best
        display.line(
            f"the checkpoint of step {meta.step} is damaged ({reason}): set aside, and not counted "
            "as the best on validation"
        )
        distributed.run_on_main(lambda step=meta.step: str(checkpoints.quarantine(step)))
    return None


def params_sha256(params: Any) -> str:
    """SHA-256 over the parameters in the order of their paths: each path, then little-endian bytes.

    Paths are such as `stage1_block1/conv1/kernel`, in UTF-8 and followed by a zero byte.
    """
    leaves = {
        "/".join(str(key.key) for key in path): leaf
        for path, leaf in jax.tree_util.tree_leaves_with_path(params)
    }
    digest = hashlib.sha256()
    for name in sorted(leaves):
        array = np.asarray(jax.device_get(leaves[name]))
        digest.update(name.encode() + b"\0" + array.astype(array.dtype.newbyteorder("<")).tobytes())
    return digest.hexdigest()
