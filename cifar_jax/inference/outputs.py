"""What a finished run says of the test images, for its record."""

from pathlib import Path

import numpy as np

from cifar_jax import data, runtime
from cifar_jax.errors import UserError
from cifar_jax.runs.folder import LOGITS
from cifar_jax.runs.records import Outputs
from cifar_jax.runs.run import Run


def test_outputs(run: Run) -> Outputs:
    """The logits and labels of the test images: those that it kept, else of its last checkpoint.

    Raises:
      UserError: neither is there, or the checkpoint or the data set is not the run's.
    """
    assert run.result
    kept = run.path / LOGITS
    if kept.exists():
        dataset = data.load(run.settings["data.dataset"])
        images, labels = dataset.fingerprint, dataset.test.labels
        logits = _read(kept, len(labels))
    elif not (run.path / "checkpoints").is_dir():
        raise UserError(f"{run.path} has neither {LOGITS} nor a checkpoint to compute them of")
    else:
        # JAX starts here, and only for a run that kept no logits.
        from cifar_jax.inference import evaluate

        runtime.set_up()
        runtime.require()
        found = evaluate.logits(run.path)
        logits, labels, images = found.logits, found.labels, found.data_sha256
        if found.params_sha256 != run.result.get("params_sha256"):
            raise UserError(
                f"{run.path}: its last checkpoint (step {found.step}) does not hold the parameters "
                "that its result.json names"
            )
    if images != run.data:
        raise UserError(
            f"{run.path} ran on images in another order, or on others, than those here: "
            "set TFDS_DATA_DIR to where it found them"
        )
    return Outputs(logits.astype(np.float16), labels.astype(np.uint8))


def _read(path: Path, count: int) -> np.ndarray:
    try:
        logits = np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise UserError(f"{path} cannot be read: {error}") from None
    if logits.ndim != 2 or len(logits) != count:
        raise UserError(f"{path} is not of the {count:,} test images")
    return logits
