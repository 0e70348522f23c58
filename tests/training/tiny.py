"""Networks and images so small that they take no time."""

from typing import Any

import by_hand
import jax
import jax.numpy as jnp

from cifar_jax.config import Config
from cifar_jax.training import compilation, setup
from cifar_jax.training.setup import Setup
from cifar_jax.training.step import TrainState

DATASET = by_hand.images(train=40)
TINY: dict[str, Any] = {
    **{"model__name": "tiny", "epochs": 4, "batch_size": 8, "optimizer__lr": 0.05},
    **{"data__validation": 8, "data__train_images": "none", "train__log_every": 1},
}


class Pooled(by_hand.Tiny):
    """It takes images of any size; its first convolution has the name that the paper's has."""

    @by_hand.nn.compact
    def __call__(self, x: jax.Array, *, train: bool = False) -> jax.Array:
        x = by_hand.nn.Conv(70, (3, 3), 2, name="conv1")(x)
        x = by_hand.BatchNorm(name="bn1")(x, train=train).mean((1, 2))
        return by_hand.nn.Dense(self.num_classes, name="fc")(x)


class Dense(by_hand.nn.Module):
    """A layer on a few of the values, compiled at once: where the network is of no concern."""

    num_classes: int = 10
    dtype: Any = None

    @by_hand.nn.compact
    def __call__(self, x: jax.Array, *, train: bool = False) -> jax.Array:
        few = x.reshape(len(x), -1)[:, :8]
        return by_hand.nn.Dense(self.num_classes, dtype=self.dtype, name="fc")(few)


def after_an_epoch(config: Config) -> tuple[Setup, TrainState, TrainState]:
    """Its workload, and the states before and after the first epoch."""
    workload = setup.workload(config)
    state = setup.init_state(workload, 0)
    before = jax.tree.map(jnp.copy, state)
    training = compilation.compile_training(workload, 0, state, compilation.train_data(workload))
    epoch = workload.plan.epochs[0]
    begun = training.begin(epoch, training.order(epoch), workload.plan.steps)
    return workload, before, begun(state, epoch.steps)
