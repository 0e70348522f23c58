import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from cifar_jax import data
from cifar_jax.errors import UserError
from cifar_jax.inference.outputs import test_outputs as outputs_of
from cifar_jax.runs.folder import LOGITS
from cifar_jax.runs.reading import read_run


@pytest.fixture
def folder(finished: Path, tmp_path: Path) -> Path:
    """As a run that was made before runs kept their logits."""
    path = Path(shutil.copytree(finished, tmp_path / "run"))
    (path / LOGITS).unlink()
    return path


def test_outputs_of_the_last_checkpoint_give_the_runs_accuracy(folder: Path) -> None:
    run = read_run(folder)
    assert run.result
    outputs = outputs_of(run)
    assert outputs.logits.dtype == np.float16
    assert outputs.accuracy() == pytest.approx(run.result["test_accuracy"], abs=0.3)


def test_logits_that_a_run_kept_need_no_checkpoint(folder: Path, finished: Path) -> None:
    logits = outputs_of(read_run(folder)).logits
    shutil.copy(finished / LOGITS, folder)
    shutil.rmtree(folder / "checkpoints")
    np.testing.assert_array_equal(outputs_of(read_run(folder)).logits, logits)
    np.save(folder / LOGITS, logits[:-1])
    with pytest.raises(UserError, match=r"test_logits\.npy is not of the \d+ test images"):
        outputs_of(read_run(folder))
    (folder / LOGITS).write_bytes(b"cut")
    with pytest.raises(UserError, match=r"test_logits\.npy cannot be read"):
        outputs_of(read_run(folder))


def test_without_logits_and_checkpoints_nothing_is_loaded(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(data, "load", None)
    shutil.rmtree(folder / "checkpoints")
    with pytest.raises(UserError, match=r"has neither test_logits\.npy nor a checkpoint"):
        outputs_of(read_run(folder))


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("params_sha256", "does not hold the parameters that its result.json names"),
        ("data_sha256", "on images in another order, or on others"),
    ],
)
def test_a_checkpoint_or_data_of_another_run_is_refused(folder: Path, name: str, told: str) -> None:
    path = folder / "result.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {name: "another"}))
    with pytest.raises(UserError, match=told):
        outputs_of(read_run(folder))
