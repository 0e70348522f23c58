"""Tiny networks and images that train fast."""

from typing import Any

import by_hand
import jax
import jax.numpy as jnp

from cifar_jax.config import Config
from cifar_jax.training.compilation import CompiledSteps
from cifar_jax.training.setup import Setup, build_setup, initial_state
from cifar_jax.training.step import TrainState

DATASET = by_hand.images()
TINY: dict[str, Any] = {
    **{"model__name": "tiny", "epochs": 4, "batch_size": 8, "optimizer__lr": 0.05},
    **{"data__validation": 8, "data__train_images": "none", "train__log_every": 1},
}


class Pooled(by_hand.Tiny):
    """A tiny network that accepts images of any size."""

    @by_hand.nn.compact
    def __call__(self, x: jax.Array, *, train: bool = False) -> jax.Array:
        x = by_hand.nn.Conv(70, (3, 3), 4, name="conv1")(x)
        x = by_hand.BatchNorm(name="bn1")(x, train=train).mean((1, 2))
        return by_hand.nn.Dense(self.num_classes, name="fc")(x)


class Dense(by_hand.nn.Module):
    """A dense layer on the first 8 pixel values, which compiles fast."""

    num_classes: int = 10
    dtype: Any = None

    @by_hand.nn.compact
    def __call__(self, x: jax.Array, *, train: bool = False) -> jax.Array:
        few = x.reshape(len(x), -1)[:, :8]
        return by_hand.nn.Dense(self.num_classes, dtype=self.dtype, name="fc")(few)


def after_an_epoch(config: Config) -> tuple[Setup, TrainState, TrainState]:
    """Train one epoch. Return the run's setup, and the states before and after the epoch."""
    setup = build_setup(config, dataset=DATASET)
    state = initial_state(setup, 0)
    before = jax.tree.map(jnp.copy, state)
    steps = CompiledSteps(setup, 0, state)
    epoch = setup.plan.epochs[0]
    return setup, before, steps.run(state, epoch, steps.epoch_order(epoch), epoch.steps)
