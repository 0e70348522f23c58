"""Which checkpoints are kept."""

from pathlib import Path

import jax

from cifar_jax.runs.checkpoints import Checkpoints
from cifar_jax.training.optim import plateau_init
from cifar_jax.training.step import Metrics, TrainState


def test_checkpoints_kept_are_the_last_and_the_best(tmp_path: Path) -> None:
    def state(step: int) -> TrainState:
        params = {"w": jax.numpy.full(3, step, jax.numpy.float32)}
        return TrainState(jax.numpy.int32(step), params, {}, (), plateau_init(), Metrics.zero())

    accuracies = {1: 10.0, 2: 50.0, 3: 20.0, 4: 30.0, 5: None, 6: 40.0, 7: None}
    with Checkpoints(tmp_path / "c", keep=2) as checkpoints:
        assert checkpoints.latest() is None
        assert checkpoints.best() is None
        for step, accuracy in accuracies.items():
            checkpoints.save(state(step), accuracy)
    with Checkpoints(tmp_path / "c", keep=2) as checkpoints:
        assert checkpoints.latest() == 7
        assert checkpoints.best() == 2
        for step in (2, 6, 7):
            assert checkpoints.restore(step, state(0)).params["w"].tolist() == [step] * 3
    assert {path.name for path in (tmp_path / "c").iterdir()} == {"2", "6", "7"}
