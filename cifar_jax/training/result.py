"""Evaluate a finished run on the test images, and write result.json and outputs.npz."""

import hashlib
import math
from typing import Any

import jax
import numpy as np

from cifar_jax import config as configs
from cifar_jax import distributed, models
from cifar_jax.callbacks.base import RunContext
from cifar_jax.errors import UserError
from cifar_jax.logits import loss_and_accuracy
from cifar_jax.runs.checkpoints import Checkpoints
from cifar_jax.runs.schemas import Result
from cifar_jax.training.evaluation import LogitsFn
from cifar_jax.training.step import TrainState


def write_result(
    context: RunContext,
    state: TrainState,
    checkpoints: Checkpoints,
    evaluate_test: LogitsFn,
    evaluate_validation: LogitsFn | None,
    compile_seconds: float,
) -> tuple[Result, list[str]]:
    """Evaluate a finished run on the test images, and write its result.

    The test images are used only here, so no decision during training depends on them.

    Returns:
      The result, and messages about damaged checkpoints.

    Raises:
      UserError: the loss on the test images is not finite.
    """
    setup, config, rows = context.setup, context.setup.config, context.rows
    labels = setup.dataset.test.labels
    test = evaluate_test(state.evaluated)
    loss, accuracy = loss_and_accuracy(test.logits, labels)
    if not math.isfinite(loss):
        raise UserError("the loss on the test images is NaN or infinite: lower optimizer.lr")
    outputs = {"test_logits": test.logits, "test_labels": labels}
    if test.plain is not test.logits:
        outputs["test_logits_plain"] = test.plain
    if evaluate_validation:
        outputs["validation_logits"] = evaluate_validation(state.evaluated).logits
        outputs["validation_labels"] = setup.validation.labels

    best_state, best, messages = checkpoints.restore_best(state)
    best_accuracy = None
    if best and best.step == int(state.step):
        best_accuracy = accuracy
    elif best:
        _, best_accuracy = loss_and_accuracy(evaluate_test(best_state.evaluated).logits, labels)

    sessions = context.folder.sessions() if distributed.is_main_process() else []
    last = rows[-1] if rows else None
    # Ignore speeds of 0. They occur in old runs, whose checkpoints do not store the speed.
    speeds = [row.images_per_second for row in rows if row.images_per_second]
    identity = context.identity
    parts: dict[str, Any] = {
        "experiment": identity.experiment,
        "seed": identity.seed,
        "overrides": identity.overrides,
        "settings": configs.flatten(config),
        "model": config.model.name,
        "dataset": setup.dataset.name,
        "parameters": models.count_parameters(state.params),
        "epochs": int(state.epoch),
        "steps": int(state.step),
        "train_loss": last and last.train_loss,
        "train_accuracy": last and last.train_accuracy,
        "validation_loss": last and last.validation_loss,
        "validation_accuracy": last and last.validation_accuracy,
        "test_loss": loss,
        "test_accuracy": accuracy,
        "test_accuracy_plain": loss_and_accuracy(test.plain, labels)[1],
        "best_validation_epoch": best and best.epoch,
        "best_validation_accuracy": best and best.validation_accuracy,
        "best_validation_test_accuracy": best_accuracy,
        "images_per_second": round(float(np.median(speeds)), 1) if speeds else None,
        "params_sha256": params_sha256(state.evaluated["params"]),
        "data_sha256": setup.dataset.fingerprint,
        "data_content": setup.dataset.content,
        "data_official": setup.dataset.official,
        "paper_accuracy": config.paper.test_accuracy if config.paper else None,
        "wall_seconds": round(context.elapsed(), 1),
        "compile_seconds": round(compile_seconds, 1),
    }

    def write() -> dict[str, Any]:
        newest = sessions[-1]
        where = {
            "git_commit": newest.git_commit,
            "versions": newest.versions,
            "device": newest.device,
            "machine": newest.machine,
            "sessions": sessions,
        }
        result = Result(**parts, **where)
        context.folder.write_result(result, outputs)
        return result.model_dump(mode="json")

    return Result(**distributed.run_on_main(write)), messages


def params_sha256(params: Any) -> str:
    """Return the SHA-256 of a tree of parameters.

    The parameters are hashed in the order of their paths, such as `stage1_block1/conv1/kernel`. For
    each parameter, the hash covers the path in UTF-8, a zero byte, and the little-endian bytes of
    the array.
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
