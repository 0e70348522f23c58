"""The random keys of a run. Each purpose has its own key. All keys are derived from the seed."""

from typing import NamedTuple

import jax


class Streams(NamedTuple):
    """Keys of independent streams of random numbers.

    The number of the epoch or step is folded into a key before use. All random numbers therefore
    follow from the seed and the step, and a checkpoint stores no keys.
    """

    init: jax.Array
    """Key for the initial weights."""
    order: jax.Array
    """Key for the order of the images. Fold the number of the epoch into it."""
    augment: jax.Array
    """Key for augmentation. Fold the number of the step into it."""
    dropout: jax.Array
    """Key for dropout. Fold the number of the step into it."""


def make_streams(seed: int) -> Streams:
    """Return the random keys for a seed. They do not depend on the configuration of JAX."""
    init, order, step = jax.random.split(jax.random.key(seed, impl="threefry2x32"), 3)
    augment, dropout = jax.random.split(step)
    return Streams(init, order, augment, dropout)
